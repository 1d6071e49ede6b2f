//! The one construction that seals tokens and messages: derive a key for this one use, then AES-256-GCM.
//!
//! The key of the use is SP 800-108 (counter mode, HMAC-SHA-256) over 128 fresh random bits. It seals one
//! message, so the 96-bit initialisation vector is all zeros (decision 0002).

use zeroize::{Zeroize, Zeroizing};

use crate::arena::Secret;
use crate::error::ArenaError;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{
    AES_256_KEY_BYTES, CryptoFailure, CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, scrub_stack,
};

/// Bytes of the random value that a key for one use is derived over.
pub(crate) const SALT_BYTES: usize = 16;

/// Each derived key encrypts once, so every one may start from the same initialisation vector.
const IV: [u8; GCM_NONCE_BYTES] = [0; GCM_NONCE_BYTES];

/// Why a sealing step failed.
pub(crate) enum SealError {
    /// The key is not 32 bytes long.
    Key(ArenaError),
    /// The tag does not match, or the provider failed.
    Crypto(CryptoFailure),
}

/// Seals in place under a key derived from `key` over `salt`, and returns the tag. `salt` is fresh. On
/// failure `in_out` is wiped: it may still hold the plaintext, in a buffer that nobody wipes on drop.
pub(crate) fn seal_once(
    crypto: &dyn CryptoProvider,
    key: &Secret,
    label: &[u8],
    salt: &[u8; SALT_BYTES],
    aad: &[u8],
    in_out: &mut [u8],
) -> Result<[u8; GCM_TAG_BYTES], SealError> {
    let sealed = with_derived_key(crypto, key, label, salt, |derived| {
        crypto.aes_256_gcm_seal(derived, &IV, aad, in_out)
    });
    if sealed.is_err() {
        in_out.zeroize();
    }
    sealed
}

/// Opens in place what [`seal_once`] sealed.
pub(crate) fn open_once(
    crypto: &dyn CryptoProvider,
    key: &Secret,
    label: &[u8],
    salt: &[u8; SALT_BYTES],
    aad: &[u8],
    in_out: &mut [u8],
    tag: &[u8; GCM_TAG_BYTES],
) -> Result<(), SealError> {
    with_derived_key(crypto, key, label, salt, |derived| {
        crypto.aes_256_gcm_open(derived, &IV, aad, in_out, tag)
    })
}

/// Derives, lends the derived key, and leaves neither it nor the library's key objects behind.
fn with_derived_key<T>(
    crypto: &dyn CryptoProvider,
    key: &Secret,
    label: &[u8],
    salt: &[u8; SALT_BYTES],
    use_key: impl FnOnce(&[u8; AES_256_KEY_BYTES]) -> Result<T, CryptoFailure>,
) -> Result<T, SealError> {
    let key: &[u8; AES_256_KEY_BYTES] = key.expose_key().map_err(SealError::Key)?;
    let outcome = derive_and_use(crypto, key, label, salt, use_key);
    scrub_stack();
    outcome.map_err(SealError::Crypto)
}

/// Not inlined, so that all its stack lies where `scrub_stack` writes next.
#[inline(never)]
fn derive_and_use<T>(
    crypto: &dyn CryptoProvider,
    key: &[u8; AES_256_KEY_BYTES],
    label: &[u8],
    salt: &[u8; SALT_BYTES],
    use_key: impl FnOnce(&[u8; AES_256_KEY_BYTES]) -> Result<T, CryptoFailure>,
) -> Result<T, CryptoFailure> {
    let mut derived = Zeroizing::new([0; AES_256_KEY_BYTES]);
    counter_hmac_sha256(crypto, key, label, salt, &mut *derived);
    use_key(&derived)
}
