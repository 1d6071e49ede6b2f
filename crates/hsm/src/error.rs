//! Everything that can go wrong here. Texts name what was wrong and what would be right; no text holds a
//! secret, and none tells why a ciphertext did not open.

use std::path::PathBuf;
use std::time::Duration;

use keyward_model::{DomainKeyId, KeyMaterialId};
use rustix::io::Errno;
use thiserror::Error;

use crate::arena::SLOT_BYTES;
use crate::root::{Pkcs11Error, RootId, SHARE_CHARS, SHARES_MAX};

/// What the boundary answers when it cannot do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HsmError {
    /// Secret memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The root provider.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The bytes are no ciphertext of ours. Found before any cryptography.
    #[error(transparent)]
    CiphertextFormat(#[from] CiphertextError),
    /// The encryption context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The ciphertext does not open: wrong key, wrong context or changed bits. Which one is not told.
    #[error("the ciphertext does not open under this key and encryption context")]
    InvalidCiphertext,
    /// The domain key has not been opened on this node.
    #[error("domain key {0} is not open on this node: open it from its sealed copies first")]
    DomainKeyNotOpen(DomainKeyId),
    /// There is no copy for this node's root.
    #[error(
        "domain key {domain} has no copy for root {root}: another member has to reseal it for this node"
    )]
    NoCopyForRoot {
        /// The domain key.
        domain: DomainKeyId,
        /// This node's root.
        root: RootId,
    },
    /// What was unwrapped is not the domain key of that id.
    #[error("what was opened is not domain key {0}: the sealed copy belongs to another one")]
    WrongDomainKey(DomainKeyId),
    /// A token that is truncated, of an unknown version or of the wrong kind.
    #[error("not a sealed token that this version can read: {0}")]
    TokenFormat(&'static str),
    /// A sealed token does not open: altered, or sealed for another key or label.
    #[error("a sealed token does not open: it was altered, or sealed for something else")]
    TokenDoesNotOpen,
    /// The material in the token is not the one that it was filed under.
    #[error("what was opened is not key material {0}")]
    WrongMaterial(KeyMaterialId),
    /// A reseal request with a key that is not a point on the curve.
    #[error("the reseal request of root {0} is malformed: ask the joining node for a new one")]
    ResealRequest(RootId),
    /// A resealed domain key does not open.
    #[error("the resealed domain key does not open: it was altered, or sealed for another request")]
    ResealDoesNotOpen,
    /// Another Region's public key that is not a point on the curve, or a private key that is none.
    #[error(
        "{0} is not a key for material between Regions: an uncompressed P-256 point is expected"
    )]
    TransferKey(&'static str),
    /// Material from another Region does not open.
    #[error(
        "the material from another Region does not open: it was altered, or sealed by or for another Region, key or \
         version"
    )]
    TransferDoesNotOpen,
    /// A chunk of a file does not open.
    #[error("a chunk of the file does not open: it was altered, or is not the one that comes next")]
    ChunkDoesNotOpen,
    /// The file had its last chunk, or as many as one key seals.
    #[error("the file has had its last chunk: nothing more is sealed or opened under its key")]
    FileIsOver,
    /// Something is longer, or shorter, than its limit.
    #[error("{what}: {bytes} bytes; allowed are {bytes_min} to {bytes_max}")]
    Length {
        /// What it is.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The least allowed.
        bytes_min: usize,
        /// The most allowed.
        bytes_max: usize,
    },
    /// The crypto provider failed on inputs that are right. A bug, or broken hardware.
    #[error("the crypto provider failed at {0}")]
    Crypto(&'static str),
    /// No root of this node has answered rightly for longer than the grace that was configured. Keys are
    /// used again as soon as one does.
    #[error(
        "no root of this node has answered rightly for {} s and more ({reason}): keys are used again as \
         soon as one does; mend the root, or use another node",
        grace.as_secs()
    )]
    RootAway {
        /// When one last did, on the clock that counts from boot.
        since: Duration,
        /// How long keys are used without.
        grace: Duration,
        /// What the last probe failed with.
        reason: String,
    },
    /// A root that this node has already.
    #[error("root {0} is a root of this node already")]
    RootPresent(RootId),
    /// Not a root of this node.
    #[error("root {0} is no root of this node: its roots are listed in its status")]
    NoSuchRoot(RootId),
    /// The last root cannot be removed.
    #[error("root {0} is the only root of this node: add another one before this is removed")]
    LastRoot(RootId),
    /// More roots than a node may have.
    #[error("a node has at most {roots_max} roots: remove one first")]
    TooManyRoots {
        /// The most allowed.
        roots_max: usize,
    },
    /// The system did not let core dumps be switched off.
    #[error("cannot keep key material out of core dumps: {what} failed ({source})")]
    NotHardened {
        /// The call.
        what: &'static str,
        /// The system's error.
        source: Errno,
    },
}

/// Secret memory could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// `mlock` was refused.
    #[error(
        "cannot lock {bytes} bytes of memory for keys ({source}; the limit is {}): raise it \
         (`ulimit -l`, or LimitMEMLOCK= in a systemd unit), or set allow_unlocked if swap is off or \
         encrypted",
        limit(limit_bytes)
    )]
    NotLocked {
        /// The smallest amount that was tried.
        bytes: usize,
        /// `RLIMIT_MEMLOCK`, if there is one.
        limit_bytes: Option<u64>,
        /// The system's error.
        source: Errno,
    },
    /// The memory could not be mapped at all.
    #[error("cannot map {bytes} bytes of memory for keys ({source})")]
    NotMapped {
        /// Bytes asked for.
        bytes: usize,
        /// The system's error.
        source: Errno,
    },
    /// Every slot is taken.
    #[error(
        "all {slots} slots of secret memory are in use: raise the arena's size, or cache fewer keys"
    )]
    Exhausted {
        /// How many there are.
        slots: usize,
    },
    /// A secret that does not fit a slot.
    #[error("a secret in locked memory has 1 to {SLOT_BYTES} bytes, not {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A secret of another length than its use asks for.
    #[error("a key of {expected} bytes is needed here, and this one has {bytes}")]
    KeyLength {
        /// Its length.
        bytes: usize,
        /// The length that would be right.
        expected: usize,
    },
}

fn limit(bytes: &Option<u64>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}

/// A root provider refused, or could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootError {
    /// Secret memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// What was to be unwrapped was altered, or wrapped by another root or for another use.
    #[error("root {0} cannot unwrap this: it was altered, or wrapped by another root")]
    DoesNotUnwrap(RootId),
    /// What the root unwrapped is not what it had wrapped.
    #[error("root {0} answers wrongly: what it unwraps is not what it wrapped")]
    WrongAnswer(RootId),
    /// The root did not answer in time.
    #[error("the root did not answer within {} ms: look at its device or network", limit.as_millis())]
    Timeout {
        /// How long it was waited for.
        limit: Duration,
    },
    /// A PKCS#11 token.
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11Error),
    /// The root is gone for now.
    #[error("the root cannot be reached: {0}")]
    Away(String),
    /// The root's key is not here: too few of its shares were given.
    #[error(
        "root {root} is sealed: {given} of {needed} shares were given, {} more are needed",
        needed.saturating_sub(*given)
    )]
    Sealed {
        /// The root.
        root: RootId,
        /// Shares given so far.
        given: u8,
        /// Shares that open it.
        needed: u8,
    },
    /// Not the text of a share.
    #[error("not a share: {SHARE_CHARS} letters and digits are expected, in groups of four")]
    ShareForm,
    /// The text of a share with a mistake in it.
    #[error("this share has a mistake in it: compare it with the original, letter by letter")]
    ShareDamaged,
    /// A share of another root.
    #[error("this share belongs to root {found}, and this node's root is {expected}")]
    ShareForeign {
        /// The root of this node.
        expected: RootId,
        /// The root that the share belongs to.
        found: RootId,
    },
    /// The share was given before.
    #[error("share {index} was given already: another one is needed")]
    ShareDuplicate {
        /// Its number.
        index: u8,
    },
    /// The shares are of this root by their labels and do not give its key.
    #[error(
        "these shares do not give the key of root {0}: at least one was forged, and all were forgotten; \
         give them again, each from its keeper"
    )]
    SharesWrong(RootId),
    /// A number of shares that makes no sense.
    #[error(
        "2 to {SHARES_MAX} shares, and 2 or more of them needed: {needed} of {shares} is not allowed"
    )]
    ShareCounts {
        /// Shares that would open the root.
        needed: u8,
        /// Shares in all.
        shares: u8,
    },
    /// The crypto provider failed.
    #[error("the crypto provider failed at {0}")]
    Crypto(&'static str),
    /// The file exists and would be overwritten.
    #[error("{} exists: a root is never overwritten; move it away if it is really not needed", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is not there.
    #[error("{} does not exist: without it the keys sealed for this node stay sealed", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner may read or change the file.
    #[error("{} has mode {mode:04o}: others can reach the root key; run `chmod 600 {}`", path.display(), path.display())]
    LooseMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error("{} belongs to user {owner}, and this process runs as {user}; run `chown {user} {}`", path.display(), path.display())]
    OtherOwner {
        /// The file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The process's effective user id.
        user: u32,
    },
    /// Not a regular file of the right length.
    #[error("{} is not a root key: a regular file of {expected} bytes is expected, this has {bytes}; restore it from a backup, or remove it if this node was never started", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length that would be right.
        expected: u64,
    },
    /// The file holds another root than when this process started.
    #[error("{} no longer holds root {root}: put it back before the next start", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The root that it held.
        root: RootId,
    },
    /// The parameter file cannot be read.
    #[error("{}: {what}; restore it from a backup, or remove it if this node was never started", path.display())]
    Params {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Argon2id parameters outside what is safe or sensible.
    #[error("Argon2id parameters: {0}")]
    ParamsRange(&'static str),
    /// Another passphrase than the one that the root was made with.
    #[error("the passphrase is wrong for {}", path.display())]
    WrongPassphrase {
        /// The parameter file.
        path: PathBuf,
    },
    /// A passphrase that is too short or too long.
    #[error("a passphrase has {bytes_min} to {bytes_max} bytes, not {bytes}")]
    PassphraseLength {
        /// Its length.
        bytes: usize,
        /// The least allowed.
        bytes_min: usize,
        /// The most allowed.
        bytes_max: usize,
    },
    /// The system refused a file operation.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Not the text of a root id.
    #[error(
        "not a root id: expected a provider's name, a colon and 32 lower-case hexadecimal digits"
    )]
    Id,
}

/// Bytes that are no ciphertext of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CiphertextError {
    /// Shorter than any ciphertext.
    #[error("a ciphertext has at least {bytes_min} bytes, this has {bytes}")]
    TooShort {
        /// Its length.
        bytes: usize,
        /// The least possible.
        bytes_min: usize,
    },
    /// Longer than any ciphertext.
    #[error("a ciphertext has at most {bytes_max} bytes, this has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most allowed.
        bytes_max: usize,
    },
    /// Made by something else, or by a later version.
    #[error("ciphertext format version {0} is not known here")]
    UnknownVersion(u8),
    /// The key id is of no known kind.
    #[error("key id kind {0} is not known here")]
    UnknownKeyIdKind(u8),
}

/// An encryption context that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Longer than the limit.
    #[error("an encryption context has at most {bytes_max} bytes when encoded; this has more")]
    TooLong {
        /// The most allowed.
        bytes_max: usize,
    },
    /// The same key twice.
    #[error("an encryption context names each key once; one occurs twice")]
    DuplicateKey,
}
