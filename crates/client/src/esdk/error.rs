//! What can go wrong with a message, and what to do about it.

use std::io;

use super::header::Suite;

/// The error of a caller's own key source or opener.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a message could not be written or read. The texts tell a person what is wrong; causes that came
/// from elsewhere (files, key services) are the [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EsdkError {
    /// The reader failed.
    #[error("the input cannot be read")]
    Read(#[source] io::Error),
    /// The writer failed.
    #[error("the output cannot be written")]
    Write(#[source] io::Error),

    /// The first bytes are not those of any message.
    #[error(
        "not an AWS Encryption SDK message (it should begin with byte 0x02; a message in base64 has to be decoded first)"
    )]
    NotAMessage,
    /// A message of a suite that is not read here.
    #[error(
        "suite 0x{0:04x} is not supported: Keyward reads committing suites {commit} and {signed}",
        commit = Suite::Commit,
        signed = Suite::CommitSigned
    )]
    UnsupportedSuite(u16),
    /// A message whose content is one block instead of frames.
    #[error(
        "the message is not framed: Keyward reads framed messages only, since a single block cannot be authenticated before all of it is held in memory"
    )]
    NotFramed,
    /// The header contradicts the format.
    #[error("the header is malformed: {0}")]
    MalformedHeader(&'static str),
    /// Something in the header is beyond what is accepted.
    #[error("the header's {what} is {found}, beyond the limit of {max}")]
    HeaderLimit {
        /// What is too long or too many.
        what: &'static str,
        /// How long, or how many.
        found: u64,
        /// The limit.
        max: u64,
    },

    /// The message ends in its header.
    #[error("the message ends inside its header: it was cut short")]
    TruncatedHeader,
    /// The message ends before its final frame.
    #[error("the message ends after frame {after_frame}, before its final frame: it was cut short")]
    Truncated {
        /// The last frame that is complete; 0 if none is.
        after_frame: u32,
    },
    /// The message ends before its signature.
    #[error("the message ends before its signature: it was cut short")]
    TruncatedSignature,
    /// Something follows the message.
    #[error(
        "bytes follow the end of the message: it was appended to, or is two messages in one file"
    )]
    TrailingData,

    /// The context lacks a pair that the caller requires.
    #[error(
        "the message's encryption context does not say {key}={expected}: it is about something else than expected"
    )]
    ContextMismatch {
        /// The key of the pair.
        key: String,
        /// The value that was required.
        expected: String,
    },
    /// No data key of the message was wrapped by a KMS.
    #[error(
        "none of the message's data keys was wrapped by a KMS (provider \"aws-kms\"); providers found: {found}"
    )]
    NoKmsDataKey {
        /// The provider ids of the message's data keys.
        found: String,
    },
    /// The key source gave no data key.
    #[error("no data key could be generated")]
    KeySource(#[source] BoxError),
    /// The opener could open none of the data keys; the source is its last refusal.
    #[error(
        "none of the message's {tried} data key(s) could be opened; the last is wrapped by {key_arn}"
    )]
    KeyOpener {
        /// How many were tried.
        tried: usize,
        /// The key that wrapped the last.
        key_arn: String,
        /// The opener's refusal of the last.
        #[source]
        source: BoxError,
    },
    /// A data key is not 32 bytes long.
    #[error("the data key is {0} bytes long; the committing suites need 32 (key spec AES_256)")]
    DataKeyLength(usize),

    /// The data key is not the one that the message was made with.
    #[error(
        "the commitment does not match: the data key that was opened is not the one that the message was encrypted with"
    )]
    CommitmentMismatch,
    /// The header's tag does not match.
    #[error("the header does not authenticate: it was changed")]
    HeaderNotAuthentic,
    /// A frame's tag does not match.
    #[error("frame {frame} does not authenticate: it was changed")]
    FrameNotAuthentic {
        /// The frame, counted from 1.
        frame: u32,
    },
    /// A frame is missing, repeated or misplaced.
    #[error(
        "frame {found} is where frame {expected} should be: frames were moved, removed or repeated"
    )]
    FrameOrder {
        /// The number that should come.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// The final frame says that it is longer than the header allows.
    #[error("the final frame claims {found} bytes; frames of this message have at most {max}")]
    FinalFrameLength {
        /// The length claimed.
        found: u32,
        /// The frame length of the message.
        max: u32,
    },
    /// The verification key of a signed message is absent or not a point of the curve.
    #[error(
        "the message is of a signed suite but its encryption context carries no usable verification key (\"aws-crypto-public-key\")"
    )]
    VerificationKey,
    /// The signature does not verify.
    #[error(
        "the signature does not verify: the message is not from whom it claims; discard what was written"
    )]
    SignatureInvalid,

    /// The caller's context uses a key of the format.
    #[error("encryption context key \"{0}\" is reserved: keys may not begin with \"aws-crypto-\"")]
    ReservedContextKey(String),
    /// The frame length asked for is out of range.
    #[error("a frame length of {found} bytes is not possible: use 1 to {max}")]
    FrameLength {
        /// The length asked for.
        found: u32,
        /// The longest possible.
        max: u32,
    },
    /// The content needs more frames than can be numbered.
    #[error("the content needs more than 4294967295 frames: use a longer frame length")]
    TooManyFrames,
    /// No signing key could be made.
    #[error("the message could not be signed: the source of randomness gave no usable key")]
    Signing,
}
