//! What one call costs inside the boundary, in nanoseconds. Run with
//! `cargo run --release -p keyward-hsm --example call_cost`.

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use keyward_env::{Entropy, OsEntropy};
use keyward_hsm::{
    CanonicalContext, CryptoProvider, Hsm, HsmConfig, MemoryRoot, ParsedCiphertext, RingProvider,
    counter_hmac_sha256,
};
use keyward_model::KeyId;

/// The best of nine rounds, so that a busy machine disturbs least.
fn measure<T>(what: &str, mut work: impl FnMut() -> T) {
    const ROUNDS: usize = 9;
    const CALLS: u32 = 20_000;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        #[expect(clippy::disallowed_methods, reason = "a measurement, outside every simulation")]
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(work());
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
    }
    println!("{what:<58} {best:>8.0} ns");
}

fn main() {
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let root = MemoryRoot::new(b"cost", Arc::clone(&entropy), true).expect("a root");
    let mut config = HsmConfig::default();
    config.arena.allow_unlocked = true;
    let hsm = Hsm::new(Arc::new(root), entropy, &config).expect("an HSM");
    let mut made = std::pin::pin!(hsm.generate_domain_key());
    let Poll::Ready(sealed) = made.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("a root in memory never waits");
    };
    let domain = sealed.expect("a domain key").id;
    let key = KeyId::from_random([1; 16]);
    let (material, token) = hsm.generate_backing_key(domain, key).expect("a backing key");
    let backing = hsm.unseal(key, material, &token).expect("an unsealed key");
    let context =
        CanonicalContext::new([("Department", "IT"), ("Purpose", "Test")]).expect("short");

    for bytes in [32, 4096] {
        let plaintext = vec![7; bytes];
        let blob = hsm.encrypt(&backing, &plaintext, &context).expect("a blob");
        measure(&format!("encrypt {bytes} B"), || hsm.encrypt(&backing, &plaintext, &context));
        measure(&format!("decrypt {bytes} B (parse included)"), || {
            hsm.decrypt(&backing, &ParsedCiphertext::parse(&blob).expect("ours"), &context)
        });
    }
    measure("find an unsealed key in the cache", || hsm.unsealed(&material));
    measure("unseal a token (cache miss)", || {
        hsm.evict(&material);
        hsm.unseal(key, material, &token)
    });
    measure("16 bytes of entropy from the operating system", || {
        let mut nonce = [0; 16];
        OsEntropy.fill(&mut nonce);
        nonce
    });
    primitives();
}

/// The parts, to see what making `ring`'s key objects per call costs (decision 0003).
fn primitives() {
    let (key, nonce) = ([5; 32], [0; 12]);
    measure("AES-256-GCM key object (schedule and hash table)", || {
        ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, black_box(&key))
            .map(ring::aead::LessSafeKey::new)
    });
    measure("HMAC-SHA-256 key object", || {
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, black_box(&key))
    });
    measure("AES-256-GCM seal 32 B, key object included", || {
        let mut in_out = [7; 32];
        RingProvider.aes_256_gcm_seal(&key, &nonce, b"aad", &mut in_out)
    });
    measure("SP 800-108, one block, key object included", || {
        let mut out = [0; 32];
        counter_hmac_sha256(&RingProvider, &key, b"keyward message key v1", &[1; 16], &mut out);
        out
    });
    let hmac_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    measure("HMAC-SHA-256 of 47 B, key object at hand", || {
        ring::hmac::sign(&hmac_key, black_box(&[1; 47]))
    });
}
