//! Moments of elections (DESIGN section 5, rule 6).

use std::time::Duration;

use super::Stage;
use crate::cluster::{Death, operator};
use crate::sleep;

/// How often the moment is tried: an election comes in time in some of them.
const TRIES: usize = 6;
/// A process that is killed starts again after this, in the run's time: nobody has missed it yet.
const DOWN: Duration = Duration::from_millis(2);
/// How long a hand-over may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Stage {
    /// One follower does not hear the leader and asks the other one for its vote, again and again; that one restarts, and the
    /// leader, which it has forgotten, is heard no more. Until its self-lease is over nobody may be elected.
    pub(super) async fn a_restarted_voter(&mut self) -> Option<()> {
        for _ in 0..TRIES {
            let leader = self.leader().await?;
            let (restarts, stands) = self.others(leader)?;
            self.part(leader, stands);
            sleep(self.dice.between_ms(900, 1500)).await;
            // Its disk is vouched for by both, or by the one alone.
            let mute = self.dice.permille(500);
            if mute {
                self.cut(leader, restarts);
            }
            let cluster = &self.callers.cluster;
            cluster.kill(restarts, Death::Kill);
            sleep(DOWN).await;
            cluster.boot(restarts);
            if !mute {
                sleep(self.dice.between_ms(5, 80)).await;
            }
            self.part(leader, restarts);
            self.watch(leader).await;
            self.mend();
        }
        Some(())
    }

    /// Leadership is handed over, and one follower gets the new leader's first entry, but no lease: it follows the old one still.
    /// That has a lease by then, and is cut off; the new leader falls and is back at once. Whoever wins must wait for the old
    /// leader's lease: the last leader was another one.
    pub(super) async fn a_missed_leader(&mut self) -> Option<()> {
        for _ in 0..TRIES {
            let first = self.leader().await?;
            let (last, misses) = self.others(first)?;
            let before = self.last_log(first)?;
            self.hand_over(first, last);
            // Its asking for a lease gets lost from here on.
            self.until(|_| self.last_log(misses).filter(|log| *log > before)).await?;
            self.cut(misses, last);
            sleep(self.dice.between_ms(250, 600)).await;
            let cluster = &self.callers.cluster;
            cluster.net.mend();
            self.isolate(first);
            cluster.kill(last, Death::Kill);
            sleep(DOWN).await;
            cluster.boot(last);
            self.watch(last).await;
            self.mend();
        }
        Some(())
    }

    fn last_log(&self, machine: usize) -> Option<u64> {
        Some(self.callers.cluster.running(machine)?.kms.node().status().last_log)
    }

    fn hand_over(&self, from: usize, to: usize) {
        let cluster = &self.callers.cluster;
        let Some(running) = cluster.running(from) else { return };
        let (kms, to) = (running.kms, cluster.id(to));
        drop(cluster.world.spawn_in(running.group, async move {
            // Whether it is told so does not matter: who leads is looked at.
            let _ = kms.transfer_leadership(&operator(), Some(to), PATIENCE).await;
        }));
    }
}
