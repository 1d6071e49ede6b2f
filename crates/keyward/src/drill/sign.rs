//! Who has written a report, and that nothing of it was changed since: ECDSA P-256 with SHA-256, by the operator's key.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::history::sha256;
use super::report::{HISTORY, JSON};
use crate::error::Failure;

/// What is signed: the report with its fields in the order of their names, without blanks. There are no fractions in it.
fn signed_bytes(report: &Value) -> Vec<u8> {
    report.to_string().into_bytes()
}

/// Signs reports.
pub struct Signer {
    certificate: String,
    pair: EcdsaKeyPair,
    random: ring::rand::SystemRandom,
}

fn cannot(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("the report cannot be signed: {why}"))
        .next("the operator's key has to be one that Keyward has made (ECDSA P-256, PKCS #8)")
}

impl Signer {
    /// Of a certificate and its private key, PEM.
    ///
    /// # Errors
    /// A key that cannot sign, or is another certificate's.
    #[expect(
        clippy::disallowed_methods,
        reason = "ring draws a signature's nonce from its own source alone"
    )]
    pub fn new((certificate, private_key): &(String, String)) -> Result<Self, Failure> {
        use ring::signature::KeyPair;
        let key = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|e| cannot(&e))?;
        let random = ring::rand::SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der(), &random)
                .map_err(|e| cannot(&e))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| cannot(&e))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| cannot(&e))?;
        if *parsed.public_key().subject_public_key.data != *pair.public_key().as_ref() {
            return Err(cannot(&"the private key is another certificate's"));
        }
        Ok(Self { certificate: certificate.clone(), pair, random })
    }

    /// The report with its signature.
    pub fn sign(&self, report: &Value) -> Result<Value, Failure> {
        let signature =
            self.pair.sign(&self.random, &signed_bytes(report)).map_err(|e| cannot(&e))?;
        Ok(json!({
            "Report": report,
            "Signature": {
                "Algorithm": "ECDSA_SHA_256",
                "Certificate": self.certificate,
                "Value": BASE64.encode(signature.as_ref()),
            },
        }))
    }
}

/// Checks a report's folder: who signed it, and that nothing of it was changed since.
///
/// # Errors
/// What does not fit.
pub fn verify(folder: &Path) -> Result<(Value, String), Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))
    };
    let wrong = |what: &str| {
        Failure::new(format!("{}: {what}", folder.join(JSON).display()))
            .next("take the report as it was written, or run the drill again")
    };
    let signed: Value = serde_json::from_str(&read(JSON)?)
        .map_err(|e| wrong(&format!("this is no report: {e}")))?;
    let text = |path: &[&str]| {
        let value = path.iter().fold(&signed, |value, name| &value[*name]);
        value.as_str().ok_or_else(|| wrong(&format!("{} is missing", path.join("."))))
    };
    let certificate =
        CertificateDer::from_pem_slice(text(&["Signature", "Certificate"])?.as_bytes())
            .map_err(|_| wrong("the certificate cannot be read"))?;
    let (_, parsed) = X509Certificate::from_der(&certificate)
        .map_err(|_| wrong("the certificate cannot be read"))?;
    let value = BASE64
        .decode(text(&["Signature", "Value"])?)
        .map_err(|_| wrong("the signature cannot be read"))?;
    let key = UnparsedPublicKey::new(
        &ECDSA_P256_SHA256_ASN1,
        &parsed.public_key().subject_public_key.data,
    );
    key.verify(&signed_bytes(&signed["Report"]), &value).map_err(|_| {
        wrong("the signature is not over this report: it was changed after it was signed")
    })?;
    if sha256(&read(HISTORY)?) != text(&["Report", "HistorySha256"])? {
        return Err(wrong(&format!("{HISTORY} was changed after the report was signed")));
    }
    let fingerprint = hex::encode(ring::digest::digest(&ring::digest::SHA256, &certificate));
    Ok((signed["Report"].clone(), fingerprint))
}
