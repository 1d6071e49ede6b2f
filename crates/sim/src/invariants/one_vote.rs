//! **One vote a term**: a node never writes a vote that is behind one that it has written, through crashes and
//! lying disks. (A vote is a term and a candidate; within a term openraft allows a node to go on to a
//! candidate of a higher id, never back.)

use std::collections::BTreeMap;

use keyward_model::NodeId;
use keyward_state::{Store, Table, codec};

use crate::book::Book;
use crate::cluster::Cluster;

/// Where the log keeps the vote (`crates/raft/src/log_store.rs`).
const LAST_VOTE: &[u8] = b"vote";

/// Term, candidate, and whether a majority has voted so.
type Vote = ((u64, NodeId), bool);

#[derive(Debug, Default)]
struct Votes {
    highest: Vote,
    last: Option<Vote>,
    /// The disk was known to lie at the last look.
    lied: bool,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct OneVote {
    nodes: BTreeMap<NodeId, Votes>,
}

impl OneVote {
    pub(super) fn look(&mut self, cluster: &Cluster, book: &mut Book) {
        for index in cluster.machines() {
            let node = cluster.id(index);
            let Ok(row) = cluster.log_store(index).get(Table::LogMeta, LAST_VOTE) else { continue };
            let vote: Option<Vote> = match row.map(|row| codec::decode(&row)).transpose() {
                Ok(vote) => vote,
                Err(error) => {
                    book.violate(format!("THE VOTE of node {node} cannot be read: {error}"));
                    continue;
                }
            };
            let votes = self.nodes.entry(node).or_default();
            // Another disk shows another vote; it is the next one that must not be written on it.
            let swapped = cluster.lies(index) != votes.lied;
            votes.lied = cluster.lies(index);
            if vote == votes.last || swapped {
                votes.last = vote;
                continue;
            }
            votes.last = vote;
            let Some(vote) = vote else { continue };
            if vote < votes.highest {
                let before = votes.highest;
                book.violate(format!("A SECOND VOTE: node {node} voted {vote:?} after {before:?}"));
            }
            votes.highest = votes.highest.max(vote);
        }
    }
}
