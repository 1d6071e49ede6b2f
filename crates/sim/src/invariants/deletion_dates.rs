//! **No key is deleted early**: when it goes, a majority of the machines' own clocks has passed its date, and
//! the date is one that a caller was told.

use std::collections::BTreeSet;

use keyward_model::KeyId;

use crate::book::Book;
use crate::cluster::Cluster;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct DeletionDates {
    gone: BTreeSet<KeyId>,
}

impl DeletionDates {
    pub(super) fn look(&mut self, cluster: &Cluster, book: &mut Book) {
        for index in cluster.machines() {
            let Some(running) = cluster.running(index) else { continue };
            let state = running.kms.node().state();
            for tombstone in state.deleted_after(0) {
                if !self.gone.insert(tombstone.key) {
                    continue;
                }
                let now_ms = cluster.walls.true_ms() + state.clock_offset_ms;
                let past = |machine: &usize| {
                    now_ms + cluster.walls.ahead_lately_ms(*machine) >= tombstone.due.0
                };
                let machines = cluster.members();
                let passed = machines.iter().filter(|machine| past(machine)).count();
                let id = tombstone.key.to_string();
                if passed <= machines.len() / 2 {
                    book.violate(format!(
                        "DELETED EARLY: key {id} was due in {} ms, and {passed} of {} clocks had come to \
                         that",
                        tombstone.due.0 - now_ms,
                        machines.len()
                    ));
                }
                let known = book.keys.iter().find(|key| key.id == id);
                if let Some(key) = known.filter(|key| {
                    key.state.is_certain() && !key.dates_ms.contains(&tombstone.due.0)
                }) {
                    let told = key.dates_ms.clone();
                    book.violate(format!(
                        "DELETED ON ANOTHER DATE: key {id} was due at {}, and callers were told {told:?}",
                        tombstone.due.0
                    ));
                }
            }
        }
    }
}
