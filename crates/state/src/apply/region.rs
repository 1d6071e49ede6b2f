//! Founding, invitations, roots and domain keys.

use std::collections::BTreeMap;

use keyward_hsm::{RootCopy, RootId, SealedDomainKey};
use keyward_model::{DomainKeyId, ErrorCode, KmsError, NodeId, PrincipalArn, Timestamp};

use super::{DONE, Tx};
use crate::command::{Founding, Outcome, Reply};
use crate::rows::{
    DiskMark, DomainKey, Invitation, InvitationId, Kinds, Purpose, RegionFacts, Root,
};

/// Roots of one node.
const ROOTS_PER_NODE_MAX: usize = keyward_hsm::ROOTS_MAX;
/// Invitations at once, used and ended ones included.
const INVITATIONS_MAX: usize = 1000;
/// How long an ended invitation is remembered: who comes late is told so.
const INVITATION_KEPT_MS: i64 = 7 * Timestamp::DAY_MS;

/// Ten years: longer than any period that is rehearsed.
const CLOCK_ADVANCE_MAX_MS: i64 = 3650 * Timestamp::DAY_MS;

impl Tx<'_> {
    pub(super) fn found(&mut self, founding: &Founding) -> Outcome {
        if let Some(facts) = &self.state.region {
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("this Region was founded already, as {}", facts.region),
            ));
        }
        self.put_root(Root { id: founding.root.clone(), node: founding.node });
        self.put_domain_key(DomainKey { sealed: founding.domain_key.clone(), created: self.now });
        self.put_region(RegionFacts {
            region: founding.region.clone(),
            region_id: founding.region_id,
            founded: self.now,
            timers: founding.timers,
            purpose: founding.purpose,
            ca_certificate: founding.ca_certificate.clone(),
            ca_private_key: founding.ca_private_key.clone(),
            active_domain_key: founding.domain_key.id,
        });
        for (fingerprint, certificate) in &founding.authorities {
            self.add_authority(*fingerprint, certificate)?;
        }
        let kinds = Kinds { operator: true, ..Kinds::default() };
        self.create_principal(&founding.operator, kinds, Some(&founding.operator_certificate))
    }

    pub(super) fn advance_clock(&mut self, milliseconds: i64) -> Outcome {
        let purpose = self.state.region.as_ref().map(|facts| facts.purpose).unwrap_or_default();
        if purpose == Purpose::Production {
            return Err(KmsError::new(
                ErrorCode::UnsupportedOperationException,
                "the clock of a Region for production cannot be moved: rehearse in one that `keyward dev up` \
                 founds",
            ));
        }
        if !(0..=CLOCK_ADVANCE_MAX_MS).contains(&milliseconds) {
            return Err(KmsError::validation(format!(
                "the clock moves ahead by 0 to {} days at a time, never back",
                CLOCK_ADVANCE_MAX_MS / Timestamp::DAY_MS
            )));
        }
        let offset = self.state.clock_offset_ms.saturating_add(milliseconds);
        // The latest time moves with it: less the offset, it must not seem to have gone back.
        let moved = offset - self.state.clock_offset_ms;
        self.put_clock_offset(offset);
        self.put_time(Timestamp(self.state.time.0.saturating_add(moved)));
        Ok(Reply::ClockOffset(offset))
    }

    pub(super) fn invite(&mut self, id: InvitationId, valid_ms: i64, by: &PrincipalArn) -> Outcome {
        self.forget_old_invitations();
        if self.state.invitations.len() >= INVITATIONS_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!(
                    "there are {INVITATIONS_MAX} invitations, the most allowed: wait until some end"
                ),
            ));
        }
        // No node of this Region ever had it.
        let taken = self
            .state
            .roots
            .values()
            .map(|root| root.node)
            .chain(self.state.counters.keys().copied())
            .chain(self.state.invitations.values().map(|invitation| invitation.node));
        let node = taken.max().unwrap_or(0) + 1;
        let expires = Timestamp(self.now.0 + valid_ms);
        self.put_invitation(Invitation { id, node, expires, by: by.clone(), used: None });
        Ok(Reply::Invited { node, expires })
    }

    /// One whose node was let in is kept: it is the word that the node may vote, which it may have to ask for late.
    fn forget_old_invitations(&mut self) {
        let long_over = self.now.0 - INVITATION_KEPT_MS;
        let let_in = |node| self.state.roots_of(node).next().is_some();
        let invitations = self.state.invitations.values();
        let old: Vec<Invitation> = invitations
            .filter(|invitation| invitation.expires.0 < long_over && !let_in(invitation.node))
            .cloned()
            .collect();
        if old.is_empty() {
            return;
        }
        let mut counters = BTreeMap::clone(&self.state.counters);
        for invitation in old {
            self.remove_invitation(&invitation.id);
            if invitation.used.is_some() {
                // Its machine has a certificate with that id, which is never given to another one.
                counters.entry(invitation.node).or_default();
            }
        }
        self.put_counters(counters);
    }

    pub(super) fn use_invitation(&mut self, id: &InvitationId, address: &str) -> Outcome {
        let refuse = |why: String| {
            Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!("{why}: ask an operator for a new one (`keyward cluster invite`)"),
            ))
        };
        let Some(invitation) = self.state.invitations.get(id).cloned() else {
            return refuse("this Region knows no such invitation".to_owned());
        };
        if let Some(other) = &invitation.used {
            return refuse(format!("the invitation was used already, by the node at {other}"));
        }
        if invitation.expires <= self.now {
            return refuse("the invitation has expired".to_owned());
        }
        let node = invitation.node;
        self.put_invitation(Invitation { used: Some(address.to_owned()), ..invitation });
        Ok(Reply::Node(node))
    }

    /// Their roots go with them; their ids are never given to others.
    pub(super) fn recover(
        &mut self,
        history: [u8; 16],
        given_up: &BTreeMap<NodeId, String>,
    ) -> Outcome {
        let mut lost = BTreeMap::clone(&self.state.lost);
        lost.extend(given_up.iter().map(|(node, address)| (*node, address.clone())));
        let mut counters = BTreeMap::clone(&self.state.counters);
        for node in given_up.keys() {
            counters.entry(*node).or_default();
            let roots: Vec<Root> = self.state.roots_of(*node).cloned().collect();
            for root in roots {
                self.drop_root(&root);
            }
        }
        self.put_counters(counters);
        self.put_recovery(history, lost);
        DONE
    }

    /// They never go back.
    pub(super) fn note_counters(&mut self, told: &BTreeMap<NodeId, DiskMark>) -> Outcome {
        let mut counters = BTreeMap::clone(&self.state.counters);
        for (node, mark) in told {
            let known = counters.entry(*node).or_default();
            if mark.counter > known.counter {
                *known = *mark;
            }
        }
        self.put_counters(counters);
        DONE
    }

    pub(super) fn register_root(&mut self, root: &RootId, node: NodeId) -> Outcome {
        if let Some(known) = self.state.roots.get(root) {
            if known.node == node {
                return DONE;
            }
            return Err(KmsError::new(
                ErrorCode::AlreadyExistsException,
                format!("root {root} belongs to node {}: a root is never shared", known.node),
            ));
        }
        if self.state.roots_of(node).count() >= ROOTS_PER_NODE_MAX {
            return Err(KmsError::new(
                ErrorCode::LimitExceededException,
                format!("node {node} has {ROOTS_PER_NODE_MAX} roots, the most allowed"),
            ));
        }
        self.put_root(Root { id: root.clone(), node });
        DONE
    }

    pub(super) fn forget_root(&mut self, node: NodeId) -> Outcome {
        // Its id is never given to another one.
        let mut counters = BTreeMap::clone(&self.state.counters);
        counters.entry(node).or_default();
        self.put_counters(counters);
        let roots: Vec<Root> = self.state.roots_of(node).cloned().collect();
        if roots.len() == self.state.roots.len() && !roots.is_empty() {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!("node {node} has the last root: without it no key could be opened again"),
            ));
        }
        for root in roots {
            self.drop_root(&root);
        }
        DONE
    }

    pub(super) fn remove_one_root(&mut self, id: &RootId) -> Outcome {
        let Some(root) = self.state.roots.get(id).cloned() else { return DONE };
        let others: Vec<RootId> = self
            .state
            .roots_of(root.node)
            .filter(|other| other.id != *id)
            .map(|other| other.id.clone())
            .collect();
        if others.is_empty() {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!("{id} is the last root of node {}: add another one first", root.node),
            ));
        }
        let missing = self.state.domain_keys.values().find(|key| {
            let copies = &key.sealed.copies;
            copies.iter().any(|copy| copy.root == *id)
                && copies.iter().all(|copy| !others.contains(&copy.root))
        });
        if let Some(key) = missing {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!(
                    "no other root of node {} has a copy of domain key {} yet: try again when `keyward root \
                     list` shows them",
                    root.node, key.sealed.id
                ),
            ));
        }
        self.drop_root(&root);
        DONE
    }

    fn drop_root(&mut self, root: &Root) {
        let keys: Vec<DomainKey> =
            self.state.domain_keys.values().map(|k| DomainKey::clone(k)).collect();
        for mut key in keys {
            let before = key.sealed.copies.len();
            key.sealed.copies.retain(|copy| copy.root != root.id);
            if key.sealed.copies.is_empty() {
                // Nobody can open it any more. It never was active (that takes a copy for each node), so
                // nothing is sealed under it.
                self.remove_domain_key(key.sealed.id);
            } else if key.sealed.copies.len() < before {
                self.put_domain_key(key);
            }
        }
        self.remove_root(root);
    }

    pub(super) fn add_domain_key(&mut self, sealed: &SealedDomainKey) -> Outcome {
        if self.state.domain_keys.contains_key(&sealed.id) {
            return DONE;
        }
        // A root that was removed meanwhile must not open it, and one that is new gets its copy once it is
        // registered.
        let mut sealed = sealed.clone();
        sealed.copies.retain(|copy| self.state.roots.contains_key(&copy.root));
        if sealed.copies.is_empty() {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!("domain key {} is sealed for no registered root", sealed.id),
            ));
        }
        self.put_domain_key(DomainKey { sealed, created: self.now });
        DONE
    }

    fn known_domain_key(&self, id: DomainKeyId) -> Result<DomainKey, KmsError> {
        self.state.domain_keys.get(&id).map(|k| DomainKey::clone(k)).ok_or_else(|| {
            KmsError::new(ErrorCode::NotFoundException, format!("no domain key {id}"))
        })
    }

    pub(super) fn add_root_copy(&mut self, id: DomainKeyId, copy: &RootCopy) -> Outcome {
        let mut key = self.known_domain_key(id)?;
        if !self.state.roots.contains_key(&copy.root) {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!("root {} is not registered: an operator adds its node first", copy.root),
            ));
        }
        if key.sealed.copies.iter().all(|known| known.root != copy.root) {
            key.sealed.copies.push(copy.clone());
            self.put_domain_key(key);
        }
        DONE
    }

    pub(super) fn activate_domain_key(&mut self, id: DomainKeyId) -> Outcome {
        let key = self.known_domain_key(id)?;
        // One copy a node is enough: its other roots get theirs when they are there.
        if let Some(node) = self.state.node_without(&key.sealed) {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                format!("node {node} has no copy of domain key {id} yet"),
            ));
        }
        let Some(facts) = self.state.region.as_deref() else { return DONE };
        let facts = RegionFacts { active_domain_key: id, ..facts.clone() };
        self.put_region(facts);
        DONE
    }
}
