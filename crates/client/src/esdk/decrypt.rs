//! Reading a message.

use std::io::{self, BufReader, Read, Write};

use zeroize::Zeroizing;

use super::encrypt::FINAL_FRAME_MARKER;
use super::error::EsdkError;
use super::header::{Header, Suite};
use super::keys::{DataKeyOpener, PlaintextDataKey};
use super::message_key::{FrameKind, IV_LENGTH, MessageKey, TAG_LENGTH, iv};
use super::signature::{MessageVerifier, SIGNATURE_LENGTH_MAX};
use super::{EncryptionContext, FRAME_LENGTH_MAX, PUBLIC_KEY_CONTEXT_KEY, Summary};

/// Bytes that are read at once; longer frames are read straight to where they belong.
const READ_BUFFER_LENGTH: usize = 64 * 1024;

/// What is accepted of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecryptOptions {
    /// The longest frames to accept, in bytes: the memory that a message may ask for.
    pub frame_length_max: u32,
    /// Pairs that the message's encryption context must carry; it may carry more.
    pub required_context: EncryptionContext,
}

impl Default for DecryptOptions {
    /// Frames of at most [`FRAME_LENGTH_MAX`], any context.
    fn default() -> Self {
        Self { frame_length_max: FRAME_LENGTH_MAX, required_context: EncryptionContext::new() }
    }
}

impl DecryptOptions {
    fn check(&self, header: &Header) -> Result<(), EsdkError> {
        if header.frame_length > self.frame_length_max {
            return Err(EsdkError::HeaderLimit {
                what: "frame length",
                found: header.frame_length.into(),
                max: self.frame_length_max.into(),
            });
        }
        let missing = self
            .required_context
            .iter()
            .find(|(key, value)| header.context.get(*key) != Some(value));
        match missing {
            Some((key, value)) => {
                Err(EsdkError::ContextMismatch { key: key.clone(), expected: value.clone() })
            }
            None => Ok(()),
        }
    }
}

/// Reads the header of a message: its suite, its encryption context, who can open it. Nothing of it is
/// authenticated. More of `reader` than the header may be consumed.
///
/// # Errors
/// Those of [`EsdkError`] that speak of the header.
pub fn inspect(reader: impl Read) -> Result<Header, EsdkError> {
    Header::read(&mut BufReader::new(reader)).map(|(header, _)| header)
}

/// Decrypts the one message that `reader` holds into `writer`, with a data key that `opener` opens.
///
/// Each frame is written as soon as it is authenticated, so that memory is bounded. **What was written is
/// to be believed only once this returns `Ok`**: before, the message may still turn out to be cut short
/// or, for [`Suite::CommitSigned`], not to be from whom it claims. Write to a temporary file and rename
/// it, or be able to take back what was done with the content.
///
/// `progress` is told, after each frame, how many bytes of content have been written in all. `writer` gets
/// one write a frame; it is flushed at the end.
///
/// # Errors
/// Whatever [`EsdkError`] has for readers; what was written then is to be discarded.
pub fn decrypt<O: DataKeyOpener>(
    opener: &mut O,
    options: &DecryptOptions,
    reader: impl Read,
    mut writer: impl Write,
    progress: impl FnMut(u64),
) -> Result<Summary, EsdkError> {
    let mut reader = BufReader::with_capacity(READ_BUFFER_LENGTH, reader);
    let (header, header_bytes) = Header::read(&mut reader)?;
    options.check(&header)?;
    let verification_key = verification_key(&header)?;

    let (data_key, key_arn) = open_data_key(opener, &header)?;
    let (key, commitment) = MessageKey::derive(header.suite, &data_key, header.message_id);
    drop(data_key);
    if !commitment.matches(&header.commitment) {
        return Err(EsdkError::CommitmentMismatch);
    }
    let mut header_tag = [0; TAG_LENGTH];
    read_exact(&mut reader, &mut header_tag, EsdkError::TruncatedHeader)?;
    if !key.header_is_authentic(&header_bytes, header_tag) {
        return Err(EsdkError::HeaderNotAuthentic);
    }

    let verifier = verification_key.map(MessageVerifier::new).transpose()?;
    let mut input = Input { reader, verifier, read: 0 };
    input.take_in(&header_bytes);
    input.take_in(&header_tag);
    let body = Body { key: &key, frame_length: header.frame_length };
    let (frames, plaintext_bytes) = body.copy(&mut input, &mut writer, progress)?;
    let message_bytes = input.finish()?;
    writer.flush().map_err(EsdkError::Write)?;
    Ok(Summary {
        suite: header.suite,
        context: header.context,
        key_arn,
        frames,
        plaintext_bytes,
        message_bytes,
    })
}

/// The verification key that the context carries: there is one exactly if the suite is a signed one.
fn verification_key(header: &Header) -> Result<Option<&str>, EsdkError> {
    let key = header.context.get(PUBLIC_KEY_CONTEXT_KEY).map(String::as_str);
    match (header.suite, key) {
        (Suite::Commit, None) => Ok(None),
        (Suite::Commit, Some(_)) => {
            Err(EsdkError::MalformedHeader("its suite is unsigned but it has a verification key"))
        }
        (Suite::CommitSigned, Some(key)) => Ok(Some(key)),
        (Suite::CommitSigned, None) => Err(EsdkError::VerificationKey),
    }
}

/// Has the wrapped data keys opened in turn, until one is. Returns the ARN of its wrapping key too.
fn open_data_key<O: DataKeyOpener>(
    opener: &mut O,
    header: &Header,
) -> Result<(PlaintextDataKey, String), EsdkError> {
    let mut tried = 0;
    let mut last_refusal = None;
    for encrypted in &header.encrypted_data_keys {
        let Some(key_arn) = encrypted.key_arn() else { continue };
        tried += 1;
        match opener.open(encrypted, &header.context) {
            Ok(plaintext) => return Ok((plaintext, key_arn.to_owned())),
            Err(error) => last_refusal = Some((error, key_arn)),
        }
    }
    Err(match last_refusal {
        Some((error, key_arn)) => {
            EsdkError::KeyOpener { tried, key_arn: key_arn.to_owned(), source: error.into() }
        }
        None => EsdkError::NoKmsDataKey {
            found: header
                .encrypted_data_keys
                .iter()
                .map(|key| format!("{:?}", key.provider_id))
                .collect::<Vec<_>>()
                .join(", "),
        },
    })
}

/// The frames of a message.
struct Body<'a> {
    key: &'a MessageKey,
    frame_length: u32,
}

/// The beginning of a frame.
struct FrameStart {
    kind: FrameKind,
    sequence: u32,
    content_length: u32,
}

impl Body<'_> {
    /// Writes the content of every frame once it is authenticated; returns the number of frames and of
    /// content bytes.
    fn copy<R: Read>(
        &self,
        input: &mut Input<R>,
        writer: &mut impl Write,
        mut progress: impl FnMut(u64),
    ) -> Result<(u32, u64), EsdkError> {
        let mut content = Zeroizing::new(Vec::new());
        let mut plaintext_bytes = 0;
        for sequence in 1..=u32::MAX {
            let start = self.read_start(input, sequence)?;
            let cut_short = || EsdkError::Truncated { after_frame: sequence - 1 };
            content.resize(start.content_length as usize, 0);
            input.read_exact(&mut content, cut_short())?;
            let mut tag = [0; TAG_LENGTH];
            input.read_exact(&mut tag, cut_short())?;
            if !self.key.open_frame(start.kind, start.sequence, &mut content, tag) {
                return Err(EsdkError::FrameNotAuthentic { frame: sequence });
            }
            writer.write_all(&content).map_err(EsdkError::Write)?;
            plaintext_bytes += u64::from(start.content_length);
            progress(plaintext_bytes);
            if start.kind == FrameKind::Final {
                return Ok((sequence, plaintext_bytes));
            }
        }
        Err(EsdkError::TooManyFrames)
    }

    /// Reads up to a frame's content: marker (of a final frame), number, initialization vector, length (of
    /// a final frame).
    fn read_start<R: Read>(
        &self,
        input: &mut Input<R>,
        expected: u32,
    ) -> Result<FrameStart, EsdkError> {
        let cut_short = || EsdkError::Truncated { after_frame: expected - 1 };
        let mut sequence = input.read_u32(cut_short())?;
        let kind =
            if sequence == FINAL_FRAME_MARKER { FrameKind::Final } else { FrameKind::Regular };
        if kind == FrameKind::Final {
            sequence = input.read_u32(cut_short())?;
        }
        if sequence != expected {
            return Err(EsdkError::FrameOrder { expected, found: sequence });
        }
        let mut found_iv = [0; IV_LENGTH];
        input.read_exact(&mut found_iv, cut_short())?;
        if found_iv != iv(sequence) {
            return Err(EsdkError::FrameNotAuthentic { frame: sequence });
        }
        let content_length = match kind {
            FrameKind::Regular => self.frame_length,
            FrameKind::Final => input.read_u32(cut_short())?,
        };
        if content_length > self.frame_length {
            return Err(EsdkError::FinalFrameLength {
                found: content_length,
                max: self.frame_length,
            });
        }
        Ok(FrameStart { kind, sequence, content_length })
    }
}

/// Where the message comes from: counted, and digested if it is signed.
struct Input<R> {
    reader: BufReader<R>,
    verifier: Option<MessageVerifier>,
    read: u64,
}

impl<R: Read> Input<R> {
    /// Counts and digests bytes that were read.
    fn take_in(&mut self, bytes: &[u8]) {
        self.read += bytes.len() as u64;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(bytes);
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8], at_end: EsdkError) -> Result<(), EsdkError> {
        read_exact(&mut self.reader, bytes, at_end)?;
        self.take_in(bytes);
        Ok(())
    }

    fn read_u32(&mut self, at_end: EsdkError) -> Result<u32, EsdkError> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes, at_end)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Checks the footer of a signed message (length 2, signature), and that nothing follows the message;
    /// returns the message's length.
    fn finish(mut self) -> Result<u64, EsdkError> {
        if let Some(verifier) = self.verifier.take() {
            let mut length = [0; 2];
            self.read_exact(&mut length, EsdkError::TruncatedSignature)?;
            let length = u16::from_be_bytes(length);
            if length > SIGNATURE_LENGTH_MAX {
                return Err(EsdkError::SignatureInvalid);
            }
            let mut signature = vec![0; length.into()];
            self.read_exact(&mut signature, EsdkError::TruncatedSignature)?;
            if !verifier.verify(&signature) {
                return Err(EsdkError::SignatureInvalid);
            }
        }
        match self.reader.read_exact(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(self.read),
            Err(error) => Err(EsdkError::Read(error)),
            Ok(()) => Err(EsdkError::TrailingData),
        }
    }
}

/// Fills `bytes`; `at_end` is the error if the input ends before.
fn read_exact(
    reader: &mut impl Read,
    bytes: &mut [u8],
    at_end: EsdkError,
) -> Result<(), EsdkError> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => at_end,
        _ => EsdkError::Read(error),
    })
}
