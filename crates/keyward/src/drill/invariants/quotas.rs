//! Quotas that steps set, and what was admitted under them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward_check::{End, Meter};

use super::{uses, verdict, view};
use crate::drill::asked::{Asked, Holder, Names, asked, end};
use crate::drill::history::{CallRecord, History};
use crate::drill::verdict::Verdict;

/// Whether a call was admitted: whatever came after that.
fn admitted(call: &CallRecord) -> bool {
    view(&call.ended).is_some() || call.ended == "AccessDeniedException"
}

/// Never more than a quota and its burst.
pub fn are_kept(history: &History, names: &Names) -> Option<Verdict> {
    let arn = |who: &Option<String>| {
        let name = who.clone().unwrap_or_default();
        names.principals.iter().find(|(_, known)| **known == name).map(|(arn, _)| arn.clone())
    };
    // By Region and by whose calls it counts: what was defined, and whose calls that is.
    let mut meters: BTreeMap<(String, Holder, Option<String>), Meter> = BTreeMap::new();
    let sources: BTreeSet<(&String, Option<String>)> =
        history.sources.iter().map(|source| (&source.region, arn(&source.principal))).collect();
    for event in &history.events {
        let Asked::Quota { holder, limit: Some(limit) } = asked(event) else { continue };
        let meant: BTreeSet<Option<String>> = match &holder {
            Holder::EachPrincipal => {
                let here = sources.iter().filter(|(at, _)| **at == event.region);
                here.map(|(_, who)| who.clone()).collect()
            }
            Holder::One(one) if one.starts_with("arn:") => [Some(one.clone())].into(),
            Holder::One(_) | Holder::EachAccount => [None].into(),
        };
        for who in meant {
            let place = (event.region.clone(), holder.clone(), who.clone());
            match (meters.get_mut(&place), end(event)) {
                (Some(meter), end) => {
                    meter.define(limit, Duration::from_micros(event.began_us));
                    if let End::Acknowledged(at) = end {
                        meter.defined(Duration::from_micros(at));
                    }
                }
                (None, End::Acknowledged(at)) => {
                    let name = format!("{} in {}", who.unwrap_or("all".to_owned()), event.region);
                    let mut meter = Meter::new(name, limit, Duration::from_micros(at));
                    count(history, &place, at, &arn, &mut meter);
                    meters.insert(place, meter);
                }
                (None, _) => {}
            }
        }
    }
    let all: u64 = meters.values().map(Meter::admitted).sum();
    let refused: u64 = meters.values().map(Meter::refused).sum();
    let broken: Vec<String> =
        meters.values().filter_map(|meter| meter.check(0, &[], 0).err()).collect();
    (!meters.is_empty()).then(|| {
        verdict(
            "quotas are never exceeded",
            "no window holds more calls than a quota and its burst admit",
            &format!("{all} calls were admitted, {refused} were not"),
            &broken,
        )
    })
}

/// Calls that a quota counts, from its acknowledgement on.
fn count(
    history: &History,
    (region, holder, who): &(String, Holder, Option<String>),
    from_us: u64,
    arn: &dyn Fn(&Option<String>) -> Option<String>,
    meter: &mut Meter,
) {
    // It is gone from then on.
    let gone = history.events.iter().find(|event| {
        let gone = Asked::Quota { holder: holder.clone(), limit: None };
        event.region == *region && event.began_us > from_us && asked(event) == gone
    });
    let until_us = gone.map_or(u64::MAX, |event| event.began_us);
    for (call, source) in uses(history).filter(|(_, source)| source.region == *region) {
        let by_one = matches!(holder, Holder::EachPrincipal)
            || matches!(holder, Holder::One(one) if one.starts_with("arn:"));
        let meant = !by_one || arn(&source.principal) == *who;
        if !meant || call.sent_us < from_us || call.ended_us() > until_us {
            continue;
        }
        if admitted(call) {
            let at = Duration::from_micros;
            meter.admit(at(call.sent_us), at(call.ended_us()));
        } else if call.ended == "ThrottlingException" {
            meter.note_refused();
        }
    }
}
