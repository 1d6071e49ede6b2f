//! `keyward file`: envelope encryption of files of any size, streaming, in the AWS Encryption SDK's
//! message format.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use keyward_client::esdk::{
    self, DataKey, DataKeyOpener, DataKeySource, DecryptOptions, EncryptOptions, EncryptedDataKey,
    EncryptionContext, EsdkError, PlaintextDataKey, Suite,
};
use keyward_client::{CallError, Client, Repeat, in_any_region};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use serde_json::json;
use tokio::runtime::Handle;

use super::connect::ConnectArgs;
use super::keys::pair;
use super::output::{Format, one};
use crate::error::Failure;

/// A progress bar is shown for what takes longer than this.
const BAR_AFTER: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub enum FileCommand {
    /// Encrypt a file
    #[command(after_help = "Examples:
  keyward file encrypt --key-id alias/app backup.tar            writes backup.tar.kwd
  keyward file encrypt --key-id alias/app --signed --context tenant=a in.bin -o out.bin
  tar c data | keyward file encrypt --key-id alias/app - -o data.kwd")]
    Encrypt {
        /// Key id, ARN or alias
        #[arg(long)]
        key_id: String,
        /// The file; - is standard input
        input: PathBuf,
        /// Where to write; INPUT.kwd when absent, - is standard output
        #[arg(short, long)]
        out: Option<PathBuf>,
        /// Encryption context; authenticated, not secret
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
        /// Sign the message too (suite 0x0578, slower)
        #[arg(long)]
        signed: bool,
        /// Overwrite the output
        #[arg(long)]
        force: bool,
    },
    /// Decrypt a file
    #[command(
        after_help = "Example:\n  keyward file decrypt backup.tar.kwd      writes backup.tar"
    )]
    Decrypt {
        /// The file; - is standard input
        input: PathBuf,
        /// Where to write; INPUT without .kwd when absent, - is standard output
        #[arg(short, long)]
        out: Option<PathBuf>,
        /// Refuse messages whose context does not hold this
        #[arg(long = "context", value_name = "NAME=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
        /// Overwrite the output
        #[arg(long)]
        force: bool,
    },
    /// Show a message's header; nothing in it is authenticated
    Inspect { input: PathBuf },
}

/// Calls the service from the thread that streams.
struct Service {
    client: Arc<Client>,
    runtime: Handle,
    key_id: String,
}

#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Length(#[from] EsdkError),
    #[error("the data key names no KMS key")]
    NoKey,
}

impl DataKeySource for Service {
    type Error = ServiceError;

    fn generate(&mut self, context: &EncryptionContext) -> Result<DataKey, ServiceError> {
        let request = v1::GenerateDataKeyRequest {
            key_id: self.key_id.clone(),
            encryption_context: context.clone(),
            key_spec: Some("AES_256".to_owned()),
            ..v1::GenerateDataKeyRequest::default()
        };
        let answer = self.runtime.block_on(self.client.key(
            Repeat::Safe,
            request,
            |mut c, r| async move { c.generate_data_key(r).await },
        ))?;
        let plaintext = zeroize::Zeroizing::new(answer.plaintext);
        Ok(DataKey {
            plaintext: PlaintextDataKey::from_slice(&plaintext)?,
            ciphertext_blob: answer.ciphertext_blob,
            key_arn: answer.key_id,
        })
    }
}

impl DataKeyOpener for Service {
    type Error = ServiceError;

    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, ServiceError> {
        // A multi-Region key is another Region's related key just as well: the rule of the AWS Encryption SDK's keyrings
        // that know multi-Region keys (specification, "AWS KMS MRK aware symmetric keyring").
        let key_id = in_any_region(encrypted.key_arn().ok_or(ServiceError::NoKey)?).to_owned();
        let request = v1::DecryptRequest {
            ciphertext_blob: encrypted.ciphertext.clone(),
            encryption_context: context.clone(),
            key_id: Some(key_id),
            ..v1::DecryptRequest::default()
        };
        let answer = self.runtime.block_on(self.client.key(
            Repeat::Safe,
            request,
            |mut c, r| async move { c.decrypt(r).await },
        ))?;
        let plaintext = zeroize::Zeroizing::new(answer.plaintext);
        Ok(PlaintextDataKey::from_slice(&plaintext)?)
    }
}

/// An output that appears under its name only when it is whole.
enum Output {
    Stdout,
    File { file: File, draft: PathBuf, place: PathBuf },
}

impl Output {
    fn open(place: &Path, force: bool) -> Result<Self, Failure> {
        if place == Path::new("-") {
            return Ok(Self::Stdout);
        }
        if place.exists() && !force {
            return Err(Failure::new(format!("{} exists", place.display()))
                .next("--force overwrites it, -o names another file"));
        }
        let mut draft = place.as_os_str().to_owned();
        draft.push(format!(".{}.part", std::process::id()));
        let draft = PathBuf::from(draft);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", draft.display())))?;
        Ok(Self::File { file, draft, place: place.to_owned() })
    }

    fn finish(self, result: Result<esdk::Summary, EsdkError>) -> Result<esdk::Summary, Failure> {
        match (self, result) {
            (Self::Stdout, result) => result.map_err(Failure::from_error),
            (Self::File { file, draft, place }, Ok(summary)) => {
                let kept = file.sync_all().and_then(|()| fs::rename(&draft, &place));
                kept.map_err(|e| Failure::new(format!("cannot write {}: {e}", place.display())))?;
                Ok(summary)
            }
            (Self::File { draft, .. }, Err(error)) => {
                drop(fs::remove_file(draft));
                Err(Failure::from_error(error))
            }
        }
    }
}

impl Write for &Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Output::Stdout => std::io::stdout().write(bytes),
            Output::File { file, .. } => (&*file).write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Output::Stdout => std::io::stdout().flush(),
            Output::File { file, .. } => (&*file).flush(),
        }
    }
}

fn open_input(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let open = || -> std::io::Result<(File, u64)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(std::io::Error::other("it is a folder; tar it first"));
        }
        Ok((file, metadata.len()))
    };
    let (file, len) =
        open().map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))?;
    Ok((Box::new(BufReader::with_capacity(256 * 1024, file)), Some(len)))
}

/// Shows how far something has come that takes its time.
pub fn progress(total: Option<u64>, what: &'static str) -> impl FnMut(u64) + Send {
    let began = RealEnv.boot_now();
    let mut bar: Option<ProgressBar> = None;
    move |bytes| {
        if bar.is_none() && RealEnv.boot_now() - began > BAR_AFTER {
            let shown = ProgressBar::new(total.unwrap_or(0));
            let template = "{msg} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                shown.set_style(style);
            }
            shown.set_message(what);
            bar = Some(shown);
        }
        if let Some(bar) = &bar {
            bar.set_position(bytes);
        }
    }
}

pub async fn file(
    connect: &ConnectArgs,
    format: Format,
    command: FileCommand,
) -> Result<(), Failure> {
    if let FileCommand::Inspect { input } = &command {
        return inspect(input, format);
    }
    let client = Arc::new(connect.client()?);
    let runtime = Handle::current();
    let (to_stdout, summary, place) = match command {
        FileCommand::Inspect { .. } => return Ok(()),
        FileCommand::Encrypt { key_id, input, out, context, signed, force } => {
            let place = match out {
                Some(out) => out,
                None if input == Path::new("-") => PathBuf::from("-"),
                None => {
                    let mut name = input.clone().into_os_string();
                    name.push(".kwd");
                    PathBuf::from(name)
                }
            };
            let mut options =
                EncryptOptions::new(if signed { Suite::CommitSigned } else { Suite::Commit });
            options.context = context.into_iter().collect();
            let (reader, total) = open_input(&input)?;
            let output = Output::open(&place, force)?;
            let mut service = Service { client, runtime, key_id };
            let work = move || {
                let entropy = RealEnv.entropy();
                let watch = progress(total, "encrypting");
                let result =
                    esdk::encrypt(&mut service, &options, &*entropy, reader, &output, watch);
                output.finish(result)
            };
            (place == Path::new("-"), RealEnv.blocking(work).await?, place)
        }
        FileCommand::Decrypt { input, out, context, force } => {
            let place = match out {
                Some(out) => out,
                None => default_output(&input)?,
            };
            let options = DecryptOptions {
                required_context: context.into_iter().collect(),
                ..DecryptOptions::default()
            };
            let (reader, total) = open_input(&input)?;
            let output = Output::open(&place, force)?;
            let mut service = Service { client, runtime, key_id: String::new() };
            let work = move || {
                let watch = progress(total, "decrypting");
                let result = esdk::decrypt(&mut service, &options, reader, &output, watch);
                output.finish(result)
            };
            (place == Path::new("-"), RealEnv.blocking(work).await?, place)
        }
    };
    if !to_stdout {
        one(
            format,
            &[
                ("File", json!(place.display().to_string())),
                ("KeyArn", json!(summary.key_arn)),
                ("Suite", json!(summary.suite.to_string())),
                ("PlaintextBytes", json!(summary.plaintext_bytes)),
                ("MessageBytes", json!(summary.message_bytes)),
            ],
        );
    }
    Ok(())
}

fn default_output(input: &Path) -> Result<PathBuf, Failure> {
    if input == Path::new("-") {
        return Ok(PathBuf::from("-"));
    }
    match input.extension() {
        Some(extension) if extension == "kwd" => Ok(input.with_extension("")),
        _ => Err(Failure::new(format!("{} does not end in .kwd", input.display()))
            .next("name the output with -o")),
    }
}

fn inspect(input: &Path, format: Format) -> Result<(), Failure> {
    let (reader, _) = open_input(input)?;
    let header = esdk::inspect(reader).map_err(Failure::from_error)?;
    let keys: Vec<_> = header
        .encrypted_data_keys
        .iter()
        .map(|key| json!(key.key_arn().unwrap_or("(not a KMS key)")))
        .collect();
    one(
        format,
        &[
            ("Suite", json!(format!("{} {}", header.suite, header.suite.name()))),
            ("MessageId", json!(hex::encode(header.message_id))),
            ("EncryptionContext", json!(header.context)),
            ("DataKeysOf", json!(keys)),
            ("FrameLength", json!(header.frame_length)),
        ],
    );
    Ok(())
}
