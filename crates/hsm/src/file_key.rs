//! Keys of files: each encrypts one file, in chunks, and is kept sealed under a domain key beside it.
//!
//! Chunks are sealed as in STREAM (Hoang, Reyhanitabar, Rogaway, Vizar: "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", CRYPTO 2015, section 7): AES-256-GCM with a nonce that holds the chunk's number and
//! whether it is the last one, so that a chunk that is missing, moved, doubled or of another file does not open, and a
//! file that was cut off at a chunk's edge has no last one. The nonce is the deterministic construction of SP 800-38D,
//! section 8.2.1: a fixed field (seven zero bytes, since the key is of this one file), and an invocation field.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 7 | zero |
//! | 7 | 4 | number of the chunk, from 0 on, big-endian |
//! | 11 | 1 | 1 in the last chunk, else 0 |

use std::sync::Arc;

use keyward_model::{DomainKeyId, KeyId, KeyMaterialId};

use crate::arena::Secret;
use crate::error::HsmError;
use crate::hsm::Hsm;
use crate::provider::{
    AES_256_KEY_BYTES, CryptoProvider, GCM_NONCE_BYTES, GCM_TAG_BYTES, scrub_stack,
};
use crate::token::{Belongs, SealedToken};
use crate::transfer;

/// Binds a sealed file key to its purpose.
const LABEL: &str = "keyward snapshot file key v1";
const NUMBER_AT: usize = 7;
const LAST_AT: usize = 11;

/// The key of one file, and which chunk comes next.
struct FileKey {
    secret: Secret,
    crypto: Arc<dyn CryptoProvider>,
    /// None once the last chunk was there.
    next: Option<u32>,
}

impl FileKey {
    fn new(secret: Secret, crypto: Arc<dyn CryptoProvider>) -> Self {
        Self { secret, crypto, next: Some(0) }
    }

    /// The nonce of the next chunk. No number is used twice.
    fn step(&mut self, last: bool) -> Result<[u8; GCM_NONCE_BYTES], HsmError> {
        let number = self.next.ok_or(HsmError::FileIsOver)?;
        self.next = if last { None } else { number.checked_add(1) };
        let mut nonce = [0; GCM_NONCE_BYTES];
        nonce[NUMBER_AT..LAST_AT].copy_from_slice(&number.to_be_bytes());
        nonce[LAST_AT] = u8::from(last);
        Ok(nonce)
    }

    fn key(&self) -> Result<&[u8; AES_256_KEY_BYTES], HsmError> {
        Ok(self.secret.expose_key()?)
    }
}

/// Seals the chunks of one file, in order. Made with a fresh key ([`Hsm::generate_file_key`]); there is no way to seal a
/// second file under it.
pub struct FileSealer(FileKey);

/// Opens the chunks of one file, in order.
pub struct FileOpener(FileKey);

impl FileSealer {
    /// Seals the next chunk in place, and puts its tag behind it. After the last one nothing is sealed any more.
    ///
    /// # Errors
    /// [`HsmError::FileIsOver`], also after 2^32 chunks.
    pub fn seal(&mut self, last: bool, aad: &[u8], chunk: &mut Vec<u8>) -> Result<(), HsmError> {
        let nonce = self.0.step(last)?;
        let tag = self.0.crypto.aes_256_gcm_seal(self.0.key()?, &nonce, aad, chunk);
        scrub_stack();
        chunk.extend_from_slice(&tag.map_err(|_| HsmError::Crypto("AES-256-GCM encryption"))?);
        Ok(())
    }
}

impl FileOpener {
    /// Opens the next chunk in place, and takes its tag off.
    ///
    /// # Errors
    /// [`HsmError::ChunkDoesNotOpen`] when it is another one, of another file, or changed; [`HsmError::FileIsOver`]
    /// after the last one. What `chunk` holds then must not be used.
    pub fn open(&mut self, last: bool, aad: &[u8], chunk: &mut Vec<u8>) -> Result<(), HsmError> {
        let nonce = self.0.step(last)?;
        let cut = chunk.len().checked_sub(GCM_TAG_BYTES).ok_or(HsmError::ChunkDoesNotOpen)?;
        let mut tag = [0; GCM_TAG_BYTES];
        tag.copy_from_slice(&chunk[cut..]);
        chunk.truncate(cut);
        let opened = self.0.crypto.aes_256_gcm_open(self.0.key()?, &nonce, aad, chunk, &tag);
        scrub_stack();
        opened.map_err(|_| HsmError::ChunkDoesNotOpen)
    }
}

impl Hsm {
    /// Makes the key of one file: what seals it, and the key itself, sealed under an open domain key.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::RootAway`], [`HsmError::Arena`].
    pub fn generate_file_key(
        &self,
        domain: DomainKeyId,
    ) -> Result<(FileSealer, SealedToken), HsmError> {
        let secret = self.random_secret(AES_256_KEY_BYTES)?;
        let sealed = self.seal_as(domain, Belongs::Secret(LABEL), secret.expose())?;
        Ok((FileSealer(FileKey::new(secret, self.crypto())), sealed))
    }

    /// Opens the key of a file. Its domain key must be open.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::TokenFormat`], [`HsmError::TokenDoesNotOpen`],
    /// [`HsmError::Arena`].
    pub fn open_file_key(&self, sealed: &SealedToken) -> Result<FileOpener, HsmError> {
        let secret = self.open_as(sealed, Belongs::Secret(LABEL), AES_256_KEY_BYTES)?;
        Ok(FileOpener(FileKey::new(secret, self.crypto())))
    }

    /// Opens a material as [`Hsm::unseal`] does, and wipes it at once: to see that it would open.
    ///
    /// # Errors
    /// As [`Hsm::unseal`].
    pub fn try_token(
        &self,
        key: KeyId,
        material: KeyMaterialId,
        sealed: &SealedToken,
    ) -> Result<(), HsmError> {
        self.open_token(key, material, sealed).map(drop)
    }

    /// The same of a Region's key pair for material from other Regions.
    ///
    /// # Errors
    /// As [`Hsm::open_secret`].
    pub fn try_transfer_key(&self, sealed: &SealedToken) -> Result<(), HsmError> {
        self.open_secret(sealed, transfer::KEY_LABEL).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{ARENA_BYTES_MIN, ArenaConfig};
    use crate::hsm::HsmConfig;
    use crate::root::MemoryRoot;
    use crate::testing::{SeededEntropy, block_on};

    fn hsm_of_memory(seed: u64) -> Arc<Hsm> {
        let entropy = SeededEntropy::shared(seed);
        let root = MemoryRoot::new(&seed.to_be_bytes(), Arc::clone(&entropy), true).unwrap();
        let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
        Hsm::new(Arc::new(root), entropy, &HsmConfig { cache_max_entries: 64, arena }).unwrap()
    }

    fn sealed(sealer: &mut FileSealer, last: bool, text: &[u8]) -> Vec<u8> {
        let mut chunk = text.to_vec();
        sealer.seal(last, b"header", &mut chunk).unwrap();
        chunk
    }

    #[test]
    fn chunks_open_in_their_order_once_and_only_with_their_header() {
        let hsm = hsm_of_memory(1);
        let domain = block_on(hsm.generate_domain_key()).unwrap().id;
        let (mut sealer, token) = hsm.generate_file_key(domain).unwrap();
        let chunks = [sealed(&mut sealer, false, b"one"), sealed(&mut sealer, false, b"two")];
        let end = sealed(&mut sealer, true, b"");
        assert!(matches!(
            sealer.seal(false, b"header", &mut Vec::new()),
            Err(HsmError::FileIsOver)
        ));

        let open = |pieces: &[(bool, &[u8], &Vec<u8>)]| {
            let mut opener = hsm.open_file_key(&token).unwrap();
            pieces
                .iter()
                .try_for_each(|(last, aad, piece)| opener.open(*last, aad, &mut (*piece).clone()))
        };
        let (header, other): (&[u8], &[u8]) = (b"header", b"another");
        let whole =
            [(false, header, &chunks[0]), (false, header, &chunks[1]), (true, header, &end)];
        assert!(open(&whole).is_ok());
        let beyond = [whole[0], whole[1], whole[2], whole[2]];
        assert!(matches!(open(&beyond), Err(HsmError::FileIsOver)));
        for wrong in [
            vec![whole[1]],
            vec![whole[0], whole[0]],
            vec![whole[0], whole[2]],
            vec![(true, header, &chunks[0])],
            vec![whole[0], whole[1], (false, header, &end)],
            vec![(false, other, &chunks[0])],
        ] {
            assert!(matches!(open(&wrong), Err(HsmError::ChunkDoesNotOpen)));
        }
        let (mut second, _) = hsm.generate_file_key(domain).unwrap();
        let spliced = sealed(&mut second, false, b"one");
        assert!(matches!(open(&[(false, header, &spliced)]), Err(HsmError::ChunkDoesNotOpen)));
    }

    #[test]
    fn a_file_key_of_another_region_does_not_open() {
        let (ours, theirs) = (hsm_of_memory(1), hsm_of_memory(2));
        let domain = block_on(theirs.generate_domain_key()).unwrap().id;
        let (_, token) = theirs.generate_file_key(domain).unwrap();
        assert!(matches!(ours.open_file_key(&token), Err(HsmError::DomainKeyNotOpen(_))));
        // Another small secret is no file key.
        let secret = theirs.seal_secret(domain, "another purpose", &[7; 32]).unwrap();
        assert!(matches!(theirs.open_file_key(&secret), Err(HsmError::TokenDoesNotOpen)));
    }
}
