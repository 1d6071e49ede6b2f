//! Several Regions in one world: each is a cluster of its own, on machines of its own, and the ways between them are
//! long, lossy and cut. Callers use multi-Region keys in all of them, operators move and promote them, and in the end
//! the Regions must agree.

mod callers;
mod ending;
mod faults;
mod ledger;
mod plan;
mod roads;
mod roamers;
pub mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_model::{KeyId, KmsError, Region};
use keyward_service::{Call, Caller, Request, Response, Stack};
use keyward_state::State;
use parking_lot::Mutex;
use tower::ServiceExt;

use crate::cluster::{Cluster, client, operator};
use crate::dice::{Dice, Stream};
use crate::faults::{Fault, FaultKind, Schedule};
use crate::invariants::RegionRules;
use crate::runtime::{HARNESS, JoinHandle, World};
use crate::{Options, Outcome};

pub use ledger::{Ledger, Sample};
pub use plan::RegionsPlan;
pub use roads::Roads;

/// Callers that change things.
const CHANGERS: u32 = 2;
/// How long an operator's call may take while Regions are linked.
const SETUP_PATIENCE: Duration = Duration::from_secs(20);
/// The longest that a caller's last change may take.
const CALLERS_END_WITHIN: Duration = Duration::from_secs(40);
/// Between looks at what must hold all the time.
const LOOK: Duration = Duration::from_millis(20);

/// The Regions of a run, and who uses them.
pub struct Regions {
    /// The world they live in.
    pub world: Arc<World>,
    /// Each Region's nodes.
    pub clusters: Vec<Arc<Cluster>>,
    /// The ways between them.
    pub roads: Arc<Roads>,
    /// What callers know.
    pub ledger: Mutex<Ledger>,
    /// What is looked at all the time.
    rules: Mutex<RegionRules>,
    /// Set once nothing may break any more.
    healed: AtomicBool,
    schedule: Schedule,
    caller: Arc<Caller>,
    dice: Mutex<Dice>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Outcome {
    let plan = RegionsPlan::new(seed, options.faults);
    let world = World::new(seed, plan.stall_permille);
    let regions = Regions::new(seed, &plan, &world, Schedule::without(options.without.clone()));
    let all = Arc::clone(&regions);
    world.run(async move {
        all.live(seed, &plan).await;
        all.clusters.iter().for_each(|cluster| cluster.shut_down());
    });
    let mut ledger = regions.ledger.lock();
    for panic in world.take_panics() {
        ledger.violate(format!("A PANIC: {panic}"));
    }
    let (trace_hash, steps) = world.trace();
    let messages: u64 = regions.clusters.iter().map(|cluster| cluster.net.delivered()).sum();
    ledger.counters.steps = steps;
    ledger.counters.messages = messages + regions.roads.net.delivered();
    ledger.counters.simulated_ms = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
    let (counters, violations) = (ledger.counters, std::mem::take(&mut ledger.violations));
    Outcome { seed, trace_hash, counters, violations, faults: regions.schedule.take() }
}

impl Regions {
    fn new(seed: u64, plan: &RegionsPlan, world: &Arc<World>, schedule: Schedule) -> Arc<Self> {
        let names: Vec<Region> =
            plan::REGIONS.iter().filter_map(|name| name.parse().ok()).collect();
        let between = Dice::new(seed, Stream::Region(u32::MAX)).word();
        let roads = Roads::new(world, between, names.clone());
        let clusters = names.into_iter().zip(&plan.regions).map(|(name, (seed, plan))| {
            Cluster::of_region(*seed, plan, world, name, Some(Arc::clone(&roads)))
        });
        Arc::new(Self {
            world: Arc::clone(world),
            clusters: clusters.collect(),
            roads,
            ledger: Mutex::default(),
            rules: Mutex::default(),
            healed: AtomicBool::new(false),
            schedule,
            caller: client(),
            dice: Mutex::new(Dice::new(seed, Stream::Client(0))),
        })
    }

    async fn live(self: &Arc<Self>, seed: u64, plan: &RegionsPlan) {
        if let Err(why) = self.set_up().await {
            return self.violate(format!("THE REGIONS COULD NOT BE SET UP: {why}"));
        }
        if plan.roamers
            && let Err(why) = self.make_roamers().await
        {
            return self.violate(format!("ROAMERS COULD NOT BE MADE: {why}"));
        }
        self.make_first_keys().await;
        drop(self.world.spawn_in(HARNESS, watch(Arc::clone(self))));
        if !self.schedule.is_spared(FaultKind::Weather) {
            self.roads.net.set_weather(plan.weather);
        }
        let ended = Arc::new(AtomicBool::new(false));
        let mut callers: Vec<JoinHandle<()>> = Vec::new();
        for number in 1..=CHANGERS {
            let dice = Dice::new(seed, Stream::Client(number));
            let changes = callers::change_things(Arc::clone(self), dice, plan, Arc::clone(&ended));
            callers.push(self.world.spawn_in(HARNESS, changes));
        }
        for (number, region) in (CHANGERS + 1..).zip(0..self.clusters.len()) {
            let dice = Dice::new(seed, Stream::Client(number));
            let uses = callers::use_things(Arc::clone(self), dice, region, Arc::clone(&ended));
            callers.push(self.world.spawn_in(HARNESS, uses));
        }
        if plan.roamers {
            let (doors, calls) = (Dice::new(seed, Stream::Client(100)), Stream::Client(101));
            let keep = roamers::keep_doors(Arc::clone(self), doors, Arc::clone(&ended));
            callers.push(self.world.spawn_in(HARNESS, keep));
            let roam = roamers::roam(Arc::clone(self), Dice::new(seed, calls), Arc::clone(&ended));
            callers.push(self.world.spawn_in(HARNESS, roam));
        }
        let dates = faults::reach_dates(Arc::clone(self), Dice::new(seed, Stream::Deletions), plan);
        callers.push(self.world.spawn_in(HARNESS, dates));
        if plan.old_disks && !self.schedule.is_spared(FaultKind::Lies) {
            let dice = Dice::new(seed, Stream::Lies);
            let old = faults::come_back_old(Arc::clone(self), dice, plan);
            callers.push(self.world.spawn_in(HARNESS, old));
        }
        faults::break_things(Arc::clone(self), seed, plan).await;
        faults::heal(self);
        ended.store(true, Ordering::Relaxed);
        let end = self.world.now() + CALLERS_END_WITHIN;
        for caller in callers {
            let left = end.saturating_sub(self.world.now());
            if crate::timeout(left, caller).await.is_none() {
                self.violate("A CALL DID NOT END long after its deadline".to_owned());
            }
        }
        if plan.roamers {
            self.all_roamers_get_in().await;
        }
        ending::promote_the_orphaned(self).await;
        ending::must_agree(self).await;
        ending::every_ciphertext_opens(self).await;
        ending::must_agree(self).await;
        let failures = self.clusters.iter().flat_map(|cluster| cluster.failures());
        failures.for_each(|failure| self.violate(format!("A NODE FAILED: {failure}")));
    }

    // --- Setting up.

    /// Founds every Region, and links each with each, as operators do it.
    async fn set_up(&self) -> Result<(), String> {
        for cluster in &self.clusters {
            cluster.set_up().await?;
        }
        for (number, cluster) in self.clusters.iter().enumerate() {
            let card = cluster.operate(0, |kms| async move {
                kms.region_card(&operator(), SETUP_PATIENCE).await
            });
            let card = card.await?;
            self.roads.identify(&card.region, card.region_id);
            for (_, other) in self.clusters.iter().enumerate().filter(|(at, _)| *at != number) {
                let card = card.clone();
                let added = other.operate(0, |kms| async move {
                    let (who, authority) = (operator(), card.ca_certificate);
                    let attested = card.attestation;
                    kms.add_region(&who, authority, &attested, card.endpoints, SETUP_PATIENCE).await
                });
                added.await?;
            }
        }
        Ok(())
    }

    // --- Looking.

    /// The Region of that number.
    #[must_use]
    pub fn name(&self, number: usize) -> &Region {
        self.clusters[number].region()
    }

    /// The state as the leader of a Region has it.
    #[must_use]
    pub fn leaders_state(&self, number: usize) -> Option<Arc<State>> {
        let cluster = &self.clusters[number];
        cluster.running(cluster.leader()?).map(|running| running.kms.node().state())
    }

    /// The Region that is a key's primary, of those that think so the one whose word counts.
    fn primary_of(&self, key: &KeyId) -> Option<usize> {
        let epoch = |number: usize| {
            let state = self.leaders_state(number)?;
            let here = state.multi_region(key)?.here.clone()?;
            (here.version.epoch.region == *self.name(number)).then_some(here.version.epoch)
        };
        (0..self.clusters.len()).filter(|n| epoch(*n).is_some()).max_by_key(|n| epoch(*n))
    }

    /// Every key that some Region has now.
    fn keys_of_all(&self) -> BTreeSet<KeyId> {
        let states = (0..self.clusters.len()).filter_map(|number| self.leaders_state(number));
        let keys = states
            .flat_map(|state| state.multi_region_keys().map(|row| row.key).collect::<Vec<_>>());
        keys.chain(self.ledger.lock().keys.clone()).collect()
    }

    /// Notes a broken rule.
    pub fn violate(&self, what: String) {
        self.ledger.lock().violate(what);
    }

    /// Looks at every node of every Region now.
    pub fn look(&self) {
        self.rules.lock().look(self);
    }

    fn tell(&self, kind: FaultKind, what: String) {
        self.schedule.tell(Fault { at: self.world.now(), kind, what });
    }

    fn throw<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.dice.lock())
    }

    // --- Calls.

    /// A machine of that Region whose node runs.
    fn some_node(&self, number: usize) -> Option<usize> {
        let cluster = &self.clusters[number];
        let up: Vec<usize> =
            cluster.machines().filter(|index| cluster.running(*index).is_some()).collect();
        if up.is_empty() { None } else { Some(self.throw(|dice| dice.pick(&up))) }
    }

    /// A call on a node of that Region. `None`: it is down, or died meanwhile.
    async fn ask(
        &self,
        number: usize,
        request: Request,
        patience: Duration,
    ) -> Option<Result<Response, KmsError>> {
        self.ask_as(&self.caller, number, request, patience).await
    }

    /// The same, by another caller.
    async fn ask_as(
        &self,
        caller: &Arc<Caller>,
        number: usize,
        request: Request,
        patience: Duration,
    ) -> Option<Result<Response, KmsError>> {
        let running = self.clusters[number].running(self.some_node(number)?)?;
        let call = Call::new(Arc::clone(caller), request, patience);
        let stack = Stack::clone(&running.stack);
        let answer = self.world.spawn_in(running.group, async move { stack.oneshot(call).await });
        let answer = answer.await.ok();
        self.world.note(match &answer {
            None => 1,
            Some(Ok(_)) => 2,
            Some(Err(error)) => (error.code.name().len() as u64) << 8,
        });
        answer
    }
}

/// Looks all the time.
async fn watch(regions: Arc<Regions>) {
    loop {
        regions.look();
        crate::sleep(LOOK).await;
    }
}
