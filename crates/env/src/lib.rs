//! The seams between Keyward and the world: clocks, entropy, the async runtime, spawning, blocking
//! work. The shipped node is generic over [`Env`]; production runs on [`RealEnv`], the simulator on one
//! of its own, where a seed decides everything.
//!
//! **Invariant:** this is the only crate that reads a clock, draws from the operating system's
//! randomness or spawns (`clippy.toml` holds it). It has no knowledge of keys.

pub mod sabotage;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub use openraft_rt::{AsyncRuntime, Instant, OptionalSend, Select2};

/// A source of random bytes fit for key material.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`. Aborts the process when the operating system has no randomness to give: there is
    /// no safe way on.
    fn fill(&self, bytes: &mut [u8]);
}

/// What a process uses of its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all its threads since it started.
    pub cpu: Duration,
    /// Its memory in RAM, in bytes.
    pub resident_bytes: u64,
}

/// Everything that a node asks of the world it runs in.
pub trait Env: Clone + Debug + Send + Sync + 'static {
    /// The async runtime: spawn, sleep, timeout and channels.
    type Runtime: AsyncRuntime;

    /// Time since boot on the clock that counts suspended time (`CLOCK_BOOTTIME`). Lease deadlines are
    /// points on it. It may run at a slightly wrong rate; it never jumps.
    fn boot_now(&self) -> Duration;

    /// The wall clock, in milliseconds since the Unix epoch. It may jump; nothing that protects a key
    /// rests on it alone.
    fn wall_now_ms(&self) -> i64;

    /// What this process has used so far. Nothing, where a process is not one node.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// The source of randomness.
    fn entropy(&self) -> Arc<dyn Entropy>;

    /// Runs work that may block (disk, HSM) off the async threads.
    fn blocking<T, F>(&self, work: F) -> impl Future<Output = T> + Send
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static;

    /// Starts a task that nobody waits for.
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(Self::Runtime::spawn(future));
    }

    /// Waits. The duration is measured on the runtime's own clock.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send {
        Self::Runtime::sleep(duration)
    }

    /// Waits for `future` at most for `duration`; `None` means that the time was up first.
    fn timeout<F>(
        &self,
        duration: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F: Future + Send,
        F::Output: Send,
    {
        async move { Self::Runtime::timeout(duration, future).await.ok() }
    }
}

/// Randomness from the operating system, through `ring`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        use ring::rand::SecureRandom;
        #[expect(clippy::disallowed_methods, reason = "this is the seam")]
        let random = ring::rand::SystemRandom::new();
        if random.fill(bytes).is_err() {
            // Without randomness every further key would be guessable.
            std::process::abort();
        }
    }
}

/// How far the process's wall clock is put wrong, in milliseconds.
static SKEW_MS: AtomicI64 = AtomicI64::new(0);

/// Puts this process's wall clock wrong by so many milliseconds, for rehearsals.
pub fn skew_wall_clock(milliseconds: i64) {
    SKEW_MS.store(milliseconds, Ordering::Relaxed);
}

/// The real world: tokio, the operating system's clocks and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealEnv;

impl Env for RealEnv {
    type Runtime = openraft_rt_tokio::TokioRuntime;

    fn boot_now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    fn wall_now_ms(&self) -> i64 {
        // Through the C library, so that tools which shift a process's clock work.
        #[expect(clippy::disallowed_methods, reason = "this is the seam")]
        let now = std::time::SystemTime::now();
        let real = match now.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        real.saturating_add(SKEW_MS.load(Ordering::Relaxed))
    }

    fn usage(&self) -> Usage {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        // The second number is pages in RAM (proc_pid_statm(5)). A file of the kernel's: reading it does not block.
        let resident = std::fs::read_to_string("/proc/self/statm").ok();
        let pages = resident.and_then(|all| all.split(' ').nth(1)?.parse::<u64>().ok());
        Usage {
            cpu: Duration::new(cpu.tv_sec.unsigned_abs(), u32::try_from(cpu.tv_nsec).unwrap_or(0)),
            resident_bytes: pages.unwrap_or(0) * rustix::param::page_size() as u64,
        }
    }

    fn entropy(&self) -> Arc<dyn Entropy> {
        Arc::new(OsEntropy)
    }

    fn blocking<T, F>(&self, work: F) -> impl Future<Output = T> + Send
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "this is the seam")]
        let task = tokio::task::spawn_blocking(work);
        async move {
            match task.await {
                Ok(value) => value,
                // The runtime is going down, and this task with it.
                Err(error) if error.is_cancelled() => std::future::pending().await,
                // A panic in blocking work is a bug; it goes on in the caller rather than vanish.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}

impl RealEnv {
    /// Blocks this thread: for threads that keep a pace finer than the millisecond of the runtime's timers.
    pub fn block_for(&self, duration: Duration) {
        #[expect(clippy::disallowed_methods, reason = "this is the seam")]
        std::thread::sleep(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_and_entropy_differs() {
        let env = RealEnv;
        let (boot, wall) = (env.boot_now(), env.wall_now_ms());
        assert!(env.boot_now() >= boot);
        assert!(wall > 1_700_000_000_000);
        let (mut a, mut b) = ([0u8; 32], [0u8; 32]);
        env.entropy().fill(&mut a);
        env.entropy().fill(&mut b);
        assert_ne!(a, b);
    }
}
