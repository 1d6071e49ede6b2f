//! Moments of disks (decision 0009).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Stage;
use crate::cluster::Death;
use crate::faults::{must_be_refused, replace};
use crate::sleep;

/// A copy of a disk is as old as that when it is put in.
const COPY_AGE: Duration = Duration::from_secs(4);
/// Meanwhile a disk that counts would have come further than others remember.
const ALONE: Duration = Duration::from_secs(15);

impl Stage {
    /// A follower comes back with an old copy of its disk while it is cut off, waits for somebody to ask, and starts once
    /// more: it must be refused as soon as it reaches the others.
    pub(super) async fn a_stale_disk_that_waits(&mut self) -> Option<()> {
        let leader = self.leader().await?;
        let cluster = &self.callers.cluster;
        let machine = self.dice.pick(&cluster.others(leader));
        if !cluster.take_in_hand(machine) {
            return None;
        }
        let copy = cluster.copy_of(machine);
        sleep(COPY_AGE + self.dice.between_ms(0, 3000)).await;
        self.isolate(machine);
        let cluster = &self.callers.cluster;
        cluster.swap_disks(machine, Some(&copy), true);
        cluster.boot(machine);
        sleep(ALONE).await;
        cluster.kill(machine, Death::Kill);
        self.mend();
        // From here on it has to happen within a while.
        self.callers.healed.store(true, Ordering::Relaxed);
        must_be_refused(&self.callers, machine, false).await;
        replace(&self.callers, machine).await;
        self.callers.cluster.let_go(machine);
        Some(())
    }
}
