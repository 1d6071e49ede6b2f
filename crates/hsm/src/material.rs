//! Backing keys: the material of a KMS key, and the id that is bound to it.

use std::sync::atomic::AtomicBool;

use keyward_model::{KeyId, KeyMaterialId};

use crate::arena::Secret;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{CryptoProvider, scrub_stack};

/// Bytes of a backing key.
pub const BACKING_KEY_BYTES: usize = 32;

const MATERIAL_ID_LABEL: &[u8] = b"keyward key material id v1";

/// A backing key, unsealed, in locked memory. It cannot be printed, cloned or serialised, and its bytes do
/// not leave the crate.
pub struct BackingKey {
    key: KeyId,
    material: KeyMaterialId,
    secret: Secret,
    /// Set by each use, cleared by the cache's clock hand.
    pub(crate) used: AtomicBool,
}

impl BackingKey {
    pub(crate) fn new(key: KeyId, material: KeyMaterialId, secret: Secret) -> Self {
        Self { key, material, secret, used: AtomicBool::new(true) }
    }

    /// The KMS key that this is a material of.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key
    }

    /// Its id.
    #[must_use]
    pub fn material_id(&self) -> KeyMaterialId {
        self.material
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// The id of a material: SP 800-108 from the material itself over the key id. It reveals nothing about the
/// material (it is the output of a PRF that is used with this label for nothing else), it cannot belong to
/// two materials (so a ciphertext, which names it, opens under one key only), and importing the same
/// material again gives the same id.
pub(crate) fn material_id(
    crypto: &dyn CryptoProvider,
    key: KeyId,
    secret: &Secret,
) -> KeyMaterialId {
    let mut context = [0; 17];
    context[0] = u8::from(key.is_multi_region());
    context[1..].copy_from_slice(key.bytes());
    let mut id = [0; 32];
    counter_hmac_sha256(crypto, secret.expose(), MATERIAL_ID_LABEL, &context, &mut id);
    scrub_stack();
    KeyMaterialId::new(id)
}
