//! Changes that were made again and again: which of those that were acknowledged are there in the end.

use std::collections::BTreeSet;

use keyward_check::{End, History as Writes};

use super::verdict;
use crate::drill::asked::{Asked, asked};
use crate::drill::changes::OPERATION;
use crate::drill::history::{ANSWERED, CallRecord, History, Kind, Source, UNKNOWN};
use crate::drill::verdict::Verdict;

/// Of one who makes changes: those that were acknowledged, and what is there in the end.
pub struct Changed<'a> {
    pub source: &'a Source,
    pub acknowledged: Vec<&'a CallRecord>,
    /// What its Region shows in the end.
    pub shown: Option<&'a CallRecord>,
    /// Acknowledged, and not there.
    pub lost: Vec<&'a CallRecord>,
}

/// All of them.
pub fn changed(history: &History) -> Vec<Changed<'_>> {
    let of = |number: usize| history.calls.iter().filter(move |call| call.source == number);
    let sources = history.sources.iter().enumerate();
    let changes = sources.filter(|(_, source)| source.kind == Kind::Changes);
    changes
        .map(|(number, source)| {
            let at = history.sources.iter().position(|end| {
                end.kind == Kind::End && end.key == source.key && end.region == source.region
            });
            let shown =
                at.and_then(|at| of(at).find(|call| call.operation == "GetKeyRotationStatus"));
            let shown = shown.filter(|call| call.answered());
            let acknowledged: Vec<&CallRecord> =
                of(number).filter(|call| call.answered()).collect();
            let there = shown.map_or(0, |shown| shown.value);
            let lost = acknowledged.iter().filter(|call| call.value > there).copied().collect();
            Changed { source, acknowledged, shown, lost }
        })
        .collect()
}

/// What was acknowledged is there in the end, unless a Region went on without; and Regions agree about it.
pub fn are_there(history: &History) -> Vec<Verdict> {
    let all = changed(history);
    if all.is_empty() {
        return Vec::new();
    }
    let may_lose = history.events.iter().any(|event| matches!(asked(event), Asked::GoesOn { .. }));
    let mut broken = Vec::new();
    for one in all.iter().filter(|_| !may_lose) {
        let mut writes = Writes::new(0);
        let calls = history.calls_of(|source| source == one.source);
        for call in calls.into_iter().filter(|call| call.operation == OPERATION) {
            let write = writes.begin(call.value, call.sent_us);
            writes.ended(
                write,
                match call.ended.as_str() {
                    ANSWERED => End::Acknowledged(call.ended_us()),
                    UNKNOWN => End::Unknown,
                    _ => End::Void,
                },
            );
        }
        let name = &one.source.name;
        match one.shown {
            None => broken.push(format!("{name}: what is there could not be asked")),
            Some(shown) => {
                let read = writes.may_read(&shown.value, shown.sent_us, shown.ended_us());
                broken.extend(read.err().map(|why| format!("{name}: {why} (days, microseconds)")));
            }
        }
    }
    let acknowledged: usize = all.iter().map(|one| one.acknowledged.len()).sum();
    let lost: usize = all.iter().map(|one| one.lost.len()).sum();
    let held = match may_lose {
        true => {
            format!("{lost} of {acknowledged} were lost, as may be: a Region went on without them")
        }
        false => format!("all {acknowledged} are"),
    };
    let name = "no acknowledged change is lost";
    let promised = "it is there in the end, unless a Region was promoted or recovered without it";
    vec![verdict(name, promised, &held, &broken), regions_agree(history, &all)]
}

fn regions_agree(history: &History, all: &[Changed<'_>]) -> Verdict {
    let mut broken = Vec::new();
    for one in all {
        let ends =
            history.calls_of(|source| source.kind == Kind::End && source.key == one.source.key);
        let shown = ends.into_iter().filter(|call| call.operation == "GetKeyRotationStatus");
        let shown: BTreeSet<(u64, &str)> =
            shown.map(|call| (call.value, call.ended.as_str())).collect();
        if shown.len() > 1 {
            broken.push(format!("{}: {shown:?}", one.source.key));
        }
    }
    let promised = "all Regions of a key show the same rotation period in the end";
    verdict("Regions agree in the end", promised, "they do", &broken)
}
