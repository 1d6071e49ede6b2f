//! Prepaid tokens on a node: whole ones, that end soon.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_spent_once_and_end() {
        let at = |ms| Duration::from_secs(50_000_000) + Duration::from_millis(ms);
        let purse = Purse::default();
        assert!(!purse.take(1, at(0)));
        purse.fill(3, at(100));
        assert!(purse.take(2, at(0)) && !purse.take(2, at(0)) && purse.take(1, at(99)));
        assert!(!purse.take(1, at(99)));
        purse.put_back(1);
        assert!(!purse.take(1, at(100)), "they have ended");
        assert!(purse.take(1, at(99)));
        purse.fill(u64::MAX, at(100));
        assert_eq!(purse.empty(at(1)), Purse::MOST);
        assert_eq!(purse.empty(at(1)), 0);
    }
}
