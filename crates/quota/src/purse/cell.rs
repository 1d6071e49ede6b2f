//! A purse: tokens and their end in one atomic number.
//!
//! Atomics come from `crate::atomic`, so that `tests/loom.rs` can take this file and run it with every order of reads
//! and writes that the memory model allows.

use std::time::Duration;

use crate::atomic::{AtomicU64, Ordering};

/// Tokens are in the low bits, the end in milliseconds above them.
const TOKEN_BITS: u32 = 24;
const TOKENS_MAX: u64 = (1 << TOKEN_BITS) - 1;

/// Tokens and their end in one number, so that taking one is one atomic operation.
#[derive(Debug, Default)]
pub struct Purse(AtomicU64);

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Purse {
    /// The most that goes in.
    pub const MOST: u64 = TOKENS_MAX;

    /// Takes `cost` tokens, if that many are there and have not ended.
    pub fn take(&self, cost: u64, now: Duration) -> bool {
        let now = millis(now);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |purse| {
                let (end, tokens) = (purse >> TOKEN_BITS, purse & TOKENS_MAX);
                (now < end && tokens >= cost).then(|| purse - cost)
            })
            .is_ok()
    }

    /// Gives back what was taken a moment ago.
    pub fn put_back(&self, cost: u64) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |purse| {
            ((purse & TOKENS_MAX) + cost <= TOKENS_MAX).then(|| purse + cost)
        });
    }

    /// Puts new tokens in, at most [`Self::MOST`]. What was there is lost: it is emptied first
    /// ([`Self::empty`]).
    pub fn fill(&self, tokens: u64, end: Duration) {
        self.0.store(millis(end) << TOKEN_BITS | tokens.min(TOKENS_MAX), Ordering::Release);
    }

    /// Takes out what is left and has not ended.
    pub fn empty(&self, now: Duration) -> u64 {
        let purse = self.0.swap(0, Ordering::AcqRel);
        if millis(now) < purse >> TOKEN_BITS { purse & TOKENS_MAX } else { 0 }
    }

    /// What is left and has not ended.
    #[must_use]
    pub fn tokens(&self, now: Duration) -> u64 {
        let purse = self.0.load(Ordering::Relaxed);
        if millis(now) < purse >> TOKEN_BITS { purse & TOKENS_MAX } else { 0 }
    }
}
