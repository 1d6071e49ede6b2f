//! **Gone means gone** (decision 0010): once the nodes say so, the sealed material of a deleted key is in no
//! file of any node that is up: not in its state, not in its log, not in what was overwritten there.

use std::collections::BTreeMap;

use keyward_model::{KeyMaterialId, NodeId};
use keyward_state::{Store, Table};

use crate::book::Book;
use crate::cluster::Cluster;

/// Bytes of a token that are looked for: from its middle, where everything is random.
const BYTES: usize = 24;

/// Every sealed token that was ever seen.
#[derive(Debug, Default)]
pub struct GoneFromDisks {
    tokens: BTreeMap<KeyMaterialId, Vec<u8>>,
    /// Each machine's node, its last entry, and how many keys were known, when all of its tokens had been seen.
    all_seen: BTreeMap<usize, (NodeId, u64, usize)>,
}

impl GoneFromDisks {
    /// Keeps the tokens of keys that are there.
    pub(super) fn look(&mut self, cluster: &Cluster, book: &Book) {
        for index in cluster.machines() {
            let Some(running) = cluster.running(index) else { continue };
            let (state, store) = (running.kms.node().state(), cluster.state_store(index));
            let seen = (cluster.id(index), state.applied, book.keys.len());
            if self.all_seen.get(&index) == Some(&seen) {
                continue;
            }
            let mut all = true;
            for key in &book.keys {
                let Some(key) = key.id.parse().ok().and_then(|id| state.key(&id)) else { continue };
                for material in &key.materials {
                    if self.tokens.contains_key(&material.id) {
                        continue;
                    }
                    match store.get(Table::Tokens, material.id.bytes()) {
                        Ok(Some(token)) => drop(self.tokens.insert(material.id, token)),
                        _ => all = false,
                    }
                }
            }
            if all {
                self.all_seen.insert(index, seen);
            }
        }
    }

    /// Once every node has said that its disks hold nothing of deleted keys any more.
    pub(super) fn look_in_the_end(&self, cluster: &Cluster, book: &mut Book) {
        for index in cluster.machines() {
            let Some(running) = cluster.running(index) else { continue };
            let (state, purged) = (running.kms.node().state(), running.kms.node().status().purged);
            let disks = [("state", cluster.state_store(index)), ("log", cluster.log_store(index))];
            // Another key's date may have come meanwhile.
            for tombstone in state.deleted_after(0).filter(|tomb| tomb.number <= purged) {
                for material in &tombstone.materials {
                    let Some(token) = self.tokens.get(material) else { continue };
                    let middle = &token[(token.len() - BYTES) / 2..][..BYTES];
                    for (name, disk) in &disks {
                        if disk.holds(middle) {
                            let (node, key) = (cluster.id(index), tombstone.key);
                            book.violate(format!(
                                "NOT GONE: the {name} of node {node} holds the sealed material of key {key}"
                            ));
                        }
                    }
                    if running.kms.hsm().unsealed(material).is_some() {
                        let (node, key) = (cluster.id(index), tombstone.key);
                        book.violate(format!("NOT GONE: key {key} is open on node {node}"));
                    }
                }
            }
        }
    }
}
