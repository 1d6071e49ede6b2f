//! One node of a Region: consensus, leases and the state as calls see it.

mod config;
mod membership;
mod peers;
mod proof;
mod purge;
mod snapshots;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyward_env::Env;
use keyward_env::sabotage::{Bug, on};
use keyward_model::{KeyId, NodeId, Timestamp};
use keyward_state::{
    Batch, Command, DiskMark, Envelope, Install, Outcome, State, Store, Table, Timers, codec,
};
use openraft::Raft;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use openraft::raft::VoteRequest;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use config::raft_config;
pub use config::{NodeConfig, SnapshotPace, StartError};

use crate::disk::{Confirmation, Disks};
use crate::lease::{Fenced, Keeper, Owed};
use crate::log_store::{self, IDENTITY, LogStore};
use crate::machine::{self, Machine, Stand, Visible};
use crate::messages::{
    BoxFuture, Member, NodeStatus, PeerRequest, PeerResponse, ProposeError, Transport,
};
use crate::network::Network;
use crate::recover::Recovery;
use crate::region_time::{Look, RegionTime};
use crate::types::{LeaderId, Proposal, SnapshotData, TypeConfig};

/// Between looks while something is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Calls that wait are woken; the timer that they wait with as well may stand still while the machine sleeps.
const LOOK_AT_LEAST: Duration = Duration::from_millis(100);
/// A follower that is behind a fence answers after this and holds its calls instead.
const FENCE_PATIENCE: Duration = Duration::from_millis(5);
/// A fence message is given up after this and sent again.
const FENCE_CALL: Duration = Duration::from_millis(250);
/// Between tries to reach a leader.
const RETRY: Duration = Duration::from_millis(20);

/// Why a call cannot be served from memory here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServing {
    /// No lease: this node does not hear from a majority, or has just started.
    #[error("this node holds no serving lease: it does not reach a majority of the Region's nodes")]
    NoLease,
    /// The lease lasts, and a change that calls must see has not arrived yet.
    #[error("this node waits for a change that it has not received yet")]
    Behind,
    /// The lease lasts, and this node has its own wall clock only: it has not heard of Region time since its
    /// start.
    #[error("this node has just started, and does not know the Region's time yet")]
    NoTime,
}

/// The layer above, as peers reach it.
pub trait PeerApp: Send + Sync + 'static {
    /// Answers a message that a peer's layer above sent (`Node::ask_app`).
    fn answer(&self, from: NodeId, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// A running node.
pub struct Node<E: Env> {
    config: NodeConfig,
    env: E,
    raft: Raft<TypeConfig<E>, Machine<E>>,
    keeper: Arc<Keeper>,
    visible: Arc<Visible>,
    transport: Arc<dyn Transport>,
    log: LogStore<E>,
    state_store: Arc<dyn Store>,
    stand: Arc<Stand>,
    disks: Arc<Disks>,
    /// When a leader was last heard, in nanoseconds of our boot clock.
    heard_ns: AtomicU64,
    time: RegionTime,
    incoming: Mutex<Option<snapshots::Incoming>>,
    installing: Mutex<Option<snapshots::Installing<E>>>,
    /// Rule 6: neither votes nor stands before this point.
    mute_until: Duration,
    /// A recovery that this node began, and that may not be in the state yet.
    recovery: Option<Recovery>,
    /// Woken when a fence is wanted.
    fence_wanted: Notify,
    /// Woken when a fence was answered.
    fence_answered: Notify,
    /// Peers with a fence message under way.
    fencing: Mutex<BTreeSet<NodeId>>,
    app: OnceCell<Arc<dyn PeerApp>>,
    stopped: AtomicBool,
    /// The second at which a slow round trip was last logged.
    slow_said: AtomicU64,
}

impl<E: Env> Node<E> {
    /// Starts a node on its two stores. It takes part once it has been added to a Region, or founds one.
    pub async fn start(
        config: NodeConfig,
        env: E,
        log_store: Arc<dyn Store>,
        state_store: Arc<dyn Store>,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<Self>, StartError> {
        let store = Arc::clone(&log_store);
        let node = config.node;
        env.blocking(move || check_identity(&*store, node)).await?;
        let store = Arc::clone(&log_store);
        let remembered = env.blocking(move || log_store::remembered(&*store)).await?;
        if let Some(why) = remembered.condemned {
            return Err(StartError::Condemned(why));
        }
        let store = Arc::clone(&state_store);
        let (state, position) = env.blocking(move || machine::load(&*store)).await?;
        if let Some(facts) = &state.region
            && facts.timers != config.timers
            && !on(Bug::DifferentTimers)
        {
            return Err(StartError::Timers { region: facts.timers, local: config.timers });
        }
        let now = env.boot_now();
        let boot = random_u64(&env);
        let keeper = Arc::new(Keeper::new(node, boot, config.timers, now));
        let base = position.1.clone();
        let store = Arc::clone(&log_store);
        let proved = Arc::new(AtomicBool::new(false));
        let log = LogStore::open(
            node,
            env.clone(),
            store,
            Arc::clone(&keeper),
            base,
            Arc::clone(&proved),
        )?;
        if on(Bug::LeaderRestore)
            && let Some(vote) = log.leading_vote()
        {
            keeper.won(vote, 0, None, now);
        }
        let disks = Arc::new(Disks::new(node, boot, log.counter(), remembered.counters, proved));
        disks.learn(state.counters.iter().map(|(node, counter)| (*node, *counter)));
        disks.judge(node, disks.found()).map_err(StartError::Condemned)?;
        if let Some(purged) = log.purged_index()
            && state.applied < purged
        {
            return Err(StartError::StateBehind { applied: state.applied, purged });
        }
        let (machine, visible, stand) = Machine::new(
            env.clone(),
            Arc::clone(&state_store),
            Arc::clone(&keeper),
            log.clone(),
            state,
            position,
        );
        let network = Network {
            env: env.clone(),
            keeper: Arc::clone(&keeper),
            disks: Arc::clone(&disks),
            transport: Arc::clone(&transport),
            transfers: Arc::new(AtomicU64::new(random_u64(&env))),
        };
        let raft = Raft::new(
            node,
            raft_config(config.timers, config.snapshots)?,
            network,
            log.clone(),
            machine,
        )
        .await
        .map_err(|e| StartError::Raft(e.to_string()))?;
        let mute_until = now + Duration::from_millis(config.timers.election_ms_max);
        let node = Arc::new(Self {
            config,
            env,
            raft,
            keeper,
            visible,
            transport,
            log,
            state_store,
            stand,
            disks,
            heard_ns: AtomicU64::new(0),
            time: RegionTime::default(),
            incoming: Mutex::new(None),
            installing: Mutex::new(None),
            mute_until,
            recovery: remembered.recovery,
            fence_wanted: Notify::new(),
            fence_answered: Notify::new(),
            fencing: Mutex::default(),
            app: OnceCell::new(),
            stopped: AtomicBool::new(false),
            slow_said: AtomicU64::new(0),
        });
        node.spawn(Self::prove_disk);
        node.spawn(Self::count);
        node.spawn(Self::keep_the_lost_out);
        node.spawn(Self::stand_when_allowed);
        node.spawn(Self::renew_leases);
        node.spawn(Self::send_fences);
        node.spawn(Self::purge_what_is_gone);
        Ok(node)
    }

    /// Starts a task that holds the node only while it works.
    fn spawn<F, Fut>(self: &Arc<Self>, task: F)
    where
        F: FnOnce(Arc<Self>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.env.spawn(task(Arc::clone(self)));
    }

    /// Who answers peers' messages for the layer above. Set once, right after the start.
    pub fn set_app(&self, app: Arc<dyn PeerApp>) {
        // A second layer above would be a programming error; the first one stays.
        let _ = self.app.set(app);
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.node
    }

    /// The timers that it runs with.
    #[must_use]
    pub fn timers(&self) -> Timers {
        self.config.timers
    }

    /// The seams it runs on.
    #[must_use]
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The state as calls see it. Decide on it only after [`Self::admit`].
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.visible.load()
    }

    pub(crate) fn state_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.state_store)
    }

    /// A sealed token, read from the store: it is not kept in memory.
    pub async fn token(
        &self,
        material: keyward_model::KeyMaterialId,
    ) -> io::Result<Option<Vec<u8>>> {
        // A hand-over to another thread and back costs more than the reading.
        if let Some(token) = self.state_store.at_hand(Table::Tokens, material.bytes())? {
            return Ok(Some(token));
        }
        let store = Arc::clone(&self.state_store);
        self.env.blocking(move || store.get(Table::Tokens, material.bytes())).await
    }

    // --- Data plane.

    /// Rule 3: the state that a call may be decided on. Waits for a moment where waiting helps: right
    /// after an election, during a hand-over, behind a fence.
    pub async fn admit(&self, patience: Duration) -> Result<Arc<State>, NotServing> {
        match self.admit_now() {
            Ok(state) => Ok(state),
            Err(_) => self.admit_soon(patience).await,
        }
    }

    /// The same without waiting.
    pub fn admit_now(&self) -> Result<Arc<State>, NotServing> {
        self.admit_at(self.env.boot_now())
    }

    /// The same, at a time that was just read from [`Env::boot_now`]: three atomics and one pointer.
    pub fn admit_at(&self, now: Duration) -> Result<Arc<State>, NotServing> {
        let cell = self.keeper.cell();
        if !cell.lasts(now) {
            return Err(NotServing::NoLease);
        }
        // A leader that has just started serves before anybody told it the time, and callers are judged by it.
        if !self.time.is_known() && !on(Bug::ServesBeforeTime) {
            return Err(NotServing::NoTime);
        }
        let fence = cell.fence();
        let state = self.visible.load();
        if state.applied < fence && !on(Bug::FenceNotAwaited) {
            Err(NotServing::Behind)
        } else {
            Ok(state)
        }
    }

    async fn admit_soon(&self, patience: Duration) -> Result<Arc<State>, NotServing> {
        let end = self.env.boot_now() + patience;
        loop {
            // Before the look: what comes after it wakes.
            let stepped = self.keeper.stepped().notified();
            let refusal = match self.admit_now() {
                Ok(state) => return Ok(state),
                Err(refusal) => refusal,
            };
            let now = self.env.boot_now();
            let left = end.saturating_sub(now);
            let worth = match refusal {
                NotServing::NoLease => left.min(self.keeper.cell().patience_left(now)),
                NotServing::NoTime => left.min(LOOK_AGAIN),
                NotServing::Behind => left,
            };
            if worth.is_zero() || self.stopped.load(Ordering::SeqCst) {
                return Err(refusal);
            }
            self.env.timeout(worth.min(LOOK_AT_LEAST), stepped).await;
        }
    }

    /// Looked at again when an answer is about to leave: a call that was held up (a paused process) must
    /// not answer on a lease that is over.
    #[must_use]
    pub fn still_serving(&self) -> bool {
        self.keeper.cell().lasts(self.env.boot_now())
    }

    /// Names the stretch of time for which this node's leases have followed one another without a gap. What it
    /// was given on the strength of its lease ends with it.
    #[must_use]
    pub fn lease_epoch(&self) -> u64 {
        self.keeper.cell().epoch()
    }

    /// The term that this node leads, once it may serve and grant.
    #[must_use]
    pub fn leading(&self) -> Option<LeaderId> {
        self.keeper.leading_ready()
    }

    /// Every other node that may hold a lease now; none unless this node leads.
    #[must_use]
    pub fn possible_holders(&self) -> Option<BTreeSet<NodeId>> {
        self.keeper.possible_holders(self.env.boot_now())
    }

    // --- Control plane.

    /// Has the leader propose and fence a command; any node may be asked. The answer comes when every
    /// call that starts later, on any node, sees the change.
    ///
    /// `Err(NotLeader)`: nothing was proposed in time. `Err(Unknown)`: it may take effect.
    pub async fn propose(
        &self,
        envelope: Envelope,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        let end = self.env.boot_now() + patience;
        let mut error = ProposeError::NotLeader;
        let mut envelope = envelope;
        loop {
            let left = end.saturating_sub(self.env.boot_now());
            if left.is_zero() || self.stopped.load(Ordering::SeqCst) {
                return Err(error);
            }
            match self.propose_once(&envelope, left).await {
                Ok(outcome) => return Ok(outcome),
                Err(ProposeError::Unknown) => error = ProposeError::Unknown,
                Err(ProposeError::NotLeader) => {}
            }
            if on(Bug::RetryAppliesTwice) {
                self.env.entropy().fill(&mut envelope.id);
            }
            self.env.sleep(RETRY.min(left)).await;
        }
    }

    async fn propose_once(
        &self,
        envelope: &Envelope,
        left: Duration,
    ) -> Result<Outcome, ProposeError> {
        let Some((leader, node)) = self.leader() else { return Err(ProposeError::NotLeader) };
        if leader == self.id() {
            return self.propose_here(envelope.clone(), left).await;
        }
        let request = PeerRequest::<E>::Propose {
            envelope: Box::new(envelope.clone()),
            patience_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        match self.ask(leader, &node, &request, left).await {
            Some(PeerResponse::Proposed(result)) => result,
            Some(_) => Err(ProposeError::NotLeader),
            // It may have arrived: the id makes asking again harmless.
            None => Err(ProposeError::Unknown),
        }
    }

    /// The leader's part: stamp, commit, apply, fence.
    async fn propose_here(
        &self,
        mut envelope: Envelope,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        let end = self.env.boot_now() + patience;
        let Some(leader) = self.keeper.leading() else { return Err(ProposeError::NotLeader) };
        envelope.time = self.stamp();
        if on(Bug::DeletionByOneClock) && matches!(envelope.command, Command::DeleteKey { .. }) {
            let offset_ms = self.visible.load().clock_offset_ms;
            envelope.time = Timestamp(self.env.wall_now_ms() + offset_ms).max(envelope.time);
        }
        let unfenced = on(Bug::NoFence)
            || (on(Bug::RotationInOneStep)
                && matches!(envelope.command, Command::IntroduceMaterial { .. }));
        let write = self.raft.client_write(Proposal(Box::new(envelope)));
        let written = match self.env.timeout(patience, write).await {
            None => return Err(ProposeError::Unknown),
            Some(Ok(written)) => written,
            Some(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                // openraft answers so as well when leadership was lost after the append.
                return Err(ProposeError::Unknown);
            }
            Some(Err(_)) => return Err(ProposeError::Unknown),
        };
        if written.log_id.leader_id != leader {
            return Err(ProposeError::Unknown);
        }
        if !unfenced {
            self.fence(leader, written.log_id.index, end).await?;
        }
        written.data.0.ok_or(ProposeError::Unknown)
    }

    /// The time that a command of this leader carries: Region time; before that is anchored in this term,
    /// the latest one in the log.
    fn stamp(&self) -> Timestamp {
        let state = self.visible.load();
        match self.look_at_clocks() {
            Some(time) => Timestamp(time.saturating_add(state.clock_offset_ms)),
            None => state.time,
        }
    }

    /// What a look at all clocks takes, if this node leads.
    fn clock_look(&self) -> Option<Look> {
        Some(Look {
            leader: self.keeper.leading()?,
            me: self.id(),
            voters: self.keeper.voters(),
            wall_ms: self.env.wall_now_ms(),
            now: self.env.boot_now(),
        })
    }

    /// The leader's look at all clocks: Region time without the offset, once it is anchored. Not before this leader's
    /// first entry is applied: until then its state may be old, and the latest time in the log not in it.
    fn look_at_clocks(&self) -> Option<i64> {
        let look = self.clock_look().filter(|_| self.keeper.has_applied_own_entry())?;
        let state = self.visible.load();
        self.time.look(&look, state.time.0.saturating_sub(state.clock_offset_ms))
    }

    /// Region time: what the Region takes the time to be, moved ahead where that was asked for. Periods
    /// of keys are counted on it.
    #[must_use]
    pub fn region_now(&self) -> Timestamp {
        Timestamp(self.wall_now().0.saturating_add(self.visible.load().clock_offset_ms))
    }

    /// The wall clock, put right by the Region's majority. Certificates are judged by it. A node that has
    /// not heard from a leader since its start has its own only, and serves nothing. It is never earlier than
    /// the latest time in the log.
    #[must_use]
    pub fn wall_now(&self) -> Timestamp {
        self.wall_at(self.env.boot_now())
    }

    /// The same, at a time that was just read from [`Env::boot_now`].
    #[must_use]
    pub fn wall_at(&self, now: Duration) -> Timestamp {
        let told = self.time.now(now);
        Timestamp(told.unwrap_or_else(|| {
            let state = self.visible.load();
            let stamped_ms = state.time.0.saturating_sub(state.clock_offset_ms);
            self.env.wall_now_ms().max(stamped_ms)
        }))
    }

    /// The median of the voters' wall clocks, as the leader knows it. What a node that wants in is measured by:
    /// Region time may have stood still for the sake of one clock, and catches up with the next leader only.
    #[must_use]
    pub fn median_clock(&self) -> Option<Timestamp> {
        self.clock_look().and_then(|look| self.time.median(&look)).map(Timestamp)
    }

    /// True if this node leads, Region time has come to `date`, and a majority of the voters has shown on
    /// its own clocks that it has: what cannot be undone asks this.
    #[must_use]
    pub fn majority_past(&self, date: Timestamp) -> bool {
        let offset = self.visible.load().clock_offset_ms;
        let date = date.0.saturating_sub(offset);
        self.clock_look().is_some_and(|look| {
            self.look_at_clocks().is_some_and(|time| time >= date)
                && self.time.majority_past(&look, date)
        })
    }

    /// Rule 5: returns once no node can serve anything older than `index`.
    async fn fence(&self, leader: LeaderId, index: u64, end: Duration) -> Result<(), ProposeError> {
        self.keeper.want_fence(index, self.env.boot_now());
        self.fence_wanted.notify_one();
        loop {
            let answered = self.fence_answered.notified();
            let now = self.env.boot_now();
            match self.keeper.fenced(leader, index, now) {
                Fenced::Yes => return Ok(()),
                Fenced::LeadershipLost => return Err(ProposeError::Unknown),
                Fenced::Waiting if now >= end => return Err(ProposeError::Unknown),
                Fenced::Waiting => {}
            }
            self.env.timeout(LOOK_AGAIN * 4, answered).await;
        }
    }

    /// Fences everything applied so far: the first half of a two-step change, found half done by a new
    /// leader, is known everywhere once this returns.
    pub async fn fence_all(&self, patience: Duration) -> Result<(), ProposeError> {
        let leader = self.keeper.leading_ready().ok_or(ProposeError::NotLeader)?;
        let end = self.env.boot_now() + patience;
        self.fence(leader, self.keeper.cell().applied(), end).await
    }

    /// True while this node leads, and may serve and grant.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.keeper.leading_ready().is_some()
    }

    /// The leader and where it is, as far as this node knows.
    fn leader(&self) -> Option<(NodeId, BasicNode)> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((leader, node))
    }

    /// The leader's id, as far as this node knows.
    #[must_use]
    pub fn leader_id(&self) -> Option<NodeId> {
        self.leader().map(|(leader, _)| leader)
    }

    // --- Seen from outside.

    /// How this node is.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let now = self.env.boot_now();
        let cell = self.keeper.cell();
        let usage = self.env.usage();
        NodeStatus {
            node: self.id(),
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.cluster_committed.map_or(0, |id| id.index),
            applied: cell.applied(),
            lease: self.keeper.describe(now).to_owned(),
            lease_ms: u64::try_from(cell.left(now).as_millis()).unwrap_or(u64::MAX),
            fence: cell.fence(),
            clocks_off_ms: self
                .clock_look()
                .map(|look| self.time.offsets(&look).into_iter().collect())
                .unwrap_or_default(),
            purged: self.log.purged_of_keys(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_us: u64::try_from(usage.cpu.as_micros()).unwrap_or(u64::MAX),
            resident_bytes: usage.resident_bytes,
        }
    }

    /// Asks another member how it is.
    pub async fn status_of(&self, member: &Member, patience: Duration) -> Option<NodeStatus> {
        if member.node == self.id() {
            return Some(self.status());
        }
        let node = BasicNode::new(member.address.clone());
        match self.ask(member.node, &node, &PeerRequest::Status, patience).await {
            Some(PeerResponse::Status(status)) => Some(*status),
            _ => None,
        }
    }

    /// The counter that this node's disk had at the start (`disk.rs`).
    #[must_use]
    pub fn disk_mark(&self) -> DiskMark {
        self.disks.found()
    }

    /// Whether a node whose disk had this counter at its start may take part; otherwise why not.
    pub fn judge_disk(&self, node: NodeId, found: DiskMark) -> Result<(), String> {
        self.disks.judge(node, found)
    }

    /// What stopped consensus on this node for good, if anything did: a disk that fails or lies.
    #[must_use]
    pub fn fatal(&self) -> Option<String> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
        self.disks.condemned().or(stopped)
    }

    /// True once this node belongs to a Region.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.members().iter().any(|member| member.node == self.id())
    }

    /// True once the node was told to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Stops: no call is served from here on.
    pub async fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.keeper.stepped().notify_waiters();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
    }
}

fn random_u64<E: Env>(env: &E) -> u64 {
    let mut bytes = [0; 8];
    env.entropy().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A folder belongs to one node for ever.
fn check_identity(store: &dyn Store, node: NodeId) -> Result<(), StartError> {
    match store.get(Table::LogMeta, IDENTITY)? {
        Some(bytes) => {
            let found: NodeId = codec::decode(&bytes).map_err(io::Error::other)?;
            if found == node {
                Ok(())
            } else {
                Err(StartError::ForeignFolder { found, expected: node })
            }
        }
        None => {
            let mut batch = Batch::default();
            batch.put(Table::LogMeta, IDENTITY, codec::encode(&node));
            store.write(batch, true)?;
            Ok(())
        }
    }
}
