//! What calls read of a lease, run with every interleaving of its atomic operations that the memory model allows
//! (loom). The cell's own file is taken, with loom's atomics in place of the standard library's.
//!
//! That they can fail was tried by hand. The first one fails when the end is stored before the epoch rises, and when
//! the fence is raised after the end; the second one when patience is stored after the end, and when `end()` stores or
//! `lasts` loads the end `Relaxed` (that `set_until` does is not caught: loom takes the other accesses for fences); the
//! third one when the epoch rises without a gap.

#![allow(dead_code, reason = "the cell's file is taken whole")]

#[path = "../src/lease/cell.rs"]
mod cell;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

use std::time::Duration;

use cell::LeaseCell;
use loom::sync::Arc;
use loom::thread;

const SECOND: Duration = Duration::from_secs(1);

/// As `Keeper::take` and `Keeper::renew_self` do: the fence, then the end.
fn renew(cell: &LeaseCell, fence: u64, until: Duration, now: Duration) {
    cell.raise_fence(fence);
    cell.set_until(until, now);
}

/// Readers beside the keeper, which runs here: loom tries all orders of one thread's write and another's read, but
/// misses those of a read before a read and a write of the same number (so the keeper, whose `set_until` does both,
/// must not be the one that comes second).
fn with_readers(cell: &Arc<LeaseCell>, keeper: impl FnOnce(), reads: fn(&LeaseCell)) {
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let cell = Arc::clone(cell);
            thread::spawn(move || reads(&cell))
        })
        .collect();
    keeper();
    readers.into_iter().for_each(|reader| reader.join().expect("it ends"));
}

#[test]
fn who_sees_the_new_end_sees_the_new_fence_and_the_new_epoch() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::default());
        renew(&cell, 7, SECOND, Duration::ZERO);
        let reads = |cell: &LeaseCell| {
            if cell.lasts(3 * SECOND) {
                assert_eq!((cell.fence(), cell.epoch()), (9, 2));
            }
        };
        // The first lease is over; another one begins after a gap.
        with_readers(&cell, || renew(&cell, 9, 4 * SECOND, 2 * SECOND), reads);
        assert!(cell.lasts(3 * SECOND));
    });
}

#[test]
fn a_call_that_sees_a_lease_ended_early_sees_that_waiting_is_worth_it() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::default());
        renew(&cell, 7, 4 * SECOND, Duration::ZERO);
        // As `Keeper::won` and `Keeper::hand_over` do.
        let keeper = || {
            cell.be_patient_until(5 * SECOND);
            cell.end();
        };
        with_readers(&cell, keeper, |cell| {
            assert!(cell.lasts(3 * SECOND) || !cell.patience_left(3 * SECOND).is_zero());
        });
        assert!(!cell.lasts(3 * SECOND));
    });
}

#[test]
fn a_renewal_without_a_gap_keeps_the_epoch_whoever_looks() {
    loom::model(|| {
        let cell = Arc::new(LeaseCell::default());
        renew(&cell, 7, 2 * SECOND, Duration::ZERO);
        with_readers(
            &cell,
            || renew(&cell, 8, 4 * SECOND, SECOND),
            |cell| {
                assert!(cell.lasts(SECOND), "there is no moment without a lease");
                assert_eq!(cell.epoch(), 1);
            },
        );
        assert_eq!(cell.epoch(), 1);
    });
}
