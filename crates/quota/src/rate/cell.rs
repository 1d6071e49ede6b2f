//! A share as a node counts it down: one atomic number.
//!
//! Atomics come from `crate::atomic`, so that `tests/loom.rs` can take this file and run it with every order of reads
//! and writes that the memory model allows.

use std::time::Duration;

use crate::atomic::{AtomicU64, Ordering};
use crate::rate::{Share, Taken};

/// A nanosecond is this many ticks: rates that don't divide a second evenly lose next to nothing.
const TICKS_PER_NS: u64 = 256;
const TICKS_PER_SECOND: u64 = 1_000_000_000 * TICKS_PER_NS;
/// The cell takes no more calls: its part has changed.
const CLOSED: u64 = u64::MAX;

/// One share, counted down without a lock.
#[derive(Debug)]
pub struct RateCell {
    share: Share,
    /// Times are counted from here.
    origin: Duration,
    /// Ticks until one token is back.
    interval: u64,
    /// Ticks until all are.
    reach: u64,
    /// When the bucket is full again.
    full_at: AtomicU64,
}

impl RateCell {
    /// A cell that holds that many thousandths of a token at `now`.
    #[must_use]
    pub fn new(share: Share, milli_tokens: u64, now: Duration) -> Self {
        // 1 % less, which covers a clock that runs 1 % fast.
        let interval =
            if share.is_none() { 0 } else { (TICKS_PER_SECOND * 100).div_ceil(share.rate * 99) };
        let reach = interval.saturating_mul(share.burst);
        let cell = Self { share, origin: now, interval, reach, full_at: AtomicU64::new(0) };
        let missing = (share.burst * 1000).saturating_sub(milli_tokens);
        let missing = u128::from(missing) * u128::from(interval) / 1000;
        cell.full_at.store(u64::try_from(missing).unwrap_or(CLOSED - 1), Ordering::Relaxed);
        cell
    }

    /// The share that it counts down.
    #[must_use]
    pub fn share(&self) -> Share {
        self.share
    }

    fn ticks(&self, now: Duration) -> u64 {
        let since = now.saturating_sub(self.origin).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(TICKS_PER_NS)
    }

    /// Takes `cost` tokens, if they are there.
    pub fn take(&self, cost: u64, now: Duration) -> Taken {
        let ticks = self.ticks(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            if full_at == CLOSED {
                return Taken::Closed;
            }
            if self.share.is_none() {
                return Taken::Dry(Duration::MAX);
            }
            let after = full_at.max(ticks) + self.interval * cost;
            let limit = ticks.saturating_add(self.reach);
            if after > limit {
                return Taken::Dry(Duration::from_nanos((after - limit).div_ceil(TICKS_PER_NS)));
            }
            match self.full_at.compare_exchange_weak(
                full_at,
                after,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Taken::Yes,
                Err(now) => full_at = now,
            }
        }
    }

    /// Gives back what was taken a moment ago, for a call that another quota refused.
    pub fn put_back(&self, cost: u64) {
        let back = self.interval * cost;
        // A cell that was closed since counted those tokens as taken: so they stay.
        let _ = self.full_at.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |full_at| {
            (full_at != CLOSED).then(|| full_at.saturating_sub(back))
        });
    }

    /// Thousandths of tokens that are there.
    #[must_use]
    pub fn milli_tokens(&self, now: Duration) -> u64 {
        self.left(self.full_at.load(Ordering::Relaxed), now)
    }

    fn left(&self, full_at: u64, now: Duration) -> u64 {
        if full_at == CLOSED || self.share.is_none() {
            return 0;
        }
        let owed = full_at.saturating_sub(self.ticks(now));
        let left = u128::from(self.reach.saturating_sub(owed)) * 1000 / u128::from(self.interval);
        u64::try_from(left).unwrap_or(0)
    }

    /// Takes no more calls from here on. Returns the thousandths of tokens that were left.
    pub fn close(&self, now: Duration) -> u64 {
        self.left(self.full_at.swap(CLOSED, Ordering::AcqRel), now)
    }
}
