//! Material on its way to another Region's HSM: HPKE (RFC 9180), *auth* mode (section 5.1.3), DHKEM(P-256,
//! HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! Each Region has one key pair. A message opens with the receiver's private key and the sender's public key alone, so
//! it is sealed and authenticated in one. `info` binds what it is about; the caller composes it. Auth mode has a known
//! limit (RFC 9180, section 9.1.1): who has stolen a Region's *private* key can forge messages to that Region. Such a
//! thief opens everything sent there anyway.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, setup_receiver};
use keyward_env::Entropy;
use zeroize::Zeroizing;

use crate::error::HsmError;
use crate::provider::scrub_stack;
use crate::reseal::{self, ENCAPPED_BYTES, PrivateKey, PublicKey, Rng};

/// What the private key is sealed for.
pub(crate) const KEY_LABEL: &str = "keyward region transfer key v1";
const INFO_LABEL: &[u8] = b"keyward transfer v1\0";

fn private_key(bytes: &[u8]) -> Result<PrivateKey, HsmError> {
    PrivateKey::from_bytes(bytes).map_err(|_| HsmError::TransferKey("this Region's private key"))
}

fn public_key(bytes: &[u8]) -> Result<PublicKey, HsmError> {
    PublicKey::from_bytes(bytes).map_err(|_| HsmError::TransferKey("the other Region's public key"))
}

/// A private key (32 bytes) and its public key (an uncompressed P-256 point).
pub(crate) fn key_pair(entropy: &dyn Entropy) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
    let pair = serialised(entropy);
    scrub_stack();
    pair
}

/// Not inlined, as those below: all its stack lies where `scrub_stack` writes next (decision 0003).
#[inline(never)]
fn serialised(entropy: &dyn Entropy) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
    let (private, public) = reseal::key_pair(entropy);
    (Zeroizing::new(private.to_bytes().to_vec()), public.to_bytes().to_vec())
}

/// Seals to `to`: the encapsulated key, then ciphertext and tag.
pub(crate) fn seal(
    entropy: &dyn Entropy,
    own: &[u8],
    to: &[u8],
    info: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, HsmError> {
    let message = seal_to(entropy, own, to, info, plaintext);
    scrub_stack();
    message
}

#[inline(never)]
fn seal_to(
    entropy: &dyn Entropy,
    own: &[u8],
    to: &[u8],
    info: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, HsmError> {
    let own = private_key(own)?;
    let public = DhP256HkdfSha256::sk_to_pk(&own);
    let (encapped, mut context) =
        hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
            &OpModeS::Auth((own, public)),
            &public_key(to)?,
            &[INFO_LABEL, info].concat(),
            &mut Rng(entropy),
        )
        .map_err(|_| HsmError::Crypto("HPKE set-up"))?;
    let sealed = context.seal(plaintext, &[]).map_err(|_| HsmError::Crypto("HPKE sealing"))?;
    let mut message = encapped.to_bytes().to_vec();
    message.extend_from_slice(&sealed);
    Ok(message)
}

/// Opens what the Region of the public key `from` sealed.
pub(crate) fn open(
    own: &[u8],
    from: &[u8],
    info: &[u8],
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let opened = open_from(own, from, info, message);
    scrub_stack();
    opened
}

#[inline(never)]
fn open_from(
    own: &[u8],
    from: &[u8],
    info: &[u8],
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let shut = |_| HsmError::TransferDoesNotOpen;
    let (encapped, sealed) =
        message.split_at_checked(ENCAPPED_BYTES).ok_or(HsmError::TransferDoesNotOpen)?;
    let encapped = <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(encapped).map_err(shut)?;
    let mut context = setup_receiver::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
        &OpModeR::Auth(public_key(from)?),
        &private_key(own)?,
        &encapped,
        &[INFO_LABEL, info].concat(),
    )
    .map_err(shut)?;
    context.open(sealed, &[]).map(Zeroizing::new).map_err(shut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededEntropy;

    #[test]
    fn opens_for_the_one_it_is_meant_for_from_the_one_it_claims_and_about_what_it_says() {
        let entropy = SeededEntropy::shared(3);
        let ((a, a_public), (b, b_public)) = (key_pair(&*entropy), key_pair(&*entropy));
        let (c, c_public) = key_pair(&*entropy);
        let message = seal(&*entropy, &a, &b_public, b"about", b"a material").unwrap();
        assert_eq!(&**open(&b, &a_public, b"about", &message).unwrap(), b"a material");
        let shut = |own: &[u8], from: &[u8], info: &[u8], message: &[u8]| {
            matches!(open(own, from, info, message), Err(HsmError::TransferDoesNotOpen))
        };
        assert!(shut(&c, &a_public, b"about", &message), "for another Region");
        assert!(shut(&b, &c_public, b"about", &message), "from another Region");
        assert!(shut(&b, &a_public, b"other", &message), "about something else");
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert!(shut(&b, &a_public, b"about", &changed), "byte {at}");
            assert!(shut(&b, &a_public, b"about", &message[..at]), "cut at {at}");
        }
        let bad = |to: &[u8]| seal(&*entropy, &a, to, b"about", b"x");
        assert!(matches!(bad(&[4; 65]), Err(HsmError::TransferKey(_))));
        assert!(matches!(bad(&[]), Err(HsmError::TransferKey(_))));
    }
}
