//! The lock-free cells, run with every interleaving of their atomic operations that the memory model allows (loom).
//! The cells' own files are taken, with loom's atomics in place of the standard library's.
//!
//! That they can fail was tried by hand. With a load, a decision and a store in place of the compare-and-swap of
//! `RateCell::take`, the first three fail; with a load and a store in place of the swap of `close`, the second and
//! third; when `put_back` opens a closed cell, the third; with a load and a store in `Purse::take` or `Purse::empty`,
//! the fourth.

#![allow(dead_code, reason = "the cells' files are taken whole")]

#[path = "../src/rate/cell.rs"]
mod cell;
#[path = "../src/purse/cell.rs"]
mod purse;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

mod rate {
    pub(crate) use keyward_quota::{Share, Taken};
}

use std::time::Duration;

use cell::RateCell;
use loom::sync::Arc;
use loom::thread;
use purse::Purse;
use rate::{Share, Taken};

const NOW: Duration = Duration::from_secs(1000);

fn cell(tokens: u64) -> Arc<RateCell> {
    Arc::new(RateCell::new(Share { rate: 100, burst: 100 }, tokens * 1000, NOW))
}

#[test]
fn no_more_is_taken_than_there_is_and_no_less() {
    loom::model(|| {
        let cell = cell(2);
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let cell = Arc::clone(&cell);
                thread::spawn(move || u64::from(cell.take(1, NOW) == Taken::Yes))
            })
            .collect();
        let own = u64::from(cell.take(1, NOW) == Taken::Yes);
        let taken = own + takers.into_iter().map(|taker| taker.join().unwrap()).sum::<u64>();
        assert_eq!(taken, 2);
        assert_eq!(cell.milli_tokens(NOW), 0);
    });
}

#[test]
fn what_is_left_at_the_close_and_what_was_taken_are_the_whole() {
    loom::model(|| {
        let cell = cell(3);
        let taker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || (0..2).filter(|_| cell.take(1, NOW) == Taken::Yes).count() as u64)
        };
        let left = cell.close(NOW);
        let taken = taker.join().unwrap();
        assert_eq!(left + taken * 1000, 3000);
        assert_eq!(cell.take(1, NOW), Taken::Closed);
    });
}

#[test]
fn what_is_put_back_is_there_or_was_counted_as_taken_by_the_close() {
    loom::model(|| {
        let cell = cell(1);
        let refused_elsewhere = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let taken = cell.take(1, NOW) == Taken::Yes;
                if taken {
                    cell.put_back(1);
                }
                taken
            })
        };
        let left = cell.close(NOW);
        let taken = refused_elsewhere.join().unwrap();
        assert!(left == 1000 || (taken && left == 0), "{left} left, taken: {taken}");
        assert_eq!(cell.take(1, NOW), Taken::Closed, "a closed cell stays closed");
        assert_eq!(cell.milli_tokens(NOW), 0);
    });
}

#[test]
fn a_purse_is_spent_once_whoever_takes_empties_and_puts_back() {
    loom::model(|| {
        let purse = Arc::new(Purse::default());
        purse.fill(2, NOW + Duration::from_secs(1));
        let takers: Vec<_> = [true, false]
            .map(|puts_back| {
                let purse = Arc::clone(&purse);
                thread::spawn(move || {
                    let taken = purse.take(1, NOW);
                    if taken && puts_back {
                        purse.put_back(1);
                    }
                    u64::from(taken && !puts_back)
                })
            })
            .into();
        let emptied = purse.empty(NOW);
        let taken: u64 = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        let left = purse.tokens(NOW);
        // What is put back after the purse was emptied has no end any more: it is lost, never there twice.
        assert!((1..=2).contains(&(emptied + taken + left)), "{emptied} + {taken} + {left}");
    });
}

#[test]
fn a_purse_that_is_filled_again_gives_new_tokens_only() {
    loom::model(|| {
        let purse = Arc::new(Purse::default());
        let (first, second) = (NOW + Duration::from_secs(1), NOW + Duration::from_secs(3));
        let between = NOW + Duration::from_secs(2);
        purse.fill(2, first);
        let taker = {
            let purse = Arc::clone(&purse);
            // The old tokens have ended: only new ones can be taken.
            thread::spawn(move || u64::from(purse.take(1, between)))
        };
        purse.fill(1, second);
        let taken = taker.join().unwrap();
        assert_eq!(taken + purse.tokens(between), 1);
    });
}
