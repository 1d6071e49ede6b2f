//! Disks that are full for a while, or fail to sync: the node stops, and its supervisor starts it until it runs.

use std::sync::Arc;
use std::time::Duration;

use keyward_state::DiskFaults;

use super::{FaultKind, some_node_is_down};
use crate::client::Callers;
use crate::dice::Dice;
use crate::sleep;

/// Breaks disks for that long, one machine's at a time.
pub async fn break_disks(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    loop {
        sleep(dice.between_ms(1000, 6000)).await;
        if cluster.world.now() >= end {
            return;
        }
        let index = match cluster.leader() {
            Some(leader) if dice.permille(500) => leader,
            _ => dice.pick(&cluster.members()),
        };
        let full = dice.permille(500);
        let lasts = dice.between_ms(50, 5000);
        if some_node_is_down(&callers) || cluster.lies(index) || cluster.is_frozen(index) {
            continue;
        }
        let what = if full { "full" } else { "failing its syncs" };
        callers.tell(FaultKind::Disks, || format!("the disk of machine {index} is {what}"));
        callers.book.lock().counters.disk_faults += 1;
        let faults = DiskFaults { full, failing_syncs: !full, rotten: false };
        cluster.break_disk(index, faults);
        sleep(lasts).await;
        cluster.mend_disk(index);
    }
}
