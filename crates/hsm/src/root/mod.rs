//! Root providers: what stands at the top of the key hierarchy, and never hands its key out.

mod core;
mod file;
mod memory;
mod params;
mod passphrase;
mod pkcs11;
mod shamir;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::file::FileRoot;
pub use self::memory::MemoryRoot;
pub use self::params::ArgonParams;
pub use self::passphrase::{PASSPHRASE_BYTES_MIN, PassphraseRoot, read_credential};
pub use self::pkcs11::leave_pkcs11_modules;
pub use self::pkcs11::{
    PKCS11_TIMEOUT_DEFAULT, PinSource, Pkcs11Config, Pkcs11Error, Pkcs11Mechanism, Pkcs11Root,
    TokenName,
};
pub(crate) use self::shamir::SHARE_CHARS;
pub use self::shamir::{SHARES_MAX, ShamirRoot, ShareProgress, ShareText, Shares};
use crate::arena::{Arena, Secret};
use crate::error::RootError;

/// What a root provider's methods return: a boxed future, so that the trait can be used as an object.
pub type RootFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, RootError>> + Send + 'a>>;

/// A root key behind an interface that wraps and unwraps. Asynchronous, since a hardware module or a
/// network service may stand behind it. Used a few times at start and at each rotation of a domain key,
/// never on the data plane.
pub trait RootProvider: Send + Sync + 'static {
    /// Wraps a secret. `aad` is bound in and must be the same at unwrapping.
    ///
    /// # Errors
    /// [`RootError`] when the provider cannot be reached or fails.
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>>;

    /// Unwraps what [`RootProvider::wrap`] returned, into a slot of `arena`.
    ///
    /// # Errors
    /// [`RootError::DoesNotUnwrap`] when it was altered, wrapped by another root, or for another `aad`.
    fn unwrap<'a>(
        &'a self,
        sealed: &'a [u8],
        aad: &'a [u8],
        arena: &'a Arc<Arena>,
    ) -> RootFuture<'a, Secret>;

    /// Which root this is. Stable for as long as the root key is the same.
    fn identity(&self) -> &RootId;

    /// What kind of provider this is.
    fn kind(&self) -> RootKind;

    /// Whether the provider works now, and would work after a restart as far as it can tell.
    ///
    /// [`FileRoot`] and [`PassphraseRoot`] read one small file for it on the thread that polls: tens of
    /// microseconds from a local disk's page cache, and as long as it takes from a network file system
    /// that hangs. Ask at the pace of a health probe, never on the data plane.
    ///
    /// # Errors
    /// [`RootError`] that says what is wrong.
    fn health(&self) -> RootFuture<'_, ()>;
}

/// The kinds of root provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RootKind {
    /// [`FileRoot`].
    File,
    /// [`PassphraseRoot`].
    Passphrase,
    /// [`MemoryRoot`].
    Memory,
    /// [`ShamirRoot`].
    Shamir,
    /// [`Pkcs11Root`].
    Pkcs11,
}

impl RootKind {
    /// The name, as in configuration and in front of root ids.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Passphrase => "passphrase",
            Self::Memory => "memory",
            Self::Shamir => "shamir",
            Self::Pkcs11 => "pkcs11",
        }
    }
}

impl fmt::Display for RootKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The id of a root: its provider's name, a colon and 32 hexadecimal digits that the root key derives and
/// that reveal nothing about it. Example: `file:3f9c0c6a7f4c2b1e8d5a6b7c8d9e0f1a`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(Arc<str>);

impl RootId {
    fn new(kind: RootKind, digest: [u8; 16]) -> Self {
        Self(format!("{kind}:{}", hex::encode(digest)).into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RootId {
    type Err = RootError;

    /// Takes the name of any provider, known here or not: another node may run a later version.
    fn from_str(text: &str) -> Result<Self, RootError> {
        const NAME_BYTES_MAX: usize = 32;
        let (name, digits) = text.split_once(':').ok_or(RootError::Id)?;
        let name_fits = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let digits_fit = digits.len() == 32
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if name_fits && digits_fit { Ok(Self(text.into())) } else { Err(RootError::Id) }
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
        id.as_str().to_owned()
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_postcard_and_nothing_else_passes_for_one() {
        let id = RootId::new(RootKind::File, [0xab; 16]);
        assert_eq!(id.to_string(), format!("file:{}", "ab".repeat(16)));
        assert_eq!(id.as_str().parse::<RootId>().unwrap(), id);
        let bytes = postcard::to_allocvec(&id).unwrap();
        assert_eq!(postcard::from_bytes::<RootId>(&bytes).unwrap(), id);
        let digits = "0".repeat(32);
        assert!(format!("pkcs11:{digits}").parse::<RootId>().is_ok());
        for text in ["", "file", ":", "file:", "file:00"] {
            assert!(text.parse::<RootId>().is_err(), "{text}");
        }
        for (name, digits) in
            [("", &digits[..]), ("FILE", &digits), ("a b", &digits), ("file", &digits[1..])]
        {
            assert!(format!("{name}:{digits}").parse::<RootId>().is_err(), "{name}:{digits}");
        }
        let foreign = postcard::to_allocvec("not an id").unwrap();
        assert!(postcard::from_bytes::<RootId>(&foreign).is_err());
    }
}
