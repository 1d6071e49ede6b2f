//! Deterministic simulation of a Region: the shipped service, leases, Raft and storage code of three
//! nodes on one thread, in virtual time, with everything that can go wrong drawn from one seed.
//!
//! Simulated is everything from `service` down to the key-value store, over a message-level network. Doors,
//! TLS and RocksDB are not; they are tested as processes. `docs/simulation.md` tells more.
//!
//! **Invariant:** the same seed gives the same run, step for step, in any process. Nothing here or below
//! reads a real clock, draws from the operating system or iterates in a random order.

pub mod book;
mod chase;
pub mod client;
pub mod cluster;
pub mod counters;
pub mod dice;
mod ending;
pub mod env;
pub mod faults;
pub mod invariants;
mod metered;
mod misuse;
pub mod network;
pub mod plan;
pub mod regions;
pub mod roots;
pub mod runtime;
mod scenario;
mod scenes;
mod shrink;
mod streams;
pub mod trail;
pub mod walls;

use std::future::Future;
use std::time::Duration;

use openraft_rt::AsyncRuntime;

pub use counters::Counters;
pub use faults::Spared;
pub use scenario::{Options, Outcome, run};
pub use scenes::Scene;
pub use shrink::{Shrunken, shrink};

use runtime::SimRuntime;

/// Waits, on the clock of whoever asks.
pub(crate) async fn sleep(duration: Duration) {
    SimRuntime::sleep(duration).await;
}

/// Waits at most for `duration`.
pub(crate) async fn timeout<F>(duration: Duration, future: F) -> Option<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    SimRuntime::timeout(duration, future).await.ok()
}
