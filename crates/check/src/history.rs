//! What must hold, one rule a function.
//!
//! The history of one thing (the state of a key, an alias, a description) is a [`History`]: writes with
//! the step at which each began and was acknowledged. A read that began after an acknowledgement must see
//! that write or a later one. A write whose outcome is not known may take effect at any time, also long
//! after its caller gave up.

use std::collections::BTreeMap;

use keyward_model::NodeId;

/// Orders events: the steps of a simulated run, microseconds of a real one.
pub type Step = u64;

/// How a write ended, as far as its caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not yet, or never: the caller cannot tell whether it took effect.
    Unknown,
    /// Acknowledged at that step.
    Acknowledged(Step),
    /// Refused: it never takes effect.
    Void,
}

#[derive(Clone, Debug)]
struct Write<V> {
    value: V,
    began: Step,
    end: End,
}

/// All writes to one thing.
#[derive(Clone, Debug)]
pub struct History<V> {
    writes: Vec<Write<V>>,
    /// What each node showed last, and when that read ended.
    shown: BTreeMap<NodeId, (Step, V)>,
}

/// Names a write of a history.
#[derive(Clone, Copy, Debug)]
pub struct WriteId(usize);

impl<V: Clone + PartialEq + std::fmt::Debug> History<V> {
    /// A thing that has been `value` from the beginning.
    #[must_use]
    pub fn new(value: V) -> Self {
        let first = Write { value, began: 0, end: End::Acknowledged(0) };
        Self { writes: vec![first], shown: BTreeMap::new() }
    }

    /// A write is about to begin.
    pub fn begin(&mut self, value: V, step: Step) -> WriteId {
        self.writes.push(Write { value, began: step, end: End::Unknown });
        WriteId(self.writes.len() - 1)
    }

    /// The write reached a node only now.
    pub fn began(&mut self, write: WriteId, step: Step) {
        self.writes[write.0].began = step;
    }

    /// How the write ended.
    pub fn ended(&mut self, write: WriteId, end: End) {
        self.writes[write.0].end = end;
    }

    /// The last acknowledged write that began last, of those acknowledged before `step`.
    fn last_before(&self, step: Step, but: &V) -> Option<&Write<V>> {
        self.writes
            .iter()
            .filter(|write| write.value != *but)
            .filter(|write| matches!(write.end, End::Acknowledged(at) if at < step))
            .max_by_key(|write| write.began)
    }

    /// Whether a read that began at `began` and ended at `ended` may have seen `value`; if not, why not.
    pub fn may_read(&self, value: &V, began: Step, ended: Step) -> Result<(), String> {
        let overwrote = self.last_before(began, value);
        let floor = overwrote.map_or(0, |write| write.began);
        let possible = self.writes.iter().any(|write| {
            write.value == *value
                && write.began <= ended
                && match write.end {
                    End::Void => false,
                    End::Unknown => true,
                    End::Acknowledged(at) => overwrote.is_none() || at > floor,
                }
        });
        if possible {
            return Ok(());
        }
        let last = match overwrote {
            Some(Write { value, began, end: End::Acknowledged(at) }) => {
                format!(
                    "{value:?} (began at step {began}, acknowledged at {at}) was the last write"
                )
            }
            _ => "it was never written".to_owned(),
        };
        Err(format!("a read from step {began} to {ended} saw {value:?}, but {last}"))
    }

    /// Whether a node may show `value` in a read from `began` to `ended`, after what it showed before; if not, why not.
    /// Notes that it did.
    pub fn may_show(
        &mut self,
        node: NodeId,
        value: &V,
        began: Step,
        ended: Step,
    ) -> Result<(), String> {
        let before = self.shown.get(&node).filter(|(at, _)| *at < began);
        let backwards = before.filter(|(_, shown)| self.precedes(value, shown)).map(|(at, shown)| {
            format!("a read from step {began} to {ended} saw {value:?}, after one until {at} saw {shown:?}")
        });
        if self.shown.get(&node).is_none_or(|(at, _)| *at < ended) {
            self.shown.insert(node, (ended, value.clone()));
        }
        backwards.map_or(Ok(()), Err)
    }

    /// True if every write of `old` was over before any write of `new` began.
    fn precedes(&self, old: &V, new: &V) -> bool {
        let first = self.writes_of(new).map(|write| write.began).min();
        first.is_some_and(|first| {
            self.writes_of(old)
                .all(|write| matches!(write.end, End::Acknowledged(at) if at < first))
        })
    }

    fn writes_of(&self, value: &V) -> impl Iterator<Item = &Write<V>> {
        self.writes.iter().filter(move |write| write.end != End::Void && write.value == *value)
    }

    /// True while every write's outcome is known: reads can tell everything.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.writes.iter().all(|write| write.end != End::Unknown)
    }

    /// The last acknowledged write.
    #[must_use]
    pub fn last_acknowledged(&self) -> Option<&V> {
        let acknowledged = |w: &&Write<V>| matches!(w.end, End::Acknowledged(_));
        let last = self.writes.iter().filter(acknowledged).max_by_key(|write| write.began);
        last.map(|write| &write.value)
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|w| matches!(w.end, End::Acknowledged(_))).count() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_after_an_acknowledgement_must_see_it() {
        let mut history = History::new("on");
        let off = history.begin("off", 10);
        assert!(history.may_read(&"on", 12, 13).is_ok(), "not acknowledged yet");
        assert!(history.may_read(&"off", 12, 13).is_ok(), "in flight");
        history.ended(off, End::Acknowledged(20));
        assert!(history.may_read(&"on", 19, 25).is_ok(), "began before");
        assert!(history.may_read(&"on", 21, 25).is_err());
        let on = history.begin("on", 30);
        assert!(history.may_read(&"on", 21, 29).is_err(), "ended before the next write began");
        assert!(history.may_read(&"on", 21, 31).is_ok());
        history.ended(on, End::Void);
        assert!(history.may_read(&"on", 40, 41).is_err());
    }

    #[test]
    fn a_write_of_unknown_outcome_may_show_at_any_time_and_need_not() {
        let mut history = History::new(0);
        let one = history.begin(1, 10);
        history.ended(one, End::Unknown);
        let two = history.begin(2, 20);
        history.ended(two, End::Acknowledged(25));
        assert!(history.may_read(&1, 30, 31).is_ok());
        assert!(history.may_read(&2, 30, 31).is_ok());
        assert!(history.may_read(&0, 30, 31).is_err());
        assert!(!history.is_certain());
    }

    #[test]
    fn a_node_does_not_go_back_behind_what_it_has_shown() {
        let mut history = History::new('a');
        let b = history.begin('b', 10);
        assert!(history.may_show(1, &'b', 11, 12).is_ok(), "in flight");
        assert!(history.may_show(2, &'a', 13, 14).is_ok(), "another node");
        assert!(history.may_show(1, &'b', 13, 15).is_ok());
        assert!(history.may_show(1, &'a', 14, 16).is_ok(), "both at once");
        assert!(history.may_show(1, &'b', 17, 18).is_ok());
        let why = history.may_show(1, &'a', 19, 20).unwrap_err();
        assert!(why.contains("saw 'a', after one until 18 saw 'b'"), "{why}");
        history.ended(b, End::Acknowledged(30));
        // What comes again cannot be told from what was.
        let again = history.begin('a', 40);
        history.ended(again, End::Unknown);
        assert!(history.may_show(1, &'a', 43, 44).is_ok(), "it took effect");
        assert!(history.may_show(1, &'b', 45, 46).is_ok());
    }

    #[test]
    fn what_was_overwritten_before_it_began_does_not_come_back() {
        let mut history = History::new('a');
        for (value, began, at) in [('b', 10, 15), ('c', 20, 25)] {
            let write = history.begin(value, began);
            history.ended(write, End::Acknowledged(at));
        }
        assert!(history.may_read(&'b', 22, 23).is_ok(), "c is in flight");
        assert!(history.may_read(&'b', 30, 31).is_err());
        assert!(history.may_read(&'a', 16, 17).is_err());
        assert!(history.may_read(&'d', 30, 31).is_err());
    }
}
