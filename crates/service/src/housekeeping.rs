//! What a node does by itself: opens and fetches domain keys for its own root; and, while it leads,
//! completes rotations, begins those that are due, and rotates the domain key.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{DomainKeyId, ErrorCode, KmsError, Timestamp};
use keyward_state::{Command, RotationKind, State, codec};

use crate::kms::{Kms, internal};
use crate::peer::{App, AppRequest, AppResponse};

/// Between rounds.
const ROUND: Duration = Duration::from_millis(250);
/// How long one step of a round may take.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// Rotations completed or begun in one round at most: a round stays short.
const ROTATIONS_A_ROUND: usize = 32;
/// The domain key is rotated when it is this old.
const DOMAIN_KEY_LIFE_MS: i64 = Timestamp::DAY_MS;

impl<E: Env> Kms<E> {
    /// Connects the service to its node and starts its housekeeping.
    pub fn start(self: &Arc<Self>) {
        self.node.set_app(Arc::new(App(Arc::clone(self))));
        let this = Arc::clone(self);
        self.node.env().spawn(async move { this.keep_house().await });
    }

    async fn keep_house(self: Arc<Self>) {
        while !self.node.is_stopped() {
            if let Err(error) = self.round().await {
                tracing::debug!(%error, "housekeeping tries again");
            }
            self.node.env().sleep(ROUND).await;
        }
    }

    async fn round(self: &Arc<Self>) -> Result<(), KmsError> {
        let state = self.node.state();
        let Some(facts) = &state.region else { return Ok(()) };
        self.fetch_domain_keys(&state).await?;
        self.open_domain_key(&state, facts.active_domain_key).await?;
        if self.node.leads() {
            self.complete_rotations(&state).await?;
            self.begin_rotations(&state).await?;
            self.rotate_old_domain_key(&state).await?;
        }
        Ok(())
    }

    /// Domain keys that this node's root has no copy of come from the leader's HSM, sealed to ours.
    async fn fetch_domain_keys(&self, state: &State) -> Result<(), KmsError> {
        let root = self.hsm.root_id();
        if state.root_of(self.node.id()).is_none_or(|registered| registered.id != *root) {
            return Ok(());
        }
        let missing = state.domain_keys_without(root);
        if missing.is_empty() {
            return Ok(());
        }
        let failed = |why: String| internal("domain keys could not be fetched", &why);
        let (secret, request) = self.hsm.reseal_request();
        let request = AppRequest::Reseal { request, domain_keys: missing };
        let answer = self
            .node
            .ask_leader_app(codec::encode(&request), STEP_PATIENCE)
            .await
            .and_then(|bytes| codec::decode(&bytes).map_err(|e| e.to_string()))
            .map_err(|why| KmsError::new(ErrorCode::DependencyTimeoutException, why))?;
        let AppResponse::Resealed(sealed) = answer else {
            return Err(failed("an answer of another kind".to_owned()));
        };
        for (id, bytes) in sealed {
            let copy = self
                .hsm
                .import_domain_key(id, &secret, &bytes)
                .await
                .map_err(|e| failed(e.to_string()))?;
            self.change(self.step_end(), Command::AddRootCopy { domain_key: id, copy }).await?;
        }
        Ok(())
    }

    fn step_end(&self) -> Duration {
        self.node.env().boot_now() + STEP_PATIENCE
    }

    /// Rotations whose second half is missing: their first half is fenced now, then they complete.
    async fn complete_rotations(&self, state: &State) -> Result<(), KmsError> {
        let open = state.rotations_open(ROTATIONS_A_ROUND);
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

    async fn begin_rotations(&self, state: &State) -> Result<(), KmsError> {
        let now = Timestamp(self.node.env().wall_now_ms());
        for key in state.rotations_due(now, ROTATIONS_A_ROUND) {
            let introduced =
                self.introduce(state, self.step_end(), key, RotationKind::Automatic).await;
            if let Err(error) = introduced {
                tracing::warn!(%key, %error, "an automatic rotation did not begin");
            }
        }
        Ok(())
    }

    async fn rotate_old_domain_key(&self, state: &State) -> Result<(), KmsError> {
        let Some(facts) = &state.region else { return Ok(()) };
        let newest = state.domain_keys.values().max_by_key(|key| (key.created, key.sealed.id));
        let Some(newest) = newest else { return Ok(()) };
        if newest.sealed.id != facts.active_domain_key {
            let active = state.domain_keys.get(&facts.active_domain_key);
            if active.is_some_and(|active| active.created > newest.created) {
                return Ok(());
            }
            // Introduced and not yet active: as soon as every root has its copy.
            let everywhere = state
                .roots
                .keys()
                .all(|root| newest.sealed.copies.iter().any(|copy| copy.root == *root));
            if everywhere {
                self.node.fence_all(STEP_PATIENCE).await.map_err(|error| {
                    KmsError::new(ErrorCode::DependencyTimeoutException, error.to_string())
                })?;
                let command = Command::ActivateDomainKey { domain_key: newest.sealed.id };
                self.change(self.step_end(), command).await?;
            }
            return Ok(());
        }
        let now = Timestamp(self.node.env().wall_now_ms());
        if now.0 - newest.created.0 >= DOMAIN_KEY_LIFE_MS {
            self.introduce_domain_key(self.step_end()).await?;
        }
        Ok(())
    }

    /// First half of a domain-key rotation. The second half follows once every root has its copy.
    pub(crate) async fn introduce_domain_key(
        &self,
        deadline: Duration,
    ) -> Result<DomainKeyId, KmsError> {
        let sealed =
            self.hsm.generate_domain_key().await.map_err(|e| internal("the HSM refused", &e))?;
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
                let waits_for = state.domain_keys.get(&id).and_then(|key| {
                    state
                        .roots
                        .values()
                        .find(|root| key.sealed.copies.iter().all(|copy| copy.root != root.id))
                        .map(|root| root.node)
                });
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
