//! Linearizability: whether operations that overlapped in time could have happened one after the other, each at some
//! moment between its call and its return, with the outcomes that their callers were told.
//!
//! The algorithm is Wing and Gong's (1993) in Lowe's just-in-time form ("Testing for linearizability", 2017): events are
//! looked at in order, and all configurations are kept that explain what was seen so far. A configuration is a state, and
//! the operations under way that have happened already. Equal ones are kept once, which is the memoization. An operation
//! of unknown outcome never returns: it may happen at any time after its call, or never. So of two configurations that
//! differ in those alone, the one in which fewer have happened can do all that the other can, and is kept.
//!
//! Linearizability is local (Herlihy and Wing, 1990): each object's history is checked by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::history::{End, Step};

/// A sequential object.
pub trait Model {
    /// Its state.
    type State: Clone + Ord;
    /// An operation, with the outcome that its caller was told; one of unknown outcome as if it had succeeded.
    type Operation;

    /// The state after the operation; none if it cannot have that outcome in this state.
    fn apply(state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// One operation.
#[derive(Clone, Debug)]
struct Call<O> {
    operation: O,
    began: Step,
    end: End,
}

/// What was asked of one object.
#[derive(Clone, Debug)]
pub struct Operations<O>(Vec<Call<O>>);

impl<O> Default for Operations<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// An event, in the order in which events of one step are looked at: such calls overlap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call,
    Return,
}

impl<O> Operations<O> {
    /// An operation is about to begin. Until it is told how it ended, its outcome is unknown. Returns its number.
    pub fn begin(&mut self, operation: O, began: Step) -> usize {
        self.0.push(Call { operation, began, end: End::Unknown });
        self.0.len() - 1
    }

    /// How it ended; the operation with the outcome that its caller was told.
    pub fn ended(&mut self, number: usize, operation: O, end: End) {
        self.0[number].operation = operation;
        self.0[number].end = end;
    }

    fn events(&self) -> Vec<(Step, Event, usize)> {
        let mut events = Vec::with_capacity(2 * self.0.len());
        for (number, call) in self.0.iter().enumerate() {
            if call.end != End::Void {
                events.push((call.began, Event::Call, number));
            }
            if let End::Acknowledged(ended) = call.end {
                events.push((ended, Event::Return, number));
            }
        }
        events.sort_unstable();
        events
    }

    /// Whether the operations are linearizable, from that state on.
    ///
    /// # Errors
    /// The first operation, by its return, whose outcome no order explains; with the steps of its call and return.
    pub fn check<M: Model<Operation = O>>(&self, first: M::State) -> Result<(), (&O, Step, Step)> {
        let mut configurations = Configurations::default();
        configurations.add(Configuration {
            state: first,
            returns: Set::new(),
            unknown: Set::new(),
        });
        let mut under_way = Set::new();
        for (step, event, number) in self.events() {
            if event == Event::Call {
                under_way.insert(number);
                continue;
            }
            configurations = self.explain::<M>(configurations, &under_way, number);
            under_way.remove(&number);
            if configurations.0.is_empty() {
                let call = &self.0[number];
                return Err((&call.operation, call.began, step));
            }
        }
        Ok(())
    }

    /// All configurations in which that operation has happened, out of those before.
    fn explain<M: Model<Operation = O>>(
        &self,
        mut seen: Configurations<M::State>,
        under_way: &Set,
        number: usize,
    ) -> Configurations<M::State> {
        let mut explained = Configurations::default();
        let mut left: VecDeque<_> = seen.all().collect();
        while let Some(mut before) = left.pop_front() {
            if before.returns.remove(&number) {
                explained.add(before);
                continue;
            }
            let happened =
                |next: &&usize| before.returns.contains(*next) || before.unknown.contains(*next);
            for next in under_way.iter().filter(|next| !happened(next)) {
                let call = &self.0[*next];
                let Some(state) = M::apply(&before.state, &call.operation) else { continue };
                let mut after = Configuration { state, ..before.clone() };
                match call.end {
                    End::Acknowledged(_) => after.returns.insert(*next),
                    End::Unknown | End::Void => after.unknown.insert(*next),
                };
                if seen.add(after.clone()) {
                    left.push_back(after);
                }
            }
        }
        explained
    }
}

/// Operations, by number.
type Set = BTreeSet<usize>;

#[derive(Clone)]
struct Configuration<S> {
    state: S,
    /// Operations that have happened and not returned yet.
    returns: Set,
    /// Operations of unknown outcome that have happened.
    unknown: Set,
}

/// Those that explain what was seen: by state and operations that return, the smallest sets of those that do not.
struct Configurations<S>(BTreeMap<(S, Set), Vec<Set>>);

impl<S> Default for Configurations<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S: Clone + Ord> Configurations<S> {
    /// False if there is one that can do all that this one can.
    fn add(&mut self, new: Configuration<S>) -> bool {
        let sets = self.0.entry((new.state, new.returns)).or_default();
        if sets.iter().any(|set| set.is_subset(&new.unknown)) {
            return false;
        }
        sets.retain(|set| !new.unknown.is_subset(set));
        sets.push(new.unknown);
        true
    }

    fn all(&self) -> impl Iterator<Item = Configuration<S>> {
        self.0.iter().flat_map(|((state, returns), sets)| {
            sets.iter().map(|unknown| Configuration {
                state: state.clone(),
                returns: returns.clone(),
                unknown: unknown.clone(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that can be read, written, and written where it holds something.
    struct Register;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum On {
        Write(u32),
        Read(u32),
        /// From, to: told that it was done.
        Swap(u32, u32),
        /// From: told that the register holds something else.
        NoSwap(u32),
    }
    use On::{NoSwap, Read, Swap, Write};

    impl Model for Register {
        type State = u32;
        type Operation = On;

        fn apply(state: &u32, operation: &On) -> Option<u32> {
            match *operation {
                Write(value) => Some(value),
                Read(value) => (*state == value).then_some(value),
                Swap(from, to) => (*state == from).then_some(to),
                NoSwap(from) => (*state != from).then_some(*state),
            }
        }
    }

    /// The operation that cannot be explained, of these: operation, call, return (0: unknown).
    fn fails(calls: &[(On, Step, Step)]) -> Option<On> {
        let mut operations = Operations::default();
        for (operation, began, ended) in calls {
            let number = operations.begin(*operation, *began);
            if *ended > 0 {
                operations.ended(number, *operation, End::Acknowledged(*ended));
            }
        }
        operations.check::<Register>(0).err().map(|(operation, ..)| *operation)
    }

    #[test]
    fn one_after_the_other() {
        assert_eq!(fails(&[]), None);
        assert_eq!(fails(&[(Write(1), 1, 2), (Read(1), 3, 4), (Swap(1, 2), 5, 6)]), None);
        assert_eq!(fails(&[(Write(1), 1, 2), (Read(0), 3, 4)]), Some(Read(0)));
        assert_eq!(fails(&[(Write(1), 1, 2), (Swap(0, 2), 3, 4)]), Some(Swap(0, 2)));
        assert_eq!(fails(&[(Write(1), 1, 2), (NoSwap(1), 3, 4)]), Some(NoSwap(1)));
        assert_eq!(
            fails(&[(Read(1), 1, 2), (Write(1), 3, 4)]),
            Some(Read(1)),
            "not before its call"
        );
    }

    #[test]
    fn operations_that_overlap_may_happen_in_either_order() {
        assert_eq!(fails(&[(Write(1), 1, 9), (Write(2), 2, 8), (Read(1), 10, 11)]), None);
        assert_eq!(fails(&[(Write(1), 1, 9), (Write(2), 2, 8), (Read(2), 10, 11)]), None);
        // Both orders at once are none.
        let both = [(Write(1), 1, 9), (Write(2), 2, 8), (Read(1), 10, 11), (Read(2), 12, 13)];
        assert_eq!(fails(&both), Some(Read(2)));
        // New, then old, while the write is under way.
        assert_eq!(fails(&[(Write(1), 1, 20), (Read(1), 2, 3), (Read(0), 4, 5)]), Some(Read(0)));
        assert_eq!(fails(&[(Write(1), 1, 20), (Read(1), 2, 6), (Read(0), 4, 5)]), None);
        // One of two that swap the same thing must fail.
        assert_eq!(fails(&[(Swap(0, 1), 1, 9), (NoSwap(0), 2, 8)]), None);
        let twice = fails(&[(Swap(0, 1), 1, 9), (Swap(0, 2), 2, 8)]);
        assert_eq!(twice, Some(Swap(0, 1)));
        // The one that fails does so since another one happens later in time, but overlaps.
        assert_eq!(fails(&[(NoSwap(0), 1, 10), (Write(1), 5, 12), (Read(1), 13, 14)]), None);
        assert_eq!(fails(&[(NoSwap(0), 1, 4), (Write(1), 5, 12)]), Some(NoSwap(0)));
    }

    #[test]
    fn an_unknown_outcome_may_come_at_any_time_or_never() {
        let late = [(Write(1), 1, 0), (Read(0), 5, 6), (Read(0), 7, 8), (Read(1), 90, 91)];
        assert_eq!(fails(&late), None);
        assert_eq!(fails(&[(Write(1), 1, 0), (Write(2), 5, 6), (Read(2), 7, 8)]), None, "never");
        assert_eq!(fails(&[(Write(1), 1, 0), (Write(2), 5, 6), (Read(1), 7, 8)]), None, "after");
        // Once, and not before its call.
        let twice = [(Write(1), 1, 0), (Read(1), 3, 4), (Write(2), 5, 6), (Read(1), 7, 8)];
        assert_eq!(fails(&twice), Some(Read(1)));
        assert_eq!(fails(&[(Read(1), 1, 2), (Write(1), 3, 0)]), Some(Read(1)));
        // One that cannot happen where it would have to.
        let swapped = [(Swap(1, 2), 1, 0), (Read(2), 3, 4), (Write(1), 5, 6)];
        assert_eq!(fails(&swapped), Some(Read(2)));
    }

    #[test]
    fn what_was_refused_for_good_never_happens() {
        let mut operations = Operations::default();
        let write = operations.begin(Write(1), 1);
        operations.ended(write, Write(1), End::Void);
        let read = operations.begin(Read(1), 3);
        operations.ended(read, Read(1), End::Acknowledged(4));
        assert!(operations.check::<Register>(0).is_err());
        assert!(operations.check::<Register>(1).is_ok());
    }

    #[test]
    fn many_unknown_outcomes_are_cheap() {
        let mut calls: Vec<_> = (0..12).map(|value| (Write(value), 1, 0)).collect();
        calls.extend((0..60).map(|number| (Write(100 + number), 10 + 2 * u64::from(number), 11)));
        for (number, call) in calls.iter_mut().skip(12).enumerate() {
            call.2 = call.1 + 1 + (number as u64 % 2) * 2;
        }
        assert_eq!(fails(&calls), None);
        calls.push((Read(7), 900, 901));
        assert_eq!(fails(&calls), None);
        calls.push((Read(999), 902, 903));
        assert_eq!(fails(&calls), Some(Read(999)));
    }
}
