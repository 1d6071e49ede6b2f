//! What a node does by itself: opens and fetches domain keys for its own root; and, while it leads,
//! completes rotations, begins those that are due, and rotates the domain key.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_audit::Value;
use keyward_env::Env;
use keyward_model::{DomainKeyId, ErrorCode, KmsError, NodeId, Timestamp};
use keyward_state::{Command, RotationKind, State};

use crate::kms::{Kms, hsm_refused, internal};
use crate::operator::refused;
use crate::peer::{App, AppRequest, AppResponse};

/// Between rounds.
const ROUND: Duration = Duration::from_millis(250);
/// How long one step of a round may take.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// A change of the voters that has been under way for so many rounds was left half done.
const LEFT_HALF_DONE: u32 = 12;
/// Rotations completed or begun in one round at most: a round stays short.
const ROTATIONS_A_ROUND: usize = 32;
/// The domain key is rotated when it is this old.
const DOMAIN_KEY_LIFE_MS: i64 = Timestamp::DAY_MS;

impl<E: Env> Kms<E> {
    /// Connects the service to its node and starts its housekeeping.
    pub fn start(self: &Arc<Self>) {
        self.node.set_app(Arc::new(App(Arc::downgrade(self))));
        let this = Arc::clone(self);
        self.node.env().spawn(async move { this.keep_house().await });
        let this = Arc::clone(self);
        self.node.env().spawn(async move { this.keep_memory_clean().await });
        self.node.env().spawn(Arc::clone(self).ask_for_shares());
        self.node.env().spawn(Arc::clone(self).keep_quotas());
        self.node.env().spawn(Arc::clone(self).keep_links());
    }

    /// Material of deleted keys leaves memory. By itself: a round of housekeeping may have to wait for others.
    async fn keep_memory_clean(self: Arc<Self>) {
        while !self.node.is_stopped() {
            self.evict_deleted(&self.node.state());
            self.node.env().sleep(ROUND).await;
        }
    }

    async fn keep_house(self: Arc<Self>) {
        while !self.node.is_stopped() {
            self.round().await;
            self.node.env().sleep(ROUND).await;
        }
    }

    /// One round. A step that fails is tried again in the next round and keeps no other from its turn.
    async fn round(self: &Arc<Self>) {
        let state = self.node.state();
        let Some(facts) = &state.region else { return };
        let mut results = vec![
            self.fetch_domain_keys(&state).await,
            self.open_domain_key(&state, facts.active_domain_key).await,
            self.settle_roots(&state).await,
        ];
        self.hand_over_unrecorded().await;
        if self.for_good {
            results.push(self.ask_for_vote(&state).await);
        }
        if self.node.leads() {
            results.push(self.complete_voters_change().await);
            self.execute_deletions(&state).await;
            results.push(self.complete_rotations(&state).await);
            self.begin_rotations(&state).await;
            results.push(self.rotate_old_domain_key(&state).await);
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "housekeeping tries again");
        }
    }

    /// A node that cannot write its audit trail serves nothing, so it must not lead.
    async fn hand_over_unrecorded(&self) {
        let Some(why) = self.audit.failing() else { return };
        let others = self.node.members().iter().any(|m| m.voter && m.node != self.node.id());
        if self.node.leads() && others {
            tracing::error!(%why, "the audit trail cannot be written: leadership is handed over");
            if let Err(error) = self.node.transfer(None, STEP_PATIENCE / 5).await {
                tracing::warn!(%error, "leadership was not handed over");
            }
        }
    }

    /// Domain keys that this node's root has no copy of come from the HSM of a node that has one, sealed to
    /// ours.
    async fn fetch_domain_keys(&self, state: &State) -> Result<(), KmsError> {
        let root = &self.hsm.root_id();
        if state.roots.get(root).is_none_or(|registered| registered.node != self.node.id()) {
            return Ok(());
        }
        for id in state.domain_keys_without(root) {
            // One that is open here needs nobody's help.
            if self.hsm.has_domain_key(id) {
                continue;
            }
            let copies = state.domain_keys.get(&id).map(|key| key.sealed.copies.as_slice());
            let mut holders = Vec::new();
            for copy in copies.unwrap_or_default() {
                holders.extend(state.roots.get(&copy.root).map(|root| root.node));
            }
            for holder in holders {
                if self.fetch_domain_key(id, holder).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Asks one node for one domain key. False: it did not hand it over; another one may.
    async fn fetch_domain_key(&self, id: DomainKeyId, holder: NodeId) -> Result<bool, KmsError> {
        let members = self.node.members();
        let Some(member) = members.iter().find(|member| member.node == holder) else {
            return Ok(false);
        };
        let (secret, request) = self.hsm.reseal_request();
        let request = AppRequest::Reseal { request, domain_keys: vec![id] };
        let answer = self.ask_peer(holder, &member.address, &request, STEP_PATIENCE).await;
        let sealed = match answer {
            Ok(AppResponse::Resealed(sealed)) => sealed,
            Ok(_) => return Ok(false),
            Err(why) => {
                tracing::debug!(holder, %why, "a domain key was not handed over");
                return Ok(false);
            }
        };
        let Some((_, bytes)) = sealed.into_iter().find(|(resealed, _)| *resealed == id) else {
            return Ok(false);
        };
        let copy = self
            .hsm
            .import_domain_key(id, &secret, &bytes)
            .await
            .map_err(|e| internal("a domain key could not be taken over", &e))?;
        self.change(self.step_end(), Command::AddRootCopy { domain_key: id, copy }).await?;
        Ok(true)
    }

    pub(crate) fn step_end(&self) -> Duration {
        self.node.env().boot_now() + STEP_PATIENCE
    }

    /// A leader that dies between the two steps of a change leaves two sets of voters in force, and the loss of one
    /// node of the smaller one could stop the Region. A change that is under way here is left to whoever makes it:
    /// only one that has been so for a while is completed.
    async fn complete_voters_change(&self) -> Result<(), KmsError> {
        let rounds = self.rounds_of_change.load(Ordering::Relaxed) + 1;
        let rounds = if self.node.voters_change() { rounds } else { 0 };
        self.rounds_of_change.store(rounds, Ordering::Relaxed);
        if rounds < LEFT_HALF_DONE {
            return Ok(());
        }
        tracing::warn!("a change of the voters was left half done: it is completed");
        self.node.complete_voters_change().await.map_err(refused)
    }

    /// Rotations whose second half is missing: their first half is fenced now, then they complete.
    async fn complete_rotations(&self, state: &State) -> Result<(), KmsError> {
        let mut open = state.rotations_open(usize::MAX);
        // A material encrypts once every Region that has the key has it too.
        open.retain(|key| self.replicas_have(state, *key));
        open.truncate(ROTATIONS_A_ROUND);
        if open.is_empty() {
            return Ok(());
        }
        self.node.fence_all(STEP_PATIENCE).await.map_err(|error| {
            KmsError::new(ErrorCode::DependencyTimeoutException, error.to_string())
        })?;
        for key in open {
            let Some(material) = state.key(&key).and_then(|key| key.introduced().cloned()) else {
                continue;
            };
            let command = Command::ActivateMaterial { key, material: material.id };
            self.change(self.step_end(), command).await?;
        }
        Ok(())
    }

    async fn begin_rotations(&self, state: &State) {
        let now = self.node.region_now();
        for key in state.rotations_due(now, ROTATIONS_A_ROUND) {
            let introduced =
                self.introduce(state, self.step_end(), key, RotationKind::Automatic).await;
            if let Err(error) = introduced {
                tracing::warn!(%key, %error, "an automatic rotation did not begin");
            } else {
                self.note_event(
                    "RotateKey",
                    state,
                    key,
                    &[("rotationType", Value::Str("AUTOMATIC"))],
                );
            }
        }
    }

    async fn rotate_old_domain_key(&self, state: &State) -> Result<(), KmsError> {
        let Some(facts) = &state.region else { return Ok(()) };
        let newest = state.domain_keys.values().max_by_key(|key| (key.created, key.sealed.id));
        let Some(newest) = newest else { return Ok(()) };
        let now = self.node.region_now();
        let old = now.0 - newest.created.0 >= DOMAIN_KEY_LIFE_MS;
        // One that has waited for a whole life waits for a node that does not come: another is made.
        if newest.sealed.id != facts.active_domain_key && !old {
            let active = state.domain_keys.get(&facts.active_domain_key);
            if active.is_some_and(|active| active.created > newest.created) {
                return Ok(());
            }
            // Introduced and not yet active: as soon as every node has its copy.
            if state.node_without(&newest.sealed).is_none() {
                self.node.fence_all(STEP_PATIENCE).await.map_err(|error| {
                    KmsError::new(ErrorCode::DependencyTimeoutException, error.to_string())
                })?;
                let command = Command::ActivateDomainKey { domain_key: newest.sealed.id };
                self.change(self.step_end(), command).await?;
            }
            return Ok(());
        }
        if old {
            self.introduce_domain_key(self.step_end()).await?;
        }
        Ok(())
    }

    /// First half of a domain-key rotation. The second half follows once every node has its copy.
    pub(crate) async fn introduce_domain_key(
        &self,
        deadline: Duration,
    ) -> Result<DomainKeyId, KmsError> {
        let sealed = self.hsm.generate_domain_key().await.map_err(|e| hsm_refused(&e))?;
        let id = sealed.id;
        self.change(deadline, Command::AddDomainKey { sealed }).await?;
        Ok(id)
    }

    /// Waits until a domain key is the active one.
    pub(crate) async fn await_active(
        &self,
        id: DomainKeyId,
        deadline: Duration,
    ) -> Result<(), KmsError> {
        let env = self.node.env();
        loop {
            let state = self.node.state();
            if state.region.as_ref().is_some_and(|facts| facts.active_domain_key == id) {
                return Ok(());
            }
            if env.boot_now() >= deadline {
                let waits_for =
                    state.domain_keys.get(&id).and_then(|key| state.node_without(&key.sealed));
                let why = match waits_for {
                    Some(node) => format!("node {node} has not fetched it yet: is it up?"),
                    None => "it is about to".to_owned(),
                };
                return Err(KmsError::unknown_outcome(format!(
                    "domain key {id} was made and becomes active by itself; {why}"
                )));
            }
            env.sleep(ROUND / 5).await;
        }
    }
}
