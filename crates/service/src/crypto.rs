//! The data plane: everything that uses a key. No Raft entry, no lock, no disk once a key is open.

use std::sync::Arc;

use keyward_env::Env;
use keyward_hsm::{BackingKey, CanonicalContext, HsmError, ParsedCiphertext};
use keyward_model::limits::{CIPHERTEXT_BYTES_MAX, PLAINTEXT_BYTES_MAX};
use keyward_model::{ErrorCode, KmsError};

use crate::api::{
    Decrypt, Encrypt, GenerateDataKey, GenerateDataKeyWithoutPlaintext, GenerateRandom, ReEncrypt,
    Response, Secret,
};
use crate::kms::{Kms, Permitted, Serving, hsm_refused};
use crate::resolve::{self, Forms};

/// What both operations that make a data key ask for.
pub(crate) struct DataKey<'a> {
    key_id: &'a str,
    encryption_context: &'a std::collections::BTreeMap<String, String>,
    key_spec: Option<&'a str>,
    number_of_bytes: Option<i32>,
    dry_run: bool,
    show: bool,
}

macro_rules! data_key {
    ($request:ty, $show:literal) => {
        impl<'a> From<&'a $request> for DataKey<'a> {
            fn from(request: &'a $request) -> Self {
                Self {
                    key_id: &request.key_id,
                    encryption_context: &request.encryption_context,
                    key_spec: request.key_spec.as_deref(),
                    number_of_bytes: request.number_of_bytes,
                    dry_run: request.dry_run,
                    show: $show,
                }
            }
        }
    };
}

data_key!(GenerateDataKey, true);
data_key!(GenerateDataKeyWithoutPlaintext, false);

fn dry_run(dry_run: bool) -> Result<(), KmsError> {
    if !dry_run {
        return Ok(());
    }
    Err(KmsError::new(
        ErrorCode::DryRunOperationException,
        "The request would have succeeded, but the DryRun option is set.",
    ))
}

fn plaintext(bytes: &[u8]) -> Result<(), KmsError> {
    if bytes.is_empty() {
        return Err(KmsError::constraint(
            "plaintext",
            "Member must have length greater than or equal to 1",
        ));
    }
    if bytes.len() > PLAINTEXT_BYTES_MAX {
        return Err(KmsError::constraint(
            "plaintext",
            "Member must have length less than or equal to 4096",
        ));
    }
    Ok(())
}

/// A ciphertext blob that was read, and whose key the caller may use.
struct Source {
    permitted: Permitted,
    open: Arc<BackingKey>,
}

impl<E: Env> Kms<E> {
    pub(crate) async fn encrypt(
        &self,
        s: &Serving<'_>,
        request: &Encrypt,
    ) -> Result<Response, KmsError> {
        plaintext(request.plaintext.bytes())?;
        resolve::algorithm(request.encryption_algorithm.as_deref(), "encryptionAlgorithm")?;
        let context = resolve::context(&request.encryption_context)?;
        let permitted = self.usable_key(s, &request.key_id, "keyId", Forms::KeyOrAlias)?;
        dry_run(request.dry_run)?;
        let open = self.current_key(s, &permitted).await?;
        let ciphertext_blob = self.seal(&open, request.plaintext.bytes(), &context)?;
        Ok(Response::Encrypted { ciphertext_blob, key_arn: permitted.arn })
    }

    pub(crate) async fn decrypt(
        &self,
        s: &Serving<'_>,
        request: &Decrypt,
    ) -> Result<Response, KmsError> {
        resolve::algorithm(request.encryption_algorithm.as_deref(), "encryptionAlgorithm")?;
        let context = resolve::context(&request.encryption_context)?;
        let blob = read_blob(&request.ciphertext_blob)?;
        let key_id = request.key_id.as_deref();
        let permitted = self.source(s, &blob, key_id, "keyId")?;
        dry_run(request.dry_run)?;
        let source = self.open_source(s, &blob, permitted).await?;
        let plaintext = self.unseal_blob(&source.open, &blob, &context)?;
        Ok(Response::Decrypted {
            plaintext,
            key_arn: source.permitted.arn,
            key_material_id: blob.material_id().to_string(),
        })
    }

    pub(crate) async fn re_encrypt(
        &self,
        s: &Serving<'_>,
        request: &ReEncrypt,
    ) -> Result<Response, KmsError> {
        let (from, to) = ("sourceEncryptionAlgorithm", "destinationEncryptionAlgorithm");
        resolve::algorithm(request.source_encryption_algorithm.as_deref(), from)?;
        resolve::algorithm(request.destination_encryption_algorithm.as_deref(), to)?;
        let source_context = resolve::context(&request.source_encryption_context)?;
        let destination_context = resolve::context(&request.destination_encryption_context)?;
        let blob = read_blob(&request.ciphertext_blob)?;
        let key_id = request.source_key_id.as_deref();
        let permitted = self.source(s, &blob, key_id, "sourceKeyId")?;
        let member = "destinationKeyId";
        let forms = Forms::KeyOrAlias;
        let destination = self.usable_key(s, &request.destination_key_id, member, forms)?;
        dry_run(request.dry_run)?;
        let source = self.open_source(s, &blob, permitted).await?;
        let open = self.current_key(s, &destination).await?;
        let plaintext = self.unseal_blob(&source.open, &blob, &source_context)?;
        let ciphertext_blob = self.seal(&open, plaintext.bytes(), &destination_context)?;
        Ok(Response::ReEncrypted {
            ciphertext_blob,
            source_key_arn: source.permitted.arn,
            source_material: blob.material_id().to_string(),
            destination_material: destination.key.current_material().id.to_string(),
            key_arn: destination.arn,
        })
    }

    pub(crate) async fn generate_data_key(
        &self,
        s: &Serving<'_>,
        request: DataKey<'_>,
    ) -> Result<Response, KmsError> {
        let length = resolve::data_key_length(request.key_spec, request.number_of_bytes)?;
        let context = resolve::context(request.encryption_context)?;
        let permitted = self.usable_key(s, request.key_id, "keyId", Forms::KeyOrAlias)?;
        dry_run(request.dry_run)?;
        let open = self.current_key(s, &permitted).await?;
        let data_key = self.random(length);
        let ciphertext_blob = self.seal(&open, data_key.bytes(), &context)?;
        Ok(Response::DataKey {
            ciphertext_blob,
            plaintext: request.show.then_some(data_key),
            key_material_id: permitted.key.current_material().id.to_string(),
            key_arn: permitted.arn,
        })
    }

    pub(crate) fn generate_random(
        &self,
        s: &Serving<'_>,
        request: &GenerateRandom,
    ) -> Result<Response, KmsError> {
        let number = request
            .number_of_bytes
            .ok_or_else(|| KmsError::validation("NumberOfBytes is required."))?;
        let length = resolve::number_of_bytes(number)?;
        self.permit(s)?;
        Ok(Response::Random(self.random(length)))
    }

    fn random(&self, length: usize) -> Secret {
        let mut bytes = vec![0; length];
        self.entropy.fill(&mut bytes);
        Secret::new(bytes)
    }

    async fn current_key(
        &self,
        s: &Serving<'_>,
        permitted: &Permitted,
    ) -> Result<Arc<BackingKey>, KmsError> {
        self.backing_key(s, &permitted.key, permitted.key.current_material()).await
    }

    /// The key that a blob names, checked against the one that the caller names, if any.
    fn source(
        &self,
        s: &Serving<'_>,
        blob: &ParsedCiphertext<'_>,
        key_id: Option<&str>,
        member: &str,
    ) -> Result<Permitted, KmsError> {
        let permitted = match key_id {
            Some(text) => {
                let permitted = self.permitted_key(s, text, member, Forms::KeyOrAlias)?;
                if permitted.key.id != blob.key_id() {
                    return Err(KmsError::new(
                        ErrorCode::IncorrectKeyException,
                        "The key ID in the request does not identify a CMK that can perform this \
                         operation.",
                    ));
                }
                permitted
            }
            None => {
                let hidden = || {
                    KmsError::new(
                        ErrorCode::AccessDeniedException,
                        "The ciphertext refers to a customer master key that does not exist, does not \
                         exist in this region, or you are not allowed to access.",
                    )
                };
                let key = s.state.key(&blob.key_id()).cloned().ok_or_else(hidden)?;
                self.permit_on(s, key)
                    .map_err(|refusal| if s.principal.kinds.user { hidden() } else { refusal })?
            }
        };
        self.check_state(s, &permitted)?;
        Ok(permitted)
    }

    async fn open_source(
        &self,
        s: &Serving<'_>,
        blob: &ParsedCiphertext<'_>,
        permitted: Permitted,
    ) -> Result<Source, KmsError> {
        // A material that the key does not have: the header was altered.
        let material = permitted
            .key
            .material(&blob.material_id())
            .ok_or_else(KmsError::invalid_ciphertext)?
            .clone();
        let open = self.backing_key(s, &permitted.key, &material).await?;
        Ok(Source { permitted, open })
    }

    fn seal(
        &self,
        key: &BackingKey,
        plaintext: &[u8],
        context: &CanonicalContext,
    ) -> Result<Vec<u8>, KmsError> {
        self.hsm.encrypt(key, plaintext, context).map_err(|e| hsm_refused(&e))
    }

    fn unseal_blob(
        &self,
        key: &BackingKey,
        blob: &ParsedCiphertext<'_>,
        context: &CanonicalContext,
    ) -> Result<Secret, KmsError> {
        match self.hsm.decrypt(key, blob, context) {
            Ok(plaintext) => Ok(Secret::new(plaintext.into_unprotected())),
            Err(HsmError::InvalidCiphertext | HsmError::CiphertextFormat(_)) => {
                Err(KmsError::invalid_ciphertext())
            }
            Err(error) => Err(hsm_refused(&error)),
        }
    }
}

fn read_blob(bytes: &[u8]) -> Result<ParsedCiphertext<'_>, KmsError> {
    if bytes.is_empty() || bytes.len() > CIPHERTEXT_BYTES_MAX {
        return Err(KmsError::constraint(
            "ciphertextBlob",
            "Member must have length between 1 and 6144",
        ));
    }
    ParsedCiphertext::parse(bytes).map_err(|_| KmsError::invalid_ciphertext())
}
