//! What a PKCS#11 root answers when it cannot do what it was asked. No text holds a PIN.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::root::RootId;

/// A PKCS#11 token refused, is gone, or is not as it should be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Pkcs11Error {
    /// The module's library does not load, or does not begin.
    #[error(
        "{} is no PKCS#11 module that can be used: {why}. Is it the right file, and may the user that the node runs \
         as read the module's configuration and use its tokens or devices?", module.display()
    )]
    Module {
        /// The library.
        module: PathBuf,
        /// What the loader or the module said.
        why: String,
    },
    /// The token is not there.
    #[error("there is no token with {0}: connect it, or list the tokens with `pkcs11-tool -L`")]
    TokenMissing(String),
    /// Several tokens fit.
    #[error("there are several tokens with {0}: name one by its serial number")]
    TokenAmbiguous(String),
    /// The root key is not in the token.
    #[error("there is no AES key labelled {0:?} in the token: have it created first")]
    KeyMissing(String),
    /// A key of that label exists.
    #[error(
        "there is a key labelled {0:?} in the token: a root is never overwritten; use another label"
    )]
    KeyExists(String),
    /// Several keys fit.
    #[error(
        "there are several AES keys labelled {0:?} in the token: give the root's key a label of its own"
    )]
    KeyAmbiguous(String),
    /// The key must not serve as a root.
    #[error("the key labelled {label:?} cannot be a root: {what}")]
    KeyUnfit {
        /// Its label.
        label: String,
        /// What is wrong with it, and what would be right.
        what: &'static str,
    },
    /// The key is another one than when this process started.
    #[error("the key labelled {label:?} is root {found}, and was {expected}: put the token back")]
    OtherKey {
        /// Its label.
        label: String,
        /// The root that it was.
        expected: RootId,
        /// The root that it is now.
        found: RootId,
    },
    /// The token offers nothing to wrap with.
    #[error(
        "the key labelled {0:?} and its token allow neither AES-GCM nor AES key wrap, or not the mechanism that \
         is configured: have a key made for one that `pkcs11-tool -M` lists"
    )]
    NoMechanism(String),
    /// A secret that the mechanism does not take.
    #[error("AES key wrap takes a multiple of 8 bytes, not {bytes}")]
    SecretLength {
        /// Its length.
        bytes: usize,
    },
    /// A PIN that is empty or too long.
    #[error("a PIN has 1 to 64 bytes, not {bytes}")]
    PinLength {
        /// Its length.
        bytes: usize,
    },
    /// The token refused this PIN before.
    #[error(
        "the token refused this PIN, so it is not tried again: put the right one into the PIN's file, or \
         restart with `pin_retry = true` if this one is right after all"
    )]
    PinRefused,
    /// Somebody has entered a wrong PIN, perhaps this one before a restart.
    #[error(
        "a wrong PIN was entered since the last login, perhaps this one before a restart, so it is not \
         tried: make sure that it is right, then restart once with `pin_retry = true`, or log in once \
         with another tool"
    )]
    PinCountLow,
    /// One more wrong PIN would lock the token.
    #[error(
        "one more wrong PIN would lock the token, so none is tried: log in once with another tool, which \
         resets the count"
    )]
    PinFinalTry,
    /// The token is locked.
    #[error("the token's PIN is locked: its security officer has to set a new one")]
    PinLocked,
    /// All workers and places in the queue are taken.
    #[error("{queued} calls wait for the token already: it is too slow, or hangs")]
    Busy {
        /// How many.
        queued: usize,
    },
    /// Something else failed; tried again by later calls.
    #[error("the token fails: {0}")]
    Failed(String),
    /// It failed a short while ago, and is not bothered again yet.
    #[error("the token failed a short while ago and is tried again in {} ms: {why}", wait.as_millis())]
    Resting {
        /// How long until it is tried again.
        wait: Duration,
        /// What it failed with.
        why: String,
    },
}
