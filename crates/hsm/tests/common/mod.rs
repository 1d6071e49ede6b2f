//! What the tests of the boundary share: a seeded source of randomness and an HSM on it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its own part of these helpers"
)]

pub mod memory;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_env::Entropy;
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, CryptoProvider, Hsm, HsmConfig, MemoryRoot, RingProvider,
};
use keyward_model::{DomainKeyId, KeyId};

/// Randomness from a seed: SHA-256 of seed and counter.
pub struct SeededEntropy {
    seed: u64,
    counter: AtomicU64,
}

impl SeededEntropy {
    pub fn shared(seed: u64) -> Arc<dyn Entropy> {
        Arc::new(Self { seed, counter: AtomicU64::new(0) })
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let counter = self.counter.fetch_add(1, Ordering::Relaxed);
            let digest = RingProvider.sha256(&[&self.seed.to_be_bytes(), &counter.to_be_bytes()]);
            chunk.copy_from_slice(&digest[..chunk.len()]);
        }
    }
}

/// An HSM on a root of its own. Its arena has 1,024 slots and may go unlocked where the tests' own limit
/// is used up.
pub fn hsm_with_cache(seed: u64, cache_max_entries: usize) -> Arc<Hsm> {
    let entropy = SeededEntropy::shared(seed);
    let root = MemoryRoot::new(&seed.to_be_bytes(), Arc::clone(&entropy), true).unwrap();
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    Hsm::new(Arc::new(root), entropy, &HsmConfig { cache_max_entries, arena }).unwrap()
}

pub fn hsm(seed: u64) -> Arc<Hsm> {
    hsm_with_cache(seed, 256)
}

/// Runs a future that never waits, as those of a root in memory do.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the future waits for something"),
    }
}

/// An HSM with one open domain key.
pub fn hsm_with_domain(seed: u64) -> (Arc<Hsm>, DomainKeyId) {
    let hsm = hsm(seed);
    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    (hsm, sealed.id)
}

pub fn key_id(number: u8) -> KeyId {
    KeyId::from_random([number; 16])
}

/// HPKE's key schedule for the suite in use (RFC 9180, section 5.1: base mode, DHKEM(P-256, HKDF-SHA256),
/// HKDF-SHA256, AES-256-GCM), written out over plain HMAC: key and base nonce.
pub fn hpke_key_and_nonce(shared_secret: &[u8], info: &[u8]) -> ([u8; 32], [u8; 12]) {
    const SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x02";
    let hmac = |key: &[u8], parts: &[&[u8]]| {
        let mut tag = [0; 32];
        RingProvider.hmac_sha256(key, parts, &mut tag);
        tag
    };
    let extract =
        |salt: &[u8], label: &[u8], ikm: &[u8]| hmac(salt, &[b"HPKE-v1", SUITE, label, ikm]);
    let expand = |key: &[u8], label: &[u8], info: &[u8], len: u8| {
        hmac(key, &[&[0, len], b"HPKE-v1", SUITE, label, info, &[1]])[..usize::from(len)].to_vec()
    };
    let context =
        [&[0][..], &extract(b"", b"psk_id_hash", b""), &extract(b"", b"info_hash", info)].concat();
    let secret = extract(shared_secret, b"secret", b"");
    let key = expand(&secret, b"key", &context, 32).try_into().unwrap();
    (key, expand(&secret, b"base_nonce", &context, 12).try_into().unwrap())
}
