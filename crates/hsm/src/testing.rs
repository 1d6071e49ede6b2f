//! For tests and simulation: a root whose faults can be switched. (And what this crate's own unit tests
//! share.)

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;

use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::root::{RootFuture, RootId, RootKind, RootProvider};
use crate::watch::RootClock;

#[cfg(test)]
pub(crate) use self::shared::{SeededEntropy, block_on, small_arena};

/// What a [`FaultyRoot`] does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootFault {
    /// Nothing.
    #[default]
    None,
    /// It answers every call with [`RootError::Away`].
    Gone,
    /// It answers rightly, and that much later.
    Slow(Duration),
    /// It never answers.
    Hangs,
    /// It answers with other bytes than it should: what it wraps does not open, what it unwraps is another
    /// key.
    Wrong,
}

/// A root provider around another one, with faults that can be switched at any time. **For tests and
/// simulation only.**
pub struct FaultyRoot {
    inner: Arc<dyn RootProvider>,
    clock: Arc<dyn RootClock>,
    fault: Mutex<RootFault>,
}

impl FaultyRoot {
    /// A root that does what `inner` does, until told otherwise. `clock` is what slow answers wait on.
    #[must_use]
    pub fn new(inner: Arc<dyn RootProvider>, clock: Arc<dyn RootClock>) -> Arc<Self> {
        Arc::new(Self { inner, clock, fault: Mutex::default() })
    }

    /// Switches to a fault, or to none, for calls that begin from now on.
    pub fn set(&self, fault: RootFault) {
        *self.fault.lock() = fault;
    }

    /// Waits or fails as told. True: the answer is to be wrong.
    async fn suffer(&self) -> Result<bool, RootError> {
        let fault = *self.fault.lock();
        match fault {
            RootFault::None => {}
            RootFault::Gone => return Err(RootError::Away("switched off by a test".to_owned())),
            RootFault::Slow(delay) => self.clock.sleep(delay).await,
            RootFault::Hangs => std::future::pending().await,
            RootFault::Wrong => return Ok(true),
        }
        Ok(false)
    }
}

impl RootProvider for FaultyRoot {
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let wrong = self.suffer().await?;
            let mut sealed = self.inner.wrap(plaintext, aad).await?;
            if wrong && let Some(last) = sealed.last_mut() {
                *last ^= 1;
            }
            Ok(sealed)
        })
    }

    fn unwrap<'a>(
        &'a self,
        sealed: &'a [u8],
        aad: &'a [u8],
        arena: &'a Arc<Arena>,
    ) -> RootFuture<'a, Secret> {
        Box::pin(async move {
            let wrong = self.suffer().await?;
            let mut secret = self.inner.unwrap(sealed, aad, arena).await?;
            if wrong {
                secret.expose_mut()[0] ^= 1;
            }
            Ok(secret)
        })
    }

    fn identity(&self) -> &RootId {
        self.inner.identity()
    }

    fn kind(&self) -> RootKind {
        self.inner.kind()
    }

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move {
            self.suffer().await?;
            self.inner.health().await
        })
    }
}

/// A clock that stands still until a test moves it. Its sleeps wake nobody: poll them again.
#[derive(Clone, Default)]
pub struct ManualClock(Arc<Mutex<Duration>>);

impl ManualClock {
    /// Moves on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl RootClock for ManualClock {
    fn boot_now(&self) -> Duration {
        *self.0.lock()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (clock, end) = (self.clone(), self.boot_now() + duration);
        Box::pin(poll_fn(
            move |_| {
                if clock.boot_now() >= end { Poll::Ready(()) } else { Poll::Pending }
            },
        ))
    }
}

#[cfg(test)]
mod shared {
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
        Arena::new(&ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true })
            .unwrap()
    }

    /// Runs a future that never waits.
    pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the future waits for something"),
        }
    }
}
