//! Other Regions: links, multi-Region keys across them, failover. What Regions tell each other, and how it is taken
//! over, is `keyward_regions` and `state/src/apply/multi_region.rs`.

mod answers;
mod keys;
mod local;
mod operate;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{ErrorCode, KeyId, KmsError, Region};
use keyward_regions::{LinkStatus, Links, Local, RegionTransport, pull};
use keyward_state::Cursor;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::api::Caller;
use crate::kms::Kms;
use crate::peer::{AppRequest, AppResponse, LeaderCommand};
pub(crate) use keys::configuration;

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

fn region_name(text: &str) -> Result<Region, KmsError> {
    text.parse().map_err(|e| KmsError::validation(format!("'{text}' is {e}")))
}
