//! What the tests of this crate share.

use std::sync::Arc;

use keyward_env::Entropy;
use parking_lot::Mutex;

use crate::arena::{Arena, ArenaConfig};

/// Repeatable bytes: SHA-256 in counter mode over a seed. For tests only.
pub(crate) struct SeededEntropy(Mutex<(u64, u64)>);

impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new((seed, 0)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        let mut state = self.0.lock();
        for chunk in bytes.chunks_mut(32) {
            let input = [state.0.to_le_bytes(), state.1.to_le_bytes()].concat();
            let block = ring::digest::digest(&ring::digest::SHA256, &input);
            chunk.copy_from_slice(&block.as_ref()[..chunk.len()]);
            state.1 += 1;
        }
    }
}

/// An arena that every machine lets a test have.
pub(crate) fn small_arena() -> Arc<Arena> {
    Arena::new(&ArenaConfig { bytes: crate::arena::ARENA_BYTES_MIN, allow_unlocked: true })
        .expect("64 KiB of memory")
}
