//! Domain keys, tokens, handing over to another root, and the cache.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::sync::Arc;

use keyward_hsm::{
    ArenaError, CanonicalContext, HsmError, ParsedCiphertext, ResealRequest, RootCopy, RootError,
    SealedDomainKey, SealedToken,
};
use keyward_model::{DomainKeyId, KeyId};
use proptest::prelude::*;

use common::{block_on, hsm, hsm_with_cache, hsm_with_domain, key_id};

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut altered = bytes.to_vec();
    altered[bit / 8] ^= 1 << (bit % 8);
    altered
}

// --- Domain keys.

#[test]
fn a_domain_key_opens_again_after_a_restart_with_the_same_root_only() {
    let first = hsm(1);
    let sealed = block_on(first.generate_domain_key()).unwrap();
    assert!(first.has_domain_key(sealed.id));
    assert_eq!(sealed.copies.len(), 1);
    assert_eq!(sealed.copies[0].root, first.root_id());

    let restarted = hsm(1);
    assert!(!restarted.has_domain_key(sealed.id));
    block_on(restarted.open_domain_key(&sealed)).unwrap();
    assert!(restarted.has_domain_key(sealed.id));

    let stranger = hsm(2);
    let refused = block_on(stranger.open_domain_key(&sealed));
    assert!(matches!(refused, Err(HsmError::NoCopyForRoot { domain, root })
        if domain == sealed.id && root == stranger.root_id()));
}

#[test]
fn a_copy_that_claims_another_root_or_another_id_does_not_open() {
    let (member, stranger) = (hsm(1), hsm(2));
    let sealed = block_on(member.generate_domain_key()).unwrap();
    let claimed = RootCopy { root: stranger.root_id(), ..sealed.copies[0].clone() };
    let forged = SealedDomainKey { id: sealed.id, copies: vec![claimed] };
    let refused = block_on(stranger.open_domain_key(&forged));
    assert!(matches!(refused, Err(HsmError::Root(RootError::DoesNotUnwrap(_)))));

    let other = DomainKeyId::new([9; 16]);
    let renamed = SealedDomainKey { id: other, copies: sealed.copies.clone() };
    let refused = block_on(member.open_domain_key(&renamed));
    assert!(matches!(refused, Err(HsmError::Root(RootError::DoesNotUnwrap(_)))));
    assert!(!member.has_domain_key(other));
}

#[test]
fn a_forgotten_domain_key_seals_and_opens_nothing() {
    let (hsm, domain) = hsm_with_domain(1);
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    let secret = hsm.seal_secret(domain, "label", b"secret").unwrap();
    hsm.forget_domain_key(domain);
    assert!(!hsm.has_domain_key(domain));
    let not_open =
        |error: HsmError| matches!(error, HsmError::DomainKeyNotOpen(id) if id == domain);
    assert!(not_open(hsm.generate_backing_key(domain, key_id(1)).unwrap_err()));
    assert!(not_open(hsm.unseal(key_id(1), material, &token).err().unwrap()));
    assert!(not_open(hsm.seal_secret(domain, "label", b"secret").unwrap_err()));
    assert!(not_open(hsm.open_secret(&secret, "label").err().unwrap()));
    let (_, request) = hsm.reseal_request();
    assert!(not_open(hsm.export_domain_key(domain, &request).unwrap_err()));
}

#[test]
fn ids_and_sealed_forms_survive_postcard() {
    let (hsm, domain) = hsm_with_domain(1);
    let sealed = block_on(hsm.generate_domain_key()).unwrap();
    let bytes = postcard::to_allocvec(&sealed).unwrap();
    assert_eq!(postcard::from_bytes::<SealedDomainKey>(&bytes).unwrap(), sealed);
    let (_, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    let bytes = postcard::to_allocvec(&token).unwrap();
    assert_eq!(postcard::from_bytes::<SealedToken>(&bytes).unwrap(), token);
    assert_eq!(format!("{token:?}"), format!("SealedToken({} bytes)", token.as_bytes().len()));
}

// --- Handing over.

#[test]
fn a_domain_key_reaches_a_node_with_another_root_and_opens_tokens_there() {
    let (member, domain) = hsm_with_domain(1);
    let (material, token) = member.generate_backing_key(domain, key_id(1)).unwrap();
    let joiner = hsm(2);
    let (secret, request) = joiner.reseal_request();
    assert_eq!(request.root, joiner.root_id());
    let message = member.export_domain_key(domain, &request).unwrap();
    let copy = block_on(joiner.import_domain_key(domain, &secret, &message)).unwrap();
    assert_eq!(copy.root, joiner.root_id());
    assert!(joiner.has_domain_key(domain));
    joiner.unseal(key_id(1), material, &token).unwrap();

    let restarted = hsm(2);
    let sealed = SealedDomainKey { id: domain, copies: vec![copy] };
    block_on(restarted.open_domain_key(&sealed)).unwrap();
    restarted.unseal(key_id(1), material, &token).unwrap();
}

#[test]
fn a_resealed_key_opens_for_its_request_its_root_and_its_id_only() {
    let (member, domain) = hsm_with_domain(1);
    let other_domain = block_on(member.generate_domain_key()).unwrap().id;
    let (joiner, stranger) = (hsm(2), hsm(3));
    let (secret, request) = joiner.reseal_request();
    let (other_secret, _) = joiner.reseal_request();
    let message = member.export_domain_key(domain, &request).unwrap();
    // As if the root in the request had been changed on its way.
    let changed = ResealRequest { root: stranger.root_id(), ..request.clone() };
    let for_another = member.export_domain_key(domain, &changed).unwrap();
    let refused = [
        block_on(joiner.import_domain_key(domain, &secret, &for_another)),
        block_on(joiner.import_domain_key(domain, &other_secret, &message)),
        block_on(joiner.import_domain_key(other_domain, &secret, &message)),
        block_on(joiner.import_domain_key(domain, &secret, &[])),
    ];
    for outcome in refused {
        assert!(matches!(outcome, Err(HsmError::ResealDoesNotOpen)));
    }
    let elsewhere = block_on(stranger.import_domain_key(domain, &secret, &message));
    assert!(matches!(elsewhere, Err(HsmError::NoSuchRoot(root)) if root == joiner.root_id()));
    for bit in 0..message.len() * 8 {
        let altered = flip(&message, bit);
        assert!(
            block_on(joiner.import_domain_key(domain, &secret, &altered)).is_err(),
            "bit {bit}"
        );
    }
    for len in 0..message.len() {
        assert!(block_on(joiner.import_domain_key(domain, &secret, &message[..len])).is_err());
    }
    assert!(!joiner.has_domain_key(domain));
    assert!(block_on(joiner.import_domain_key(domain, &secret, &message)).is_ok());
}

#[test]
fn a_request_without_a_point_on_the_curve_is_refused() {
    let (member, domain) = hsm_with_domain(1);
    let (_, request) = hsm(2).reseal_request();
    for public_key in [vec![], vec![4; 65], vec![0], request.public_key[1..].to_vec()] {
        let malformed = ResealRequest { public_key, ..request.clone() };
        let refused = member.export_domain_key(domain, &malformed);
        assert!(matches!(refused, Err(HsmError::ResealRequest(root)) if root == request.root));
    }
}

// --- Tokens.

#[test]
fn a_token_opens_for_its_key_and_material_only() {
    let (hsm, domain) = hsm_with_domain(1);
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    let (other_material, other_token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    assert_eq!(token.domain_key_id(), Some(domain));
    assert_ne!(material, other_material);
    hsm.unseal(key_id(1), material, &token).unwrap();
    let multi_region = KeyId::from_parts(true, *key_id(1).bytes());
    let refused = [
        hsm.unseal(key_id(2), material, &token),
        hsm.unseal(multi_region, material, &token),
        hsm.unseal(key_id(1), other_material, &token),
        hsm.unseal(key_id(1), material, &other_token),
    ];
    for outcome in refused {
        assert!(matches!(outcome, Err(HsmError::TokenDoesNotOpen)));
    }
    assert_eq!(hsm.cache_stats().keys, 1);
}

#[test]
fn a_token_with_any_bit_changed_or_any_byte_missing_does_not_open() {
    let (hsm, domain) = hsm_with_domain(1);
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    let open = |bytes: Vec<u8>| hsm.unseal(key_id(1), material, &SealedToken::from_bytes(bytes));
    for bit in 0..token.as_bytes().len() * 8 {
        assert!(open(flip(token.as_bytes(), bit)).is_err(), "bit {bit}");
    }
    for len in 0..token.as_bytes().len() {
        assert!(open(token.as_bytes()[..len].to_vec()).is_err(), "{len} bytes");
    }
    assert!(open([token.as_bytes(), &[0]].concat()).is_err());
    assert_eq!(SealedToken::from_bytes(vec![]).domain_key_id(), None);
    assert_eq!(SealedToken::from_bytes(vec![2; 90]).domain_key_id(), None);
}

/// Two open domain keys: the token is not opened with the one that it was made to name.
#[test]
fn a_token_that_names_another_open_domain_key_does_not_open() {
    let (hsm, domain) = hsm_with_domain(1);
    let other = block_on(hsm.generate_domain_key()).unwrap().id;
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    let secret = hsm.seal_secret(domain, "label", b"secret").unwrap();
    let rename = |token: &SealedToken| {
        let mut bytes = token.as_bytes().to_vec();
        bytes[2..18].copy_from_slice(other.bytes());
        SealedToken::from_bytes(bytes)
    };
    assert_eq!(rename(&token).domain_key_id(), Some(other));
    let refused = hsm.unseal(key_id(1), material, &rename(&token));
    assert!(matches!(refused, Err(HsmError::TokenDoesNotOpen)));
    let refused = hsm.open_secret(&rename(&secret), "label");
    assert!(matches!(refused, Err(HsmError::TokenDoesNotOpen)));
}

#[test]
fn a_token_moves_to_a_new_domain_key_and_keeps_its_material() {
    let (hsm, old) = hsm_with_domain(1);
    let new = block_on(hsm.generate_domain_key()).unwrap().id;
    let (material, token) = hsm.generate_backing_key(old, key_id(1)).unwrap();
    let moved = hsm.reseal_token(&token, key_id(1), material, new).unwrap();
    assert_eq!(moved.domain_key_id(), Some(new));
    let context = CanonicalContext::empty();
    let before = hsm.unseal(key_id(1), material, &token).unwrap();
    let blob = hsm.encrypt(&before, b"plaintext", &context).unwrap();
    hsm.evict(&material);
    hsm.forget_domain_key(old);
    let after = hsm.unseal(key_id(1), material, &moved).unwrap();
    let parsed = ParsedCiphertext::parse(&blob).unwrap();
    assert_eq!(hsm.decrypt(&after, &parsed, &context).unwrap().expose(), b"plaintext");
    assert!(hsm.reseal_token(&token, key_id(1), material, new).is_err());
    assert!(hsm.reseal_token(&moved, key_id(2), material, new).is_err());
}

/// The promise of DESIGN section 3: byte for byte the same blob opens in a related key of another Region.
#[test]
fn a_blob_opens_under_the_same_material_sealed_in_another_region() {
    let (here, domain) = hsm_with_domain(1);
    let key = KeyId::from_parts(true, [5; 16]);
    let (material, token) = here.generate_backing_key(domain, key).unwrap();
    let there = hsm(2);
    let (secret, request) = there.reseal_request();
    let message = here.export_domain_key(domain, &request).unwrap();
    block_on(there.import_domain_key(domain, &secret, &message)).unwrap();
    let own = block_on(there.generate_domain_key()).unwrap().id;
    let token_there = there.reseal_token(&token, key, material, own).unwrap();
    there.forget_domain_key(domain);

    let context = CanonicalContext::new([("k", "v")]).unwrap();
    let sealed_here = here.unseal(key, material, &token).unwrap();
    let blob = here.encrypt(&sealed_here, b"plaintext", &context).unwrap();
    let open_there = there.unseal(key, material, &token_there).unwrap();
    let parsed = ParsedCiphertext::parse(&blob).unwrap();
    assert_eq!(there.decrypt(&open_there, &parsed, &context).unwrap().expose(), b"plaintext");
    let back = there.encrypt(&open_there, b"and back", &context).unwrap();
    let parsed = ParsedCiphertext::parse(&back).unwrap();
    assert_eq!(here.decrypt(&sealed_here, &parsed, &context).unwrap().expose(), b"and back");
}

// --- Small secrets.

#[test]
fn a_small_secret_opens_under_its_label_only() {
    let (hsm, domain) = hsm_with_domain(1);
    let sealed = hsm.seal_secret(domain, "ca private key", b"-----BEGIN").unwrap();
    assert_eq!(hsm.open_secret(&sealed, "ca private key").unwrap().expose(), b"-----BEGIN");
    for label in ["", "ca private kez", "ca private key "] {
        assert!(matches!(hsm.open_secret(&sealed, label), Err(HsmError::TokenDoesNotOpen)));
    }
    for bytes in [0, (64 << 10) + 1] {
        let refused = hsm.seal_secret(domain, "label", &vec![0; bytes]);
        assert!(matches!(refused, Err(HsmError::Length { .. })), "{bytes}");
    }
    let largest = vec![3; 64 << 10];
    let sealed = hsm.seal_secret(domain, "label", &largest).unwrap();
    assert_eq!(hsm.open_secret(&sealed, "label").unwrap().expose(), largest);
}

#[test]
fn a_backing_key_does_not_pass_for_a_small_secret_nor_the_other_way_round() {
    let (hsm, domain) = hsm_with_domain(1);
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    assert!(matches!(hsm.open_secret(&token, ""), Err(HsmError::TokenFormat(_))));
    let secret = hsm.seal_secret(domain, "", &[0; 32]).unwrap();
    let refused = hsm.unseal(key_id(1), material, &secret);
    assert!(matches!(refused, Err(HsmError::TokenFormat(_))));
}

proptest! {
    #[test]
    fn small_secrets_survive_and_every_change_is_noticed(
        bytes in proptest::collection::vec(any::<u8>(), 1..100),
        label in ".{0,20}",
        position in any::<prop::sample::Index>(),
        mask in 1u8..,
    ) {
        let (hsm, domain) = hsm_with_domain(4);
        let sealed = hsm.seal_secret(domain, &label, &bytes).unwrap();
        let opened = hsm.open_secret(&sealed, &label).unwrap();
        prop_assert_eq!(opened.expose(), &bytes[..]);
        let mut altered = sealed.as_bytes().to_vec();
        let position = position.index(altered.len());
        altered[position] ^= mask;
        prop_assert!(hsm.open_secret(&SealedToken::from_bytes(altered), &label).is_err());
    }
}

// --- The cache.

#[test]
fn unsealed_keys_are_found_counted_and_evicted() {
    let (hsm, domain) = hsm_with_domain(1);
    let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
    assert!(hsm.unsealed(&material).is_none());
    let first = hsm.unseal(key_id(1), material, &token).unwrap();
    let again = hsm.unseal(key_id(1), material, &token).unwrap();
    assert!(Arc::ptr_eq(&first, &again), "one material, one slot");
    assert!(hsm.unsealed(&material).is_some());
    let stats = hsm.cache_stats();
    assert_eq!((stats.keys, stats.hits, stats.misses, stats.evictions), (1, 1, 1, 0));
    hsm.evict(&material);
    assert!(hsm.unsealed(&material).is_none());
    assert_eq!(hsm.cache_stats().keys, 0);
    // A call that holds the key goes on with it.
    assert!(hsm.encrypt(&first, b"p", &CanonicalContext::empty()).is_ok());
}

#[test]
fn the_cache_stays_within_its_bound_and_everything_still_opens() {
    let hsm = hsm_with_cache(1, 32);
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    let keys: Vec<_> = (0..=255)
        .map(|n| (key_id(n), hsm.generate_backing_key(domain, key_id(n)).unwrap()))
        .collect();
    for _ in 0..3 {
        for (key, (material, token)) in &keys {
            hsm.unseal(*key, *material, token).unwrap();
            assert!(hsm.cache_stats().keys <= 32);
        }
    }
}

/// 1,024 slots and a bound far above: the cache makes room in the arena by itself.
#[test]
fn a_full_arena_evicts_idle_keys_and_fails_only_when_all_are_in_use() {
    let hsm = hsm_with_cache(1, 1 << 20);
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    let make = || {
        let (material, token) = hsm.generate_backing_key(domain, key_id(1))?;
        hsm.unseal(key_id(1), material, &token)
    };
    for _ in 0..2000 {
        make().unwrap();
    }
    let mut held = Vec::new();
    let refused = loop {
        match make() {
            Ok(key) => held.push(key),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, HsmError::Arena(ArenaError::Exhausted { slots: 1024 })), "{refused}");
    assert!(held.len() > 1000, "{}", held.len());
    held.clear();
    assert!(make().is_ok());
}

/// Domain keys rotate on a node whose arena is full of backing keys, too.
#[test]
fn a_domain_key_opens_and_is_taken_over_when_cached_keys_fill_the_arena() {
    let hsm = hsm_with_cache(1, 1 << 20);
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    let later = block_on(hsm.generate_domain_key()).unwrap();
    hsm.forget_domain_key(later.id);
    let fill = || {
        for _ in 0..1200 {
            let (material, token) = hsm.generate_backing_key(domain, key_id(1)).unwrap();
            hsm.unseal(key_id(1), material, &token).unwrap();
        }
        hsm.cache_stats()
    };
    let full = fill();
    block_on(hsm.open_domain_key(&later)).unwrap();
    assert!(hsm.has_domain_key(later.id));
    assert_eq!(hsm.cache_stats().evictions, full.evictions + 1, "the arena was full");

    let full = fill();
    block_on(hsm.generate_domain_key()).unwrap();
    assert_eq!(hsm.cache_stats().evictions, full.evictions + 1, "the arena was full");

    let (member, handed_over) = hsm_with_domain(2);
    let (secret, request) = hsm.reseal_request();
    let message = member.export_domain_key(handed_over, &request).unwrap();
    let full = fill();
    block_on(hsm.import_domain_key(handed_over, &secret, &message)).unwrap();
    assert_eq!(hsm.cache_stats().evictions, full.evictions + 1, "the arena was full");
}

#[test]
fn threads_that_compete_for_a_full_arena_all_get_their_keys() {
    let hsm = hsm_with_cache(1, 1 << 20);
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let hsm = &hsm;
            scope.spawn(move || {
                for _ in 0..800 {
                    let key = key_id(thread);
                    let (material, token) = hsm.generate_backing_key(domain, key).unwrap();
                    hsm.unseal(key, material, &token).unwrap();
                }
            });
        }
    });
    let stats = hsm.cache_stats();
    assert_eq!(stats.keys as u64 + stats.evictions, 4 * 800);
    assert!((1..1024).contains(&stats.keys), "{stats:?}");
}

#[test]
fn many_threads_share_one_hsm() {
    let hsm = hsm_with_cache(1, 8);
    let domain = block_on(hsm.generate_domain_key()).unwrap().id;
    let keys: Vec<_> = (0..40)
        .map(|n| (key_id(n), hsm.generate_backing_key(domain, key_id(n)).unwrap()))
        .collect();
    let context = CanonicalContext::empty();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (hsm, keys, context) = (&hsm, &keys, &context);
            scope.spawn(move || {
                for turn in 0..400 {
                    let (key, (material, token)) = &keys[(turn * 7 + thread) % keys.len()];
                    let open = match hsm.unsealed(material) {
                        Some(open) => open,
                        None => hsm.unseal(*key, *material, token).unwrap(),
                    };
                    let blob = hsm.encrypt(&open, b"plaintext", context).unwrap();
                    let parsed = ParsedCiphertext::parse(&blob).unwrap();
                    let opened = hsm.decrypt(&open, &parsed, context).unwrap();
                    assert_eq!(opened.expose(), b"plaintext");
                }
            });
        }
    });
}
