//! Writing a message.

use std::io::{self, Read, Write};
use std::mem;

use keyward_env::Entropy;
use zeroize::Zeroizing;

use super::error::EsdkError;
use super::header::{EncryptedDataKey, Header, Suite};
use super::keys::DataKeySource;
use super::message_key::{FrameKind, IV_LENGTH, MessageKey, TAG_LENGTH, iv};
use super::signature::MessageSigner;
use super::{
    EncryptionContext, FRAME_LENGTH_DEFAULT, FRAME_LENGTH_MAX, PROVIDER_ID, PUBLIC_KEY_CONTEXT_KEY,
    RESERVED_CONTEXT_PREFIX, Summary,
};

/// How a message is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptOptions {
    /// The algorithm suite; see [`Suite`] for which is for what.
    pub suite: Suite,
    /// Content bytes of a frame, from 1 to [`FRAME_LENGTH_MAX`]. Readers must hold this many in memory.
    pub frame_length: u32,
    /// The encryption context. Keys may not begin with [`RESERVED_CONTEXT_PREFIX`].
    pub context: EncryptionContext,
}

impl EncryptOptions {
    /// Options with frames of [`FRAME_LENGTH_DEFAULT`] and no encryption context.
    #[must_use]
    pub fn new(suite: Suite) -> Self {
        Self { suite, frame_length: FRAME_LENGTH_DEFAULT, context: EncryptionContext::new() }
    }

    fn check(&self) -> Result<(), EsdkError> {
        if !(1..=FRAME_LENGTH_MAX).contains(&self.frame_length) {
            return Err(EsdkError::FrameLength { found: self.frame_length, max: FRAME_LENGTH_MAX });
        }
        match self.context.keys().find(|key| key.starts_with(RESERVED_CONTEXT_PREFIX)) {
            Some(key) => Err(EsdkError::ReservedContextKey(key.clone())),
            None => Ok(()),
        }
    }
}

/// Encrypts all of `reader` into one message on `writer`, under a data key from `source`.
///
/// `progress` is told, after each frame, how many bytes of content have been written in all. `writer` gets
/// one write a frame, so it needs no buffer of its own; it is flushed at the end.
///
/// # Errors
/// Whatever [`EsdkError`] has for writers; part of a message may have been written then.
pub fn encrypt<S: DataKeySource>(
    source: &mut S,
    options: &EncryptOptions,
    entropy: &dyn Entropy,
    reader: impl Read,
    writer: impl Write,
    progress: impl FnMut(u64),
) -> Result<Summary, EsdkError> {
    options.check()?;
    let signer = options.suite.is_signed().then(|| MessageSigner::new(entropy)).transpose()?;
    let mut context = options.context.clone();
    if let Some(signer) = &signer {
        context.insert(PUBLIC_KEY_CONTEXT_KEY.to_owned(), signer.verification_key());
    }
    let data_key = source.generate(&context).map_err(|error| EsdkError::KeySource(error.into()))?;
    let mut message_id = [0; 32];
    entropy.fill(&mut message_id);
    let (key, commitment) = MessageKey::derive(options.suite, &data_key.plaintext, message_id);
    drop(data_key.plaintext);
    let header = Header {
        suite: options.suite,
        message_id,
        context,
        encrypted_data_keys: vec![EncryptedDataKey {
            provider_id: PROVIDER_ID.to_owned(),
            provider_info: data_key.key_arn.as_bytes().to_vec(),
            ciphertext: data_key.ciphertext_blob,
        }],
        frame_length: options.frame_length,
        commitment: commitment.into_bytes(),
    };

    let mut output = Output { writer, signer, written: 0 };
    let header_bytes = header.to_bytes()?;
    output.write(&header_bytes)?;
    output.write(&key.header_tag(&header_bytes))?;
    let (frames, plaintext_bytes) =
        write_frames(&key, options.frame_length, reader, &mut output, progress)?;
    let message_bytes = output.finish()?;
    Ok(Summary {
        suite: header.suite,
        context: header.context,
        key_arn: data_key.key_arn,
        frames,
        plaintext_bytes,
        message_bytes,
    })
}

/// Writes the body; returns the number of frames and of content bytes. The final frame holds what is left,
/// which is a whole frame if the content is a multiple of the frame length, and nothing if there is no
/// content. To know it as the final one, the frame after it is read first.
fn write_frames<W: Write>(
    key: &MessageKey,
    frame_length: u32,
    mut reader: impl Read,
    output: &mut Output<W>,
    mut progress: impl FnMut(u64),
) -> Result<(u32, u64), EsdkError> {
    let mut frame = Frame::new(frame_length);
    let mut following = Frame::new(frame_length);
    frame.fill(&mut reader)?;
    let mut plaintext_bytes = 0;
    // Number 2^32 - 1 marks a final frame where a regular one has its number, so only a final frame may
    // have it.
    for sequence in 1..=u32::MAX {
        if frame.is_full() {
            following.fill(&mut reader)?;
        }
        let is_final = following.content_length == 0;
        if !is_final && sequence == u32::MAX {
            return Err(EsdkError::TooManyFrames);
        }
        plaintext_bytes += frame.content_length as u64;
        let kind = if is_final { FrameKind::Final } else { FrameKind::Regular };
        output.write(frame.seal(key, kind, sequence))?;
        progress(plaintext_bytes);
        if is_final {
            return Ok((sequence, plaintext_bytes));
        }
        frame.content_length = 0;
        mem::swap(&mut frame, &mut following);
    }
    Err(EsdkError::TooManyFrames)
}

/// Bytes before the content of a final frame: marker 4, number 4, initialization vector 12, length 4. A
/// regular frame has number and initialization vector alone.
const FINAL_PREFIX: usize = 4 + 4 + IV_LENGTH + 4;

/// Where a frame has its number and this is there instead, the frame is the final one.
pub(super) const FINAL_FRAME_MARKER: u32 = u32::MAX;

/// Room for one frame, prefix and tag included, so that it is encrypted in place and written at once.
/// Wiped when dropped.
struct Frame {
    /// Prefix (to the length of the longer one), content, tag.
    bytes: Zeroizing<Vec<u8>>,
    content_length: usize,
}

impl Frame {
    fn new(frame_length: u32) -> Self {
        let length = FINAL_PREFIX + frame_length as usize + TAG_LENGTH;
        Self { bytes: Zeroizing::new(vec![0; length]), content_length: 0 }
    }

    fn is_full(&self) -> bool {
        FINAL_PREFIX + self.content_length + TAG_LENGTH == self.bytes.len()
    }

    /// Reads content until the frame is full or the input ends.
    fn fill(&mut self, reader: &mut impl Read) -> Result<(), EsdkError> {
        self.content_length = 0;
        while !self.is_full() {
            let end = self.bytes.len() - TAG_LENGTH;
            let room = &mut self.bytes[FINAL_PREFIX + self.content_length..end];
            match reader.read(room) {
                Ok(0) => break,
                Ok(count) => self.content_length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(EsdkError::Read(error)),
            }
        }
        Ok(())
    }

    /// Encrypts the content and returns the frame as it is written.
    fn seal(&mut self, key: &MessageKey, kind: FrameKind, sequence: u32) -> &[u8] {
        let content = FINAL_PREFIX..FINAL_PREFIX + self.content_length;
        let tag = key.seal_frame(kind, sequence, &mut self.bytes[content.clone()]);
        self.bytes[content.end..content.end + TAG_LENGTH].copy_from_slice(&tag);

        let mut prefix = Vec::with_capacity(FINAL_PREFIX);
        if kind == FrameKind::Final {
            prefix.extend_from_slice(&FINAL_FRAME_MARKER.to_be_bytes());
        }
        prefix.extend_from_slice(&sequence.to_be_bytes());
        prefix.extend_from_slice(&iv(sequence));
        if kind == FrameKind::Final {
            let length = u32::try_from(self.content_length).expect("a frame is below 4 GiB");
            prefix.extend_from_slice(&length.to_be_bytes());
        }
        let start = content.start - prefix.len();
        self.bytes[start..content.start].copy_from_slice(&prefix);
        &self.bytes[start..content.end + TAG_LENGTH]
    }
}

/// Where the message goes: counted, and digested if it is to be signed.
struct Output<W> {
    writer: W,
    signer: Option<MessageSigner>,
    written: u64,
}

impl<W: Write> Output<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EsdkError> {
        if let Some(signer) = &mut self.signer {
            signer.update(bytes);
        }
        self.write_unsigned(bytes)
    }

    fn write_unsigned(&mut self, bytes: &[u8]) -> Result<(), EsdkError> {
        self.written += bytes.len() as u64;
        self.writer.write_all(bytes).map_err(EsdkError::Write)
    }

    /// Writes the footer of a signed message (length 2, signature); returns the message's length.
    fn finish(mut self) -> Result<u64, EsdkError> {
        if let Some(signer) = self.signer.take() {
            let signature = signer.sign()?;
            let length = u16::try_from(signature.len()).expect("a P-384 signature is 104 bytes");
            let footer = [length.to_be_bytes().as_slice(), &signature].concat();
            self.write_unsigned(&footer)?;
        }
        self.writer.flush().map_err(EsdkError::Write)?;
        Ok(self.written)
    }
}
