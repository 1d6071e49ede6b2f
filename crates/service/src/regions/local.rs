//! What `keyward_regions` needs of this Region to take over what others tell.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{ErrorCode, KeyId, KeyMaterialId, KmsError, Operation};
use keyward_raft::BoxFuture;
use keyward_regions::{About, Links, Local, Page, RegionTransport, SealedMaterial};
use keyward_state::{Command, KeyView, MultiRegionKey, PeerRegion, SealedToken, State};

use super::STEP;
use crate::authority::signing_request;
use crate::kms::{Kms, hsm_refused, internal, not_founded};

impl<E: Env> Local for Kms<E> {
    type Env = E;

    fn env(&self) -> &E {
        self.node.env()
    }

    fn state(&self) -> Arc<State> {
        self.node.state()
    }

    fn leads(&self) -> bool {
        // Until a recovery is in the state, changes would be told, and taken for known, in the history that it ends.
        self.node.leads() && !self.node.is_stopped() && !self.node.recovers()
    }

    fn region_now_ms(&self) -> i64 {
        self.node.region_now().0
    }

    fn links(&self) -> &Links {
        &self.regions.links
    }

    fn delay(&self, state: &State, view: &KeyView) -> Duration {
        let delays = self.regions.delays.get().copied().unwrap_or_default();
        let here = state.multi_region(&view.key).and_then(|row| row.here.as_ref());
        match (here, &view.shared) {
            (None, _) => delays.replica,
            (Some(here), Some(told))
                if told.version.epoch != here.version.epoch || told.offer != here.offer =>
            {
                delays.primary
            }
            _ => delays.change,
        }
    }

    fn change(&self, command: Command) -> BoxFuture<'_, Result<(), KmsError>> {
        Box::pin(async move {
            let deadline = self.node.env().boot_now() + STEP;
            let synchronised: Vec<KeyId> = match &command {
                Command::Merge { told, .. } => told.iter().map(|one| one.view.key).collect(),
                _ => Vec::new(),
            };
            let before = self.node.state();
            Self::change(self, deadline, command).await?;
            let state = self.node.state();
            self.charge_for(&before, &state, &synchronised).await;
            for key in synchronised {
                // AWS's name for it in CloudTrail.
                self.note_event("SynchronizeMultiRegionKey", &state, key, &[]);
            }
            Ok(())
        })
    }

    fn is_behind_what_was_told(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut history = [0; 16];
            self.entropy.fill(&mut history);
            tracing::error!(
                history = hex::encode(history),
                "another Region has been told more than this one has: its disks are older than what it had \
                 acknowledged. It begins a new history"
            );
            let begun = Self::change(
                self,
                self.node.env().boot_now() + STEP,
                Command::BeginHistory { history },
            );
            if let Err(error) = begun.await {
                tracing::warn!(%error, "no new history could be begun; it is tried again");
            }
        })
    }

    fn fence(&self) -> BoxFuture<'_, Result<(), KmsError>> {
        Box::pin(async move {
            self.node.fence_all(STEP).await.map_err(|error| {
                KmsError::new(ErrorCode::DependencyTimeoutException, error.to_string())
            })
        })
    }

    fn import<'a>(
        &'a self,
        peer: &'a PeerRegion,
        page: &'a Page,
        view: &'a KeyView,
        sealed: Vec<SealedMaterial>,
    ) -> BoxFuture<'a, Result<Vec<(KeyMaterialId, SealedToken)>, KmsError>> {
        Box::pin(async move {
            let state = self.node.state();
            let facts = state.region.as_ref().ok_or_else(not_founded)?;
            let Some(shared) = &view.shared else { return Ok(Vec::new()) };
            let own = self.own_region_key(&state).await?;
            let domain = self.active_domain_key(&state).await?;
            let mut tokens = Vec::with_capacity(sealed.len());
            for SealedMaterial { material, message } in sealed {
                let about = About {
                    source: &peer.region,
                    history: page.history,
                    target: &facts.region,
                    target_id: facts.region_id,
                    key: view.key,
                    material,
                    version: &shared.version,
                };
                let token = self
                    .hsm
                    .import_material(
                        &own,
                        &peer.public_key,
                        view.key,
                        material,
                        &message,
                        &about.bytes(),
                        domain,
                    )
                    .map_err(|e| hsm_refused(&e))?;
                tokens.push((material, token));
            }
            if on(Bug::TokensMixedUp)
                && let [(_, first), .., (_, last)] = &mut tokens[..]
            {
                std::mem::swap(first, last);
            }
            Ok(tokens)
        })
    }

    fn identify<'a>(
        &'a self,
        transport: &'a dyn RegionTransport,
    ) -> BoxFuture<'a, Result<(), KmsError>> {
        Box::pin(async move {
            if !transport.wants_identity(self.now().0) {
                return Ok(());
            }
            let state = self.node.state();
            let facts = state.region.as_ref().ok_or_else(not_founded)?;
            let broken = |what: &dyn std::fmt::Display| internal("no link certificate", what);
            let (key, request) = signing_request().map_err(|e| broken(&e))?;
            let authority = self.authority(&state).await?;
            let issued = authority
                .issue_region(&request, &facts.region, facts.region_id, &*self.entropy, self.now())
                .map_err(|e| broken(&e))?;
            transport.take_identity(&issued.certificate, &key).map_err(|e| broken(&e))
        })
    }
}

impl<E: Env> Kms<E> {
    /// Replicas that were made here, and primaries that came here, count against this Region's quotas too: two CreateKey
    /// and one UpdatePrimaryRegion (AWS KMS developer guide, "Request quotas").
    async fn charge_for(&self, before: &State, after: &State, keys: &[KeyId]) {
        if after.quotas().next().is_none() {
            return;
        }
        let me = after.region.as_ref().map(|facts| &facts.region);
        let is_primary = |state: &State, key| {
            let row: Option<&Arc<MultiRegionKey>> = state.multi_region(key);
            row.is_some_and(|row| row.primary() == me)
        };
        for id in keys {
            let Some(key) = after.key(id) else { continue };
            let (operation, calls) = match before.key(id) {
                None => (Operation::CreateKey, 2),
                Some(_) if is_primary(after, id) && !is_primary(before, id) => {
                    (Operation::UpdatePrimaryRegion, 1)
                }
                Some(_) => continue,
            };
            self.charge(key.account, operation, calls).await;
        }
    }
}
