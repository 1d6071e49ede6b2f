//! The runtime that simulated nodes run on: one thread, virtual time, and a seed that decides.
//!
//! * The next task is drawn by the seed from those that are ready. Time jumps when none is.
//! * A task belongs to a [`Group`]: a process, which is one boot of a node, or the harness. What a task
//!   spawns belongs to its group.
//! * A process lives on a `Clock` of its own rate and offset. `Instant::now`, sleeps and
//!   timeouts in its tasks are on that clock.
//! * A process can be frozen (none of its tasks is polled; its clock goes on) and killed (its tasks are
//!   dropped; from then on it spawns nothing).
//! * Every poll and every event goes into a running hash, so that two runs can be compared.
//!
//! openraft's `AsyncRuntime` is made of static functions, so the world is reached through a thread-local
//! that [`World::run`] installs.

mod clock;
mod executor;
mod join;
mod state;
mod time;
mod world;

use std::future::Future;
use std::io;
use std::time::Duration;

use openraft_rt::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::SimWatch;
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use clock::{Clock, ClockId};
pub use join::{Cut, JoinHandle};
pub use time::{Elapsed, SimInstant, Sleep, Timeout};
pub use world::{Group, HARNESS, World};

/// openraft's runtime, in simulation.
#[derive(Debug)]
pub struct SimRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = Cut;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = ChaCha8Rng;
    type Mpsc = TokioMpsc;
    // tokio's own wakes its waiters in an order that the seed does not decide.
    type Watch = SimWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        executor::with(|world| world.spawn(future))
    }

    fn sleep(duration: Duration) -> Sleep {
        Sleep::after(duration)
    }

    fn sleep_until(deadline: SimInstant) -> Sleep {
        Sleep::until(deadline)
    }

    fn timeout<R, F>(duration: Duration, future: F) -> Timeout<F>
    where
        F: Future<Output = R> + OptionalSend,
    {
        Timeout::new(future, Sleep::after(duration))
    }

    fn timeout_at<R, F>(deadline: SimInstant, future: F) -> Timeout<F>
    where
        F: Future<Output = R> + OptionalSend,
    {
        Timeout::new(future, Sleep::until(deadline))
    }

    fn is_panic(_: &Cut) -> bool {
        // A task that panicked is reported by the world; for whoever waits it is gone like any other.
        false
    }

    fn thread_rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(executor::with(|world| world.draw()))
    }

    fn new(_threads: usize) -> Self {
        Self
    }

    /// A world of its own, of seed 0. Simulated runs use [`World::run`].
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        World::new(0, 0).run(future)
    }

    /// Refuses: a node's blocking work goes through its `Env`.
    fn spawn_blocking<F, T>(_: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
