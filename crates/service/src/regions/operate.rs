//! What operators do about other Regions: links, promotion, failover, reconciliation.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{ErrorCode, KeyId, KeyState, KmsError, Region, Timestamp};
use keyward_regions::LinkStatus;
use keyward_state::{
    ChangeToken, Command, Cursor, First, MultiRegionKey, PeerRegion, Reconciliation, RegionKey,
    State,
};

use super::{
    ALIVE, Decision, ENDPOINTS_MAX, OFFERS_AT_ONCE, PROMOTED_AT_ONCE, RegionCard, RegionsStatus,
    SeenLink, ToldLink, region_name,
};
use crate::api::Caller;
use crate::authority;
use crate::kms::{Kms, hsm_refused, internal, not_founded};
use crate::operator::{host_of, refused};
use crate::peer::{LeaderCommand, LeaderReply};

impl<E: Env> Kms<E> {
    /// This Region's card, to be added in another one.
    pub async fn region_card(
        self: &Arc<Self>,
        caller: &Caller,
        patience: Duration,
    ) -> Result<RegionCard, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let state = self.operator(caller, patience).await?;
        if state.region_key.is_none() {
            let domain = self.active_domain_key(&state).await?;
            let (public_key, private_key) =
                self.hsm.generate_transfer_key(domain).map_err(|e| hsm_refused(&e))?;
            let key = RegionKey { public_key, private_key };
            self.change(deadline, Command::SetRegionKey { key }).await?;
        }
        let state = self.node.admit(self.left(deadline)).await.unwrap_or(state);
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let key = state.region_key.as_ref().ok_or_else(|| {
            KmsError::unknown_outcome("the Region's key was made; this node has yet to learn it")
        })?;
        let issued = self
            .authority(&state)
            .await?
            .attest_region_key(
                &key.public_key,
                &facts.region,
                facts.region_id,
                &*self.entropy,
                self.now(),
            )
            .map_err(|e| internal("the Region's key could not be attested", &e))?;
        Ok(RegionCard {
            region: facts.region.clone(),
            region_id: facts.region_id,
            ca_certificate: facts.ca_certificate.clone(),
            attestation: issued.certificate,
            endpoints: self.node.members().into_iter().map(|member| member.address).collect(),
        })
    }

    /// Approves another Region by its card, or what has changed of it.
    pub async fn add_region(
        self: &Arc<Self>,
        caller: &Caller,
        ca_certificate: Vec<u8>,
        attestation: &[u8],
        endpoints: Vec<String>,
        patience: Duration,
    ) -> Result<(Region, [u8; 16]), KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            return Err(KmsError::validation(format!(
                "{} endpoints of the other Region: expected 1 to {ENDPOINTS_MAX}, as host:port",
                endpoints.len()
            )));
        }
        endpoints.iter().try_for_each(|endpoint| host_of(endpoint).map(drop))?;
        let attested = authority::attested(attestation, &ca_certificate)?;
        // A key that nothing can be sealed to is told now, and not when it is needed.
        if attested.public_key.len() != 65 {
            return Err(KmsError::validation(
                "the card's public key is not an uncompressed P-256 point",
            ));
        }
        // Its own side of the link needs a key too.
        self.region_card(caller, patience).await?;
        let peer = PeerRegion {
            region: attested.region.clone(),
            region_id: attested.region_id,
            ca_certificate,
            public_key: attested.public_key,
            endpoints,
            approved: Timestamp(0),
            cursor: Cursor::default(),
        };
        self.change(deadline, Command::AddRegion { peer }).await?;
        Ok((attested.region, attested.region_id))
    }

    /// Forgets a Region that never comes back.
    pub async fn forget_region(
        self: &Arc<Self>,
        caller: &Caller,
        region: &str,
        patience: Duration,
    ) -> Result<(), KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let region = region_name(region)?;
        self.operator(caller, patience).await?;
        self.change(deadline, Command::ForgetRegion { region }).await.map(drop)
    }

    /// How this Region and its links are, and which Regions have a change of this one.
    pub async fn regions_status(
        self: &Arc<Self>,
        caller: &Caller,
        change: Option<&str>,
        patience: Duration,
    ) -> Result<RegionsStatus, KmsError> {
        let change: Option<ChangeToken> = change.map(str::parse).transpose()?;
        let state = self.operator(caller, patience).await?;
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let told = self.told_links(patience).await?;
        let here = state.multi_region_keys().filter(|row| row.here.is_some());
        let (mut keys, mut primaries) = (0, 0);
        for row in here {
            keys += 1;
            primaries += u64::from(row.primary() == Some(&facts.region));
        }
        let links = told.into_iter().filter_map(|link| {
            let peer = state.peer_region(&link.region)?;
            let theirs =
                state.multi_region_keys().filter(|row| row.primary() == Some(&link.region));
            let primaries = theirs.count() as u64;
            let has = |change: &ChangeToken| {
                change.region == facts.region
                    && link.taken.history == change.history
                    && link.taken.index >= change.index
            };
            let has_change = change.as_ref().map(has);
            let endpoints = peer.endpoints.clone();
            Some(SeenLink { link: link.into_status(), endpoints, primaries, has_change })
        });
        Ok(RegionsStatus {
            region: facts.region.clone(),
            region_id: facts.region_id,
            history: state.history_id(),
            keys,
            primaries,
            links: links.collect(),
            reconciliations: state.reconciliations().count() as u64,
            admitted: self.is_admitted(),
        })
    }

    pub(super) async fn told_links(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Vec<ToldLink>, KmsError> {
        match self.have_led(LeaderCommand::Links, patience).await? {
            LeaderReply::Links(links) => Ok(links),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    /// How the links are. Only a leader knows: what another node sees is of a time when it led.
    #[must_use]
    pub fn link_status(&self) -> Vec<LinkStatus> {
        let (state, now) = (self.node.state(), self.node.env().boot_now());
        self.regions.links.status(&state, now, self.node.region_now().0)
    }

    /// The leader's part of it.
    pub(crate) fn links_told(&self) -> Vec<ToldLink> {
        let links = self.link_status();
        let told = |link: LinkStatus| ToldLink {
            taken: self.regions.links.of(&link.region).taken,
            region: link.region,
            heard_ms: link.heard_ms,
            pulled_ms: link.pulled_ms,
            failing: link.failing,
            behind: link.behind,
            behind_ms: link.behind_ms,
            unshipped: link.unshipped,
            unshipped_ms: link.unshipped_ms,
        };
        links.into_iter().map(told).collect()
    }

    /// Makes replicas here primaries in the place of those of a Region that is lost. Returns how many.
    pub async fn promote_region(
        self: &Arc<Self>,
        caller: &Caller,
        lost: &str,
        force: bool,
        patience: Duration,
    ) -> Result<u64, KmsError> {
        let lost = region_name(lost)?;
        self.operator(caller, patience).await?;
        self.led_count(LeaderCommand::PromoteRegion { lost, force }, patience).await
    }

    /// Offers the primary's place of every key to another Region. Returns how many were offered.
    pub async fn fail_over(
        self: &Arc<Self>,
        caller: &Caller,
        to: &str,
        patience: Duration,
    ) -> Result<u64, KmsError> {
        let to = region_name(to)?;
        self.operator(caller, patience).await?;
        self.led_count(LeaderCommand::FailOver { to }, patience).await
    }

    async fn led_count(
        self: &Arc<Self>,
        command: LeaderCommand,
        patience: Duration,
    ) -> Result<u64, KmsError> {
        match self.have_led(command, patience).await? {
            LeaderReply::Count(count) => Ok(count),
            other => Err(internal("an unexpected reply", &format!("{other:?}"))),
        }
    }

    pub(crate) async fn lead_promotion(
        &self,
        lost: &Region,
        force: bool,
        deadline: Duration,
    ) -> Result<u64, KmsError> {
        let state = self.node.state();
        if state.peer_region(lost).is_none() {
            return Err(KmsError::new(
                ErrorCode::NotFoundException,
                format!("this Region has no link with {lost}; `keyward region status` lists them"),
            ));
        }
        let theirs = |row: &&Arc<MultiRegionKey>| {
            row.primary() == Some(lost)
                || row.here.as_ref().is_some_and(|here| here.waits_for.as_ref() == Some(lost))
        };
        let keys: Vec<KeyId> =
            state.multi_region_keys().filter(theirs).map(|row| row.key).collect();
        let link = self.regions.links.of(lost);
        let heard = [link.heard, link.pulled].into_iter().flatten().max();
        let since = heard.map(|heard| self.node.env().boot_now().saturating_sub(heard));
        if let Some(since) = since.filter(|since| *since < ALIVE && !force) {
            return Err(refused(format!(
                "{lost} lives: it was heard of {} ms ago. Promoting {} keys here now would take its place as \
                 primary by force, and what it acknowledges meanwhile would be undone and reported. `keyward \
                 region fail-over` moves them without loss; --force promotes all the same",
                since.as_millis(),
                keys.len()
            )));
        }
        for some in keys.chunks(PROMOTED_AT_ONCE) {
            let command = Command::Promote { lost: lost.clone(), keys: some.to_vec() };
            self.change(deadline, command).await?;
        }
        tracing::warn!(%lost, keys = keys.len(), "replicas were promoted in the place of a lost Region's keys");
        Ok(keys.len() as u64)
    }

    pub(crate) async fn lead_fail_over(
        &self,
        to: &Region,
        deadline: Duration,
    ) -> Result<u64, KmsError> {
        let state = self.node.state();
        let me = &state.region.as_ref().ok_or_else(not_founded)?.region;
        let movable = |row: &&Arc<MultiRegionKey>| {
            let enabled = state.key(&row.key).is_some_and(|key| key.state == KeyState::Enabled);
            enabled
                && row.primary() == Some(me)
                && row.here.as_ref().is_some_and(|here| {
                    here.related.get(to).is_some_and(|related| related.first.is_none())
                })
        };
        let keys: Vec<KeyId> =
            state.multi_region_keys().filter(movable).map(|row| row.key).collect();
        let mut offered = 0;
        for some in keys.chunks(OFFERS_AT_ONCE) {
            let mut offers = Vec::with_capacity(some.len());
            for key in some {
                let mut offer = [0; 16];
                self.entropy.fill(&mut offer);
                let command = Command::OfferPrimary { key: *key, to: to.clone(), offer };
                offers.push(self.change(deadline, command));
            }
            for result in futures_util::future::join_all(offers).await {
                result?;
                offered += 1;
            }
        }
        Ok(offered)
    }

    /// What was lost in promotions and waits for a decision.
    pub async fn reconciliations(
        &self,
        caller: &Caller,
        patience: Duration,
    ) -> Result<Vec<Arc<Reconciliation>>, KmsError> {
        let state = self.operator(caller, patience).await?;
        Ok(state.reconciliations().cloned().collect())
    }

    /// Decides about one of them. The key that was made of it, if one was.
    pub async fn reconcile(
        &self,
        caller: &Caller,
        key: &str,
        decision: Decision,
        patience: Duration,
    ) -> Result<Option<KeyId>, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let id = key.rsplit_once(":key/").map_or(key, |(_, id)| id);
        let id: KeyId = id.parse().map_err(|e| KmsError::validation(format!("'{key}' is {e}")))?;
        let state = self.operator(caller, patience).await?;
        let entry = state.reconciliation(&id).cloned().ok_or_else(|| {
            KmsError::new(
                ErrorCode::NotFoundException,
                format!(
                    "nothing of {id} waits for a decision; `keyward region report` lists what does"
                ),
            )
        })?;
        if decision == Decision::Apply {
            let me = &state.region.as_ref().ok_or_else(not_founded)?.region;
            let primary = state.multi_region(&id).and_then(|row| row.primary());
            if primary != Some(me) {
                return Err(refused(format!(
                    "{id}'s primary is in {}: move it here first (`keyward key update-primary {id} {me}` there), \
                     then apply, or discard here and change the key there",
                    primary.map_or("another Region", Region::as_str)
                )));
            }
            let had = &entry.had;
            let command = Command::ApplyReconciled {
                key: id,
                rotation: had.rotation,
                current: had.waiting.unwrap_or(had.current),
            };
            self.change(deadline, command).await?;
        }
        let separate = match decision {
            Decision::Separate => Some(self.keep_separate(&state, &entry, deadline).await?),
            _ => None,
        };
        self.change(deadline, Command::Reconciled { key: id }).await?;
        Ok(separate)
    }

    async fn keep_separate(
        &self,
        state: &State,
        entry: &Reconciliation,
        deadline: Duration,
    ) -> Result<KeyId, KmsError> {
        let had = &entry.had;
        let me = &state.region.as_ref().ok_or_else(not_founded)?.region;
        let key = separate_id(entry);
        if state.key(&key).is_none() {
            let domain_key = self.active_domain_key(state).await?;
            let (material, token) =
                self.hsm.generate_backing_key(domain_key, key).map_err(|e| hsm_refused(&e))?;
            let epoch = &had.version.epoch;
            let command = Command::CreateKey {
                key,
                account: entry.account,
                description: format!(
                    "{} as it was in epoch {} of {}",
                    entry.key, epoch.number, epoch.region
                ),
                tags: state.key(&entry.key).map(|key| key.tags.clone()).unwrap_or_default(),
                material,
                token,
            };
            self.change(deadline, command).await?;
        }
        if had.rotation.enabled {
            let period_days = had.rotation.period_days;
            self.change(deadline, Command::EnableRotation { key, period_days }).await?;
        }
        let others = had.related.keys().filter(|to| *to != me && state.peer_region(to).is_some());
        for to in others {
            let first = First::default();
            let made =
                self.change(deadline, Command::ReplicateKey { key, to: to.clone(), first }).await;
            match made {
                Err(error) if error.code != ErrorCode::AlreadyExistsException => return Err(error),
                _ => {}
            }
        }
        Ok(key)
    }
}

/// The id of the key that goes on as what was lost. It follows from that, so that trying again makes no second one: ids of
/// keys and materials are random, so their sum is.
fn separate_id(entry: &Reconciliation) -> KeyId {
    let version = &entry.had.version;
    let material =
        u128::from_be_bytes(entry.had.current.bytes()[..16].try_into().unwrap_or_default());
    let sum = u128::from_be_bytes(*entry.key.bytes())
        .wrapping_add(material)
        .wrapping_add(u128::from(version.epoch.number) << 64)
        .wrapping_add(u128::from(version.sequence) + 1);
    KeyId::from_parts(true, sum.to_be_bytes())
}
