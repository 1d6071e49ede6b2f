//! Disks that lie: copies of a machine's folders, and putting them in the place of what was there.

use std::sync::Arc;
use std::time::Duration;

use keyward_model::NodeId;
use keyward_raft::StartError;
use keyward_state::{DiskFaults, DiskMark, MemStore, Store, Table, codec};

use super::{AuditDisk, Cluster, Death, Place};
use crate::runtime::HARNESS;

/// Copies kept of a machine's folders at most.
const COPIES_MAX: usize = 6;
/// A younger copy may not be known for one by anybody: what a node told last is at most this old on other
/// nodes' disks.
const COPY_AGE_MIN: Duration = Duration::from_secs(3);
/// How often a supervisor looks whether its process has ended.
const SUPERVISED_EVERY: Duration = Duration::from_millis(300);
/// The counter in a log (`crates/raft/src/disk.rs`).
const COUNTER: &[u8] = b"counter";

/// A copy of a machine's folders.
#[derive(Clone)]
pub struct Copied {
    node: NodeId,
    at: Duration,
    log: MemStore,
    state: MemStore,
}

/// Why a node does not take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its disk has forgotten what it acknowledged.
    Condemned(String),
    /// Its folder is another node's.
    Foreign,
    /// Its disk cannot be read or written.
    Disk(String),
    /// None of its roots can be opened: it is started again until one can.
    RootsAway,
    /// Its audit trail cannot be written: it is started again until it can.
    NoAuditTrail(String),
    /// Anything else.
    Other(String),
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Condemned(why) => Self::Condemned(why),
            StartError::ForeignFolder { .. } => Self::Foreign,
            StartError::Storage(error) => Self::Disk(error.to_string()),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        Self::Other(why.to_owned())
    }
}

fn counter_of(log: &MemStore) -> u64 {
    let row = log.get(Table::LogMeta, COUNTER).ok().flatten();
    row.and_then(|row| codec::decode(&row).ok()).unwrap_or(0)
}

impl Cluster {
    /// Copies the folders of machine `index`, whatever its node does meanwhile.
    pub fn copy_disks(&self, index: usize) {
        let at = self.world.now();
        let slot = &mut self.slots.lock()[index];
        let copy = Copied { node: slot.id, at, log: slot.log.copied(), state: slot.state.copied() };
        slot.copies.push_back(copy);
        if slot.copies.len() > COPIES_MAX {
            // The oldest one stays: an image of the machine's first day.
            drop(slot.copies.remove(1));
        }
    }

    /// True if the nodes of all other machines would refuse the node of this one with such a counter.
    fn others_know_better(&self, index: usize, counter: u64) -> bool {
        let node = self.id(index);
        let mark = DiskMark { boot: u64::MAX, counter };
        self.members().into_iter().filter(|other| *other != index).all(|other| {
            !self.is_frozen(other)
                && self
                    .running(other)
                    .is_some_and(|running| running.kms.node().judge_disk(node, mark).is_err())
        })
    }

    /// A copy of machine `index` that is too old to be taken for its disk; the `nth` of those there are.
    #[must_use]
    pub fn stale_copy(&self, index: usize, nth: usize) -> Option<Copied> {
        let (now, node) = (self.world.now(), self.id(index));
        let copies = self.slots.lock()[index].copies.clone();
        let stale: Vec<Copied> = copies
            .into_iter()
            .filter(|copy| copy.node == node && copy.at + COPY_AGE_MIN < now)
            .filter(|copy| self.others_know_better(index, counter_of(&copy.log)))
            .collect();
        if stale.is_empty() { None } else { stale.get(nth % stale.len()).cloned() }
    }

    /// True if an empty disk of machine `index` would be known for one.
    #[must_use]
    pub fn would_notice_wiping(&self, index: usize) -> bool {
        self.others_know_better(index, 0)
    }

    /// A copy of what machine `index` has now.
    #[must_use]
    pub fn copy_of(&self, index: usize) -> Copied {
        let slot = &self.slots.lock()[index];
        let (log, state) = (slot.log.copied(), slot.state.copied());
        Copied { node: slot.id, at: self.world.now(), log, state }
    }

    /// The machine loses power and comes back with these folders; none: with empty ones. Its node is to be
    /// refused from now on, unless the folders are its own (`lies`).
    pub fn swap_disks(self: &Arc<Self>, index: usize, folders: Option<&Copied>, lies: bool) {
        self.kill(index, Death::PowerCut);
        let slot = &mut self.slots.lock()[index];
        slot.log = folders.map_or_else(MemStore::default, |copy| copy.log.copied());
        slot.state = folders.map_or_else(MemStore::default, |copy| copy.state.copied());
        slot.lies = lies;
        slot.refused = None;
    }

    /// The machine begins anew, as another node with nothing on its disks.
    pub fn begin_anew(self: &Arc<Self>, index: usize, id: NodeId) {
        self.swap_disks(index, None, false);
        let slot = &mut self.slots.lock()[index];
        slot.id = id;
        slot.place = Place::Member;
        slot.folder = MemStore::default();
        slot.audit = AuditDisk::default();
        slot.copies.clear();
        slot.told.clear();
    }

    pub(super) fn did_not_start(self: &Arc<Self>, index: usize, why: Refusal) {
        if matches!(why, Refusal::RootsAway | Refusal::NoAuditTrail(_))
            || self.disk_is_broken(index)
        {
            return self.restart_soon(index, Death::Kill);
        }
        let (lies, id) = {
            let slot = &mut self.slots.lock()[index];
            slot.refused = Some(why.clone());
            (slot.lies, slot.id)
        };
        if !lies {
            self.failures.lock().push(format!("node {id} did not start: {why:?}"));
        }
    }

    /// The disk of machine `index` is full from now on, or does not sync. Its node stops when it notices, and is
    /// started again and again.
    pub fn break_disk(self: &Arc<Self>, index: usize, faults: DiskFaults) {
        self.set_disk_faults(index, faults);
        let this = Arc::clone(self);
        drop(self.world.spawn_in(HARNESS, async move {
            while this.disk_is_broken(index) {
                crate::sleep(SUPERVISED_EVERY).await;
                let well = {
                    let slot = &this.slots.lock()[index];
                    !slot.log.is_broken() && !slot.state.is_broken()
                };
                match this.running(index).map(|running| running.kms.node().fatal()) {
                    Some(Some(_)) => this.restart_soon(index, Death::Kill),
                    Some(None) if well => this.slots.lock()[index].disk_broke = false,
                    _ => {}
                }
            }
        }));
    }

    /// It is well again; its node may not have noticed yet.
    pub fn mend_disk(&self, index: usize) {
        if self.disk_is_broken(index) {
            self.set_disk_faults(index, DiskFaults::default());
        }
    }

    fn set_disk_faults(&self, index: usize, faults: DiskFaults) {
        let slot = &mut self.slots.lock()[index];
        slot.disk_broke = true;
        slot.log.set_faults(faults);
        slot.state.set_faults(faults);
    }

    /// True from when the disk of machine `index` broke until its node runs on a good one.
    #[must_use]
    pub fn disk_is_broken(&self, index: usize) -> bool {
        self.slots.lock()[index].disk_broke
    }

    /// Snapshots that nodes have taken over, on the disks that there are now.
    #[must_use]
    pub fn snapshots_taken_over(&self) -> u64 {
        self.slots.lock().iter().map(|slot| slot.state.installs()).sum()
    }

    /// A block of one of the machine's stores can be read no more. The process is killed: what it holds in memory
    /// would hide it.
    pub fn rot(self: &Arc<Self>, index: usize, log: bool) {
        self.kill(index, Death::Kill);
        let slot = &mut self.slots.lock()[index];
        let store = if log { &slot.log } else { &slot.state };
        store.set_faults(DiskFaults { rotten: true, ..DiskFaults::default() });
        slot.lies = true;
        slot.refused = None;
    }

    /// What an operator was told who wanted the machine's node in.
    pub fn note(&self, index: usize, told: String) {
        self.slots.lock()[index].told = told;
    }

    /// True while the machine's node is to be refused.
    #[must_use]
    pub fn lies(&self, index: usize) -> bool {
        self.slots.lock()[index].lies
    }

    /// Why the node of machine `index` was refused, at its start or since.
    #[must_use]
    pub fn refusal(&self, index: usize) -> Option<Refusal> {
        let refused = self.slots.lock()[index].refused.clone();
        refused.or_else(|| self.running(index)?.kms.node().fatal().map(Refusal::Condemned))
    }
}
