//! Keyward's cryptographic boundary: root providers, the key hierarchy, sealing, the ciphertext format
//! and the memory that secrets live in.
//!
//! ```text
//! root key      inside a RootProvider: wraps and unwraps, never hands out bytes
//!   domain key    one active per Region; stored once for every root   (SealedDomainKey)
//!     backing key   one per rotation of a KMS key                     (SealedToken)
//!       message key   one per Encrypt, SP 800-108 over a fresh nonce  (the ciphertext blob)
//! ```
//!
//! # Where to start
//! [`Hsm`] is the whole boundary for callers. [`Arena`] is the locked memory, [`FileRoot`] and
//! [`PassphraseRoot`], [`ShamirRoot`] and [`Pkcs11Root`] are the roots, [`Hsm::watch_roots`] sees whether they
//! answer, [`ParsedCiphertext`] is the public half of the format.
//! [`CryptoProvider`] is the seam to the library that computes the primitives.
//!
//! # What this crate does not know
//! It knows nothing of networks, of consensus, of permissions or of accounts. It reads and writes three
//! kinds of file (a root key, a passphrase's parameters, what is known of a split root), reads a fourth (a
//! credential), and no other. It loads the library of a PKCS#11 module, when one is configured.
//!
//! # Invariants
//! * What leaves this crate in plaintext is the plaintext of a message that was decrypted
//!   ([`Hsm::decrypt`]), and a small secret that was sealed as such ([`Hsm::open_secret`]).
//!   Domain and backing keys have no way out except sealed.
//! * [`Secret`], [`SecretVec`], [`BackingKey`] and [`ResealSecret`] have no `Debug`, `Display`, `Clone`
//!   or `Serialize`, and are wiped on drop.
//! * `unsafe` lives in `arena.rs` alone.
//! * Randomness comes from [`keyward_env::Entropy`]; there is no other source in this crate.
//! * Whether a wrong key, a wrong context or a changed bit kept a ciphertext from opening is not told.

mod arena;
mod cache;
mod ciphertext;
mod context;
mod domain;
mod error;
mod file_key;
mod hsm;
mod kdf;
mod material;
mod process;
mod provider;
mod reseal;
mod root;
mod sealing;
mod secret_vec;
mod token;
mod transfer;
mod watch;

pub mod testing;

pub use arena::{ARENA_BYTES_DEFAULT, ARENA_BYTES_MIN, Arena, ArenaConfig, SLOT_BYTES, Secret};
pub use cache::CacheStats;
pub use ciphertext::{CIPHERTEXT_OVERHEAD_BYTES, ParsedCiphertext};
pub use context::CanonicalContext;
pub use domain::{DOMAIN_KEY_BYTES, RootCopy, SealedDomainKey};
pub use error::{ArenaError, CiphertextError, ContextError, HsmError, RootError};
pub use file_key::{FileOpener, FileSealer};
pub use hsm::{CACHE_ENTRIES_DEFAULT, CACHE_ENTRIES_MAX, Hsm, HsmConfig, ROOTS_MAX};
pub use kdf::counter_hmac_sha256;
pub use material::{BACKING_KEY_BYTES, BackingKey};
pub use process::harden_process;
pub use provider::{
    AES_256_KEY_BYTES, CryptoFailure, CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, RingProvider,
    SHA_256_BYTES,
};
pub use reseal::{ResealRequest, ResealSecret};
pub use root::{
    ArgonParams, FileRoot, MemoryRoot, PASSPHRASE_BYTES_MIN, PKCS11_TIMEOUT_DEFAULT,
    PassphraseRoot, PinSource, Pkcs11Config, Pkcs11Error, Pkcs11Mechanism, Pkcs11Root, RootFuture,
    RootId, RootKind, RootProvider, SHARES_MAX, ShamirRoot, ShareProgress, ShareText, Shares,
    TokenName, leave_pkcs11_modules, read_credential,
};
pub use secret_vec::SecretVec;
pub use token::{SEALED_SECRET_BYTES_MAX, SealedToken, TOKEN_BYTES_MAX};
pub use watch::{EnvClock, RootClock, RootHealth, RootStatus, RootWatchConfig};
