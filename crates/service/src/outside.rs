//! Outside authorities, as operators add, list and remove them.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::limits::AUTHORITY_BYTES_MAX;
use keyward_model::{KmsError, Region, Timestamp};
use keyward_state::{Command, Fingerprint, OutsideAuthority};

use crate::api::Caller;
use crate::kms::{Kms, not_founded};

/// An outside authority, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAuthority {
    /// SHA-256 of its certificate.
    pub fingerprint: Fingerprint,
    /// Whom its certificate names.
    pub subject: String,
    /// When its certificate ends; from then on nobody gets in with it.
    pub not_after: Timestamp,
    /// The Region whose operator has added it; none of this Region's own.
    pub home: Option<Region>,
    /// What it certifies is believed here.
    pub believed: bool,
}

/// SHA-256 of a certificate's DER (FIPS 180-4).
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> Fingerprint {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}

/// The subject and the end of a certificate that can certify others (RFC 5280, section 4.2.1.9).
fn read(certificate: &[u8]) -> Result<(String, Timestamp), KmsError> {
    if certificate.len() > AUTHORITY_BYTES_MAX {
        return Err(KmsError::validation(format!(
            "the authority's certificate has {} bytes: {AUTHORITY_BYTES_MAX} are allowed",
            certificate.len()
        )));
    }
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| {
        KmsError::validation(
            "that is no X.509 certificate: give the outside authority's, as PEM or DER",
        )
    })?;
    if !rest.is_empty() {
        return Err(KmsError::validation(
            "there is more after the certificate: give one at a time",
        ));
    }
    if !parsed.is_ca() {
        return Err(KmsError::validation(format!(
            "the certificate of {} certifies nobody (it is no CA's, RFC 5280 section 4.2.1.9): give the authority's own",
            parsed.subject()
        )));
    }
    let not_after = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000));
    Ok((parsed.subject().to_string(), not_after))
}

/// What the founding is given: each with its fingerprint.
pub(crate) fn checked(certificates: &[Vec<u8>]) -> Result<Vec<(Fingerprint, Vec<u8>)>, KmsError> {
    let one = |certificate: &Vec<u8>| {
        read(certificate).map(|_| (fingerprint(certificate), certificate.clone()))
    };
    certificates.iter().map(one).collect()
}

impl<E: Env> Kms<E> {
    /// Believes from now on what that authority certifies of this Region's principals, in all Regions as they hear of it.
    /// Returns its fingerprint, and names the change.
    pub async fn add_authority(
        &self,
        caller: &Caller,
        certificate: Vec<u8>,
        patience: Duration,
    ) -> Result<(Fingerprint, String), KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let state = self.operator(caller, patience).await?;
        let (subject, not_after) = read(&certificate)?;
        if not_after <= self.now() {
            return Err(KmsError::validation(format!("the certificate of {subject} has ended")));
        }
        let regions = state.peer_regions().map(|peer| &peer.ca_certificate);
        let facts = state.region.as_ref().ok_or_else(not_founded)?;
        if regions.chain([&facts.ca_certificate]).any(|known| *known == certificate) {
            return Err(KmsError::validation(
                "that is a Region's own authority, and it is trusted as such: nothing is to be added",
            ));
        }
        let fingerprint = fingerprint(&certificate);
        self.change(deadline, Command::AddAuthority { fingerprint, certificate }).await?;
        tracing::warn!(by = %caller.principal, %subject, "an outside authority is trusted");
        Ok((fingerprint, self.latest_change(deadline).await?))
    }

    /// Believes it no more, in all Regions as they hear of it, whichever has added it. Names the change.
    pub async fn remove_authority(
        &self,
        caller: &Caller,
        fingerprint: &str,
        patience: Duration,
    ) -> Result<String, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let bytes = hex::decode(fingerprint).ok().and_then(|bytes| bytes.try_into().ok());
        let fingerprint: Fingerprint = bytes.ok_or_else(|| {
            KmsError::validation(format!(
                "'{fingerprint}' is no fingerprint: expected the 64 hexadecimal digits that `keyward authority list` \
                 shows"
            ))
        })?;
        self.operator(caller, patience).await?;
        self.change(deadline, Command::RemoveAuthority { fingerprint }).await?;
        tracing::warn!(by = %caller.principal, fingerprint = hex::encode(fingerprint), "an outside authority is trusted no more");
        self.latest_change(deadline).await
    }

    /// All outside authorities that are known here, those that were removed too.
    pub async fn list_authorities(
        &self,
        caller: &Caller,
        patience: Duration,
    ) -> Result<Vec<SeenAuthority>, KmsError> {
        let state = self.operator(caller, patience).await?;
        let me = state.region.as_ref().map(|me| me.region_id);
        let seen = |row: &Arc<OutsideAuthority>| {
            let (subject, not_after) = read(&row.certificate).unwrap_or_default();
            SeenAuthority {
                fingerprint: row.fingerprint,
                subject,
                not_after,
                home: (Some(row.home_id) != me).then(|| row.home.clone()),
                believed: state.believes(row),
            }
        };
        Ok(state.authorities().map(seen).collect())
    }
}
