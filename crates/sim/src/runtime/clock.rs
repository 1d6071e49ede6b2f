//! A node's clock: its own rate and offset.

use std::time::Duration;

const MILLION: i64 = 1_000_000;
/// Timers look this far ahead, then look again: the product with a million must fit.
const LOOK_AHEAD_NS: i64 = 3_600_000_000_000;

/// Names a clock of a world. The first is the harness's own and runs right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockId(pub usize);

/// A clock. All arithmetic is in whole nanoseconds, so that it is the same everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// By how many millionths it runs fast.
    rate_ppm: i64,
    /// What it shows beyond the time that it has run since the world began.
    offset_ns: i64,
    /// Time spent suspended, which the monotonic clock does not count.
    suspended_ns: i64,
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn unsigned(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

impl Clock {
    /// A clock that runs `rate_ppm` millionths fast and shows `offset` when the world begins.
    #[must_use]
    pub fn new(rate_ppm: i64, offset: Duration) -> Self {
        let offset_ns = i64::try_from(offset.as_nanos()).unwrap_or(i64::MAX);
        Self { rate_ppm, offset_ns, suspended_ns: 0 }
    }

    /// By how many millionths it runs fast.
    #[must_use]
    pub const fn rate_ppm(&self) -> i64 {
        self.rate_ppm
    }

    fn ran(&self, world_ns: u64) -> i64 {
        // A day is 8.6e13 ns; times 50,000 it fits.
        let world_ns = signed(world_ns);
        world_ns + world_ns * self.rate_ppm / MILLION
    }

    /// Since boot, counting suspended time.
    #[must_use]
    pub fn boot_ns(&self, world_ns: u64) -> u64 {
        unsigned(self.ran(world_ns) + self.offset_ns)
    }

    /// Since boot, not counting suspended time.
    #[must_use]
    pub fn monotonic_ns(&self, world_ns: u64) -> u64 {
        unsigned(self.ran(world_ns) + self.offset_ns - self.suspended_ns)
    }

    /// When, in the world's time and after `world_ns`, the monotonic clock shows at least `deadline_ns`;
    /// or an hour from now, if that is sooner.
    #[must_use]
    pub fn world_time_of(&self, deadline_ns: u64, world_ns: u64) -> u64 {
        let left = signed(deadline_ns.saturating_sub(self.monotonic_ns(world_ns)));
        let scaled = left.min(LOOK_AHEAD_NS) * MILLION / (MILLION + self.rate_ppm);
        // Two nanoseconds more make up for what the divisions lost.
        world_ns + unsigned(scaled) + 2
    }

    /// The machine slept for this long.
    pub(super) fn suspended(&mut self, world_ns: u64) {
        self.suspended_ns += self.ran(world_ns);
    }

    /// The machine boots anew: its clock shows `uptime`.
    pub(super) fn reboot(&mut self, world_ns: u64, uptime: Duration) {
        self.suspended_ns = 0;
        self.offset_ns = i64::try_from(uptime.as_nanos()).unwrap_or(0) - self.ran(world_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_reaches_its_deadlines_early_and_never_before() {
        let clock = Clock::new(50_000, Duration::from_secs(100));
        let now = 7_654_321_987;
        let deadline = clock.monotonic_ns(now) + 1_050_000_000;
        let at = clock.world_time_of(deadline, now);
        assert!(clock.monotonic_ns(at) >= deadline);
        assert!(at - now < 1_000_010_000);
    }

    #[test]
    fn the_monotonic_clock_stands_still_in_suspend() {
        let mut clock = Clock::new(0, Duration::from_secs(100));
        clock.suspended(3_000_000_000);
        let now = 10_000_000_000;
        assert_eq!(clock.boot_ns(now) - clock.monotonic_ns(now), 3_000_000_000);
    }
}
