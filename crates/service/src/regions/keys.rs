//! Multi-Region keys, for those who administer them.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{ErrorCode, KeyId, KeyState, KmsError, Region, key_arn};
use keyward_regions::Local;
use keyward_state::{ChangeToken, Command, First, State};

use super::{WAITING_LOOK, region_name};
use crate::api::{
    GetKeyReplicationStatus, KeyMetadata, MultiRegionConfiguration, RegionalKey, ReplicateKey,
    ReplicationStatus, Response, UpdatePrimaryRegion, WaitForChange,
};
use crate::kms::{Kms, Serving};
use crate::peer::LeaderCommand;
use crate::resolve::{self, Forms};

impl<E: Env> Kms<E> {
    pub(crate) async fn replicate_key(
        &self,
        s: &Serving<'_>,
        request: &ReplicateKey,
    ) -> Result<Response, KmsError> {
        let description = request.description.clone().unwrap_or_default();
        resolve::description(&description)?;
        let tags = resolve::tags(&request.tags)?;
        if request.policy.is_some() {
            return Err(KmsError::new(
                ErrorCode::UnsupportedOperationException,
                "key policies are not offered by this version: leave Policy out",
            ));
        }
        let to = region_name(&request.replica_region)?;
        let permitted = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?;
        let first = First { description: description.clone(), tags };
        let command = Command::ReplicateKey { key: permitted.key.id, to: to.clone(), first };
        self.change(s.deadline, command).await?;
        let state = self
            .state_with(s, |state| {
                state
                    .multi_region(&permitted.key.id)
                    .and_then(|row| row.here.as_ref())
                    .is_some_and(|here| here.related.contains_key(&to))
            })
            .await;
        let key = &permitted.key;
        Ok(Response::Replicated(Box::new(KeyMetadata {
            account: key.account.to_string(),
            key_id: key.id.to_string(),
            arn: key_arn(&to, key.account, key.id),
            creation_date: self.now(),
            description,
            state: KeyState::Creating,
            deletion_date: None,
            pending_window_days: None,
            current_key_material_id: key.current_material().id.to_string(),
            multi_region: configuration(&state, key),
        })))
    }

    pub(crate) async fn update_primary_region(
        &self,
        s: &Serving<'_>,
        request: &UpdatePrimaryRegion,
    ) -> Result<Response, KmsError> {
        let to = region_name(&request.primary_region)?;
        let key = self.usable_key(s, &request.key_id, "keyId", Forms::Key)?.key.id;
        let mut offer = [0; 16];
        self.entropy.fill(&mut offer);
        self.change(s.deadline, Command::OfferPrimary { key, to, offer }).await?;
        Ok(Response::Done)
    }

    /// How far each Region is with a key. A leader alone knows; other nodes ask it.
    pub(crate) async fn get_key_replication_status(
        self: &Arc<Self>,
        s: &Serving<'_>,
        request: &GetKeyReplicationStatus,
    ) -> Result<Response, KmsError> {
        let permitted = self.permitted_key(s, &request.key_id, "keyId", Forms::Key)?;
        let none = || {
            KmsError::new(
                ErrorCode::UnsupportedOperationException,
                format!("{} is not a multi-region key.", permitted.arn),
            )
        };
        let row = s.state.multi_region(&permitted.key.id).ok_or_else(none)?;
        let here = row.here.as_ref().ok_or_else(none)?;
        let patience = s.deadline.saturating_sub(self.node.env().boot_now());
        let links = self.told_links(patience).await?;
        let age = self.node.region_now().0 - row.changed_at.0;
        let of = |region: &Region, being_made: bool| {
            let link = links.iter().find(|link| link.region == *region);
            let peer = s.state.peer_region(region);
            let taken = link.filter(|link| link.taken.history == s.state.history_id());
            let has_all =
                region == s.region || taken.is_some_and(|link| link.taken.index >= row.changed);
            RegionalKey {
                region: region.to_string(),
                arn: key_arn(region, permitted.key.account, permitted.key.id),
                primary: *region == here.version.epoch.region,
                being_made,
                up_to_date: has_all,
                behind_ms: (!has_all).then_some(u64::try_from(age.max(0)).unwrap_or(0)),
                endpoints: peer.map(|peer| peer.endpoints.clone()).unwrap_or_default(),
                ca_certificate: peer.map(|peer| peer.ca_certificate.clone()).unwrap_or_default(),
            }
        };
        let regions = here.related.iter().map(|(region, r)| of(region, r.first.is_some()));
        Ok(Response::Replication(Box::new(ReplicationStatus {
            key_arn: permitted.arn.clone(),
            epoch: here.version.epoch.number,
            primary_region: here.version.epoch.region.to_string(),
            offered_to: here.offer.as_ref().map(|offer| offer.to.to_string()),
            rotation_waits: permitted.key.introduced().is_some(),
            regions: regions.collect(),
            change: s
                .state
                .change_token(row.changed)
                .map(|change| change.to_string())
                .unwrap_or_default(),
        })))
    }

    /// Waits until a change of another Region has come to every node of this one.
    pub(crate) async fn wait_for_change(
        self: &Arc<Self>,
        s: &Serving<'_>,
        request: &WaitForChange,
    ) -> Result<Response, KmsError> {
        let change: ChangeToken = request.change.parse()?;
        if change.region != *s.region {
            if s.state.peer_region(&change.region).is_none() {
                return Err(KmsError::new(
                    ErrorCode::NotFoundException,
                    format!("this Region has no link with {}", change.region),
                ));
            }
            let patience = s.deadline.saturating_sub(self.node.env().boot_now());
            self.have_led(LeaderCommand::WaitForChange(change), patience).await?;
            return Ok(Response::Done);
        }
        if change.history != s.state.history_id() || change.index > s.state.feed_head() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                "that change is of an earlier life of this Region: it was recovered or restored since",
            ));
        }
        Ok(Response::Done)
    }

    /// The leader's part of it: it takes over what others tell, and knows when that is fenced.
    pub(crate) async fn lead_waiting(
        &self,
        change: &ChangeToken,
        deadline: Duration,
    ) -> Result<(), KmsError> {
        loop {
            let state = self.node.state();
            let cursor = state.peer_region(&change.region).map(|peer| peer.cursor);
            if cursor.is_some_and(|at| at.history == change.history && at.index >= change.index) {
                return Local::fence(self).await;
            }
            if self.node.env().boot_now() + WAITING_LOOK >= deadline {
                let why = match cursor {
                    Some(at) if at.history != change.history => {
                        "another line of that Region's life is what is known here".to_owned()
                    }
                    Some(at) => format!("number {} is the last one that has come", at.index),
                    None => "the link was given up meanwhile".to_owned(),
                };
                return Err(KmsError::new(
                    ErrorCode::DependencyTimeoutException,
                    format!(
                        "change {} of {} has not come yet: {why}; `keyward region status` shows the link",
                        change.index, change.region
                    ),
                ));
            }
            self.node.env().sleep(WAITING_LOOK).await;
        }
    }

    /// Whether every Region that has the key has taken over its last change, and fenced it; and its primary stays here.
    pub(crate) fn replicas_have(&self, state: &State, key: KeyId) -> bool {
        let (Some(row), Some(facts)) = (state.multi_region(&key), &state.region) else {
            return true;
        };
        let Some(here) = &row.here else { return true };
        if here.offer.is_some() || here.waits_for.is_some() {
            return false;
        }
        if on(Bug::RotationBeforeReplicas) {
            return true;
        }
        let lost = |region: &Region| {
            on(Bug::RotationWithoutTheLost) && self.regions.links.of(region).failing.is_some()
        };
        here.related
            .keys()
            .filter(|region| **region != facts.region && !lost(region))
            .all(|region| self.regions.links.has_taken(region, state, row.changed))
    }
}

/// What DescribeKey tells of a multi-Region key.
pub(crate) fn configuration(
    state: &State,
    key: &keyward_state::Key,
) -> Option<MultiRegionConfiguration> {
    let here = state.multi_region(&key.id)?.here.as_ref()?;
    let primary = &here.version.epoch.region;
    let of = |region: &Region| (key_arn(region, key.account, key.id), region.to_string());
    Some(MultiRegionConfiguration {
        primary: of(primary),
        replicas: here.related.keys().filter(|region| *region != primary).map(of).collect(),
    })
}
