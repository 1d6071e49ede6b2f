//! A simulated node's world: its own clock, disk latency and entropy.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{AsyncRuntime, Entropy, Env};
use parking_lot::Mutex;

use crate::dice::{Dice, Stream};
use crate::runtime::{ClockId, SimRuntime, World};
use crate::walls::Walls;

/// Entropy that the seed decides.
pub struct SimEntropy {
    dice: Mutex<Dice>,
    drawn: Drawn,
}

/// What nodes drew for keys: 32 bytes at once.
pub type Drawn = Arc<Mutex<Vec<[u8; 32]>>>;

impl SimEntropy {
    /// The entropy of one boot of a node.
    #[must_use]
    pub fn new(seed: u64, node: u32, boot: u32, drawn: Drawn) -> Arc<Self> {
        Arc::new(Self { dice: Mutex::new(Dice::new(seed, Stream::Entropy(node, boot))), drawn })
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.dice.lock().fill(bytes);
        if let Ok(key) = <&[u8; 32]>::try_from(&*bytes) {
            self.drawn.lock().push(*key);
        }
    }
}

/// The seams of one boot of a node.
#[derive(Clone)]
pub struct SimEnv(Arc<Seams>);

struct Seams {
    world: Arc<World>,
    clock: ClockId,
    walls: Arc<Walls>,
    machine: usize,
    entropy: Arc<SimEntropy>,
}

impl fmt::Debug for SimEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimEnv({:?})", self.0.clock)
    }
}

impl SimEnv {
    /// The seams of a boot of that machine, on its clock.
    #[must_use]
    pub fn new(
        world: Arc<World>,
        clock: ClockId,
        (walls, machine): (Arc<Walls>, usize),
        entropy: Arc<SimEntropy>,
    ) -> Self {
        Self(Arc::new(Seams { world, clock, walls, machine, entropy }))
    }

    /// What a disk does with one piece of work: how long before it takes effect, how long after.
    fn disk_latency(&self) -> (Duration, Duration) {
        self.0.world.throw(|dice| {
            let latency = match dice.below(100) {
                0 => dice.between_ms(15, 25),
                1..=9 => dice.between_ms(2, 3),
                _ => Duration::from_micros(100 + dice.below(900)),
            };
            if dice.permille(500) { (latency, Duration::ZERO) } else { (Duration::ZERO, latency) }
        })
    }
}

impl Env for SimEnv {
    type Runtime = SimRuntime;

    fn boot_now(&self) -> Duration {
        self.0.world.boot_now(self.0.clock)
    }

    fn wall_now_ms(&self) -> i64 {
        self.0.walls.now_ms(self.0.machine)
    }

    fn entropy(&self) -> Arc<dyn Entropy> {
        Arc::clone(&self.0.entropy) as Arc<dyn Entropy>
    }

    /// Runs the work inline, after or before the time that a disk takes. As with threads, work that was
    /// handed over happens though nobody waits for it any more, unless the process dies first.
    fn blocking<T, F>(&self, work: F) -> impl Future<Output = T> + Send
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (before, after) = self.disk_latency();
        let task = SimRuntime::spawn(async move {
            if !before.is_zero() {
                SimRuntime::sleep(before).await;
            }
            let value = work();
            if !after.is_zero() {
                SimRuntime::sleep(after).await;
            }
            value
        });
        async move {
            match task.await {
                Ok(value) => value,
                // The process is being killed: nobody will poll this again.
                Err(_) => std::future::pending().await,
            }
        }
    }
}
