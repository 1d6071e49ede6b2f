//! The ciphertext blob: what opens, and that nothing else does.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use keyward_hsm::{
    BackingKey, CIPHERTEXT_OVERHEAD_BYTES, CanonicalContext, CiphertextError, Hsm, HsmError,
    ParsedCiphertext,
};
use keyward_model::KeyId;
use proptest::prelude::*;

use common::{hsm_with_domain, key_id};

struct World {
    hsm: Arc<Hsm>,
    key: Arc<BackingKey>,
    other: Arc<BackingKey>,
}

/// One HSM with two keys, for all tests of this file.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (hsm, domain) = hsm_with_domain(1);
    let open = |key| {
        let (material, token) = hsm.generate_backing_key(domain, key).unwrap();
        hsm.unseal(key, material, &token).unwrap()
    };
    let (key, other) = (open(key_id(1)), open(KeyId::from_parts(true, [2; 16])));
    World { hsm, key, other }
});

fn context(pairs: &BTreeMap<String, String>) -> CanonicalContext {
    CanonicalContext::new(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap()
}

fn opens(key: &BackingKey, blob: &[u8], context: &CanonicalContext) -> Result<Vec<u8>, HsmError> {
    let parsed = ParsedCiphertext::parse(blob)?;
    WORLD.hsm.decrypt(key, &parsed, context).map(|plaintext| plaintext.expose().to_vec())
}

/// Every way in which a blob may fail to open: by its shape, or without a reason.
fn is_refused(outcome: &Result<Vec<u8>, HsmError>) -> bool {
    matches!(outcome, Err(HsmError::InvalidCiphertext | HsmError::CiphertextFormat(_)))
}

#[test]
fn the_layout_is_the_one_that_is_written_down() {
    let plaintext = b"sixteen byte msg";
    for (key, kind) in [(&WORLD.key, 0), (&WORLD.other, 1)] {
        let blob = WORLD.hsm.encrypt(key, plaintext, &CanonicalContext::empty()).unwrap();
        assert_eq!(blob.len(), plaintext.len() + 82);
        assert_eq!(blob[..2], [1, kind]);
        assert_eq!(blob[2..18], *key.key_id().bytes());
        assert_eq!(blob[18..50], *key.material_id().bytes());
        let parsed = ParsedCiphertext::parse(&blob).unwrap();
        assert_eq!((parsed.key_id(), parsed.material_id()), (key.key_id(), key.material_id()));
        assert_eq!(parsed.plaintext_bytes(), plaintext.len());
        assert!(!blob.windows(plaintext.len()).any(|window| window == plaintext));
    }
}

/// A blob that an earlier build made has to open for ever: the format may not drift.
#[test]
fn a_blob_from_the_first_release_opens() {
    // The seed decides everything, the nonce included: this is the world's key over again.
    let (hsm, domain) = hsm_with_domain(77);
    let (material, token) = hsm.generate_backing_key(domain, key_id(7)).unwrap();
    let key = hsm.unseal(key_id(7), material, &token).unwrap();
    let context = CanonicalContext::new([("Purpose", "golden")]).unwrap();
    let blob = hex::decode(include_str!("golden/blob-v1.hex").trim()).unwrap();
    let parsed = ParsedCiphertext::parse(&blob).unwrap();
    assert_eq!(parsed.material_id(), material);
    assert_eq!(hsm.decrypt(&key, &parsed, &context).unwrap().expose(), b"kept for ever");
    assert_eq!(hsm.encrypt(&key, b"kept for ever", &context).unwrap(), blob);
}

#[test]
fn every_single_bit_counts() {
    let context = CanonicalContext::new([("k", "v")]).unwrap();
    let blob = WORLD.hsm.encrypt(&WORLD.key, b"plaintext", &context).unwrap();
    for bit in 0..blob.len() * 8 {
        let mut altered = blob.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(is_refused(&opens(&WORLD.key, &altered, &context)), "bit {bit}");
    }
    assert_eq!(opens(&WORLD.key, &blob, &context).unwrap(), b"plaintext");
}

/// The ids in the header are authenticated, and not only compared: a blob that is made to name another key,
/// another material, or both does not open under the key that it names.
#[test]
fn a_blob_with_another_keys_ids_spliced_in_does_not_open_under_either_key() {
    let context = CanonicalContext::empty();
    let mine = WORLD.hsm.encrypt(&WORLD.key, b"plaintext", &context).unwrap();
    let other = WORLD.hsm.encrypt(&WORLD.other, b"plaintext", &context).unwrap();
    for range in [1..2, 1..18, 2..18, 18..50, 1..50, 1..66, 50..66, 50..mine.len()] {
        let mut spliced = mine.clone();
        spliced[range.clone()].copy_from_slice(&other[range.clone()]);
        for key in [&WORLD.key, &WORLD.other] {
            assert!(is_refused(&opens(key, &spliced, &context)), "{range:?}");
        }
    }
}

#[test]
fn wrong_key_wrong_context_and_changed_bits_give_one_and_the_same_error() {
    let context = CanonicalContext::new([("k", "v")]).unwrap();
    let wrong = CanonicalContext::new([("k", "w")]).unwrap();
    let blob = WORLD.hsm.encrypt(&WORLD.key, b"plaintext", &context).unwrap();
    let mut texts = Vec::new();
    for position in [50, 66, blob.len() - 1] {
        let mut altered = blob.clone();
        altered[position] ^= 0x80;
        texts.push(opens(&WORLD.key, &altered, &context).unwrap_err());
    }
    texts.push(opens(&WORLD.key, &blob, &wrong).unwrap_err());
    texts.push(opens(&WORLD.other, &blob, &context).unwrap_err());
    for error in &texts {
        assert!(matches!(error, HsmError::InvalidCiphertext));
        assert_eq!(error.to_string(), texts[0].to_string());
    }
}

#[test]
fn blobs_that_are_not_ours_are_named_before_any_cryptography() {
    use CiphertextError::{TooLong, TooShort, UnknownKeyIdKind, UnknownVersion};
    let blob = WORLD.hsm.encrypt(&WORLD.key, b"p", &CanonicalContext::empty()).unwrap();
    for len in 0..blob.len() {
        let refused = ParsedCiphertext::parse(&blob[..len]);
        assert_eq!(refused, Err(TooShort { bytes: len, bytes_min: 83 }));
    }
    assert_eq!(ParsedCiphertext::parse(&[0; 100]), Err(UnknownVersion(0)));
    assert_eq!(ParsedCiphertext::parse(&[2; 100]), Err(UnknownVersion(2)));
    let mut kind = blob.clone();
    kind[1] = 2;
    assert_eq!(ParsedCiphertext::parse(&kind), Err(UnknownKeyIdKind(2)));
    let long = vec![1; 6145];
    let refused = ParsedCiphertext::parse(&long);
    assert_eq!(refused, Err(TooLong { bytes: 6145, bytes_max: 6144 }));
}

#[test]
fn plaintexts_outside_1_to_4096_bytes_are_refused() {
    let empty = CanonicalContext::empty();
    for bytes in [0, 4097] {
        let refused = WORLD.hsm.encrypt(&WORLD.key, &vec![0; bytes], &empty);
        assert!(
            matches!(refused, Err(HsmError::Length { bytes: b, bytes_min: 1, bytes_max: 4096, .. })
            if b == bytes)
        );
    }
    for bytes in [1, 4096] {
        let blob = WORLD.hsm.encrypt(&WORLD.key, &vec![7; bytes], &empty).unwrap();
        assert_eq!(blob.len(), bytes + CIPHERTEXT_OVERHEAD_BYTES);
        assert_eq!(opens(&WORLD.key, &blob, &empty).unwrap(), vec![7; bytes]);
    }
}

#[test]
fn long_contexts_work_as_short_ones_do() {
    for value_bytes in [400, 430, 440, 441, 450, 8000] {
        let value = "v".repeat(value_bytes);
        let context = CanonicalContext::new([("key", value.as_str())]).unwrap();
        let other = CanonicalContext::new([("kez", value.as_str())]).unwrap();
        let blob = WORLD.hsm.encrypt(&WORLD.key, b"plaintext", &context).unwrap();
        assert_eq!(opens(&WORLD.key, &blob, &context).unwrap(), b"plaintext");
        assert!(opens(&WORLD.key, &blob, &other).is_err());
    }
}

proptest! {
    #[test]
    fn what_was_encrypted_decrypts(
        plaintext in proptest::collection::vec(any::<u8>(), 1..=4096),
        pairs in proptest::collection::btree_map(".{0,20}", ".{0,20}", 0..6),
    ) {
        let context = context(&pairs);
        let blob = WORLD.hsm.encrypt(&WORLD.key, &plaintext, &context).unwrap();
        prop_assert_eq!(blob.len(), plaintext.len() + 82);
        prop_assert_eq!(opens(&WORLD.key, &blob, &context).unwrap(), plaintext.clone());
        let again = WORLD.hsm.encrypt(&WORLD.key, &plaintext, &context).unwrap();
        prop_assert_ne!(blob, again);
    }

    #[test]
    fn any_change_of_bits_or_length_fails(
        plaintext in proptest::collection::vec(any::<u8>(), 1..=4096),
        position in any::<prop::sample::Index>(),
        mask in 1u8..,
        cut in any::<prop::sample::Index>(),
        extra in any::<u8>(),
    ) {
        let context = CanonicalContext::empty();
        let blob = WORLD.hsm.encrypt(&WORLD.key, &plaintext, &context).unwrap();
        let mut altered = blob.clone();
        altered[position.index(blob.len())] ^= mask;
        prop_assert!(is_refused(&opens(&WORLD.key, &altered, &context)));
        let shorter = &blob[..cut.index(blob.len())];
        prop_assert!(is_refused(&opens(&WORLD.key, shorter, &context)));
        let longer = [&blob[..], &[extra]].concat();
        prop_assert!(is_refused(&opens(&WORLD.key, &longer, &context)));
    }

    #[test]
    fn another_context_fails(
        a in proptest::collection::btree_map("[ab]{0,3}", "[ab]{0,3}", 0..4),
        b in proptest::collection::btree_map("[ab]{0,3}", "[ab]{0,3}", 0..4),
    ) {
        let blob = WORLD.hsm.encrypt(&WORLD.key, b"plaintext", &context(&a)).unwrap();
        prop_assert_eq!(opens(&WORLD.key, &blob, &context(&b)).is_ok(), a == b);
    }

    #[test]
    fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ParsedCiphertext::parse(&bytes);
        let versioned = [&[1, 0][..], &bytes].concat();
        if let Ok(parsed) = ParsedCiphertext::parse(&versioned) {
            let context = CanonicalContext::empty();
            prop_assert!(WORLD.hsm.decrypt(&WORLD.key, &parsed, &context).is_err());
        }
    }
}
