//! What the unit tests share.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use keyward_env::Entropy;

use crate::arena::{ARENA_BYTES_MIN, Arena, ArenaConfig};

/// Randomness from a seed: SHA-256 of seed and counter.
pub(crate) struct SeededEntropy {
    seed: u64,
    counter: AtomicU64,
}

impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, counter: AtomicU64::new(0) }
    }

    pub(crate) fn shared(seed: u64) -> Arc<dyn Entropy> {
        Arc::new(Self::new(seed))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let counter = self.counter.fetch_add(1, Ordering::Relaxed);
            let input = [self.seed.to_be_bytes(), counter.to_be_bytes()].concat();
            let digest = ring::digest::digest(&ring::digest::SHA256, &input);
            chunk.copy_from_slice(&digest.as_ref()[..chunk.len()]);
        }
    }
}

/// An arena of 1,024 slots. It may go unlocked where the tests' own limit is used up: they run many at
/// once.
pub(crate) fn small_arena() -> Arc<Arena> {
    Arena::new(&ArenaConfig { bytes: ARENA_BYTES_MIN, allow_unlocked: true }).unwrap()
}

/// Runs a future that never waits.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits for something"),
    }
}
