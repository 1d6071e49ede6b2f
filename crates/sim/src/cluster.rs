//! Three nodes of a Region, founded and joined as an operator does it, over stores that forget in a power
//! cut what was not synced.

mod operator;

use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_hsm::{
    ARENA_BYTES_MIN, ArenaConfig, Hsm, HsmConfig, MemoryRoot, RootId, RootProvider, SecretVec,
};
use keyward_model::NodeId;
use keyward_raft::{BoxFuture, Node, NodeConfig, StartError};
use keyward_service::{Audit, KeptRoot, Kms, RootKeeper, Stack, stack};
use keyward_state::{MemStore, Purpose, Timers};
use parking_lot::Mutex;

use crate::dice::{Dice, Stream};
use crate::env::{SimEntropy, SimEnv};
use crate::network::{Net, SimTransport};
use crate::plan::Plan;
use crate::runtime::{ClockId, Group, World};
use crate::walls::Walls;

pub use operator::{client, expired_client, operator};

/// Nodes of the Region.
pub const NODES: usize = 3;

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
    pub stack: Stack<SimEnv>,
}

struct Slot {
    clock: ClockId,
    boots: u32,
    log: MemStore,
    state: MemStore,
    group: Option<Group>,
    running: Option<Running>,
    frozen: bool,
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
    timers: Timers,
    purpose: Purpose,
    slots: Mutex<Vec<Slot>>,
    disks: Mutex<Dice>,
    failures: Mutex<Vec<String>>,
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

/// A node's only root, which is never changed here.
struct OneRoot(RootId);

impl OneRoot {
    fn refuse<T: Send + 'static>() -> BoxFuture<'static, Result<T, String>> {
        Box::pin(std::future::ready(Err("a simulated node's root is not changed".to_owned())))
    }
}

impl RootKeeper for OneRoot {
    fn kept(&self) -> Vec<KeptRoot> {
        vec![KeptRoot { id: self.0.clone(), place: "memory".to_owned() }]
    }

    fn add(&self, _: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>> {
        Self::refuse()
    }

    fn forget(&self, _: RootId) -> BoxFuture<'_, Result<(), String>> {
        Self::refuse()
    }

    fn offer(&self, _: RootId, _: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>> {
        Self::refuse()
    }

    fn next_share(&self, _: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>> {
        Self::refuse()
    }
}

/// A node's id, by its index.
#[must_use]
pub const fn id_of(index: usize) -> NodeId {
    index as NodeId + 1
}

fn address_of(index: usize) -> String {
    format!("node-{}:4410", id_of(index))
}

impl Cluster {
    /// Three machines, switched off.
    #[must_use]
    pub fn new(seed: u64, plan: &Plan, world: &Arc<World>) -> Arc<Self> {
        let slots = plan
            .clocks
            .iter()
            .map(|(clock, _)| Slot {
                clock: world.add_clock(*clock),
                boots: 0,
                log: MemStore::default(),
                state: MemStore::default(),
                group: None,
                running: None,
                frozen: false,
            })
            .collect();
        Arc::new(Self {
            world: Arc::clone(world),
            net: Net::new(Arc::clone(world), seed),
            walls: Walls::new(Arc::clone(world), plan.clocks.iter().map(|(_, error_ms)| *error_ms)),
            seed,
            timers: plan.timers,
            purpose: plan.purpose(),
            slots: Mutex::new(slots),
            disks: Mutex::new(Dice::new(seed, Stream::Disks)),
            failures: Mutex::default(),
        })
    }

    // --- Processes.

    /// Starts node `index` on what its disks hold.
    pub fn boot(self: &Arc<Self>, index: usize) {
        let mut slots = self.slots.lock();
        let slot = &mut slots[index];
        let group = self.world.start_process(slot.clock);
        let node = u32::try_from(index).unwrap_or(u32::MAX);
        let entropy = SimEntropy::new(self.seed, node, slot.boots);
        let wall = (Arc::clone(&self.walls), index);
        let env = SimEnv::new(Arc::clone(&self.world), slot.clock, wall, entropy);
        let (log, state) = (slot.log.clone(), slot.state.clone());
        slot.boots += 1;
        slot.group = Some(group);
        slot.frozen = false;
        drop(slots);
        let this = Arc::clone(self);
        drop(self.world.spawn_in(group, async move {
            match this.start(index, group, env, log, state).await {
                Ok(running) => this.slots.lock()[index].running = Some(running),
                Err(why) => {
                    this.failures
                        .lock()
                        .push(format!("node {} did not start: {why}", id_of(index)));
                }
            }
        }));
    }

    async fn start(
        &self,
        index: usize,
        group: Group,
        env: SimEnv,
        log: MemStore,
        state: MemStore,
    ) -> Result<Running, String> {
        let id = id_of(index);
        let config = NodeConfig { node: id, address: address_of(index), timers: self.timers };
        let transport = SimTransport::new(Arc::clone(&self.net), id, group);
        let entropy = env.entropy();
        let node =
            start_node(config, env, log, state, transport).await.map_err(|e| e.to_string())?;
        let seed = [self.seed.to_le_bytes(), id.to_le_bytes()].concat();
        let root = MemoryRoot::new(&seed, Arc::clone(&entropy), true).map_err(|e| e.to_string())?;
        let arena = ArenaConfig { bytes: ARENA_BYTES_MIN, allow_unlocked: true };
        // Few: open keys are evicted, and opened again from their tokens.
        let config = HsmConfig { cache_max_entries: 64, arena };
        let kept: Arc<dyn RootKeeper> = Arc::new(OneRoot(root.identity().clone()));
        let hsm = Hsm::new(Arc::new(root), entropy, &config).map_err(|e| e.to_string())?;
        let region = "eu-west-1".parse().map_err(|_| "a Region's name")?;
        let audit = Audit::new(None, region, [0; 8]);
        let kms = Kms::new(Arc::clone(&node), hsm, kept, audit, true);
        kms.start();
        self.net.listen(id, group, node);
        Ok(Running { group, stack: stack(Arc::clone(&kms)), kms })
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
        let running = slot.running.take();
        let clock = slot.clock;
        drop(slots);
        self.net.hang_up(id_of(index));
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
        drop(slots);
        if frozen {
            self.world.freeze(group);
        } else {
            self.world.thaw(group, slept);
        }
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

    /// The node that leads, if one knows that it does.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..NODES).find(|index| self.running(*index).is_some_and(|node| node.kms.node().leads()))
    }

    /// What went wrong below the calls: nodes that did not start, consensus that stopped for good.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.failures.lock().clone();
        for index in 0..NODES {
            if let Some(fatal) = self.running(index).and_then(|node| node.kms.node().fatal()) {
                failures.push(format!("consensus stopped on node {}: {fatal}", id_of(index)));
            }
        }
        failures
    }

    /// How every node is, in one line, for a failure's text.
    #[must_use]
    pub fn describe(&self) -> String {
        let one = |index: usize| match self.running(index) {
            None => format!("node {}: down", id_of(index)),
            Some(running) => {
                let s = running.kms.node().status();
                format!(
                    "node {}: term {} leader {:?} log {} committed {} applied {} lease {} {} ms fence {}",
                    s.node,
                    s.term,
                    s.leader,
                    s.last_log,
                    s.committed,
                    s.applied,
                    s.lease,
                    s.lease_ms,
                    s.fence
                )
            }
        };
        let all: Vec<String> = (0..NODES).map(one).collect();
        format!("at {} ms, {}", self.world.now().as_millis(), all.join("; "))
    }

    /// Lets go of everything, so that nothing outlives the world.
    pub fn shut_down(&self) {
        for index in 0..NODES {
            self.kill(index, Death::Kill);
        }
    }
}
