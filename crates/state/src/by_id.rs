//! Keys by their ids: what every call looks up.
//!
//! A trie of 64 branches: among a million keys four steps, where a balanced tree takes twenty, each to memory that is in no
//! cache. It has no order; listing goes by an index of its own.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use keyward_model::KeyId;
use rpds::HashTrieMapSync;

use crate::rows::Key;

/// Keys by their ids.
pub(crate) type KeysById = HashTrieMapSync<KeyId, Arc<Key>, OwnBits>;

/// No keys.
pub(crate) fn no_keys() -> KeysById {
    KeysById::new_with_hasher_and_ptr_kind(OwnBits)
}

/// Ids are random: their own bits are hash enough, and the same in each run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnBits;

impl BuildHasher for OwnBits {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(0)
    }
}

/// Eight bytes at a time, one on the other.
pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..piece.len()].copy_from_slice(piece);
            self.0 = self.0.rotate_left(1) ^ u64::from_le_bytes(eight);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Ids that differ in their random bits only, as all do.
    fn id(number: u64) -> KeyId {
        let mut bytes = [0; 16];
        // Spread by the multiplier of a linear congruential generator, as random bits are.
        let spread = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes[..8].copy_from_slice(&spread.to_be_bytes());
        bytes[8..].copy_from_slice(&spread.rotate_left(32).wrapping_mul(number | 1).to_be_bytes());
        KeyId::from_random(bytes)
    }

    #[test]
    fn ids_spread_over_all_branches() {
        let hashes: Vec<u64> = (0..100_000).map(|n| OwnBits.hash_one(id(n))).collect();
        assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), hashes.len());
        // The first three steps down, six bits each: no branch has twice its part.
        for shift in [0, 6, 12] {
            let mut branches = [0; 64];
            hashes.iter().for_each(|hash| branches[(hash >> shift & 63) as usize] += 1);
            assert!(branches.iter().all(|many| (800..3200).contains(many)), "{branches:?}");
        }
    }
}
