//! Applying a command: a pure function of (state, command). Every change goes through [`Tx`], which
//! changes the state in memory and records the row for the store, so that the two cannot part.

mod authorities;
mod keys;
mod multi_region;
mod principals;
mod quotas;
mod region;
mod restore;

pub use restore::{Restoring, restore};

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_model::limits::{OUTCOME_KEPT_MS, OUTCOMES_KEPT_MAX};
use keyward_model::{ErrorCode, KeyId, KmsError, NodeId, Region, Timestamp};

use keyward_quota::{BucketId, Quota, QuotaName, WindowUse};

use crate::codec;
use crate::command::{Command, Envelope, Outcome, Reply};
use crate::multi_region::{MultiRegionKey, PeerRegion, Reconciliation, RegionKey};
use crate::rows::{
    Alias, DiskMark, DomainKey, ForeignPrincipal, Invitation, InvitationId, Key, OutsideAuthority,
    Principal, RegionFacts, Root, Tombstone,
};
use crate::state::{
    META_COUNTERS, META_HISTORY, META_LOST, META_OFFSET, META_QUOTAS, META_REGION, META_REGION_KEY,
    META_TIME, State,
};
use crate::store::{Batch, Table};

/// The most that the time between two commands adds to the age of outcomes: as long as a call may last, in
/// milliseconds.
const OUTCOME_GAP_MAX_MS: i64 = 60_000;

/// Changes the state, and records each changed row.
pub(crate) struct Tx<'a> {
    pub(crate) state: &'a mut State,
    batch: &'a mut Batch,
    /// Region time of this command.
    pub(crate) now: Timestamp,
}

/// Applies one command: changes `state` and adds the changed rows to `batch`. A refused command changes
/// nothing but the record of its outcome.
pub fn apply(state: &mut State, batch: &mut Batch, envelope: &Envelope) -> Outcome {
    if let Some(first) = state.outcome(&envelope.id) {
        return first.clone();
    }
    let before = state.time;
    if envelope.time > state.time {
        state.time = envelope.time;
        batch.put(Table::Meta, META_TIME, codec::encode(&state.time));
    }
    let now = state.time;
    // Time that jumps (a night without power, a clock that is moved ahead) must not make anybody's outcome old: a
    // try again would be a second change.
    let passed = (now.0 - before.0).min(OUTCOME_GAP_MAX_MS);
    let last = state.outcome_ages.last().map_or(now, |((last, _), ())| *last);
    let ran = Timestamp(last.0.saturating_add(passed));
    let mut tx = Tx { state, batch, now };
    let outcome = tx.run(&envelope.command);
    tx.keep_outcome(envelope, &outcome, ran);
    outcome
}

impl Tx<'_> {
    fn run(&mut self, command: &Command) -> Outcome {
        if self.state.region.is_none() && !matches!(command, Command::Found(_)) {
            return Err(KmsError::new(
                ErrorCode::KMSInvalidStateException,
                "this Region has not been founded yet: found it first",
            ));
        }
        match command {
            Command::Found(founding) => self.found(founding),
            Command::CreateKey { key, account, description, tags, material, token } => {
                self.create_key(*key, *account, description, tags, *material, token)
            }
            Command::SetDescription { key, description } => self.set_description(*key, description),
            Command::SetEnabled { key, enabled } => self.set_enabled(*key, *enabled),
            Command::ScheduleDeletion { key, window_days } => {
                self.schedule_deletion(*key, *window_days)
            }
            Command::CancelDeletion { key } => self.cancel_deletion(*key),
            Command::DeleteKey { key, date } => self.delete_key(*key, *date),
            Command::Invite { id, valid_ms, by } => self.invite(*id, *valid_ms, by),
            Command::UseInvitation { id, address } => self.use_invitation(id, address),
            Command::NoteCounters { counters } => self.note_counters(counters),
            Command::Recover { history, lost } => self.recover(*history, lost),
            Command::AdvanceClock { milliseconds } => self.advance_clock(*milliseconds),
            Command::CreateAlias { account, name, target } => {
                self.create_alias(*account, name, *target)
            }
            Command::UpdateAlias { account, name, target } => {
                self.update_alias(*account, name, *target)
            }
            Command::DeleteAlias { account, name } => self.delete_alias(*account, name),
            Command::Tag { key, tags } => self.tag(*key, tags),
            Command::Untag { key, tag_keys } => self.untag(*key, tag_keys),
            Command::EnableRotation { key, period_days } => {
                self.enable_rotation(*key, *period_days)
            }
            Command::DisableRotation { key } => self.disable_rotation(*key),
            Command::IntroduceMaterial { key, material, token, kind } => {
                self.introduce_material(*key, *material, token, *kind)
            }
            Command::ActivateMaterial { key, material } => self.activate_material(*key, *material),
            Command::CreatePrincipal { arn, kinds, certificate } => {
                self.create_principal(arn, *kinds, certificate.as_ref())
            }
            Command::AddCertificate { arn, serial, not_after } => {
                self.add_certificate(arn, serial, *not_after)
            }
            Command::AddAuthority { fingerprint, certificate } => {
                self.add_authority(*fingerprint, certificate)
            }
            Command::RemoveAuthority { fingerprint } => self.remove_authority(*fingerprint),
            Command::SetPrincipalDisabled { arn, disabled } => {
                self.set_principal_disabled(arn, *disabled)
            }
            Command::RevokeCertificate { arn, serial } => self.revoke_certificate(arn, serial),
            Command::RegisterRoot { root, node } => self.register_root(root, *node),
            Command::RemoveRoot { root } => self.remove_one_root(root),
            Command::ForgetRoot { node } => self.forget_root(*node),
            Command::AddDomainKey { sealed } => self.add_domain_key(sealed),
            Command::AddRootCopy { domain_key, copy } => self.add_root_copy(*domain_key, copy),
            Command::PutQuotas { quotas, profile } => self.put_quotas(quotas, *profile),
            Command::DeleteQuota { name } => self.delete_quota(name),
            Command::NoteQuotaUse { used } => self.note_quota_use(used),
            Command::ActivateDomainKey { domain_key } => self.activate_domain_key(*domain_key),
            Command::ReplicateKey { key, to, first } => self.replicate_key(*key, to, first),
            Command::OfferPrimary { key, to, offer } => self.offer_primary(*key, to, *offer),
            Command::Merge { from, cursor, told, principals, authorities } => {
                self.merge(from, cursor, told, principals, authorities)
            }
            Command::Promote { lost, keys } => self.promote(lost, keys),
            Command::SetRegionKey { key } => self.set_region_key(key),
            Command::AddRegion { peer } => self.add_region(peer),
            Command::ForgetRegion { region } => self.forget_region(region),
            Command::BeginHistory { history } => {
                self.put_history(*history);
                DONE
            }
            Command::Reconciled { key } => self.reconciled(*key),
            Command::ApplyReconciled { key, rotation, current } => {
                self.apply_reconciled(*key, *rotation, *current)
            }
        }
    }

    pub(crate) fn put_key(&mut self, key: Key) {
        self.batch.put(Table::Keys, key_row(&key), codec::encode(&key));
        let before = self.state.key(&key.id).cloned();
        let key = Arc::new(key);
        self.state.index_key(Arc::clone(&key));
        if let Some(before) = before.filter(|_| key.id.is_multi_region()) {
            self.note_shared(&before, &key);
        }
    }

    pub(crate) fn put_multi_region(&mut self, row: MultiRegionKey) {
        self.batch.put(Table::MultiRegionKeys, *row.key.bytes(), codec::encode(&row));
        self.state.index_multi_region(Arc::new(row));
    }

    pub(crate) fn put_peer_region(&mut self, peer: PeerRegion) {
        let row = peer.region.as_str().as_bytes();
        self.batch.put(Table::PeerRegions, row, codec::encode(&peer));
        Arc::make_mut(&mut self.state.peer_regions).insert(peer.region.clone(), Arc::new(peer));
    }

    pub(crate) fn remove_peer_region(&mut self, region: &Region) {
        self.batch.delete(Table::PeerRegions, region.as_str().as_bytes());
        Arc::make_mut(&mut self.state.peer_regions).remove(region);
    }

    pub(crate) fn put_region_key(&mut self, key: RegionKey) {
        self.batch.put(Table::Meta, META_REGION_KEY, codec::encode(&key));
        self.state.region_key = Some(Arc::new(key));
    }

    pub(crate) fn put_reconciliation(&mut self, entry: Reconciliation) {
        self.batch.put(Table::Reconciliations, *entry.key.bytes(), codec::encode(&entry));
        self.state.reconciliations.insert_mut(entry.key, Arc::new(entry));
    }

    pub(crate) fn remove_reconciliation(&mut self, key: &KeyId) {
        self.batch.delete(Table::Reconciliations, *key.bytes());
        self.state.reconciliations.remove_mut(key);
    }

    pub(crate) fn put_token(&mut self, material: &keyward_model::KeyMaterialId, token: &[u8]) {
        self.batch.put(Table::Tokens, material.bytes(), token.to_vec());
    }

    /// A key leaves with its tokens and aliases.
    pub(crate) fn remove_key(&mut self, key: &Key) {
        for material in &key.materials {
            self.batch.delete(Table::Tokens, material.id.bytes());
        }
        for alias in self.state.aliases_of(key) {
            self.remove_alias(&alias);
        }
        self.batch.delete(Table::Keys, key_row(key));
        self.state.forget_key(key);
    }

    pub(crate) fn put_tombstone(&mut self, tombstone: Tombstone) {
        self.batch.put(Table::Tombstones, *tombstone.key.bytes(), codec::encode(&tombstone));
        self.state.index_tombstone(Arc::new(tombstone));
    }

    pub(crate) fn put_invitation(&mut self, invitation: Invitation) {
        self.batch.put(Table::Invitations, invitation.id, codec::encode(&invitation));
        Arc::make_mut(&mut self.state.invitations).insert(invitation.id, invitation);
    }

    pub(crate) fn remove_invitation(&mut self, id: &InvitationId) {
        self.batch.delete(Table::Invitations, *id);
        Arc::make_mut(&mut self.state.invitations).remove(id);
    }

    pub(crate) fn put_recovery(&mut self, history: [u8; 16], lost: BTreeMap<NodeId, String>) {
        self.batch.put(Table::Meta, META_LOST, codec::encode(&lost));
        self.state.lost = Arc::new(lost);
        self.put_history(history);
    }

    pub(crate) fn put_history(&mut self, history: [u8; 16]) {
        self.batch.put(Table::Meta, META_HISTORY, codec::encode(&history));
        self.state.history = Some(history);
    }

    pub(crate) fn put_counters(&mut self, counters: BTreeMap<NodeId, DiskMark>) {
        self.batch.put(Table::Meta, META_COUNTERS, codec::encode(&counters));
        self.state.counters = Arc::new(counters);
    }

    pub(crate) fn put_time(&mut self, time: Timestamp) {
        self.batch.put(Table::Meta, META_TIME, codec::encode(&time));
        self.state.time = time;
    }

    pub(crate) fn put_clock_offset(&mut self, milliseconds: i64) {
        self.batch.put(Table::Meta, META_OFFSET, codec::encode(&milliseconds));
        self.state.clock_offset_ms = milliseconds;
    }

    pub(crate) fn put_alias(&mut self, alias: Alias) {
        self.batch.put(Table::Aliases, alias_row(&alias), codec::encode(&alias));
        self.state.index_alias(Arc::new(alias));
    }

    pub(crate) fn remove_alias(&mut self, alias: &Alias) {
        self.batch.delete(Table::Aliases, alias_row(alias));
        self.state.aliases.remove_mut(&(alias.account, alias.name.clone()));
        self.state.key_aliases.remove_mut(&(alias.target, alias.name.clone()));
    }

    pub(crate) fn put_principal(&mut self, principal: Principal) {
        let row = principal.arn.as_str().as_bytes();
        self.batch.put(Table::Principals, row, codec::encode(&principal));
        self.state.index_principal(Arc::new(principal));
    }

    pub(crate) fn put_foreign_principal(&mut self, row: ForeignPrincipal) {
        let slot = codec::encode(&(&row.principal.arn, row.home_id));
        self.batch.put(Table::ForeignPrincipals, slot, codec::encode(&row));
        self.state.index_foreign_principal(Arc::new(row));
    }

    pub(crate) fn put_authority(&mut self, row: OutsideAuthority) {
        let slot = codec::encode(&(row.fingerprint, row.home_id));
        self.batch.put(Table::Authorities, slot, codec::encode(&row));
        self.state.index_authority(Arc::new(row));
    }

    pub(crate) fn put_region(&mut self, facts: RegionFacts) {
        self.batch.put(Table::Meta, META_REGION, codec::encode(&facts));
        self.state.region = Some(Arc::new(facts));
    }

    pub(crate) fn put_domain_key(&mut self, key: DomainKey) {
        self.batch.put(Table::DomainKeys, *key.sealed.id.bytes(), codec::encode(&key));
        Arc::make_mut(&mut self.state.domain_keys).insert(key.sealed.id, Arc::new(key));
    }

    pub(crate) fn remove_domain_key(&mut self, id: keyward_model::DomainKeyId) {
        self.batch.delete(Table::DomainKeys, *id.bytes());
        Arc::make_mut(&mut self.state.domain_keys).remove(&id);
    }

    pub(crate) fn put_root(&mut self, root: Root) {
        self.batch.put(Table::Roots, root.id.as_str().as_bytes(), codec::encode(&root));
        Arc::make_mut(&mut self.state.roots).insert(root.id.clone(), root);
    }

    pub(crate) fn remove_root(&mut self, root: &Root) {
        self.batch.delete(Table::Roots, root.id.as_str().as_bytes());
        Arc::make_mut(&mut self.state.roots).remove(&root.id);
    }

    pub(crate) fn put_quota(&mut self, quota: Quota) {
        self.batch.put(Table::Quotas, codec::encode(&quota.name), codec::encode(&quota));
        self.state.quotas.insert_mut(quota.name.clone(), Arc::new(quota));
    }

    pub(crate) fn remove_quota(&mut self, name: &QuotaName) {
        self.batch.delete(Table::Quotas, codec::encode(name));
        self.state.quotas.remove_mut(name);
    }

    pub(crate) fn put_quotas_revision(&mut self, revision: u64) {
        self.batch.put(Table::Meta, META_QUOTAS, codec::encode(&revision));
        self.state.quotas_revision = revision;
    }

    pub(crate) fn put_quota_use(&mut self, bucket: &BucketId, used: WindowUse) {
        let row = codec::encode(&(bucket, used));
        self.batch.put(Table::QuotaUse, codec::encode(bucket), row);
        self.state.quota_use.insert_mut(bucket.clone(), used);
    }

    pub(crate) fn remove_quota_use(&mut self, bucket: &BucketId) {
        self.batch.delete(Table::QuotaUse, codec::encode(bucket));
        self.state.quota_use.remove_mut(bucket);
    }

    /// Remembers the outcome, and forgets those that are too old or too many. `ran` is the time that
    /// they age by.
    fn keep_outcome(&mut self, envelope: &Envelope, outcome: &Outcome, ran: Timestamp) {
        let kept = (ran, outcome.clone());
        self.batch.put(Table::Outcomes, envelope.id, codec::encode(&kept));
        self.state.outcomes.insert_mut(envelope.id, Arc::new(kept));
        self.state.outcome_ages.insert_mut((ran, envelope.id), ());
        while let Some(&(time, id)) = self.state.outcome_ages.first().map(|(age, ())| age) {
            let old = time.0 + OUTCOME_KEPT_MS < ran.0;
            if !old && self.state.outcomes.size() <= OUTCOMES_KEPT_MAX {
                break;
            }
            self.state.outcome_ages.remove_mut(&(time, id));
            self.state.outcomes.remove_mut(&id);
            self.batch.delete(Table::Outcomes, id);
        }
    }
}

fn key_row(key: &Key) -> Vec<u8> {
    let mut row = vec![u8::from(key.id.is_multi_region())];
    row.extend_from_slice(key.id.bytes());
    row
}

fn alias_row(alias: &Alias) -> Vec<u8> {
    format!("{}/{}", alias.account, alias.name).into_bytes()
}

pub(crate) const DONE: Outcome = Ok(Reply::Done);
