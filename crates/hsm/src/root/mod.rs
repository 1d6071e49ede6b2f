//! Root providers: where the root key lives. A provider wraps and unwraps; it never hands out the root.

mod file;
mod memory;
mod passphrase;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use keyward_env::Entropy;
use serde::{Deserialize, Serialize};

use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{
    CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, RingProvider, scrub_stack,
};

pub use file::FileRoot;
pub use memory::MemoryRoot;
pub use passphrase::{ArgonParams, PASSPHRASE_BYTES_MIN, PassphraseRoot, read_credential};

const ROOT_ID_LABEL: &[u8] = b"keyward root id v1";
/// Bytes of a root key.
pub(crate) const ROOT_KEY_BYTES: usize = 32;

/// Names a root: the provider, a colon, and 32 hexadecimal digits that a PRF made from the key, so that
/// they reveal nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(String);

impl RootId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn of(kind: RootKind, key: &[u8]) -> Self {
        let mut digits = [0; 16];
        counter_hmac_sha256(&RingProvider, key, ROOT_ID_LABEL, &[], &mut digits);
        scrub_stack();
        Self(format!("{}:{}", kind.name(), hex::encode(digits)))
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RootId {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        let (kind, digits) = text.split_once(':').ok_or(RootError::Id)?;
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let known = RootKind::ALL.iter().any(|known| known.name() == kind);
        if known && digits.len() == 32 && digits.bytes().all(lower) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RootError::Id)
        }
    }
}

impl TryFrom<String> for RootId {
    type Error = RootError;

    fn try_from(text: String) -> Result<Self, RootError> {
        text.parse()
    }
}

impl From<RootId> for String {
    fn from(id: RootId) -> Self {
        id.0
    }
}

/// The kinds of root that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// A key in a file of mode 0600.
    File,
    /// A key derived from a passphrase.
    Passphrase,
    /// A key in memory, for simulation and tests.
    Memory,
}

impl RootKind {
    const ALL: [Self; 3] = [Self::File, Self::Passphrase, Self::Memory];

    /// The name, as configuration and ids write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Passphrase => "passphrase",
            Self::Memory => "memory",
        }
    }
}

/// What a provider's methods return.
pub type RootFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, RootError>> + Send + 'a>>;

/// Holds a root key and never shows it.
pub trait RootProvider: Send + Sync + 'static {
    /// Wraps a secret. `aad` is bound to it and has to be the same when it is unwrapped.
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>>;

    /// Unwraps into a slot of `arena`.
    fn unwrap<'a>(
        &'a self,
        sealed: &'a [u8],
        aad: &'a [u8],
        arena: &'a Arc<Arena>,
    ) -> RootFuture<'a, Secret>;

    /// Which root it is.
    fn identity(&self) -> &RootId;

    /// What kind of root it is.
    fn kind(&self) -> RootKind;

    /// Whether it could wrap and unwrap now.
    fn health(&self) -> RootFuture<'_, ()>;
}

/// A root key in a slot, and AES-256-GCM (SP 800-38D) under it with random 96-bit initialisation vectors:
/// a root wraps one domain key a day, far from the 2^32 messages that such vectors allow.
pub(crate) struct LocalRoot {
    id: RootId,
    key: Secret,
    entropy: Arc<dyn Entropy>,
}

impl LocalRoot {
    pub(crate) fn new(kind: RootKind, key: Secret, entropy: Arc<dyn Entropy>) -> Self {
        Self { id: RootId::of(kind, key.expose()), key, entropy }
    }

    pub(crate) fn id(&self) -> &RootId {
        &self.id
    }

    /// Vector, ciphertext, tag.
    fn wrap(&self, plaintext: &Secret, aad: &[u8]) -> Result<Vec<u8>, RootError> {
        let mut nonce = [0; GCM_NONCE_BYTES];
        self.entropy.fill(&mut nonce);
        let mut sealed =
            Vec::with_capacity(GCM_NONCE_BYTES + plaintext.len() + GCM_TAG_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext.expose());
        let key = self.key.expose_key()?;
        let tag = RingProvider
            .aes_256_gcm_seal(key, &nonce, aad, &mut sealed[GCM_NONCE_BYTES..])
            .map_err(|_| RootError::Crypto("AES-256-GCM encryption"))?;
        scrub_stack();
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    fn unwrap(&self, sealed: &[u8], aad: &[u8], arena: &Arc<Arena>) -> Result<Secret, RootError> {
        let refused = || RootError::DoesNotUnwrap(self.id.clone());
        let (nonce, rest) =
            sealed.split_first_chunk::<GCM_NONCE_BYTES>().ok_or_else(refused)?;
        let (body, tag) = rest.split_last_chunk::<GCM_TAG_BYTES>().ok_or_else(refused)?;
        let mut secret = arena.copy_in(body).map_err(|_| refused())?;
        let key = self.key.expose_key()?;
        let opened = RingProvider.aes_256_gcm_open(key, nonce, aad, secret.expose_mut(), tag);
        scrub_stack();
        opened.map_err(|_| refused())?;
        Ok(secret)
    }
}

/// The parts of [`RootProvider`] that every provider with a local key has in common.
macro_rules! local_provider {
    ($kind:expr) => {
        fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>> {
            Box::pin(std::future::ready(self.root.wrap(plaintext, aad)))
        }

        fn unwrap<'a>(
            &'a self,
            sealed: &'a [u8],
            aad: &'a [u8],
            arena: &'a Arc<Arena>,
        ) -> RootFuture<'a, Secret> {
            Box::pin(std::future::ready(self.root.unwrap(sealed, aad, arena)))
        }

        fn identity(&self) -> &RootId {
            self.root.id()
        }

        fn kind(&self) -> RootKind {
            $kind
        }
    };
}
pub(crate) use local_provider;

/// An arena for the root key alone: it lives as long as the process.
pub(crate) fn root_arena(allow_unlocked: bool) -> Result<Arc<Arena>, RootError> {
    let config =
        crate::arena::ArenaConfig { bytes: crate::arena::ARENA_BYTES_MIN, allow_unlocked };
    Ok(Arena::new(&config)?)
}
