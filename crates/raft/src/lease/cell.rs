//! What calls read of a node's lease, without a lock. One writer at a time: the [`Keeper`](super::Keeper), under its
//! lock.
//!
//! Nothing but atomics is used here, by way of `crate::atomic`, so that `tests/loom.rs` can take this file and run it
//! with every order of reads and writes that the memory model allows.

use std::time::Duration;

use crate::atomic::{AtomicU64, Ordering};

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a call needs to know, readable without a lock.
#[derive(Debug, Default)]
pub struct LeaseCell {
    until_ns: AtomicU64,
    fence: AtomicU64,
    /// Calls without a lease wait until this point rather than fail: a leader was just elected, hands
    /// over, or the node has just started.
    patience_until_ns: AtomicU64,
    /// Index of the last entry that calls can see. Written by the state machine before anybody is told.
    applied: AtomicU64,
    /// Rises whenever a lease begins after there was none for a while.
    epoch: AtomicU64,
}

impl LeaseCell {
    /// Rule 3, first half: the lease lasts.
    #[must_use]
    pub fn lasts(&self, now: Duration) -> bool {
        nanos(now) < self.until_ns.load(Ordering::SeqCst)
    }

    /// Rule 3, second half: calls are decided on nothing older. Read after [`Self::lasts`].
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence.load(Ordering::SeqCst)
    }

    /// For how long a call that finds no lease should wait for one, as things stand.
    #[must_use]
    pub fn patience_left(&self, now: Duration) -> Duration {
        let until_ns = self.patience_until_ns.load(Ordering::SeqCst);
        Duration::from_nanos(until_ns.saturating_sub(nanos(now)))
    }

    /// Index of the last entry that calls can see.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    /// What the lease has left.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.until_ns.load(Ordering::SeqCst).saturating_sub(nanos(now)))
    }

    /// Names the stretch of time for which leases have followed one another without a gap. What a node was
    /// given on the strength of its lease ends with it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(super) fn be_patient_until(&self, until: Duration) {
        self.patience_until_ns.store(nanos(until), Ordering::SeqCst);
    }

    pub(super) fn set_applied(&self, index: u64) {
        self.applied.store(index, Ordering::SeqCst);
    }

    pub(super) fn raise_fence(&self, index: u64) {
        self.fence.fetch_max(index, Ordering::SeqCst);
    }

    /// The fence is raised first, and the epoch: who sees the new end sees the new fence and the new epoch. True if a
    /// lease begins that was not there.
    pub(super) fn set_until(&self, until: Duration, now: Duration) -> bool {
        let begins = !self.lasts(now) && until > now;
        if begins {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        self.until_ns.store(nanos(until), Ordering::SeqCst);
        begins
    }

    pub(super) fn end(&self) {
        self.until_ns.store(0, Ordering::SeqCst);
    }
}
