//! A quota's calls: **admitted never exceeds quota plus burst**, in any window.
//!
//! What is counted are calls that were answered with anything but a refusal by quota, by a lease, or by a deadline. A call
//! that began at `b` and ended at `e` was admitted at some time between: it counts in every window that holds both.
//!
//! Bounds, as documented:
//! * A limit a second: `burst + rate * time`. Shares refill at 0.99 of their rate, which covers clocks 1 % fast. Clocks
//!   that run faster admit as much more, so with a clock that is `r` fast the rate is `0.99 * (1 + r)` of the quota's.
//! * A limit a minute: once in each calendar minute. A leader's death may have one second's worth handed out twice: use is
//!   put on record once a second, which takes a moment (`LOST_WITH_A_LEADER`). What was handed out in that time has been
//!   spent, or is still in the nodes' purses.

use std::time::Duration;

use keyward_model::Throttle;
use keyward_quota::{Limit, Window};

/// One call, in the units that windows are weighed in: 10^-15 calls, so that rates in millionths of calls a second and
/// times in nanoseconds multiply without rounding.
const CALL: i128 = 1_000_000_000_000_000;
/// Of a rate, in millionths, that shares are refilled at.
const REFILL_PPM: i64 = 990_000;
const MILLION: i64 = 1_000_000;
/// What was handed out of a long window so shortly before a leader was lost may be handed out again: use is put on record
/// once a second, at the next of its looks (0.2 s), by a command that takes up to a second with a slow disk and network.
const LOST_WITH_A_LEADER: Duration = Duration::from_millis(2500);
/// A refusal by a limit a second never asks for more patience than this: one call of the smallest rate, at 0.99 of it,
/// after the last of the tokens that are out has ended (0.5 s).
const RETRY_MAX_MS: u64 = 1_600;

/// A definition of a quota.
#[derive(Clone, Copy, Debug)]
struct Defined {
    limit: Limit,
    /// When the first try to set it began.
    began: Duration,
    /// When it was acknowledged.
    acknowledged: Option<Duration>,
}

/// The calls of one principal with one quota.
#[derive(Clone, Debug)]
pub struct Meter {
    /// What it is, for a failure's text.
    pub name: String,
    definitions: Vec<Defined>,
    /// When each admitted call began and ended.
    admitted: Vec<(Duration, Duration)>,
    /// How many were refused.
    refused: u64,
}

/// A change of leaders.
#[derive(Clone, Copy, Debug)]
pub struct LeaderChange {
    /// When.
    pub at: Duration,
    /// Prepaid tokens of long windows that nodes had then.
    pub prepaid: u64,
}

impl Meter {
    /// A principal whose quota was set with nothing broken.
    #[must_use]
    pub fn new(name: impl Into<String>, limit: Limit, now: Duration) -> Self {
        let defined = Defined { limit, began: now, acknowledged: Some(now) };
        Self { name: name.into(), definitions: vec![defined], admitted: Vec::new(), refused: 0 }
    }

    /// The limit that was asked for last.
    ///
    /// # Panics
    /// Never: there is one from the beginning.
    #[must_use]
    pub fn limit(&self) -> Limit {
        self.definitions[self.definitions.len() - 1].limit
    }

    /// Whether that limit was ever asked for.
    #[must_use]
    pub fn was_asked_for(&self, limit: &Limit) -> bool {
        self.definitions.iter().any(|defined| defined.limit == *limit)
    }

    /// True once its last change was acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.definitions[self.definitions.len() - 1].acknowledged.is_some()
    }

    /// Calls admitted so far.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.admitted.len() as u64
    }

    /// Calls refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The quota is about to be changed.
    pub fn define(&mut self, limit: Limit, now: Duration) {
        self.definitions.push(Defined { limit, began: now, acknowledged: None });
    }

    /// The last change was acknowledged.
    pub fn defined(&mut self, now: Duration) {
        if let Some(last) = self.definitions.last_mut() {
            last.acknowledged = Some(now);
        }
    }

    /// A call went through.
    pub fn admit(&mut self, began: Duration, ended: Duration) {
        self.admitted.push((began, ended));
    }

    /// Limits that may be in force at some time between, in the order in which they were set.
    fn in_force(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Defined> {
        let last = self
            .definitions
            .iter()
            .rposition(|defined| defined.acknowledged.is_some_and(|at| at < from))
            .unwrap_or(0);
        self.definitions[last..].iter().filter(move |defined| defined.began <= to)
    }

    /// A call was refused, and how is not known.
    pub fn note_refused(&mut self) {
        self.refused += 1;
    }

    /// A call was refused: with a limit that was in force, and a time that makes sense.
    ///
    /// # Errors
    /// What is wrong with the refusal.
    pub fn refuse(
        &mut self,
        began: Duration,
        ended: Duration,
        throttle: Option<&Throttle>,
    ) -> Result<(), String> {
        self.refused += 1;
        let throttle = throttle.ok_or("it names no quota")?;
        let fits = |defined: &Defined| {
            defined.limit.limit == throttle.limit
                && defined.limit.window.seconds() == throttle.window_seconds
        };
        if !self.in_force(began, ended).any(fits) {
            return Err(format!("no such limit was in force: {throttle:?}"));
        }
        let most_ms = match throttle.window_seconds {
            1 => RETRY_MAX_MS,
            seconds => seconds * 1000,
        };
        if !(1..=most_ms).contains(&throttle.retry_after_ms) {
            return Err(format!("a retry time of {} ms", throttle.retry_after_ms));
        }
        Ok(())
    }

    /// Whether more was admitted than each definition allows while it was in force, or than the largest allows at all.
    /// `fast_ppm`: by how much the fastest clock is fast; `changes`: of the leader; `jumps`: how often Region time was set ahead.
    ///
    /// # Errors
    /// Where too much was admitted.
    pub fn check(&self, fast_ppm: i64, changes: &[LeaderChange], jumps: u64) -> Result<(), String> {
        if self.limit().window != Window::Second {
            return self.check_minute(changes, jumps);
        }
        let largest = |part: fn(&Limit) -> u64| {
            self.definitions.iter().map(|defined| part(&defined.limit)).max().unwrap_or(0)
        };
        let (rate, burst) = (largest(|limit| limit.limit), largest(|limit| limit.burst));
        let limit = Limit { window: Window::Second, limit: rate, burst };
        within(&self.admitted, &limit, fast_ppm).map_err(|why| format!("{}: {why}", self.name))?;
        for (number, defined) in self.definitions.iter().enumerate() {
            let Some(from) = defined.acknowledged else { continue };
            let to = self.definitions.get(number + 1).map_or(Duration::MAX, |next| next.began);
            let inside = |call: &&(Duration, Duration)| call.0 > from && call.1 < to;
            let calls: Vec<_> = self.admitted.iter().filter(inside).copied().collect();
            within(&calls, &defined.limit, fast_ppm).map_err(|why| {
                format!(
                    "{}, after {} was acknowledged at {from:?}: {why}",
                    self.name, defined.limit
                )
            })?;
        }
        Ok(())
    }

    /// The world begins with a full minute, and clocks are right to 2 s: calls from 3 s to 57 s fall into one window, unless
    /// Region time is set ahead.
    fn check_minute(&self, changes: &[LeaderChange], jumps: u64) -> Result<(), String> {
        let (from, to) = (Duration::from_secs(3), Duration::from_secs(57));
        let inside = |call: &&(Duration, Duration)| call.0 >= from && call.1 <= to;
        let admitted = self.admitted.iter().filter(inside).count() as u64;
        let shortly_before = |change: &LeaderChange| {
            let since = change.at.saturating_sub(LOST_WITH_A_LEADER);
            let spent = |call: &&(Duration, Duration)| call.1 >= since && call.0 <= change.at;
            self.admitted.iter().filter(spent).count() as u64
        };
        let twice: u64 = changes.iter().map(|change| shortly_before(change) + change.prepaid).sum();
        let limit = self.limit();
        let minutes = 1 + jumps;
        if admitted > limit.limit * minutes + twice {
            return Err(format!(
                "{}: {admitted} calls of {limit} in {minutes} minutes, and {twice} at most may have been handed out twice",
                self.name
            ));
        }
        Ok(())
    }
}

/// No window holds more calls than rate and burst allow.
fn within(calls: &[(Duration, Duration)], limit: &Limit, fast_ppm: i64) -> Result<(), String> {
    let ns = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    // Rounded up, by one in a million.
    let ppm = MILLION.max(REFILL_PPM * (MILLION + fast_ppm) / MILLION + 1);
    let a_ns = i128::from(limit.limit) * i128::from(ppm);
    let mut by_end: Vec<usize> = (0..calls.len()).collect();
    by_end.sort_by_key(|call| calls[*call].1);
    let mut place = vec![0; calls.len()];
    by_end.iter().enumerate().for_each(|(at, call)| place[*call] = at);
    let mut windows = Windows::new(calls.len());
    let mut by_begin: Vec<usize> = (0..calls.len()).collect();
    by_begin.sort_by_key(|call| std::cmp::Reverse(calls[*call].0));
    for (number, call) in by_begin.iter().enumerate() {
        windows.put(place[*call], a_ns * ns(calls[*call].1));
        let from = calls[*call].0;
        // Calls that begin at once are in the same windows.
        if by_begin.get(number + 1).is_some_and(|next| calls[*next].0 == from) {
            continue;
        }
        let most = CALL * i128::from(limit.burst) - a_ns * ns(from);
        if let Some(worst) = windows.worst()
            && worst > most
        {
            let over = (worst - most + CALL - 1) / CALL;
            return Err(format!(
                "{over} more than {limit} (burst {}) in a window that begins at {from:?}",
                limit.burst
            ));
        }
    }
    Ok(())
}

/// Windows that begin at one time and end with one of the calls, in the order of their ends. A tree of which each node
/// has how many calls end within it, and the most that calls, less what time admits until then, come to.
struct Windows {
    leaves: usize,
    nodes: Vec<(i128, Option<i128>)>,
}

impl Windows {
    fn new(calls: usize) -> Self {
        let leaves = calls.next_power_of_two();
        Self { leaves, nodes: vec![(0, None); 2 * leaves] }
    }

    /// One more call, at its place in the order of ends. `admitted`: what the rate admits until its end.
    fn put(&mut self, place: usize, admitted: i128) {
        let mut at = self.leaves + place;
        self.nodes[at] = (CALL, Some(CALL - admitted));
        while at > 1 {
            at /= 2;
            let (earlier, later) = (self.nodes[2 * at], self.nodes[2 * at + 1]);
            let worst = earlier.1.max(later.1.map(|worst| worst + earlier.0));
            self.nodes[at] = (earlier.0 + later.0, worst);
        }
    }

    fn worst(&self) -> Option<i128> {
        self.nodes[1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(5000 + ms)
    }

    fn limit(rate: u64, burst: u64) -> Limit {
        Limit { window: Window::Second, limit: rate, burst }
    }

    fn change(ms: u64) -> LeaderChange {
        LeaderChange { at: at(ms), prepaid: 3 }
    }

    fn meter(limit: Limit, calls: impl IntoIterator<Item = u64>) -> Meter {
        let mut meter = Meter::new("a meter", limit, at(0));
        calls.into_iter().for_each(|ms| meter.admit(at(ms), at(ms)));
        meter
    }

    #[test]
    fn burst_and_rate_are_allowed_and_one_call_more_is_not() {
        // Ten at once, then one every 100 ms.
        let calls = || std::iter::repeat_n(1, 10).chain((1..50).map(|n| 1 + n * 100));
        assert!(meter(limit(10, 10), calls()).check(0, &[], 0).is_ok());
        let why = meter(limit(10, 10), calls().chain([2500])).check(0, &[], 0).unwrap_err();
        assert!(why.contains("1 more than 10 calls a second"), "{why}");
        assert!(meter(limit(10, 9), calls()).check(0, &[], 0).is_err());
        // A quiet second in between saves nothing up.
        let calls = (0..20).map(|n| 1 + n * 100).chain(std::iter::repeat_n(9_000, 11));
        assert!(meter(limit(10, 10), calls).check(0, &[], 0).is_err());
    }

    #[test]
    fn a_fast_clock_admits_as_much_more() {
        let calls = || (1..1000).map(|n| n * 98);
        assert!(meter(limit(10, 10), calls()).check(0, &[], 0).is_err());
        assert!(meter(limit(10, 10), calls()).check(10_000, &[], 0).is_err());
        assert!(meter(limit(10, 10), calls()).check(50_000, &[], 0).is_ok());
    }

    #[test]
    fn a_call_counts_in_windows_that_hold_all_of_it() {
        let mut meter = meter(limit(10, 10), std::iter::repeat_n(3000, 10));
        // It may have been admitted two seconds before.
        meter.admit(at(1), at(3000));
        assert!(meter.check(0, &[], 0).is_ok());
        meter.admit(at(2999), at(3001));
        assert!(meter.check(0, &[], 0).is_err());
    }

    #[test]
    fn a_cut_counts_for_calls_that_begin_after_it_was_acknowledged() {
        let mut before = meter(limit(100, 100), std::iter::repeat_n(1, 100));
        before.define(limit(50, 50), at(2000));
        before.defined(at(2100));
        let mut after = before.clone();
        (0..60).for_each(|_| before.admit(at(2050), at(2060)));
        assert!(before.check(0, &[], 0).is_ok(), "in flight");
        (0..60).for_each(|_| after.admit(at(2101), at(2110)));
        let why = after.check(0, &[], 0).unwrap_err();
        assert!(why.contains("10 more than 50 calls"), "{why}");
    }

    #[test]
    fn a_minute_is_used_once_but_for_what_a_leader_took_with_it() {
        let minute = Limit { window: Window::Minute, limit: 40, burst: 0 };
        let calls = |count| (0..count).map(|n| 100 * n);
        assert!(meter(minute, calls(40)).check(0, &[], 0).is_ok());
        assert!(meter(minute, calls(41)).check(0, &[], 0).is_err());
        assert!(meter(minute, calls(60)).check(0, &[change(3000)], 0).is_ok());
        assert!(meter(minute, calls(80)).check(0, &[change(3000)], 0).is_err());
    }

    #[test]
    fn a_refusal_names_a_limit_in_force_and_a_time_that_makes_sense() {
        let throttle = |limit, retry_after_ms| Throttle {
            quota: "q".into(),
            scope: "s".into(),
            limit,
            window_seconds: 1,
            retry_after_ms,
        };
        let mut meter = meter(limit(100, 100), []);
        meter.define(limit(50, 50), at(10));
        let refuse = |meter: &mut Meter, ms, throttle: &Throttle| {
            meter.refuse(at(ms), at(ms + 1), Some(throttle))
        };
        assert!(refuse(&mut meter, 5, &throttle(50, 20)).is_err(), "not asked for yet");
        assert!(refuse(&mut meter, 15, &throttle(50, 20)).is_ok());
        assert!(refuse(&mut meter, 15, &throttle(100, 20)).is_ok());
        meter.defined(at(20));
        assert!(refuse(&mut meter, 21, &throttle(50, 20)).is_ok());
        assert!(refuse(&mut meter, 21, &throttle(100, 20)).is_err(), "the cut was acknowledged");
        assert!(refuse(&mut meter, 21, &throttle(50, 0)).is_err());
        assert!(refuse(&mut meter, 21, &throttle(50, 60_000)).is_err());
        assert!(meter.refuse(at(21), at(22), None).is_err());
    }
}
