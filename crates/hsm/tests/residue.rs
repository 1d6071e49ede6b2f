//! Key material must not lie about in memory: this searches the whole process for it.
//!
//! Randomness is a known pattern here, so every key is; what is searched for is computed byte by byte or
//! kept inverted, so that the search does not find itself. One test, and a process of its own.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::sync::Arc;

use common::memory::{PatternEntropy, occurrences, pattern};
use common::{block_on, hpke_key_and_nonce};
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem};
use keyward_env::Entropy;
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, CanonicalContext, FileRoot, Hsm, HsmConfig, ParsedCiphertext,
    RingProvider, counter_hmac_sha256,
};
use keyward_model::KeyId;

/// The message key that the pattern leads to, each byte inverted.
const MESSAGE_KEY_INVERTED: [u8; 32] = [
    0x6f, 0xd9, 0x46, 0xfe, 0x80, 0x39, 0x93, 0x79, 0x64, 0x47, 0x2d, 0x55, 0xad, 0x3b, 0xdb, 0x8a,
    0x5d, 0xf5, 0x69, 0x9b, 0x5d, 0xab, 0xa2, 0xb2, 0xbe, 0x4c, 0xb7, 0x86, 0x00, 0x30, 0xd9, 0x5f,
];

/// The same of the key that HPKE seals the domain key with.
const HPKE_KEY_INVERTED: [u8; 32] = [
    0x4a, 0xa7, 0x77, 0x49, 0x94, 0x65, 0xa0, 0xde, 0xb9, 0xc7, 0x0e, 0x32, 0xea, 0x6f, 0x7b, 0xdb,
    0x57, 0xfa, 0xcb, 0xad, 0x5e, 0xab, 0x59, 0x6c, 0xc4, 0xea, 0x08, 0xce, 0x63, 0xb3, 0xda, 0x5c,
];

#[test]
fn keys_are_in_their_slots_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.key");
    let entropy: Arc<dyn Entropy> = Arc::new(PatternEntropy);
    drop(FileRoot::create(&path, Arc::clone(&entropy), true).unwrap());
    let root = FileRoot::open(&path, Arc::clone(&entropy), true).unwrap();
    let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
    let config = HsmConfig { cache_max_entries: 16, arena };
    let hsm = Hsm::new(Arc::new(root), entropy, &config).unwrap();

    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    hsm.forget_domain_key(sealed.id);
    block_on(hsm.open_domain_key(&sealed)).unwrap();
    let (secret, request) = hsm.reseal_request();
    let message = hsm.export_domain_key(sealed.id, &request).unwrap();
    // At once: what comes later scrubs the same stack.
    assert_eq!(occurrences(|i| !HPKE_KEY_INVERTED[i]), 0, "the key of handing over, sealing");
    hsm.forget_domain_key(sealed.id);
    block_on(hsm.import_domain_key(sealed.id, &secret, &message)).unwrap();
    assert_eq!(occurrences(|i| !HPKE_KEY_INVERTED[i]), 0, "the key of handing over, opening");
    let key = KeyId::from_random([1; 16]);
    let (material, token) = hsm.generate_backing_key(sealed.id, key).unwrap();
    let token = hsm.reseal_token(&token, key, material, sealed.id).unwrap();
    let backing = hsm.unseal(key, material, &token).unwrap();
    let context = CanonicalContext::new([("k", "v")]).unwrap();
    let blob = hsm.encrypt(&backing, b"plaintext", &context).unwrap();
    let parsed = ParsedCiphertext::parse(&blob).unwrap();
    drop(hsm.decrypt(&backing, &parsed, &context).unwrap());

    // One domain key and one backing key are open. (The root key is not kept: what wraps is derived.)
    assert_eq!(occurrences(pattern), 2, "copies of root, domain or backing keys");
    // HMAC's padded keys (FIPS 198-1, section 4) give the key away just as well.
    assert_eq!(occurrences(|i| pattern(i) ^ 0x36), 0, "inner padded keys");
    assert_eq!(occurrences(|i| pattern(i) ^ 0x5c), 0, "outer padded keys");
    assert_eq!(
        occurrences(|i| !MESSAGE_KEY_INVERTED[i]),
        0,
        "message keys, also as a key schedule"
    );

    drop(backing);
    hsm.evict(&material);
    hsm.forget_domain_key(sealed.id);
    assert_eq!(occurrences(pattern), 0, "keys that were dropped");

    // Keys that leave the cache because others need the room.
    block_on(hsm.open_domain_key(&sealed)).unwrap();
    for number in 0..=255 {
        let key = KeyId::from_random([number; 16]);
        let (material, token) = hsm.generate_backing_key(sealed.id, key).unwrap();
        drop(hsm.unseal(key, material, &token).unwrap());
    }
    let stats = hsm.cache_stats();
    assert!(stats.evictions >= 240 && stats.keys <= 16, "{stats:?}");
    assert_eq!(occurrences(pattern), 1 + stats.keys, "the domain key and keys in the cache");
    hsm.forget_domain_key(sealed.id);
    drop(hsm);
    assert_eq!(occurrences(pattern), 0, "keys of an HSM that is gone");

    // The constants above are the keys that were used; only now, for this leaves them in memory.
    let ikm: [u8; 32] = std::array::from_fn(pattern);
    let mut message_key = [0; 32];
    counter_hmac_sha256(
        &RingProvider,
        &ikm,
        b"keyward message key v1",
        &ikm[..16],
        &mut message_key,
    );
    assert_eq!(message_key.map(|b| !b), MESSAGE_KEY_INVERTED);
    let (private, _) = DhP256HkdfSha256::derive_keypair(&ikm);
    let encapped = <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(&message[..65]).unwrap();
    let shared = DhP256HkdfSha256::decap(&private, None, &encapped).unwrap();
    let root = request.root.as_str().as_bytes();
    let info = [b"keyward reseal v1\0", &sealed.id.bytes()[..], root].concat();
    let (key, _) = hpke_key_and_nonce(&shared.0, &info);
    assert_eq!(key.map(|b| !b), HPKE_KEY_INVERTED);
}
