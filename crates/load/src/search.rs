//! Looks for the highest rate at which calls end well within a goal.

use std::time::Duration;

use serde::Serialize;

use crate::PlanError;
use crate::arrivals::duration;

/// Bad ends among a thousand calls, at most.
const BAD_PER_MILLE: f64 = 1.0;
/// Of what was meant to begin, at least so much has to be answered.
const ANSWERED_MIN: f64 = 0.98;
/// The search ends when the rate that failed is so close to the one that held.
const CLOSE: f64 = 1.05;
const RATE_MIN: f64 = 1.0;
const PROBES_MAX: usize = 40;
const RISE: f64 = 2.0;

/// A latency that a part of the calls has to stay within: `p99<5ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The part: 0.99 for p99.
    pub quantile: f64,
    /// The latency.
    pub within: Duration,
}

impl Goal {
    /// Reads `p99<5ms`.
    ///
    /// # Errors
    /// A text that is no goal, and what one looks like.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let wrong = || {
            PlanError::new(format!(
                "'{text}' is no goal: a percentile and a latency, as in p99<5ms or p99.9<20ms"
            ))
        };
        let (percentile, within) = text.split_once('<').ok_or_else(wrong)?;
        let percentile = percentile.trim().strip_prefix(['p', 'P']).ok_or_else(wrong)?;
        let percentile: f64 = percentile.parse().map_err(|_| wrong())?;
        if !(1.0..100.0).contains(&percentile) {
            return Err(wrong());
        }
        let within = duration(within.trim_start_matches('='))?;
        if within.is_zero() {
            return Err(PlanError::new(
                "no call ends within no time: raise the latency of the goal",
            ));
        }
        Ok(Self { quantile: percentile / 100.0, within })
    }
}

/// One rate that was tried.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    /// Calls a second that were meant to begin.
    pub rate: f64,
    /// Calls a second that were answered.
    pub goodput: f64,
    /// The goal's percentile, in milliseconds; absent when nothing was answered.
    pub latency_ms: Option<f64>,
    /// Of a thousand calls, those that were refused, failed or could not be begun.
    pub bad_per_mille: f64,
    /// The client was what could not go on.
    pub client_is_limit: bool,
    /// It held.
    pub held: bool,
}

impl Probe {
    /// Decides whether it held.
    pub fn judge(&mut self, goal: &Goal) {
        let in_time = self.latency_ms.is_some_and(|ms| ms <= goal.within.as_secs_f64() * 1000.0);
        self.held = in_time
            && self.bad_per_mille <= BAD_PER_MILLE
            && self.goodput >= ANSWERED_MIN * self.rate
            && !self.client_is_limit;
    }
}

/// What was tried, and what comes next: rates double until one fails, and are halved in between from there on. A rate has
/// to fail twice.
#[derive(Debug)]
pub struct Search {
    held: Option<f64>,
    failed: Option<f64>,
    next: f64,
    failed_once: bool,
    /// All of them, in order.
    pub probes: Vec<Probe>,
}

impl Search {
    /// Begins at a rate.
    #[must_use]
    pub fn from(rate: f64) -> Self {
        let next = rate.max(RATE_MIN);
        Self { held: None, failed: None, next, failed_once: false, probes: Vec::new() }
    }

    /// The rate to try; none when it is done.
    #[must_use]
    pub fn next_rate(&self) -> Option<f64> {
        let close = |held: f64, failed: f64| failed / held <= CLOSE;
        let done = match (self.held, self.failed) {
            (Some(held), Some(failed)) => close(held, failed),
            (None, Some(failed)) => failed <= RATE_MIN,
            _ => false,
        };
        (!done && self.probes.len() < PROBES_MAX).then_some(self.next)
    }

    /// Takes what came of [`Self::next_rate`].
    pub fn tell(&mut self, probe: Probe) {
        let (rate, held) = (self.next, probe.held);
        self.probes.push(probe);
        if !held && !self.failed_once {
            self.failed_once = true;
            return;
        }
        self.failed_once = false;
        if held {
            self.held = Some(rate);
        } else {
            self.failed = Some(rate);
        }
        self.next = match (self.held, self.failed) {
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (Some(held), None) => held * RISE,
            (None, Some(failed)) => (failed / RISE).max(RATE_MIN),
            (None, None) => rate,
        };
    }

    /// The highest rate that held.
    #[must_use]
    pub fn best(&self) -> Option<&Probe> {
        let held = self.probes.iter().filter(|probe| probe.held);
        held.max_by(|one, other| one.rate.total_cmp(&other.rate))
    }

    /// What kept the search from going higher was the client.
    #[must_use]
    pub fn client_is_limit(&self) -> bool {
        let failed = self.probes.iter().filter(|probe| !probe.held);
        let lowest = failed.min_by(|one, other| one.rate.total_cmp(&other.rate));
        lowest.is_some_and(|probe| probe.client_is_limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(rate: f64, held: bool) -> Probe {
        Probe {
            rate,
            goodput: rate,
            latency_ms: Some(1.0),
            bad_per_mille: 0.0,
            client_is_limit: false,
            held,
        }
    }

    fn finds(limit: f64, start: f64) -> Search {
        let mut search = Search::from(start);
        while let Some(rate) = search.next_rate() {
            search.tell(probe(rate, rate <= limit));
        }
        search
    }

    #[test]
    fn it_finds_the_limit_from_below_and_from_above() {
        for (limit, start) in [(7300.0, 1000.0), (7300.0, 50_000.0), (1000.0, 1000.0), (3.0, 100.0)]
        {
            let search = finds(limit, start);
            let best = search.best().unwrap().rate;
            assert!(best <= limit && best * CLOSE >= limit, "{best} of {limit}");
            assert!(search.probes.len() < 30);
        }
        assert!(finds(0.0, 1000.0).best().is_none(), "nothing holds, and it ends");
    }

    #[test]
    fn one_bad_moment_is_not_the_limit() {
        let mut search = Search::from(1000.0);
        search.tell(probe(1000.0, false));
        assert_eq!(search.next_rate(), Some(1000.0));
        search.tell(probe(1000.0, true));
        assert_eq!(search.next_rate(), Some(2000.0));
    }

    #[test]
    fn a_probe_holds_only_if_calls_end_well_and_in_time() {
        let goal = Goal::parse("p99<5ms").unwrap();
        assert_eq!(goal, Goal { quantile: 0.99, within: Duration::from_millis(5) });
        let held = |change: fn(&mut Probe)| {
            let mut probe = probe(1000.0, false);
            change(&mut probe);
            probe.judge(&goal);
            probe.held
        };
        assert!(held(|_| {}));
        assert!(!held(|p| p.latency_ms = Some(5.1)));
        assert!(!held(|p| p.latency_ms = None));
        assert!(!held(|p| p.bad_per_mille = 2.0));
        assert!(!held(|p| p.goodput = 900.0));
        assert!(!held(|p| p.client_is_limit = true));
        for wrong in ["5ms", "p99", "p0<1ms", "p100<1ms", "p99<soon", "99<5ms", "p99<0s"] {
            assert!(Goal::parse(wrong).is_err(), "{wrong}");
        }
    }
}
