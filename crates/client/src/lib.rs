//! What a program needs to use Keyward from Rust.
//!
//! * [`Client`]: calls over mutual TLS to any node of a Region, another one when the first is away.
//! * [`DataPlane`]: the same for programs that make thousands of calls a second, on streams.
//! * [`esdk`]: envelope encryption of streams of any size, in the AWS Encryption SDK's message format.
//!
//! **Invariant:** this crate knows nothing of the server's internals. What it shares with the server is
//! the vocabulary (`keyward-model`) and the contract (`keyward-proto`).

mod connection;
mod data_plane;
pub mod esdk;

pub use connection::{CallError, Client, ClientConfig, ConfigError, Repeat};
pub use data_plane::DataPlane;
