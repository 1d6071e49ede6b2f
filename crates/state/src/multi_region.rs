//! Rows about other Regions and multi-Region keys, and what Regions tell each other of such a key.
//!
//! A multi-Region key is one key in several Regions. Its *shared* properties (materials, rotation, which Regions have
//! it) follow the primary; they carry (epoch, sequence), so that of two tellings everybody takes the same one. What
//! only grows is merged, never replaced: materials, and in which Regions a key is gone. So a telling may come twice,
//! late, or by way of a third Region, and Regions that have heard the same agree.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use keyward_model::{AccountId, KeyId, KeyMaterialId, KmsError, Region, Timestamp};
use serde::{Deserialize, Serialize};

use crate::rows::{Material, Rotation};

/// Names one line of a Region's life: another one begins where it is recovered or restored.
pub type HistoryId = [u8; 16];
/// Names one offer of a primary's place.
pub type OfferId = [u8; 16];

/// Which Region's word counts. The higher number wins, and at one number the Region that is later by name, so that
/// two Regions that are promoted at once cannot tie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch {
    /// Raised by each hand-over and promotion.
    pub number: u64,
    /// Where the primary is.
    pub region: Region,
}

/// A state of the shared properties: the primary counts them up within its epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Whose word it is.
    pub epoch: Epoch,
    /// The how-manieth.
    pub sequence: u64,
}

/// A Region that has a key, or is to have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Related {
    /// Rises with each ReplicateKey of the key, so that what is gone stays gone.
    pub generation: u64,
    /// What the replica begins with; none once it is there.
    pub first: Option<First>,
}

/// What a replica begins with. From then on these are its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// Free text.
    pub description: String,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
}

/// A primary offers its place. Only the one it is offered to ends that: by taking it, or by refusing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which offer.
    pub id: OfferId,
    /// To whom.
    pub to: Region,
}

/// What a Region knows of a multi-Region key beyond the key itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiRegionKey {
    /// Which key.
    pub key: KeyId,
    /// Its owner.
    pub account: AccountId,
    /// What this Region has of the shared properties; none if it has no such key.
    pub here: Option<Here>,
    /// Where the key is gone, and up to which generation.
    pub gone: BTreeMap<Region, u64>,
    /// The last offer that this Region refused.
    pub refused: Option<OfferId>,
    /// The last generation that this Region could not make a replica of, and why.
    pub declined: Option<(u64, String)>,
    /// The number of its last change among this Region's.
    pub changed: u64,
    /// When that was.
    pub changed_at: Timestamp,
}

/// What a Region that has the key knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Which replica this is.
    pub generation: u64,
    /// Of the shared properties.
    pub version: Version,
    /// What the primary of this epoch had of the earlier one when it was promoted; none where nothing could get lost.
    pub base: Option<Version>,
    /// The highest generation so far.
    pub generations: u64,
    /// Every Region that has the key, this one too.
    pub related: BTreeMap<Region, Related>,
    /// An offer under way.
    pub offer: Option<Offer>,
    /// The Region that was primary before, while it has not taken note that this one is.
    pub waits_for: Option<Region>,
    /// The waiting period in days that begins when the last replica is gone.
    pub window_days: Option<u32>,
}

impl MultiRegionKey {
    /// The primary's Region, as known here.
    #[must_use]
    pub fn primary(&self) -> Option<&Region> {
        self.here.as_ref().map(|here| &here.version.epoch.region)
    }
}

/// What one Region tells others of a key. A feed is a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// Which key.
    pub key: KeyId,
    /// Its owner.
    pub account: AccountId,
    /// The shared properties, where the Region has the key.
    pub shared: Option<Box<Shared>>,
    /// Where the key is gone, and up to which generation.
    pub gone: BTreeMap<Region, u64>,
    /// The last offer that the Region refused.
    pub refused: Option<OfferId>,
    /// The last generation that the Region could not make a replica of, and why.
    pub declined: Option<(u64, String)>,
}

/// The shared properties of a key as one Region has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Which replica the telling Region has.
    pub generation: u64,
    /// Of what follows.
    pub version: Version,
    /// See [`Here::base`].
    pub base: Option<Version>,
    /// See [`Here::generations`].
    pub generations: u64,
    /// See [`Here::related`].
    pub related: BTreeMap<Region, Related>,
    /// See [`Here::offer`].
    pub offer: Option<Offer>,
    /// All materials that the Region has. A set: the order says nothing.
    pub materials: Vec<Material>,
    /// The material that encrypts.
    pub current: KeyMaterialId,
    /// A material that is to encrypt once every Region has it.
    pub waiting: Option<KeyMaterialId>,
    /// Rotation setting.
    pub rotation: Rotation,
}

/// Another Region, as an operator approved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRegion {
    /// Its name.
    pub region: Region,
    /// Tells it from others of that name.
    pub region_id: [u8; 16],
    /// Its authority's certificate, DER: nodes of that Region are known by it.
    pub ca_certificate: Vec<u8>,
    /// The public key that material is sealed to: an uncompressed P-256 point.
    pub public_key: Vec<u8>,
    /// host:port of its nodes.
    pub endpoints: Vec<String>,
    /// When it was approved.
    pub approved: Timestamp,
    /// How far this Region has taken over what it told.
    pub cursor: Cursor,
}

/// A place in a Region's feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Of which line of its life.
    pub history: HistoryId,
    /// Changes up to this number were taken over.
    pub index: u64,
    /// When the last one of them was made, by that Region's time.
    pub made: Timestamp,
}

/// Names a change of one Region, so that somebody can wait in another one until it has come there. Written as
/// `REGION/HISTORY/NUMBER`, the history in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeToken {
    /// Where it was made.
    pub region: Region,
    /// In which line of that Region's life.
    pub history: HistoryId,
    /// Its number there.
    pub index: u64,
}

impl fmt::Display for ChangeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.region)?;
        self.history.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "/{}", self.index)
    }
}

impl FromStr for ChangeToken {
    type Err = KmsError;

    fn from_str(text: &str) -> Result<Self, KmsError> {
        let wrong = || {
            KmsError::validation(format!(
                "'{text}' names no change: expected REGION/HISTORY/NUMBER, as a change is answered with"
            ))
        };
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or_else(wrong);
        let region = part()?.parse().map_err(|_| wrong())?;
        let digits = part()?;
        let index = part()?.parse().map_err(|_| wrong())?;
        if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let history = u128::from_str_radix(digits, 16).map_err(|_| wrong())?.to_be_bytes();
        Ok(Self { region, history, index })
    }
}

/// A Region's key pair for material that comes from other Regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionKey {
    /// An uncompressed P-256 point.
    pub public_key: Vec<u8>,
    /// The private key, sealed.
    pub private_key: keyward_hsm::SealedToken,
}

/// What a Region had acknowledged as primary and could not hand on before another one was promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciliation {
    /// Which key.
    pub key: KeyId,
    /// Its owner.
    pub account: AccountId,
    /// What it was here.
    pub had: Box<Shared>,
    /// What counts now.
    pub winner: Version,
    /// What the winner had begun from.
    pub base: Option<Version>,
    /// When that was noticed.
    pub noticed: Timestamp,
}

/// An entry of a feed, as it is taken over: what was told, and the materials that were missing, sealed for this
/// Region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What was told.
    pub view: KeyView,
    /// Materials that this Region lacked.
    pub tokens: Vec<(KeyMaterialId, keyward_hsm::SealedToken)>,
}
