//! What a program needs to use Keyward from Rust.
//!
//! * [`Client`]: calls over mutual TLS to any node of a Region, another one when the first is away.
//! * [`DataPlane`]: the same for programs that make thousands of calls a second, on streams.
//! * [`RegionalClient`]: uses of multi-Region keys, in whichever Region answers.
//! * [`DataKeyCache`]: data keys that are used again, within limits.
//! * [`esdk`]: envelope encryption of streams of any size, in the AWS Encryption SDK's message format.
//!
//! **Invariant:** this crate knows nothing of the server's internals. What it shares with the server is
//! the vocabulary (`keyward-model`) and the contract (`keyward-proto`).

mod connection;
mod data_keys;
mod data_plane;
pub mod esdk;
mod failover;

pub use connection::{CallError, Client, ClientConfig, ConfigError, Repeat};
pub use data_keys::{CacheLimits, Context, DataKey, DataKeyCache};
pub use data_plane::DataPlane;
pub use failover::{FailoverConfig, RegionalClient, in_any_region};
