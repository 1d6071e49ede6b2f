//! The Region's built-in certificate authority. Its private key is part of the replicated state, sealed
//! like everything else; it is opened for one signature at a time. Callers' private keys never come
//! here: they send a signing request (PKCS #10, RFC 2986).

use keyward_env::Entropy;
use keyward_model::limits::{CERTIFICATE_DAYS, CERTIFICATE_DAYS_DEFAULT};
use keyward_model::{KmsError, NodeId, PrincipalArn, Region, Timestamp};
use keyward_snapshot::SNAPSHOT_URN;
use keyward_state::InvitationId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

/// Names a node in its certificate: `urn:keyward:node:<id>`.
pub const NODE_URN: &str = "urn:keyward:node:";

/// Names an invitation in its certificate: `urn:keyward:invitation:<id>`.
pub const INVITATION_URN: &str = "urn:keyward:invitation:";

/// Names a Region in the certificate that its nodes show to other Regions: `urn:keyward:region:<name>:<id>`.
pub const REGION_URN: &str = "urn:keyward:region:";
/// A certificate of that kind lasts this long: it is made anew long before.
const LINK_DAYS: u32 = 2;
/// An uncompressed P-256 point as a SubjectPublicKeyInfo begins with this (RFC 5480, section 2).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A new certificate begins this much in the past, for callers whose clocks are behind.
const BACKDATED_MS: i64 = 5 * 60 * 1000;
/// The authority's own certificate lasts this long.
const AUTHORITY_DAYS: u32 = 3650;
/// Node certificates last this long.
const NODE_DAYS: u32 = 825;

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The signing request does not parse, or its signature is wrong.
    #[error("the certificate signing request cannot be used ({0}): send PKCS #10 in DER, signed")]
    Request(rcgen::Error),
    /// The authority itself failed.
    #[error("no certificate could be made: {0}")]
    Internal(rcgen::Error),
}

/// A certificate authority, open.
pub struct Authority {
    certificate: Vec<u8>,
    key: KeyPair,
}

/// A certificate that was issued.
pub struct Issued {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// When it ends.
    pub not_after: Timestamp,
}

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Somebody who calls.
    Principal(PrincipalArn),
    /// A node of the Region.
    Node(NodeId),
    /// A machine that was invited to become one.
    Invitation(InvitationId),
    /// A Region, to other Regions.
    Region(Region, [u8; 16]),
    /// A Region's backup, to whoever may restore it. It opens no door.
    Snapshot(Region, [u8; 16]),
}

impl Subject {
    fn uri(&self) -> String {
        match self {
            Self::Principal(arn) => arn.to_string(),
            Self::Node(node) => format!("{NODE_URN}{node}"),
            Self::Invitation(id) => format!("{INVITATION_URN}{}", hex::encode(id)),
            Self::Region(name, id) => format!("{REGION_URN}{name}:{}", hex::encode(id)),
            Self::Snapshot(name, id) => format!("{SNAPSHOT_URN}{name}:{}", hex::encode(id)),
        }
    }

    /// Reads the URI of a certificate's subject alternative name.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        if let Some(node) = uri.strip_prefix(NODE_URN) {
            return node.parse().ok().map(Self::Node);
        }
        if let Some(id) = uri.strip_prefix(INVITATION_URN) {
            let mut bytes = [0; 16];
            return hex::decode_to_slice(id, &mut bytes).ok().map(|()| Self::Invitation(bytes));
        }
        let named = |region: &str| {
            let (name, id) = region.split_once(':')?;
            let mut bytes = [0; 16];
            hex::decode_to_slice(id, &mut bytes).ok()?;
            Some((name.parse().ok()?, bytes))
        };
        if let Some(region) = uri.strip_prefix(REGION_URN) {
            return named(region).map(|(name, id)| Self::Region(name, id));
        }
        if let Some(region) = uri.strip_prefix(SNAPSHOT_URN) {
            return named(region).map(|(name, id)| Self::Snapshot(name, id));
        }
        uri.parse().ok().map(Self::Principal)
    }
}

fn date(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.0.div_euclid(1000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn serial(entropy: &dyn Entropy) -> Vec<u8> {
    // 127 random bits: positive in ASN.1, and unguessable (RFC 5280, 4.1.2.2).
    let mut bytes = vec![0; 16];
    entropy.fill(&mut bytes);
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    bytes
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    subject
}

impl Authority {
    /// Makes a new authority.
    pub fn generate(
        region: &str,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Internal)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Keyward {region}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&serial(entropy)));
        params.not_before = date(Timestamp(now.0 - BACKDATED_MS));
        params.not_after = date(now.plus_days(AUTHORITY_DAYS));
        let certificate = params.self_signed(&key).map_err(AuthorityError::Internal)?;
        Ok(Self { certificate: certificate.der().to_vec(), key })
    }

    /// Opens an authority from its certificate and private key (PKCS #8), both DER.
    pub fn open(certificate: &[u8], private_key: &[u8]) -> Result<Self, AuthorityError> {
        let key = PrivatePkcs8KeyDer::from(private_key);
        let key = KeyPair::try_from(&key).map_err(AuthorityError::Internal)?;
        Ok(Self { certificate: certificate.to_vec(), key })
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its private key, PKCS #8 DER. For sealing, once, when the Region is founded.
    #[must_use]
    pub fn private_key(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new(self.key.serialize_der())
    }

    /// Issues a certificate to a principal for the key of a signing request.
    pub fn issue(
        &self,
        request: &[u8],
        principal: &PrincipalArn,
        days: u32,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let subject = Subject::Principal(principal.clone());
        self.sign(request, &subject, &[], now.plus_days(days), entropy, now)
    }

    /// Issues a certificate to whoever was invited: it opens the door for joining, and no other, once.
    pub fn issue_invitation(
        &self,
        request: &[u8],
        id: InvitationId,
        not_after: Timestamp,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        self.sign(request, &Subject::Invitation(id), &[], not_after, entropy, now)
    }

    /// Issues a certificate to a node, which is reached under `hosts` (names or IP addresses).
    pub fn issue_node(
        &self,
        request: &[u8],
        node: NodeId,
        hosts: &[String],
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        self.sign(request, &Subject::Node(node), hosts, now.plus_days(NODE_DAYS), entropy, now)
    }

    /// Issues the certificate with which a Region's nodes show who they are to other Regions.
    pub fn issue_region(
        &self,
        request: &[u8],
        region: &Region,
        region_id: [u8; 16],
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let subject = Subject::Region(region.clone(), region_id);
        self.sign(request, &subject, &[], now.plus_days(LINK_DAYS), entropy, now)
    }

    /// Issues the certificate of the key that signs one snapshot. It is looked at for as long as backups are kept.
    pub fn issue_snapshot(
        &self,
        request: &[u8],
        region: &Region,
        region_id: [u8; 16],
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let subject = Subject::Snapshot(region.clone(), region_id);
        self.sign(request, &subject, &[], now.plus_days(AUTHORITY_DAYS), entropy, now)
    }

    /// Attests the public key that material is sealed to (an uncompressed P-256 point) as a Region's. The key agrees on
    /// secrets and signs nothing.
    pub fn attest_region_key(
        &self,
        public_key: &[u8],
        region: &Region,
        region_id: [u8; 16],
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let der = [&P256_SPKI, public_key].concat();
        let key = SubjectPublicKeyInfo::from_der(&der).map_err(AuthorityError::Request)?;
        let subject = Subject::Region(region.clone(), region_id);
        self.certify(&key, &subject, &[], now.plus_days(AUTHORITY_DAYS), entropy, now)
    }

    fn sign(
        &self,
        request: &[u8],
        subject: &Subject,
        hosts: &[String],
        not_after: Timestamp,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let der = CertificateSigningRequestDer::from(request);
        // Checks the request's own signature: the sender holds the private key.
        let request =
            CertificateSigningRequestParams::from_der(&der).map_err(AuthorityError::Request)?;
        self.certify(&request.public_key, subject, hosts, not_after, entropy, now)
    }

    fn certify(
        &self,
        public_key: &impl PublicKeyData,
        subject: &Subject,
        hosts: &[String],
        not_after: Timestamp,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let serial = serial(entropy);
        // Nothing of what the request asks for is taken over but the key.
        let mut params = CertificateParams::default();
        let uri = subject.uri();
        params.distinguished_name = named(uri.rsplit([':', '/']).next().unwrap_or(&uri));
        let mut names = vec![SanType::URI(
            Ia5String::try_from(uri.as_str()).map_err(AuthorityError::Internal)?,
        )];
        for host in hosts {
            names.push(match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    Ia5String::try_from(host.as_str()).map_err(AuthorityError::Internal)?,
                ),
            });
        }
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject {
            Subject::Principal(_) | Subject::Invitation(_) | Subject::Region(..) => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
            // Nothing that a door asks for.
            Subject::Snapshot(..) => vec![ExtendedKeyUsagePurpose::CodeSigning],
            Subject::Node(_) => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = date(Timestamp(now.0 - BACKDATED_MS));
        params.not_after = date(not_after);
        let own = CertificateDer::from(self.certificate.as_slice());
        let issuer = Issuer::from_ca_cert_der(&own, &self.key).map_err(AuthorityError::Internal)?;
        let certificate =
            params.signed_by(public_key, &issuer).map_err(AuthorityError::Internal)?;
        Ok(Issued { certificate: certificate.der().to_vec(), serial, not_after })
    }
}

/// What another Region is, as its card says and its authority vouches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Its name.
    pub region: Region,
    /// Which Region of that name.
    pub region_id: [u8; 16],
    /// The public key that material is sealed to: an uncompressed P-256 point.
    pub public_key: Vec<u8>,
}

/// Reads an attestation ([`Authority::attest_region_key`]), if that authority made it.
pub(crate) fn attested(certificate: &[u8], authority: &[u8]) -> Result<Attested, KmsError> {
    let wrong = |why: &str| KmsError::validation(format!("the card of the other Region {why}"));
    let read = |der| {
        x509_parser::parse_x509_certificate(der)
            .map(|(_, certificate)| certificate)
            .map_err(|_| wrong("holds a certificate that cannot be read"))
    };
    let (own, authority) = (read(certificate)?, read(authority)?);
    own.verify_signature(Some(authority.public_key()))
        .map_err(|_| wrong("is not vouched for by the authority in it: it was altered"))?;
    let names = own.subject_alternative_name().ok().flatten();
    let subject = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Subject::from_uri(uri),
            _ => None,
        })
    });
    let Some(Subject::Region(region, region_id)) = subject else {
        return Err(wrong("attests no Region"));
    };
    let public_key = own.public_key().subject_public_key.data.to_vec();
    Ok(Attested { region, region_id, public_key })
}

/// A fresh private key (PKCS #8 DER) and a signing request (DER) for it.
pub fn signing_request() -> Result<(zeroize::Zeroizing<Vec<u8>>, Vec<u8>), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Internal)?;
    let request =
        CertificateParams::default().serialize_request(&key).map_err(AuthorityError::Internal)?;
    Ok((zeroize::Zeroizing::new(key.serialize_der()), request.der().to_vec()))
}

/// A validity in days, as an operator may ask for it.
pub(crate) fn validity_days(days: Option<u32>) -> Result<u32, KmsError> {
    let days = days.unwrap_or(CERTIFICATE_DAYS_DEFAULT);
    if CERTIFICATE_DAYS.contains(&days) {
        return Ok(days);
    }
    Err(KmsError::constraint_on(
        "validityInDays",
        &days.to_string(),
        "Member must have value between 1 and 397",
    ))
}

#[cfg(test)]
mod tests {
    use keyward_env::OsEntropy;

    use super::*;

    #[test]
    fn certificates_name_their_subject_and_only_that() {
        let now = Timestamp(1_800_000_000_000);
        let authority = Authority::generate("eu-west-1", &OsEntropy, now).unwrap();
        let reopened = Authority::open(authority.certificate(), &authority.private_key()).unwrap();
        let (_, request) = signing_request().unwrap();
        let arn: PrincipalArn = "arn:aws:iam::111122223333:user/alice".parse().unwrap();
        let issued = reopened.issue(&request, &arn, 1, &OsEntropy, now).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
        assert_eq!(parsed.raw_serial(), issued.serial);
        assert!(!parsed.is_ca());
        let names = parsed.subject_alternative_name().unwrap().unwrap().value;
        let [x509_parser::extensions::GeneralName::URI(uri)] = names.general_names.as_slice()
        else {
            panic!("one URI expected");
        };
        assert_eq!(Subject::from_uri(uri), Some(Subject::Principal(arn)));
        assert!(
            authority
                .issue(
                    b"junk",
                    &"arn:aws:iam::111122223333:user/a".parse().unwrap(),
                    1,
                    &OsEntropy,
                    now
                )
                .is_err()
        );
    }
}
