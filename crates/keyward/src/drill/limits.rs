//! Limits of promises, over the calls that they are about.

use std::collections::BTreeMap;
use std::time::Duration;

use keyward_check::Meter;
use keyward_quota::{Limit, Window};

use super::definition::QuotaSpec;
use super::history::CallRecord;
use super::verdict::seconds;

/// Whether it held, what was promised, and what was seen.
pub type Held = (bool, String, String);

/// How many calls ended with what.
pub fn kinds<'a>(calls: &[&'a CallRecord]) -> BTreeMap<&'a str, u64> {
    let mut kinds = BTreeMap::new();
    for call in calls.iter().filter(|call| !call.answered()) {
        *kinds.entry(call.ended.as_str()).or_default() += 1;
    }
    kinds
}

fn told(kinds: &BTreeMap<&str, u64>) -> String {
    let told: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    told.join(", ")
}

/// So many of a million calls may fail, or only those of one error.
pub fn errors(calls: &[&CallRecord], limit: u64, only: Option<&str>) -> Held {
    let mut kinds = kinds(calls);
    kinds.retain(|kind, _| only.is_none_or(|only| only == *kind));
    let (bad, all): (u64, u64) = (kinds.values().sum(), calls.len() as u64);
    let seen = match (bad, only) {
        (0, None) => format!("all {all} calls were answered"),
        (0, Some(only)) => format!("none of {all} calls ended with {only}"),
        _ => format!("{bad} of {all} were not answered: {}", told(&kinds)),
    };
    let promised = match only {
        None => format!("at most {limit} of a million calls fail or are refused"),
        Some(only) => format!("at most {limit} of a million calls end with {only}"),
    };
    (bad * 1_000_000 <= limit * all, promised, seen)
}

/// Calls that are not answered end with one of these.
pub fn errors_only(calls: &[&CallRecord], only: &[String]) -> Held {
    let all = kinds(calls);
    let mut others = all.clone();
    others.retain(|kind, _| only.iter().all(|known| known != kind));
    let promised = match only {
        [] => "every call is answered".to_owned(),
        some => format!("calls fail or are refused with {} alone", some.join(" or ")),
    };
    let seen = match (others.is_empty(), all.is_empty()) {
        (true, true) => format!("all {} calls were answered", calls.len()),
        (true, false) => format!("{}, of {} calls", told(&all), calls.len()),
        (false, _) => format!("others too: {}", told(&others)),
    };
    (others.is_empty(), promised, seen)
}

/// Never longer without an answered call.
pub fn outage(calls: &[&CallRecord], limit: Duration, from: Duration, until: Duration) -> Held {
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

/// 99 of 100 answered calls take no longer.
pub fn p99(calls: &[&CallRecord], limit: Duration) -> Held {
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

/// Every call is refused with that.
pub fn refused(calls: &[&CallRecord], with: &str) -> Held {
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

/// The last call that was answered began no later after a step. `after_us`: when the step had ended.
pub fn last_success(calls: &[&CallRecord], after_us: u64, limit: Duration, step: &str) -> Held {
    let promised = format!(
        "no call that begins later than {} s after '{step}' has returned is answered",
        seconds(limit)
    );
    let last = calls.iter().filter(|call| call.answered()).map(|call| call.sent_us).max();
    match last {
        None => (true, promised, format!("none of {} calls was answered", calls.len())),
        Some(last) if last <= after_us => {
            let before = seconds(Duration::from_micros(after_us - last));
            (true, promised, format!("the last one that was began {before} s before that"))
        }
        Some(last) => {
            let late = Duration::from_micros(last - after_us);
            (
                late <= limit,
                promised,
                format!("the last one that was began {} s after that", seconds(late)),
            )
        }
    }
}

/// So many calls are answered a second.
pub fn per_second(calls: &[&CallRecord], least: f64, lasted: Duration) -> Held {
    let answered = calls.iter().filter(|call| call.answered()).count();
    let rate = answered as f64 / lasted.as_secs_f64().max(0.001);
    let promised = format!("at least {least} calls are answered a second");
    (rate >= least, promised, format!("{rate:.1} a second, of {} offered", calls.len()))
}

/// No window holds more admitted calls than rate and burst allow.
pub fn quota(calls: &[&CallRecord], quota: &QuotaSpec) -> Held {
    let limit = Limit { window: Window::Second, limit: quota.rate, burst: quota.burst };
    let mut meter = Meter::new("this load", limit, Duration::ZERO);
    let at = Duration::from_micros;
    for call in calls.iter().filter(|call| call.answered()) {
        meter.admit(at(call.sent_us), at(call.ended_us()));
    }
    let promised = format!("no window holds more than {limit} and {} at once", quota.burst);
    match meter.check(0, &[], 0) {
        Ok(()) => {
            (true, promised, format!("{} of {} were admitted", meter.admitted(), calls.len()))
        }
        Err(why) => (false, promised, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(began_ms: u64, ended: &str) -> CallRecord {
        CallRecord {
            source: 0,
            operation: "Encrypt".into(),
            began_us: began_ms * 1000,
            sent_us: began_ms * 1000,
            took_us: 10_000,
            subject: 0,
            value: 0,
            ended: ended.to_owned(),
        }
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
        assert!(errors(&calls, 250_000, None).0 && !errors(&calls, 249_999, None).0);
        assert!(errors(&calls, 0, Some("no answer")).0);
        assert!(!errors(&calls, 0, Some("DisabledException")).0);
        assert!(errors_only(&calls, &["DisabledException".to_owned()]).0);
        assert!(!errors_only(&calls, &["no answer".to_owned()]).0);
        assert!(refused(&calls[1..2], "DisabledException").0);
        let (held, _, seen) = refused(&calls, "DisabledException");
        assert!(!held && seen.contains("began after 0.003 s"), "{seen}");
        let ms = Duration::from_millis;
        assert!(p99(&calls, ms(10)).0 && !p99(&calls, ms(9)).0);
        assert!(!p99(&calls[1..2], END).0);
        assert!(
            last_success(&calls, 3000, ms(0), "x").0 && last_success(&calls, 2000, ms(1), "x").0
        );
        assert!(!last_success(&calls, 2000, ms(0), "x").0);
        assert!(per_second(&calls, 1.5, END).0 && !per_second(&calls, 1.6, END).0);
        assert!(quota(&calls, &QuotaSpec { rate: 1, burst: 3 }).0);
        assert!(!quota(&calls, &QuotaSpec { rate: 1, burst: 2 }).0);
    }
}
