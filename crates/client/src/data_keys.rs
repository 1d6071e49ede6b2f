//! A cache of data keys: many messages under one of them, within limits of age, number and bytes (AWS Encryption SDK
//! developer guide, "Data key caching"). Fewer calls, and a service that is away for a moment is not noticed; the price is
//! that disabling a key is noticed only when what is cached has aged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::connection::CallError;

/// What a cached data key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// From when it was made.
    pub age_max: Duration,
    /// Messages encrypted under it.
    pub messages_max: u64,
    /// Bytes encrypted under it.
    pub bytes_max: u64,
    /// Data keys kept; the one that was made first makes room.
    pub entries_max: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(300),
            messages_max: 1 << 20,
            bytes_max: 1 << 40,
            entries_max: 1000,
        }
    }
}

/// A data key, in clear and encrypted. Wiped on drop.
pub struct DataKey {
    plaintext: Zeroizing<Vec<u8>>,
    encrypted: Vec<u8>,
}

impl DataKey {
    /// Takes both over.
    #[must_use]
    pub fn new(plaintext: Vec<u8>, encrypted: Vec<u8>) -> Self {
        Self { plaintext: Zeroizing::new(plaintext), encrypted }
    }

    /// In clear.
    #[must_use]
    pub fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }

    /// Encrypted: goes with the message.
    #[must_use]
    pub fn encrypted(&self) -> &[u8] {
        &self.encrypted
    }
}

/// An encryption context.
pub type Context = BTreeMap<String, String>;

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
enum Slot {
    /// For encrypting: by key and context.
    Sealing(String, Context),
    /// For decrypting: by what was encrypted, and context.
    Opening(Vec<u8>, Context),
}

struct Entry {
    key: Arc<DataKey>,
    made: Duration,
    messages: u64,
    bytes: u64,
}

/// Data keys that are used again. Cheap to share.
pub struct DataKeyCache {
    limits: CacheLimits,
    entries: Mutex<BTreeMap<Slot, Entry>>,
}

impl DataKeyCache {
    /// An empty one.
    #[must_use]
    pub fn new(limits: CacheLimits) -> Self {
        Self { limits, entries: Mutex::default() }
    }

    /// A data key to encrypt a message of so many bytes under: a cached one within its limits, or what `make` makes. A
    /// message that is larger than the limit gets a key of its own.
    ///
    /// # Errors
    /// What `make` fails with.
    pub async fn to_encrypt<Fut>(
        &self,
        key_id: &str,
        context: &Context,
        bytes: u64,
        make: impl FnOnce() -> Fut,
    ) -> Result<Arc<DataKey>, CallError>
    where
        Fut: Future<Output = Result<DataKey, CallError>>,
    {
        let slot = Slot::Sealing(key_id.to_owned(), context.clone());
        if let Some(key) = self.cached(&slot, bytes, RealEnv.boot_now()) {
            return Ok(key);
        }
        let key = Arc::new(make().await?);
        self.keep(slot, &key, 1, bytes, RealEnv.boot_now());
        Ok(key)
    }

    /// The data key that a message came with: cached, or what `open` opens.
    ///
    /// # Errors
    /// What `open` fails with.
    pub async fn to_decrypt<Fut>(
        &self,
        encrypted: &[u8],
        context: &Context,
        open: impl FnOnce() -> Fut,
    ) -> Result<Arc<DataKey>, CallError>
    where
        Fut: Future<Output = Result<Vec<u8>, CallError>>,
    {
        let slot = Slot::Opening(encrypted.to_vec(), context.clone());
        let now = RealEnv.boot_now();
        let kept = self
            .entries
            .lock()
            .get(&slot)
            .filter(|e| self.is_young(e, now))
            .map(|e| Arc::clone(&e.key));
        if let Some(key) = kept {
            return Ok(key);
        }
        let key = Arc::new(DataKey::new(open().await?, encrypted.to_vec()));
        self.keep(slot, &key, 0, 0, RealEnv.boot_now());
        Ok(key)
    }

    /// Forgets all, as when a key was disabled.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }

    fn is_young(&self, entry: &Entry, now: Duration) -> bool {
        now.saturating_sub(entry.made) < self.limits.age_max
    }

    fn cached(&self, slot: &Slot, bytes: u64, now: Duration) -> Option<Arc<DataKey>> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(slot)?;
        let fits = self.is_young(entry, now)
            && entry.messages < self.limits.messages_max
            && entry.bytes.saturating_add(bytes) <= self.limits.bytes_max;
        if !fits {
            entries.remove(slot);
            return None;
        }
        entry.messages += 1;
        entry.bytes += bytes;
        Some(Arc::clone(&entry.key))
    }

    fn keep(&self, slot: Slot, key: &Arc<DataKey>, messages: u64, bytes: u64, now: Duration) {
        if self.limits.entries_max == 0 || bytes > self.limits.bytes_max {
            return;
        }
        let mut entries = self.entries.lock();
        entries.retain(|_, entry| self.is_young(entry, now));
        while entries.len() >= self.limits.entries_max {
            let oldest =
                entries.iter().min_by_key(|(_, entry)| entry.made).map(|(slot, _)| slot.clone());
            let Some(oldest) = oldest else { break };
            entries.remove(&oldest);
        }
        entries.insert(slot, Entry { key: Arc::clone(key), made: now, messages, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(limits: CacheLimits) -> (DataKeyCache, Slot) {
        let cache = DataKeyCache::new(limits);
        let slot = Slot::Sealing("k".to_owned(), Context::new());
        let key = Arc::new(DataKey::new(vec![1; 32], vec![2]));
        cache.keep(slot.clone(), &key, 1, 10, Duration::ZERO);
        (cache, slot)
    }

    #[test]
    fn a_data_key_is_used_within_its_limits_and_no_further() {
        let limits = CacheLimits {
            age_max: Duration::from_secs(10),
            messages_max: 3,
            bytes_max: 100,
            entries_max: 2,
        };
        let at = Duration::from_secs;
        let (by_age, slot) = cache(limits);
        assert!(by_age.cached(&slot, 1, at(9)).is_some());
        assert!(by_age.cached(&slot, 1, at(10)).is_none());
        let (by_number, slot) = cache(limits);
        assert!(by_number.cached(&slot, 1, at(1)).is_some());
        assert!(by_number.cached(&slot, 1, at(1)).is_some());
        assert!(by_number.cached(&slot, 1, at(1)).is_none(), "the fourth message");
        let (by_bytes, slot) = cache(limits);
        assert!(by_bytes.cached(&slot, 90, at(1)).is_some());
        assert!(by_bytes.cached(&slot, 1, at(1)).is_none(), "byte 101");
        let (full, slot) = cache(limits);
        for number in 1..=2u8 {
            let key = Arc::new(DataKey::new(vec![number; 32], vec![number]));
            let context = Context::from([("n".to_owned(), number.to_string())]);
            full.keep(Slot::Sealing("k".to_owned(), context), &key, 1, 1, at(1));
        }
        assert!(full.cached(&slot, 1, at(2)).is_none(), "the first one made room");
        assert_eq!(full.entries.lock().len(), 2);
        full.clear();
        assert!(full.entries.lock().is_empty());
    }
}
