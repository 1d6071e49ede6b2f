//! The key of one message: derived from the data key, and used for its header and each of its frames.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf;
use subtle::ConstantTimeEq;

use super::header::{COMMITMENT_LENGTH, MESSAGE_ID_LENGTH, Suite};
use super::keys::PlaintextDataKey;

/// Length of AES-GCM's initialization vector, in bytes.
pub(super) const IV_LENGTH: usize = 12;
/// Length of AES-GCM's authentication tag, in bytes.
pub(super) const TAG_LENGTH: usize = 16;

/// HKDF's labels; the first follows the suite's id ("algorithm suites reference", version 2 suites).
const DERIVE_LABEL: &[u8] = b"DERIVEKEY";
const COMMIT_LABEL: &[u8] = b"COMMITKEY";

/// Whether a frame is the last of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Regular,
    Final,
}

impl FrameKind {
    /// What the format calls the body AAD content: it keeps a regular frame from passing for a final one.
    fn content_string(self) -> &'static [u8] {
        match self {
            Self::Regular => b"AWSKMSEncryptionClient Frame",
            Self::Final => b"AWSKMSEncryptionClient Final Frame",
        }
    }
}

/// The value that commits a message to its data key.
pub(super) struct Commitment([u8; COMMITMENT_LENGTH]);

impl Commitment {
    /// For the header of a message that is written.
    pub(super) fn into_bytes(self) -> [u8; COMMITMENT_LENGTH] {
        self.0
    }

    /// Whether a header carries this value; in constant time.
    pub(super) fn matches(&self, claimed: &[u8; COMMITMENT_LENGTH]) -> bool {
        self.0.ct_eq(claimed).into()
    }
}

/// The AES-256-GCM key of one message. Initialization vectors are the frame's number and 0 for the header,
/// as the format has it: each is used once with this key, since the message id, which is random, is the
/// salt that the key is derived with. (`ring` does not wipe its key objects; this one lives no longer than
/// the message is worked on.)
pub(super) struct MessageKey {
    key: LessSafeKey,
    message_id: [u8; MESSAGE_ID_LENGTH],
}

impl MessageKey {
    /// Derives the message's key and its commitment from the data key: HKDF-SHA512 (RFC 5869) with the
    /// message id as salt.
    pub(super) fn derive(
        suite: Suite,
        data_key: &PlaintextDataKey,
        message_id: [u8; MESSAGE_ID_LENGTH],
    ) -> (Self, Commitment) {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA512, &message_id).extract(data_key.expose());
        let within_hkdf = "32 bytes are within HKDF-SHA512's 255 blocks";
        let suite_id = suite.id().to_be_bytes();
        let derive_info = [suite_id.as_slice(), DERIVE_LABEL];
        let key =
            secret.expand(&derive_info, &AES_256_GCM).map(UnboundKey::from).expect(within_hkdf);
        let mut commitment = [0; COMMITMENT_LENGTH];
        secret
            .expand(&[COMMIT_LABEL], CommitmentLength)
            .and_then(|okm| okm.fill(&mut commitment))
            .expect(within_hkdf);
        (Self { key: LessSafeKey::new(key), message_id }, Commitment(commitment))
    }

    /// The tag that authenticates a header, over its bytes.
    pub(super) fn header_tag(&self, header: &[u8]) -> [u8; TAG_LENGTH] {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(0), Aad::from(header), &mut [])
            .expect("a header is within AES-GCM's limits");
        tag_bytes(&tag)
    }

    /// Whether `tag` is that of `header`.
    pub(super) fn header_is_authentic(&self, header: &[u8], tag: [u8; TAG_LENGTH]) -> bool {
        self.key
            .open_in_place_separate_tag(nonce(0), Aad::from(header), Tag::from(tag), &mut [], 0..)
            .is_ok()
    }

    /// Encrypts the content of a frame where it lies and returns its tag.
    pub(super) fn seal_frame(
        &self,
        kind: FrameKind,
        sequence: u32,
        content: &mut [u8],
    ) -> [u8; TAG_LENGTH] {
        let aad = self.frame_aad(kind, sequence, content.len());
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(sequence), Aad::from(&aad), content)
            .expect("a frame is within AES-GCM's limits");
        tag_bytes(&tag)
    }

    /// Decrypts the content of a frame where it lies. `false` means that it does not authenticate, and
    /// that `content` is worthless.
    #[must_use]
    pub(super) fn open_frame(
        &self,
        kind: FrameKind,
        sequence: u32,
        content: &mut [u8],
        tag: [u8; TAG_LENGTH],
    ) -> bool {
        let aad = self.frame_aad(kind, sequence, content.len());
        self.key
            .open_in_place_separate_tag(
                nonce(sequence),
                Aad::from(&aad),
                Tag::from(tag),
                content,
                0..,
            )
            .is_ok()
    }

    /// Body AAD: message id, content string, sequence number (4 bytes), content length (8 bytes).
    fn frame_aad(&self, kind: FrameKind, sequence: u32, content_length: usize) -> Vec<u8> {
        let content_length =
            u64::try_from(content_length).expect("a frame's length fits in 64 bits");
        let mut aad = Vec::with_capacity(80);
        aad.extend_from_slice(&self.message_id);
        aad.extend_from_slice(kind.content_string());
        aad.extend_from_slice(&sequence.to_be_bytes());
        aad.extend_from_slice(&content_length.to_be_bytes());
        aad
    }
}

/// The initialization vector of frame `sequence`, or of the header, which is number 0.
pub(super) fn iv(sequence: u32) -> [u8; IV_LENGTH] {
    let mut iv = [0; IV_LENGTH];
    iv[IV_LENGTH - 4..].copy_from_slice(&sequence.to_be_bytes());
    iv
}

fn nonce(sequence: u32) -> Nonce {
    Nonce::assume_unique_for_key(iv(sequence))
}

fn tag_bytes(tag: &Tag) -> [u8; TAG_LENGTH] {
    tag.as_ref().try_into().expect("AES-GCM's tag is 16 bytes")
}

/// Tells `ring` how much to expand for a commitment.
struct CommitmentLength;

impl hkdf::KeyType for CommitmentLength {
    fn len(&self) -> usize {
        COMMITMENT_LENGTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_and_commitment(suite: Suite, data_key: u8, message_id: u8) -> (MessageKey, Commitment) {
        let data_key = PlaintextDataKey::from_slice(&[data_key; 32]).unwrap();
        MessageKey::derive(suite, &data_key, [message_id; 32])
    }

    #[test]
    fn commitment_depends_on_data_key_and_message_id() {
        let (_, first) = key_and_commitment(Suite::Commit, 1, 1);
        let (_, same) = key_and_commitment(Suite::CommitSigned, 1, 1);
        let (_, other_key) = key_and_commitment(Suite::Commit, 2, 1);
        let (_, other_message) = key_and_commitment(Suite::Commit, 1, 2);
        assert!(first.matches(&same.into_bytes()));
        assert!(!first.matches(&other_key.into_bytes()));
        assert!(!first.matches(&other_message.into_bytes()));
    }

    #[test]
    fn suites_have_different_message_keys() {
        let (commit, _) = key_and_commitment(Suite::Commit, 1, 1);
        let (signed, _) = key_and_commitment(Suite::CommitSigned, 1, 1);
        let tag = commit.header_tag(b"header");
        assert!(commit.header_is_authentic(b"header", tag));
        assert!(!commit.header_is_authentic(b"heades", tag));
        assert!(!signed.header_is_authentic(b"header", tag));
    }

    #[test]
    fn frame_opens_only_as_what_it_was_sealed_as() {
        let (key, _) = key_and_commitment(Suite::Commit, 1, 1);
        let mut sealed = *b"content of a frame";
        let tag = key.seal_frame(FrameKind::Regular, 7, &mut sealed);
        assert_ne!(&sealed, b"content of a frame");

        let mut content = sealed;
        assert!(key.open_frame(FrameKind::Regular, 7, &mut content, tag));
        assert_eq!(&content, b"content of a frame");
        let opens_as = |kind, sequence, mut content: Vec<u8>| {
            key.open_frame(kind, sequence, &mut content, tag)
        };
        assert!(!opens_as(FrameKind::Final, 7, sealed.to_vec()));
        assert!(!opens_as(FrameKind::Regular, 8, sealed.to_vec()));
        assert!(!opens_as(FrameKind::Regular, 7, sealed[1..].to_vec()));
    }
}
