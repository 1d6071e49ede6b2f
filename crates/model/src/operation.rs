//! The operations, and the table of key states against operations.

use serde::{Deserialize, Serialize};

use crate::{ErrorCode, KmsError};

/// The state of a KMS key (AWS KMS developer guide, "Key states of AWS KMS keys"). States that come with
/// imported material and key stores join when those do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum KeyState {
    /// Usable.
    Enabled,
    /// Switched off by an administrator.
    Disabled,
    /// Waiting for its deletion date.
    PendingDeletion,
    /// A replica that its Region has not made yet.
    Creating,
    /// Being made primary, or giving that up. Cryptography goes on.
    Updating,
    /// A primary to be deleted, which waits until its last replica is gone.
    PendingReplicaDeletion,
}

impl KeyState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Enabled,
        Self::Disabled,
        Self::PendingDeletion,
        Self::Creating,
        Self::Updating,
        Self::PendingReplicaDeletion,
    ];

    /// The name as AWS writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::Creating => "Creating",
            Self::Updating => "Updating",
            Self::PendingReplicaDeletion => "PendingReplicaDeletion",
        }
    }
}

/// What an operation does to the key, and so who may call it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plane {
    /// Uses a key: served from the memory of the node that is asked, without a Raft entry.
    Use,
    /// Reads about a key.
    Read,
    /// Changes a key, an alias or a tag: one Raft command.
    Manage,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $plane:ident),+ $(,)?) => {
        /// An operation of the key service, by AWS's name.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum Operation {
            $($(#[$doc])* $name,)+
        }

        impl Operation {
            /// All operations offered.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name as AWS writes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The plane that the operation belongs to.
            #[must_use]
            pub const fn plane(self) -> Plane {
                match self { $(Self::$name => Plane::$plane,)+ }
            }
        }
    };
}

operations! {
    /// Makes a key.
    CreateKey: Manage,
    /// Tells about a key.
    DescribeKey: Read,
    /// Lists the account's keys.
    ListKeys: Read,
    /// Changes a key's description.
    UpdateKeyDescription: Manage,
    /// Switches a key on.
    EnableKey: Manage,
    /// Switches a key off.
    DisableKey: Manage,
    /// Starts the waiting period before deletion.
    ScheduleKeyDeletion: Manage,
    /// Ends the waiting period; the key is then disabled.
    CancelKeyDeletion: Manage,
    /// Tells how far a key's deletion has come, node by node. Keyward's own: AWS has no such call.
    GetKeyDeletionStatus: Read,
    /// Makes an alias.
    CreateAlias: Manage,
    /// Points an alias at another key.
    UpdateAlias: Manage,
    /// Removes an alias.
    DeleteAlias: Manage,
    /// Lists aliases.
    ListAliases: Read,
    /// Adds or changes tags.
    TagResource: Manage,
    /// Removes tags.
    UntagResource: Manage,
    /// Lists tags.
    ListResourceTags: Read,
    /// Switches automatic rotation on, or changes its period.
    EnableKeyRotation: Manage,
    /// Switches automatic rotation off.
    DisableKeyRotation: Manage,
    /// Tells about rotation.
    GetKeyRotationStatus: Read,
    /// Rotates now.
    RotateKeyOnDemand: Manage,
    /// Lists the key's materials.
    ListKeyRotations: Read,
    /// Encrypts up to 4096 bytes.
    Encrypt: Use,
    /// Decrypts.
    Decrypt: Use,
    /// Decrypts and encrypts again, without showing the plaintext.
    ReEncrypt: Use,
    /// Makes a data key, in clear and encrypted.
    GenerateDataKey: Use,
    /// Makes a data key, encrypted only.
    GenerateDataKeyWithoutPlaintext: Use,
    /// Makes random bytes.
    GenerateRandom: Use,
    /// Has another Region make a replica of a multi-Region key.
    ReplicateKey: Manage,
    /// Makes a replica the primary, and the primary a replica.
    UpdatePrimaryRegion: Manage,
    /// Tells how far each Region is with a multi-Region key. Keyward's own: AWS has no such call.
    GetKeyReplicationStatus: Read,
    /// Waits for a change of another Region. Keyward's own.
    WaitForChange: Read,
}

/// Whether a key in `state` allows `operation`; otherwise AWS's refusal, which names the key by its ARN.
/// (The state table of the AWS KMS developer guide; rows of operations that touch no single key are
/// allowed.)
pub fn check_state(operation: Operation, state: KeyState, key_arn: &str) -> Result<(), KmsError> {
    use KeyState::{
        Creating, Disabled, Enabled, PendingDeletion, PendingReplicaDeletion, Updating,
    };
    use Operation as Op;

    let disabled =
        || Err(KmsError::new(ErrorCode::DisabledException, format!("{key_arn} is disabled.")));
    let is = |what: &str| {
        Err(KmsError::new(ErrorCode::KMSInvalidStateException, format!("{key_arn} is {what}.")))
    };
    match (operation, state) {
        (
            Op::CreateKey
            | Op::DescribeKey
            | Op::ListKeys
            | Op::ListAliases
            | Op::ListResourceTags
            | Op::DeleteAlias
            | Op::GetKeyRotationStatus
            | Op::ListKeyRotations
            | Op::GetKeyDeletionStatus
            | Op::GetKeyReplicationStatus
            | Op::WaitForChange
            | Op::GenerateRandom,
            _,
        ) => Ok(()),
        (Op::CancelKeyDeletion, PendingDeletion | PendingReplicaDeletion) => Ok(()),
        (Op::CancelKeyDeletion, _) => Err(KmsError::new(
            ErrorCode::KMSInvalidStateException,
            format!("{key_arn} is not pending deletion"),
        )),
        (_, Enabled) => Ok(()),
        (
            Op::Encrypt
            | Op::Decrypt
            | Op::ReEncrypt
            | Op::GenerateDataKey
            | Op::GenerateDataKeyWithoutPlaintext
            | Op::EnableKeyRotation
            | Op::DisableKeyRotation
            | Op::RotateKeyOnDemand
            | Op::ReplicateKey
            | Op::UpdatePrimaryRegion,
            Disabled,
        ) => disabled(),
        (_, Disabled) => Ok(()),
        (_, PendingDeletion | PendingReplicaDeletion) => is("pending deletion"),
        (
            Op::CreateAlias
            | Op::UpdateAlias
            | Op::TagResource
            | Op::UntagResource
            | Op::UpdateKeyDescription
            | Op::ScheduleKeyDeletion,
            Creating,
        ) => Ok(()),
        (_, Creating) => is("creating"),
        (
            Op::EnableKey
            | Op::DisableKey
            | Op::RotateKeyOnDemand
            | Op::ScheduleKeyDeletion
            | Op::ReplicateKey,
            Updating,
        ) => is("updating"),
        (_, Updating) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the developer guide, row by row: Enabled, Disabled, PendingDeletion and
    /// PendingReplicaDeletion, Creating, Updating.
    #[test]
    fn the_state_table_is_the_published_one() {
        use ErrorCode::{DisabledException as D, KMSInvalidStateException as S};
        let table = [
            ("DescribeKey", [None, None, None, None, None]),
            ("ListAliases", [None, None, None, None, None]),
            ("ListResourceTags", [None, None, None, None, None]),
            ("DeleteAlias", [None, None, None, None, None]),
            ("Encrypt", [None, Some(D), Some(S), Some(S), None]),
            ("Decrypt", [None, Some(D), Some(S), Some(S), None]),
            ("ReEncrypt", [None, Some(D), Some(S), Some(S), None]),
            ("GenerateDataKey", [None, Some(D), Some(S), Some(S), None]),
            ("GenerateDataKeyWithoutPlaintext", [None, Some(D), Some(S), Some(S), None]),
            ("CreateAlias", [None, None, Some(S), None, None]),
            ("UpdateAlias", [None, None, Some(S), None, None]),
            ("TagResource", [None, None, Some(S), None, None]),
            ("UntagResource", [None, None, Some(S), None, None]),
            ("UpdateKeyDescription", [None, None, Some(S), None, None]),
            ("EnableKey", [None, None, Some(S), Some(S), Some(S)]),
            ("DisableKey", [None, None, Some(S), Some(S), Some(S)]),
            ("EnableKeyRotation", [None, Some(D), Some(S), Some(S), None]),
            ("DisableKeyRotation", [None, Some(D), Some(S), Some(S), None]),
            ("GetKeyRotationStatus", [None, None, None, None, None]),
            ("RotateKeyOnDemand", [None, Some(D), Some(S), Some(S), Some(S)]),
            ("ListKeyRotations", [None, None, None, None, None]),
            ("ScheduleKeyDeletion", [None, None, Some(S), None, Some(S)]),
            ("CancelKeyDeletion", [Some(S), Some(S), None, Some(S), Some(S)]),
            ("GetKeyDeletionStatus", [None, None, None, None, None]),
            ("CreateKey", [None, None, None, None, None]),
            ("ListKeys", [None, None, None, None, None]),
            ("GenerateRandom", [None, None, None, None, None]),
            ("ReplicateKey", [None, Some(D), Some(S), Some(S), Some(S)]),
            ("UpdatePrimaryRegion", [None, Some(D), Some(S), Some(S), None]),
            ("GetKeyReplicationStatus", [None, None, None, None, None]),
            ("WaitForChange", [None, None, None, None, None]),
        ];
        assert_eq!(table.len(), Operation::ALL.len());
        for (name, row) in table {
            let operation = *Operation::ALL.iter().find(|o| o.name() == name).expect(name);
            let [enabled, disabled, pending, creating, updating] = row;
            let row = [enabled, disabled, pending, creating, updating, pending];
            for (state, expected) in KeyState::ALL.into_iter().zip(row) {
                let got = check_state(operation, state, "arn:x").err().map(|e| e.code);
                assert_eq!(got, expected, "{name} in {state:?}");
            }
        }
    }
}
