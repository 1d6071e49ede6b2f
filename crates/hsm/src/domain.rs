//! Domain keys in their sealed form, and the id that is bound to them.

use keyward_model::DomainKeyId;
use serde::{Deserialize, Serialize};

use crate::arena::Secret;
use crate::kdf::counter_hmac_sha256;
use crate::provider::{CryptoProvider, scrub_stack};
use crate::root::RootId;

/// Bytes of a domain key.
pub const DOMAIN_KEY_BYTES: usize = 32;

const DOMAIN_ID_LABEL: &[u8] = b"keyward domain key id v1";
const DOMAIN_WRAP_LABEL: &[u8] = b"keyward domain key v1";

/// A domain key, sealed once for every root that may open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedDomainKey {
    /// Its id.
    pub id: DomainKeyId,
    /// The copies, at most one for each root.
    pub copies: Vec<RootCopy>,
}

impl SealedDomainKey {
    /// The copy that a root can open.
    #[must_use]
    pub fn copy_for(&self, root: &RootId) -> Option<&RootCopy> {
        self.copies.iter().find(|copy| copy.root == *root)
    }
}

/// A domain key, sealed by one root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCopy {
    /// The root that opens it.
    pub root: RootId,
    /// What it wrapped; its format is the root provider's own.
    pub sealed: Vec<u8>,
}

/// The id of a domain key: SP 800-108 from the key itself, so that a key cannot pass for another one and
/// the id, an output of a PRF with a label of its own, reveals nothing.
pub(crate) fn domain_key_id(crypto: &dyn CryptoProvider, secret: &Secret) -> DomainKeyId {
    let mut id = [0; 16];
    counter_hmac_sha256(crypto, secret.expose(), DOMAIN_ID_LABEL, &[], &mut id);
    scrub_stack();
    DomainKeyId::new(id)
}

/// The AAD under which a root wraps a domain key.
pub(crate) fn wrap_aad(id: DomainKeyId) -> Vec<u8> {
    [DOMAIN_WRAP_LABEL, id.bytes()].concat()
}
