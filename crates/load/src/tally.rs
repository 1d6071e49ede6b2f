//! What came of calls: counted and timed, by the second and in all.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use keyward_client::CallError;
use parking_lot::Mutex;

use crate::mix::Operation;

/// Latencies are kept in microseconds, with three significant digits, up to two minutes.
const HIGHEST_US: u64 = 120_000_000;
/// Kinds of refusals and failures that are told apart.
const KINDS_MAX: usize = 100;

/// Times of calls, in microseconds.
pub type Times = Histogram<u64>;

/// An empty one.
#[must_use]
pub fn times() -> Times {
    Histogram::new_with_bounds(1, HIGHEST_US, 3).expect("the bounds are sound")
}

/// Adds one.
pub fn note(times: &mut Times, took: Duration) {
    times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// How calls ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered.
    pub answered: u64,
    /// Refused for a quota: by its name and whose it is.
    pub throttled: BTreeMap<(String, String), u64>,
    /// Refused for something else: by AWS's error name.
    pub refused: BTreeMap<String, u64>,
    /// Without an answer: by what happened.
    pub failed: BTreeMap<String, u64>,
}

impl Counts {
    /// Refused for any quota.
    #[must_use]
    pub fn all_throttled(&self) -> u64 {
        self.throttled.values().sum()
    }

    /// Refused for anything else.
    #[must_use]
    pub fn all_refused(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Without an answer.
    #[must_use]
    pub fn all_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// However they ended.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.answered + self.all_throttled() + self.all_refused() + self.all_failed()
    }

    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        for (kind, count) in &other.throttled {
            *self.throttled.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &other.refused {
            *self.refused.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &other.failed {
            *self.failed.entry(kind.clone()).or_default() += count;
        }
    }

    fn note(&mut self, ended: &Result<(), CallError>) {
        let error = match ended {
            Ok(()) => {
                self.answered += 1;
                return;
            }
            Err(error) => error,
        };
        match (&error.throttle, &error.code) {
            (Some(throttle), _) => {
                count(&mut self.throttled, (throttle.quota.clone(), throttle.scope.clone()));
            }
            (None, Some(code)) => count(&mut self.refused, code.clone()),
            (None, None) => count(&mut self.failed, failure(&error.message)),
        }
    }
}

fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, kind: K) {
    if counts.len() < KINDS_MAX || counts.contains_key(&kind) {
        *counts.entry(kind).or_default() += 1;
    } else if let Some(mut last) = counts.last_entry() {
        *last.get_mut() += 1;
    }
}

/// What happened to a call without an answer, in a few words.
fn failure(message: &str) -> String {
    let signs = [
        ("no answer in time", "no answer in time"),
        ("Timeout expired", "no answer in time"),
        ("connect error", "no connection"),
        ("Connection refused", "no connection"),
        ("the stream", "the stream broke"),
        ("the node has ended", "the stream ended"),
        ("closed", "the connection was lost"),
        ("reset", "the connection was lost"),
        ("roken pipe", "the connection was lost"),
        ("h2 protocol error", "the connection was lost"),
    ];
    match signs.iter().find(|(sign, _)| message.contains(sign)) {
        Some((_, what)) => (*what).to_owned(),
        // Without the endpoint, which would tell each node's apart.
        None => {
            message.split_once(": ").map_or(message, |(_, what)| what).chars().take(120).collect()
        }
    }
}

/// Calls of one operation.
#[derive(Clone, Debug)]
pub struct ByOperation {
    /// How they ended.
    pub counts: Counts,
    /// Times of those answered.
    pub answered: Times,
    /// Times of those refused for a quota.
    pub throttled: Times,
}

impl Default for ByOperation {
    fn default() -> Self {
        Self { counts: Counts::default(), answered: times(), throttled: times() }
    }
}

impl ByOperation {
    fn note(&mut self, took: Duration, ended: &Result<(), CallError>) {
        self.counts.note(ended);
        match ended {
            Ok(()) => note(&mut self.answered, took),
            Err(error) if error.throttle.is_some() => note(&mut self.throttled, took),
            Err(_) => {}
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.answered.add(&other.answered).expect("the same bounds");
        self.throttled.add(&other.throttled).expect("the same bounds");
    }
}

/// Calls by operation; those that there were.
pub type Tally = BTreeMap<Operation, ByOperation>;

/// Adds a tally to another.
pub fn add(to: &mut Tally, from: &Tally) {
    for (operation, calls) in from {
        to.entry(*operation).or_default().add(calls);
    }
}

/// Where tasks note what came of their calls: several, so that they do not wait for each other.
pub struct Shards {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    tally: Tally,
    late: Option<Times>,
}

impl Shards {
    pub fn new(count: usize) -> Self {
        Self { shards: (0..count.max(1)).map(|_| Mutex::default()).collect() }
    }

    /// Notes a call: how late it began, how long it took from when it was meant to begin, and how it ended.
    pub fn note(
        &self,
        shard: usize,
        operation: Operation,
        late: Duration,
        took: Duration,
        ended: &Result<(), CallError>,
    ) {
        let mut shard = self.shards[shard % self.shards.len()].lock();
        note(shard.late.get_or_insert_with(times), late);
        shard.tally.entry(operation).or_default().note(took, ended);
    }

    /// What was noted since the last time: calls, and how late they began.
    pub fn take(&self) -> (Tally, Times) {
        let (mut all, mut late) = (Tally::new(), times());
        for shard in &self.shards {
            let taken = std::mem::take(&mut *shard.lock());
            add(&mut all, &taken.tally);
            if let Some(one) = taken.late {
                late.add(one).expect("the same bounds");
            }
        }
        (all, late)
    }
}

/// What happened in a second or so.
#[derive(Clone, Debug)]
pub struct Second {
    /// When it began, from the first counted call on.
    pub at: Duration,
    /// How long it was.
    pub lasted: Duration,
    /// Calls that were begun.
    pub offered: u64,
    /// Calls under way at its end.
    pub in_flight: usize,
    /// How those that ended did.
    pub counts: Counts,
    /// Times of those answered.
    pub answered: Times,
}

impl Second {
    /// Sums a tally up.
    #[must_use]
    pub fn of(
        at: Duration,
        lasted: Duration,
        offered: u64,
        in_flight: usize,
        tally: &Tally,
    ) -> Self {
        let mut second =
            Self { at, lasted, offered, in_flight, counts: Counts::default(), answered: times() };
        second.add(tally);
        second
    }

    /// Adds calls that ended later.
    pub fn add(&mut self, tally: &Tally) {
        for calls in tally.values() {
            self.counts.add(&calls.counts);
            self.answered.add(&calls.answered).expect("the same bounds");
        }
    }

    /// A number of them, each second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn rate(&self, count: u64) -> f64 {
        count as f64 / self.lasted.as_secs_f64().max(1e-3)
    }
}

#[cfg(test)]
mod tests {
    use keyward_proto::v1;

    use super::*;

    fn error(code: Option<&str>, message: &str, quota: Option<&str>) -> CallError {
        CallError {
            code: code.map(str::to_owned),
            message: message.to_owned(),
            retryable: false,
            outcome_unknown: false,
            throttle: quota.map(|quota| v1::Throttle {
                quota: quota.to_owned(),
                scope: "account 1".to_owned(),
                ..v1::Throttle::default()
            }),
        }
    }

    #[test]
    fn each_end_is_counted_by_its_reason() {
        let shards = Shards::new(3);
        let ms = Duration::from_millis;
        let ends = [
            Ok(()),
            Ok(()),
            Err(error(Some("ThrottlingException"), "slow down", Some("q"))),
            Err(error(Some("DisabledException"), "", None)),
            Err(error(None, "127.0.0.1:1: no answer in time", None)),
            Err(error(None, "127.0.0.1:1: something new", None)),
        ];
        for (at, end) in ends.iter().enumerate() {
            shards.note(at, Operation::Encrypt, ms(1), ms(10 * (at as u64 + 1)), end);
        }
        let (tally, late) = shards.take();
        let calls = &tally[&Operation::Encrypt];
        assert_eq!(calls.counts.all(), 6);
        assert_eq!((calls.counts.answered, calls.counts.all_throttled()), (2, 1));
        assert_eq!(calls.counts.refused, BTreeMap::from([("DisabledException".to_owned(), 1)]));
        let failed: Vec<_> = calls.counts.failed.keys().map(String::as_str).collect();
        assert_eq!(failed, ["no answer in time", "something new"]);
        assert!((9_900..=20_100).contains(&calls.answered.max()));
        assert_eq!((calls.answered.len(), calls.throttled.len(), late.len()), (2, 1, 6));
        assert_eq!(shards.take().0.len(), 0, "what was taken is not taken again");
        let second = Second::of(Duration::ZERO, ms(500), 6, 0, &tally);
        assert_eq!(second.rate(second.counts.answered), 4.0);
    }

    #[test]
    fn kinds_that_are_told_apart_are_bounded() {
        let mut counts = Counts::default();
        for number in 0..1000 {
            counts.note(&Err(error(None, &format!("node: mishap {number}"), None)));
        }
        assert_eq!((counts.failed.len(), counts.all_failed()), (KINDS_MAX, 1000));
    }
}
