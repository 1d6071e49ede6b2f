//! Whether the roots of this node still answer, and for how long keys are used when none does.
//!
//! A probe asks a root for its own health and then has it unwrap a value that it wrapped when the watch
//! began, so that a root that answers wrongly is noticed as one that does not answer. What follows from
//! it is in [`crate::Hsm::watch_roots`]; decision 0007 says why.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use keyward_env::{Entropy, Env};
use parking_lot::Mutex;

use crate::arena::{Arena, Secret};
use crate::error::RootError;
use crate::provider::{AES_256_KEY_BYTES, CryptoProvider, RingProvider};
use crate::root::{RootFuture, RootId, RootKind, RootProvider};

const PROBE_AAD: &[u8] = b"keyward root probe v1";
/// How much of a failure's text is kept.
const REASON_CHARS_MAX: usize = 300;

/// The clock and the timer that roots are watched and timed out with.
pub trait RootClock: Send + Sync + 'static {
    /// Time since boot on the clock that counts suspended time (`CLOCK_BOOTTIME`).
    fn boot_now(&self) -> Duration;

    /// Ends when that time is over.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The [`RootClock`] of an [`Env`]: real in the server, virtual in simulation.
#[derive(Clone, Debug)]
pub struct EnvClock<E>(E);

impl<E: Env> EnvClock<E> {
    /// The clock of that environment.
    #[must_use]
    pub fn shared(env: E) -> Arc<dyn RootClock> {
        Arc::new(Self(env))
    }
}

impl<E: Env> RootClock for EnvClock<E> {
    fn boot_now(&self) -> Duration {
        self.0.boot_now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let env = self.0.clone();
        Box::pin(async move { env.sleep(duration).await })
    }
}

/// How roots are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootWatchConfig {
    /// How long keys that are open are used after a root last answered a probe rightly.
    pub grace: Duration,
    /// Time between two rounds of probes.
    pub probe_interval: Duration,
    /// A probe that takes longer has failed. A root that is slower than usual and within this is healthy;
    /// [`RootHealth`] shows how long it took.
    pub probe_timeout: Duration,
    /// The longest that a caller waits for a root to wrap or unwrap a domain key.
    pub operation_timeout: Duration,
}

impl Default for RootWatchConfig {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(3600),
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(2),
            operation_timeout: Duration::from_secs(10),
        }
    }
}

/// What the last probe of a root found. Times are on the clock of [`RootClock::boot_now`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootHealth {
    /// Not probed yet, or not watched.
    Unknown,
    /// It answered rightly.
    Healthy {
        /// When the last answer came.
        last_good: Duration,
        /// How long it took.
        answered_in: Duration,
    },
    /// It did not answer, not in time, or wrongly.
    Failing {
        /// When the first probe failed.
        since: Duration,
        /// When it last answered rightly; `None`: not since the watch began.
        last_good: Option<Duration>,
        /// What the last probe failed with. Holds no secret.
        reason: String,
    },
}

impl RootHealth {
    /// When the root last answered rightly, as far as is known.
    #[must_use]
    pub const fn last_good(&self) -> Option<Duration> {
        match self {
            Self::Unknown => None,
            Self::Healthy { last_good, .. } => Some(*last_good),
            Self::Failing { last_good, .. } => *last_good,
        }
    }
}

/// A root of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootStatus {
    /// Which one.
    pub id: RootId,
    /// Its provider's kind.
    pub kind: RootKind,
    /// Whether it works.
    pub health: RootHealth,
}

/// Waits for a root at most for `limit`. What it was asked is given up then.
pub(crate) async fn within<T>(
    clock: &dyn RootClock,
    limit: Duration,
    future: impl Future<Output = Result<T, RootError>>,
) -> Result<T, RootError> {
    let (mut future, mut time_up) = (pin!(future), clock.sleep(limit));
    poll_fn(|context| {
        if let Poll::Ready(answer) = future.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        time_up.as_mut().poll(context).map(|()| Err(RootError::Timeout { limit }))
    })
    .await
}

/// A value that the root has to unwrap again and again.
struct Probe {
    value: Secret,
    sealed: Vec<u8>,
}

/// A root provider, and what is known about whether it works.
pub(crate) struct WatchedRoot {
    provider: Arc<dyn RootProvider>,
    probe: Mutex<Option<Arc<Probe>>>,
    /// One that it has wrapped, and has not been seen to open: the time was up before.
    tried: Mutex<Option<Arc<Probe>>>,
    health: Mutex<RootHealth>,
}

impl WatchedRoot {
    pub(crate) fn new(provider: Arc<dyn RootProvider>) -> Arc<Self> {
        let (probe, tried) = (Mutex::new(None), Mutex::new(None));
        Arc::new(Self { provider, probe, tried, health: Mutex::new(RootHealth::Unknown) })
    }

    pub(crate) fn provider(&self) -> &Arc<dyn RootProvider> {
        &self.provider
    }

    pub(crate) fn id(&self) -> &RootId {
        self.provider.identity()
    }

    pub(crate) fn is_failing(&self) -> bool {
        matches!(*self.health.lock(), RootHealth::Failing { .. })
    }

    pub(crate) fn health(&self) -> RootHealth {
        self.health.lock().clone()
    }

    pub(crate) fn status(&self) -> RootStatus {
        RootStatus {
            id: self.id().clone(),
            kind: self.provider.kind(),
            health: self.health.lock().clone(),
        }
    }

    /// Asks the root once and notes what came of it.
    pub(crate) async fn look(
        &self,
        clock: &dyn RootClock,
        limit: Duration,
        entropy: &dyn Entropy,
        arena: &Arc<Arena>,
    ) {
        let begin = clock.boot_now();
        let answer = within(clock, limit, self.ask(entropy, arena)).await;
        let now = clock.boot_now();
        let mut health = self.health.lock();
        let (since, last_good) = match &*health {
            RootHealth::Failing { since, last_good, .. } => (*since, *last_good),
            health => (now, health.last_good()),
        };
        *health = match answer {
            Ok(()) => {
                RootHealth::Healthy { last_good: now, answered_in: now.saturating_sub(begin) }
            }
            Err(error) => {
                let reason = error.to_string().chars().take(REASON_CHARS_MAX).collect();
                RootHealth::Failing { since, last_good, reason }
            }
        };
    }

    fn ask<'a>(&'a self, entropy: &'a dyn Entropy, arena: &'a Arc<Arena>) -> RootFuture<'a, ()> {
        Box::pin(async move {
            self.provider.health().await?;
            let known = self.probe.lock().clone().or_else(|| self.tried.lock().clone());
            let probe = match known {
                Some(probe) => probe,
                None => {
                    let value = arena.random(entropy, AES_256_KEY_BYTES)?;
                    let sealed = self.provider.wrap(&value, PROBE_AAD).await?;
                    let probe = Arc::new(Probe { value, sealed });
                    // The first probe asks once more than the others. A slow root that this takes too long for is asked
                    // to open the same one next time.
                    *self.tried.lock() = Some(Arc::clone(&probe));
                    probe
                }
            };
            let answer = self.provider.unwrap(&probe.sealed, PROBE_AAD, arena).await;
            *self.tried.lock() = None;
            let opened = answer?;
            if !RingProvider.equal(opened.expose(), probe.value.expose()) {
                return Err(RootError::WrongAnswer(self.id().clone()));
            }
            // Kept only now: a root that could not open it has not shown yet which one it is.
            *self.probe.lock() = Some(probe);
            Ok(())
        })
    }
}
