//! The audit disks of machines.

use keyward_state::{Store, Table};

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

    /// What nodes drew for keys so far.
    pub fn drawn(&self) -> Vec<[u8; 32]> {
        self.drawn.lock().clone()
    }

    /// All rows of machine `index`, by the name of their place.
    pub fn rows(&self, index: usize) -> Vec<(String, Vec<u8>)> {
        let node = self.id(index);
        let stores = [
            (self.state_store(index), Table::STATE.as_slice()),
            (self.log_store(index), Table::LOG.as_slice()),
        ];
        let mut places = Vec::new();
        for (store, tables) in stores {
            for table in tables {
                let mut bytes = Vec::new();
                let scanned = store.scan(*table, &mut |key, value| {
                    bytes.extend_from_slice(key);
                    bytes.extend_from_slice(value);
                    Ok(())
                });
                if scanned.is_ok() {
                    places.push((format!("table {} of node {node}", table.name()), bytes));
                }
            }
        }
        places
    }
}
