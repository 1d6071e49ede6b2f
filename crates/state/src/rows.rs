//! The rows of the replicated state.

use std::collections::BTreeMap;

use keyward_hsm::{RootId, SealedDomainKey, SealedToken};
use keyward_model::{
    AccountId, AliasName, DomainKeyId, KeyId, KeyMaterialId, KeyState, NodeId, PrincipalArn,
    Region, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::multi_region::HistoryId;

/// Facts about the Region that its founding fixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionFacts {
    /// Its name.
    pub region: Region,
    /// 16 random bytes, so that two Regions of one name are told apart.
    pub region_id: [u8; 16],
    /// When it was founded.
    pub founded: Timestamp,
    /// Timers that every node must run with (DESIGN section 5, rule 7).
    pub timers: Timers,
    /// What it is for.
    pub purpose: Purpose,
    /// The certificate authority's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// Its private key, sealed under a domain key.
    pub ca_private_key: SealedToken,
    /// The domain key that new tokens are sealed under.
    pub active_domain_key: DomainKeyId,
}

/// What a Region is for. Fixed by its founding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Keys that matter: its clock cannot be moved.
    #[default]
    Production,
    /// Development: its clock can be moved ahead.
    Dev,
}

impl Purpose {
    /// The name, as it is given and shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Dev => "dev",
        }
    }
}

/// Raft and lease timers, in milliseconds. Region state: nodes with mixed values could serve stale
/// answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_ms_min: u64,
    /// Longest election timeout, which is openraft's leader lease too.
    pub election_ms_max: u64,
    /// The longest follower lease.
    pub lease_ttl_ms: u64,
    /// Between lease renewals.
    pub renewal_ms: u64,
}

impl Timers {
    /// For round trips under 50 ms.
    pub const DEFAULT: Self = Self {
        heartbeat_ms: 100,
        election_ms_min: 300,
        election_ms_max: 600,
        lease_ttl_ms: 2500,
        renewal_ms: 200,
    };

    /// For networks with round trips under 25 ms.
    pub const QUICK: Self = Self {
        heartbeat_ms: 50,
        election_ms_min: 150,
        election_ms_max: 300,
        lease_ttl_ms: 1250,
        renewal_ms: 100,
    };
}

/// A KMS key, without its material.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// The account that owns it.
    pub account: AccountId,
    /// Free text.
    pub description: String,
    /// Its state.
    pub state: KeyState,
    /// When it was created.
    pub created: Timestamp,
    /// When it may be deleted; only in PendingDeletion.
    pub deletion_date: Option<Timestamp>,
    /// Tags by key.
    pub tags: BTreeMap<String, String>,
    /// Every material, oldest first. Never empty.
    pub materials: Vec<Material>,
    /// The material that encrypts: an index into `materials`.
    pub current: u32,
    /// Rotation setting.
    pub rotation: Rotation,
    /// How many aliases point here.
    pub aliases: u32,
}

impl Key {
    /// The material that encrypts.
    #[must_use]
    pub fn current_material(&self) -> &Material {
        &self.materials[self.current as usize]
    }

    /// The material of that id.
    #[must_use]
    pub fn material(&self, id: &KeyMaterialId) -> Option<&Material> {
        self.materials.iter().find(|m| m.id == *id)
    }

    /// A material that is known everywhere soon, and not yet used for encrypting.
    #[must_use]
    pub fn introduced(&self) -> Option<&Material> {
        self.materials.get(self.current as usize + 1)
    }
}

/// What stays of a key that is gone, for ever: nothing may bring it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its id.
    pub key: KeyId,
    /// The account that owned it.
    pub account: AccountId,
    /// The date that was set for it.
    pub due: Timestamp,
    /// When it was deleted.
    pub deleted: Timestamp,
    /// Its number among the Region's deletions, from 1 on: nodes report up to which one they have purged
    /// their disks.
    pub number: u64,
    /// Its materials.
    pub materials: Vec<KeyMaterialId>,
}

/// An operator's word that one more node may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// The id that the node gets: one that no node of the Region ever had.
    pub node: NodeId,
    /// Refused from then on.
    pub expires: Timestamp,
    /// Who invited.
    pub by: PrincipalArn,
    /// The address of the node that has used it.
    pub used: Option<String>,
}

/// Names an invitation.
pub type InvitationId = [u8; 16];

/// The counter on a node's disk, and the start of the node that told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMark {
    /// Drawn anew at each start of the node.
    pub boot: u64,
    /// Raised with every write to its log.
    pub counter: u64,
}

/// One backing key of a KMS key. Its sealed token is in a table of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// Its id.
    pub id: KeyMaterialId,
    /// When it was introduced.
    pub introduced: Timestamp,
    /// When it began to encrypt, and why; none for the first material.
    pub rotated: Option<(Timestamp, RotationKind)>,
    /// Why it was introduced.
    pub kind: Option<RotationKind>,
}

/// Why a key was rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotationKind {
    /// The period passed.
    Automatic,
    /// Somebody asked.
    OnDemand,
}

impl RotationKind {
    /// The name as AWS writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Automatic => "AUTOMATIC",
            Self::OnDemand => "ON_DEMAND",
        }
    }
}

/// A key's rotation setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Rotates by itself.
    pub enabled: bool,
    /// The period, in days.
    pub period_days: u32,
    /// The next automatic rotation.
    pub next: Timestamp,
    /// On-demand rotations so far.
    pub on_demand: u32,
}

/// An alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The account that it belongs to.
    pub account: AccountId,
    /// Its name, with `alias/`.
    pub name: AliasName,
    /// The key it points at.
    pub target: KeyId,
    /// When it was created.
    pub created: Timestamp,
    /// When it was last pointed elsewhere.
    pub updated: Timestamp,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    /// Operates the cluster and its principals; neither uses nor manages keys.
    pub operator: bool,
    /// Manages keys, cannot use them.
    pub administrator: bool,
    /// Uses keys, cannot manage them.
    pub user: bool,
}

/// Somebody who may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Its ARN, which names the account.
    pub arn: PrincipalArn,
    /// What it may do.
    pub kinds: Kinds,
    /// How often it was shut out, by the history of the Region that did it: refused whatever it shows while one of them is
    /// not lifted.
    pub shut: BTreeMap<HistoryId, Shut>,
    /// When it was created.
    pub created: Timestamp,
    /// Certificates issued by the built-in authority of its Region, by serial number.
    pub certificates: BTreeMap<Vec<u8>, CertificateRecord>,
    /// The number of its last change among those that this Region tells others; 0 of an operator, who is told to nobody.
    pub changed: u64,
    /// When that was.
    pub changed_at: Timestamp,
}

impl Principal {
    /// Refused whatever it shows.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        is_shut(&self.shut)
    }
}

/// How often a Region has shut a principal out, and how many of these were lifted since, here or anywhere. Both only grow,
/// so that whoever lifts it lifts what he knows of, and no word that comes late lifts another Region's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shut {
    /// It was shut out so many times.
    pub times: u64,
    /// So many of them are lifted.
    pub lifted: u64,
}

/// Whether somebody has shut it out and nobody lifted that since.
fn is_shut(shut: &BTreeMap<HistoryId, Shut>) -> bool {
    shut.values().any(|shut| shut.times > shut.lifted)
}

/// A principal that another Region made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignPrincipal {
    /// The Region that made it: its authority issues its certificates.
    pub home: Region,
    /// Which Region of that name.
    pub home_id: [u8; 16],
    /// What is known of it.
    pub principal: Principal,
}

/// An authority outside of Keyward, whose certificates principals may show. It belongs to the Region whose operator added it,
/// and speaks for the principals of that Region alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideAuthority {
    /// SHA-256 of its certificate.
    pub fingerprint: Fingerprint,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The Region whose operator added it.
    pub home: Region,
    /// Which Region of that name.
    pub home_id: [u8; 16],
    /// How often it was removed, as principals are shut out.
    pub shut: BTreeMap<HistoryId, Shut>,
    /// When it was first added.
    pub created: Timestamp,
    /// The number of its last change among those that this Region tells others.
    pub changed: u64,
    /// When that was.
    pub changed_at: Timestamp,
}

/// SHA-256 of a certificate's DER.
pub type Fingerprint = [u8; 32];

impl OutsideAuthority {
    /// What it certifies is believed.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        !is_shut(&self.shut)
    }
}

/// A certificate on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// When it ends.
    pub not_after: Timestamp,
    /// Refused though not yet ended.
    pub revoked: bool,
}

/// A root key that domain keys are sealed for. Each node has its own, one or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Its id.
    pub id: RootId,
    /// The node that presented it.
    pub node: NodeId,
}

/// A domain key and its place in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainKey {
    /// The key, once for each root.
    pub sealed: SealedDomainKey,
    /// When it was made.
    pub created: Timestamp,
}
