//! What a node is started with, why it does not start, and how openraft is set up for it.

use std::io;
use std::sync::Arc;

use keyward_env::sabotage::{Bug, on};
use keyward_model::NodeId;
use keyward_state::Timers;
use openraft::{Config, SnapshotPolicy};

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id, unique for ever in the Region.
    pub node: NodeId,
    /// Where its peers reach it, `host:port`.
    pub address: String,
    /// Raft and lease timers; must be the Region's own.
    pub timers: Timers,
    /// How often the state is frozen, so that the log can be shortened.
    pub snapshots: SnapshotPace,
}

/// How often a node makes a snapshot of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPace {
    /// Entries between two.
    pub every: u64,
    /// Entries that stay in the log behind one: a node that was away for a moment then needs no snapshot.
    pub kept: u64,
}

impl Default for SnapshotPace {
    /// A log of 10,000 entries is replayed in well under a second.
    fn default() -> Self {
        Self { every: 10_000, kept: 2_000 }
    }
}

impl NodeConfig {
    /// A node with the usual pace of snapshots.
    #[must_use]
    pub fn new(node: NodeId, address: String, timers: Timers) -> Self {
        Self { node, address, timers, snapshots: SnapshotPace::default() }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A disk, or what is on it.
    #[error("the data folder cannot be used: {0}")]
    Storage(#[from] io::Error),
    /// The folder belongs to somebody else.
    #[error(
        "the data folder belongs to node {found}, and this is node {expected}: name the right folder, \
         or an empty one"
    )]
    ForeignFolder {
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// Mixed timers could serve stale answers.
    #[error(
        "the Region's timers are {region:?}, and this node is configured with {local:?}: use the Region's"
    )]
    Timers {
        /// What the Region runs with.
        region: Timers,
        /// What the node was given.
        local: Timers,
    },
    /// This node was refused for good, in an earlier start or this one.
    #[error("this node may not take part any more: {0}")]
    Condemned(String),
    /// The state has lost what the log no longer holds.
    #[error(
        "the folder `state` ends at entry {applied}, and the folder `log` begins after entry {purged}: files of \
         `state` are missing or damaged. Remove this node (`keyward cluster remove`), empty its data folder, and \
         have it join under a new id (`keyward cluster invite`)"
    )]
    StateBehind {
        /// The last entry that the state has applied.
        applied: u64,
        /// The last entry that the log has purged.
        purged: u64,
    },
    /// openraft said no.
    #[error("consensus did not start: {0}")]
    Raft(String),
}
/// A value of an openraft enum that its crate does not export, by its name.
fn by_name<T: serde::de::DeserializeOwned>(name: &'static str) -> Result<T, StartError> {
    use serde::de::IntoDeserializer;
    let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        name.into_deserializer();
    T::deserialize(name).map_err(|e| StartError::Raft(e.to_string()))
}

/// openraft's own settings, where the defaults would not do.
pub(super) fn raft_config(timers: Timers, pace: SnapshotPace) -> Result<Arc<Config>, StartError> {
    let config = Config {
        cluster_name: "keyward".to_owned(),
        heartbeat_interval: timers.heartbeat_ms,
        election_timeout_min: timers.election_ms_min,
        election_timeout_max: timers.election_ms_max,
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected anew (rule 4).
        enable_leader_restore: Some(on(Bug::LeaderRestore)),
        // Switched on once this node may stand (rule 6).
        enable_elect: false,
        // Hand-overs leave only when we send them (rule 6).
        removed_leader_step_down: by_name("Never")?,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(pace.every),
        max_in_snapshot_log_to_keep: pace.kept,
        purge_batch_size: pace.kept.clamp(1, 256),
        install_snapshot_timeout: 120_000,
        backoff: "100ms".to_owned(),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| StartError::Raft(e.to_string()))
}
