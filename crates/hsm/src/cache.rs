//! Unsealed backing keys, bounded. Sharded, so that calls on different keys do not meet; eviction by a
//! clock hand: a use sets a bit, the hand clears it, and takes the first key whose bit is clear.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_model::KeyMaterialId;
use parking_lot::RwLock;

use crate::material::BackingKey;

/// Shards: more than a node has cores, so that two calls seldom meet in one.
const SHARDS: usize = 16;

/// A shard and its counters, which are apart as well, or every call of every core would write to one
/// cache line.
#[derive(Default)]
struct Slot {
    shard: RwLock<Shard>,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Shard {
    keys: BTreeMap<KeyMaterialId, Arc<BackingKey>>,
    /// Where the clock hand stands.
    hand: Option<KeyMaterialId>,
}

pub(crate) struct Cache {
    slots: [Slot; SHARDS],
    per_shard_max: usize,
}

/// What the cache has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Keys unsealed now.
    pub keys: usize,
    /// Uses of a key that was unsealed already.
    pub hits: u64,
    /// Uses of a key that had to be unsealed first.
    pub misses: u64,
    /// Keys that made room for others.
    pub evictions: u64,
}

impl Cache {
    /// Holds at most `entries` keys, rounded down to whole shards, and at least one a shard.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            per_shard_max: (entries / SHARDS).max(1),
        }
    }

    /// Material ids are the output of a PRF: their first byte spreads evenly.
    fn slot(&self, material: &KeyMaterialId) -> &Slot {
        &self.slots[usize::from(material.bytes()[0]) % SHARDS]
    }

    pub(crate) fn get(&self, material: &KeyMaterialId) -> Option<Arc<BackingKey>> {
        let slot = self.slot(material);
        let found = slot.shard.read().keys.get(material).cloned();
        let counter = if found.is_some() { &slot.hits } else { &slot.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(key) = &found {
            key.used.store(true, Ordering::Relaxed);
        }
        found
    }

    /// Puts a key in. When another call was faster, its key stays and is returned.
    pub(crate) fn insert(&self, key: BackingKey) -> Arc<BackingKey> {
        let material = key.material_id();
        let slot = self.slot(&material);
        let mut shard = slot.shard.write();
        if let Some(present) = shard.keys.get(&material) {
            return Arc::clone(present);
        }
        while shard.keys.len() >= self.per_shard_max {
            shard.evict_one();
            slot.evictions.fetch_add(1, Ordering::Relaxed);
        }
        let key = Arc::new(key);
        shard.keys.insert(material, Arc::clone(&key));
        key
    }

    /// Makes room when the arena is full, whatever the limit says. False: there is nothing to evict.
    pub(crate) fn make_room(&self) -> bool {
        let counted = self.slots.iter().map(|slot| (slot.shard.read().keys.len(), slot));
        let Some((keys, fullest)) = counted.max_by_key(|(keys, _)| *keys) else { return false };
        let mut shard = fullest.shard.write();
        if !shard.keys.is_empty() {
            shard.evict_one();
            fullest.evictions.fetch_add(1, Ordering::Relaxed);
        }
        // When the shard was emptied since it was counted, others made the room: worth another try.
        keys > 0
    }

    pub(crate) fn remove(&self, material: &KeyMaterialId) {
        self.slot(material).shard.write().keys.remove(material);
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let mut stats = CacheStats::default();
        for slot in &self.slots {
            stats.keys += slot.shard.read().keys.len();
            stats.hits += slot.hits.load(Ordering::Relaxed);
            stats.misses += slot.misses.load(Ordering::Relaxed);
            stats.evictions += slot.evictions.load(Ordering::Relaxed);
        }
        stats
    }
}

impl Shard {
    /// Moves the hand until it meets a key that was not used since it last came by. Two rounds suffice:
    /// the first one clears every bit.
    fn evict_one(&mut self) {
        for _ in 0..=2 * self.keys.len() {
            let next = match self.hand {
                Some(hand) => {
                    let after = (std::ops::Bound::Excluded(hand), std::ops::Bound::Unbounded);
                    self.keys.range(after).next().or_else(|| self.keys.iter().next())
                }
                None => self.keys.iter().next(),
            };
            let Some((material, key)) = next else { return };
            let material = *material;
            self.hand = Some(material);
            if !key.used.swap(false, Ordering::Relaxed) {
                self.keys.remove(&material);
                return;
            }
        }
        // Every key was used again while the hand went round: take the one it points at.
        if let Some(hand) = self.hand {
            self.keys.remove(&hand);
        }
    }
}

#[cfg(test)]
mod tests {
    use keyward_model::KeyId;

    use super::*;
    use crate::testing::{SeededEntropy, small_arena};

    fn key(arena: &Arc<crate::arena::Arena>, number: u8) -> BackingKey {
        let secret = arena.random(&SeededEntropy::new(1), 32).unwrap();
        // One shard: the first byte is the same.
        let mut id = [0; 32];
        id[1] = number;
        BackingKey::new(KeyId::from_random([0; 16]), KeyMaterialId::new(id), secret)
    }

    #[test]
    fn a_full_shard_gives_up_a_key_that_was_not_used_lately() {
        let arena = small_arena();
        let cache = Cache::new(4 * SHARDS);
        let ids: Vec<_> = (0..4).map(|n| cache.insert(key(&arena, n)).material_id()).collect();
        // The first insertion over the limit clears all bits and takes one; from then on used keys stay.
        cache.insert(key(&arena, 4));
        let survivor = ids[2];
        for n in 5..40 {
            assert!(cache.get(&survivor).is_some(), "a key in use was evicted at {n}");
            cache.insert(key(&arena, n));
        }
        assert_eq!(cache.stats().keys, 4);
        assert_eq!(cache.stats().evictions, 36);
    }

    #[test]
    fn evicted_keys_give_their_slots_back() {
        let arena = small_arena();
        let free = arena.slots_free();
        let cache = Cache::new(SHARDS);
        for n in 0..50 {
            cache.insert(key(&arena, n));
        }
        assert_eq!(arena.slots_free(), free - 1);
        assert!(cache.make_room());
        assert!(!cache.make_room());
        assert_eq!(arena.slots_free(), free);
    }
}
