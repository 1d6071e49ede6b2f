//! The ciphertext blob (decision 0002).
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | key-id kind: 0 single-Region, 1 multi-Region |
//! | 2 | 16 | key id |
//! | 18 | 32 | key-material id |
//! | 50 | 16 | nonce that the message key is derived over |
//! | 66 | 1..=4096 | sealed bytes, as many as the plaintext has |
//! | end - 16 | 16 | GCM tag |
//!
//! The first 66 bytes are the header; header and canonical encryption context are the AAD.

use keyward_model::limits::{CIPHERTEXT_BYTES_MAX, PLAINTEXT_BYTES_MAX};
use keyward_model::{KeyId, KeyMaterialId};

use crate::context::CanonicalContext;
use crate::error::{CiphertextError, HsmError};
use crate::material::BackingKey;
use crate::provider::{CryptoProvider, GCM_TAG_BYTES};
use crate::sealing::{SALT_BYTES, SealError, open_once, seal_once};
use crate::secret_vec::SecretVec;

const VERSION: u8 = 1;
const KIND_SINGLE_REGION: u8 = 0;
const KIND_MULTI_REGION: u8 = 1;
const KEY_ID_AT: usize = 2;
const MATERIAL_AT: usize = KEY_ID_AT + 16;
const NONCE_AT: usize = MATERIAL_AT + 32;
const HEADER_BYTES: usize = NONCE_AT + SALT_BYTES;
const BYTES_MIN: usize = HEADER_BYTES + 1 + GCM_TAG_BYTES;

/// By how much a ciphertext is longer than its plaintext.
pub const CIPHERTEXT_OVERHEAD_BYTES: usize = HEADER_BYTES + GCM_TAG_BYTES;
const _: () = assert!(CIPHERTEXT_OVERHEAD_BYTES == 82);
const _: () = assert!(PLAINTEXT_BYTES_MAX + CIPHERTEXT_OVERHEAD_BYTES <= CIPHERTEXT_BYTES_MAX);

const MESSAGE_KEY_LABEL: &[u8] = b"keyward message key v1";

/// A blob whose shape has been checked and whose contents have not: who may use the key can be decided
/// before any cryptography. Borrows the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedCiphertext<'a> {
    blob: &'a [u8],
    key: KeyId,
    material: KeyMaterialId,
}

impl<'a> ParsedCiphertext<'a> {
    /// Takes a blob apart.
    ///
    /// # Errors
    /// [`CiphertextError`] for a blob that is truncated, too long, or of a version or kind that this
    /// program does not know.
    pub fn parse(blob: &'a [u8]) -> Result<Self, CiphertextError> {
        if blob.len() > CIPHERTEXT_BYTES_MAX {
            return Err(CiphertextError::TooLong {
                bytes: blob.len(),
                bytes_max: CIPHERTEXT_BYTES_MAX,
            });
        }
        let too_short = CiphertextError::TooShort { bytes: blob.len(), bytes_min: BYTES_MIN };
        match blob.first() {
            None => return Err(too_short),
            Some(&VERSION) => {}
            Some(&version) => return Err(CiphertextError::UnknownVersion(version)),
        }
        if blob.len() < BYTES_MIN {
            return Err(too_short);
        }
        let multi_region = match blob[1] {
            KIND_SINGLE_REGION => false,
            KIND_MULTI_REGION => true,
            kind => return Err(CiphertextError::UnknownKeyIdKind(kind)),
        };
        Ok(Self {
            blob,
            key: KeyId::from_parts(multi_region, array_at(blob, KEY_ID_AT)),
            material: KeyMaterialId::new(array_at(blob, MATERIAL_AT)),
        })
    }

    /// The key that the blob says it was made under.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key
    }

    /// The material of that key.
    #[must_use]
    pub fn material_id(&self) -> KeyMaterialId {
        self.material
    }

    /// How many bytes of plaintext it holds.
    #[must_use]
    pub fn plaintext_bytes(&self) -> usize {
        self.blob.len() - CIPHERTEXT_OVERHEAD_BYTES
    }
}

/// Copies `N` bytes from where the caller knows them to be.
fn array_at<const N: usize>(blob: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&blob[at..at + N]);
    out
}

/// Seals a plaintext of 1 to 4096 bytes under a fresh nonce. One allocation: the blob.
pub(crate) fn encrypt(
    crypto: &dyn CryptoProvider,
    backing: &BackingKey,
    nonce: &[u8; SALT_BYTES],
    plaintext: &[u8],
    context: &CanonicalContext,
) -> Result<Vec<u8>, HsmError> {
    if !(1..=PLAINTEXT_BYTES_MAX).contains(&plaintext.len()) {
        return Err(HsmError::Length {
            what: "plaintext",
            bytes: plaintext.len(),
            bytes_min: 1,
            bytes_max: PLAINTEXT_BYTES_MAX,
        });
    }
    // The capacity is exact, so that no reallocation leaves a plaintext behind.
    let mut blob = Vec::with_capacity(plaintext.len() + CIPHERTEXT_OVERHEAD_BYTES);
    let key = backing.key_id();
    blob.extend([
        VERSION,
        if key.is_multi_region() { KIND_MULTI_REGION } else { KIND_SINGLE_REGION },
    ]);
    blob.extend_from_slice(key.bytes());
    blob.extend_from_slice(backing.material_id().bytes());
    blob.extend_from_slice(nonce);
    blob.extend_from_slice(plaintext);
    let (header, in_out) = blob.split_at_mut(HEADER_BYTES);
    let tag = with_aad(header, context, |aad| {
        seal_once(crypto, backing.secret(), MESSAGE_KEY_LABEL, nonce, aad, in_out)
    })
    .map_err(|error| match error {
        SealError::Key(error) => HsmError::Arena(error),
        SealError::Crypto(_) => HsmError::Crypto("AES-256-GCM encryption"),
    })?;
    blob.extend_from_slice(&tag);
    debug_assert_eq!(blob.len(), plaintext.len() + CIPHERTEXT_OVERHEAD_BYTES);
    Ok(blob)
}

/// Opens a blob. One allocation: the plaintext.
pub(crate) fn decrypt(
    crypto: &dyn CryptoProvider,
    backing: &BackingKey,
    parsed: &ParsedCiphertext<'_>,
    context: &CanonicalContext,
) -> Result<SecretVec, HsmError> {
    let (header, rest) = parsed.blob.split_at(HEADER_BYTES);
    let (sealed, tag) = rest.split_at(rest.len() - GCM_TAG_BYTES);
    let mut plaintext = SecretVec::new(sealed.to_vec());
    let (nonce, tag) = (array_at(header, NONCE_AT), array_at(tag, 0));
    with_aad(header, context, |aad| {
        let in_out = plaintext.expose_mut();
        open_once(crypto, backing.secret(), MESSAGE_KEY_LABEL, &nonce, aad, in_out, &tag)
    })
    .map_err(|_| HsmError::InvalidCiphertext)?;
    Ok(plaintext)
}

/// Lends header and context as one slice, from the stack when they are short. Not secret.
fn with_aad<T>(header: &[u8], context: &CanonicalContext, use_aad: impl FnOnce(&[u8]) -> T) -> T {
    /// The header and a context of some 440 bytes.
    const ON_STACK_BYTES: usize = 512;
    let (context, bytes) = (context.as_bytes(), header.len() + context.as_bytes().len());
    if bytes > ON_STACK_BYTES {
        return use_aad(&[header, context].concat());
    }
    let mut aad = [0; ON_STACK_BYTES];
    aad[..header.len()].copy_from_slice(header);
    aad[header.len()..bytes].copy_from_slice(context);
    use_aad(&aad[..bytes])
}
