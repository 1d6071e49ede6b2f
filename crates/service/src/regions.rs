//! Other Regions: links, multi-Region keys across them, failover. What Regions tell each other, and how it is taken
//! over, is `keyward_regions` and `state/src/apply/multi_region.rs`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{
    ErrorCode, KeyId, KeyMaterialId, KeyState, KmsError, Operation, Region, Timestamp, key_arn,
};
use keyward_raft::BoxFuture;
use keyward_regions::{
    About, LinkStatus, Links, Local, Page, RegionRequest, RegionResponse, RegionTransport,
    SealedMaterial, answer_pull, decode, encode, pull,
};
use keyward_state::{
    ChangeToken, Command, Cursor, First, KeyView, MultiRegionKey, PeerRegion, Reconciliation,
    RegionKey, SealedToken, State,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::api::{
    Caller, GetKeyReplicationStatus, KeyMetadata, MultiRegionConfiguration, RegionalKey,
    ReplicateKey, ReplicationStatus, Response, UpdatePrimaryRegion, WaitForChange,
};
use crate::authority::{self, signing_request};
use crate::kms::{Kms, Serving, hsm_refused, internal, not_founded};
use crate::operator::{host_of, refused};
use crate::peer::{AppRequest, AppResponse, LeaderCommand, LeaderReply};
use crate::resolve::{self, Forms};

/// Between looks at which links there should be.
const LOOK: Duration = Duration::from_millis(100);
/// Between looks while somebody waits for a change.
const WAITING_LOOK: Duration = Duration::from_millis(5);
/// One change of a link, or one fence, may take this long.
const STEP: Duration = Duration::from_secs(5);
/// A Region that answered within this time lives.
const ALIVE: Duration = Duration::from_secs(5);
/// Keys promoted in one command at most: a command stays short.
const PROMOTED_AT_ONCE: usize = 500;
/// Offers under way at once.
const OFFERS_AT_ONCE: usize = 64;
/// Endpoints of another Region at most.
const ENDPOINTS_MAX: usize = 32;

/// What a node has of its Region's links.
#[derive(Default)]
pub(crate) struct RegionLinks {
    pub(crate) links: Links,
    transport: OnceLock<Arc<dyn RegionTransport>>,
    delays: OnceLock<RegionDelays>,
    pulling: Mutex<BTreeSet<Region>>,
    /// This Region is known not to be older than what it had told others: multi-Region keys may be used.
    admitted: AtomicBool,
}

/// How long after it was heard something is taken over, where other Regions are to seem far away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionDelays {
    /// A replica that is to be made here.
    pub replica: Duration,
    /// A primary that moves.
    pub primary: Duration,
    /// All else.
    pub change: Duration,
}

/// A Region, as its own operator shows it to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionCard {
    /// Its name.
    pub region: Region,
    /// Which Region of that name.
    pub region_id: [u8; 16],
    /// Its authority's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The public key that material is sealed to, as the authority attests it: a certificate, DER.
    pub attestation: Vec<u8>,
    /// host:port of its nodes.
    pub endpoints: Vec<String>,
}

/// A Region and its links, as an operator sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RegionsStatus {
    pub region: Region,
    pub region_id: [u8; 16],
    pub history: [u8; 16],
    /// Multi-Region keys that are here, and of how many the primary is.
    pub keys: u64,
    pub primaries: u64,
    pub links: Vec<SeenLink>,
    /// Keys that wait for a decision.
    pub reconciliations: u64,
    /// This node uses multi-Region keys.
    pub admitted: bool,
}

/// A link, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenLink {
    /// How it is.
    pub link: LinkStatus,
    /// host:port of that Region's nodes.
    pub endpoints: Vec<String>,
    /// Keys here whose primary is there.
    pub primaries: u64,
    /// That Region has the change that was asked for.
    pub has_change: Option<bool>,
}

/// What the leader knows of links: the parts of [`RegionsStatus`] that only it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToldLink {
    region: Region,
    heard_ms: Option<u64>,
    pulled_ms: Option<u64>,
    failing: Option<String>,
    behind: u64,
    behind_ms: Option<u64>,
    unshipped: u64,
    unshipped_ms: Option<u64>,
    taken: Cursor,
}

/// What an operator decides about what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stays lost. Material is kept: what it encrypted still opens.
    Discard,
    /// It is made the key's again, where its primary is.
    Apply,
    /// A key of its own goes on as the lost one would have: with its rotation setting, in its Regions, with new material. What
    /// the lost one encrypted opens under the key that it was encrypted with, as ever.
    Separate,
}

impl<E: Env> Kms<E> {
    /// Connects to other Regions from now on. Once, before [`Kms::start`].
    pub fn set_region_transport(&self, transport: Arc<dyn RegionTransport>) {
        let first = self.regions.transport.set(transport).is_ok();
        debug_assert!(first, "a node has one transport");
    }

    /// Has other Regions seem far away. Once, before [`Kms::start`].
    pub fn set_region_delays(&self, delays: RegionDelays) {
        let first = self.regions.delays.set(delays).is_ok();
        debug_assert!(first, "a node has its delays once");
    }

    /// Keeps one task for each link while this node leads.
    pub(crate) async fn keep_links(self: Arc<Self>) {
        let Some(transport) = self.regions.transport.get().cloned() else { return };
        self.node.env().spawn(Arc::clone(&self).ask_for_admission());
        while !self.node.is_stopped() {
            if Local::leads(&*self) {
                for peer in self.node.state().peer_regions() {
                    let region = peer.region.clone();
                    if self.regions.pulling.lock().insert(region.clone()) {
                        let (this, transport) = (Arc::clone(&self), Arc::clone(&transport));
                        self.node.env().spawn(async move {
                            pull(Arc::clone(&this), transport, region.clone()).await;
                            this.regions.pulling.lock().remove(&region);
                        });
                    }
                }
            }
            self.node.env().sleep(LOOK).await;
        }
    }

    /// Whether this node may use multi-Region keys. A Region whose nodes all start anew, on old disks maybe, could bring
    /// back what it had deleted: it asks another Region first how far it had come (DESIGN section 9).
    pub(crate) fn check_admitted(&self, key: &KeyId) -> Result<(), KmsError> {
        if !key.is_multi_region() || self.regions.admitted.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(KmsError::new(
            ErrorCode::KeyUnavailableException,
            "this Region has just started and has not heard yet from another one how far it had come; it tries. If no \
             other Region will answer, an operator can say that these disks are the latest (`keyward region admit`)",
        ))
    }

    /// A Region that was founded just now cannot be older than what it has told.
    pub(crate) fn admit_as_founded(&self) {
        self.regions.admitted.store(true, Ordering::Relaxed);
    }

    /// Learns whether this node may use multi-Region keys, then ends.
    pub(crate) async fn ask_for_admission(self: Arc<Self>) {
        while !self.node.is_stopped() && !self.regions.admitted.load(Ordering::Relaxed) {
            let state = self.node.state();
            // Before it has heard from its own Region a node knows nothing of links.
            let lone = self.node.admit_now().is_ok()
                && state.region.is_some()
                && state.peer_regions().next().is_none();
            if lone || (self.node.leads() && self.regions.links.has_caught_up()) {
                self.regions.admitted.store(true, Ordering::Relaxed);
                return;
            }
            // One that has been up all the time knows that nothing was lost.
            for member in self.node.members() {
                if member.node == self.node.id() {
                    continue;
                }
                let request = AppRequest::Admitted;
                let asked = self.ask_peer(member.node, &member.address, &request, LOOK * 5).await;
                if matches!(asked, Ok(AppResponse::Admitted(true))) {
                    self.regions.admitted.store(true, Ordering::Relaxed);
                    return;
                }
            }
            self.node.env().sleep(LOOK).await;
        }
    }

    /// Whether this node may use multi-Region keys.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.regions.admitted.load(Ordering::Relaxed)
    }

    /// An operator says that these disks are the latest.
    pub async fn admit_region(
        self: &Arc<Self>,
        caller: &Caller,
        patience: Duration,
    ) -> Result<(), KmsError> {
        self.operator(caller, patience).await?;
        self.have_led(LeaderCommand::Admit, patience).await.map(drop)
    }

    /// The leader's part of it. Other nodes ask it.
    pub(crate) fn lead_admission(&self) {
        tracing::warn!("an operator has said that the Region's disks are the latest");
        self.regions.admitted.store(true, Ordering::Relaxed);
    }

    // --- What other Regions ask.

    /// Answers a message of another Region's node, which has shown that it is one.
    ///
    /// # Errors
    /// A message that this build does not know, or a Region that is not approved here.
    pub fn answer_region(
        self: &Arc<Self>,
        from: Region,
        from_id: [u8; 16],
        body: Vec<u8>,
    ) -> BoxFuture<'static, Result<Vec<u8>, KmsError>> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let request: RegionRequest = decode(&body)
                .map_err(|e| KmsError::validation(format!("a message of another version: {e}")))?;
            let peer = this.approved(&from, from_id)?;
            let answer = match request {
                RegionRequest::Pull(request) => answer_pull(&*this, &from, &request).await,
                RegionRequest::Materials { key, materials, version } => {
                    match this.export(&peer, key, &materials, &version).await {
                        Ok(sealed) => RegionResponse::Materials(sealed),
                        Err(error) => RegionResponse::Refused(error.to_string()),
                    }
                }
            };
            Ok(encode(&answer))
        })
    }

    fn approved(&self, from: &Region, from_id: [u8; 16]) -> Result<Arc<PeerRegion>, KmsError> {
        let state = self.node.state();
        let peer = state.peer_region(from).filter(|peer| peer.region_id == from_id).cloned();
        peer.ok_or_else(|| {
            KmsError::new(
                ErrorCode::AccessDeniedException,
                format!(
                    "Region {from} ({}) is not approved here: an operator adds it (`keyward region add`)",
                    hex::encode(from_id)
                ),
            )
        })
    }

    /// Seals materials to a Region that has the key, or is to have it.
    async fn export(
        &self,
        peer: &PeerRegion,
        key: KeyId,
        materials: &[KeyMaterialId],
        version: &keyward_state::Version,
    ) -> Result<Vec<SealedMaterial>, KmsError> {
        let state = self.node.state();
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        let related = |row: &Arc<MultiRegionKey>| {
            row.here.as_ref().is_some_and(|here| here.related.contains_key(&peer.region))
        };
        if !state.multi_region(&key).is_some_and(related) {
            return Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                format!("{} has no replica of {key}", peer.region),
            ));
        }
        let own = self.own_region_key(&state).await?;
        let mut sealed = Vec::with_capacity(materials.len());
        for material in materials {
            let token = self.node.token(*material).await;
            let token = token.map_err(|e| internal("a sealed token could not be read", &e))?;
            let token = token.map(SealedToken::from_bytes).ok_or_else(|| {
                KmsError::new(
                    ErrorCode::NotFoundException,
                    format!("material {material} of {key} is not here any more"),
                )
            })?;
            let domain_key = token
                .domain_key_id()
                .ok_or_else(|| internal("a sealed token is damaged", material))?;
            self.open_domain_key(&state, domain_key).await?;
            let about = About {
                source: &facts.region,
                history: state.history_id(),
                target: &peer.region,
                target_id: peer.region_id,
                key,
                material: *material,
                version,
            };
            let message = self
                .hsm
                .export_material(&own, &peer.public_key, key, *material, &token, &about.bytes())
                .map_err(|e| hsm_refused(&e))?;
            sealed.push(SealedMaterial { material: *material, message });
        }
        Ok(sealed)
    }

    /// This Region's private key for material from others, sealed; the domain key that it is sealed under is open.
    async fn own_region_key(&self, state: &State) -> Result<SealedToken, KmsError> {
        let key = state.region_key.as_ref().ok_or_else(|| {
            refused("this Region has no key for material from others yet: `keyward region card` makes it".to_owned())
        })?;
        let domain_key = key
            .private_key
            .domain_key_id()
            .ok_or_else(|| internal("the Region's key is damaged", &"no domain key named"))?;
        self.open_domain_key(state, domain_key).await?;
        Ok(key.private_key.clone())
    }

    // --- Operators.

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

    async fn told_links(self: &Arc<Self>, patience: Duration) -> Result<Vec<ToldLink>, KmsError> {
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

    // --- Key administrators.

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

impl ToldLink {
    fn into_status(self) -> LinkStatus {
        LinkStatus {
            region: self.region,
            heard_ms: self.heard_ms,
            pulled_ms: self.pulled_ms,
            failing: self.failing,
            behind: self.behind,
            behind_ms: self.behind_ms,
            unshipped: self.unshipped,
            unshipped_ms: self.unshipped_ms,
        }
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

fn region_name(text: &str) -> Result<Region, KmsError> {
    text.parse().map_err(|e| KmsError::validation(format!("'{text}' is {e}")))
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
