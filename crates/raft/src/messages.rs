//! What nodes say to each other. A transport carries the bytes and vouches for the sender.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::NodeId;
use keyward_state::{DiskMark, Envelope, Outcome};
use openraft::impls::BasicNode;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::disk::Confirmation;
use crate::types::{LeaderId, LogId, StoredMembership, TypeConfig, Vote};

/// A message to a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum PeerRequest<E: Env> {
    /// Entries and heartbeats.
    Append {
        /// openraft's request.
        rpc: AppendEntriesRequest<TypeConfig<E>>,
        /// The counter on the leader's disk.
        told: DiskMark,
    },
    /// Asks for a vote.
    Vote(VoteRequest<TypeConfig<E>>),
    /// Asks whether a vote would be granted.
    PreVote(VoteRequest<TypeConfig<E>>),
    /// The leader asks the receiver to stand at once.
    TransferLeader(TransferLeaderRequest<TypeConfig<E>>),
    /// A piece of a snapshot. The first piece begins the transfer.
    SnapshotPiece {
        /// Chosen by the sender; one transfer at a time is received.
        transfer: u64,
        /// Which piece of the transfer, from 0 on. Only the next one is taken.
        number: u64,
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// All pieces were sent: install.
    SnapshotDone {
        /// The transfer.
        transfer: u64,
        /// How many pieces it had.
        pieces: u64,
        /// The leader's vote.
        vote: Vote,
        /// The last entry that the snapshot covers.
        last_log_id: Option<LogId>,
        /// The configuration at that point.
        membership: StoredMembership,
    },
    /// A node asks the leader for a serving lease.
    Lease(LeaseRequest),
    /// The leader says: not before this index.
    Fence {
        /// Who says it.
        leader: LeaderId,
        /// The index of the change.
        index: u64,
    },
    /// A command for the leader to propose and fence.
    Propose {
        /// The command.
        envelope: Box<Envelope>,
        /// How long the sender will wait, in milliseconds.
        patience_ms: u64,
    },
    /// The leader has looked at the counter that the receiver's disk had at its start: it may take part.
    Vouch {
        /// The start that is vouched for.
        boot: u64,
        /// Everybody's counters.
        counters: Vec<(NodeId, DiskMark)>,
        /// What the leader has committed.
        committed: u64,
    },
    /// The receiver's disk has forgotten what it acknowledged, or its Region went on without it: it may not
    /// take part any more.
    Condemn {
        /// The start that is meant.
        boot: u64,
        /// Why, and what to do.
        why: String,
    },
    /// The Region went on without the receiver (`recover.rs`): it may not take part any more.
    Banish {
        /// Why, and what to do.
        why: String,
    },
    /// A node that has started asks whether its disk is the one it last ran with.
    Confirm {
        /// This start, and the counter that the disk had then.
        found: DiskMark,
    },
    /// Asks how the node is.
    Status,
    /// Something for the layer above.
    App(Vec<u8>),
}

/// A node's wish to serve for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Drawn anew at each start of the asking node.
    pub boot: u64,
    /// The asking node's clock when it asked, to notice clocks that run wrong.
    pub clock_ns: u64,
    /// The asking node's wall clock, in milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// The counter on its disk, as far as it is synced.
    pub counter: u64,
}

/// The leader's permission to serve for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who grants.
    pub leader: LeaderId,
    /// Echo of the request.
    pub boot: u64,
    /// The index that the leader has applied: not before it.
    pub fence: u64,
    /// How long, in nanoseconds, from before the request was sent.
    pub duration_ns: u64,
    /// Region time at the leader, in milliseconds since the Unix epoch; none before it is anchored.
    pub region_ms: Option<i64>,
    /// Everybody's counters, as the leader knows them.
    pub counters: Vec<(NodeId, DiskMark)>,
}

/// A peer's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum PeerResponse<E: Env> {
    /// To Append.
    Append {
        /// openraft's answer.
        response: AppendEntriesResponse<TypeConfig<E>>,
        /// The counter on the disk that holds the entries now.
        told: DiskMark,
    },
    /// To Vote and PreVote.
    Vote(VoteResponse<TypeConfig<E>>),
    /// To SnapshotDone.
    Snapshot(SnapshotResponse<TypeConfig<E>>),
    /// To messages without an answer of their own.
    Ok,
    /// To messages of a leader, from a node that has started and is not proved yet.
    Unproved {
        /// Its start, and the counter that its disk had then.
        found: DiskMark,
    },
    /// To Confirm.
    Confirmed(Confirmation),
    /// To Lease.
    Lease(Result<Grant, String>),
    /// To Propose.
    Proposed(Result<Outcome, ProposeError>),
    /// To Status.
    Status(Box<NodeStatus>),
    /// To App.
    App(Vec<u8>),
    /// The node could not do it, and why.
    Failed(String),
}

/// Why a command was not acknowledged here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed: another node leads, or none.
    #[error("this node does not lead")]
    NotLeader,
    /// The command was proposed and may take effect; ask again under the same id.
    #[error("the command was proposed, and its outcome is not known yet")]
    Unknown,
}

/// How a node is, as it tells its peers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub node: NodeId,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Index of the last entry in its log.
    pub last_log: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// Index of the last entry applied, visible to calls.
    pub applied: u64,
    /// `leader`, `follower` or `none`.
    pub lease: String,
    /// What the lease has left, in milliseconds.
    pub lease_ms: u64,
    /// The fence: it serves nothing older.
    pub fence: u64,
    /// How far its wall clock is off the median, in milliseconds, as the leader sees it. Only a leader
    /// knows it, of everybody.
    pub clocks_off_ms: Vec<(NodeId, i64)>,
    /// Up to which deletion its disks hold nothing of deleted keys any more.
    pub purged: u64,
    /// The build's version.
    pub version: String,
    /// User and system time of its process so far, in microseconds.
    pub cpu_us: u64,
    /// Memory of its process in RAM.
    pub resident_bytes: u64,
}

/// Every node of the cluster and its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Where its door is.
    pub address: String,
    /// Votes, or only follows.
    pub voter: bool,
}

/// Why a message did not get through.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing went out: no connection.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The receiver.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// It may have arrived; no answer came.
    #[error("node {node} did not answer: {reason}")]
    NoAnswer {
        /// The receiver.
        node: NodeId,
        /// Why.
        reason: String,
    },
}

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Carries messages between nodes: tonic over mutual TLS in production, a seeded network in simulation.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message and waits for its answer at most `patience`.
    fn call(
        &self,
        target: NodeId,
        node: &BasicNode,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>>;
}
