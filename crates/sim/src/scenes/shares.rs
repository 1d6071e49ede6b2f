//! Moments of quotas (DESIGN section 6).

use std::sync::Arc;
use std::time::Duration;

use super::Stage;
use crate::metered::MeteredCallers;
use crate::runtime::HARNESS;
use crate::sleep;

/// How often the moment is tried.
const TRIES: usize = 3;
/// At 1.5 times the rate the burst is spent within this, and a node that is asked alone holds the whole rate.
const WHOLE: Duration = Duration::from_millis(2500);
/// So long both nodes are asked: as long as a lease lasts.
const BOTH: Duration = Duration::from_millis(2500);

impl Stage {
    /// A follower holds the whole rate and is asked for more. Then another node is asked for as much, and the follower does not
    /// hear the leader: until it is known to have let go, or can hold no lease, nobody else may get what it holds.
    pub(super) async fn a_deaf_holder(&mut self, metered: &Arc<MeteredCallers>) -> Option<()> {
        for _ in 0..TRIES {
            let leader = self.leader().await?;
            let (holds, asks) = self.others(leader)?;
            let asks = if self.dice.permille(300) { leader } else { asks };
            metered.offer_shared(&[holds], WHOLE).await;
            let world = &self.callers.cluster.world;
            let this = Arc::clone(metered);
            let goes_on =
                world.spawn_in(HARNESS, async move { this.offer_shared(&[holds], BOTH).await });
            sleep(self.dice.between_ms(1, 150)).await;
            self.cut(leader, holds);
            metered.offer_shared(&[asks], BOTH).await;
            // Calls come to their end, whatever became of the node that made them.
            let _ = goes_on.await;
            self.mend();
        }
        Some(())
    }
}
