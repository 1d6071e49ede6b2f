//! The boundary as callers see it: [`Hsm`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyward_env::Entropy;
use keyward_model::{DomainKeyId, KeyId, KeyMaterialId};
use parking_lot::RwLock;

use crate::arena::{ARENA_BYTES_MIN, Arena, ArenaConfig, SLOT_BYTES, Secret};
use crate::cache::{Cache, CacheStats};
use crate::ciphertext::{self, ParsedCiphertext};
use crate::context::CanonicalContext;
use crate::domain::{DOMAIN_KEY_BYTES, RootCopy, SealedDomainKey, domain_key_id, wrap_aad};
use crate::error::{ArenaError, HsmError, RootError};
use crate::material::{BACKING_KEY_BYTES, BackingKey, material_id};
use crate::provider::{CryptoProvider, RingProvider};
use crate::reseal::{self, ResealRequest, ResealSecret};
use crate::root::{RootFuture, RootId, RootProvider};
use crate::sealing::SALT_BYTES;
use crate::secret_vec::SecretVec;
use crate::token::{self, Belongs, SealedToken};
use crate::transfer;
use crate::watch::{RootClock, RootHealth, RootStatus, RootWatchConfig, WatchedRoot, within};

/// Backing keys that are kept unsealed unless the operator says otherwise: 64 MiB of slots. A key takes memory once it is
/// used: some 230 bytes with its slot.
pub const CACHE_ENTRIES_DEFAULT: usize = 1 << 20;
/// The most that an operator can ask for: 1 GiB of slots.
pub const CACHE_ENTRIES_MAX: usize = 16 << 20;
/// Slots beside those of the cache: domain keys, and what is open for a moment.
const SLOTS_BESIDE: usize = 1024;

/// How an [`Hsm`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct HsmConfig {
    /// Backing keys kept unsealed at most: rounded down to a multiple of 16, the number of the cache's
    /// shards, and at least 16. At most [`CACHE_ENTRIES_MAX`].
    pub cache_max_entries: usize,
    /// The locked memory that keys live in, at the start. If it grows, then until `cache_max_entries` fit in, as far as the
    /// system lets more be locked.
    pub arena: ArenaConfig,
}

impl Default for HsmConfig {
    fn default() -> Self {
        Self { cache_max_entries: CACHE_ENTRIES_DEFAULT, arena: ArenaConfig::default() }
    }
}

/// Roots that a node may have at most: one, and others while it changes from one to the next.
pub const ROOTS_MAX: usize = 8;

/// The cryptographic boundary of one node. All key material that is in plaintext on this node is in here.
pub struct Hsm {
    /// Never empty. The first one is who this node is to others; any of them opens a domain key.
    roots: RwLock<Vec<Arc<WatchedRoot>>>,
    watch: OnceLock<Watch>,
    /// Set while no root has answered for longer than the grace. All that a use of a key looks at.
    away: AtomicBool,
    /// When a root that was taken off since had last answered, in nanoseconds: the grace counts from it too.
    removed_good_ns: AtomicU64,
    entropy: Arc<dyn Entropy>,
    crypto: Arc<dyn CryptoProvider>,
    arena: Arc<Arena>,
    /// For values that show whether a root works: never short of room because keys are many.
    probe_arena: Arc<Arena>,
    /// Open domain keys: a handful, one a day and few days in use.
    domains: RwLock<BTreeMap<DomainKeyId, Arc<Secret>>>,
    cache: Cache,
}

/// What roots are watched with.
struct Watch {
    clock: Arc<dyn RootClock>,
    config: RootWatchConfig,
    begun: Duration,
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
        let allow_unlocked = config.arena.allow_unlocked;
        let entries_max = config.cache_max_entries.min(CACHE_ENTRIES_MAX);
        let bytes_max = match config.arena.grows {
            true => (entries_max + SLOTS_BESIDE) * SLOT_BYTES,
            false => 0,
        };
        Ok(Arc::new(Self {
            roots: RwLock::new(vec![WatchedRoot::new(root)]),
            watch: OnceLock::new(),
            away: AtomicBool::new(false),
            removed_good_ns: AtomicU64::new(0),
            entropy,
            crypto: Arc::new(RingProvider),
            arena: Arena::growing(&config.arena, bytes_max)?,
            probe_arena: Arena::new(&ArenaConfig {
                bytes: ARENA_BYTES_MIN,
                grows: false,
                allow_unlocked,
            })?,
            domains: RwLock::default(),
            cache: Cache::new(entries_max),
        }))
    }

    // --- Roots.

    /// The root that this node shows to others, and has domain keys handed over to: the first of
    /// [`Hsm::roots`].
    #[must_use]
    pub fn root_id(&self) -> RootId {
        self.first_root().id().clone()
    }

    /// The provider of that root.
    #[must_use]
    pub fn root(&self) -> Arc<dyn RootProvider> {
        Arc::clone(self.first_root().provider())
    }

    fn first_root(&self) -> Arc<WatchedRoot> {
        Arc::clone(&self.roots.read()[0])
    }

    /// The roots of this node, in the order in which they are tried, and how they are.
    #[must_use]
    pub fn roots(&self) -> Vec<RootStatus> {
        self.roots.read().iter().map(|root| root.status()).collect()
    }

    /// Adds a root, behind those that are there. Domain keys made from now on have a copy for it;
    /// [`Hsm::copy_for_root`] makes one of a key that exists.
    ///
    /// # Errors
    /// [`HsmError::RootPresent`], [`HsmError::TooManyRoots`].
    pub fn add_root(&self, root: Arc<dyn RootProvider>) -> Result<(), HsmError> {
        let mut roots = self.roots.write();
        if roots.iter().any(|present| present.id() == root.identity()) {
            return Err(HsmError::RootPresent(root.identity().clone()));
        }
        if roots.len() >= ROOTS_MAX {
            return Err(HsmError::TooManyRoots { roots_max: ROOTS_MAX });
        }
        roots.push(WatchedRoot::new(root));
        Ok(())
    }

    /// Takes a root off. That the other ones have copies of all domain keys is for the caller to know.
    ///
    /// # Errors
    /// [`HsmError::NoSuchRoot`], [`HsmError::LastRoot`].
    pub fn remove_root(&self, id: &RootId) -> Result<(), HsmError> {
        let mut roots = self.roots.write();
        let at = roots.iter().position(|root| root.id() == id);
        let at = at.ok_or_else(|| HsmError::NoSuchRoot(id.clone()))?;
        if roots.len() == 1 {
            return Err(HsmError::LastRoot(id.clone()));
        }
        let last_good = roots.remove(at).health().last_good().unwrap_or_default();
        let good_ns = u64::try_from(last_good.as_nanos()).unwrap_or(u64::MAX);
        self.removed_good_ns.fetch_max(good_ns, Ordering::AcqRel);
        Ok(())
    }

    /// All roots, those that answered last before those that did not.
    fn roots_in_order(&self) -> Vec<Arc<WatchedRoot>> {
        let mut roots = self.roots.read().clone();
        roots.sort_by_key(|root| root.is_failing());
        roots
    }

    fn root_of(&self, id: &RootId) -> Result<Arc<WatchedRoot>, HsmError> {
        let roots = self.roots.read();
        let root = roots.iter().find(|root| root.id() == id);
        root.cloned().ok_or_else(|| HsmError::NoSuchRoot(id.clone()))
    }

    /// Watches the roots from now on: to be spawned by the caller, and ends when the last owner drops the
    /// HSM. Probes every root each `probe_interval`. When none has answered rightly for `grace`, every use
    /// of a key fails with [`HsmError::RootAway`] until one does again; so it is known at most one
    /// `probe_timeout` a root late. What is open stays open. From now on, also, no call waits for a root
    /// longer than `operation_timeout`.
    ///
    /// A second watch of the same HSM ends at once.
    pub fn watch_roots(
        self: &Arc<Self>,
        clock: Arc<dyn RootClock>,
        config: RootWatchConfig,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let watch = Watch { clock: Arc::clone(&clock), config, begun: clock.boot_now() };
        let first = self.watch.set(watch).is_ok();
        let hsm = Arc::downgrade(self);
        async move {
            while first && let Some(hsm) = hsm.upgrade() {
                hsm.probe_roots().await;
                let pause = hsm.until_next_round();
                drop(hsm);
                clock.sleep(pause).await;
            }
        }
    }

    /// Probes every root now. Does nothing before [`Hsm::watch_roots`].
    pub async fn probe_roots(&self) {
        let Some(watch) = self.watch.get() else { return };
        let roots = self.roots.read().clone();
        for root in roots {
            let limit = watch.config.probe_timeout;
            root.look(&*watch.clock, limit, &*self.entropy, &self.probe_arena).await;
            self.settle(watch);
        }
    }

    /// Decides whether keys may be used.
    fn settle(&self, watch: &Watch) {
        let away = self.any_root_in(|root| !root.is_failing()).is_none()
            && watch.clock.boot_now().saturating_sub(self.last_answer(watch)) > watch.config.grace;
        self.away.store(away, Ordering::Release);
    }

    fn any_root_in(&self, is_it: impl Fn(&WatchedRoot) -> bool) -> Option<Arc<WatchedRoot>> {
        self.roots.read().iter().find(|root| is_it(root)).cloned()
    }

    /// When a root last answered rightly, or the watch began.
    fn last_answer(&self, watch: &Watch) -> Duration {
        let answers = self.roots.read().iter().filter_map(|root| root.health().last_good()).max();
        let removed = Duration::from_nanos(self.removed_good_ns.load(Ordering::Acquire));
        answers.unwrap_or(watch.begun).max(watch.begun).max(removed)
    }

    /// One interval, or what is left of the grace when that is less.
    fn until_next_round(&self) -> Duration {
        let Some(watch) = self.watch.get() else { return Duration::ZERO };
        let interval = watch.config.probe_interval.max(Duration::from_millis(10));
        let end = self.last_answer(watch) + watch.config.grace + Duration::from_millis(1);
        match end.saturating_sub(watch.clock.boot_now()) {
            Duration::ZERO => interval,
            left => left.min(interval),
        }
    }

    /// Whether keys may be used on this node now, for a readiness probe. [`Hsm::roots`] tells more.
    ///
    /// # Errors
    /// [`HsmError::RootAway`], as every use of a key would get.
    pub fn keys_usable(&self) -> Result<(), HsmError> {
        self.admit()
    }

    /// Whether keys may be used.
    fn admit(&self) -> Result<(), HsmError> {
        if self.away.load(Ordering::Acquire) { self.root_away() } else { Ok(()) }
    }

    #[cold]
    fn root_away(&self) -> Result<(), HsmError> {
        let Some(watch) = self.watch.get() else { return Ok(()) };
        let reason = match self.first_root().health() {
            RootHealth::Failing { reason, .. } => reason,
            RootHealth::Healthy { .. } | RootHealth::Unknown => String::new(),
        };
        let grace = watch.config.grace;
        Err(HsmError::RootAway { since: self.last_answer(watch), grace, reason })
    }

    /// Waits for a root, within the time that is set.
    async fn patiently<T>(&self, asked: RootFuture<'_, T>) -> Result<T, RootError> {
        match self.watch.get() {
            Some(watch) => within(&*watch.clock, watch.config.operation_timeout, asked).await,
            None => asked.await,
        }
    }

    /// Has a root wrap a domain key, and unwrap it again before the copy is trusted: a copy that does not
    /// open is noticed now, and not when it is the last one.
    async fn wrap(
        &self,
        root: &WatchedRoot,
        id: DomainKeyId,
        secret: &Secret,
    ) -> Result<RootCopy, HsmError> {
        let aad = wrap_aad(id);
        let sealed = self.patiently(root.provider().wrap(secret, &aad)).await?;
        let again = root.provider().unwrap(&sealed, &aad, &self.probe_arena);
        let again = self.patiently(again).await?;
        if !self.crypto.equal(secret.expose(), again.expose()) {
            return Err(RootError::WrongAnswer(root.id().clone()).into());
        }
        Ok(RootCopy { root: root.id().clone(), sealed })
    }

    /// Seals an open domain key for a root of this node that has no copy of it yet.
    ///
    /// # Errors
    /// [`HsmError::NoSuchRoot`], [`HsmError::DomainKeyNotOpen`], [`HsmError::RootAway`], and what the root
    /// provider refused with.
    pub async fn copy_for_root(
        &self,
        id: DomainKeyId,
        root: &RootId,
    ) -> Result<RootCopy, HsmError> {
        let root = self.root_of(root)?;
        let secret = self.domain(id)?;
        self.wrap(&root, id, &secret).await
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

    /// Makes a domain key, seals it for every root of this node that answers, and keeps it open.
    ///
    /// # Errors
    /// What the first root provider refused with, when every one refused.
    pub async fn generate_domain_key(&self) -> Result<SealedDomainKey, HsmError> {
        let secret = self.slot(|arena| arena.random(&*self.entropy, DOMAIN_KEY_BYTES))?;
        let id = domain_key_id(&*self.crypto, &secret);
        let (mut copies, mut refused) = (Vec::new(), None);
        for root in self.roots_in_order() {
            match self.wrap(&root, id, &secret).await {
                Ok(copy) => copies.push(copy),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let (true, Some(error)) = (copies.is_empty(), refused) {
            return Err(error);
        }
        self.domains.write().insert(id, Arc::new(secret));
        Ok(SealedDomainKey { id, copies })
    }

    /// Opens a domain key with a root of this node, and keeps it open. The roots that have a copy are tried
    /// in order, those that failed their last probe at the end.
    ///
    /// # Errors
    /// [`HsmError::NoCopyForRoot`] when none of the copies is for a root of this node. When every root that
    /// has one fails, what the first one failed with: what the root provider refused with, or
    /// [`HsmError::WrongDomainKey`] when the copy holds another key.
    pub async fn open_domain_key(&self, sealed: &SealedDomainKey) -> Result<(), HsmError> {
        if self.has_domain_key(sealed.id) {
            return Ok(());
        }
        let mut refused = None;
        for root in self.roots_in_order() {
            let Some(copy) = sealed.copy_for(root.id()) else { continue };
            match self.unwrap(&root, sealed.id, copy).await {
                Ok(secret) => {
                    self.domains.write().insert(sealed.id, Arc::new(secret));
                    return Ok(());
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let no_copy = || HsmError::NoCopyForRoot { domain: sealed.id, root: self.root_id() };
        Err(refused.unwrap_or_else(no_copy))
    }

    async fn unwrap(
        &self,
        root: &WatchedRoot,
        id: DomainKeyId,
        copy: &RootCopy,
    ) -> Result<Secret, HsmError> {
        let aad = wrap_aad(id);
        let secret = loop {
            let asked = root.provider().unwrap(&copy.sealed, &aad, &self.arena);
            match self.patiently(asked).await {
                // As in `slot`: a domain key is worth more than a cached backing key.
                Err(RootError::Arena(ArenaError::Exhausted { .. })) if self.cache.make_room() => {}
                unwrapped => break unwrapped?,
            }
        };
        self.check_domain_key(id, &secret)?;
        Ok(secret)
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
        self.admit()?;
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

    /// Opens what a member sealed, seals it for the root of the request and keeps it open.
    ///
    /// # Errors
    /// [`HsmError::ResealDoesNotOpen`], [`HsmError::WrongDomainKey`], [`HsmError::NoSuchRoot`], and what the root provider refused
    /// with.
    pub async fn import_domain_key(
        &self,
        id: DomainKeyId,
        secret: &ResealSecret,
        message: &[u8],
    ) -> Result<RootCopy, HsmError> {
        let root = self.root_of(secret.root())?;
        let key = {
            let opened = reseal::import(secret, id, message)?;
            self.slot(|arena| arena.copy_in(&opened))?
        };
        self.check_domain_key(id, &key)?;
        let copy = self.wrap(&root, id, &key).await?;
        self.domains.write().insert(id, Arc::new(key));
        Ok(copy)
    }

    // --- Backing keys.

    pub(crate) fn crypto(&self) -> Arc<dyn CryptoProvider> {
        Arc::clone(&self.crypto)
    }

    /// A fresh secret in locked memory.
    pub(crate) fn random_secret(&self, bytes: usize) -> Result<Secret, HsmError> {
        Ok(self.slot(|arena| arena.random(&*self.entropy, bytes))?)
    }

    /// Seals under an open domain key.
    pub(crate) fn seal_as(
        &self,
        domain: DomainKeyId,
        belongs: Belongs<'_>,
        plaintext: &[u8],
    ) -> Result<SealedToken, HsmError> {
        let sealer = self.domain(domain)?;
        token::seal(&*self.crypto, domain, &sealer, &self.salt(), belongs, plaintext)
    }

    /// Opens into locked memory.
    pub(crate) fn open_as(
        &self,
        sealed: &SealedToken,
        belongs: Belongs<'_>,
        bytes: usize,
    ) -> Result<Secret, HsmError> {
        let domain = sealed.domain_key_id().ok_or(HsmError::TokenFormat("unreadable"))?;
        let opener = self.domain(domain)?;
        let mut secret = self.slot(|arena| arena.zeroed(bytes))?;
        token::open(&*self.crypto, &opener, sealed, belongs, secret.expose_mut())?;
        Ok(secret)
    }

    fn salt(&self) -> [u8; SALT_BYTES] {
        let mut salt = [0; SALT_BYTES];
        self.entropy.fill(&mut salt);
        salt
    }

    /// Makes a material for a KMS key, sealed under an open domain key.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::RootAway`], [`HsmError::Arena`].
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

    pub(crate) fn open_token(
        &self,
        key: KeyId,
        material: KeyMaterialId,
        sealed: &SealedToken,
    ) -> Result<Secret, HsmError> {
        let belongs = Belongs::BackingKey(key, material);
        let secret = self.open_as(sealed, belongs, BACKING_KEY_BYTES)?;
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

    // --- Material for other Regions.

    /// Makes a Region's key pair for material that comes from other Regions: the public key, an uncompressed P-256
    /// point, and the private key, sealed under an open domain key.
    ///
    /// # Errors
    /// [`HsmError::DomainKeyNotOpen`], [`HsmError::RootAway`].
    pub fn generate_transfer_key(
        &self,
        domain: DomainKeyId,
    ) -> Result<(Vec<u8>, SealedToken), HsmError> {
        let (private, public) = transfer::key_pair(&*self.entropy);
        let sealed = self.seal_secret(domain, transfer::KEY_LABEL, &private)?;
        Ok((public, sealed))
    }

    /// Seals a material to another Region's public key, in a way that only the holder of `own` could have done. What
    /// `info` says has to be known to the receiver: who sends what to whom, and for what.
    ///
    /// # Errors
    /// As [`Hsm::unseal`] and [`Hsm::open_secret`]; [`HsmError::TransferKey`].
    pub fn export_material(
        &self,
        own: &SealedToken,
        to: &[u8],
        key: KeyId,
        material: KeyMaterialId,
        sealed: &SealedToken,
        info: &[u8],
    ) -> Result<Vec<u8>, HsmError> {
        let own = self.open_secret(own, transfer::KEY_LABEL)?;
        let secret = self.open_token(key, material, sealed)?;
        transfer::seal(&*self.entropy, own.expose(), to, info, secret.expose())
    }

    /// Opens a material that another Region sealed, and seals it under an open domain key of this one.
    ///
    /// # Errors
    /// [`HsmError::TransferDoesNotOpen`], [`HsmError::WrongMaterial`], [`HsmError::TransferKey`], and as
    /// [`Hsm::generate_backing_key`].
    #[allow(clippy::too_many_arguments, reason = "each is checked against what the sender said")]
    pub fn import_material(
        &self,
        own: &SealedToken,
        from: &[u8],
        key: KeyId,
        material: KeyMaterialId,
        message: &[u8],
        info: &[u8],
        domain: DomainKeyId,
    ) -> Result<SealedToken, HsmError> {
        let secret = {
            let own = self.open_secret(own, transfer::KEY_LABEL)?;
            let opened = transfer::open(own.expose(), from, info, message)?;
            if opened.len() != BACKING_KEY_BYTES {
                return Err(HsmError::WrongMaterial(material));
            }
            self.slot(|arena| arena.copy_in(&opened))?
        };
        if material_id(&*self.crypto, key, &secret) != material {
            return Err(HsmError::WrongMaterial(material));
        }
        let sealer = self.domain(domain)?;
        let belongs = Belongs::BackingKey(key, material);
        token::seal(&*self.crypto, domain, &sealer, &self.salt(), belongs, secret.expose())
    }

    // --- Messages.

    /// Encrypts 1 to 4096 bytes. See `docs/decisions/0002-ciphertext-format.md`.
    ///
    /// # Errors
    /// [`HsmError::Length`], [`HsmError::RootAway`].
    pub fn encrypt(
        &self,
        key: &BackingKey,
        plaintext: &[u8],
        context: &CanonicalContext,
    ) -> Result<Vec<u8>, HsmError> {
        self.admit()?;
        ciphertext::encrypt(&*self.crypto, key, &self.salt(), plaintext, context)
    }

    /// Decrypts a blob. Which of key, context and bits was wrong is not told.
    ///
    /// # Errors
    /// [`HsmError::InvalidCiphertext`], [`HsmError::RootAway`].
    pub fn decrypt(
        &self,
        key: &BackingKey,
        blob: &ParsedCiphertext<'_>,
        context: &CanonicalContext,
    ) -> Result<SecretVec, HsmError> {
        self.admit()?;
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
    use crate::root::MemoryRoot;
    use crate::testing::{SeededEntropy, block_on};

    fn hsm(seed: u64) -> Arc<Hsm> {
        let entropy = SeededEntropy::shared(seed);
        let root = MemoryRoot::new(&seed.to_be_bytes(), Arc::clone(&entropy), true).unwrap();
        let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
        let config = HsmConfig { cache_max_entries: 64, arena };
        Hsm::new(Arc::new(root), entropy, &config).unwrap()
    }

    #[test]
    fn a_copy_that_holds_another_key_or_a_longer_one_is_not_taken_for_the_domain_key() {
        let hsm = hsm(1);
        let claimed = DomainKeyId::new([9; 16]);
        for bytes in [DOMAIN_KEY_BYTES, DOMAIN_KEY_BYTES - 1, DOMAIN_KEY_BYTES + 1] {
            let impostor = hsm.arena.zeroed(bytes).unwrap();
            let sealed = block_on(hsm.root().wrap(&impostor, &wrap_aad(claimed))).unwrap();
            let copies = vec![RootCopy { root: hsm.root_id(), sealed }];
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
