//! What happened in a drill: every call, and every step.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::definition::Drill;

/// How a call ended that was answered.
pub const ANSWERED: &str = "answered";
/// How one ends that was not.
pub const NO_ANSWER: &str = "no answer";
/// How a change ends of which nobody knows whether it took effect.
pub const UNKNOWN: &str = "outcome unknown";

/// What calls are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ciphertexts made before it begins.
    Before,
    /// A load of the drill's.
    Load,
    /// A load that is a program of its own.
    Program,
    /// Changes.
    Changes,
    /// A look at what is there in the end.
    End,
}

/// Who calls whom, with which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub kind: Kind,
    pub name: String,
    pub region: String,
    /// The key, by its name in the file.
    pub key: String,
    /// The principal, by its name in the file; whoever steps are run as when absent.
    pub principal: Option<String>,
}

/// What calls are recorded of: loads, changes, then a place before and after for each key and Region.
pub fn sources(drill: &Drill) -> Vec<Source> {
    let text = |text: &super::definition::Text| text.get_ref().clone();
    let loads = drill.load.iter().map(|load| Source {
        kind: if load.command.is_some() { Kind::Program } else { Kind::Load },
        name: text(&load.name),
        region: text(&load.region),
        key: text(&load.key),
        principal: load.principal.as_ref().map(text),
    });
    let changes = drill.changes.iter().map(|changes| Source {
        kind: Kind::Changes,
        name: text(&changes.name),
        region: text(&changes.region),
        key: text(&changes.key),
        principal: None,
    });
    let around = drill.key.iter().flat_map(|key| {
        let at = move |kind, region: &super::definition::Text| Source {
            kind,
            name: if kind == Kind::Before { "(before)" } else { "(end)" }.to_owned(),
            region: text(region),
            key: text(&key.name),
            principal: None,
        };
        let regions = key.regions.get_ref();
        let before = regions.first().map(|region| at(Kind::Before, region));
        before.into_iter().chain(regions.iter().map(move |region| at(Kind::End, region)))
    });
    loads.chain(changes).chain(around).collect()
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Of what, by its number among [`sources`].
    pub source: usize,
    /// As AWS has it; a program's own name of what it did.
    pub operation: Cow<'static, str>,
    /// When it was meant to begin, in microseconds from the beginning.
    pub began_us: u64,
    /// When it was sent.
    pub sent_us: u64,
    /// How long it took, from when it was meant to begin.
    pub took_us: u64,
    /// The ciphertext, by the first digits of its SHA-256; 0 where there is none.
    pub subject: u64,
    /// The plaintext, in the same way; of a change what was set.
    pub value: u64,
    /// `answered`, AWS's error name, or `no answer`.
    pub ended: String,
}

impl CallRecord {
    /// Whether it was answered.
    pub fn answered(&self) -> bool {
        self.ended == ANSWERED
    }

    /// When it ended.
    pub fn ended_us(&self) -> u64 {
        self.began_us + self.took_us
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// When it began, in microseconds from the beginning.
    pub began_us: u64,
    /// When it ended.
    pub ended_us: u64,
    /// What promises call it.
    pub name: Option<String>,
    /// The Region that it was run in.
    pub region: String,
    /// The command, as it was run.
    pub command: String,
    /// It did what the drill expects of it.
    pub done: bool,
    /// AWS's name of the error that it was refused with.
    pub refused: Option<String>,
    /// What it said.
    pub said: String,
}

/// What a Region said of itself, once a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When, in microseconds from the beginning.
    pub at_us: u64,
    pub region: String,
    /// How far it is behind the other Region that it is furthest behind.
    pub lag_ms: u64,
    /// Of each quota that calls drew on, in millionths: how much of it no node has now.
    pub headroom_lost_ppm: BTreeMap<String, u64>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Of what calls are recorded.
    pub sources: Vec<Source>,
    /// Calls, in the order in which they were meant to begin.
    pub calls: Vec<CallRecord>,
    /// Steps.
    pub events: Vec<Event>,
    /// What Regions said of themselves.
    pub looks: Vec<Look>,
}

impl History {
    /// Brings the calls into order.
    pub fn sort(&mut self) {
        self.calls.sort_by_key(|call| (call.began_us, call.source, call.sent_us));
        self.looks
            .sort_by(|one, other| (one.at_us, &one.region).cmp(&(other.at_us, &other.region)));
    }

    /// Calls of those sources, in order.
    pub fn calls_of(&self, of: impl Fn(&Source) -> bool) -> Vec<&CallRecord> {
        let wanted: Vec<bool> = self.sources.iter().map(of).collect();
        self.calls.iter().filter(|call| wanted.get(call.source) == Some(&true)).collect()
    }

    /// Calls of loads in a Region.
    pub fn calls_in(&self, region: &str) -> Vec<&CallRecord> {
        self.calls_of(|source| {
            matches!(source.kind, Kind::Load | Kind::Program) && source.region == region
        })
    }

    /// Calls of a load.
    pub fn calls_by(&self, load: &str) -> Vec<&CallRecord> {
        self.calls_of(|source| {
            matches!(source.kind, Kind::Load | Kind::Program) && source.name == load
        })
    }

    /// One line a call, with a heading.
    pub fn csv(&self) -> String {
        let mut text =
            "began_us,sent_us,took_us,load,region,key,operation,subject,value,ended\n".to_owned();
        for call in &self.calls {
            let Some(source) = self.sources.get(call.source) else { continue };
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{:016x},{:016x},{}",
                call.began_us,
                call.sent_us,
                call.took_us,
                field(&source.name),
                source.region,
                field(&source.key),
                field(&call.operation),
                call.subject,
                call.value,
                field(&call.ended)
            );
        }
        text
    }
}

/// A field of CSV (RFC 4180).
fn field(text: &str) -> Cow<'_, str> {
    match text.contains([',', '"', '\n', '\r']) {
        true => Cow::Owned(format!("\"{}\"", text.replace('"', "\"\""))),
        false => Cow::Borrowed(text),
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(text: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
}

/// The first digits of a SHA-256, as a number.
pub fn mark(bytes: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
