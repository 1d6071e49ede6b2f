//! Data keys, and the two traits through which they come: whoever wraps keys implements them.

use zeroize::Zeroizing;

use super::EncryptionContext;
use super::error::{BoxError, EsdkError};
use super::header::EncryptedDataKey;

/// Makes data keys: a KMS's GenerateDataKey.
pub trait DataKeySource {
    /// Why no key was made.
    type Error: Into<BoxError>;

    /// A fresh data key of 32 bytes, wrapped under `context` exactly as given.
    ///
    /// # Errors
    /// What the key service refused with.
    fn generate(&mut self, context: &EncryptionContext) -> Result<DataKey, Self::Error>;
}

/// Opens wrapped data keys: a KMS's Decrypt.
pub trait DataKeyOpener {
    /// Why a key was not opened.
    type Error: Into<BoxError>;

    /// The plaintext of `encrypted`, which was wrapped under `context`. An implementation should name the
    /// key it expects ([`EncryptedDataKey::key_arn`]) to the key service, and refuse keys that it was not
    /// told to trust. It is asked for each wrapped key of a message in turn, until it opens one.
    ///
    /// Neither argument is authenticated yet: the message's header is checked with the key that is opened.
    ///
    /// # Errors
    /// What the key service refused with.
    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, Self::Error>;
}

/// A data key as [`DataKeySource`] gives it: in plaintext, and wrapped.
pub struct DataKey {
    /// The key itself.
    pub plaintext: PlaintextDataKey,
    /// The key, wrapped by the KMS (AWS: CiphertextBlob).
    pub ciphertext_blob: Vec<u8>,
    /// The ARN of the KMS key that wrapped it (AWS: KeyId of the response).
    pub key_arn: String,
}

/// The 32 bytes of a data key. They cannot be printed or cloned, and are wiped when dropped. They live on
/// the heap, so that moving the key leaves no copies behind.
pub struct PlaintextDataKey(Box<Zeroizing<[u8; Self::LENGTH]>>);

impl PlaintextDataKey {
    /// Length of a data key, in bytes.
    pub const LENGTH: usize = 32;

    /// Copies the key out of `bytes`, which the caller should wipe.
    ///
    /// # Errors
    /// [`EsdkError::DataKeyLength`] if there are not exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, EsdkError> {
        if bytes.len() != Self::LENGTH {
            return Err(EsdkError::DataKeyLength(bytes.len()));
        }
        let mut key = Box::new(Zeroizing::new([0; Self::LENGTH]));
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    /// The bytes, for those who derive from them or wrap them.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}
