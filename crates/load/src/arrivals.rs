//! When calls are meant to start: rates, ramps and stages, and the single arrivals under them.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::PlanError;

/// Calls a second, at most.
const RATE_MAX: f64 = 10_000_000.0;
/// A schedule lasts at most a week.
const LASTS_MAX: Duration = Duration::from_secs(7 * 86_400);
const STAGES_MAX: usize = 1000;

/// How arrivals lie under a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// As callers who know nothing of each other make them: exponential gaps.
    Poisson,
    /// Evenly.
    Uniform,
}

/// A stretch in which the rate moves in a straight line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Calls a second at its start.
    pub from: f64,
    /// Calls a second at its end.
    pub to: f64,
    /// How long it lasts.
    pub lasts: Duration,
}

impl Stage {
    /// Arrivals in it.
    fn area(&self) -> f64 {
        f64::midpoint(self.from, self.to) * self.lasts.as_secs_f64()
    }

    /// When, in seconds from its start, so many have arrived.
    fn when(&self, arrived: f64) -> f64 {
        let slope = (self.to - self.from) / self.lasts.as_secs_f64();
        // from t + slope t^2 / 2 = arrived, in the form that stays exact when the slope is near zero.
        let root = (self.from * self.from + 2.0 * slope * arrived).max(0.0).sqrt();
        let seconds = 2.0 * arrived / (self.from + root);
        if seconds.is_finite() { seconds.min(self.lasts.as_secs_f64()) } else { 0.0 }
    }
}

/// Stages, one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule(Vec<Stage>);

impl Schedule {
    /// One rate for the whole time.
    #[must_use]
    pub fn steady(rate: f64, lasts: Duration) -> Self {
        Self(vec![Stage { from: rate, to: rate, lasts }])
    }

    /// Reads stages, separated by commas: `2000` is a rate in calls a second, `1000..5000` a ramp, and either may say how
    /// long it lasts, as in `2000:30s` or `1000..5000:2m`. Those that do not share what is left of `whole`.
    ///
    /// # Errors
    /// A text that is no schedule, with what one looks like.
    pub fn parse(text: &str, whole: Duration) -> Result<Self, PlanError> {
        let wrong = |part: &str| {
            PlanError::new(format!(
                "'{part}' is no rate: calls a second, as in 2000, 1000..5000 for a ramp, and 2000:30s where it lasts a time of its own"
            ))
        };
        let mut stages = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (rates, lasts) = match part.split_once(':') {
                Some((rates, lasts)) => (rates, Some(duration(lasts)?)),
                None => (part, None),
            };
            let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
            let rate = |text: &str| -> Result<f64, PlanError> {
                let number = text.strip_suffix("/s").unwrap_or(text);
                let rate: f64 = number.trim().parse().map_err(|_| wrong(part))?;
                if rate.is_finite() && (0.0..=RATE_MAX).contains(&rate) {
                    return Ok(rate);
                }
                Err(PlanError::new(format!(
                    "a rate of {number} a second is impossible: at least 0, at most {RATE_MAX}"
                )))
            };
            stages.push((rate(from)?, rate(to)?, lasts));
        }
        if stages.len() > STAGES_MAX {
            return Err(PlanError::new(format!("at most {STAGES_MAX} stages")));
        }
        let given: Duration = stages.iter().filter_map(|stage| stage.2).sum();
        let open = stages.iter().filter(|stage| stage.2.is_none()).count();
        let share = whole.saturating_sub(given) / u32::try_from(open.max(1)).unwrap_or(u32::MAX);
        if open > 0 && share.is_zero() {
            return Err(PlanError::new(format!(
                "the stages with a time of their own take {given:?} of {whole:?}: no time is left for the others"
            )));
        }
        let stages: Vec<Stage> = stages
            .into_iter()
            .map(|(from, to, lasts)| Stage { from, to, lasts: lasts.unwrap_or(share) })
            .collect();
        let schedule = Self(stages);
        if schedule.lasts() > LASTS_MAX {
            return Err(PlanError::new("a schedule lasts at most a week"));
        }
        if schedule.offers() < 1.0 {
            return Err(PlanError::new(
                "the schedule offers no call at all: raise the rate or the time",
            ));
        }
        Ok(schedule)
    }

    /// How long it lasts.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.0.iter().map(|stage| stage.lasts).sum()
    }

    /// Calls that it offers in all, on average.
    #[must_use]
    pub fn offers(&self) -> f64 {
        self.0.iter().map(Stage::area).sum()
    }

    /// The same rates behind a lead of the first one, in which nothing counts yet.
    #[must_use]
    pub fn after(&self, lead: Duration) -> Self {
        let mut stages = Vec::with_capacity(self.0.len() + 1);
        if let Some(first) = self.0.first().filter(|_| !lead.is_zero()) {
            stages.push(Stage { from: first.from, to: first.from, lasts: lead });
        }
        stages.extend(&self.0);
        Self(stages)
    }

    /// When calls are meant to start, from the schedule's start on. The same seed gives the same times.
    #[must_use]
    pub fn arrivals(&self, spacing: Spacing, seed: u64) -> Arrivals {
        Arrivals {
            stages: self.0.clone(),
            at: 0,
            began: Duration::ZERO,
            passed: 0.0,
            arrived: 0.0,
            spacing,
            dice: ChaCha8Rng::seed_from_u64(seed),
        }
    }
}

/// A time as people write it: `500ms`, `30s`, `5m`, `2h`.
///
/// # Errors
/// A text that is none.
pub fn duration(text: &str) -> Result<Duration, PlanError> {
    let text = text.trim();
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let unit = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let seconds = unit.and_then(|(number, unit)| Some(number.trim().parse::<f64>().ok()? * unit));
    match seconds.filter(|seconds| (0.0..=1e9).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs_f64(seconds)),
        None => Err(PlanError::new(format!(
            "'{text}' is no time: a number and a unit, as in 500ms, 30s, 5m, 2h"
        ))),
    }
}

/// The times of [`Schedule::arrivals`].
#[derive(Debug)]
pub struct Arrivals {
    stages: Vec<Stage>,
    at: usize,
    /// When the stage began.
    began: Duration,
    /// Arrivals in the stages before.
    passed: f64,
    /// Arrivals so far; between two of them lies 1, or 1 on average.
    arrived: f64,
    spacing: Spacing,
    dice: ChaCha8Rng,
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.arrived += match self.spacing {
            Spacing::Uniform => 1.0,
            // 1 - x lies in (0, 1], so the logarithm is finite.
            Spacing::Poisson => -(1.0 - self.dice.random::<f64>()).ln(),
        };
        loop {
            let stage = self.stages.get(self.at)?;
            let within = self.arrived - self.passed;
            if within <= stage.area() {
                return Some(self.began + Duration::from_secs_f64(stage.when(within)));
            }
            self.passed += stage.area();
            self.began += stage.lasts;
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn count(schedule: &Schedule, spacing: Spacing, from: f64, to: f64) -> usize {
        let times = schedule.arrivals(spacing, 7).map(|at| at.as_secs_f64());
        times.filter(|at| (from..to).contains(at)).count()
    }

    #[test]
    fn a_rate_is_offered_evenly_or_as_callers_who_know_nothing_of_each_other() {
        let steady = Schedule::parse("1000", TEN).unwrap();
        for second in 0..9 {
            let (from, to) = (f64::from(second) + 0.0005, f64::from(second) + 1.0005);
            assert_eq!(count(&steady, Spacing::Uniform, from, to), 1000);
            // Five standard deviations of 1000.
            let some = count(&steady, Spacing::Poisson, from, to);
            assert!((842..1158).contains(&some), "{some}");
        }
        assert_eq!(steady.arrivals(Spacing::Uniform, 1).count(), 10_000);
        let gaps = |spacing| {
            let times: Vec<f64> = steady.arrivals(spacing, 3).map(|at| at.as_secs_f64()).collect();
            let mean = times.last().unwrap() / times.len() as f64;
            let squares = times.windows(2).map(|pair| (pair[1] - pair[0] - mean).powi(2));
            (squares.sum::<f64>() / times.len() as f64).sqrt() / mean
        };
        assert!(gaps(Spacing::Uniform) < 0.01);
        // An exponential distribution's deviation is its mean.
        assert!((gaps(Spacing::Poisson) - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_ramp_rises_in_a_straight_line_and_stages_follow_each_other() {
        let ramp = Schedule::parse("0..1000", TEN).unwrap();
        assert_eq!(ramp.offers(), 5000.0);
        let (first, last) =
            (count(&ramp, Spacing::Uniform, 0.0, 5.0), count(&ramp, Spacing::Uniform, 5.0, 10.1));
        assert!((1249..=1251).contains(&first) && (3749..=3751).contains(&last), "{first} {last}");
        let down = Schedule::parse("1000..0", TEN).unwrap();
        let first = count(&down, Spacing::Uniform, 0.0, 5.0);
        assert!((3749..=3751).contains(&first), "{first}");
        let stages = Schedule::parse("100:2s, 100..300:4s, 500", TEN).unwrap();
        assert_eq!(stages.lasts(), TEN);
        assert_eq!(stages.offers(), 200.0 + 800.0 + 2000.0);
        assert_eq!(count(&stages, Spacing::Uniform, 6.001, 10.1), 2000);
        let led = stages.after(Duration::from_secs(3));
        assert_eq!(led.lasts(), Duration::from_secs(13));
        assert_eq!(count(&led, Spacing::Uniform, 0.0, 3.001), 300);
        let pause = Schedule::parse("100:1s,0:8s,100:1s", TEN).unwrap();
        assert_eq!(count(&pause, Spacing::Uniform, 1.001, 9.0), 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        let steady = Schedule::steady(1000.0, TEN);
        let times = |seed| steady.arrivals(Spacing::Poisson, seed).take(100).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }

    #[test]
    fn what_is_no_schedule_is_told_what_one_looks_like() {
        let says = |text: &str| Schedule::parse(text, TEN).unwrap_err().to_string();
        assert!(says("fast").contains("'fast' is no rate"));
        assert!(says("-5").contains("impossible: at least 0"));
        assert!(says("inf").contains("impossible"));
        assert!(says("1e9").contains("at most 10000000"));
        assert!(says("100:3parsecs").contains("'3parsecs' is no time"));
        assert!(says("100:10s,200").contains("no time is left"));
        assert!(says("0").contains("no call at all"));
        assert!(says("100:10000h").contains("at most a week"));
        assert!(says("").contains("is no rate"));
    }

    proptest! {
        #[test]
        fn times_never_go_back_and_stay_within(
            stages in prop::collection::vec((0.0..3000.0f64, 0.0..3000.0f64, 1u64..4000), 1..5),
            poisson in any::<bool>(),
        ) {
            let stages = stages.into_iter();
            let stages = stages.map(|(from, to, ms)| Stage { from, to, lasts: Duration::from_millis(ms) });
            let schedule = Schedule(stages.collect());
            let spacing = if poisson { Spacing::Poisson } else { Spacing::Uniform };
            let mut before = Duration::ZERO;
            let mut all = 0.0;
            for at in schedule.arrivals(spacing, 1) {
                prop_assert!(at + Duration::from_micros(1) >= before, "{:?} after {:?}", at, before);
                prop_assert!(at <= schedule.lasts() + Duration::from_micros(1));
                before = at;
                all += 1.0;
            }
            if spacing == Spacing::Uniform {
                prop_assert!((all - schedule.offers()).abs() <= 1.0, "{} of {}", all, schedule.offers());
            }
        }
    }
}
