//! The types that openraft is configured with.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use keyward_env::Env;
use keyward_model::NodeId;
use keyward_state::{Checkpoint, Envelope, Install, Outcome};
use openraft::impls::{
    BasicNode, Entry, EntryPayload, InlineBatch, OneshotResponder, leader_id_adv,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A leader's whole id: term and node. openraft allows two leaders in one term number; this tells them
/// apart ("term" in DESIGN section 5).
pub type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;

/// The place of an entry in the log, with its author.
pub type LogId = openraft::LogId<LeaderId>;

/// A configuration and where it stands in the log.
pub type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, BasicNode>;

/// A configuration: voters (two sets while changing) and every node with its address.
pub type Membership = openraft::Membership<NodeId, BasicNode>;

/// openraft over Keyward's commands, on the runtime of an [`Env`].
pub struct TypeConfig<E>(PhantomData<fn() -> E>);

macro_rules! marker_impls {
    ($($trait:ident: $body:item)+) => { $(impl<E> $trait for TypeConfig<E> { $body })+ };
}

marker_impls! {
    Clone: fn clone(&self) -> Self { *self }
    Default: fn default() -> Self { Self(PhantomData) }
    PartialEq: fn eq(&self, _: &Self) -> bool { true }
    PartialOrd: fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
    Ord: fn cmp(&self, _: &Self) -> std::cmp::Ordering { std::cmp::Ordering::Equal }
}

impl<E> Copy for TypeConfig<E> {}
impl<E> Eq for TypeConfig<E> {}

impl<E> fmt::Debug for TypeConfig<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

/// A command in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal(pub Box<Envelope>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content may be long, and is nobody's business in a log line.
        write!(f, "command at {}", self.0.time.0)
    }
}

/// What applying an entry led to; none for entries that are not commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied(pub Option<Outcome>);

impl<E: Env> openraft::RaftTypeConfig for TypeConfig<E> {
    type D = Proposal;
    type R = Applied;
    type NodeId = NodeId;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<LeaderId>;
    type Payload = EntryPayload<Proposal, NodeId, BasicNode>;
    type Entry = Entry<LeaderId, Self::Payload>;
    type AsyncRuntime = E::Runtime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

/// An entry of the log.
pub type LogEntry<E> = <TypeConfig<E> as openraft::RaftTypeConfig>::Entry;
/// A vote, granted or won.
pub type Vote = openraft::impls::Vote<LeaderId>;

/// A snapshot on its way: one of this node's, or one that was received and is not yet installed.
#[derive(Clone)]
pub enum SnapshotData {
    /// Frozen here.
    Local(Arc<dyn Checkpoint>),
    /// Received from a leader; taken once.
    Received(Arc<Mutex<Option<Box<dyn Install>>>>),
}
