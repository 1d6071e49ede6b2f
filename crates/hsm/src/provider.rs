//! The seam to the library that computes the primitives. No primitive is written in this repository.
//!
//! Every test of a primitive (`vectors.rs`: Wycheproof, NIST, RFCs) runs against the trait.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::{digest, hmac};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// Bytes of an AES-256 key.
pub const AES_256_KEY_BYTES: usize = 32;
/// Bytes of a GCM initialisation vector (SP 800-38D, section 8.2: 96 bits).
pub const GCM_NONCE_BYTES: usize = 12;
/// Bytes of a GCM tag. Never cut short.
pub const GCM_TAG_BYTES: usize = 16;
/// Bytes of a SHA-256 digest and of an HMAC-SHA-256 tag.
pub const SHA_256_BYTES: usize = 32;

/// A primitive refused: a tag that does not match, or an input beyond what the algorithm can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the cryptographic operation failed")]
pub struct CryptoFailure;

/// The primitives that Keyward rests on. Keys are borrowed for one call and kept by nobody.
pub trait CryptoProvider: Send + Sync + 'static {
    /// AES-256-GCM (SP 800-38D), encryption in place. Returns the tag. One (key, nonce) pair is used
    /// for one message only: the caller sees to it.
    ///
    /// # Errors
    /// When `in_out` is longer than GCM allows (2^36 - 32 bytes).
    fn aes_256_gcm_seal(
        &self,
        key: &[u8; AES_256_KEY_BYTES],
        nonce: &[u8; GCM_NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; GCM_TAG_BYTES], CryptoFailure>;

    /// AES-256-GCM (SP 800-38D), decryption in place.
    ///
    /// # Errors
    /// When the tag does not match; what `in_out` holds then must not be used.
    fn aes_256_gcm_open(
        &self,
        key: &[u8; AES_256_KEY_BYTES],
        nonce: &[u8; GCM_NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8; GCM_TAG_BYTES],
    ) -> Result<(), CryptoFailure>;

    /// HMAC-SHA-256 (FIPS 198-1) over the concatenation of `parts`, into `tag`.
    fn hmac_sha256(&self, key: &[u8], parts: &[&[u8]], tag: &mut [u8; SHA_256_BYTES]);

    /// SHA-256 (FIPS 180-4) of the concatenation of `parts`.
    fn sha256(&self, parts: &[&[u8]]) -> [u8; SHA_256_BYTES];

    /// Compares in a time that depends on the lengths only. Slices of unlike length are unequal.
    fn equal(&self, a: &[u8], b: &[u8]) -> bool {
        a.ct_eq(b).into()
    }
}

/// The primitives from `ring`. Its key objects are made per call, on the stack (decision 0003).
#[derive(Clone, Copy, Debug, Default)]
pub struct RingProvider;

fn ring_key(key: &[u8; AES_256_KEY_BYTES]) -> Result<LessSafeKey, CryptoFailure> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| CryptoFailure)
}

impl CryptoProvider for RingProvider {
    fn aes_256_gcm_seal(
        &self,
        key: &[u8; AES_256_KEY_BYTES],
        nonce: &[u8; GCM_NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; GCM_TAG_BYTES], CryptoFailure> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = ring_key(key)?
            .seal_in_place_separate_tag(nonce, Aad::from(aad), in_out)
            .map_err(|_| CryptoFailure)?;
        tag.as_ref().try_into().map_err(|_| CryptoFailure)
    }

    fn aes_256_gcm_open(
        &self,
        key: &[u8; AES_256_KEY_BYTES],
        nonce: &[u8; GCM_NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8; GCM_TAG_BYTES],
    ) -> Result<(), CryptoFailure> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        ring_key(key)?
            .open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), in_out, 0..)
            .map(|_| ())
            .map_err(|_| CryptoFailure)
    }

    fn hmac_sha256(&self, key: &[u8], parts: &[&[u8]], tag: &mut [u8; SHA_256_BYTES]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let mut context = hmac::Context::with_key(&key);
        for part in parts {
            context.update(part);
        }
        tag.copy_from_slice(context.sign().as_ref());
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; SHA_256_BYTES] {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(part);
        }
        let mut out = [0; SHA_256_BYTES];
        out.copy_from_slice(context.finish().as_ref());
        out
    }
}

/// Overwrites the part of the stack that calls which have just returned used, where `ring` leaves its key
/// schedules. A best effort: what a compiler spills elsewhere it cannot reach (decision 0003).
#[inline(never)]
pub(crate) fn scrub_stack() {
    /// 8 KiB. `tests/residue.rs` finds keys 5 KiB down in release builds and 7 KiB down in debug ones when
    /// this is 4 KiB.
    const WORDS: usize = 1024;
    let mut scrubbed = [0u64; WORDS];
    std::hint::black_box(&mut scrubbed);
}
