//! The operations that use a key, as they come in on a call of their own or on a stream.

use keyward_proto::v1;
use keyward_service::Response as Reply;
use keyward_service::api::{self, Secret};

use crate::kms::ALGORITHM;

/// A request of the wire, as the service knows it.
pub(crate) trait Asked {
    fn asked(self) -> api::Request;
}

/// An answer of the wire, made of the service's; none if that is another operation's.
pub(crate) trait Told: Sized {
    fn told(reply: Reply) -> Option<Self>;
}

impl Asked for v1::EncryptRequest {
    fn asked(self) -> api::Request {
        api::Encrypt {
            key_id: self.key_id,
            plaintext: Secret::new(self.plaintext),
            encryption_context: self.encryption_context,
            encryption_algorithm: self.encryption_algorithm,
            dry_run: self.dry_run,
        }
        .into()
    }
}

impl Told for v1::EncryptResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::Encrypted { ciphertext_blob, key_arn } = reply else { return None };
        let encryption_algorithm = ALGORITHM.to_owned();
        Some(Self { ciphertext_blob, key_id: key_arn, encryption_algorithm })
    }
}

impl Asked for v1::DecryptRequest {
    fn asked(self) -> api::Request {
        api::Decrypt {
            ciphertext_blob: self.ciphertext_blob,
            encryption_context: self.encryption_context,
            key_id: self.key_id,
            encryption_algorithm: self.encryption_algorithm,
            dry_run: self.dry_run,
        }
        .into()
    }
}

impl Told for v1::DecryptResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::Decrypted { plaintext, key_arn, key_material_id } = reply else { return None };
        Some(Self {
            key_id: key_arn,
            plaintext: plaintext.into_bytes(),
            encryption_algorithm: ALGORITHM.to_owned(),
            key_material_id,
        })
    }
}

impl Asked for v1::ReEncryptRequest {
    fn asked(self) -> api::Request {
        api::ReEncrypt {
            ciphertext_blob: self.ciphertext_blob,
            source_encryption_context: self.source_encryption_context,
            source_key_id: self.source_key_id,
            destination_key_id: self.destination_key_id,
            destination_encryption_context: self.destination_encryption_context,
            source_encryption_algorithm: self.source_encryption_algorithm,
            destination_encryption_algorithm: self.destination_encryption_algorithm,
            dry_run: self.dry_run,
        }
        .into()
    }
}

impl Told for v1::ReEncryptResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::ReEncrypted {
            ciphertext_blob,
            source_key_arn,
            key_arn,
            source_material,
            destination_material,
        } = reply
        else {
            return None;
        };
        Some(Self {
            ciphertext_blob,
            source_key_id: source_key_arn,
            key_id: key_arn,
            source_encryption_algorithm: ALGORITHM.to_owned(),
            destination_encryption_algorithm: ALGORITHM.to_owned(),
            source_key_material_id: source_material,
            destination_key_material_id: destination_material,
        })
    }
}

impl Asked for v1::GenerateDataKeyRequest {
    fn asked(self) -> api::Request {
        api::GenerateDataKey {
            key_id: self.key_id,
            encryption_context: self.encryption_context,
            key_spec: self.key_spec,
            number_of_bytes: self.number_of_bytes,
            dry_run: self.dry_run,
        }
        .into()
    }
}

impl Told for v1::GenerateDataKeyResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::DataKey {
            ciphertext_blob,
            plaintext: Some(plaintext),
            key_arn,
            key_material_id,
        } = reply
        else {
            return None;
        };
        Some(Self {
            ciphertext_blob,
            plaintext: plaintext.into_bytes(),
            key_id: key_arn,
            key_material_id,
        })
    }
}

impl Asked for v1::GenerateDataKeyWithoutPlaintextRequest {
    fn asked(self) -> api::Request {
        api::GenerateDataKeyWithoutPlaintext {
            key_id: self.key_id,
            encryption_context: self.encryption_context,
            key_spec: self.key_spec,
            number_of_bytes: self.number_of_bytes,
            dry_run: self.dry_run,
        }
        .into()
    }
}

impl Told for v1::GenerateDataKeyWithoutPlaintextResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::DataKey { ciphertext_blob, key_arn, key_material_id, .. } = reply else {
            return None;
        };
        Some(Self { ciphertext_blob, key_id: key_arn, key_material_id })
    }
}

impl Asked for v1::GenerateRandomRequest {
    fn asked(self) -> api::Request {
        api::GenerateRandom { number_of_bytes: self.number_of_bytes }.into()
    }
}

impl Told for v1::GenerateRandomResponse {
    fn told(reply: Reply) -> Option<Self> {
        let Reply::Random(plaintext) = reply else { return None };
        Some(Self { plaintext: plaintext.into_bytes() })
    }
}
