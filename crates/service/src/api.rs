//! Requests and answers of the key service, named as AWS names them. Doors translate into and out of
//! these; texts are parsed and checked here, so that every door refuses alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Trace;
use crate::quota::PlanSlot;
use keyward_audit::Actor;
use keyward_model::{KeyState, Operation, PrincipalArn, Timestamp};
use keyward_state::Fingerprint;

/// Which authority issued a caller's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// This Region's own: the serial number must be on record.
    Own,
    /// That of the Region of this id: the same, as that Region tells of it.
    Region([u8; 16]),
    /// One outside, whose certificate has this fingerprint: some Region must trust it.
    Outside(Fingerprint),
}

/// Who calls, as the connection's certificate says. One for each connection.
#[derive(Debug)]
pub struct Caller {
    /// The principal that the certificate names.
    pub principal: PrincipalArn,
    /// The certificate's serial number.
    pub serial: Vec<u8>,
    /// When the certificate ends.
    pub not_after: Timestamp,
    /// Who issued it.
    pub issuer: Issuer,
    /// Which quotas its calls count against.
    pub(crate) plan: PlanSlot,
    /// The same as records have it.
    pub(crate) actor: Actor,
}

impl Caller {
    /// A principal, by its certificate.
    #[must_use]
    pub fn new(
        principal: PrincipalArn,
        serial: Vec<u8>,
        not_after: Timestamp,
        issuer: Issuer,
    ) -> Self {
        let actor = Actor::new(&principal, &serial);
        Self { principal, serial, not_after, issuer, plan: PlanSlot::default(), actor }
    }
}

/// One call, on its way through the stack.
#[derive(Debug)]
pub struct Call {
    /// Who.
    pub caller: Arc<Caller>,
    /// What.
    pub request: Arc<Request>,
    /// How long the caller waits.
    pub patience: Duration,
    /// For the audit trail.
    pub trace: Trace,
}

impl Call {
    /// A call of which nothing but this is known.
    #[must_use]
    pub fn new(caller: Arc<Caller>, request: Request, patience: Duration) -> Self {
        Self { caller, request: Arc::new(request), patience, trace: Trace::default() }
    }
}

/// An encryption context as it came in.
pub type Context = BTreeMap<String, String>;

/// A tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Default)]
            pub struct $name { $($(#[$fdoc])* #[allow(missing_docs)] pub $field: $type,)* }
        )+

        /// A request, by operation.
        #[derive(Debug)]
        pub enum Request { $($(#[$doc])* $name($name),)+ }

        impl Request {
            /// Which operation it asks for.
            #[must_use]
            pub const fn operation(&self) -> Operation {
                match self { $(Self::$name(_) => Operation::$name,)+ }
            }
        }

        $(impl From<$name> for Request { fn from(request: $name) -> Self { Self::$name(request) } })+
    };
}

requests! {
    /// Makes a key.
    CreateKey {
        description: Option<String>,
        key_usage: Option<String>,
        key_spec: Option<String>,
        origin: Option<String>,
        tags: Vec<Tag>,
        multi_region: Option<bool>,
        policy: Option<String>,
    }
    /// Tells about a key.
    DescribeKey { key_id: String, }
    /// Lists the account's keys.
    ListKeys { limit: Option<i32>, marker: Option<String>, }
    /// Changes a key's description.
    UpdateKeyDescription { key_id: String, description: String, }
    /// Switches a key on.
    EnableKey { key_id: String, }
    /// Switches a key off.
    DisableKey { key_id: String, }
    /// Starts the waiting period before deletion.
    ScheduleKeyDeletion { key_id: String, pending_window_in_days: Option<i32>, }
    /// Ends the waiting period.
    CancelKeyDeletion { key_id: String, }
    /// Tells how far a key's deletion has come.
    GetKeyDeletionStatus { key_id: String, }
    /// Makes an alias.
    CreateAlias { alias_name: String, target_key_id: String, }
    /// Points an alias at another key.
    UpdateAlias { alias_name: String, target_key_id: String, }
    /// Removes an alias.
    DeleteAlias { alias_name: String, }
    /// Lists aliases.
    ListAliases { key_id: Option<String>, limit: Option<i32>, marker: Option<String>, }
    /// Adds or changes tags.
    TagResource { key_id: String, tags: Vec<Tag>, }
    /// Removes tags.
    UntagResource { key_id: String, tag_keys: Vec<String>, }
    /// Lists tags.
    ListResourceTags { key_id: String, limit: Option<i32>, marker: Option<String>, }
    /// Switches automatic rotation on, or changes its period.
    EnableKeyRotation { key_id: String, rotation_period_in_days: Option<i32>, }
    /// Switches automatic rotation off.
    DisableKeyRotation { key_id: String, }
    /// Tells about rotation.
    GetKeyRotationStatus { key_id: String, }
    /// Rotates now.
    RotateKeyOnDemand { key_id: String, }
    /// Lists the key's materials.
    ListKeyRotations {
        key_id: String,
        include_key_material: Option<String>,
        limit: Option<i32>,
        marker: Option<String>,
    }
    /// Encrypts.
    Encrypt {
        key_id: String,
        plaintext: Secret,
        encryption_context: Context,
        encryption_algorithm: Option<String>,
        dry_run: bool,
    }
    /// Decrypts.
    Decrypt {
        ciphertext_blob: Vec<u8>,
        encryption_context: Context,
        key_id: Option<String>,
        encryption_algorithm: Option<String>,
        dry_run: bool,
    }
    /// Decrypts and encrypts again.
    ReEncrypt {
        ciphertext_blob: Vec<u8>,
        source_encryption_context: Context,
        source_key_id: Option<String>,
        destination_key_id: String,
        destination_encryption_context: Context,
        source_encryption_algorithm: Option<String>,
        destination_encryption_algorithm: Option<String>,
        dry_run: bool,
    }
    /// Makes a data key, in clear and encrypted.
    GenerateDataKey {
        key_id: String,
        encryption_context: Context,
        key_spec: Option<String>,
        number_of_bytes: Option<i32>,
        dry_run: bool,
    }
    /// Makes a data key, encrypted only.
    GenerateDataKeyWithoutPlaintext {
        key_id: String,
        encryption_context: Context,
        key_spec: Option<String>,
        number_of_bytes: Option<i32>,
        dry_run: bool,
    }
    /// Makes random bytes.
    GenerateRandom { number_of_bytes: Option<i32>, }
    /// Has another Region make a replica.
    ReplicateKey {
        key_id: String,
        replica_region: String,
        description: Option<String>,
        tags: Vec<Tag>,
        policy: Option<String>,
    }
    /// Makes a replica the primary.
    UpdatePrimaryRegion { key_id: String, primary_region: String, }
    /// Tells how far each Region is with a key.
    GetKeyReplicationStatus { key_id: String, }
    /// Waits until a change of another Region has come to every node of this one. Keyward's own.
    WaitForChange { change: String, }
}

/// A caller's plaintext on its way through. Wiped on drop; shown nowhere.
#[derive(Default)]
pub struct Secret(zeroize::Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(zeroize::Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Hands the bytes to a transport, whose buffers are its own.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What DescribeKey tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KeyMetadata {
    pub account: String,
    pub key_id: String,
    pub arn: String,
    pub creation_date: Timestamp,
    pub description: String,
    pub state: KeyState,
    pub deletion_date: Option<Timestamp>,
    /// Of a primary that waits for its replicas to be gone.
    pub pending_window_days: Option<u32>,
    pub current_key_material_id: String,
    /// Of a multi-Region key.
    pub multi_region: Option<MultiRegionConfiguration>,
}

/// Where a multi-Region key is: ARN and Region of each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MultiRegionConfiguration {
    pub primary: (String, String),
    pub replicas: Vec<(String, String)>,
}

/// How far each Region is with a multi-Region key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReplicationStatus {
    pub key_arn: String,
    /// The number of the primary's epoch.
    pub epoch: u64,
    pub primary_region: String,
    /// A Region that is about to become the primary's.
    pub offered_to: Option<String>,
    /// A new material waits until every Region has it.
    pub rotation_waits: bool,
    pub regions: Vec<RegionalKey>,
    /// Names the key's last change here.
    pub change: String,
}

/// One Region of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RegionalKey {
    pub region: String,
    pub arn: String,
    pub primary: bool,
    /// Its replica has not been made yet, as far as is known here.
    pub being_made: bool,
    /// It has taken over the key's last change.
    pub up_to_date: bool,
    /// How old that change is, in milliseconds, where it has not.
    pub behind_ms: Option<u64>,
    /// host:port of that Region's nodes as they are reached from here; none of this Region's own.
    pub endpoints: Vec<String>,
    /// That Region's authority, DER.
    pub ca_certificate: Vec<u8>,
}

/// An entry of ListAliases.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AliasEntry {
    pub name: String,
    pub arn: String,
    pub target_key_id: String,
    pub creation_date: Timestamp,
    pub last_updated_date: Timestamp,
}

/// An entry of ListKeyRotations.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RotationEntry {
    pub key_id: String,
    pub key_material_id: String,
    pub key_material_state: &'static str,
    pub rotation_date: Option<Timestamp>,
    pub rotation_type: Option<&'static str>,
}

/// How far a key's deletion has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeletionStatus {
    pub key_arn: String,
    /// The key's state; none once it is gone.
    pub state: Option<KeyState>,
    pub deletion_date: Option<Timestamp>,
    /// When it was deleted, if it was.
    pub deleted: Option<Timestamp>,
    pub nodes: Vec<NodeDeletion>,
}

/// How far one node has come with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NodeDeletion {
    pub node: u64,
    pub address: String,
    pub reachable: bool,
    /// No file of that node holds the key's material any more.
    pub gone: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Where the next page starts, if there is one.
    pub next_marker: Option<String>,
}

/// An answer. One shape serves several operations where they answer alike.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Response {
    /// Nothing to tell beyond success.
    Done,
    /// CreateKey, DescribeKey.
    Key(Box<KeyMetadata>),
    Keys(Listing<(String, String)>),
    DeletionScheduled {
        key_arn: String,
        /// None for a primary that waits for its replicas to be gone.
        deletion_date: Option<Timestamp>,
        window_days: i32,
    },
    /// ReplicateKey.
    Replicated(Box<KeyMetadata>),
    Replication(Box<ReplicationStatus>),
    DeletionStatus(Box<DeletionStatus>),
    /// CancelKeyDeletion, RotateKeyOnDemand.
    KeyArn(String),
    Aliases(Listing<AliasEntry>),
    Tags(Listing<Tag>),
    RotationStatus {
        key_id: String,
        enabled: bool,
        period_days: Option<i32>,
        next: Option<Timestamp>,
        on_demand_started: Option<Timestamp>,
    },
    Rotations(Listing<RotationEntry>),
    Encrypted {
        ciphertext_blob: Vec<u8>,
        key_arn: String,
    },
    Decrypted {
        plaintext: Secret,
        key_arn: String,
        key_material_id: String,
    },
    ReEncrypted {
        ciphertext_blob: Vec<u8>,
        source_key_arn: String,
        key_arn: String,
        source_material: String,
        destination_material: String,
    },
    /// GenerateDataKey with the plaintext, GenerateDataKeyWithoutPlaintext without.
    DataKey {
        ciphertext_blob: Vec<u8>,
        plaintext: Option<Secret>,
        key_arn: String,
        key_material_id: String,
    },
    Random(Secret),
}
