//! The Raft log: on disk through one writer that syncs in groups, the latest entries in memory as well. An
//! entry is acknowledged only after the sync that covers it.
//!
//! This is also where leases learn first what happens: a won election shows as this node's own first
//! entry, a lost one as a vote, a configuration as an entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{KeyId, NodeId};
use keyward_state::{Batch, DiskMark, Store, Table, codec};
use openraft::entry::RaftEntry;
use openraft::impls::EntryPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::lease::Keeper;
use crate::recover::Recovery;
use crate::types::{LeaderId, LogEntry, LogId, Membership, StoredMembership, TypeConfig, Vote};

/// The vote.
pub(crate) const LAST_VOTE: &[u8] = b"vote";
/// The last entry that is no longer in the log.
pub(crate) const PURGED: &[u8] = b"purged";
/// Up to which deletion this node's disks hold nothing of deleted keys.
const PURGED_OF_KEYS: &[u8] = b"purged_of_keys";
/// Raised with every write to the log (`disk.rs`).
const COUNTER: &[u8] = b"counter";
/// Everybody's counters as this node knew them lately.
const KNOWN_COUNTERS: &[u8] = b"known_counters";
/// Why this node may not take part any more.
const CONDEMNED: &[u8] = b"condemned";
/// A recovery that is not in the state yet.
pub(crate) const RECOVERY: &[u8] = b"recovery";
/// Whose log this is.
pub(crate) const IDENTITY: &[u8] = b"identity";

/// Writes that wait for the writer at most; openraft sends few at a time.
const WRITES_WAITING_MAX: usize = 1024;
/// Appends that one sync covers at most.
const GROUP_MAX: usize = 256;

/// Entries kept in memory. openraft does not purge what a node that is away has still to be sent, so the log
/// can grow for as long as one is down: on disk, not in memory.
const ENTRIES_IN_MEMORY_MAX: usize = 20_000;

struct Cache<E: Env> {
    /// The latest entries, without a gap up to the last one.
    entries: BTreeMap<u64, LogEntry<E>>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The configuration in force when the entries in memory name no later one: of the last snapshot, of the applied
    /// state, or of an entry that left memory.
    base: StoredMembership,
}

/// The configuration that an entry names, if it does.
fn configuration<E: Env>(entry: &LogEntry<E>) -> Option<StoredMembership> {
    Some(StoredMembership::new(Some(entry.log_id), entry.get_membership()?))
}

fn index_of(membership: &StoredMembership) -> Option<u64> {
    membership.log_id().as_ref().map(|id| id.index)
}

impl<E: Env> Cache<E> {
    /// Drops the oldest entries from memory. Only what is on disk, and applied: that is never truncated.
    fn shrink(&mut self, written: u64, applied: u64) {
        while self.entries.len() > ENTRIES_IN_MEMORY_MAX
            && let Some(oldest) = self.entries.first_entry()
            && *oldest.key() <= written.min(applied)
        {
            let membership = configuration::<E>(&oldest.remove());
            self.applied(membership);
        }
    }

    /// Takes over a configuration that was applied. Entries from before a snapshot may leave memory after it was taken
    /// over, and what they name is over by then.
    fn applied(&mut self, membership: Option<StoredMembership>) {
        if let Some(membership) = membership.filter(|m| index_of(m) >= index_of(&self.base)) {
            self.base = membership;
        }
    }

    /// The last configuration, committed or not.
    fn effective(&self) -> Membership {
        let last = self.entries.values().rev().find_map(configuration::<E>);
        let last = last.filter(|last| index_of(last) > index_of(&self.base));
        last.as_ref().unwrap_or(&self.base).membership().clone()
    }
}

enum Done<E: Env> {
    Append(IOFlushed<TypeConfig<E>>),
    Other(oneshot::Sender<io::Result<()>>),
}

struct Write<E: Env> {
    batch: Batch,
    /// Index of the last entry in it.
    last: Option<u64>,
    done: Done<E>,
}

/// The log of one node.
pub struct LogStore<E: Env> {
    me: NodeId,
    env: E,
    keeper: Arc<Keeper>,
    cache: Arc<Mutex<Cache<E>>>,
    store: Arc<dyn Store>,
    /// Index of the last entry that the writer has put on disk.
    written: Arc<AtomicU64>,
    purged_of_keys: Arc<AtomicU64>,
    /// Synced.
    counter: Arc<AtomicU64>,
    writer: mpsc::Sender<Write<E>>,
}

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> Self {
        Self {
            me: self.me,
            env: self.env.clone(),
            keeper: Arc::clone(&self.keeper),
            cache: Arc::clone(&self.cache),
            store: Arc::clone(&self.store),
            written: Arc::clone(&self.written),
            purged_of_keys: Arc::clone(&self.purged_of_keys),
            counter: Arc::clone(&self.counter),
            writer: self.writer.clone(),
        }
    }
}

pub(crate) fn log_key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

fn damaged(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("log store, {what}: {error}"))
}

impl<E: Env> LogStore<E> {
    /// Reads the log that `store` holds and starts its writer. `base` is the configuration that the
    /// state machine has applied.
    ///
    /// Its counter is raised only while `proved`: a lying disk that counted on would in time have caught up with
    /// what others remember, and pass for a good one after the next start.
    pub(crate) fn open(
        me: NodeId,
        env: E,
        store: Arc<dyn Store>,
        keeper: Arc<Keeper>,
        base: StoredMembership,
        proved: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let read = |key: &[u8]| store.get(Table::LogMeta, key);
        let vote = match read(LAST_VOTE)? {
            Some(bytes) => Some(codec::decode(&bytes).map_err(|e| damaged("vote", e))?),
            None => None,
        };
        let purged = match read(PURGED)? {
            Some(bytes) => Some(codec::decode(&bytes).map_err(|e| damaged("purged", e))?),
            None => None,
        };
        let counter = match read(COUNTER)? {
            Some(bytes) => codec::decode(&bytes).map_err(|e| damaged("counter", e))?,
            None => 0,
        };
        let counter = Arc::new(AtomicU64::new(counter));
        let purged_of_keys = match read(PURGED_OF_KEYS)? {
            Some(bytes) => codec::decode(&bytes).map_err(|e| damaged("purged of keys", e))?,
            None => 0,
        };
        let mut entries = BTreeMap::new();
        let mut expected: Option<u64> = purged.as_ref().map(|id: &LogId| id.index + 1);
        store.scan(Table::Log, &mut |_, bytes| {
            let entry: LogEntry<E> = codec::decode(bytes).map_err(|e| damaged("an entry", e))?;
            let index = entry.log_id.index;
            // Rows below the purge mark may be left over from a purge that was not synced.
            if purged.as_ref().is_some_and(|id: &LogId| index <= id.index) {
                return Ok(());
            }
            if expected.is_some_and(|expected| expected != index) {
                return Err(damaged("entries", format!("a gap before index {index}")));
            }
            expected = Some(index + 1);
            entries.insert(index, entry);
            Ok(())
        })?;
        let cache = Arc::new(Mutex::new(Cache { entries, vote, purged, base }));
        let (writer, writes) = mpsc::channel(WRITES_WAITING_MAX);
        let written = Arc::new(AtomicU64::new(expected.map_or(0, |next| next.saturating_sub(1))));
        let marks = Marks { written: Arc::clone(&written), counter: Arc::clone(&counter), proved };
        env.spawn(write_in_groups(env.clone(), Arc::clone(&store), writes, marks));
        let purged_of_keys = Arc::new(AtomicU64::new(purged_of_keys));
        let log = Self { me, env, keeper, cache, store, written, purged_of_keys, counter, writer };
        log.tell_configuration();
        Ok(log)
    }

    /// The state machine took over a snapshot: its configuration counts where the log names no later one.
    pub(crate) fn rebase(&self, base: StoredMembership) {
        self.cache.lock().applied(Some(base));
        self.tell_configuration();
    }

    fn tell_configuration(&self) {
        let cache = self.cache.lock();
        self.keeper.configured(cache.effective());
    }

    /// Index of the last entry that was purged.
    pub(crate) fn purged_index(&self) -> Option<u64> {
        self.cache.lock().purged.map(|id| id.index)
    }

    /// The end of the log.
    pub(crate) fn last_id(&self) -> Option<LogId> {
        let cache = self.cache.lock();
        cache.entries.last_key_value().map(|(_, entry)| entry.log_id).or(cache.purged)
    }

    /// The term that this node led when it stopped, if its vote says so.
    pub(crate) fn leading_vote(&self) -> Option<LeaderId> {
        let vote = self.cache.lock().vote?;
        (vote.is_committed() && vote.leader_id().node_id == self.me).then(|| *vote.leader_id())
    }

    /// The counter, as far as it is synced. Right after the start: as the disk had it.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.counter)
    }

    /// Raises the counter, and writes down everybody's.
    pub(crate) async fn note_counters(&self, known: &BTreeMap<NodeId, DiskMark>) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::LogMeta, KNOWN_COUNTERS, codec::encode(known));
        self.write_through(batch).await
    }

    /// Puts on this node's own disk that it may not take part any more.
    pub(crate) async fn condemn(&self, why: &str) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::LogMeta, CONDEMNED, codec::encode(&why.to_owned()));
        self.write_through(batch).await
    }

    /// Up to which deletion this node's disks hold nothing of deleted keys.
    pub(crate) fn purged_of_keys(&self) -> u64 {
        self.purged_of_keys.load(Ordering::SeqCst)
    }

    /// Puts on record up to which deletion the disks were purged.
    pub(crate) async fn note_purged(&self, number: u64) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::LogMeta, PURGED_OF_KEYS, codec::encode(&number));
        self.write_through(batch).await?;
        self.purged_of_keys.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Takes the sealed material of keys that are gone out of the entries up to `applied`, and has the old
    /// bytes leave the disk. Entries keep their ids and their effect, so that a node which is still to be
    /// sent them comes to the same state.
    pub(crate) async fn scrub(&self, gone: &Arc<BTreeSet<KeyId>>, applied: u64) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        let doomed = Arc::clone(gone);
        let scrubbed: Vec<LogEntry<E>> = self
            .env
            .blocking(move || {
                let mut scrubbed = Vec::new();
                store.scan(Table::Log, &mut |_, bytes| {
                    let mut entry: LogEntry<E> =
                        codec::decode(bytes).map_err(|e| damaged("an entry", e))?;
                    if entry.log_id.index <= applied
                        && let EntryPayload::Normal(proposal) = &mut entry.payload
                        && proposal.0.command.scrub(&|key| doomed.contains(key))
                    {
                        scrubbed.push(entry);
                    }
                    Ok(())
                })?;
                io::Result::Ok(scrubbed)
            })
            .await?;
        let mut batch = Batch::default();
        {
            let mut cache = self.cache.lock();
            for entry in scrubbed {
                batch.put(Table::Log, log_key(entry.log_id.index), codec::encode(&entry));
                if let Some(kept) = cache.entries.get_mut(&entry.log_id.index) {
                    *kept = entry;
                }
            }
        }
        self.write_through(batch).await?;
        let store = Arc::clone(&self.store);
        self.env.blocking(move || store.purge(&[Table::Log])).await
    }

    async fn write_through(&self, batch: Batch) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        let write = Write { batch, last: None, done: Done::Other(done) };
        let gone = || io::Error::other("the log's writer has stopped");
        self.writer.send(write).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What the disk said last about an earlier start.
pub(crate) struct Remembered {
    /// Everybody's counters.
    pub(crate) counters: BTreeMap<NodeId, DiskMark>,
    /// Why this node may not take part any more.
    pub(crate) condemned: Option<String>,
    /// A recovery, maybe not in the state yet.
    pub(crate) recovery: Option<Recovery>,
}

/// Reads what an earlier start left on the disk.
pub(crate) fn remembered(store: &dyn Store) -> io::Result<Remembered> {
    let counters = match store.get(Table::LogMeta, KNOWN_COUNTERS)? {
        Some(bytes) => codec::decode(&bytes).map_err(|e| damaged("known counters", e))?,
        None => BTreeMap::new(),
    };
    let condemned = match store.get(Table::LogMeta, CONDEMNED)? {
        Some(bytes) => Some(codec::decode(&bytes).map_err(|e| damaged("condemned", e))?),
        None => None,
    };
    let recovery = match store.get(Table::LogMeta, RECOVERY)? {
        Some(bytes) => Some(codec::decode(&bytes).map_err(|e| damaged("recovery", e))?),
        None => None,
    };
    Ok(Remembered { counters, condemned, recovery })
}

/// How far the writer has come.
struct Marks {
    written: Arc<AtomicU64>,
    counter: Arc<AtomicU64>,
    /// The disk is proved: the counter is raised.
    proved: Arc<AtomicBool>,
}

/// Writes in order, each group with one sync, and only then tells who waits. Every group raises the counter
/// of a disk that is proved.
async fn write_in_groups<E: Env>(
    env: E,
    store: Arc<dyn Store>,
    mut writes: mpsc::Receiver<Write<E>>,
    marks: Marks,
) {
    while let Some(first) = writes.recv().await {
        let mut batch = first.batch;
        let mut last = first.last;
        let mut waiting = vec![first.done];
        while waiting.len() < GROUP_MAX
            && let Ok(next) = writes.try_recv()
        {
            batch.changes.extend(next.batch.changes);
            last = next.last.or(last);
            waiting.push(next.done);
        }
        let proved = marks.proved.load(Ordering::SeqCst) || on(Bug::UnprovedDiskCounts);
        let raised = u64::from(proved);
        let counter = marks.counter.load(Ordering::SeqCst) + raised;
        batch.put(Table::LogMeta, COUNTER, codec::encode(&counter));
        let target = Arc::clone(&store);
        let result =
            env.blocking(move || target.write(batch, !on(Bug::AcknowledgedUnsynced))).await;
        if result.is_ok() {
            marks.counter.store(counter, Ordering::SeqCst);
            if let Some(last) = last {
                marks.written.store(last, Ordering::SeqCst);
            }
        }
        for done in waiting {
            let result = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            match done {
                Done::Append(callback) => callback.io_completed(result),
                Done::Other(answer) => drop(answer.send(result)),
            }
        }
    }
}

impl<E: Env> RaftLogReader<TypeConfig<E>> for LogStore<E> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<LogEntry<E>>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let (in_memory, first, purged): (Vec<_>, u64, Option<u64>) = {
            let cache = self.cache.lock();
            let latest = cache.entries.range(start..end).map(|(_, entry)| entry.clone()).collect();
            let first = cache.entries.keys().next().copied().unwrap_or(0);
            (latest, first, cache.purged.map(|id| id.index))
        };
        let from = start.max(purged.map_or(0, |index| index + 1));
        if from >= first.min(end) {
            return Ok(in_memory);
        }
        // A node that was away for long is sent what left memory.
        let store = Arc::clone(&self.store);
        let mut entries = self
            .env
            .blocking(move || {
                let mut entries = Vec::new();
                for index in from..first.min(end) {
                    let Some(bytes) = store.get(Table::Log, &log_key(index))? else {
                        return Err(damaged("entries", format!("index {index} is missing")));
                    };
                    entries.push(codec::decode(&bytes).map_err(|e| damaged("an entry", e))?);
                }
                Ok(entries)
            })
            .await?;
        entries.extend(in_memory);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.cache.lock().vote)
    }
}

impl<E: Env> RaftLogStorage<TypeConfig<E>> for LogStore<E> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<E>>> {
        let cache = self.cache.lock();
        let last = cache.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: last.or(cache.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        // Told before the vote can leave: a leader that votes for another serves no longer.
        self.keeper.voted(*vote.leader_id(), self.env.boot_now());
        let mut batch = Batch::default();
        batch.put(Table::LogMeta, LAST_VOTE, codec::encode(vote));
        self.write_through(batch).await?;
        self.cache.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<E>>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry<E>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        let mut configured = false;
        let last = {
            let mut cache = self.cache.lock();
            for entry in entries {
                self.notice_victory(&cache, &entry);
                configured |= entry.get_membership().is_some();
                batch.put(Table::Log, log_key(entry.log_id.index), codec::encode(&entry));
                cache.entries.insert(entry.log_id.index, entry);
            }
            let written = self.written.load(Ordering::SeqCst);
            cache.shrink(written, self.keeper.cell().applied());
            cache.entries.keys().next_back().copied()
        };
        if configured {
            self.tell_configuration();
        }
        let write = Write { batch, last, done: Done::Append(callback) };
        self.writer.send(write).await.map_err(|_| io::Error::other("the log's writer has stopped"))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        drop(self.cache.lock().entries.split_off(&from));
        self.written.fetch_min(from.saturating_sub(1), Ordering::SeqCst);
        self.tell_configuration();
        let mut batch = Batch::default();
        batch.changes.push(keyward_state::Change::DeleteRange(
            Table::Log,
            log_key(from).to_vec(),
            log_key(u64::MAX).to_vec(),
        ));
        self.write_through(batch).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        {
            let mut cache = self.cache.lock();
            let kept = cache.entries.split_off(&(log_id.index + 1));
            let gone = std::mem::replace(&mut cache.entries, kept);
            cache.applied(gone.values().rev().find_map(configuration::<E>));
            cache.purged = Some(log_id);
        }
        let mut batch = Batch::default();
        batch.put(Table::LogMeta, PURGED, codec::encode(&log_id));
        batch.changes.push(keyward_state::Change::DeleteRange(
            Table::Log,
            log_key(0).to_vec(),
            log_key(log_id.index + 1).to_vec(),
        ));
        self.write_through(batch).await
    }
}

impl<E: Env> LogStore<E> {
    /// This node's first entry of a term means that it has won. The author of the entry before it is
    /// the last leader (rule 6).
    ///
    /// An entry that this node wrote in an earlier life and lost (an unsynced write, a wiped disk) may
    /// come back from a later leader: then the vote is that leader's, and nothing was won.
    fn notice_victory(&self, cache: &Cache<E>, entry: &LogEntry<E>) {
        let leader = entry.log_id.leader_id;
        if leader.node_id != self.me || cache.vote.is_none_or(|vote| *vote.leader_id() != leader) {
            return;
        }
        let before = cache.entries.values().next_back().map(|last| last.log_id).or(cache.purged);
        if before.is_some_and(|before| before.leader_id == leader) {
            return;
        }
        let author = before.map(|before| before.leader_id.node_id);
        self.keeper.won(leader, entry.log_id.index, author, self.env.boot_now());
    }
}

#[cfg(test)]
mod tests {
    use keyward_env::RealEnv;
    use openraft::impls::BasicNode;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: 1 }, index)
    }

    fn voters(nodes: &[NodeId]) -> Membership {
        let nodes: BTreeMap<NodeId, BasicNode> =
            nodes.iter().map(|node| (*node, BasicNode::default())).collect();
        Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("a configuration")
    }

    fn cache() -> Cache<RealEnv> {
        let base = StoredMembership::new(Some(id(1, 1)), voters(&[1, 2, 3]));
        Cache { entries: BTreeMap::new(), vote: None, purged: None, base }
    }

    #[test]
    fn a_configuration_that_a_snapshot_has_overtaken_is_not_in_force_again() {
        let mut cache = cache();
        cache.entries.insert(5, RaftEntry::new_membership(id(1, 5), voters(&[1, 2, 3, 4])));
        assert_eq!(cache.effective(), voters(&[1, 2, 3, 4]));
        // A snapshot of entry 9 is taken over. The entries that it covers are purged later.
        let of_snapshot = StoredMembership::new(Some(id(2, 8)), voters(&[1, 2, 4, 5]));
        cache.applied(Some(of_snapshot));
        assert_eq!(cache.effective(), voters(&[1, 2, 4, 5]));
        let left = std::mem::take(&mut cache.entries);
        cache.applied(left.values().rev().find_map(configuration::<RealEnv>));
        assert_eq!(cache.effective(), voters(&[1, 2, 4, 5]));
        cache.entries.insert(10, RaftEntry::new_membership(id(2, 10), voters(&[1, 2, 4])));
        assert_eq!(cache.effective(), voters(&[1, 2, 4]), "a later one counts, committed or not");
    }
}
