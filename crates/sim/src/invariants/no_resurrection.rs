//! **A deleted key never comes back**: from the entry on that deleted it, no node has it, through restarts,
//! replays, snapshots and old disks; its tombstone stays. And no key goes that nobody wanted gone.
//!
//! (That no call works with such a key is looked at where calls are answered, [`Book::read_state`].)

use std::collections::BTreeMap;

use keyward_model::KeyId;

use crate::book::{Book, KeyView};
use crate::cluster::Cluster;
use keyward_check::{End, Step, WriteId};

/// A key that is gone.
#[derive(Debug)]
struct Gone {
    /// An entry at or after its deletion.
    applied: u64,
    /// Which key of the book, and its aliases, with the writes that the Region itself made.
    key: Option<(usize, WriteId)>,
    aliases: Vec<(usize, WriteId)>,
    /// Every node has applied its deletion: no call that starts later sees it.
    everywhere: bool,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct NoResurrection {
    gone: BTreeMap<KeyId, Gone>,
    looked: Step,
}

impl NoResurrection {
    pub(super) fn look(&mut self, cluster: &Cluster, book: &mut Book) {
        let step = cluster.world.step();
        let state_of = |index| cluster.running(index).map(|running| running.kms.node().state());
        let states: Vec<_> = cluster.machines().map(state_of).collect();
        let members = cluster.members();
        for state in states.iter().flatten() {
            for tombstone in state.deleted_after(0) {
                if !self.gone.contains_key(&tombstone.key) {
                    let gone = self.first_seen(tombstone.key, state.applied, step, book);
                    self.gone.insert(tombstone.key, gone);
                }
            }
        }
        for (key, gone) in &mut self.gone {
            for (index, state) in states.iter().enumerate() {
                let Some(state) = state.as_ref().filter(|s| s.applied >= gone.applied) else {
                    continue;
                };
                if state.key(key).is_some() || state.tombstone(key).is_none() {
                    let node = cluster.id(index);
                    let tombstone = state.tombstone(key).is_some();
                    book.violate(format!(
                        "RESURRECTION of key {key}: node {node} at entry {} has it: {}, its tombstone: \
                         {tombstone}; it was gone at entry {}",
                        state.applied,
                        state.key(key).is_some(),
                        gone.applied
                    ));
                }
            }
            let applied = |state: &Option<_>| {
                state.as_ref().is_some_and(|s: &std::sync::Arc<keyward_state::State>| {
                    s.applied >= gone.applied
                })
            };
            if !gone.everywhere && members.iter().all(|index| applied(&states[*index])) {
                gone.everywhere = true;
                if let Some((key, write)) = gone.key {
                    book.keys[key].state.ended(write, End::Acknowledged(step));
                }
                for (alias, write) in &gone.aliases {
                    book.aliases[*alias].ended(*write, End::Acknowledged(step));
                }
            }
        }
        self.looked = step;
    }

    fn first_seen(&self, id: KeyId, applied: u64, step: Step, book: &mut Book) -> Gone {
        let text = id.to_string();
        let mut gone = Gone { applied, key: None, aliases: Vec::new(), everywhere: false };
        book.counters.deleted += 1;
        // The creation of a key may have had an unknown outcome; nobody asked for its deletion then.
        let Some(key) = book.keys.iter().position(|key| key.id == text) else {
            book.violate(format!("A KEY WENT that no caller knows: {text}"));
            return gone;
        };
        let state = &book.keys[key].state;
        if let Err(why) = state.may_read(&KeyView::Pending, self.looked, step) {
            book.violate(format!("A KEY WENT that nobody wanted gone: {text}: {why}"));
        }
        gone.key = Some((key, book.keys[key].state.begin(KeyView::Absent, step)));
        book.keys[key].gone_since = Some(step);
        for alias in 0..book.aliases.len() {
            let history = &mut book.aliases[alias];
            if history.may_read(&Some(key), self.looked, step).is_err() {
                continue;
            }
            // It went with the key, unless it may have pointed elsewhere.
            let others = (0..book.keys.len()).filter(|other| *other != key).map(Some);
            let elsewhere =
                others.chain([None]).any(|to| history.may_read(&to, self.looked, step).is_ok());
            let write = history.begin(None, step);
            if !elsewhere {
                gone.aliases.push((alias, write));
            }
        }
        gone
    }
}
