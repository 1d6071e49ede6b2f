//! Handing a domain key from one node's HSM to another's, so that each node has a root of its own and no
//! root is ever copied: HPKE (RFC 9180), base mode, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! The joining node makes a key pair for one request; a member seals to its public key. `info` binds the
//! root that asks and the domain key that is meant. Who asks is vouched for by the channel (mutual TLS)
//! and by the root being registered: HPKE's base mode does not authenticate the sender.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, setup_receiver};
use keyward_env::Entropy;
use keyward_model::DomainKeyId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::HsmError;
use crate::provider::scrub_stack;
use crate::root::RootId;

const INFO_LABEL: &[u8] = b"keyward reseal v1";
/// An uncompressed P-256 point (RFC 9180, section 7.1).
pub(crate) const ENCAPPED_BYTES: usize = 65;

pub(crate) type PrivateKey = <DhP256HkdfSha256 as Kem>::PrivateKey;
pub(crate) type PublicKey = <DhP256HkdfSha256 as Kem>::PublicKey;

/// The joiner's half of a request: opens what a member seals. Lives for the minute that joining takes, on
/// the heap or stack, and is wiped on drop by the library that made it. It cannot be printed or cloned.
pub struct ResealSecret {
    key: PrivateKey,
    root: RootId,
}

impl ResealSecret {
    /// The root that the domain keys are fetched for.
    pub(crate) fn root(&self) -> &RootId {
        &self.root
    }
}

/// What a joiner shows to a member. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResealRequest {
    /// The root that the joiner will seal the domain keys for.
    pub root: RootId,
    /// A public key for this request only: an uncompressed P-256 point.
    pub public_key: Vec<u8>,
}

/// Entropy in the shape that `hpke` and `vsss-rs` take.
pub(crate) struct Rng<'a>(pub(crate) &'a dyn Entropy);

impl hpke::rand_core::TryRng for Rng<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl hpke::rand_core::TryCryptoRng for Rng<'_> {}

fn info(root: &RootId, domain: DomainKeyId) -> Vec<u8> {
    [INFO_LABEL, &[0], domain.bytes(), root.as_str().as_bytes()].concat()
}

pub(crate) fn request(entropy: &dyn Entropy, root: RootId) -> (ResealSecret, ResealRequest) {
    let (private, public) = key_pair(entropy);
    scrub_stack();
    let request = ResealRequest { root: root.clone(), public_key: public.to_bytes().to_vec() };
    (ResealSecret { key: private, root }, request)
}

#[inline(never)]
pub(crate) fn key_pair(entropy: &dyn Entropy) -> (PrivateKey, PublicKey) {
    // RFC 9180, section 7.1.3: at least Nsk bytes of keying material.
    let mut ikm = Zeroizing::new([0; 32]);
    entropy.fill(&mut *ikm);
    DhP256HkdfSha256::derive_keypair(&*ikm)
}

/// Seals a domain key to a joiner: the encapsulated key, then ciphertext and tag.
pub(crate) fn export(
    entropy: &dyn Entropy,
    domain: DomainKeyId,
    key: &[u8],
    request: &ResealRequest,
) -> Result<Vec<u8>, HsmError> {
    let message = seal_to(entropy, domain, key, request);
    scrub_stack();
    message
}

/// Not inlined, so that all its stack lies where `scrub_stack` writes next: the library wipes its secrets
/// and not its AES key schedule (decision 0003).
#[inline(never)]
fn seal_to(
    entropy: &dyn Entropy,
    domain: DomainKeyId,
    key: &[u8],
    request: &ResealRequest,
) -> Result<Vec<u8>, HsmError> {
    let malformed = |_| HsmError::ResealRequest(request.root.clone());
    let public = PublicKey::from_bytes(&request.public_key).map_err(malformed)?;
    let (encapped, mut context) =
        hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
            &OpModeS::Base,
            &public,
            &info(&request.root, domain),
            &mut Rng(entropy),
        )
        .map_err(malformed)?;
    let sealed = context.seal(key, &[]).map_err(|_| HsmError::Crypto("HPKE sealing"))?;
    let mut message = encapped.to_bytes().to_vec();
    message.extend_from_slice(&sealed);
    Ok(message)
}

/// Opens what a member sealed for this request.
pub(crate) fn import(
    secret: &ResealSecret,
    domain: DomainKeyId,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let opened = open_from(secret, domain, message);
    scrub_stack();
    opened
}

/// Not inlined, as [`seal_to`].
#[inline(never)]
fn open_from(
    secret: &ResealSecret,
    domain: DomainKeyId,
    message: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let (encapped, sealed) =
        message.split_at_checked(ENCAPPED_BYTES).ok_or(HsmError::ResealDoesNotOpen)?;
    let encapped = <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(encapped)
        .map_err(|_| HsmError::ResealDoesNotOpen)?;
    let mut context = setup_receiver::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
        &OpModeR::Base,
        &secret.key,
        &encapped,
        &info(&secret.root, domain),
    )
    .map_err(|_| HsmError::ResealDoesNotOpen)?;
    context.open(sealed, &[]).map(Zeroizing::new).map_err(|_| HsmError::ResealDoesNotOpen)
}
