//! Encrypts and decrypts a file with a local key in place of a KMS, for the cross test with other
//! implementations of the format (`tests/esdk`). The wrapping is that of `cross.py --local-key`: a test's,
//! not for use.
//!
//! ```text
//! esdk_local encrypt|decrypt --local-key HEX --in FILE --out FILE
//!            [--suite 0x0478|0x0578] [--frame-length BYTES] [--context KEY=VALUE]...
//! ```

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

use keyward_client::esdk::{
    BoxError, DataKey, DataKeyOpener, DataKeySource, DecryptOptions, EncryptOptions,
    EncryptedDataKey, EncryptionContext, PlaintextDataKey, Suite, decrypt, encrypt,
};
use keyward_env::{Entropy, OsEntropy};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

const KEY_ARN: &str =
    "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = format!("esdk_local: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, BoxError> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut wrapping_key = LocalKey::new(&arguments.local_key)?;
    let input = File::open(&arguments.input)?;
    // The output gets its name only once the message is known to be good.
    let partial = arguments.output.with_extension("partial");
    let output = File::create(&partial)?;
    let result = if arguments.encrypts {
        let mut options = EncryptOptions::new(arguments.suite.unwrap_or(Suite::Commit));
        options.context = arguments.context;
        options.frame_length = arguments.frame_length.unwrap_or(options.frame_length);
        encrypt(&mut wrapping_key, &options, &OsEntropy, input, output, |_| {})
    } else {
        let options =
            DecryptOptions { required_context: arguments.context, ..DecryptOptions::default() };
        decrypt(&mut wrapping_key, &options, input, output, |_| {})
    };
    let summary = match result {
        Ok(summary) => summary,
        Err(error) => {
            fs::remove_file(&partial)?;
            return Err(error.into());
        }
    };
    if arguments.suite.is_some_and(|suite| suite != summary.suite) {
        fs::remove_file(&partial)?;
        return Err(format!("the message is of suite {}", summary.suite).into());
    }
    fs::rename(&partial, &arguments.output)?;
    Ok(format!("{summary:?}"))
}

/// The command line.
struct Arguments {
    encrypts: bool,
    local_key: String,
    input: PathBuf,
    output: PathBuf,
    suite: Option<Suite>,
    frame_length: Option<u32>,
    context: EncryptionContext,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, BoxError> {
        let encrypts = match words.next().as_deref() {
            Some("encrypt") => true,
            Some("decrypt") => false,
            _ => return Err("say encrypt or decrypt".into()),
        };
        let mut context = EncryptionContext::new();
        let (mut local_key, mut input, mut output) = (None, None, None);
        let (mut suite, mut frame_length) = (None, None);
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--local-key" => local_key = Some(value),
                "--in" => input = Some(value.into()),
                "--out" => output = Some(value.into()),
                "--frame-length" => frame_length = Some(value.parse()?),
                "--suite" => {
                    let id = u16::from_str_radix(value.trim_start_matches("0x"), 16)?;
                    suite = Some(Suite::from_id(id).ok_or("suites are 0x0478 and 0x0578")?);
                }
                "--context" => {
                    let (key, value) = value.split_once('=').ok_or("a context is KEY=VALUE")?;
                    context.insert(key.to_owned(), value.to_owned());
                }
                _ => return Err(format!("{flag} is unknown").into()),
            }
        }
        Ok(Self {
            encrypts,
            local_key: local_key.ok_or("--local-key is needed")?,
            input: input.ok_or("--in is needed")?,
            output: output.ok_or("--out is needed")?,
            suite,
            frame_length,
            context,
        })
    }
}

/// Wraps data keys with AES-256-GCM: nonce 12, ciphertext 32, tag 16; the context is the additional data.
struct LocalKey(LessSafeKey);

impl LocalKey {
    fn new(hex_text: &str) -> Result<Self, BoxError> {
        let key = UnboundKey::new(&AES_256_GCM, &hex::decode(hex_text)?)
            .map_err(|_| "--local-key takes 64 hexadecimal digits")?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Each key and value in order, after its length in 4 bytes.
    fn context_bytes(context: &EncryptionContext) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in context.iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }
}

impl DataKeySource for LocalKey {
    type Error = BoxError;

    fn generate(&mut self, context: &EncryptionContext) -> Result<DataKey, BoxError> {
        let mut plaintext = [0; PlaintextDataKey::LENGTH];
        let mut nonce = [0; NONCE_LEN];
        OsEntropy.fill(&mut plaintext);
        OsEntropy.fill(&mut nonce);
        let mut wrapped = plaintext;
        let aad = Aad::from(Self::context_bytes(context));
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut wrapped)
            .map_err(|_| "the data key cannot be wrapped")?;
        Ok(DataKey {
            plaintext: PlaintextDataKey::from_slice(&plaintext)?,
            ciphertext_blob: [nonce.as_slice(), &wrapped, tag.as_ref()].concat(),
            key_arn: KEY_ARN.to_owned(),
        })
    }
}

impl DataKeyOpener for LocalKey {
    type Error = BoxError;

    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, BoxError> {
        if encrypted.key_arn() != Some(KEY_ARN) {
            return Err("wrapped by another key".into());
        }
        let (nonce, wrapped) =
            encrypted.ciphertext.split_first_chunk().ok_or("the wrapped key is too short")?;
        let mut wrapped = wrapped.to_vec();
        let aad = Aad::from(Self::context_bytes(context));
        let plaintext = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut wrapped)
            .map_err(|_| "the wrapped key does not authenticate under this key and context")?;
        Ok(PlaintextDataKey::from_slice(plaintext)?)
    }
}
