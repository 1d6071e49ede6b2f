//! What the roots with a key in this process's memory share: AES-256-GCM under the root key.
//!
//! Wrapped form: version (1), nonce (12), sealed bytes, tag (16). The nonce is random: a root wraps a few
//! domain keys a day at the most, far from the 2^32 messages that SP 800-38D (section 8.3) allows for
//! random 96-bit nonces.

use std::sync::Arc;

use keyward_env::Entropy;
use zeroize::Zeroize;

use super::{RootId, RootKind};
use crate::arena::{ARENA_BYTES_MIN, Arena, ArenaConfig, SLOT_BYTES, Secret};
use crate::error::RootError;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{
    AES_256_KEY_BYTES, CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, RingProvider, scrub_stack,
};

const VERSION: u8 = 1;
const OVERHEAD_BYTES: usize = 1 + GCM_NONCE_BYTES + GCM_TAG_BYTES;
const ROOT_ID_LABEL: &[u8] = b"keyward root id v1";
const WRAP_KEY_LABEL: &[u8] = b"keyward root wrap key v1";

/// A root key in locked memory and what wraps with it.
pub(super) struct RootCore {
    id: RootId,
    /// Derived from the root key; the root key itself only derives.
    wrap_key: Secret,
    /// The root's own: its key is there before the arena of the HSM is, and never takes a slot of that.
    arena: Arc<Arena>,
    entropy: Arc<dyn Entropy>,
    crypto: RingProvider,
}

/// The locked memory of one root: the smallest arena there is.
pub(super) fn root_arena(allow_unlocked: bool) -> Result<Arc<Arena>, RootError> {
    Ok(Arena::new(&ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked })?)
}

impl RootCore {
    /// Takes a root key of 32 bytes and derives id and wrapping key from it.
    pub(super) fn new(
        kind: RootKind,
        root_key: &Secret,
        arena: Arc<Arena>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RootError> {
        let crypto = RingProvider;
        let id = root_id(kind, root_key)?;
        let mut wrap_key = arena.zeroed(AES_256_KEY_BYTES)?;
        let root_key: &[u8; AES_256_KEY_BYTES] = root_key.expose_key()?;
        counter_hmac_sha256(&crypto, root_key, WRAP_KEY_LABEL, &[], wrap_key.expose_mut());
        scrub_stack();
        Ok(Self { id, wrap_key, arena, entropy, crypto })
    }

    pub(super) fn id(&self) -> &RootId {
        &self.id
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(super) fn wrap(&self, plaintext: &Secret, aad: &[u8]) -> Result<Vec<u8>, RootError> {
        let key = self.wrap_key.expose_key()?;
        let mut nonce = [0; GCM_NONCE_BYTES];
        self.entropy.fill(&mut nonce);
        // The capacity is exact, so that no reallocation leaves a plaintext behind.
        let mut wrapped = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
        wrapped.push(VERSION);
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(plaintext.expose());
        let in_out = &mut wrapped[1 + GCM_NONCE_BYTES..];
        let tag = self.crypto.aes_256_gcm_seal(key, &nonce, aad, in_out);
        scrub_stack();
        let Ok(tag) = tag else {
            wrapped.zeroize();
            return Err(RootError::Crypto("AES-256-GCM encryption"));
        };
        wrapped.extend_from_slice(&tag);
        Ok(wrapped)
    }

    pub(super) fn unwrap(
        &self,
        wrapped: &[u8],
        aad: &[u8],
        arena: &Arc<Arena>,
    ) -> Result<Secret, RootError> {
        let refused = || RootError::DoesNotUnwrap(self.id.clone());
        let (version, rest) = wrapped.split_first().ok_or_else(refused)?;
        let (nonce, rest) = rest.split_first_chunk::<GCM_NONCE_BYTES>().ok_or_else(refused)?;
        let (sealed, tag) = rest.split_last_chunk::<GCM_TAG_BYTES>().ok_or_else(refused)?;
        if *version != VERSION || !(1..=SLOT_BYTES).contains(&sealed.len()) {
            return Err(refused());
        }
        let mut secret = arena.copy_in(sealed)?;
        let key = self.wrap_key.expose_key()?;
        let opened = self.crypto.aes_256_gcm_open(key, nonce, aad, secret.expose_mut(), tag);
        scrub_stack();
        opened.map(|()| secret).map_err(|_| refused())
    }

    /// Wraps and unwraps something, to see that it works.
    pub(super) fn self_test(&self) -> Result<(), RootError> {
        const AAD: &[u8] = b"keyward root self-test";
        let probe = self.arena.random(&*self.entropy, AES_256_KEY_BYTES)?;
        let unwrapped = self.unwrap(&self.wrap(&probe, AAD)?, AAD, &self.arena)?;
        if self.crypto.equal(probe.expose(), unwrapped.expose()) {
            Ok(())
        } else {
            Err(RootError::Crypto("a round trip under the root key"))
        }
    }
}

/// The id of the root whose key this is.
pub(super) fn root_id(kind: RootKind, root_key: &Secret) -> Result<RootId, RootError> {
    let root_key: &[u8; AES_256_KEY_BYTES] = root_key.expose_key()?;
    let mut digest = [0; 16];
    counter_hmac_sha256(&RingProvider, root_key, ROOT_ID_LABEL, &[], &mut digest);
    scrub_stack();
    Ok(RootId::new(kind, digest))
}

/// The three roots differ in where their key comes from; this is the rest of the trait.
macro_rules! wrap_with_core {
    () => {
        fn wrap<'a>(
            &'a self,
            plaintext: &'a crate::arena::Secret,
            aad: &'a [u8],
        ) -> crate::root::RootFuture<'a, Vec<u8>> {
            Box::pin(async move { self.core.wrap(plaintext, aad) })
        }

        fn unwrap<'a>(
            &'a self,
            sealed: &'a [u8],
            aad: &'a [u8],
            arena: &'a std::sync::Arc<crate::arena::Arena>,
        ) -> crate::root::RootFuture<'a, crate::arena::Secret> {
            Box::pin(async move { self.core.unwrap(sealed, aad, arena) })
        }

        fn identity(&self) -> &crate::root::RootId {
            self.core.id()
        }
    };
}
pub(super) use wrap_with_core;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SeededEntropy, small_arena};

    fn core(key: u8) -> RootCore {
        let arena = small_arena();
        let root_key = arena.copy_in(&[key; 32]).unwrap();
        RootCore::new(RootKind::Memory, &root_key, arena, SeededEntropy::shared(9)).unwrap()
    }

    #[test]
    fn what_was_wrapped_unwraps_with_the_same_aad_only() {
        let core = core(1);
        let secret = core.arena.copy_in(&[5; SLOT_BYTES]).unwrap();
        let wrapped = core.wrap(&secret, b"aad").unwrap();
        assert_eq!(core.unwrap(&wrapped, b"aad", &core.arena).unwrap().expose(), secret.expose());
        assert!(matches!(
            core.unwrap(&wrapped, b"other", &core.arena),
            Err(RootError::DoesNotUnwrap(_))
        ));
        assert!(core.self_test().is_ok());
    }

    #[test]
    fn another_root_and_every_change_are_refused_and_leak_no_slot() {
        let (mine, other) = (core(1), core(2));
        assert_ne!(mine.id(), other.id());
        let secret = mine.arena.copy_in(b"domain key").unwrap();
        let wrapped = mine.wrap(&secret, b"").unwrap();
        assert!(matches!(
            other.unwrap(&wrapped, b"", &other.arena),
            Err(RootError::DoesNotUnwrap(_))
        ));
        let free = mine.arena.slots_free();
        for bit in 0..wrapped.len() * 8 {
            let mut altered = wrapped.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(mine.unwrap(&altered, b"", &mine.arena).is_err(), "bit {bit}");
        }
        for len in 0..wrapped.len() {
            assert!(mine.unwrap(&wrapped[..len], b"", &mine.arena).is_err(), "{len} bytes");
        }
        assert!(mine.unwrap(&[VERSION; 200], b"", &mine.arena).is_err());
        assert_eq!(mine.arena.slots_free(), free);
    }

    #[test]
    fn wrapping_twice_gives_two_texts() {
        let core = core(1);
        let secret = core.arena.copy_in(b"same").unwrap();
        assert_ne!(core.wrap(&secret, b"").unwrap(), core.wrap(&secret, b"").unwrap());
    }

    #[test]
    fn a_root_key_of_another_length_is_refused() {
        let arena = small_arena();
        let short = arena.copy_in(&[1; 16]).unwrap();
        assert!(RootCore::new(RootKind::File, &short, arena, SeededEntropy::shared(1)).is_err());
    }
}
