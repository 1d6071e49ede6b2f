//! Who made a snapshot. Its key signs this one file and is forgotten; the Region's authority vouches for it with a
//! certificate, as it does for nodes and callers.

use ring::digest::Context;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::SnapshotError;

/// Names a Region in the certificate of a snapshot: `urn:keyward:snapshot:<name>:<id>`. Such a certificate opens no door.
pub const SNAPSHOT_URN: &str = "urn:keyward:snapshot:";

/// Begins every message that is signed.
const LABEL: &[u8] = b"keyward snapshot signature v1\0";

/// What is signed: a label, and the SHA-256 of all that is in the file before the signature, its certificate too.
#[must_use]
pub fn signed_message(digest: &[u8; 32]) -> Vec<u8> {
    [LABEL, digest].concat()
}

pub(crate) fn digest_of(context: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// The end of a file: its signature, and the digest of all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub(crate) digest: [u8; 32],
    pub(crate) certificate: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    pub(crate) region: String,
    pub(crate) region_id: String,
}

impl Trailer {
    /// Checks that the Region's authority (X.509, DER) vouches for the file. Whether its certificate has ended since does
    /// not matter: backups grow old.
    ///
    /// # Errors
    /// [`SnapshotError::Signature`].
    pub fn check(&self, authority: &[u8]) -> Result<(), SnapshotError> {
        let refuse = |why| SnapshotError::Signature { region: self.region.clone(), why };
        let (_, authority) = X509Certificate::from_der(authority)
            .map_err(|_| refuse("the authority's certificate cannot be read"))?;
        let (_, own) = X509Certificate::from_der(&self.certificate)
            .map_err(|_| refuse("its certificate cannot be read"))?;
        own.verify_signature(Some(authority.public_key()))
            .map_err(|_| refuse("its certificate was not issued by that authority"))?;
        let named = own.subject_alternative_name().ok().flatten().is_some_and(|names| {
            let expected = format!("{SNAPSHOT_URN}{}:{}", self.region, self.region_id);
            names
                .value
                .general_names
                .iter()
                .any(|name| matches!(name, GeneralName::URI(uri) if *uri == expected))
        });
        if !named {
            return Err(refuse("its certificate is of another Region, or for another purpose"));
        }
        let key = own.public_key().subject_public_key.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(&signed_message(&self.digest), &self.signature)
            .map_err(|_| refuse("its signature does not fit"))
    }
}
