//! Whether what was promised held.

use std::time::Duration;

use serde::Serialize;

use super::asked::Names;
use super::definition::{Drill, PromiseSpec, Text, time};
use super::history::{CallRecord, History};
use super::invariants::{self, changed};
use super::limits::{self, Held};

/// One promise, beside what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Verdict {
    /// The promise, in its words.
    pub name: String,
    /// Of which load or Region; none of what must hold always.
    pub of: Option<String>,
    /// It must hold whatever is promised.
    pub invariant: bool,
    /// It held.
    pub held: bool,
    /// What was promised.
    pub promised: String,
    /// What was seen.
    pub seen: String,
}

impl Verdict {
    /// Something that must hold always.
    pub fn invariant(name: &str, promised: &str, held: bool, seen: String) -> Self {
        let (name, promised) = (name.to_owned(), promised.to_owned());
        Self { name, of: None, invariant: true, held, promised, seen }
    }
}

/// Looks at every promise, and at what must hold whatever is promised.
pub fn judge(drill: &Drill, history: &History, names: &Names) -> Vec<Verdict> {
    let mut verdicts = vec![every_step_done(history)];
    verdicts.extend(invariants::judge(history, names));
    verdicts.extend(drill.promise.iter().map(|promise| one(drill, promise, history)));
    verdicts
}

fn every_step_done(history: &History) -> Verdict {
    let failed = history.events.iter().filter(|event| !event.done);
    let failed: Vec<String> =
        failed.map(|event| format!("{} ({})", event.command, event.said)).collect();
    let all = history.events.len();
    let seen = match failed.is_empty() {
        true => format!("{all} of {all} did"),
        false => format!("failed: {}", failed.join("; ")),
    };
    let promised = "every step does what the drill expects of it";
    Verdict::invariant("every step is done", promised, failed.is_empty(), seen)
}

/// What a promise is about.
struct About<'a> {
    history: &'a History,
    calls: Vec<&'a CallRecord>,
    region: &'a str,
    from: Duration,
    until: Duration,
}

fn one(drill: &Drill, promise: &PromiseSpec, history: &History) -> Verdict {
    let text = |text: &Option<Text>| text.as_ref().map(|text| text.get_ref().clone());
    let from = promise.from.as_ref().map(time).unwrap_or_default();
    let until = promise.until.as_ref().map_or(drill.lasts(), time);
    let region = text(&promise.region).unwrap_or_default();
    let mut calls = match &promise.load {
        Some(load) => history.calls_by(load.get_ref()),
        None => history.calls_in(&region),
    };
    calls.retain(|call| (from..until).contains(&Duration::from_micros(call.began_us)));
    let about = About { history, calls, region: &region, from, until };
    let (held, promised, seen) = limit(promise, &about);
    Verdict {
        name: promise.name.get_ref().clone(),
        of: text(&promise.load).or(text(&promise.region)),
        invariant: false,
        held,
        promised,
        seen,
    }
}

fn limit(promise: &PromiseSpec, about: &About<'_>) -> Held {
    let calls = &about.calls[..];
    if let Some(limit) = promise.rpo_max {
        return rpo(about, limit);
    }
    if let Some(limit) = &promise.lag_max {
        return lag(about, time(limit));
    }
    let (held, promised, seen) = if let Some(limit) = promise.errors_per_million {
        limits::errors(calls, limit, promise.error.as_deref())
    } else if let Some(only) = &promise.errors_only {
        limits::errors_only(calls, only)
    } else if let Some(limit) = &promise.outage_max {
        limits::outage(calls, time(limit), about.from, about.until)
    } else if let Some(limit) = &promise.rto_max {
        limits::outage(calls, time(limit), about.from, about.until)
    } else if let Some(limit) = &promise.p99_max {
        limits::p99(calls, time(limit))
    } else if let Some(limit) = &promise.last_success_max {
        last_success(promise, about, time(limit))
    } else if let Some(least) = promise.per_second_min {
        limits::per_second(calls, least, about.until.saturating_sub(about.from))
    } else if let Some(quota) = &promise.quota {
        limits::quota(calls, quota)
    } else {
        limits::refused(calls, promise.refused_with.as_deref().unwrap_or_default())
    };
    match calls.is_empty() {
        false => (held, promised, seen),
        // Of no calls nothing is known.
        true => (false, promised, "no calls at that time".to_owned()),
    }
}

fn last_success(promise: &PromiseSpec, about: &About<'_>, limit: Duration) -> Held {
    let step = promise.after.as_ref().map(|step| step.get_ref().clone()).unwrap_or_default();
    let event = about.history.events.iter().find(|event| event.name.as_ref() == Some(&step));
    match event.filter(|event| event.done) {
        Some(event) => limits::last_success(&about.calls, event.ended_us, limit, &step),
        None => (
            false,
            format!("no call is answered after '{step}'"),
            "that step was not done".to_owned(),
        ),
    }
}

/// Recovery point: acknowledged changes of a Region that are not there.
fn rpo(about: &About<'_>, limit: u64) -> Held {
    let promised = format!("at most {limit} acknowledged changes are not there in the end");
    let of_region =
        changed(about.history).into_iter().filter(|one| one.source.region == about.region);
    let (mut acknowledged, mut lost) = (0, 0);
    for one in of_region {
        if one.shown.is_none() {
            return (false, promised, "what is there could not be asked".to_owned());
        }
        acknowledged += one.acknowledged.len();
        lost += one.lost.len();
    }
    let held = acknowledged > 0 && lost as u64 <= limit;
    (held, promised, format!("{lost} of {acknowledged} acknowledged changes are not"))
}

/// How far a Region is behind the others, at most.
fn lag(about: &About<'_>, limit: Duration) -> Held {
    let promised = format!("it is never more than {} s behind another Region", seconds(limit));
    let within = |at_us: u64| (about.from..about.until).contains(&Duration::from_micros(at_us));
    let looks = about.history.looks.iter().filter(|look| look.region == about.region);
    let looks: Vec<_> = looks.filter(|look| within(look.at_us)).collect();
    match looks.iter().max_by_key(|look| look.lag_ms) {
        None => (false, promised, "nobody told how far it is".to_owned()),
        Some(worst) => {
            let lag = Duration::from_millis(worst.lag_ms);
            let at = seconds(Duration::from_micros(worst.at_us / 1000 * 1000));
            (lag <= limit, promised, format!("{} s at most, at {at} s", seconds(lag)))
        }
    }
}

/// Seconds, with three digits behind the point at most.
pub fn seconds(time: Duration) -> String {
    let text = format!("{:.3}", time.as_secs_f64());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
