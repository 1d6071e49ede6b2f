//! What clients asked for and were told, checked by the rules that the simulation has (`keyward_check`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyward_check::{End, History, Step, WriteId};
use keyward_client::CallError;
use keyward_env::{Env, RealEnv};
use keyward_sim::book::KeyView;

use super::Fault;

/// A key, as clients know it.
pub struct Key {
    pub id: String,
    pub state: History<KeyView>,
    pub description: History<String>,
    /// Ciphertexts that callers were given, and what they must open to.
    pub samples: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What happened, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused_changes: u64,
    pub violations: Vec<String>,
}

/// What was seen from one fault's beginning to the next one's.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub times: u64,
    pub answered: u64,
    /// Calls not served, by reason, on machines that the fault was done to.
    pub refused_there: BTreeMap<String, u64>,
    pub refused_elsewhere: BTreeMap<String, u64>,
    /// The longest time in which no machine acknowledged a change.
    pub no_change_for: Duration,
}

#[derive(Default)]
pub struct Book {
    pub keys: Vec<Key>,
    pub counts: Counts,
    /// Each fault with its beginning and its machines, in order.
    faults: Vec<(Step, Fault, Vec<usize>)>,
    /// None: before the first fault.
    seen: BTreeMap<Option<Fault>, Seen>,
}

#[derive(Default)]
pub struct SharedBook(Mutex<Book>);

/// Now, as a step: nanoseconds.
pub fn step() -> Step {
    RealEnv.boot_now().as_nanos() as Step
}

/// How a change ended, as far as its caller can tell.
pub fn end_of<T>(result: &Result<T, CallError>) -> End {
    match result {
        Ok(_) => End::Acknowledged(step()),
        // A server said that nothing was done.
        Err(error) if error.code.is_some() && !error.outcome_unknown => End::Void,
        Err(_) => End::Unknown,
    }
}

/// What a call was told, without what it was given.
pub fn told<T>(result: &Result<T, CallError>) -> String {
    result.as_ref().err().map_or_else(|| "something else".to_owned(), ToString::to_string)
}

impl SharedBook {
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    pub fn broke(&mut self, fault: Fault, machines: Vec<usize>) {
        self.faults.push((step(), fault, machines));
        self.seen.entry(Some(fault)).or_default().times += 1;
    }

    /// What is seen of the last fault that began before `at`, and its machines.
    fn at(&mut self, at: Step) -> (&mut Seen, &[usize]) {
        let next = self.faults.partition_point(|(began, ..)| *began <= at);
        let last = next.checked_sub(1).map(|last| &self.faults[last]);
        let (fault, machines) = last.map_or((None, &[][..]), |(_, fault, at)| (Some(*fault), at));
        (self.seen.entry(fault).or_default(), machines)
    }

    /// A call on a node was not served.
    pub fn refused(&mut self, began: Step, node: usize, why: &str) {
        let (seen, machines) = self.at(began);
        let there = machines.contains(&node);
        let by = if there { &mut seen.refused_there } else { &mut seen.refused_elsewhere };
        *by.entry(why.to_owned()).or_default() += 1;
    }

    /// No change was acknowledged in between. It counts with the fault that most of it fell to.
    pub fn without_change(&mut self, since: Step, until: Step) {
        let (seen, _) = self.at(since.midpoint(until));
        seen.no_change_for = seen.no_change_for.max(Duration::from_nanos(until - since));
    }

    /// Prints how often each fault was injected and what was seen.
    pub fn tell(&self) {
        let sum = |by: &BTreeMap<String, u64>| by.values().sum::<u64>();
        println!("fault | times | no change for | answered | refused there | elsewhere");
        let mut all = Seen::default();
        for (fault, seen) in &self.seen {
            let name = fault.map_or_else(|| "(before)".to_owned(), |fault| format!("{fault:?}"));
            println!(
                "{name} | {} | {:.1} s | {} | {} | {}",
                seen.times,
                seen.no_change_for.as_secs_f64(),
                seen.answered,
                sum(&seen.refused_there),
                sum(&seen.refused_elsewhere)
            );
            all.answered += seen.answered;
            for (why, times) in seen.refused_there.iter().chain(&seen.refused_elsewhere) {
                *all.refused_there.entry(why.clone()).or_default() += times;
            }
        }
        let Counts { acknowledged, unknown, refused_changes, .. } = self.counts;
        println!(
            "{acknowledged} changes acknowledged, {unknown} of unknown outcome, {refused_changes} refused"
        );
        println!("{} calls answered; refused: {:?}", all.answered, all.refused_there);
    }

    pub fn answered(&self) -> u64 {
        self.seen.values().map(|seen| seen.answered).sum()
    }

    pub fn created(&mut self, id: String, began: Step) {
        let mut state = History::new(KeyView::Absent);
        let write = state.begin(KeyView::Enabled, began);
        state.ended(write, End::Acknowledged(step()));
        let description = History::new(String::new());
        self.keys.push(Key { id, state, description, samples: Vec::new() });
    }

    pub fn note(&mut self, end: End) {
        match end {
            End::Acknowledged(_) => self.counts.acknowledged += 1,
            End::Unknown => self.counts.unknown += 1,
            End::Void => self.counts.refused_changes += 1,
        }
    }

    pub fn switched(&mut self, key: usize, write: WriteId, end: End) {
        self.keys[key].state.ended(write, end);
        self.note(end);
    }

    pub fn described(&mut self, key: usize, write: WriteId, end: End) {
        self.keys[key].description.ended(write, end);
        self.note(end);
    }

    /// A call showed a key's state.
    pub fn saw(&mut self, key: usize, view: KeyView, (began, ended): (Step, Step), node: usize) {
        self.at(began).0.answered += 1;
        let key = &self.keys[key];
        if let Err(why) = key.state.may_read(&view, began, ended) {
            let what = format!("STALE STATE of key {} on node {node}: {why}", key.id);
            self.counts.violations.push(what);
        }
    }

    pub fn read(&mut self, key: usize, text: &str, (began, ended): (Step, Step), node: usize) {
        let key = &self.keys[key];
        if let Err(why) = key.description.may_read(&text.to_owned(), began, ended) {
            let what = format!("STALE DESCRIPTION of key {} on node {node}: {why}", key.id);
            self.counts.violations.push(what);
        }
    }
}
