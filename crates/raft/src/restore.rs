//! A Region that begins anew out of a backup: stores of a first node whose state was put there row by row, and what old
//! stores tell.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use keyward_env::Env;
use keyward_model::{KeyId, NodeId};
use keyward_state::{Batch, Command, Moment, Store, Table, codec};
use openraft::impls::{BasicNode, EntryPayload};

use crate::log_store::{IDENTITY, LAST_VOTE, PURGED};
use crate::machine::{APPLIED, Position};
use crate::node::Node;
use crate::rocks::read_left_behind;
use crate::types::{LogEntry, Membership, StoredMembership, Vote};

/// Where rows of a state stand in their Region's log, and who was a member there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The last change that is in them.
    pub applied: u64,
    /// The members, and where they were.
    pub members: BTreeMap<NodeId, String>,
}

fn position(bytes: Option<Vec<u8>>) -> io::Result<Position> {
    match bytes {
        Some(bytes) => codec::decode(&bytes).map_err(io::Error::other),
        None => Ok((None, StoredMembership::default())),
    }
}

fn standing(position: &Position) -> Standing {
    let nodes = position.1.membership().nodes();
    Standing {
        applied: position.0.map_or(0, |id| id.index),
        members: nodes.map(|(id, node)| (*id, node.addr.clone())).collect(),
    }
}

/// Says where the rows of a state store stand.
///
/// # Errors
/// A row that cannot be read.
pub fn standing_of(state: &dyn Store) -> io::Result<Standing> {
    position(state.get(Table::Meta, APPLIED)?).map(|position| standing(&position))
}

/// Makes `node`, reached at `address`, the only voter of a Region whose state is in `state`, with an empty log behind it,
/// in one write each. Both are synced.
///
/// # Errors
/// The disk's; rows without a place in a log.
pub fn found_again(
    log: &dyn Store,
    state: &dyn Store,
    node: NodeId,
    address: &str,
) -> io::Result<()> {
    let (applied, _) = position(state.get(Table::Meta, APPLIED)?)?;
    let applied = applied.ok_or_else(|| io::Error::other("the rows have no place in a log"))?;
    let nodes = BTreeMap::from([(node, BasicNode::new(address))]);
    let membership =
        Membership::new(vec![BTreeSet::from([node])], nodes).map_err(io::Error::other)?;
    let place: Position = (Some(applied), StoredMembership::new(Some(applied), membership));
    let mut batch = Batch::default();
    batch.put(Table::Meta, APPLIED, codec::encode(&place));
    state.write(batch, true)?;
    let mut batch = Batch::default();
    batch.put(Table::LogMeta, IDENTITY, codec::encode(&node));
    batch.put(Table::LogMeta, PURGED, codec::encode(&applied));
    let term = applied.leader_id.term + 1;
    batch.put(Table::LogMeta, LAST_VOTE, codec::encode(&Vote::new(term, node)));
    log.write(batch, true)
}

/// Sees the rows that a node left behind, and the keys that its log deletes beyond them.
pub type LookBehind<'a> = &'a mut dyn FnMut(&dyn Moment, &BTreeSet<KeyId>) -> io::Result<()>;

/// Looks at the stores in the data folder of a node that does not run, and leaves them as they are. `look` sees the
/// state's rows, and which keys the log deletes beyond them: whether those deletions were acknowledged cannot be told from
/// one log alone.
///
/// # Errors
/// Stores that cannot be read, and what `look` fails with.
pub fn left_behind<E: Env>(data: &Path, look: LookBehind<'_>) -> io::Result<()> {
    let mut applied = 0;
    let state = data.join("state");
    read_left_behind(&state, &[Table::Meta], &mut |rows| {
        applied = standing(&position(rows.get(Table::Meta, APPLIED)?)?).applied;
        Ok(())
    })?;
    let mut deleted = BTreeSet::new();
    read_left_behind(&data.join("log"), &Table::LOG, &mut |rows| {
        rows.scan(Table::Log, &mut |_, bytes| {
            let entry: LogEntry<E> = codec::decode(bytes).map_err(io::Error::other)?;
            if entry.log_id.index > applied
                && let EntryPayload::Normal(proposal) = &entry.payload
                && let Command::DeleteKey { key, .. } = &proposal.0.command
            {
                deleted.insert(*key);
            }
            Ok(())
        })
    })?;
    read_left_behind(&state, &Table::STATE, &mut |rows| look(rows, &deleted))
}

impl<E: Env> Node<E> {
    /// Reads this node's rows as they are at one moment, off the async threads. `read` is told where they stand in the log.
    /// Deleted keys are not purged from this node's disk before it returns: it waits for nobody.
    ///
    /// # Errors
    /// The store's, and what `read` fails with.
    pub fn read_at_one_moment<T, F>(
        &self,
        read: F,
    ) -> impl Future<Output = io::Result<T>> + Send + use<T, F, E>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Moment, &Standing) -> io::Result<T> + Send + 'static,
    {
        let env = self.env().clone();
        let store = self.state_store();
        let blocking = move || {
            let (mut read, mut result) = (Some(read), None);
            store.at_one_moment(&mut |rows| {
                let stands = standing(&position(rows.get(Table::Meta, APPLIED)?)?);
                if let Some(read) = read.take() {
                    result = Some(read(rows, &stands)?);
                }
                Ok(())
            })?;
            result.ok_or_else(|| io::Error::other("the store showed nothing"))
        };
        async move { env.blocking(blocking).await }
    }
}
