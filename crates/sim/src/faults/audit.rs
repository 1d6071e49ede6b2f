//! Disks of audit trails that fill up, tear writes, fail to sync, or are gone, one machine at a time.

use std::sync::Arc;
use std::time::Duration;

use keyward_audit::testing::Faults;

use crate::client::Callers;
use crate::dice::Dice;
use crate::sleep;

/// Breaks them for that long, leaders' more often.
pub async fn break_audit_disks(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    loop {
        sleep(dice.between_ms(1000, 5000)).await;
        if cluster.world.now() >= end {
            return;
        }
        let index = match cluster.leader() {
            Some(leader) if dice.permille(600) => leader,
            _ => dice.pick(&cluster.members()),
        };
        let faults = match dice.below(4) {
            0 => Faults { space_bytes: Some(0), ..Faults::default() },
            1 => Faults { torn_writes: Some(dice.index(3000)), ..Faults::default() },
            2 => Faults { failing_syncs: true, ..Faults::default() },
            _ => Faults { gone: true, ..Faults::default() },
        };
        callers.book.lock().counters.audit_faults += 1;
        cluster.audit_disk(index).set_faults(faults, cluster.world.now());
        sleep(dice.between_ms(100, 4000)).await;
        cluster.audit_disk(index).set_faults(Faults::default(), cluster.world.now());
    }
}
