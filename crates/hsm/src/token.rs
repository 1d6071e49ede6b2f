//! Sealed tokens: the only form in which material is replicated, logged, stored or backed up.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | token version, 1 |
//! | 1 | 1 | kind: 1 backing key, 2 small secret |
//! | 2 | 16 | domain key id |
//! | 18 | 16 | salt that the token's key is derived over |
//! | 34 | n | sealed bytes |
//! | end - 16 | 16 | GCM tag |
//!
//! AAD: the first 34 bytes, then what the token belongs to. For a backing key: key-id kind (1), key id
//! (16), key-material id (32). For a small secret: its label.

use std::fmt;

use keyward_model::{DomainKeyId, KeyId, KeyMaterialId};
use serde::{Deserialize, Serialize};

use crate::arena::Secret;
use crate::error::HsmError;
use crate::provider::{CryptoProvider, GCM_TAG_BYTES};
use crate::sealing::{SALT_BYTES, SealError, open_once, seal_once};

const VERSION: u8 = 1;
const DOMAIN_AT: usize = 2;
const SALT_AT: usize = DOMAIN_AT + 16;
const HEADER_BYTES: usize = SALT_AT + SALT_BYTES;
const TOKEN_KEY_LABEL: &[u8] = b"keyward token key v1";

/// The longest small secret, in bytes: private keys and certificates, not documents.
pub const SEALED_SECRET_BYTES_MAX: usize = 64 << 10;
/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = HEADER_BYTES + SEALED_SECRET_BYTES_MAX + GCM_TAG_BYTES;

/// Something sealed under a domain key. Self-describing; may be stored and sent anywhere. `Debug` prints
/// the length only, to keep logs short.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedToken(Vec<u8>);

impl SealedToken {
    /// Takes stored bytes back. They are checked when the token is opened.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The domain key that it is sealed under, or `None` when these bytes are no token that this version
    /// can read.
    #[must_use]
    pub fn domain_key_id(&self) -> Option<DomainKeyId> {
        self.parts().ok().map(|parts| parts.domain)
    }

    fn parts(&self) -> Result<Parts<'_>, HsmError> {
        let bytes = self.0.as_slice();
        if bytes.len() > TOKEN_BYTES_MAX {
            return Err(HsmError::TokenFormat("too long"));
        }
        let (header, rest) =
            bytes.split_first_chunk::<HEADER_BYTES>().ok_or(HsmError::TokenFormat("truncated"))?;
        let (sealed, tag) =
            rest.split_last_chunk::<GCM_TAG_BYTES>().ok_or(HsmError::TokenFormat("truncated"))?;
        if header[0] != VERSION {
            return Err(HsmError::TokenFormat("unknown version"));
        }
        let (mut domain, mut salt) = ([0; 16], [0; SALT_BYTES]);
        domain.copy_from_slice(&header[DOMAIN_AT..SALT_AT]);
        salt.copy_from_slice(&header[SALT_AT..]);
        let domain = DomainKeyId::new(domain);
        Ok(Parts { header, kind: header[1], domain, salt, sealed, tag })
    }

    /// How many bytes are sealed in it.
    pub(crate) fn sealed_bytes(&self) -> Result<usize, HsmError> {
        Ok(self.parts()?.sealed.len())
    }
}

impl fmt::Debug for SealedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedToken({} bytes)", self.0.len())
    }
}

struct Parts<'a> {
    header: &'a [u8; HEADER_BYTES],
    kind: u8,
    domain: DomainKeyId,
    salt: [u8; SALT_BYTES],
    sealed: &'a [u8],
    tag: &'a [u8; GCM_TAG_BYTES],
}

/// What a token belongs to: part of its AAD, not of its bytes.
#[derive(Clone, Copy)]
pub(crate) enum Belongs<'a> {
    /// A material of a KMS key.
    BackingKey(KeyId, KeyMaterialId),
    /// A small secret of that label.
    Secret(&'a str),
}

impl Belongs<'_> {
    fn kind(self) -> u8 {
        match self {
            Self::BackingKey(..) => 1,
            Self::Secret(_) => 2,
        }
    }

    fn aad(self, header: &[u8]) -> Vec<u8> {
        let mut aad = header.to_vec();
        match self {
            Self::BackingKey(key, material) => {
                aad.push(u8::from(key.is_multi_region()));
                aad.extend_from_slice(key.bytes());
                aad.extend_from_slice(material.bytes());
            }
            Self::Secret(label) => aad.extend_from_slice(label.as_bytes()),
        }
        aad
    }
}

/// Seals `plaintext` under the domain key `secret` of the id `domain`. `salt` is fresh.
pub(crate) fn seal(
    crypto: &dyn CryptoProvider,
    domain: DomainKeyId,
    secret: &Secret,
    salt: &[u8; SALT_BYTES],
    belongs: Belongs<'_>,
    plaintext: &[u8],
) -> Result<SealedToken, HsmError> {
    // The capacity is exact, so that no reallocation leaves a plaintext behind.
    let mut token = Vec::with_capacity(HEADER_BYTES + plaintext.len() + GCM_TAG_BYTES);
    token.extend([VERSION, belongs.kind()]);
    token.extend_from_slice(domain.bytes());
    token.extend_from_slice(salt);
    token.extend_from_slice(plaintext);
    let (header, in_out) = token.split_at_mut(HEADER_BYTES);
    let aad = belongs.aad(header);
    let tag =
        seal_once(crypto, secret, TOKEN_KEY_LABEL, salt, &aad, in_out).map_err(
            |error| match error {
                SealError::Key(error) => HsmError::Arena(error),
                SealError::Crypto(_) => HsmError::Crypto("AES-256-GCM encryption"),
            },
        )?;
    token.extend_from_slice(&tag);
    Ok(SealedToken(token))
}

/// Opens a token into `plaintext`, which has the length that [`SealedToken::sealed_bytes`] tells. On
/// failure its contents must not be used.
pub(crate) fn open(
    crypto: &dyn CryptoProvider,
    secret: &Secret,
    token: &SealedToken,
    belongs: Belongs<'_>,
    plaintext: &mut [u8],
) -> Result<(), HsmError> {
    let parts = token.parts()?;
    if parts.kind != belongs.kind() {
        return Err(HsmError::TokenFormat("of another kind"));
    }
    if parts.sealed.len() != plaintext.len() {
        return Err(HsmError::TokenFormat("of another length"));
    }
    plaintext.copy_from_slice(parts.sealed);
    let aad = belongs.aad(parts.header);
    open_once(crypto, secret, TOKEN_KEY_LABEL, &parts.salt, &aad, plaintext, parts.tag)
        .map_err(|_| HsmError::TokenDoesNotOpen)
}
