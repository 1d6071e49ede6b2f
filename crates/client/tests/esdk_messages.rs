//! Whole messages of the AWS Encryption SDK format: what is written is read, and nothing else is.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{self, Read, Write};

use keyward_client::esdk::{
    DataKey, DataKeyOpener, DataKeySource, DecryptOptions, EncryptOptions, EncryptedDataKey,
    EncryptionContext, EsdkError, FRAME_LENGTH_MAX, PUBLIC_KEY_CONTEXT_KEY, PlaintextDataKey,
    Suite, Summary, decrypt, encrypt, inspect,
};
use keyward_env::{Entropy, OsEntropy};
use proptest::prelude::*;

const KEY_ARN: &str =
    "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const FRAME_LENGTH: u32 = 32;
const SUITES: [Suite; 2] = [Suite::Commit, Suite::CommitSigned];

/// A KMS with one data key for all, which it hands out to whoever names the context it was made under.
#[derive(Default)]
struct OneKey {
    context: EncryptionContext,
    calls: Cell<usize>,
}

fn data_key(byte: u8) -> PlaintextDataKey {
    PlaintextDataKey::from_slice(&[byte; 32]).expect("32 bytes are a data key")
}

const WRAPPED: &[u8] = b"the wrapped data key";

impl DataKeySource for OneKey {
    type Error = Infallible;

    fn generate(&mut self, context: &EncryptionContext) -> Result<DataKey, Infallible> {
        self.context = context.clone();
        Ok(DataKey {
            plaintext: data_key(0x5a),
            ciphertext_blob: WRAPPED.to_vec(),
            key_arn: KEY_ARN.to_owned(),
        })
    }
}

impl DataKeyOpener for &OneKey {
    type Error = &'static str;

    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, &'static str> {
        self.calls.set(self.calls.get() + 1);
        if encrypted.key_arn() != Some(KEY_ARN) || encrypted.ciphertext != WRAPPED {
            return Err("not a ciphertext of this key");
        }
        if *context != self.context {
            return Err("another encryption context");
        }
        Ok(data_key(0x5a))
    }
}

/// A KMS that answers with a key that is not the message's.
struct WrongKey;

impl DataKeyOpener for WrongKey {
    type Error = Infallible;

    fn open(
        &mut self,
        _: &EncryptedDataKey,
        _: &EncryptionContext,
    ) -> Result<PlaintextDataKey, Infallible> {
        Ok(data_key(1))
    }
}

/// A message, with what it takes to open it.
struct Message {
    bytes: Vec<u8>,
    kms: OneKey,
    summary: Summary,
}

impl Message {
    fn new(suite: Suite, content: &[u8]) -> Self {
        let mut options = EncryptOptions::new(suite);
        options.frame_length = FRAME_LENGTH;
        options.context.insert("purpose".into(), "test".into());
        let mut kms = OneKey::default();
        let mut bytes = Vec::new();
        let summary = encrypt(&mut kms, &options, &OsEntropy, content, &mut bytes, |_| {})
            .expect("the content can be encrypted");
        Self { bytes, kms, summary }
    }

    /// Decrypts `bytes` as if they were this message.
    fn decrypt(&self, bytes: &[u8]) -> (Result<Summary, EsdkError>, Vec<u8>) {
        let mut content = Vec::new();
        let options = DecryptOptions::default();
        let result = decrypt(&mut &self.kms, &options, bytes, &mut content, |_| {});
        (result, content)
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| index as u8).collect()
}

#[test]
fn every_length_around_frame_boundaries_survives_the_round_trip() {
    for suite in SUITES {
        for length in 0..=4 * FRAME_LENGTH as usize + 1 {
            let content = content(length);
            let message = Message::new(suite, &content);
            let (result, decrypted) = message.decrypt(&message.bytes);
            assert_eq!(result.unwrap(), message.summary);
            assert_eq!(decrypted, content);
            assert_eq!(message.summary.plaintext_bytes, length as u64);
            assert_eq!(message.summary.message_bytes, message.bytes.len() as u64);
            let frames = length.div_ceil(FRAME_LENGTH as usize).max(1);
            assert_eq!(message.summary.frames as usize, frames);
            assert_eq!(message.summary.key_arn, KEY_ARN);
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error_and_releases_only_what_authenticates() {
    for suite in SUITES {
        let content = content(2 * FRAME_LENGTH as usize + 5);
        let message = Message::new(suite, &content);
        let mut bytes = message.bytes.clone();
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (result, released) = message.decrypt(&bytes);
            assert!(result.is_err(), "bit {bit} of {suite}");
            assert!(content.starts_with(&released), "bit {bit} of {suite}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn every_truncation_is_an_error_and_releases_only_what_authenticates() {
    for suite in SUITES {
        let content = content(2 * FRAME_LENGTH as usize);
        let message = Message::new(suite, &content);
        for length in 0..message.bytes.len() {
            let (result, released) = message.decrypt(&message.bytes[..length]);
            assert!(result.is_err(), "cut to {length} of {suite}");
            assert!(content.starts_with(&released));
        }
    }
}

#[test]
fn truncation_says_where() {
    let message = Message::new(Suite::Commit, &content(3 * FRAME_LENGTH as usize));
    let final_frame = 4 + 4 + 12 + 4 + FRAME_LENGTH as usize + 16;
    let cut = message.bytes.len() - final_frame;
    let (result, _) = message.decrypt(&message.bytes[..cut]);
    assert_eq!(
        result.unwrap_err().to_string(),
        "the message ends after frame 2, before its final frame: it was cut short"
    );
    let message = Message::new(Suite::CommitSigned, b"content");
    let (result, released) = message.decrypt(&message.bytes[..message.bytes.len() - 1]);
    assert!(matches!(result, Err(EsdkError::TruncatedSignature)));
    assert_eq!(released, b"content");
}

#[test]
fn bytes_after_the_end_are_an_error() {
    for suite in SUITES {
        let message = Message::new(suite, b"content");
        let twice = [message.bytes.clone(), message.bytes.clone()].concat();
        assert!(matches!(message.decrypt(&twice).0, Err(EsdkError::TrailingData)));
    }
}

#[test]
fn frames_cannot_change_places() {
    let message = Message::new(Suite::Commit, &content(3 * FRAME_LENGTH as usize));
    let frame = 4 + 12 + FRAME_LENGTH as usize + 16;
    let body = message.bytes.len() - (2 * frame + frame + 8);
    let mut bytes = message.bytes.clone();
    bytes[body..body + 2 * frame].rotate_left(frame);
    let (result, released) = message.decrypt(&bytes);
    assert!(matches!(result, Err(EsdkError::FrameOrder { expected: 1, found: 2 })));
    assert!(released.is_empty());
    // With its number put right it is still not frame 1.
    bytes[body + 3] = 1;
    bytes[body + 15] = 1;
    let (result, released) = message.decrypt(&bytes);
    assert!(matches!(result, Err(EsdkError::FrameNotAuthentic { frame: 1 })));
    assert!(released.is_empty());
}

#[test]
fn signature_of_another_message_is_refused_at_the_end() {
    let message = Message::new(Suite::CommitSigned, b"content");
    let other = Message::new(Suite::CommitSigned, b"content");
    let footer = |bytes: &[u8]| {
        (100..=106)
            .map(|length| bytes.len() - length)
            .find(|&at| {
                usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])) == bytes.len() - at - 2
            })
            .unwrap()
    };
    let mut bytes = message.bytes[..footer(&message.bytes)].to_vec();
    bytes.extend_from_slice(&other.bytes[footer(&other.bytes)..]);
    let (result, released) = message.decrypt(&bytes);
    assert!(matches!(result, Err(EsdkError::SignatureInvalid)));
    // Why the caller must wait for the end.
    assert_eq!(released, b"content");
}

#[test]
fn wrong_data_key_fails_the_commitment_before_any_frame() {
    let message = Message::new(Suite::Commit, b"content");
    let mut released = Vec::new();
    let options = DecryptOptions::default();
    let result = decrypt(&mut WrongKey, &options, message.bytes.as_slice(), &mut released, |_| {});
    let error = result.unwrap_err();
    assert!(matches!(error, EsdkError::CommitmentMismatch));
    assert!(error.to_string().starts_with("the commitment does not match"));
    assert!(released.is_empty());
}

#[test]
fn refusal_of_the_key_service_is_the_source_of_the_error() {
    let mut message = Message::new(Suite::Commit, b"content");
    message.kms.context.clear();
    let error = message.decrypt(&message.bytes).0.unwrap_err();
    assert!(matches!(error, EsdkError::KeyOpener { tried: 1, .. }));
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "another encryption context");
}

#[test]
fn message_of_another_provider_is_refused_without_asking() {
    let message = Message::new(Suite::Commit, b"content");
    let at = message.bytes.windows(7).position(|bytes| bytes == b"aws-kms").unwrap();
    let mut bytes = message.bytes.clone();
    bytes[at..at + 7].copy_from_slice(b"raw-rsa");
    let error = message.decrypt(&bytes).0.unwrap_err();
    assert!(matches!(error, EsdkError::NoKmsDataKey { .. }));
    assert!(error.to_string().ends_with("providers found: \"raw-rsa\""));
    assert_eq!(message.kms.calls.get(), 0);
}

#[test]
fn required_context_is_checked_before_the_key_service_is_asked() {
    let message = Message::new(Suite::Commit, b"content");
    let decrypt_with = |key: &str, value: &str| {
        let mut options = DecryptOptions::default();
        options.required_context.insert(key.into(), value.into());
        decrypt(&mut &message.kms, &options, message.bytes.as_slice(), io::sink(), |_| {})
    };
    let mismatch = |result| matches!(result, Err(EsdkError::ContextMismatch { .. }));
    assert!(mismatch(decrypt_with("purpose", "payroll")));
    assert!(mismatch(decrypt_with("department", "test")));
    assert!(decrypt_with("purpose", "test").is_ok());
    assert_eq!(message.kms.calls.get(), 1);
}

#[test]
fn frames_longer_than_accepted_are_refused_before_the_key_service_is_asked() {
    let message = Message::new(Suite::Commit, b"content");
    let options =
        DecryptOptions { frame_length_max: FRAME_LENGTH - 1, ..DecryptOptions::default() };
    let result = decrypt(&mut &message.kms, &options, message.bytes.as_slice(), io::sink(), |_| {});
    assert!(matches!(result, Err(EsdkError::HeaderLimit { what: "frame length", .. })));
    assert_eq!(message.kms.calls.get(), 0);
}

#[test]
fn impossible_options_are_refused() {
    let encrypt_with = |change: fn(&mut EncryptOptions)| {
        let mut options = EncryptOptions::new(Suite::Commit);
        change(&mut options);
        encrypt(&mut OneKey::default(), &options, &OsEntropy, io::empty(), io::sink(), |_| {})
            .unwrap_err()
    };
    assert!(matches!(
        encrypt_with(|options| options.frame_length = 0),
        EsdkError::FrameLength { found: 0, .. }
    ));
    assert!(matches!(
        encrypt_with(|options| options.frame_length = FRAME_LENGTH_MAX + 1),
        EsdkError::FrameLength { .. }
    ));
    assert!(matches!(
        encrypt_with(|options| {
            options.context.insert(PUBLIC_KEY_CONTEXT_KEY.into(), "mine".into());
        }),
        EsdkError::ReservedContextKey(_)
    ));
    assert!(matches!(
        encrypt_with(|options| {
            options.context.insert("key".into(), "x".repeat(8192));
        }),
        EsdkError::HeaderLimit { .. }
    ));
}

#[test]
fn inspect_shows_the_header_without_a_key() {
    let message = Message::new(Suite::CommitSigned, b"content");
    let header = inspect(message.bytes.as_slice()).unwrap();
    assert_eq!(header.suite, Suite::CommitSigned);
    assert_eq!(header.context["purpose"], "test");
    assert_eq!(header.context, message.summary.context);
    assert!(header.context.contains_key(PUBLIC_KEY_CONTEXT_KEY));
    assert_eq!(header.encrypted_data_keys[0].key_arn(), Some(KEY_ARN));
    assert_eq!(header.frame_length, FRAME_LENGTH);
}

#[test]
fn same_content_never_gives_the_same_message() {
    let first = Message::new(Suite::Commit, b"content");
    let second = Message::new(Suite::Commit, b"content");
    assert_ne!(first.bytes, second.bytes);
}

/// A stream that gives a few bytes at a time, is interrupted now and then, and fails at the end if told.
struct Grudging<'a> {
    bytes: &'a [u8],
    calls: usize,
    fails: bool,
}

impl Read for Grudging<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.bytes.is_empty() && self.fails {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let length = room.len().min(self.calls % 7 + 1);
        self.bytes.read(&mut room[..length])
    }
}

#[test]
fn short_reads_and_interruptions_change_nothing() {
    let content = content(5 * FRAME_LENGTH as usize);
    let reader = |bytes, fails| Grudging { bytes, calls: 0, fails };
    let mut options = EncryptOptions::new(Suite::CommitSigned);
    options.frame_length = FRAME_LENGTH;
    let mut kms = OneKey::default();
    let mut message = Vec::new();
    let mut steps = Vec::new();
    encrypt(&mut kms, &options, &OsEntropy, reader(&content, false), &mut message, |bytes| {
        steps.push(bytes);
    })
    .unwrap();
    assert_eq!(steps, [32, 64, 96, 128, 160]);

    let mut decrypted = Vec::new();
    let options = DecryptOptions::default();
    decrypt(&mut &kms, &options, reader(&message, false), &mut decrypted, |_| {}).unwrap();
    assert_eq!(decrypted, content);
    let failed = decrypt(&mut &kms, &options, reader(&message, true), io::sink(), |_| {});
    assert!(matches!(failed, Err(EsdkError::Read(_))));
}

/// A disk with room for so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(self.0);
        if length == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= length;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn full_disk_is_an_error_both_ways() {
    let mut message = Message::new(Suite::Commit, &content(100));
    let options = EncryptOptions::new(Suite::Commit);
    let content = content(100);
    let full = encrypt(&mut message.kms, &options, &OsEntropy, &content[..], Full(300), |_| {});
    assert!(matches!(full, Err(EsdkError::Write(_))));
    let message = Message::new(Suite::Commit, &content);
    let options = DecryptOptions::default();
    let full = decrypt(&mut &message.kms, &options, message.bytes.as_slice(), Full(50), |_| {});
    assert!(matches!(full, Err(EsdkError::Write(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_content_survives_any_frame_length(
        content in prop::collection::vec(any::<u8>(), 0..3000),
        frame_length in 1_u32..1500,
        signed: bool,
        context in prop::collection::btree_map("[a-z]{1,9}", ".{0,30}", 0..5),
    ) {
        let suite = if signed { Suite::CommitSigned } else { Suite::Commit };
        let options = EncryptOptions { suite, frame_length, context };
        let mut kms = OneKey::default();
        let mut message = Vec::new();
        encrypt(&mut kms, &options, &OsEntropy, &content[..], &mut message, |_| {}).unwrap();
        let mut decrypted = Vec::new();
        decrypt(&mut &kms, &DecryptOptions::default(), &message[..], &mut decrypted, |_| {}).unwrap();
        prop_assert_eq!(decrypted, content);
    }

    #[test]
    fn random_damage_never_passes_or_panics(
        length in 0_usize..200,
        signed: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=u8::MAX), 1..4),
        fallback: u64,
    ) {
        let suite = if signed { Suite::CommitSigned } else { Suite::Commit };
        let content = content(length);
        let message = Message::new(suite, &content);
        let mut bytes = message.bytes.clone();
        for (index, change) in damage {
            let at = index.index(bytes.len());
            bytes[at] ^= change;
        }
        if bytes == message.bytes {
            // The changes undid each other.
            bytes[fallback as usize % message.bytes.len()] ^= 1;
        }
        let (result, released) = message.decrypt(&bytes);
        prop_assert!(result.is_err());
        prop_assert!(content.starts_with(&released));
    }
}

/// Randomness that is always the same, to show that all of it comes through the seam.
struct Fixed;

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0x11);
    }
}

#[test]
fn same_entropy_gives_the_same_message() {
    for suite in SUITES {
        let message = || {
            let mut bytes = Vec::new();
            let options = EncryptOptions::new(suite);
            encrypt(&mut OneKey::default(), &options, &Fixed, &b"content"[..], &mut bytes, |_| {})
                .unwrap();
            bytes
        };
        assert_eq!(message(), message());
    }
}
