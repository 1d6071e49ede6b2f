//! The roots of machines: their devices, their record, and processes that die between two steps of a change.

use super::*;

/// A process that is restarted by its supervisor is back after this.
const RESTART: Duration = Duration::from_secs(1);

impl Cluster {
    pub(super) fn folder(&self, index: usize) -> (MemStore, Arc<Cabinet>) {
        let slot = &self.slots.lock()[index];
        (slot.folder.clone(), Arc::clone(&slot.cabinet))
    }

    /// The devices of machine `index`.
    #[must_use]
    pub fn cabinet(&self, index: usize) -> Arc<Cabinet> {
        self.folder(index).1
    }

    /// The roots that the node of machine `index` has on record, with their devices.
    #[must_use]
    pub fn recorded_roots(&self, index: usize) -> Vec<(RootId, String)> {
        recorded(&self.folder(index).0)
    }

    /// For how long no root of the node of machine `index` has answered, since its start.
    #[must_use]
    pub fn roots_silent_for(&self, index: usize) -> Duration {
        let slot = &self.slots.lock()[index];
        self.world.now().saturating_sub(slot.cabinet.answered().max(slot.booted))
    }

    /// From now on processes die between two steps of their root keepers, so often in a thousand.
    pub fn set_deaths(&self, permille: u64) {
        self.deaths.lock().1 = permille;
    }

    /// What a root keeper asks between two steps.
    pub(super) fn may_die(self: &Arc<Self>, index: usize) -> MayDie {
        let this = Arc::downgrade(self);
        Arc::new(move || {
            let Some(this) = this.upgrade() else { return false };
            let death = {
                let (dice, permille) = &mut *this.deaths.lock();
                let dies = dice.permille(*permille);
                dies.then(|| if dice.permille(500) { Death::Kill } else { Death::PowerCut })
            };
            if let Some(death) = death {
                this.restart_soon(index, death);
            }
            death.is_some()
        })
    }

    /// The process ends, and its supervisor starts it again.
    pub fn restart_soon(self: &Arc<Self>, index: usize, death: Death) {
        let (this, group) = (Arc::clone(self), self.group(index));
        self.world.after(Duration::ZERO, move || {
            if this.group(index) != group {
                return;
            }
            this.kill(index, death);
            let again = Arc::clone(&this);
            this.world.after(RESTART, move || {
                if again.group(index).is_none() {
                    again.boot(index);
                }
            });
        });
    }
}
