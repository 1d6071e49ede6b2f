//! What happened in a drill: every call, and every step.

use std::fmt::Write;

use serde::Serialize;

/// How a call ended that was answered.
pub const ANSWERED: &str = "answered";
/// How one ends that was not.
pub const NO_ANSWER: &str = "no answer";

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Of which load, by its place in the file.
    pub load: usize,
    /// When it was meant to begin, in microseconds from the beginning.
    pub began_us: u64,
    /// How long it took.
    pub took_us: u64,
    /// `answered`, AWS's error name, or `no answer`.
    pub ended: String,
}

impl CallRecord {
    /// Whether it was answered.
    pub fn answered(&self) -> bool {
        self.ended == ANSWERED
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// When it began, in milliseconds from the beginning.
    pub began_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// The Region that it was run in.
    pub region: String,
    /// The command.
    pub command: String,
    /// It succeeded.
    pub done: bool,
    /// What it said.
    pub said: String,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Calls, in the order in which they were meant to begin.
    pub calls: Vec<CallRecord>,
    /// Steps.
    pub events: Vec<Event>,
}

impl History {
    /// Brings the calls into order.
    pub fn sort(&mut self) {
        self.calls.sort_by_key(|call| (call.began_us, call.load));
    }

    /// One line a call, with a heading.
    pub fn csv(&self, loads: &[String]) -> String {
        let mut text = "began_us,took_us,load,ended\n".to_owned();
        for call in &self.calls {
            let load = loads.get(call.load).map_or("", String::as_str);
            let _ = writeln!(text, "{},{},{load},{}", call.began_us, call.took_us, call.ended);
        }
        text
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(text: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
}
