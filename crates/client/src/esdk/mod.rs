//! The AWS Encryption SDK message format, version 2, for streams of any size in bounded memory.
//!
//! [`encrypt()`] asks a [`DataKeySource`] for a fresh data key, wrapped by a KMS key, and writes one
//! message: a header that carries the wrapped key and the encryption context, then the content in frames
//! that are encrypted and authenticated one by one. [`decrypt()`] has a [`DataKeyOpener`] unwrap the key and
//! writes the content. [`inspect`] shows a header without opening anything. Any other reader of the format
//! (AWS's SDKs for Python, Java, JavaScript, C, .NET, Go and Rust, and the AWS Encryption CLI) reads what
//! is written here, and the other way round.
//!
//! The format is that of AWS's "AWS Encryption SDK message format reference" and "algorithm suites
//! reference". Only the two committing suites are read and written ([`Suite`]): in the older ones, one
//! ciphertext can be made to open to different contents under different keys.
//!
//! **Invariants**
//! * No plaintext of a frame leaves before that frame is authenticated. Truncation and trailing bytes are
//!   errors, but are known only at the end, as is the signature of [`Suite::CommitSigned`]: what
//!   [`decrypt()`] has written is to be believed only once it has returned `Ok` (write to a temporary file
//!   and rename it).
//! * Nothing of a header is believed, and no memory is reserved by its word, before the header is
//!   authenticated, other than what is needed to ask for the data key. Every length has a limit.
//! * No cryptographic primitive is written here: AES-GCM, HKDF and SHA-2 are `ring`'s; ECDSA is the crate
//!   `p384`'s, since `ring` signs and verifies whole messages in memory only.
//! * Memory is at most two frames and some buffers, whatever the length of the stream.

mod decrypt;
mod encrypt;
mod error;
mod header;
mod keys;
mod message_key;
mod signature;

pub use decrypt::{DecryptOptions, decrypt, inspect};
pub use encrypt::{EncryptOptions, encrypt};
pub use error::{BoxError, EsdkError};
pub use header::{EncryptedDataKey, Header, Suite};
pub use keys::{DataKey, DataKeyOpener, DataKeySource, PlaintextDataKey};

use std::collections::BTreeMap;

/// The encryption context: what a message is about, in pairs of text. Not secret; authenticated with the
/// message and bound to its wrapped data key by the KMS.
pub type EncryptionContext = BTreeMap<String, String>;

/// The provider id of data keys that a KMS wrapped.
pub const PROVIDER_ID: &str = "aws-kms";

/// The context key under which a signed message carries its verification key.
pub const PUBLIC_KEY_CONTEXT_KEY: &str = "aws-crypto-public-key";

/// Context keys that begin with this belong to the format; callers may not use them.
pub const RESERVED_CONTEXT_PREFIX: &str = "aws-crypto-";

/// Content bytes of a frame that is written, unless the caller says otherwise: 64 KiB.
///
/// The SDKs write 4 KiB and read any length. A frame costs 32 bytes, a call into the cipher, a read and a
/// write: measured on 256 MiB, frames of 64 KiB are encrypted almost twice as fast as frames of 4 KiB,
/// and frames of 1 MiB no faster than those. They add 0.05 % to the length (4 KiB: 0.8 %), and a reader
/// holds no more than that before it can release a byte.
pub const FRAME_LENGTH_DEFAULT: u32 = 64 * 1024;

/// Content bytes of the longest frame that is written, and by default of the longest that is read: a
/// reader must hold a whole frame before it may release any of it.
pub const FRAME_LENGTH_MAX: u32 = 64 * 1024 * 1024;

/// Wrapped data keys in one header. The format allows 65 535; each may cost its reader a call to a KMS.
pub const ENCRYPTED_DATA_KEYS_MAX: u16 = 64;

/// What one message was, as told by [`encrypt()`] and [`decrypt()`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The algorithm suite.
    pub suite: Suite,
    /// The encryption context, with the verification key of a signed message.
    pub context: EncryptionContext,
    /// The ARN of the KMS key that wrapped the data key that was used.
    pub key_arn: String,
    /// Frames of the body.
    pub frames: u32,
    /// Length of the content, in bytes.
    pub plaintext_bytes: u64,
    /// Length of the message, in bytes.
    pub message_bytes: u64,
}
