//! A Region that begins anew out of a backup: what of its state changes before its first node starts. It is no command:
//! there is no log yet.

use std::collections::BTreeMap;

use keyward_hsm::{RootCopy, RootId};
use keyward_model::{DomainKeyId, ErrorCode, KeyId, KmsError, NodeId};

use super::Tx;
use crate::multi_region::HistoryId;
use crate::rows::{DomainKey, Key, Root, Tombstone};
use crate::state::State;
use crate::store::Batch;

/// How a restored Region differs from the backup.
#[derive(Clone, Debug, Default)]
pub struct Restoring {
    /// Names the history that begins.
    pub history: HistoryId,
    /// Its only node, of an id that no node of the Region ever had.
    pub node: NodeId,
    /// The nodes that the Region had, and where they were: they are given up.
    pub lost: BTreeMap<NodeId, String>,
    /// The node's roots. All others are forgotten.
    pub roots: Vec<RootId>,
    /// Domain keys, sealed for roots that had no copy of them.
    pub copies: Vec<(DomainKeyId, RootCopy)>,
    /// What stayed of keys that were deleted after the backup: they go.
    pub deleted: Vec<Tombstone>,
}

/// Changes `state`, and adds the changed rows to `batch`.
///
/// # Errors
/// A domain key that none of the node's roots would open.
pub fn restore(
    state: &mut State,
    batch: &mut Batch,
    restoring: &Restoring,
) -> Result<(), KmsError> {
    let now = state.time;
    let mut tx = Tx { state, batch, now };
    for tombstone in &restoring.deleted {
        tx.stay_deleted(tombstone)?;
    }
    tx.seal_for(restoring)?;
    let mut counters = BTreeMap::clone(&tx.state.counters);
    for node in restoring.lost.keys() {
        counters.entry(*node).or_default();
    }
    tx.put_counters(counters);
    let mut lost = BTreeMap::clone(&tx.state.lost);
    lost.extend(restoring.lost.iter().map(|(node, address)| (*node, address.clone())));
    tx.put_recovery(restoring.history, lost);
    Ok(())
}

impl Tx<'_> {
    /// A key that was deleted after the backup. Where it is not in the backup, its tombstone is kept all the same.
    fn stay_deleted(&mut self, tombstone: &Tombstone) -> Result<(), KmsError> {
        if self.state.tombstone(&tombstone.key).is_some() {
            return Ok(());
        }
        let mut materials = tombstone.materials.clone();
        if let Some(key) = self.state.key(&tombstone.key).cloned() {
            let known = key.materials.iter().map(|material| material.id);
            materials.extend(known.filter(|id| !tombstone.materials.contains(id)));
            self.note_gone(&tombstone.key)?;
            let key = Key::clone(&key);
            self.remove_key(&key);
        }
        let number = self.state.deletions() + 1;
        self.put_tombstone(Tombstone { number, materials, ..tombstone.clone() });
        Ok(())
    }

    /// The node's roots are the Region's only ones.
    fn seal_for(&mut self, restoring: &Restoring) -> Result<(), KmsError> {
        for id in &restoring.roots {
            self.put_root(Root { id: id.clone(), node: restoring.node });
        }
        let ids: Vec<DomainKeyId> = self.state.domain_keys.keys().copied().collect();
        for id in ids {
            let Some(key) = self.state.domain_keys.get(&id).map(|key| DomainKey::clone(key)) else {
                continue;
            };
            let mut key = key;
            key.sealed.copies.retain(|copy| restoring.roots.contains(&copy.root));
            let new = restoring.copies.iter().filter(|(of, _)| *of == id).map(|(_, copy)| copy);
            for copy in new {
                if key.sealed.copies.iter().all(|known| known.root != copy.root) {
                    key.sealed.copies.push(copy.clone());
                }
            }
            if key.sealed.copies.is_empty() {
                return Err(KmsError::new(
                    ErrorCode::KeyUnavailableException,
                    format!("domain key {id} is sealed for none of the roots at hand"),
                ));
            }
            self.put_domain_key(key);
        }
        let others: Vec<Root> = self.state.roots.values().cloned().collect();
        for root in others.iter().filter(|root| !restoring.roots.contains(&root.id)) {
            self.remove_root(root);
        }
        Ok(())
    }
}

impl State {
    /// An id that no node of the Region can have had, as far as this state tells: larger than all by `distance`, since
    /// nodes may have joined that it does not know of.
    #[must_use]
    pub fn unused_node_id(&self, distance: u64) -> NodeId {
        let invited = self.invitations.values().map(|invitation| invitation.node);
        let rooted = self.roots.values().map(|root| root.node);
        let known = self.counters.keys().chain(self.lost.keys()).copied();
        known.chain(invited).chain(rooted).max().unwrap_or(0) + distance.max(1)
    }

    /// A key that is here although it is gone: no history of commands leads there. A replica that was made anew since is
    /// of a higher generation than what is gone.
    #[must_use]
    pub fn key_that_is_gone(&self) -> Option<KeyId> {
        let me = self.region.as_ref().map(|facts| &facts.region);
        let lives = |id: &KeyId| {
            let row = self.multi_region(id)?;
            let here = row.here.as_ref()?.generation;
            let gone = me.and_then(|me| row.gone.get(me)).copied();
            Some(gone.is_none_or(|gone| gone < here))
        };
        let buried = self.deleted_after(0).map(|tombstone| tombstone.key);
        let mut back = buried.filter(|id| self.key(id).is_some());
        back.find(|id| lives(id) != Some(true))
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &std::sync::Arc<Key>> {
        self.keys.values()
    }
}
