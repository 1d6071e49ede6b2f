//! Roots of simulated machines: devices that may be slow, gone, or answer wrongly, and a node's record of its
//! own ([`SimRoots`]).

mod keeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::Entropy;
use keyward_hsm::{
    Arena, MemoryRoot, RootError, RootFuture, RootId, RootKind, RootProvider, Secret,
};
use parking_lot::Mutex;

use crate::runtime::World;

pub use keeper::{MayDie, SimRoots, recorded};

/// What a slow device takes for anything.
const SLOW: Duration = Duration::from_millis(500);

/// What probes are wrapped with (`crates/hsm/src/watch.rs`).
const PROBE: &[u8] = b"keyward root probe";

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers at once.
    Good,
    /// It answers after half a second.
    Slow,
    /// It cannot be reached.
    Gone,
    /// What it unwraps is not what was wrapped.
    Wrong,
}

#[derive(Clone, Copy, Debug)]
struct Device {
    mode: Mode,
    /// Since when it is so.
    since: Duration,
}

/// The devices that a machine's nodes have used, by name.
#[derive(Debug)]
pub struct Cabinet {
    world: Arc<World>,
    seed: Vec<u8>,
    devices: Mutex<BTreeMap<String, Device>>,
    /// When one of them last answered a probe rightly: the grace counts from there.
    answered: Mutex<Duration>,
}

impl Cabinet {
    /// The cabinet of a machine. The same seed and name, the same root.
    #[must_use]
    pub fn new(world: Arc<World>, seed: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { world, seed, devices: Mutex::default(), answered: Mutex::default() })
    }

    /// How a device is; one that nobody has used is good.
    fn device(&self, name: &str) -> Device {
        let unused = Device { mode: Mode::Good, since: Duration::ZERO };
        *self.devices.lock().entry(name.to_owned()).or_insert(unused)
    }

    /// Changes how a device is.
    pub fn set(&self, name: &str, mode: Mode) {
        let since = self.world.now();
        self.devices.lock().insert(name.to_owned(), Device { mode, since });
    }

    /// All devices are good again.
    pub fn repair(&self) {
        let names: Vec<String> = self.devices.lock().keys().cloned().collect();
        names.iter().for_each(|name| self.set(name, Mode::Good));
    }

    /// True if all devices have been good since then.
    #[must_use]
    pub fn good_since(&self, then: Duration) -> bool {
        let good = |device: &Device| device.mode == Mode::Good && device.since <= then;
        self.devices.lock().values().all(good)
    }

    /// When a device last answered a probe rightly.
    #[must_use]
    pub fn answered(&self) -> Duration {
        *self.answered.lock()
    }

    /// Opens a device, which makes its root if it has none. Which root it is can only be told by one that can be
    /// reached.
    fn open(
        self: &Arc<Self>,
        name: &str,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Arc<dyn RootProvider>, String> {
        if self.device(name).mode == Mode::Gone {
            return Err(format!("device {name} cannot be reached"));
        }
        let seed = [&self.seed, name.as_bytes()].concat();
        let inner = MemoryRoot::new(&seed, entropy, true).map_err(|e| e.to_string())?;
        let (cabinet, wrapped) = (Arc::clone(self), Mutex::default());
        Ok(Arc::new(SimRoot { cabinet, name: name.to_owned(), inner, wrapped }))
    }
}

/// What a device wrapped, and for what.
type Wrapped = (Vec<u8>, Vec<u8>);

/// A root in a device.
struct SimRoot {
    cabinet: Arc<Cabinet>,
    name: String,
    inner: MemoryRoot,
    /// The first two things that it wrapped: one that answers wrongly unwraps the other one.
    wrapped: Mutex<Vec<Wrapped>>,
}

impl SimRoot {
    /// Waits as long as the device takes. True: its answer is a right one.
    async fn ask(&self) -> Result<bool, RootError> {
        match self.cabinet.device(&self.name).mode {
            Mode::Good => Ok(true),
            Mode::Slow => {
                crate::sleep(SLOW).await;
                Ok(true)
            }
            Mode::Gone => Err(RootError::Away(self.name.clone())),
            Mode::Wrong => Ok(false),
        }
    }
}

impl RootProvider for SimRoot {
    fn wrap<'a>(&'a self, plaintext: &'a Secret, aad: &'a [u8]) -> RootFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let right = self.ask().await?;
            let mut sealed = self.inner.wrap(plaintext, aad).await?;
            if !right {
                sealed.reverse();
            } else if self.wrapped.lock().len() < 2 {
                self.wrapped.lock().push((sealed.clone(), aad.to_vec()));
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
            if self.ask().await? {
                let secret = self.inner.unwrap(sealed, aad, arena).await?;
                if aad.starts_with(PROBE) {
                    *self.cabinet.answered.lock() = self.cabinet.world.now();
                }
                return Ok(secret);
            }
            let other = self.wrapped.lock().iter().find(|(other, _)| other != sealed).cloned();
            match other {
                Some((other, aad)) => self.inner.unwrap(&other, &aad, arena).await,
                None => Err(RootError::DoesNotUnwrap(self.identity().clone())),
            }
        })
    }

    fn identity(&self) -> &RootId {
        self.inner.identity()
    }

    fn kind(&self) -> RootKind {
        self.inner.kind()
    }

    fn health(&self) -> RootFuture<'_, ()> {
        Box::pin(async move { self.ask().await.map(drop) })
    }
}
