//! Every primitive against published vectors: Wycheproof, NIST, RFCs. SP 800-108 is tested beside its
//! code (`src/kdf.rs`, NIST CAVP), and so is Argon2id (`src/root/passphrase.rs`, RFC 9106).

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use hpke::aead::{AesGcm128, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, Serializable, single_shot_open};
use keyward_hsm::{CryptoProvider, RingProvider};
use wycheproof::TestResult;

use common::hpke_key_and_nonce;

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

fn providers() -> [&'static dyn CryptoProvider; 1] {
    [&RingProvider]
}

#[test]
fn aes_256_gcm_passes_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let (mut valid_run, mut invalid_run) = (0, 0);
    for group in set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in group.tests {
            let key: [u8; 32] = test.key.to_vec().try_into().unwrap();
            let nonce: [u8; 12] = test.nonce.to_vec().try_into().unwrap();
            let tag: [u8; 16] = test.tag.to_vec().try_into().unwrap();
            let valid = test.result == TestResult::Valid;
            for crypto in providers() {
                let mut opened = test.ct.to_vec();
                let outcome = crypto.aes_256_gcm_open(&key, &nonce, &test.aad, &mut opened, &tag);
                assert_eq!(outcome.is_ok(), valid, "test {}: {}", test.tc_id, test.comment);
                let mut sealed = test.pt.to_vec();
                let made = crypto.aes_256_gcm_seal(&key, &nonce, &test.aad, &mut sealed).unwrap();
                if valid {
                    assert_eq!(opened, test.pt.to_vec(), "test {}", test.tc_id);
                    assert_eq!((sealed, made), (test.ct.to_vec(), tag), "test {}", test.tc_id);
                }
            }
            *if valid { &mut valid_run } else { &mut invalid_run } += 1;
        }
    }
    assert!(valid_run >= 39, "only {valid_run} valid vectors were of our sizes");
    assert!(invalid_run >= 27, "only {invalid_run} invalid vectors were of our sizes");
}

/// The GCM submission to NIST (McGrew and Viega), test cases 13 to 16: those with AES-256 and a
/// 96-bit initialisation vector. They are also in NIST's CAVP sets.
#[test]
fn aes_256_gcm_matches_nist() {
    let zero = "0".repeat(64);
    let twice = "feffe9928665731c6d6a8f9467308308".repeat(2);
    let cases = [
        (&zero, "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            &zero,
            "000000000000000000000000",
            "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (
            &twice,
            "cafebabefacedbaddecaf888",
            "",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
            "b094dac5d93471bdec1a502270e3cc6c",
        ),
        (
            &twice,
            "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
             1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (key, nonce, aad, plaintext, ciphertext, tag) in cases {
        let key: [u8; 32] = unhex(key).try_into().unwrap();
        let nonce: [u8; 12] = unhex(nonce).try_into().unwrap();
        for crypto in providers() {
            let mut in_out = unhex(plaintext);
            let made = crypto.aes_256_gcm_seal(&key, &nonce, &unhex(aad), &mut in_out).unwrap();
            assert_eq!(hex::encode(&in_out), ciphertext.replace(' ', ""));
            assert_eq!(hex::encode(made), tag);
            crypto.aes_256_gcm_open(&key, &nonce, &unhex(aad), &mut in_out, &made).unwrap();
            assert_eq!(in_out, unhex(plaintext));
        }
    }
}

#[test]
fn hmac_sha_256_passes_wycheproof() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let (mut valid_run, mut invalid_run) = (0, 0);
    for group in set.test_groups {
        let tag_bytes = group.tag_size / 8;
        for test in group.tests {
            let valid = test.result == TestResult::Valid;
            for crypto in providers() {
                let mut tag = [0; 32];
                let (front, back) = test.msg.split_at(test.msg.len() / 2);
                crypto.hmac_sha256(&test.key, &[front, back], &mut tag);
                let equal = crypto.equal(&tag[..tag_bytes], &test.tag);
                assert_eq!(equal, valid, "test {}", test.tc_id);
            }
            *if valid { &mut valid_run } else { &mut invalid_run } += 1;
        }
    }
    assert!(valid_run >= 66, "only {valid_run} valid vectors");
    assert!(invalid_run >= 108, "only {invalid_run} invalid vectors");
}

/// RFC 4231, test cases 1 to 7: in 6 and 7 the key is longer than a block, and of the fifth tag the RFC
/// prints 16 bytes.
#[test]
fn hmac_sha_256_matches_rfc_4231() {
    let cases: [(Vec<u8>, &[u8], &str); 7] = [
        (
            vec![0x0b; 20],
            b"Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            b"Jefe".to_vec(),
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            vec![0xaa; 20],
            &[0xdd; 50],
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
        ),
        (
            (1..=25).collect(),
            &[0xcd; 50],
            "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
        ),
        (vec![0x0c; 20], b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
        (
            vec![0xaa; 131],
            b"This is a test using a larger than block-size key and a larger than block-size data. \
              The key needs to be hashed before being used by the HMAC algorithm.",
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
        ),
        (
            vec![0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
    ];
    for (key, message, expected) in cases {
        for crypto in providers() {
            let mut tag = [0; 32];
            crypto.hmac_sha256(&key, &[message], &mut tag);
            assert_eq!(hex::encode(&tag[..expected.len() / 2]), expected);
        }
    }
}

/// NIST's examples for FIPS 180-4: one block, two blocks, none, and a million letters.
#[test]
fn sha_256_matches_nist() {
    let million = vec![b'a'; 1_000_000];
    let cases: [(&[u8], &str); 4] = [
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    ];
    for (message, expected) in cases {
        for crypto in providers() {
            let (front, back) = message.split_at(message.len() / 3);
            assert_eq!(hex::encode(crypto.sha256(&[front, back])), expected);
        }
    }
}

#[test]
fn comparing_tells_lengths_and_contents_apart() {
    for crypto in providers() {
        assert!(crypto.equal(b"", b""));
        assert!(crypto.equal(b"same", b"same"));
        assert!(!crypto.equal(b"same", b"sane"));
        assert!(!crypto.equal(b"same", b"sam"));
    }
}

// RFC 9180, appendix A.3.1: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, base mode.
const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const IKM_R: &str = "668b37171f1072f3cf12ea8a236a45df23fc13b82af3609ad1e354f6ef817550";
const SK_R: &str = "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2";
const ENC: &str = "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac9\
                   8536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4";
const SHARED_SECRET: &str = "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8";
const PLAINTEXT: &str = "4265617574792069732074727574682c20747275746820626561757479";
const AAD: &str = "436f756e742d30";

fn recipient() -> <DhP256HkdfSha256 as Kem>::PrivateKey {
    <DhP256HkdfSha256 as Kem>::PrivateKey::from_bytes(&unhex(SK_R)).unwrap()
}

fn encapsulated() -> <DhP256HkdfSha256 as Kem>::EncappedKey {
    <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(&unhex(ENC)).unwrap()
}

/// The RFC prints this KEM and KDF with AES-128-GCM only; the next test carries it over to AES-256-GCM.
#[test]
fn hpke_with_p_256_matches_rfc_9180() {
    let (private, _) = DhP256HkdfSha256::derive_keypair(&unhex(IKM_R));
    assert_eq!(private.to_bytes().to_vec(), unhex(SK_R));
    let sealed = unhex(
        "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f\
         9076ac232e3ab2523f39513434",
    );
    let opened = single_shot_open::<AesGcm128, HkdfSha256, DhP256HkdfSha256>(
        &OpModeR::Base,
        &recipient(),
        &encapsulated(),
        &unhex(INFO),
        &sealed,
        &unhex(AAD),
    );
    assert_eq!(opened.unwrap(), unhex(PLAINTEXT));
}

/// The suite in use, from the RFC's own shared secret: the key schedule of section 5.1 is written out in
/// `common` over plain HMAC, the message sealed with our AES-256-GCM, and HPKE has to open it.
#[test]
fn hpke_with_aes_256_gcm_agrees_with_the_key_schedule_written_out_by_hand() {
    let (key, nonce) = hpke_key_and_nonce(&unhex(SHARED_SECRET), &unhex(INFO));
    let mut sealed = unhex(PLAINTEXT);
    let tag = RingProvider.aes_256_gcm_seal(&key, &nonce, &unhex(AAD), &mut sealed).unwrap();
    sealed.extend_from_slice(&tag);
    let opened = single_shot_open::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
        &OpModeR::Base,
        &recipient(),
        &encapsulated(),
        &unhex(INFO),
        &sealed,
        &unhex(AAD),
    );
    assert_eq!(opened.unwrap(), unhex(PLAINTEXT));
}
