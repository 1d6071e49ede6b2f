//! The state machine that openraft drives: applies entries to the state, writes rows and the last
//! applied index in one batch, then shows the new state to calls.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_state::{Batch, Change, Checkpoint, State, Store, Table, apply, codec};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::impls::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;

use crate::lease::Keeper;
use crate::log_store::LogStore;
use crate::types::{Applied, LogId, SnapshotData, StoredMembership, TypeConfig};

pub(crate) const APPLIED: &[u8] = b"applied";

/// Entries written in one batch at most: bounds what one slow write holds up.
const GROUP_MAX: usize = 256;

/// The state as calls see it.
pub struct Visible {
    state: ArcSwap<State>,
}

impl Visible {
    /// The present snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<State> {
        self.state.load_full()
    }
}

pub(crate) type Position = (Option<LogId>, StoredMembership);
type Frozen = (Arc<dyn Checkpoint>, Position);

/// Where the state machine stands, and its latest checkpoint. Shared with the task that purges disks.
#[derive(Default)]
pub(crate) struct Stand {
    /// Held while a group of entries is applied, a checkpoint made or a snapshot taken over: nothing moves
    /// meanwhile.
    gate: tokio::sync::Mutex<()>,
    position: Mutex<Position>,
    /// None after a start: openraft asks for a new one when it needs it.
    frozen: Mutex<Option<Frozen>>,
    /// Snapshots that were taken over since the start.
    installs: AtomicU64,
}

impl Stand {
    fn position(&self) -> Position {
        self.position.lock().clone()
    }

    /// Makes a checkpoint. The gate must be held.
    async fn freeze<E: Env>(&self, env: &E, store: &Arc<dyn Store>) -> io::Result<Frozen> {
        let store = Arc::clone(store);
        let checkpoint = env.blocking(move || store.checkpoint()).await?;
        let frozen = (checkpoint, self.position());
        *self.frozen.lock() = Some(frozen.clone());
        Ok(frozen)
    }

    /// Purges the tables' files of what was deleted, and puts a new checkpoint in the place of the old one,
    /// which holds the old files.
    pub(crate) async fn purge<E: Env>(
        &self,
        env: &E,
        store: &Arc<dyn Store>,
        tables: &'static [Table],
    ) -> io::Result<()> {
        let purged = Arc::clone(store);
        env.blocking(move || purged.purge(tables)).await?;
        let _standing_still = self.gate.lock().await;
        if self.frozen.lock().is_some() {
            self.freeze(env, store).await?;
        }
        Ok(())
    }

    pub(crate) fn installs(&self) -> u64 {
        self.installs.load(Ordering::Acquire)
    }

    /// Puts on record that this node's disks hold nothing of the first `number` deleted keys; unless a snapshot was
    /// taken over since the purge began, when `installs` of them had been: its files come from another node.
    pub(crate) async fn note_purged<E: Env>(
        &self,
        log: &LogStore<E>,
        number: u64,
        installs: u64,
    ) -> io::Result<()> {
        let _standing_still = self.gate.lock().await;
        if self.installs() == installs { log.note_purged(number).await } else { Ok(()) }
    }
}

/// Reads the state and its position in the log from a store.
pub(crate) fn load(store: &dyn Store) -> io::Result<(State, Position)> {
    let mut state = State::load(store)?;
    // Sealed tokens are not kept in memory: read once, so that damage shows now and not in a call.
    store.scan(Table::Tokens, &mut |_, _| Ok(()))?;
    let position: Position = match store.get(Table::Meta, APPLIED)? {
        Some(bytes) => codec::decode(&bytes).map_err(io::Error::other)?,
        None => (None, StoredMembership::default()),
    };
    state.applied = position.0.map_or(0, |id| id.index);
    Ok((state, position))
}

/// One node's state machine.
pub(crate) struct Machine<E: Env> {
    env: E,
    store: Arc<dyn Store>,
    keeper: Arc<Keeper>,
    log: LogStore<E>,
    visible: Arc<Visible>,
    stand: Arc<Stand>,
}

impl<E: Env> Machine<E> {
    pub(crate) fn new(
        env: E,
        store: Arc<dyn Store>,
        keeper: Arc<Keeper>,
        log: LogStore<E>,
        state: State,
        position: Position,
    ) -> (Self, Arc<Visible>, Arc<Stand>) {
        let visible = Arc::new(Visible { state: ArcSwap::from_pointee(state) });
        let stand = Arc::new(Stand { position: Mutex::new(position), ..Stand::default() });
        let machine = Self {
            env,
            store,
            keeper,
            log,
            visible: Arc::clone(&visible),
            stand: Arc::clone(&stand),
        };
        machine.tell();
        (machine, visible, stand)
    }

    /// Shows the state to calls, then tells the leases.
    fn show(&self, state: State) {
        self.visible.state.store(Arc::new(state));
        self.tell();
        self.keeper.stepped().notify_waiters();
    }

    fn tell(&self) {
        let (last, membership) = self.stand.position();
        let index = last.map_or(0, |id| id.index);
        self.keeper.applied(index, membership.membership(), self.env.boot_now());
    }

    async fn step(&mut self, group: &mut Vec<EntryResponder<TypeConfig<E>>>) -> io::Result<()> {
        let _moving = self.stand.gate.lock().await;
        let mut state = State::clone(&self.visible.load());
        let mut position = self.stand.position();
        let mut batch = Batch::default();
        let mut answers = Vec::with_capacity(group.len());
        for (entry, responder) in group.drain(..) {
            let outcome = match &entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => Some(apply(&mut state, &mut batch, &proposal.0)),
                EntryPayload::Membership(_) => None,
            };
            if let Some(membership) = entry.get_membership() {
                position.1 = StoredMembership::new(Some(entry.log_id), membership);
            }
            position.0 = Some(entry.log_id);
            state.applied = entry.log_id.index;
            answers.push((responder, outcome));
        }
        if on(Bug::AppliedOutsideBatch) {
            let mut before = Batch::default();
            before.put(Table::Meta, APPLIED, codec::encode(&position));
            let store = Arc::clone(&self.store);
            self.env.blocking(move || store.write(before, false)).await?;
        } else {
            batch.put(Table::Meta, APPLIED, codec::encode(&position));
        }
        let store = Arc::clone(&self.store);
        // Not synced: the log is, and a state that lost its tail in a power cut is caught up from it.
        self.env.blocking(move || store.write(batch, false)).await?;
        *self.stand.position.lock() = position;
        self.show(state);
        for (responder, outcome) in answers {
            if let Some(responder) = responder {
                responder.send(Applied(outcome));
            }
        }
        Ok(())
    }
}

impl<E: Env> RaftStateMachine<TypeConfig<E>> for Machine<E> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<Position> {
        Ok(self.stand.position())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig<E>>>> + Unpin + OptionalSend,
    {
        let mut group = Vec::new();
        while let Some(entry) = entries.next().await {
            group.push(entry?);
            if group.len() >= GROUP_MAX {
                self.step(&mut group).await?;
            }
        }
        if group.is_empty() { Ok(()) } else { self.step(&mut group).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // Here and not in the builder: nothing is applied meanwhile, so the checkpoint stands exactly at
        // our position. It costs one flush.
        let _standing_still = self.stand.gate.lock().await;
        Builder { snapshot: Some(self.stand.freeze(&self.env, &self.store).await) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig<E>>,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData::Received(slot) = snapshot else {
            return Err(io::Error::other("a snapshot of this node cannot be installed on it"));
        };
        let install = slot
            .lock()
            .take()
            .ok_or_else(|| io::Error::other("this snapshot was installed already"))?;
        let _moving = self.stand.gate.lock().await;
        self.stand.installs.fetch_add(1, Ordering::AcqRel);
        // The sender's files may still hold keys that were deleted: they are purged here, too.
        self.log.note_purged(0).await?;
        let store = Arc::clone(&self.store);
        let (state, position) = self
            .env
            .blocking(move || {
                install.commit()?;
                if on(Bug::SnapshotWithoutTombstones) {
                    let mut batch = Batch::default();
                    let all = Change::DeleteRange(Table::Tombstones, Vec::new(), vec![0xff; 64]);
                    batch.changes.push(all);
                    store.write(batch, false)?;
                }
                load(&*store)
            })
            .await?;
        if position.0 != meta.last_log_id {
            return Err(io::Error::other("the received snapshot is not at the index it names"));
        }
        self.log.rebase(position.1.clone());
        *self.stand.position.lock() = position;
        self.show(state);
        self.stand.freeze(&self.env, &self.store).await?;
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig<E>, SnapshotData>>> {
        Ok(self.stand.frozen.lock().clone().map(snapshot::<E>))
    }
}

fn snapshot<E: Env>(frozen: Frozen) -> SnapshotOf<TypeConfig<E>, SnapshotData> {
    let (checkpoint, (last_log_id, last_membership)) = frozen;
    openraft::Snapshot {
        meta: SnapshotMetaOf::<TypeConfig<E>> { last_log_id, last_membership },
        snapshot: SnapshotData::Local(checkpoint),
    }
}

/// A snapshot that was made while the machine stood still.
pub(crate) struct Builder {
    snapshot: Option<io::Result<Frozen>>,
}

impl<E: Env> RaftSnapshotBuilder<TypeConfig<E>> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig<E>, SnapshotData>> {
        let made = self.snapshot.take();
        made.unwrap_or_else(|| Err(io::Error::other("built already"))).map(snapshot::<E>)
    }
}
