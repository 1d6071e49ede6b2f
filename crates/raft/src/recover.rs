//! A lost majority: one survivor goes on alone. What the lost majority had acknowledged, and the survivor has
//! not received, is lost; so this is an operator's decision, made with the node stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{NodeId, Timestamp};
use keyward_state::{Batch, Store, Table, codec};
use openraft::entry::RaftEntry;
use openraft::impls::BasicNode;
use serde::{Deserialize, Serialize};

use crate::log_store::{LAST_VOTE, RECOVERY, log_key};
use crate::machine;
use crate::messages::{NodeStatus, PeerRequest, PeerResponse, Transport};
use crate::types::{LeaderId, LogEntry, LogId, Membership, Vote};

/// What a stopped node's disks say.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Every node of the last configuration, and whether it votes.
    pub members: BTreeMap<NodeId, (String, bool)>,
    /// The last entry in the log, and its term.
    pub last: (u64, u64),
    /// The last entry that is applied.
    pub applied: u64,
    /// The latest Region time that it has.
    pub time: Timestamp,
    /// Keys that it has.
    pub keys: usize,
    vote: u64,
}

/// What a recovery leaves on the disk, until it is in the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// Names the history that begins.
    pub(crate) history: [u8; 16],
    /// The nodes that are given up, and where they were.
    pub(crate) lost: BTreeMap<NodeId, String>,
}

/// Looks at a stopped node's two stores.
pub fn survey<E: Env>(log: &dyn Store, state: &dyn Store) -> io::Result<Survey> {
    let (loaded, (applied, stored)) = machine::load(state)?;
    let mut membership: Membership = stored.membership().clone();
    let mut last: Option<LogId> = applied;
    log.scan(Table::Log, &mut |_, bytes| {
        let entry: LogEntry<E> = codec::decode(bytes).map_err(io::Error::other)?;
        if last.is_none_or(|last| entry.log_id.index > last.index) {
            last = Some(entry.log_id);
        }
        if let Some(newer) = entry.get_membership() {
            membership = newer;
        }
        Ok(())
    })?;
    let vote: Option<Vote> = match log.get(Table::LogMeta, LAST_VOTE)? {
        Some(bytes) => Some(codec::decode(&bytes).map_err(io::Error::other)?),
        None => None,
    };
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    Ok(Survey {
        members: membership
            .nodes()
            .map(|(node, basic)| (*node, (basic.addr.clone(), voters.contains(node))))
            .collect(),
        last: last.map_or((0, 0), |id| (id.index, id.leader_id.term)),
        applied: applied.map_or(0, |id| id.index),
        time: loaded.time,
        keys: loaded.key_count(),
        vote: vote.map_or(0, |vote| vote.leader_id().term),
    })
}

/// Makes `me` the only member, in one write. Entries that it has and that were not known to be committed take
/// effect.
pub fn go_on_alone<E: Env>(
    log: &dyn Store,
    survey: &Survey,
    me: NodeId,
    history: [u8; 16],
) -> io::Result<()> {
    let (address, _) = survey
        .members
        .get(&me)
        .ok_or_else(|| io::Error::other(format!("node {me} is not a member of its Region")))?;
    let leader = LeaderId { term: survey.vote.max(survey.last.1) + 1, node_id: me };
    let index = survey.last.0 + 1;
    let nodes = BTreeMap::from([(me, BasicNode::new(address.clone()))]);
    let membership =
        Membership::new(vec![BTreeSet::from([me])], nodes).map_err(io::Error::other)?;
    let entry: LogEntry<E> =
        RaftEntry::new_membership(LogId { leader_id: leader, index }, membership);
    let lost = survey
        .members
        .iter()
        .filter(|(node, _)| **node != me)
        .map(|(node, (address, _))| (*node, address.clone()))
        .collect();
    let mut batch = Batch::default();
    batch.put(Table::Log, log_key(index), codec::encode(&entry));
    batch.put(Table::LogMeta, LAST_VOTE, codec::encode(&Vote::new(leader.term, me)));
    batch.put(Table::LogMeta, RECOVERY, codec::encode(&Recovery { history, lost }));
    log.write(batch, true)
}

/// Asks a node how it is, without a node of one's own.
pub async fn ask_status<E: Env>(
    transport: &dyn Transport,
    node: NodeId,
    address: &str,
    patience: Duration,
) -> Option<NodeStatus> {
    let body = codec::encode(&PeerRequest::<E>::Status);
    let answer = transport.call(node, &BasicNode::new(address), body, patience).await.ok()?;
    match codec::decode::<PeerResponse<E>>(&answer).ok()? {
        PeerResponse::Status(status) => Some(*status),
        _ => None,
    }
}
