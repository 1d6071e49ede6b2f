//! The operations, and the table of key states against operations.

use serde::{Deserialize, Serialize};

use crate::{ErrorCode, KmsError};

/// The state of a KMS key (AWS KMS developer guide, "Key states of AWS KMS keys"). States that come with
/// imported material, key stores and multi-Region keys join when those do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum KeyState {
    /// Usable.
    Enabled,
    /// Switched off by an administrator.
    Disabled,
    /// Waiting for its deletion date.
    PendingDeletion,
}

impl KeyState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Enabled, Self::Disabled, Self::PendingDeletion];

    /// The name as AWS writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
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
}

/// Whether a key in `state` allows `operation`; otherwise AWS's refusal, which names the key by its ARN.
/// (The state table of the AWS KMS developer guide; rows of operations that touch no single key are
/// allowed.)
pub fn check_state(operation: Operation, state: KeyState, key_arn: &str) -> Result<(), KmsError> {
    use KeyState::{Disabled, Enabled, PendingDeletion};
    use Operation as Op;

    let disabled =
        || Err(KmsError::new(ErrorCode::DisabledException, format!("{key_arn} is disabled.")));
    let pending = || {
        Err(KmsError::new(
            ErrorCode::KMSInvalidStateException,
            format!("{key_arn} is pending deletion."),
        ))
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
            | Op::GenerateRandom,
            _,
        ) => Ok(()),
        (Op::CancelKeyDeletion, PendingDeletion) => Ok(()),
        (Op::CancelKeyDeletion, Enabled | Disabled) => Err(KmsError::new(
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
            | Op::RotateKeyOnDemand,
            Disabled,
        ) => disabled(),
        (_, Disabled) => Ok(()),
        (_, PendingDeletion) => pending(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the developer guide, row by row: Enabled, Disabled, PendingDeletion.
    #[test]
    fn the_state_table_is_the_published_one() {
        use ErrorCode::{DisabledException as D, KMSInvalidStateException as S};
        let table = [
            ("DescribeKey", [None, None, None]),
            ("ListAliases", [None, None, None]),
            ("ListResourceTags", [None, None, None]),
            ("DeleteAlias", [None, None, None]),
            ("Encrypt", [None, Some(D), Some(S)]),
            ("Decrypt", [None, Some(D), Some(S)]),
            ("ReEncrypt", [None, Some(D), Some(S)]),
            ("GenerateDataKey", [None, Some(D), Some(S)]),
            ("GenerateDataKeyWithoutPlaintext", [None, Some(D), Some(S)]),
            ("CreateAlias", [None, None, Some(S)]),
            ("UpdateAlias", [None, None, Some(S)]),
            ("TagResource", [None, None, Some(S)]),
            ("UntagResource", [None, None, Some(S)]),
            ("UpdateKeyDescription", [None, None, Some(S)]),
            ("EnableKey", [None, None, Some(S)]),
            ("DisableKey", [None, None, Some(S)]),
            ("EnableKeyRotation", [None, Some(D), Some(S)]),
            ("DisableKeyRotation", [None, Some(D), Some(S)]),
            ("GetKeyRotationStatus", [None, None, None]),
            ("RotateKeyOnDemand", [None, Some(D), Some(S)]),
            ("ListKeyRotations", [None, None, None]),
            ("ScheduleKeyDeletion", [None, None, Some(S)]),
            ("CancelKeyDeletion", [Some(S), Some(S), None]),
            ("GetKeyDeletionStatus", [None, None, None]),
            ("CreateKey", [None, None, None]),
            ("ListKeys", [None, None, None]),
            ("GenerateRandom", [None, None, None]),
        ];
        assert_eq!(table.len(), Operation::ALL.len());
        for (name, row) in table {
            let operation = *Operation::ALL.iter().find(|o| o.name() == name).expect(name);
            for (state, expected) in KeyState::ALL.into_iter().zip(row) {
                let got = check_state(operation, state, "arn:x").err().map(|e| e.code);
                assert_eq!(got, expected, "{name} in {state:?}");
            }
        }
    }
}
