//! The signature of a message of the signed suite: ECDSA on P-384 over SHA-384 (FIPS 186-5), by a key that
//! is made for one message and whose public half travels in the encryption context.
//!
//! `ring` computes the digest, which sees the stream go by. The curve is the crate `p384`'s, because it can
//! sign a digest (`ring` wants the whole message in memory) and read compressed points.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keyward_env::Entropy;
use p384::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p384::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use ring::digest::{Context as Digest, SHA384};
use zeroize::Zeroizing;

use super::error::EsdkError;

/// A compressed point of P-384: one byte for the sign of y, 48 for x (SEC 1, section 2.3.3).
const COMPRESSED_POINT_LENGTH: usize = 49;

/// Bytes of a private key of P-384.
const PRIVATE_KEY_LENGTH: usize = 48;

/// Draws until a private key is in range. One draw fails with probability 2^-190, so a second is never
/// seen with working randomness.
const KEY_DRAWS_MAX: u32 = 4;

/// The longest signature: two integers of 49 bytes, with 2 bytes of DER before each and before all.
pub(super) const SIGNATURE_LENGTH_MAX: u16 = 104;

/// Signs one message that is being written. The private key is wiped when dropped.
pub(super) struct MessageSigner {
    key: SigningKey,
    digest: Digest,
}

impl MessageSigner {
    /// A signer with a key of its own.
    pub(super) fn new(entropy: &dyn Entropy) -> Result<Self, EsdkError> {
        let mut bytes = Zeroizing::new([0; PRIVATE_KEY_LENGTH]);
        for _ in 0..KEY_DRAWS_MAX {
            entropy.fill(bytes.as_mut_slice());
            if let Ok(key) = SigningKey::from_slice(bytes.as_slice()) {
                return Ok(Self { key, digest: Digest::new(&SHA384) });
            }
        }
        Err(EsdkError::Signing)
    }

    /// The public half, as the encryption context carries it: a compressed point in base64.
    pub(super) fn verification_key(&self) -> String {
        BASE64.encode(self.key.verifying_key().to_sec1_point(true).as_bytes())
    }

    /// Takes in the next bytes of the message.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// The signature over all bytes taken in, in DER.
    pub(super) fn sign(self) -> Result<Vec<u8>, EsdkError> {
        let digest = self.digest.finish();
        let signature: DerSignature =
            self.key.sign_prehash(digest.as_ref()).map_err(|_| EsdkError::Signing)?;
        Ok(signature.as_bytes().to_vec())
    }
}

/// Checks the signature of one message that is being read.
pub(super) struct MessageVerifier {
    key: VerifyingKey,
    digest: Digest,
}

impl MessageVerifier {
    /// A verifier with the key that the encryption context carries.
    pub(super) fn new(verification_key: &str) -> Result<Self, EsdkError> {
        let point = BASE64.decode(verification_key).map_err(|_| EsdkError::VerificationKey)?;
        if point.len() != COMPRESSED_POINT_LENGTH {
            return Err(EsdkError::VerificationKey);
        }
        let key = VerifyingKey::from_sec1_bytes(&point).map_err(|_| EsdkError::VerificationKey)?;
        Ok(Self { key, digest: Digest::new(&SHA384) })
    }

    /// Takes in the next bytes of the message.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Whether `signature`, in DER, is one over all bytes taken in.
    #[must_use]
    pub(super) fn verify(self, signature: &[u8]) -> bool {
        let digest = self.digest.finish();
        DerSignature::from_bytes(signature)
            .is_ok_and(|signature| self.key.verify_prehash(digest.as_ref(), &signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use keyward_env::OsEntropy;

    use super::*;

    /// Randomness that is broken in a way that ECDSA notices.
    struct AllZero;

    impl Entropy for AllZero {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(0);
        }
    }

    #[test]
    fn signature_verifies_over_the_same_bytes_only() {
        let mut signer = MessageSigner::new(&OsEntropy).unwrap();
        let verification_key = signer.verification_key();
        signer.update(b"one ");
        signer.update(b"message");
        let signature = signer.sign().unwrap();
        assert!(signature.len() <= usize::from(SIGNATURE_LENGTH_MAX));

        let verify = |message: &[u8], signature: &[u8]| {
            let mut verifier = MessageVerifier::new(&verification_key).unwrap();
            verifier.update(message);
            verifier.verify(signature)
        };
        assert!(verify(b"one message", &signature));
        assert!(!verify(b"two message", &signature));
        assert!(!verify(b"one message", &signature[..signature.len() - 1]));
        assert!(!verify(b"one message", b""));
    }

    #[test]
    fn ring_verifies_what_is_signed_here() {
        let mut signer = MessageSigner::new(&OsEntropy).unwrap();
        signer.update(b"message");
        let point = signer.key.verifying_key().to_sec1_point(false);
        let signature = signer.sign().unwrap();
        let key = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P384_SHA384_ASN1,
            point.as_bytes(),
        );
        key.verify(b"message", &signature).unwrap();
    }

    #[test]
    fn verification_key_must_be_a_compressed_point_of_the_curve() {
        let good = MessageSigner::new(&OsEntropy).unwrap().verification_key();
        assert!(MessageVerifier::new(&good).is_ok());
        let point = BASE64.decode(&good).unwrap();
        let uncompressed = [[4; 1].as_slice(), &[1; 96]].concat();
        let not_below_the_prime = [[2; 1].as_slice(), &[0xff; 48]].concat();
        for bad in [&point[..48], &[0], &[], &uncompressed, &not_below_the_prime] {
            assert!(MessageVerifier::new(&BASE64.encode(bad)).is_err(), "{bad:02x?}");
        }
        assert!(MessageVerifier::new("not base64!").is_err());
    }

    #[test]
    fn broken_randomness_is_an_error_not_a_loop() {
        assert!(matches!(MessageSigner::new(&AllZero), Err(EsdkError::Signing)));
    }
}
