//! What clients asked for and were told, checked by the rules that the simulation has (`keyward_sim::check`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use keyward_client::CallError;
use keyward_env::{Env, RealEnv};
use keyward_sim::book::KeyView;
use keyward_sim::check::{End, History, Step, WriteId};

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
    pub answered: u64,
    /// For want of a lease, or no answer.
    pub unserved: u64,
    pub violations: Vec<String>,
}

#[derive(Default)]
pub struct Book {
    pub keys: Vec<Key>,
    pub counts: Counts,
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
            End::Void => {}
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
        self.counts.answered += 1;
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
