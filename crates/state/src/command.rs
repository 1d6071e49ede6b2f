//! Commands and outcomes: everything that can change a Region's state. One control-plane call is one
//! command.

use std::collections::BTreeMap;

use keyward_hsm::{RootCopy, RootId, SealedDomainKey, SealedToken};
use keyward_model::{
    AccountId, AliasName, DomainKeyId, KeyId, KeyMaterialId, KmsError, NodeId, PrincipalArn,
    Region, Timestamp,
};
use keyward_quota::{BucketId, Quota, QuotaName, WindowUse};
use serde::{Deserialize, Serialize};

use crate::multi_region::{Cursor, First, HistoryId, OfferId, PeerRegion, RegionKey, Told};
use crate::rows::{
    DiskMark, Fingerprint, ForeignPrincipal, InvitationId, Kinds, OutsideAuthority, Purpose,
    Rotation, RotationKind, Timers,
};

/// Names one attempt of a caller to change something. A retry carries the same id and gets the first
/// outcome.
pub type CommandId = [u8; 16];

/// A command as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The attempt.
    pub id: CommandId,
    /// Stamped by the leader that proposes; the state never takes a step back in time.
    pub time: Timestamp,
    /// The change.
    pub command: Command,
}

/// A change. Randomness and sealed material ride inside, so that applying is a pure function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// First command of a Region.
    Found(Box<Founding>),
    /// Makes a key.
    CreateKey {
        /// Its id.
        key: KeyId,
        /// Its owner.
        account: AccountId,
        /// Free text.
        description: String,
        /// Tags by key.
        tags: BTreeMap<String, String>,
        /// Its first material.
        material: KeyMaterialId,
        /// That material, sealed.
        token: SealedToken,
    },
    /// Changes the description.
    SetDescription {
        /// The key.
        key: KeyId,
        /// The new text.
        description: String,
    },
    /// EnableKey and DisableKey.
    SetEnabled {
        /// The key.
        key: KeyId,
        /// On or off.
        enabled: bool,
    },
    /// Starts the waiting period.
    ScheduleDeletion {
        /// The key.
        key: KeyId,
        /// Its length in days.
        window_days: u32,
    },
    /// Ends the waiting period.
    CancelDeletion {
        /// The key.
        key: KeyId,
    },
    /// The waiting period is over: the key goes, and leaves a tombstone. Refused before its date.
    DeleteKey {
        /// The key.
        key: KeyId,
        /// Its deletion date, as the proposer saw it: a period that was cancelled and begun anew is
        /// another one.
        date: Timestamp,
    },
    /// Invites one more node.
    Invite {
        /// Names the invitation.
        id: InvitationId,
        /// How long it holds, in milliseconds.
        valid_ms: i64,
        /// Who invites.
        by: PrincipalArn,
    },
    /// A node uses its invitation, once.
    UseInvitation {
        /// Which.
        id: InvitationId,
        /// Where the node is reached.
        address: String,
    },
    /// Puts on record how far the counters on the nodes' disks have come.
    NoteCounters {
        /// The counters.
        counters: BTreeMap<NodeId, DiskMark>,
    },
    /// The Region goes on without nodes that are given up, in a new history.
    Recover {
        /// Names the history.
        history: [u8; 16],
        /// Those nodes, and where they were.
        lost: BTreeMap<NodeId, String>,
    },
    /// Moves Region time ahead, for rehearsals. Only Regions that are not for production accept it.
    AdvanceClock {
        /// By how much, in milliseconds.
        milliseconds: i64,
    },
    /// Makes an alias.
    CreateAlias {
        /// The account.
        account: AccountId,
        /// Its name.
        name: AliasName,
        /// The key it points at.
        target: KeyId,
    },
    /// Points an alias elsewhere.
    UpdateAlias {
        /// The account.
        account: AccountId,
        /// Its name.
        name: AliasName,
        /// The key it points at from now on.
        target: KeyId,
    },
    /// Removes an alias.
    DeleteAlias {
        /// The account.
        account: AccountId,
        /// Its name.
        name: AliasName,
    },
    /// Adds or changes tags.
    Tag {
        /// The key.
        key: KeyId,
        /// Tags by key.
        tags: BTreeMap<String, String>,
    },
    /// Removes tags.
    Untag {
        /// The key.
        key: KeyId,
        /// Their keys.
        tag_keys: Vec<String>,
    },
    /// Switches automatic rotation on or changes its period.
    EnableRotation {
        /// The key.
        key: KeyId,
        /// The period in days.
        period_days: u32,
    },
    /// Switches automatic rotation off.
    DisableRotation {
        /// The key.
        key: KeyId,
    },
    /// First half of a rotation: every node learns the material; nothing encrypts with it yet.
    IntroduceMaterial {
        /// The key.
        key: KeyId,
        /// The new material.
        material: KeyMaterialId,
        /// The material, sealed.
        token: SealedToken,
        /// Why.
        kind: RotationKind,
    },
    /// Second half of a rotation, proposed once the first is fenced: the material encrypts.
    ActivateMaterial {
        /// The key.
        key: KeyId,
        /// The material introduced before.
        material: KeyMaterialId,
    },
    /// Makes a principal, with its first certificate if the built-in authority issues it.
    CreatePrincipal {
        /// Its ARN.
        arn: PrincipalArn,
        /// What it may do.
        kinds: Kinds,
        /// Serial number and end of its first certificate.
        certificate: Option<(Vec<u8>, Timestamp)>,
    },
    /// Puts a further certificate on record.
    AddCertificate {
        /// Whose.
        arn: PrincipalArn,
        /// Its serial number.
        serial: Vec<u8>,
        /// When it ends.
        not_after: Timestamp,
    },
    /// Believes what an outside authority certifies.
    AddAuthority {
        /// SHA-256 of its certificate.
        fingerprint: Fingerprint,
        /// Its certificate, DER.
        certificate: Vec<u8>,
    },
    /// Believes it no more, whichever Region added it.
    RemoveAuthority {
        /// SHA-256 of its certificate.
        fingerprint: Fingerprint,
    },
    /// Disables or enables a principal.
    SetPrincipalDisabled {
        /// Whose.
        arn: PrincipalArn,
        /// Off or on.
        disabled: bool,
    },
    /// Revokes a certificate.
    RevokeCertificate {
        /// Whose.
        arn: PrincipalArn,
        /// Its serial number.
        serial: Vec<u8>,
    },
    /// Registers the root of a node that an operator approved.
    RegisterRoot {
        /// The root.
        root: RootId,
        /// The node that presented it.
        node: NodeId,
    },
    /// Forgets the root of a node that was removed, and the copies sealed for it.
    ForgetRoot {
        /// The node that is gone.
        node: NodeId,
    },
    /// Forgets one root of a node, and the copies sealed for it. Refused where another root of the node has no
    /// copy of a domain key.
    RemoveRoot {
        /// The root.
        root: RootId,
    },
    /// First half of a domain-key rotation: the key is known; nothing is sealed under it yet.
    AddDomainKey {
        /// The key, sealed for the root of the node that made it.
        sealed: SealedDomainKey,
    },
    /// A node sealed a domain key for its own root.
    AddRootCopy {
        /// The domain key.
        domain_key: DomainKeyId,
        /// The copy.
        copy: RootCopy,
    },
    /// Sets quotas, each in the place of the one of its name.
    PutQuotas {
        /// The quotas. Their revision is the state's to set.
        quotas: Vec<Quota>,
        /// They are a whole profile: what came from another one goes.
        profile: bool,
    },
    /// Removes a quota.
    DeleteQuota {
        /// Which.
        name: QuotaName,
    },
    /// Puts on record what is used up of quotas of a minute or a day.
    NoteQuotaUse {
        /// By bucket.
        used: Vec<(BucketId, WindowUse)>,
    },
    /// Second half of a domain-key rotation: new tokens are sealed under it. Refused while a registered
    /// root has no copy.
    ActivateDomainKey {
        /// The domain key.
        domain_key: DomainKeyId,
    },
    /// Has another Region make a replica: it sees so in this Region's feed.
    ReplicateKey {
        /// The key, whose primary is here.
        key: KeyId,
        /// Where the replica is to be.
        to: Region,
        /// What it begins with.
        first: First,
    },
    /// Offers the primary's place to a replica.
    OfferPrimary {
        /// The key, whose primary is here.
        key: KeyId,
        /// Whose place it is to be.
        to: Region,
        /// Names the offer.
        offer: OfferId,
    },
    /// Takes over a part of another Region's feed. Refused whole where a material is missing.
    Merge {
        /// Who told it.
        from: Region,
        /// How far it goes.
        cursor: Cursor,
        /// What was told of keys.
        told: Vec<Told>,
        /// What was told of principals.
        principals: Vec<ForeignPrincipal>,
        /// What was told of outside authorities.
        authorities: Vec<OutsideAuthority>,
    },
    /// Replicas here become primaries in the place of those of a Region that is lost.
    Promote {
        /// That Region.
        lost: Region,
        /// The keys. Those whose primary is elsewhere are left alone.
        keys: Vec<KeyId>,
    },
    /// The key pair that other Regions seal material to. The first one stays.
    SetRegionKey {
        /// The key pair.
        key: RegionKey,
    },
    /// An operator approves another Region, or what has changed of it.
    AddRegion {
        /// That Region. When it is approved and its cursor are the state's to set.
        peer: PeerRegion,
    },
    /// A Region never comes back: nothing waits for it any more. Refused while it is the primary's Region of a key.
    ForgetRegion {
        /// That Region.
        region: Region,
    },
    /// Other Regions have been told more than this one has: its disks are older than what it had acknowledged. They are
    /// told from the start.
    BeginHistory {
        /// Names the history.
        history: HistoryId,
    },
    /// Somebody decided about what was lost of a key.
    Reconciled {
        /// The key.
        key: KeyId,
    },
    /// What a Region had acknowledged and lost is made the primary's after all.
    ApplyReconciled {
        /// The key, whose primary is here.
        key: KeyId,
        /// The rotation setting that was lost.
        rotation: Rotation,
        /// The material that encrypted. It does so again once every Region has it.
        current: KeyMaterialId,
    },
}

impl Command {
    /// Takes the sealed material of keys that are gone out of a command, as it stands in a log. What the
    /// command does stays the same, but for that material: the key's deletion follows in the same log.
    ///
    /// True if there was something to take out.
    pub fn scrub(&mut self, gone: &dyn Fn(&KeyId) -> bool) -> bool {
        match self {
            Self::CreateKey { key, token, .. } | Self::IntroduceMaterial { key, token, .. }
                if !token.as_bytes().is_empty() && gone(key) =>
            {
                *token = SealedToken::from_bytes(Vec::new());
                true
            }
            Self::Merge { told, .. } => {
                let mut found = false;
                for one in told.iter_mut().filter(|one| gone(&one.view.key)) {
                    for (_, token) in &mut one.tokens {
                        found |= !token.as_bytes().is_empty();
                        *token = SealedToken::from_bytes(Vec::new());
                    }
                }
                found
            }
            _ => false,
        }
    }
}

/// What founding a Region fixes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Its name.
    pub region: Region,
    /// Tells it from others of that name.
    pub region_id: [u8; 16],
    /// Timers for every node.
    pub timers: Timers,
    /// What it is for.
    pub purpose: Purpose,
    /// The certificate authority's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// Its key, sealed.
    pub ca_private_key: SealedToken,
    /// The first domain key.
    pub domain_key: SealedDomainKey,
    /// The founding node and its root.
    pub node: NodeId,
    /// The founding node's root.
    pub root: RootId,
    /// The first operator.
    pub operator: PrincipalArn,
    /// Serial and end of the first operator's certificate.
    pub operator_certificate: (Vec<u8>, Timestamp),
    /// Outside authorities that are believed from the start: SHA-256 of the certificate, and the certificate, DER.
    pub authorities: Vec<(Fingerprint, Vec<u8>)>,
}

/// What a command led to. Kept for a while by command id.
pub type Outcome = Result<Reply, KmsError>;

/// What a command answers beyond success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// AdvanceClock: the whole offset from now on, in milliseconds.
    ClockOffset(i64),
    /// Invite: the id that the node gets, and when the invitation ends.
    Invited {
        /// The node.
        node: NodeId,
        /// The end.
        expires: Timestamp,
    },
    /// UseInvitation: the id that the node gets.
    Node(NodeId),
    /// ScheduleDeletion: the date.
    DeletionDate(Timestamp),
    /// IntroduceMaterial: the material that is now waiting to be used. Another one than the command's
    /// when a rotation was under way already.
    Introduced(KeyMaterialId),
    /// ScheduleKeyDeletion of a primary: the waiting period begins when its last replica is gone.
    WaitsForReplicas,
}
