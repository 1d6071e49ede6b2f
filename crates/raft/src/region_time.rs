//! Region time: what the Region takes the time to be. One wrong clock must not move it.
//!
//! * A stamp is bounded by the **median** of the voters' wall clocks. Their readings ride in lease renewals;
//!   where two are in the middle, the earlier one counts.
//! * Within a term Region time runs **no faster than the clock that counts suspended time**
//!   (`CLOCK_BOOTTIME`), whatever wall clocks do meanwhile.
//! * A new leader **anchors** it anew at the median, as soon as it has readings of a majority: a week
//!   without power is caught up then. Until then stamps repeat the latest one.
//! * What cannot be undone asks [`RegionTime::majority_past`]: a majority of voters must have shown, on
//!   their own clocks, that the date has passed.
//!
//! Times here are without the offset by which a Region for development is moved ahead; the caller adds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use keyward_env::sabotage::{Bug, on};
use keyward_model::NodeId;
use parking_lot::Mutex;

use crate::types::LeaderId;

/// A clock further off than this is wrong: its node does not lead for long and is not let in, in
/// milliseconds.
pub const CLOCK_OFF_MAX_MS: i64 = 10_000;
/// A reading older than this says nothing any more.
const READING_LIFE: Duration = Duration::from_secs(10);
/// Not known yet.
const UNKNOWN: i64 = i64::MIN;

/// A voter's wall clock, as it told it.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall_ms: i64,
    /// When it came, on our boot clock.
    at: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    term: Option<LeaderId>,
    readings: BTreeMap<NodeId, Reading>,
    /// The latest time told in this term; none before it is anchored.
    last: Option<i64>,
}

/// What a leader needs to look at the clocks: itself, the voters, its own clocks.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) leader: LeaderId,
    pub(crate) me: NodeId,
    /// The voters; two sets while a change of members is under way.
    pub(crate) voters: Vec<BTreeSet<NodeId>>,
    pub(crate) wall_ms: i64,
    pub(crate) now: Duration,
}

/// Region time on one node.
#[derive(Debug)]
pub(crate) struct RegionTime {
    /// Region time less boot time, in milliseconds.
    ahead_ms: AtomicI64,
    inner: Mutex<Inner>,
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Default for RegionTime {
    fn default() -> Self {
        Self { ahead_ms: AtomicI64::new(UNKNOWN), inner: Mutex::default() }
    }
}

impl Inner {
    fn begin_term(&mut self, leader: LeaderId) {
        if self.term != Some(leader) {
            *self = Self { term: Some(leader), ..Self::default() };
        }
    }

    /// The voter's clock now, as far as it was told lately.
    fn clock(&self, look: &Look, voter: NodeId) -> Option<i64> {
        if voter == look.me {
            return Some(look.wall_ms);
        }
        let reading = self.readings.get(&voter)?;
        let age = look.now.saturating_sub(reading.at);
        (age <= READING_LIFE).then(|| reading.wall_ms.saturating_add(millis(age)))
    }

    /// The earlier median of each voter set, if a majority of it has told; the earliest of them.
    fn median(&self, look: &Look) -> Option<i64> {
        let of_set = |voters: &BTreeSet<NodeId>| {
            let mut clocks: Vec<i64> =
                voters.iter().filter_map(|voter| self.clock(look, *voter)).collect();
            clocks.sort_unstable();
            let last = clocks.len().saturating_sub(1);
            let taken = if on(Bug::LatestClock) { last } else { last / 2 };
            (clocks.len() > voters.len() / 2).then(|| clocks[taken])
        };
        look.voters.iter().map(of_set).collect::<Option<Vec<_>>>()?.into_iter().min()
    }
}

impl RegionTime {
    /// Region time, if this node has heard of it since its start.
    pub(crate) fn now(&self, boot: Duration) -> Option<i64> {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        (ahead != UNKNOWN).then(|| millis(boot).saturating_add(ahead))
    }

    /// True once this node has heard of it since its start, or has led with a majority's readings.
    pub(crate) fn is_known(&self) -> bool {
        self.ahead_ms.load(Ordering::Relaxed) != UNKNOWN
    }

    /// A leader told it, in answer to what was asked at `asked`.
    pub(crate) fn learn(&self, region_ms: i64, asked: Duration) {
        self.ahead_ms.store(region_ms - millis(asked), Ordering::Relaxed);
    }

    /// A node told its wall clock to the leader that this node is.
    pub(crate) fn note(&self, leader: LeaderId, node: NodeId, wall_ms: i64, now: Duration) {
        let mut inner = self.inner.lock();
        inner.begin_term(leader);
        inner.readings.insert(node, Reading { wall_ms, at: now });
    }

    /// The leader's look at all clocks. `floor` is the latest time in the log. Returns Region time, once
    /// it is anchored in this term.
    pub(crate) fn look(&self, look: &Look, floor: i64) -> Option<i64> {
        let mut inner = self.inner.lock();
        inner.begin_term(look.leader);
        let median = inner.median(look);
        let time = match (inner.last, median) {
            (None, None) => return None,
            (None, Some(median)) => median.max(floor),
            // It runs with the boot clock, and waits where that is ahead of the median.
            (Some(last), median) => {
                let run = self.now(look.now).unwrap_or(last);
                run.min(median.unwrap_or(run)).max(last)
            }
        };
        inner.last = Some(time);
        self.ahead_ms.store(time - millis(look.now), Ordering::Relaxed);
        Some(time)
    }

    /// True if a majority of each voter set has shown, on its own clock, that `date` has passed. Readings
    /// count as they were told: nobody's clock is run on for it.
    pub(crate) fn majority_past(&self, look: &Look, date: i64) -> bool {
        let inner = self.inner.lock();
        if inner.term != Some(look.leader) {
            return false;
        }
        let past = |voter: &NodeId| {
            if *voter == look.me {
                return look.wall_ms >= date;
            }
            inner.readings.get(voter).is_some_and(|reading| {
                look.now.saturating_sub(reading.at) <= READING_LIFE && reading.wall_ms >= date
            })
        };
        look.voters
            .iter()
            .all(|voters| voters.iter().filter(|voter| past(voter)).count() > voters.len() / 2)
    }

    /// The median of the voters' clocks, if a majority has told.
    pub(crate) fn median(&self, look: &Look) -> Option<i64> {
        self.inner.lock().median(look)
    }

    /// How far each node's clock is off the median, in milliseconds; empty without a majority.
    pub(crate) fn offsets(&self, look: &Look) -> BTreeMap<NodeId, i64> {
        let inner = self.inner.lock();
        let Some(median) = inner.median(look) else { return BTreeMap::new() };
        let told = inner.readings.keys().copied().chain([look.me]);
        told.filter_map(|node| Some((node, inner.clock(look, node)? - median))).collect()
    }

    /// The voter to hand leadership to, if this leader's clock is wrong and the voter's is right.
    pub(crate) fn better_clock(&self, look: &Look) -> Option<NodeId> {
        let offsets = self.offsets(look);
        let right =
            |node: &NodeId| offsets.get(node).is_some_and(|off| off.abs() <= CLOCK_OFF_MAX_MS);
        if offsets.is_empty() || right(&look.me) {
            return None;
        }
        look.voters.first()?.iter().copied().find(|voter| right(voter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const YEAR: i64 = 8766 * HOUR;

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node_id: 1 }
    }

    fn look(term: u64, wall_ms: i64, now_ms: u64) -> Look {
        Look {
            leader: leader(term),
            me: 1,
            voters: vec![BTreeSet::from([1, 2, 3])],
            wall_ms,
            now: Duration::from_millis(now_ms),
        }
    }

    fn tell(time: &RegionTime, term: u64, node: NodeId, wall_ms: i64, now_ms: u64) {
        time.note(leader(term), node, wall_ms, Duration::from_millis(now_ms));
    }

    #[test]
    fn nothing_is_anchored_without_a_majority() {
        let time = RegionTime::default();
        assert_eq!(time.look(&look(1, 1000, 0), 0), None);
        assert!(!time.is_known(), "its own clock is nobody's word");
        tell(&time, 1, 2, 1010, 0);
        assert_eq!(time.look(&look(1, 1000, 0), 0), Some(1000));
        assert!(time.is_known());
    }

    #[test]
    fn one_wrong_clock_moves_nothing_whoever_has_it() {
        for (own, second, third) in
            [(YEAR, 0, 0), (0, YEAR, 0), (-YEAR, 0, 0), (0, 0, -YEAR), (YEAR, 0, 0)]
        {
            let time = RegionTime::default();
            let base = 2 * YEAR;
            tell(&time, 1, 2, base + second, 0);
            tell(&time, 1, 3, base + third, 0);
            assert_eq!(time.look(&look(1, base + own, 0), 0), Some(base));
            let mut late = look(1, base + own, 0);
            late.wall_ms = base + own;
            assert!(!time.majority_past(&late, base + HOUR), "{own} {second} {third}");
            assert!(time.majority_past(&late, base));
        }
    }

    #[test]
    fn it_never_outruns_the_boot_clock_and_never_goes_back() {
        let time = RegionTime::default();
        tell(&time, 1, 2, 0, 0);
        tell(&time, 1, 3, 0, 0);
        assert_eq!(time.look(&look(1, 0, 0), 0), Some(0));
        // All wall clocks jump a year ahead within a second: Region time goes on by that second.
        tell(&time, 1, 2, YEAR, 1000);
        tell(&time, 1, 3, YEAR, 1000);
        assert_eq!(time.look(&look(1, YEAR, 1000), 0), Some(1000));
        // And an hour back: it stands still.
        tell(&time, 1, 2, -HOUR, 2000);
        tell(&time, 1, 3, -HOUR, 2000);
        assert_eq!(time.look(&look(1, -HOUR, 2000), 0), Some(1000));
        assert_eq!(time.look(&look(1, -HOUR + 5000, 7000), 0), Some(1000));
    }

    #[test]
    fn suspend_and_a_new_term_catch_up() {
        let time = RegionTime::default();
        tell(&time, 1, 2, 0, 0);
        assert_eq!(time.look(&look(1, 0, 0), 0), Some(0));
        // Suspended for an hour: the boot clock counts it, and so did the others'.
        let hour = u64::try_from(HOUR).unwrap();
        tell(&time, 1, 2, HOUR, hour);
        assert_eq!(time.look(&look(1, HOUR, hour), 0), Some(HOUR));
        // Off for a year: the boot clock does not know; the next term does.
        assert_eq!(time.look(&look(2, YEAR, hour), HOUR), None);
        tell(&time, 2, 2, YEAR, hour);
        assert_eq!(time.look(&look(2, YEAR, hour), HOUR), Some(YEAR));
        // A floor that is ahead of the median stands.
        tell(&time, 3, 2, HOUR, hour);
        assert_eq!(time.look(&look(3, HOUR, hour), YEAR), Some(YEAR));
    }

    #[test]
    fn old_readings_count_for_nothing() {
        let time = RegionTime::default();
        tell(&time, 1, 2, 0, 0);
        assert_eq!(time.look(&look(1, 0, 0), 0), Some(0));
        assert!(time.majority_past(&look(1, 0, 9_000), 0));
        assert!(!time.majority_past(&look(1, 0, 11_000), 0));
    }

    #[test]
    fn a_leader_with_a_wrong_clock_names_a_better_one() {
        let time = RegionTime::default();
        tell(&time, 1, 2, 0, 0);
        tell(&time, 1, 3, 5, 0);
        assert_eq!(time.better_clock(&look(1, 20, 0)), None);
        assert_eq!(time.better_clock(&look(1, YEAR, 0)), Some(2));
        assert_eq!(time.better_clock(&look(1, -YEAR, 0)), Some(2));
        assert_eq!(time.offsets(&look(1, YEAR, 0)).get(&1), Some(&(YEAR - 5)));
    }
}
