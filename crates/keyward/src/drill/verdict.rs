//! Whether what was promised held.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::definition::{Drill, PromiseSpec, time};
use super::history::{CallRecord, History};

/// One promise, beside what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Verdict {
    /// The promise, in its words.
    pub name: String,
    /// Of which load; none of what must hold always.
    pub load: Option<String>,
    /// It held.
    pub held: bool,
    /// What was promised.
    pub promised: String,
    /// What was seen.
    pub seen: String,
}

/// Looks at every promise, and at what must hold whatever is promised.
pub fn judge(drill: &Drill, history: &History) -> Vec<Verdict> {
    let lasts = drill.lasts();
    let mut verdicts = vec![no_wrong_answer(history), every_step_done(history)];
    for promise in &drill.promise {
        let load = drill.load.iter().position(|l| l.name.get_ref() == promise.load.get_ref());
        let from = promise.from.as_ref().map(time).unwrap_or_default();
        let until = promise.until.as_ref().map_or(lasts, time);
        let within = |call: &&CallRecord| {
            let began = Duration::from_micros(call.began_us);
            Some(call.load) == load && began >= from && began < until
        };
        let calls: Vec<&CallRecord> = history.calls.iter().filter(within).collect();
        verdicts.push(one(promise, &calls, from, until));
    }
    verdicts
}

fn no_wrong_answer(history: &History) -> Verdict {
    let wrong = history.calls.iter().filter(|call| call.ended == WRONG).count();
    Verdict {
        name: "no answer is wrong".to_owned(),
        load: None,
        held: wrong == 0,
        promised: "every ciphertext opens to what went in".to_owned(),
        seen: format!("{wrong} wrong answers of {}", history.calls.len()),
    }
}

fn every_step_done(history: &History) -> Verdict {
    let failed: Vec<&str> = history
        .events
        .iter()
        .filter(|event| !event.done)
        .map(|event| event.command.as_str())
        .collect();
    Verdict {
        name: "every step is done".to_owned(),
        load: None,
        held: failed.is_empty(),
        promised: "every command of the drill succeeds".to_owned(),
        seen: match failed.is_empty() {
            true => format!("{} of {} succeeded", history.events.len(), history.events.len()),
            false => format!("failed: {}", failed.join("; ")),
        },
    }
}

/// How a call ends whose answer is not true.
pub const WRONG: &str = "wrong answer";

fn one(promise: &PromiseSpec, calls: &[&CallRecord], from: Duration, until: Duration) -> Verdict {
    let (held, promised, seen) = if let Some(limit) = promise.errors_per_million {
        errors(calls, limit)
    } else if let Some(limit) = &promise.outage_max {
        outage(calls, time(limit), from, until)
    } else if let Some(limit) = &promise.p99_max {
        p99(calls, time(limit))
    } else {
        refused(calls, promise.refused_with.as_deref().unwrap_or_default())
    };
    Verdict {
        name: promise.name.get_ref().clone(),
        load: Some(promise.load.get_ref().clone()),
        // Of no calls nothing is known.
        held: held && !calls.is_empty(),
        promised,
        seen: if calls.is_empty() { "no calls at that time".to_owned() } else { seen },
    }
}

fn errors(calls: &[&CallRecord], limit: u64) -> (bool, String, String) {
    let mut kinds = BTreeMap::<&str, u64>::new();
    for call in calls.iter().filter(|call| !call.answered()) {
        *kinds.entry(&call.ended).or_default() += 1;
    }
    let bad: u64 = kinds.values().sum();
    let all = calls.len() as u64;
    let told: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let seen = match bad {
        0 => format!("all {all} calls were answered"),
        _ => format!("{bad} of {all} were not answered: {}", told.join(", ")),
    };
    let promised = format!("at most {limit} of a million calls fail or are refused");
    (bad * 1_000_000 <= limit * all, promised, seen)
}

fn outage(
    calls: &[&CallRecord],
    limit: Duration,
    from: Duration,
    until: Duration,
) -> (bool, String, String) {
    let (longest, began) = longest_outage(calls, from, until);
    let promised = format!("never longer than {} s without an answered call", seconds(limit));
    let seen = match longest.is_zero() {
        true => "no outage".to_owned(),
        false => format!("{} s, from {} s on", seconds(longest), seconds(began)),
    };
    (longest <= limit, promised, seen)
}

/// The longest time in which calls began and none of them was answered, and when it began: from the first that was not
/// answered to the end of the next one that was.
pub fn longest_outage(
    calls: &[&CallRecord],
    from: Duration,
    until: Duration,
) -> (Duration, Duration) {
    let (mut longest, mut since) = ((Duration::ZERO, from), None);
    for call in calls {
        let began = Duration::from_micros(call.began_us);
        if call.answered() {
            if let Some(since) = since.take() {
                let back = began + Duration::from_micros(call.took_us);
                longest = longest.max((back - since, since));
            }
        } else {
            since.get_or_insert(began);
        }
    }
    if let Some(since) = since {
        longest = longest.max((until.saturating_sub(since), since));
    }
    longest
}

fn p99(calls: &[&CallRecord], limit: Duration) -> (bool, String, String) {
    let mut times: Vec<u64> =
        calls.iter().filter(|call| call.answered()).map(|call| call.took_us).collect();
    times.sort_unstable();
    let promised = format!("99 of 100 answered calls take at most {} s", seconds(limit));
    match times.get((times.len() * 99).div_ceil(100).saturating_sub(1)) {
        None => (false, promised, "no call was answered".to_owned()),
        Some(took) => {
            let took = Duration::from_micros(*took);
            (took <= limit, promised, format!("{} s, of {} calls", seconds(took), times.len()))
        }
    }
}

fn refused(calls: &[&CallRecord], with: &str) -> (bool, String, String) {
    let others = calls.iter().filter(|call| call.ended != with).count();
    let last = calls.iter().rfind(|call| call.answered());
    let promised = format!("every call is refused with {with}");
    let seen = match (others, last) {
        (0, _) => format!("all {} calls were", calls.len()),
        (others, None) => format!("{others} of {} ended otherwise, none was answered", calls.len()),
        (others, Some(last)) => format!(
            "{others} of {} ended otherwise; the last answered one began after {} s",
            calls.len(),
            seconds(Duration::from_micros(last.began_us))
        ),
    };
    (others == 0, promised, seen)
}

/// Seconds, with three digits behind the point at most.
pub fn seconds(time: Duration) -> String {
    let text = format!("{:.3}", time.as_secs_f64());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(began_ms: u64, ended: &str) -> CallRecord {
        CallRecord { load: 0, began_us: began_ms * 1000, took_us: 10_000, ended: ended.to_owned() }
    }

    const END: Duration = Duration::from_secs(2);

    #[test]
    fn an_outage_lasts_from_the_first_failure_to_the_next_answer() {
        let calls = [
            call(0, "answered"),
            call(100, "no answer"),
            call(900, "answered"),
            call(950, "no answer"),
        ];
        let calls: Vec<&CallRecord> = calls.iter().collect();
        let (longest, began) = longest_outage(&calls, Duration::ZERO, END);
        // The last one does not come back before the end.
        assert_eq!((longest.as_millis(), began.as_millis()), (1050, 950));
        let (longest, began) = longest_outage(&calls[..3], Duration::ZERO, END);
        assert_eq!((longest.as_millis(), began.as_millis()), (810, 100));
        assert!(longest_outage(&calls[..1], Duration::ZERO, END).0.is_zero());
    }

    #[test]
    fn limits_hold_or_do_not() {
        let calls = [
            call(0, "answered"),
            call(1, "DisabledException"),
            call(2, "answered"),
            call(3, "answered"),
        ];
        let calls: Vec<&CallRecord> = calls.iter().collect();
        assert!(errors(&calls, 250_000).0 && !errors(&calls, 249_999).0);
        assert!(refused(&calls[1..2], "DisabledException").0);
        let (held, _, seen) = refused(&calls, "DisabledException");
        assert!(!held && seen.contains("began after 0.003 s"), "{seen}");
        assert!(
            p99(&calls, Duration::from_millis(10)).0 && !p99(&calls, Duration::from_millis(9)).0
        );
        assert!(!p99(&calls[1..2], END).0);
    }
}
