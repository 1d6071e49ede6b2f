//! A folder of encrypted files.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_client::esdk::{
    self, DataKey, DataKeyOpener, DataKeySource, DecryptOptions, EncryptOptions, EncryptedDataKey,
    EncryptionContext, EsdkError, PlaintextDataKey, Suite,
};
use keyward_client::{CacheLimits, CallError, Client, DataKeyCache, Repeat, in_any_region};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// What went wrong.
#[derive(Debug)]
pub enum VaultError {
    /// The environment does not name a Region.
    Missing(&'static str),
    /// No client could be made.
    Config(String),
    /// A name that is none.
    Name(String),
    /// A file.
    Io(std::io::Error),
    /// Keyward refused, or did not answer.
    Call(Box<CallError>),
    /// A message cannot be read, or is not what was written.
    Message(String),
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => {
                write!(f, "{name} is not set: `keyward dev env` prints what is needed")
            }
            Self::Config(why) | Self::Message(why) => f.write_str(why),
            Self::Name(name) => write!(f, "'{name}' is no name of a file in the vault"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Call(error) => write!(f, "{error}"),
        }
    }
}

impl VaultError {
    /// In a word or two: the error's name, where Keyward gave one.
    pub fn short(&self) -> String {
        match self {
            Self::Call(call) => call.code.clone().unwrap_or_else(|| "no answer".to_owned()),
            other => other.to_string(),
        }
    }
}

impl std::error::Error for VaultError {}

impl From<std::io::Error> for VaultError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<EsdkError> for VaultError {
    fn from(error: EsdkError) -> Self {
        match error {
            EsdkError::KeySource(source) | EsdkError::KeyOpener { source, .. } => {
                source.downcast().map_or_else(|other| Self::Message(other.to_string()), Self::Call)
            }
            other => Self::Message(other.to_string()),
        }
    }
}

/// Where files are kept.
pub struct Vault {
    folder: PathBuf,
    keys: Keys,
}

impl Vault {
    /// Opens a folder, or makes it. A data key is used for so long.
    pub fn open(
        folder: PathBuf,
        key_id: String,
        client: Client,
        data_key_age: Duration,
    ) -> Result<Self, VaultError> {
        std::fs::create_dir_all(&folder)?;
        let limits = CacheLimits { age_max: data_key_age, ..CacheLimits::default() };
        let keys = Keys {
            client: Arc::new(client),
            cache: Arc::new(DataKeyCache::new(limits)),
            key_id,
            arn: Arc::default(),
        };
        Ok(Self { folder, keys })
    }

    fn place(&self, name: &str) -> Result<PathBuf, VaultError> {
        match name.is_empty() || name.starts_with('.') || name.contains('/') {
            true => Err(VaultError::Name(name.to_owned())),
            false => Ok(self.folder.join(format!("{name}.kwd"))),
        }
    }

    /// Encrypts a file and keeps it: whole, or not at all.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), VaultError> {
        let (place, mut keys) = (self.place(name)?, self.keys.at(Handle::current()));
        let work = move || {
            let options = EncryptOptions::new(Suite::Commit);
            keys.bytes = bytes.len() as u64;
            let mut message = Vec::with_capacity(bytes.len() + 4096);
            esdk::encrypt(
                &mut keys,
                &options,
                &*RealEnv.entropy(),
                &bytes[..],
                &mut message,
                |_| {},
            )?;
            let draft = place.with_extension("part");
            std::fs::write(&draft, message)?;
            Ok(std::fs::rename(draft, place)?)
        };
        RealEnv.blocking(work).await
    }

    /// Opens a file.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>, VaultError> {
        let (place, mut keys) = (self.place(name)?, self.keys.at(Handle::current()));
        let work = move || {
            let (message, mut bytes) = (std::fs::read(place)?, Vec::new());
            esdk::decrypt(&mut keys, &DecryptOptions::default(), &message[..], &mut bytes, |_| {})?;
            Ok(bytes)
        };
        RealEnv.blocking(work).await
    }
}

/// Data keys, from the cache or from Keyward.
struct Keys {
    client: Arc<Client>,
    cache: Arc<DataKeyCache>,
    key_id: String,
    /// The key's ARN, once it is known: it goes into every message.
    arn: Arc<Mutex<String>>,
}

impl Keys {
    fn at(&self, runtime: Handle) -> KeysAt {
        KeysAt {
            client: Arc::clone(&self.client),
            cache: Arc::clone(&self.cache),
            key_id: self.key_id.clone(),
            arn: Arc::clone(&self.arn),
            runtime,
            bytes: 0,
        }
    }
}

/// The same for one file, on a thread that may wait.
struct KeysAt {
    client: Arc<Client>,
    cache: Arc<DataKeyCache>,
    key_id: String,
    arn: Arc<Mutex<String>>,
    runtime: Handle,
    bytes: u64,
}

impl DataKeySource for KeysAt {
    type Error = CallError;

    fn generate(&mut self, context: &EncryptionContext) -> Result<DataKey, CallError> {
        let request = v1::GenerateDataKeyRequest {
            key_id: self.key_id.clone(),
            encryption_context: context.clone(),
            key_spec: Some("AES_256".to_owned()),
            ..v1::GenerateDataKeyRequest::default()
        };
        let (client, arn) = (Arc::clone(&self.client), Arc::clone(&self.arn));
        let make = async || {
            let made = client
                .key(Repeat::Safe, request, |mut c, r| async move { c.generate_data_key(r).await })
                .await?;
            *arn.lock() = made.key_id;
            Ok(keyward_client::DataKey::new(made.plaintext, made.ciphertext_blob))
        };
        let cached = self.cache.to_encrypt(&self.key_id, context, self.bytes, make);
        let key = self.runtime.block_on(cached)?;
        Ok(DataKey {
            plaintext: PlaintextDataKey::from_slice(key.plaintext()).map_err(|e| odd(&e))?,
            ciphertext_blob: key.encrypted().to_vec(),
            key_arn: self.arn.lock().clone(),
        })
    }
}

impl DataKeyOpener for KeysAt {
    type Error = CallError;

    fn open(
        &mut self,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<PlaintextDataKey, CallError> {
        let key_id = encrypted.key_arn().map(|arn| in_any_region(arn).to_owned());
        let request = v1::DecryptRequest {
            ciphertext_blob: encrypted.ciphertext.clone(),
            encryption_context: context.clone(),
            key_id,
            ..v1::DecryptRequest::default()
        };
        let client = Arc::clone(&self.client);
        let open = async || {
            let opened = client
                .key(Repeat::Safe, request, |mut c, r| async move { c.decrypt(r).await })
                .await?;
            Ok(opened.plaintext)
        };
        let cached = self.cache.to_decrypt(&encrypted.ciphertext, context, open);
        let key = self.runtime.block_on(cached)?;
        PlaintextDataKey::from_slice(key.plaintext()).map_err(|e| odd(&e))
    }
}

/// A data key of another length than was asked for.
fn odd(error: &EsdkError) -> CallError {
    CallError {
        code: None,
        message: error.to_string(),
        retryable: false,
        outcome_unknown: false,
        throttle: None,
    }
}
