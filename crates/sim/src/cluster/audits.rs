//! The audit disks of machines.

use super::*;

/// What is left on a machine's audit disk after a power cut.
pub(super) fn lose_power(slot: &Slot, dice: &mut Dice, now: Duration) -> AuditDisk {
    if let Some(since) = slot.still_since {
        slot.audit.was_disturbed(since, now);
    }
    slot.audit.power_cut(now, dice)
}

impl Cluster {
    /// The audit disk of machine `index`.
    #[must_use]
    pub fn audit_disk(&self, index: usize) -> AuditDisk {
        self.slots.lock()[index].audit.clone()
    }

    /// The process runs, or runs again.
    pub(super) fn is_moving(&self, index: usize) {
        let slot = &mut self.slots.lock()[index];
        if let Some(since) = slot.still_since.take() {
            slot.audit.was_disturbed(since, self.world.now());
        }
    }
}
