//! The header of a message: what it holds, and its bytes.
//!
//! Layout ("AWS Encryption SDK message format reference", version 2; all numbers big-endian): version 1,
//! suite 2, message id 32, context length 2, context, count of data keys 2, data keys, content type 1,
//! frame length 4, commitment 32. The tag that follows is not part of the header.

use std::fmt;
use std::io::{self, Read};

use keyward_model::limits::{CIPHERTEXT_BYTES_MAX, ENCRYPTION_CONTEXT_BYTES_MAX, KEY_ID_CHARS_MAX};

use super::error::EsdkError;
use super::{ENCRYPTED_DATA_KEYS_MAX, EncryptionContext, PROVIDER_ID};

pub(super) const MESSAGE_ID_LENGTH: usize = 32;
pub(super) const COMMITMENT_LENGTH: usize = 32;

const VERSION_2: u8 = 2;
/// How messages of version 1 begin: version, and the type "customer authenticated encrypted data".
const VERSION_1: u8 = 1;
const VERSION_1_TYPE: u8 = 0x80;

const CONTENT_TYPE_FRAMED: u8 = 2;
const CONTENT_TYPE_SINGLE_BLOCK: u8 = 1;

/// Bytes of a provider id. Ours has 7; foreign ones are names of master key providers.
const PROVIDER_ID_BYTES_MAX: usize = 256;
/// Bytes of a provider's information: for a KMS the key's ARN, which is within a `KeyId`'s length.
const PROVIDER_INFO_BYTES_MAX: usize = KEY_ID_CHARS_MAX;

/// The algorithm suites that are read and written: the committing ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// 0x0478, AES_256_GCM_HKDF_SHA512_COMMIT_KEY: whoever can open the data key can also have written
    /// the message. Enough where readers and writers trust each other, and the faster one.
    Commit,
    /// 0x0578, AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384: also signed, so that readers, who may use
    /// the KMS key for Decrypt alone, cannot pass their own messages for a writer's. What is read is to be
    /// believed only at the end of the message.
    CommitSigned,
}

impl Suite {
    /// The suite's number in the format.
    #[must_use]
    pub fn id(self) -> u16 {
        match self {
            Self::Commit => 0x0478,
            Self::CommitSigned => 0x0578,
        }
    }

    /// The suite of a number, if it is one of those supported.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        [Self::Commit, Self::CommitSigned].into_iter().find(|suite| suite.id() == id)
    }

    /// The name that AWS gave it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Commit => "AES_256_GCM_HKDF_SHA512_COMMIT_KEY",
            Self::CommitSigned => "AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384",
        }
    }

    /// Whether messages end with a signature.
    #[must_use]
    pub fn is_signed(self) -> bool {
        self == Self::CommitSigned
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.id())
    }
}

/// One wrapped copy of a message's data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedDataKey {
    /// Who wrapped it: [`PROVIDER_ID`] for a KMS.
    pub provider_id: String,
    /// What the provider needs to find its key: for a KMS, the ARN in UTF-8.
    pub provider_info: Vec<u8>,
    /// The wrapped key (AWS: CiphertextBlob).
    pub ciphertext: Vec<u8>,
}

impl EncryptedDataKey {
    /// The ARN of the KMS key that wrapped it; `None` if a KMS did not.
    #[must_use]
    pub fn key_arn(&self) -> Option<&str> {
        (self.provider_id == PROVIDER_ID)
            .then(|| std::str::from_utf8(&self.provider_info).ok())
            .flatten()
    }
}

/// A message's header. As [`inspect`](super::inspect) gives it, it is a claim and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The algorithm suite.
    pub suite: Suite,
    /// The message's random name.
    pub message_id: [u8; MESSAGE_ID_LENGTH],
    /// The encryption context, with the verification key of a signed message.
    pub context: EncryptionContext,
    /// The wrapped copies of the data key; any one opens the message.
    pub encrypted_data_keys: Vec<EncryptedDataKey>,
    /// Content bytes of each frame but the final one, which may be shorter.
    pub frame_length: u32,
    /// The value that commits the message to its data key. Not secret.
    pub commitment: [u8; COMMITMENT_LENGTH],
}

impl Header {
    /// The header's bytes.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, EsdkError> {
        let context = context_to_bytes(&self.context)?;
        let mut out = vec![VERSION_2];
        out.extend_from_slice(&self.suite.id().to_be_bytes());
        out.extend_from_slice(&self.message_id);
        push_field(&mut out, "encryption context length", &context, ENCRYPTION_CONTEXT_BYTES_MAX)?;
        let count = check_count(self.encrypted_data_keys.len())?;
        out.extend_from_slice(&count.to_be_bytes());
        for key in &self.encrypted_data_keys {
            let provider_id = key.provider_id.as_bytes();
            push_field(&mut out, PROVIDER_ID_WHAT, provider_id, PROVIDER_ID_BYTES_MAX)?;
            push_field(&mut out, PROVIDER_INFO_WHAT, &key.provider_info, PROVIDER_INFO_BYTES_MAX)?;
            push_field(&mut out, WRAPPED_KEY_WHAT, &key.ciphertext, CIPHERTEXT_BYTES_MAX)?;
        }
        out.push(CONTENT_TYPE_FRAMED);
        out.extend_from_slice(&self.frame_length.to_be_bytes());
        out.extend_from_slice(&self.commitment);
        Ok(out)
    }

    /// Reads a header, and gives its bytes too: they, not what was understood of them, are authenticated.
    pub(super) fn read(reader: &mut impl Read) -> Result<(Self, Vec<u8>), EsdkError> {
        let mut input = Input { reader, bytes: Vec::with_capacity(512) };
        let suite = input.suite()?;
        let message_id = input.array()?;
        let context = input.field("encryption context length", ENCRYPTION_CONTEXT_BYTES_MAX)?;
        let context = context_from_bytes(&context)?;
        let count = check_count(usize::from(input.u16()?))?;
        let encrypted_data_keys =
            (0..count).map(|_| input.encrypted_data_key()).collect::<Result<_, _>>()?;
        input.content_type()?;
        let frame_length = u32::from_be_bytes(input.array()?);
        if frame_length == 0 {
            return Err(EsdkError::MalformedHeader("its frames have no length"));
        }
        let commitment = input.array()?;
        let header =
            Self { suite, message_id, context, encrypted_data_keys, frame_length, commitment };
        Ok((header, input.bytes))
    }
}

const PROVIDER_ID_WHAT: &str = "key provider id length";
const PROVIDER_INFO_WHAT: &str = "key provider information length";
const WRAPPED_KEY_WHAT: &str = "encrypted data key length";

/// A stream of which every byte that is read is kept.
struct Input<'a, R> {
    reader: &'a mut R,
    bytes: Vec<u8>,
}

impl<R: Read> Input<'_, R> {
    fn suite(&mut self) -> Result<Suite, EsdkError> {
        match self.u8() {
            Ok(VERSION_2) => {}
            Ok(VERSION_1) => {
                // Version 1 has none of the committing suites: name the one it has.
                return Err(match self.u8()? {
                    VERSION_1_TYPE => EsdkError::UnsupportedSuite(self.u16()?),
                    _ => EsdkError::NotAMessage,
                });
            }
            Ok(_) | Err(EsdkError::TruncatedHeader) => return Err(EsdkError::NotAMessage),
            Err(error) => return Err(error),
        }
        let id = self.u16()?;
        Suite::from_id(id).ok_or(EsdkError::UnsupportedSuite(id))
    }

    fn encrypted_data_key(&mut self) -> Result<EncryptedDataKey, EsdkError> {
        let provider_id = self.field(PROVIDER_ID_WHAT, PROVIDER_ID_BYTES_MAX)?;
        let provider_id = String::from_utf8(provider_id)
            .map_err(|_| EsdkError::MalformedHeader("a key provider id is not UTF-8"))?;
        let provider_info = self.field(PROVIDER_INFO_WHAT, PROVIDER_INFO_BYTES_MAX)?;
        let ciphertext = self.field(WRAPPED_KEY_WHAT, CIPHERTEXT_BYTES_MAX)?;
        Ok(EncryptedDataKey { provider_id, provider_info, ciphertext })
    }

    fn content_type(&mut self) -> Result<(), EsdkError> {
        match self.u8()? {
            CONTENT_TYPE_FRAMED => Ok(()),
            CONTENT_TYPE_SINGLE_BLOCK => Err(EsdkError::NotFramed),
            _ => Err(EsdkError::MalformedHeader("its content type is unknown")),
        }
    }

    /// A field with its length before it.
    fn field(&mut self, what: &'static str, max: usize) -> Result<Vec<u8>, EsdkError> {
        let length = usize::from(self.u16()?);
        check_length(what, length, max)?;
        let mut field = vec![0; length];
        self.fill(&mut field)?;
        Ok(field)
    }

    fn u8(&mut self) -> Result<u8, EsdkError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, EsdkError> {
        self.array().map(u16::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EsdkError> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EsdkError> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => EsdkError::TruncatedHeader,
            _ => EsdkError::Read(error),
        })?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// The context as the header has it: count 2, then for each pair the key and the value, each after its
/// length, in the order of the keys' bytes. No context is no bytes at all.
fn context_to_bytes(context: &EncryptionContext) -> Result<Vec<u8>, EsdkError> {
    if context.is_empty() {
        return Ok(Vec::new());
    }
    let count = context_length(context.len())?;
    let mut out = count.to_be_bytes().to_vec();
    for (key, value) in context {
        for text in [key, value] {
            out.extend_from_slice(&context_length(text.len())?.to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
    Ok(out)
}

/// A length within a context; the limit on the whole comes when it is put into the header.
fn context_length(length: usize) -> Result<u16, EsdkError> {
    check_length("encryption context length", length, ENCRYPTION_CONTEXT_BYTES_MAX)
}

fn context_from_bytes(bytes: &[u8]) -> Result<EncryptionContext, EsdkError> {
    let mut context = EncryptionContext::new();
    if bytes.is_empty() {
        return Ok(context);
    }
    let mut rest = bytes;
    let count = context_u16(&mut rest)?;
    if count == 0 {
        return Err(EsdkError::MalformedHeader("its encryption context counts no pairs"));
    }
    for _ in 0..count {
        let key = context_text(&mut rest)?;
        let value = context_text(&mut rest)?;
        if context.insert(key, value).is_some() {
            return Err(EsdkError::MalformedHeader("its encryption context repeats a key"));
        }
    }
    if !rest.is_empty() {
        return Err(EsdkError::MalformedHeader("bytes follow its encryption context's pairs"));
    }
    Ok(context)
}

const CONTEXT_SHORT: EsdkError =
    EsdkError::MalformedHeader("its encryption context ends within a pair");

fn context_u16(rest: &mut &[u8]) -> Result<u16, EsdkError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(CONTEXT_SHORT)?;
    *rest = after;
    Ok(u16::from_be_bytes(*bytes))
}

fn context_text(rest: &mut &[u8]) -> Result<String, EsdkError> {
    let length = usize::from(context_u16(rest)?);
    let (bytes, after) = rest.split_at_checked(length).ok_or(CONTEXT_SHORT)?;
    *rest = after;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| EsdkError::MalformedHeader("its encryption context is not UTF-8"))
}

fn push_field(
    out: &mut Vec<u8>,
    what: &'static str,
    field: &[u8],
    max: usize,
) -> Result<(), EsdkError> {
    out.extend_from_slice(&check_length(what, field.len(), max)?.to_be_bytes());
    out.extend_from_slice(field);
    Ok(())
}

fn check_count(count: usize) -> Result<u16, EsdkError> {
    if count == 0 {
        return Err(EsdkError::MalformedHeader("it has no encrypted data key"));
    }
    check_length("number of encrypted data keys", count, ENCRYPTED_DATA_KEYS_MAX.into())
}

/// Holds the limit, before anything is reserved for what is to come.
fn check_length(what: &'static str, found: usize, max: usize) -> Result<u16, EsdkError> {
    let within = (found <= max).then(|| u16::try_from(found).ok()).flatten();
    within.ok_or(EsdkError::HeaderLimit { what, found: found as u64, max: max as u64 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(context: &[(&str, &str)]) -> Header {
        Header {
            suite: Suite::Commit,
            message_id: [7; 32],
            context: context.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            encrypted_data_keys: vec![EncryptedDataKey {
                provider_id: "aws-kms".into(),
                provider_info: b"arn".to_vec(),
                ciphertext: vec![1, 2, 3],
            }],
            frame_length: 4096,
            commitment: [9; 32],
        }
    }

    fn read(bytes: &[u8]) -> Result<Header, EsdkError> {
        Header::read(&mut &bytes[..]).map(|(header, _)| header)
    }

    #[test]
    fn header_has_the_documented_layout() {
        let expected = [
            "02",
            "0478",
            &"07".repeat(32),
            "0010", // context length
            "0002",
            "0001", // "a" sorts before "b"
            "61",
            "0002",
            "3131",
            "0002",
            "6262",
            "0001",
            "32",
            "0001", // data keys
            "0007",
            "6177732d6b6d73",
            "0003",
            "61726e",
            "0003",
            "010203",
            "02",
            "00001000",
            &"09".repeat(32),
        ]
        .concat();
        let header = header(&[("bb", "2"), ("a", "11")]);
        let bytes = header.to_bytes().unwrap();
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(read(&bytes).unwrap(), header);
    }

    #[test]
    fn what_is_no_supported_message_is_named() {
        let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(error(b"").starts_with("not an AWS Encryption SDK message"));
        assert!(error(b"plain text").starts_with("not an AWS Encryption SDK message"));
        assert!(error(&[1, 1, 1, 1]).starts_with("not an AWS Encryption SDK message"));
        let version_1 = error(&[1, 0x80, 0x01, 0x14]);
        assert_eq!(
            version_1,
            "suite 0x0114 is not supported: Keyward reads committing suites 0x0478 and 0x0578"
        );
        assert!(error(&[2, 0x03, 0x78]).starts_with("suite 0x0378 is not supported"));
        let mut single_block = header(&[]).to_bytes().unwrap();
        let content_type = single_block.len() - 37;
        single_block[content_type] = 1;
        assert!(error(&single_block).starts_with("the message is not framed"));
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused_both_ways() {
        let long = "x".repeat(ENCRYPTION_CONTEXT_BYTES_MAX);
        let limit =
            |result: Result<Vec<u8>, _>| matches!(result, Err(EsdkError::HeaderLimit { .. }));
        assert!(limit(header(&[("k", &long)]).to_bytes()));
        let mut many = header(&[]);
        many.encrypted_data_keys = vec![many.encrypted_data_keys[0].clone(); 65];
        assert!(limit(many.to_bytes()));
        let mut big = header(&[]);
        big.encrypted_data_keys[0].ciphertext = vec![0; 6145];
        assert!(limit(big.to_bytes()));
        // A claim is refused before what it claims has come.
        let prefix = &header(&[]).to_bytes().unwrap()[..35];
        let claim = [prefix, &[0xff, 0xff]].concat();
        assert!(matches!(read(&claim), Err(EsdkError::HeaderLimit { found: 0xffff, .. })));
        let claim = [prefix, &[0, 0, 0xff, 0xff]].concat();
        assert!(matches!(read(&claim), Err(EsdkError::HeaderLimit { found: 0xffff, .. })));
        let none = [prefix, &[0, 0, 0, 0]].concat();
        assert!(matches!(read(&none), Err(EsdkError::MalformedHeader(_))));
    }

    #[test]
    fn malformed_contexts_are_refused() {
        for bytes in [
            &[0][..],
            &[0, 0],
            &[0, 1, 0, 1],
            &[0, 1, 0, 1, b'a', 0, 1],
            &[0, 1, 0, 1, 0xff, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0],
            &[0, 2, 0, 1, b'a', 0, 0, 0, 1, b'a', 0, 0],
        ] {
            assert!(
                matches!(context_from_bytes(bytes), Err(EsdkError::MalformedHeader(_))),
                "{bytes:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn headers_survive_the_round_trip(
            context in prop::collection::btree_map(".{0,20}", ".{0,20}", 0..8),
            keys in prop::collection::vec((".{0,20}", any::<[u8; 20]>(), any::<[u8; 30]>()), 1..5),
            frame_length in 1..=u32::MAX,
            ids in any::<[[u8; 32]; 2]>(),
            signed: bool,
        ) {
            let header = Header {
                suite: if signed { Suite::CommitSigned } else { Suite::Commit },
                message_id: ids[0],
                context,
                encrypted_data_keys: keys
                    .into_iter()
                    .map(|(provider_id, info, ciphertext)| EncryptedDataKey {
                        provider_id,
                        provider_info: info.to_vec(),
                        ciphertext: ciphertext.to_vec(),
                    })
                    .collect(),
                frame_length,
                commitment: ids[1],
            };
            let bytes = header.to_bytes().unwrap();
            let (again, raw) = Header::read(&mut bytes.as_slice()).unwrap();
            prop_assert_eq!(again, header);
            prop_assert_eq!(raw, bytes);
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            if bytes.len() > 2 {
                bytes[..3].copy_from_slice(&[2, 4, 0x78]);
                let _ = read(&bytes);
            }
        }
    }
}
