//! The nodes of a Region, founded and joined as an operator does it, over stores that forget in a power cut what was not
//! synced.

mod audits;
mod devices;
mod disks;
mod operator;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::sabotage::{Bug, on};
use keyward_env::{AsyncRuntime, Env};
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, EnvClock, Hsm, HsmConfig, RootId, RootWatchConfig,
};
use keyward_model::{NodeId, Region};
use keyward_raft::{BoxFuture, Node, NodeConfig, SnapshotPace, StartError};
use keyward_service::{Kms, Stack, stack};
use keyward_state::{MemStore, Purpose, Timers};
use parking_lot::Mutex;

use crate::dice::{Dice, Stream};
use crate::env::{Drawn, SimEntropy, SimEnv};
use crate::network::{Net, SimTransport, answers_of};
use crate::plan::Plan;
use crate::regions::Roads;
use crate::roots::{Cabinet, MayDie, SimRoots, recorded};
use crate::runtime::{ClockId, Group, SimRuntime, World};
use crate::trail::AuditDisk;
use crate::walls::Walls;
use keyward_check::Step;

use audits::lose_power;
pub use disks::{Copied, Refusal};
pub use operator::{client, expired_client, metered, operator, roamer};

/// Machines that every Region begins with, unless it has fewer.
pub const FOUNDERS: usize = 3;

/// How roots are watched: faster than in the server, as runs are short.
const ROOT_WATCH: RootWatchConfig = RootWatchConfig {
    grace: ROOT_GRACE,
    probe_interval: Duration::from_secs(1),
    probe_timeout: Duration::from_millis(1500),
    operation_timeout: Duration::from_secs(3),
};
/// How long keys are used after a root last answered.
pub const ROOT_GRACE: Duration = Duration::from_secs(8);

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The process is killed. What it wrote is in the page cache and survives.
    Kill,
    /// The machine loses power: what was not synced may be lost, and its clock begins anew.
    PowerCut,
}

/// A process that serves.
#[derive(Clone)]
pub struct Running {
    /// Its process.
    pub group: Group,
    /// Its service.
    pub kms: Arc<Kms<SimEnv>>,
    /// What a door would call.
    pub stack: Arc<Stack<SimEnv>>,
}

/// What a machine is to the Region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing yet: it is switched off.
    Spare,
    /// Its node is a member, or is about to be.
    Member,
    /// Its node was a member; that it was removed was acknowledged in this step. It still runs.
    Left(Step),
}

struct Slot {
    place: Place,
    /// An operator is at work on it: its node joins, leaves, or is replaced.
    in_hand: bool,
    /// Its node's id: another one once the machine has lost what it had.
    id: NodeId,
    clock: ClockId,
    boots: u32,
    log: MemStore,
    state: MemStore,
    /// What else is in its folder: the record of its roots.
    folder: MemStore,
    /// The disk of its audit trail.
    audit: AuditDisk,
    /// Since when its process has stood still or been down.
    still_since: Option<Duration>,
    /// Its devices.
    cabinet: Arc<Cabinet>,
    booted: Duration,
    group: Option<Group>,
    running: Option<Running>,
    frozen: bool,
    /// Its disk has been tampered with, and its node is to be refused.
    lies: bool,
    /// Its disk is full or does not sync, or was so and its node has not come back since.
    disk_broke: bool,
    /// Why it was refused.
    refused: Option<Refusal>,
    /// What an operator was told last who wanted it in, for a failure's text.
    told: String,
    copies: VecDeque<Copied>,
}

/// The Region's nodes.
pub struct Cluster {
    /// The world they live in.
    pub world: Arc<World>,
    /// The network between them.
    pub net: Arc<Net>,
    /// The machines' wall clocks.
    pub walls: Arc<Walls>,
    seed: u64,
    region: Region,
    /// The way to other Regions, if there are any.
    roads: Option<Arc<Roads>>,
    timers: Timers,
    rates_ppm: Vec<i64>,
    snapshots: SnapshotPace,
    purpose: Purpose,
    slots: Mutex<Vec<Slot>>,
    disks: Mutex<Dice>,
    audits: Mutex<Dice>,
    /// Whether a process dies between two steps of its root keeper: how often in a thousand.
    deaths: Mutex<(Dice, u64)>,
    failures: Mutex<Vec<String>>,
    drawn: Drawn,
}

/// `Node::start`, boxed where the environment is still generic: with a concrete one, rustc (1.95) cannot
/// see that the future may be sent (rust-lang/rust#100013).
fn start_node<E: Env>(
    config: NodeConfig,
    env: E,
    log: MemStore,
    state: MemStore,
    transport: Arc<SimTransport>,
) -> BoxFuture<'static, Result<Arc<Node<E>>, StartError>> {
    Box::pin(Node::start(config, env, Arc::new(log), Arc::new(state), transport))
}

/// Where a machine's node is reached.
pub fn address_of(index: usize) -> String {
    format!("machine-{index}:4410")
}

impl Cluster {
    /// The machines of that plan, switched off.
    #[must_use]
    pub fn new(seed: u64, plan: &Plan, world: &Arc<World>) -> Arc<Self> {
        let region = match "eu-west-1".parse() {
            Ok(region) => region,
            Err(_) => unreachable!("the name above is well formed"),
        };
        Self::of_region(seed, plan, world, region, None)
    }

    /// The same, of one Region among others.
    #[must_use]
    pub fn of_region(
        seed: u64,
        plan: &Plan,
        world: &Arc<World>,
        region: Region,
        roads: Option<Arc<Roads>>,
    ) -> Arc<Self> {
        let slots = plan
            .clocks
            .iter()
            .zip(1..)
            .map(|((clock, _), id)| Slot {
                place: if id <= FOUNDERS as NodeId { Place::Member } else { Place::Spare },
                in_hand: false,
                id,
                clock: world.add_clock(*clock),
                boots: 0,
                log: MemStore::default(),
                state: MemStore::default(),
                folder: MemStore::default(),
                audit: AuditDisk::default(),
                still_since: None,
                cabinet: Cabinet::new(
                    Arc::clone(world),
                    [seed.to_le_bytes(), u64::to_le_bytes(id)].concat(),
                ),
                booted: Duration::ZERO,
                group: None,
                running: None,
                frozen: false,
                lies: false,
                disk_broke: false,
                refused: None,
                told: String::new(),
                copies: VecDeque::new(),
            })
            .collect();
        Arc::new(Self {
            world: Arc::clone(world),
            net: Net::new(Arc::clone(world), seed),
            walls: Walls::new(Arc::clone(world), plan.clocks.iter().map(|(_, error_ms)| *error_ms)),
            seed,
            region,
            roads,
            timers: plan.timers,
            rates_ppm: plan.clocks.iter().map(|(clock, _)| clock.rate_ppm()).collect(),
            snapshots: plan.snapshots,
            purpose: plan.purpose(),
            slots: Mutex::new(slots),
            disks: Mutex::new(Dice::new(seed, Stream::Disks)),
            audits: Mutex::new(Dice::new(seed, Stream::Audits)),
            deaths: Mutex::new((Dice::new(seed, Stream::Deaths), 0)),
            failures: Mutex::default(),
            drawn: Drawn::default(),
        })
    }

    // --- Machines.

    /// All machines, the spare ones too.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.lock().len()
    }

    /// The machines that the Region is founded on.
    #[must_use]
    pub fn founders(&self) -> usize {
        FOUNDERS.min(self.size())
    }

    /// The Region.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The machines that have come into use: those of members, and of nodes that were removed and still run.
    #[must_use]
    pub fn machines(&self) -> Range<usize> {
        let slots = self.slots.lock();
        0..slots.iter().take_while(|slot| slot.place != Place::Spare).count()
    }

    /// The machines whose nodes are members of the Region, or are about to be.
    #[must_use]
    pub fn members(&self) -> Vec<usize> {
        let slots = self.slots.lock();
        (0..slots.len()).filter(|index| slots[*index].place == Place::Member).collect()
    }

    /// The other members' machines, from the one after machine `index` on and round.
    #[must_use]
    pub fn others(&self, index: usize) -> Vec<usize> {
        let (before, after): (Vec<usize>, Vec<usize>) = self
            .members()
            .into_iter()
            .filter(|other| *other != index)
            .partition(|other| *other < index);
        [after, before].concat()
    }

    /// The next machine that may come into use.
    #[must_use]
    pub fn next_spare(&self) -> Option<usize> {
        Some(self.machines().end).filter(|index| *index < self.size())
    }

    /// That the node of machine `index` was removed has just been acknowledged.
    pub fn has_left(&self, index: usize) {
        self.slots.lock()[index].place = Place::Left(self.world.step());
    }

    /// Whether the node of machine `index` had been removed by that step, and must serve nothing.
    #[must_use]
    pub fn had_left(&self, index: usize, by: Step) -> bool {
        matches!(self.slots.lock()[index].place, Place::Left(since) if since <= by)
    }

    /// An operator begins to work on machine `index`. False: one is at work on it already.
    #[must_use]
    pub fn take_in_hand(&self, index: usize) -> bool {
        !std::mem::replace(&mut self.slots.lock()[index].in_hand, true)
    }

    /// The operator has done what was to be done on machine `index`.
    pub fn let_go(&self, index: usize) {
        self.slots.lock()[index].in_hand = false;
    }

    // --- Processes.

    /// Starts node `index` on what its disks hold.
    pub fn boot(self: &Arc<Self>, index: usize) {
        let mut slots = self.slots.lock();
        let slot = &mut slots[index];
        let group = self.world.start_process(slot.clock);
        let node = u32::try_from(index).unwrap_or(u32::MAX);
        let entropy = SimEntropy::new(self.seed, node, slot.boots, Arc::clone(&self.drawn));
        let wall = (Arc::clone(&self.walls), index);
        let env = SimEnv::new(Arc::clone(&self.world), slot.clock, wall, entropy);
        let (id, log, state) = (slot.id, slot.log.clone(), slot.state.clone());
        slot.boots += 1;
        slot.group = Some(group);
        slot.frozen = false;
        slot.booted = self.world.now();
        drop(slots);
        let this = Arc::clone(self);
        drop(self.world.spawn_in(group, async move {
            match this.start(index, (id, group), env, log, state).await {
                Ok(running) => this.slots.lock()[index].running = Some(running),
                Err(why) => this.did_not_start(index, why),
            }
        }));
    }

    /// The timers that a machine's node is configured with: the Region's.
    fn timers_of(&self, index: usize) -> Timers {
        let differs = on(Bug::DifferentTimers) && index == FOUNDERS - 1;
        match self.timers {
            Timers::DEFAULT if differs => Timers::QUICK,
            _ if differs => Timers::DEFAULT,
            timers => timers,
        }
    }

    async fn start(
        self: &Arc<Self>,
        index: usize,
        (id, group): (NodeId, Group),
        env: SimEnv,
        log: MemStore,
        state: MemStore,
    ) -> Result<Running, Refusal> {
        let (entropy, clock) = (env.entropy(), EnvClock::shared(env.clone()));
        let seams = env.clone();
        for store in [&log, &state] {
            store.check().map_err(|error| Refusal::Disk(error.to_string()))?;
        }
        let folder = self.folder(index);
        let first = format!("first of node {id}");
        let may_die = self.may_die(index);
        let (kept, open) = SimRoots::open(env.clone(), folder, &first, may_die).await?;
        let mut open = open.into_iter();
        let root = open.next().ok_or(Refusal::RootsAway)?;
        let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, grows: false, allow_unlocked: true };
        // Few: open keys are evicted, and opened again from their tokens.
        let config = HsmConfig { cache_max_entries: 64, arena };
        let hsm = Hsm::new(root, entropy, &config).map_err(|e| e.to_string())?;
        for root in open {
            hsm.add_root(root).map_err(|e| e.to_string())?;
        }
        drop(SimRuntime::spawn(hsm.watch_roots(clock, ROOT_WATCH)));
        drop(SimRuntime::spawn(Arc::clone(&kept).retry(Arc::downgrade(&hsm))));
        let mut config = NodeConfig::new(id, address_of(index), self.timers_of(index));
        config.snapshots = self.snapshots;
        let transport = SimTransport::new(Arc::clone(&self.net), id, group);
        let node = start_node(config, env, log, state, transport).await.map_err(Refusal::from)?;
        let region = self.region.clone();
        let audit =
            self.audit_disk(index).open(&seams, id, region).await.map_err(Refusal::NoAuditTrail)?;
        self.is_moving(index);
        let kms = Kms::new(Arc::clone(&node), hsm, kept, audit, true);
        if let Some(roads) = &self.roads {
            kms.set_region_transport(roads.end_of(&self.region, index, group));
            roads.listen(&self.region, index, group, &kms);
        }
        kms.start();
        self.net.listen(id, group, answers_of(node));
        Ok(Running { group, stack: Arc::new(stack(Arc::clone(&kms))), kms })
    }

    /// Ends node `index`, if it runs.
    pub fn kill(&self, index: usize, death: Death) {
        let mut slots = self.slots.lock();
        let slot = &mut slots[index];
        let Some(group) = slot.group.take() else { return };
        let kept = |store: &MemStore| match death {
            Death::Kill => usize::MAX,
            Death::PowerCut => self.disks.lock().index(store.unsynced() + 1),
        };
        // First the stores and the network, then the tasks: their Drop code must not write.
        slot.log = slot.log.crash(kept(&slot.log));
        slot.state = slot.state.crash(kept(&slot.state));
        slot.folder = slot.folder.crash(kept(&slot.folder));
        slot.still_since = slot.still_since.or_else(|| Some(self.world.now()));
        if death == Death::PowerCut {
            slot.audit = lose_power(slot, &mut self.audits.lock(), self.world.now());
        }
        let running = slot.running.take();
        let (id, clock) = (slot.id, slot.clock);
        drop(slots);
        self.net.hang_up(id);
        if let Some(roads) = &self.roads {
            roads.hang_up(&self.region, index);
        }
        self.world.kill(group);
        drop(running);
        if death == Death::PowerCut {
            let uptime = self.disks.lock().between_ms(20_000, 90_000);
            self.world.reboot_clock(clock, uptime);
        }
    }

    /// Freezes or thaws node `index`. `slept`: its machine was suspended for that long.
    pub fn freeze(&self, index: usize, frozen: bool, slept: Duration) {
        let mut slots = self.slots.lock();
        let slot = &mut slots[index];
        let Some(group) = slot.group else { return };
        if slot.frozen == frozen {
            return;
        }
        slot.frozen = frozen;
        if frozen {
            slot.still_since = slot.still_since.or_else(|| Some(self.world.now()));
        }
        drop(slots);
        if !frozen && self.running(index).is_some() {
            self.is_moving(index);
        }
        if frozen {
            self.world.freeze(group);
        } else {
            self.world.thaw(group, slept);
        }
    }

    /// The id of the node on machine `index`.
    #[must_use]
    pub fn id(&self, index: usize) -> NodeId {
        self.slots.lock()[index].id
    }

    /// The process of node `index`, if it is up (starting, serving or frozen).
    #[must_use]
    pub fn group(&self, index: usize) -> Option<Group> {
        self.slots.lock()[index].group
    }

    /// Whether node `index` is frozen.
    #[must_use]
    pub fn is_frozen(&self, index: usize) -> bool {
        self.slots.lock()[index].frozen
    }

    /// Node `index`, once it has started.
    #[must_use]
    pub fn running(&self, index: usize) -> Option<Running> {
        self.slots.lock()[index].running.clone()
    }

    /// What node `index` has on its state disk.
    #[must_use]
    pub fn state_store(&self, index: usize) -> MemStore {
        self.slots.lock()[index].state.clone()
    }

    /// What node `index` has on its log disk.
    #[must_use]
    pub fn log_store(&self, index: usize) -> MemStore {
        self.slots.lock()[index].log.clone()
    }

    /// The Region's timers.
    #[must_use]
    pub fn timers(&self) -> Timers {
        self.timers
    }

    /// By how many millionths the fastest of the machines' clocks is fast; 0 if none is.
    #[must_use]
    pub fn fastest_ppm(&self) -> i64 {
        self.rates_ppm.iter().copied().max().unwrap_or(0).max(0)
    }

    /// By how many millionths the slowest of the machines' clocks is slow; 0 if none is.
    #[must_use]
    pub fn slowest_ppm(&self) -> i64 {
        -self.rates_ppm.iter().copied().min().unwrap_or(0).min(0)
    }

    /// The node that leads, if one knows that it does.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.machines()
            .find(|index| self.running(*index).is_some_and(|node| node.kms.node().leads()))
    }

    /// What went wrong below the calls: nodes that did not start, consensus that stopped for good.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.failures.lock().clone();
        for index in self.machines() {
            if self.disk_is_broken(index) {
                continue;
            }
            if let Some(fatal) = self.running(index).and_then(|node| node.kms.node().fatal()) {
                failures.push(format!("consensus stopped on node {}: {fatal}", self.id(index)));
            }
        }
        failures
    }

    /// How every node is, in one line, for a failure's text.
    #[must_use]
    pub fn describe(&self) -> String {
        let one = |index: usize| match self.running(index) {
            None => format!("node {}: down", self.id(index)),
            Some(running) => {
                let s = running.kms.node().status();
                format!(
                    "node {}: term {} leader {:?} log {} committed {} applied {} lease {} {} ms fence {} members {:?} changing {} fatal {:?}",
                    s.node,
                    s.term,
                    s.leader,
                    s.last_log,
                    s.committed,
                    s.applied,
                    s.lease,
                    s.lease_ms,
                    s.fence,
                    running
                        .kms
                        .node()
                        .members()
                        .iter()
                        .map(|m| (m.node, m.voter))
                        .collect::<Vec<_>>(),
                    running.kms.node().voters_change(),
                    running.kms.node().fatal()
                )
            }
        };
        let all: Vec<String> = self.machines().map(one).collect();
        let told: Vec<String> = self.slots.lock().iter().map(|slot| slot.told.clone()).collect();
        format!("at {} ms, {}; told {told:?}", self.world.now().as_millis(), all.join("; "))
    }

    /// Lets go of everything, so that nothing outlives the world.
    pub fn shut_down(&self) {
        for index in self.machines() {
            self.kill(index, Death::Kill);
        }
    }
}
