//! The boundary as callers see it: [`Hsm`].

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_env::Entropy;
use keyward_model::{DomainKeyId, KeyId, KeyMaterialId};
use parking_lot::RwLock;

use crate::arena::{Arena, ArenaConfig, Secret};
use crate::cache::{Cache, CacheStats};
use crate::ciphertext::{self, ParsedCiphertext};
use crate::context::CanonicalContext;
use crate::domain::{DOMAIN_KEY_BYTES, RootCopy, SealedDomainKey, domain_key_id, wrap_aad};
use crate::error::{ArenaError, HsmError, RootError};
use crate::material::{BACKING_KEY_BYTES, BackingKey, material_id};
use crate::provider::{CryptoProvider, RingProvider};
use crate::reseal::{self, ResealRequest, ResealSecret};
use crate::root::{RootId, RootProvider};
use crate::sealing::SALT_BYTES;
use crate::secret_vec::SecretVec;
use crate::token::{self, Belongs, SealedToken};

/// Backing keys that are kept unsealed unless the operator says otherwise: 2 MiB of slots.
pub const CACHE_ENTRIES_DEFAULT: usize = 32_768;

/// How an [`Hsm`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct HsmConfig {
    /// Backing keys kept unsealed at most: rounded down to a multiple of 16, the number of the cache's
    /// shards, and at least 16.
    pub cache_max_entries: usize,
    /// The locked memory that keys live in.
    pub arena: ArenaConfig,
}

impl Default for HsmConfig {
    fn default() -> Self {
        Self { cache_max_entries: CACHE_ENTRIES_DEFAULT, arena: ArenaConfig::default() }
    }
}

/// The cryptographic boundary of one node. All key material that is in plaintext on this node is in here.
pub struct Hsm {
    root: Arc<dyn RootProvider>,
    entropy: Arc<dyn Entropy>,
    crypto: Arc<dyn CryptoProvider>,
    arena: Arc<Arena>,
    /// Open domain keys: a handful, one a day and few days in use.
    domains: RwLock<BTreeMap<DomainKeyId, Arc<Secret>>>,
    cache: Cache,
}

impl Hsm {
    /// Sets the boundary up on a root.
    ///
    /// # Errors
    /// [`ArenaError`] when the memory for keys cannot be had.
    pub fn new(
        root: Arc<dyn RootProvider>,
        entropy: Arc<dyn Entropy>,
        config: &HsmConfig,
    ) -> Result<Arc<Self>, HsmError> {
        Ok(Arc::new(Self {
            root,
            entropy,
            crypto: Arc::new(RingProvider),
            arena: Arena::new(&config.arena)?,
            domains: RwLock::default(),
            cache: Cache::new(config.cache_max_entries),
        }))
    }

    /// The root that this node seals domain keys for.
    #[must_use]
    pub fn root_id(&self) -> &RootId {
        self.root.identity()
    }

    /// The root provider, for its health.
    #[must_use]
    pub fn root(&self) -> &dyn RootProvider {
        &*self.root
    }

    /// Whether key material is locked into memory.
    #[must_use]
    pub fn is_memory_locked(&self) -> bool {
        self.arena.is_locked()
    }

    /// What the cache of unsealed keys has done.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// A slot for a new secret; when the arena is full, cached keys make room.
    fn slot(
        &self,
        make: impl Fn(&Arc<Arena>) -> Result<Secret, ArenaError>,
    ) -> Result<Secret, ArenaError> {
        loop {
            match make(&self.arena) {
                Err(ArenaError::Exhausted { .. }) if self.cache.make_room() => {}
                made => return made,
            }
        }
    }

    // --- Domain keys.

    /// Makes a domain key, seals it for this node's root, and keeps it open.
    ///
    /// # Errors
    /// What the root provider refused with.
    pub async fn generate_domain_key(&self) -> Result<SealedDomainKey, HsmError> {
        let secret = self.slot(|arena| arena.random(&*self.entropy, DOMAIN_KEY_BYTES))?;
        let id = domain_key_id(&*self.crypto, &secret);
        let sealed = self.root.wrap(&secret, &wrap_aad(id)).await?;
        self.domains.write().insert(id, Arc::new(secret));
        Ok(SealedDomainKey { id, copies: vec![RootCopy { root: self.root_id().clone(), sealed }] })
    }

    /// Opens a domain key with this node's root, and keeps it open.
    ///
    /// # Errors
    /// [`HsmError::NoCopyForRoot`] when none of the copies is for this root; what the root provider
    /// refused with; [`HsmError::WrongDomainKey`] when the copy holds another key.
    pub async fn open_domain_key(&self, sealed: &SealedDomainKey) -> Result<(), HsmError> {
        if self.has_domain_key(sealed.id) {
            return Ok(());
        }
        let copy = sealed.copy_for(self.root_id()).ok_or_else(|| HsmError::NoCopyForRoot {
            domain: sealed.id,
            root: self.root_id().clone(),
        })?;
        let aad = wrap_aad(sealed.id);
        let secret = loop {
            match self.root.unwrap(&copy.sealed, &aad, &self.arena).await {
                // As in `slot`: a domain key is worth more than a cached backing key.
                Err(RootError::Arena(ArenaError::Exhausted { .. })) if self.cache.make_room() => {}
                unwrapped => break unwrapped?,
            }
        };
        self.check_domain_key(sealed.id, &secret)?;
        self.domains.write().insert(sealed.id, Arc::new(secret));
        Ok(())
    }

    fn check_domain_key(&self, id: DomainKeyId, secret: &Secret) -> Result<(), HsmError> {
        if secret.len() == DOMAIN_KEY_BYTES && domain_key_id(&*self.crypto, secret) == id {
            return Ok(());
        }
        Err(HsmError::WrongDomainKey(id))
    }

    /// Whether a domain key is open.
    #[must_use]
    pub fn has_domain_key(&self, id: DomainKeyId) -> bool {
        self.domains.read().contains_key(&id)
    }

    /// Wipes an open domain key.
    pub fn forget_domain_key(&self, id: DomainKeyId) {
        self.domains.write().remove(&id);
    }

    fn domain(&self, id: DomainKeyId) -> Result<Arc<Secret>, HsmError> {
        self.domains.read().get(&id).cloned().ok_or(HsmError::DomainKeyNotOpen(id))
    }

    // --- Domain keys for another node's root.

    /// Begins to fetch domain keys from a member: a secret to keep and a request to send.
    #[must_use]
    pub fn reseal_request(&self) -> (ResealSecret, ResealRequest) {
        reseal::request(&*self.entropy, self.root_id())
    }

    /// Seals an open domain key to the HSM that sent the request. That its root may have it is for the
    /// caller to know.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::ResealRequest`].
    pub fn export_domain_key(
        &self,
        id: DomainKeyId,
        request: &ResealRequest,
    ) -> Result<Vec<u8>, HsmError> {
        let secret = self.domain(id)?;
        reseal::export(&*self.entropy, id, secret.expose(), request)
    }

    /// Opens what a member sealed, seals it for this node's root and keeps it open.
    ///
    /// # Errors
    /// [`HsmError::ResealDoesNotOpen`], [`HsmError::WrongDomainKey`], and what the root provider refused
    /// with.
    pub async fn import_domain_key(
        &self,
        id: DomainKeyId,
        secret: &ResealSecret,
        message: &[u8],
    ) -> Result<RootCopy, HsmError> {
        let key = {
            let opened = reseal::import(secret, self.root_id(), id, message)?;
            self.slot(|arena| arena.copy_in(&opened))?
        };
        self.check_domain_key(id, &key)?;
        let sealed = self.root.wrap(&key, &wrap_aad(id)).await?;
        self.domains.write().insert(id, Arc::new(key));
        Ok(RootCopy { root: self.root_id().clone(), sealed })
    }

    // --- Backing keys.

    fn salt(&self) -> [u8; SALT_BYTES] {
        let mut salt = [0; SALT_BYTES];
        self.entropy.fill(&mut salt);
        salt
    }

    /// Makes a material for a KMS key, sealed under an open domain key.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::Arena`].
    pub fn generate_backing_key(
        &self,
        domain: DomainKeyId,
        key: KeyId,
    ) -> Result<(KeyMaterialId, SealedToken), HsmError> {
        let sealer = self.domain(domain)?;
        let secret = self.slot(|arena| arena.random(&*self.entropy, BACKING_KEY_BYTES))?;
        let material = material_id(&*self.crypto, key, &secret);
        let belongs = Belongs::BackingKey(key, material);
        let token =
            token::seal(&*self.crypto, domain, &sealer, &self.salt(), belongs, secret.expose())?;
        Ok((material, token))
    }

    fn open_token(
        &self,
        key: KeyId,
        material: KeyMaterialId,
        sealed: &SealedToken,
    ) -> Result<Secret, HsmError> {
        let domain = sealed.domain_key_id().ok_or(HsmError::TokenFormat("unreadable"))?;
        let opener = self.domain(domain)?;
        let mut secret = self.slot(|arena| arena.zeroed(BACKING_KEY_BYTES))?;
        let belongs = Belongs::BackingKey(key, material);
        token::open(&*self.crypto, &opener, sealed, belongs, secret.expose_mut())?;
        if material_id(&*self.crypto, key, &secret) != material {
            return Err(HsmError::WrongMaterial(material));
        }
        Ok(secret)
    }

    /// Seals a material under another domain key.
    ///
    /// # Errors
    /// As [`Hsm::unseal`] and [`Hsm::generate_backing_key`].
    pub fn reseal_token(
        &self,
        sealed: &SealedToken,
        key: KeyId,
        material: KeyMaterialId,
        domain: DomainKeyId,
    ) -> Result<SealedToken, HsmError> {
        let secret = self.open_token(key, material, sealed)?;
        let sealer = self.domain(domain)?;
        let belongs = Belongs::BackingKey(key, material);
        token::seal(&*self.crypto, domain, &sealer, &self.salt(), belongs, secret.expose())
    }

    /// The material, if it is unsealed. The hot path: one shard's read lock.
    #[must_use]
    pub fn unsealed(&self, material: &KeyMaterialId) -> Option<Arc<BackingKey>> {
        self.cache.get(material)
    }

    /// Unseals a material and keeps it.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::TokenFormat`], [`HsmError::TokenDoesNotOpen`],
    /// [`HsmError::WrongMaterial`], [`HsmError::Arena`].
    pub fn unseal(
        &self,
        key: KeyId,
        material: KeyMaterialId,
        sealed: &SealedToken,
    ) -> Result<Arc<BackingKey>, HsmError> {
        let secret = self.open_token(key, material, sealed)?;
        Ok(self.cache.insert(BackingKey::new(key, material, secret)))
    }

    /// Drops an unsealed material; it is wiped when the last call that uses it ends.
    pub fn evict(&self, material: &KeyMaterialId) {
        self.cache.remove(material);
    }

    // --- Messages.

    /// Encrypts 1 to 4096 bytes. See `docs/decisions/0002-ciphertext-format.md`.
    ///
    /// # Errors
    /// [`HsmError::Length`].
    pub fn encrypt(
        &self,
        key: &BackingKey,
        plaintext: &[u8],
        context: &CanonicalContext,
    ) -> Result<Vec<u8>, HsmError> {
        ciphertext::encrypt(&*self.crypto, key, &self.salt(), plaintext, context)
    }

    /// Decrypts a blob. Which of key, context and bits was wrong is not told.
    ///
    /// # Errors
    /// [`HsmError::InvalidCiphertext`].
    pub fn decrypt(
        &self,
        key: &BackingKey,
        blob: &ParsedCiphertext<'_>,
        context: &CanonicalContext,
    ) -> Result<SecretVec, HsmError> {
        if blob.material_id() != key.material_id() || blob.key_id() != key.key_id() {
            return Err(HsmError::InvalidCiphertext);
        }
        ciphertext::decrypt(&*self.crypto, key, blob, context)
    }

    // --- Other small secrets.

    /// Seals a small secret of the Region, such as its authority's private key, for one purpose.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::Length`].
    pub fn seal_secret(
        &self,
        domain: DomainKeyId,
        label: &str,
        bytes: &[u8],
    ) -> Result<SealedToken, HsmError> {
        if !(1..=token::SEALED_SECRET_BYTES_MAX).contains(&bytes.len()) {
            return Err(HsmError::Length {
                what: "a small secret",
                bytes: bytes.len(),
                bytes_min: 1,
                bytes_max: token::SEALED_SECRET_BYTES_MAX,
            });
        }
        let sealer = self.domain(domain)?;
        let belongs = Belongs::Secret(label);
        token::seal(&*self.crypto, domain, &sealer, &self.salt(), belongs, bytes)
    }

    /// Opens a small secret that was sealed for that purpose.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::TokenFormat`], [`HsmError::TokenDoesNotOpen`].
    pub fn open_secret(&self, sealed: &SealedToken, label: &str) -> Result<SecretVec, HsmError> {
        let domain = sealed.domain_key_id().ok_or(HsmError::TokenFormat("unreadable"))?;
        let opener = self.domain(domain)?;
        let mut secret = SecretVec::zeroed(sealed.sealed_bytes()?);
        let belongs = Belongs::Secret(label);
        token::open(&*self.crypto, &opener, sealed, belongs, secret.expose_mut())?;
        Ok(secret)
    }
}

/// What a caller cannot bring about, and a root or a member that lies could.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ARENA_BYTES_MIN;
    use crate::root::MemoryRoot;
    use crate::testing::{SeededEntropy, block_on};

    fn hsm(seed: u64) -> Arc<Hsm> {
        let entropy = SeededEntropy::shared(seed);
        let root = MemoryRoot::new(&seed.to_be_bytes(), Arc::clone(&entropy), true).unwrap();
        let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, allow_unlocked: true };
        let config = HsmConfig { cache_max_entries: 64, arena };
        Hsm::new(Arc::new(root), entropy, &config).unwrap()
    }

    #[test]
    fn a_copy_that_holds_another_key_or_a_longer_one_is_not_taken_for_the_domain_key() {
        let hsm = hsm(1);
        let claimed = DomainKeyId::new([9; 16]);
        for bytes in [DOMAIN_KEY_BYTES, DOMAIN_KEY_BYTES - 1, DOMAIN_KEY_BYTES + 1] {
            let impostor = hsm.arena.zeroed(bytes).unwrap();
            let sealed = block_on(hsm.root.wrap(&impostor, &wrap_aad(claimed))).unwrap();
            let copies = vec![RootCopy { root: hsm.root_id().clone(), sealed }];
            let refused = block_on(hsm.open_domain_key(&SealedDomainKey { id: claimed, copies }));
            assert!(matches!(refused, Err(HsmError::WrongDomainKey(id)) if id == claimed));
        }
        assert!(!hsm.has_domain_key(claimed));
    }

    #[test]
    fn a_member_cannot_hand_over_another_key_under_a_domain_keys_id() {
        let hsm = hsm(1);
        let claimed = DomainKeyId::new([9; 16]);
        let (secret, request) = hsm.reseal_request();
        let export = |key: &[u8]| reseal::export(&*hsm.entropy, claimed, key, &request).unwrap();
        let import = |message: &[u8]| block_on(hsm.import_domain_key(claimed, &secret, message));
        for bytes in [DOMAIN_KEY_BYTES - 1, DOMAIN_KEY_BYTES, DOMAIN_KEY_BYTES + 1] {
            let refused = import(&export(&vec![7; bytes]));
            assert!(matches!(refused, Err(HsmError::WrongDomainKey(id)) if id == claimed));
        }
        // Lengths that fit no slot are errors too, and no panic.
        for bytes in [0, 65, 300] {
            assert!(matches!(import(&export(&vec![7; bytes])), Err(HsmError::Arena(_))));
        }
        assert!(!hsm.has_domain_key(claimed));
    }

    /// The id binds a ciphertext to one material (decision 0002), so it is checked even when the token's
    /// own tag is right.
    #[test]
    fn a_token_that_names_another_material_than_it_holds_is_refused() {
        let hsm = hsm(1);
        let domain = block_on(hsm.generate_domain_key()).unwrap().id;
        let (key, claimed) = (KeyId::from_random([1; 16]), KeyMaterialId::new([5; 32]));
        let sealer = hsm.domain(domain).unwrap();
        let belongs = Belongs::BackingKey(key, claimed);
        let seal = |plaintext: &[u8]| {
            token::seal(&*hsm.crypto, domain, &sealer, &hsm.salt(), belongs, plaintext).unwrap()
        };
        let refused = hsm.unseal(key, claimed, &seal(&[7; BACKING_KEY_BYTES]));
        assert!(matches!(refused, Err(HsmError::WrongMaterial(id)) if id == claimed));
        for bytes in [0, BACKING_KEY_BYTES - 1, BACKING_KEY_BYTES + 1] {
            let refused = hsm.unseal(key, claimed, &seal(&vec![7; bytes]));
            assert!(matches!(refused, Err(HsmError::TokenFormat(_))), "{bytes}");
        }
        assert_eq!(hsm.cache_stats().keys, 0);
    }
}
