//! Consensus of a Region's nodes, and the serving leases on top of it.
//!
//! openraft runs over two [`Store`](keyward_state::Store)s (log and state apart: a checkpoint of the
//! state must not carry a vote) and any [`Transport`]. [`Node`] is what the layers above see: the state
//! that a call may be decided on ([`Node::admit`]), and commands that are acknowledged once no node can
//! serve anything older ([`Node::propose`]).
//!
//! **Invariant:** nothing here knows what a key is. Commands are applied by `crates/state`; messages of
//! the layer above pass through as bytes. Leases are granted, fenced and excused in one place
//! (`lease.rs`).

mod disk;
mod lease;
mod log_store;
mod machine;
mod messages;
mod network;
mod node;
mod recover;
mod region_time;
mod restore;
mod rocks;
mod types;

/// What the lock-free cells are made of. `tests/loom.rs` puts loom's in its place.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

pub use lease::RHO_PERCENT;
pub use machine::Visible;
pub use messages::{BoxFuture, Member, NodeStatus, ProposeError, Transport, TransportError};
pub use node::{Node, NodeConfig, NotServing, PeerApp, SnapshotPace, StartError};
pub use openraft::impls::BasicNode;
pub use recover::{Survey, ask_status, go_on_alone, survey};
pub use region_time::CLOCK_OFF_MAX_MS;
pub use restore::{LookBehind, Standing, found_again, left_behind, standing_of};
pub use rocks::RocksStore;
pub use types::LeaderId;
