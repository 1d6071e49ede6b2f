//! A run: the Region is founded, used and changed while things break; then everything heals, and what
//! must hold is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::book::{Change, KeyView};
use crate::client::Callers;
use crate::cluster::Cluster;
use crate::counters::Counters;
use crate::dice::{Dice, Stream};
use crate::ending;
use crate::faults::{
    Fault, FaultKind, Schedule, Spared, break_audit_disks, break_clocks, break_disks, break_roots,
    break_things, change_members, end_streams, heal, lie_about_disks, reach_dates,
    spoil_hand_overs,
};
use crate::invariants;
use crate::metered::MeteredCallers;
use crate::misuse::{misuse, misuse_quotas};
use crate::network::Weather;
use crate::plan::{Deletions, Plan};
use crate::regions;
use crate::runtime::{HARNESS, JoinHandle, World};
use crate::scenes::Scene;
use crate::sleep;

/// Clients that change things.
const CLIENTS: u32 = 2;
/// Names of aliases that they fight for.
const ALIASES: usize = 3;
/// Keys made before anything breaks.
const KEYS_FIRST: usize = 4;
/// The longest that a client's last change may take.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(40);

/// What a run may be told beyond its seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long things break; 20 to 40 s by the seed otherwise.
    pub faults: Option<Duration>,
    /// What does not go wrong.
    pub without: Spared,
    /// Several Regions, and what goes wrong between them.
    pub regions: bool,
    /// One moment that is staged, in a Region where nothing else goes wrong.
    pub scene: Option<Scene>,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The hash of every scheduling decision, delivery and outcome.
    pub trace_hash: u64,
    /// Numbers.
    pub counters: Counters,
    /// Broken rules. None, if all is well.
    pub violations: Vec<String>,
    /// What went wrong on purpose, in order.
    pub faults: Vec<Fault>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Outcome {
    if options.regions {
        return regions::run(seed, options);
    }
    let plan = match options.scene {
        Some(scene) => scene.plan(seed),
        None => Plan::new(seed, options.faults),
    };
    let world = World::new(seed, plan.stall_permille);
    let cluster = Cluster::new(seed, &plan, &world);
    let schedule = Schedule::without(options.without.clone());
    let dice = Dice::new(seed, Stream::Client(0));
    let callers = Callers::new(cluster, schedule, dice, ALIASES, plan.streams);
    let all = Arc::clone(&callers);
    let scene = options.scene;
    world.run(async move {
        live(&all, seed, &plan, scene).await;
        all.cluster.shut_down();
    });
    let mut book = callers.book.lock();
    for panic in world.take_panics() {
        book.violate(format!("A PANIC: {panic}"));
    }
    let (trace_hash, steps) = world.trace();
    book.counters.steps = steps;
    book.counters.snapshots = callers.cluster.snapshots_taken_over();
    book.counters.messages = callers.cluster.net.delivered();
    book.counters.simulated_ms = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
    let (counters, violations) = (book.counters, book.violations.clone());
    Outcome { seed, trace_hash, counters, violations, faults: callers.schedule.take() }
}

async fn live(callers: &Arc<Callers>, seed: u64, plan: &Plan, scene: Option<Scene>) {
    let world = &callers.cluster.world;
    if let Err(why) = callers.cluster.set_up().await {
        callers.book.lock().violate(format!("THE REGION COULD NOT BE SET UP: {why}"));
        return;
    }
    for _ in 0..KEYS_FIRST {
        if !callers.change(Change::Create).await {
            callers.book.lock().violate("A KEY COULD NOT BE MADE with nothing broken".to_owned());
            return;
        }
    }
    let metered = match &plan.metering {
        Some(metering) => match MeteredCallers::set_up(callers, metering).await {
            Ok(metered) => Some((metered, Dice::new(seed, Stream::Metered))),
            Err(why) => {
                callers.book.lock().violate(format!("NO QUOTAS with nothing broken: {why}"));
                return;
            }
        },
        None => None,
    };
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    if scene.is_none() {
        clients.extend((1..=CLIENTS).map(|number| {
            let dice = Dice::new(seed, Stream::Client(number));
            let changes = change_things(Arc::clone(callers), dice, plan, Arc::clone(&ended));
            world.spawn_in(HARNESS, changes)
        }));
    }
    for (number, index) in (CLIENTS + 1..).zip(0..callers.cluster.size()) {
        let dice = Dice::new(seed, Stream::Client(number));
        let uses = use_things(Arc::clone(callers), dice, index, Arc::clone(&ended));
        clients.push(world.spawn_in(HARNESS, uses));
    }
    let wrong = misuse(Arc::clone(callers), Dice::new(seed, Stream::Misuse), Arc::clone(&ended));
    clients.push(world.spawn_in(HARNESS, wrong));
    drop(world.spawn_in(HARNESS, invariants::watch(Arc::clone(callers))));
    let mut metered = metered;
    match scene {
        Some(scene) => {
            let metered = metered.as_ref().map(|(metered, _)| metered);
            scene.play(callers, metered, seed).await;
            heal(callers);
        }
        None => {
            if let (Some((metered, dice)), Some(metering)) = (&mut metered, &plan.metering) {
                metered.start(dice, metering);
                let dice = Dice::new(seed, Stream::QuotaMisuse);
                let wrong = misuse_quotas(Arc::clone(callers), dice, Arc::clone(&ended));
                clients.push(world.spawn_in(HARNESS, wrong));
            }
            break_everything(callers, seed, plan).await;
        }
    }
    ending::must_heal(callers).await;
    ended.store(true, Ordering::Relaxed);
    if let Some((metered, _)) = &metered {
        metered.end();
    }
    let end = world.now() + CLIENTS_END_WITHIN;
    for client in clients {
        let left = end.saturating_sub(world.now());
        if crate::timeout(left, client).await.is_none() {
            callers.book.lock().violate("A CALL DID NOT END long after its deadline".to_owned());
        }
    }
    if let Some((metered, dice)) = &mut metered {
        metered.must_get_what_they_may(dice).await;
    }
    callers.invariants.look_at_quotas(&callers.cluster, &mut callers.book.lock());
    ending::roots_agree(callers).await;
    if plan.root_faults {
        ending::start_cold(callers).await;
    }
    ending::what_was_deleted_leaves(callers).await;
    invariants::acknowledged::nothing_is_lost(callers).await;
    invariants::ciphertexts::every_one_opens(callers).await;
    ending::replicas_agree(callers).await;
    let members = callers.cluster.members();
    let machine = members[usize::try_from(seed % members.len() as u64).unwrap_or(0)];
    let records = ending::everything_is_on_record(callers, machine).await;
    callers.all_are_answered();
    let failures = callers.cluster.failures();
    let mut book = callers.book.lock();
    book.check_commands();
    callers.invariants.look_for_secrets(&callers.cluster, (machine, records), &mut book);
    for failure in failures {
        book.violate(format!("A NODE FAILED: {failure}"));
    }
}

/// Everything that the plan has in it goes wrong; then it heals.
async fn break_everything(callers: &Arc<Callers>, seed: u64, plan: &Plan) {
    let world = &callers.cluster.world;
    sleep(Duration::from_secs(1)).await;
    let goes_wrong = |kind| !callers.schedule.is_spared(kind);
    let weather = if goes_wrong(FaultKind::Weather) {
        callers.tell(FaultKind::Weather, || format!("{:?}", plan.weather));
        plan.weather
    } else {
        Weather::FAIR
    };
    callers.cluster.net.set_weather(weather);
    if plan.disk_faults && goes_wrong(FaultKind::Disks) {
        let dice = Dice::new(seed, Stream::DiskFaults);
        let disks = break_disks(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, disks));
    }
    if plan.wrong_walls && goes_wrong(FaultKind::Clocks) {
        callers.tell(FaultKind::Clocks, || "wall clocks are set wrong, now and then".to_owned());
        let dice = Dice::new(seed, Stream::Walls);
        let clocks = break_clocks(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, clocks));
    }
    let dice = Dice::new(seed, Stream::Deletions);
    let dates = reach_dates(Arc::clone(callers), dice, plan.deletions, plan.faults);
    drop(world.spawn_in(HARNESS, dates));
    if plan.root_faults && goes_wrong(FaultKind::Roots) {
        callers.tell(FaultKind::Roots, || "roots are away, and are changed".to_owned());
        let dice = Dice::new(seed, Stream::Roots);
        let roots = break_roots(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, roots));
    }
    if plan.audit_faults && goes_wrong(FaultKind::Audit) {
        callers.tell(FaultKind::Audit, || "disks of audit trails break".to_owned());
        let dice = Dice::new(seed, Stream::AuditFaults);
        let disks = break_audit_disks(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, disks));
    }
    if plan.hand_over_faults && goes_wrong(FaultKind::HandOvers) {
        callers.tell(FaultKind::HandOvers, || "hand-overs go wrong".to_owned());
        let dice = Dice::new(seed, Stream::HandOvers);
        let hand_overs = spoil_hand_overs(Arc::clone(callers), dice, plan.faults, weather);
        drop(world.spawn_in(HARNESS, hand_overs));
    }
    if plan.stream_faults && goes_wrong(FaultKind::Streams) {
        callers.tell(FaultKind::Streams, || "streams break, and are closed".to_owned());
        let dice = Dice::new(seed, Stream::Streams);
        let streams = end_streams(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, streams));
    }
    // What operators are at work on must come to its end.
    let mut at_work = Vec::new();
    if let Some(leaving) = plan.growing
        && goes_wrong(FaultKind::Members)
    {
        let dice = Dice::new(seed, Stream::Members);
        let changes = change_members(Arc::clone(callers), dice, leaving, plan.faults, weather);
        at_work.push(world.spawn_in(HARNESS, changes));
    }
    if plan.lying_disks && goes_wrong(FaultKind::Lies) {
        let dice = Dice::new(seed, Stream::Lies);
        let lies = lie_about_disks(Arc::clone(callers), dice, plan.faults);
        at_work.push(world.spawn_in(HARNESS, lies));
    }
    break_things(Arc::clone(callers), seed, plan.faults).await;
    heal(callers);
    for work in at_work {
        ending::must_be_whole(callers, work).await;
    }
}

// --- Clients.

fn change_things(
    callers: Arc<Callers>,
    mut dice: Dice,
    plan: &Plan,
    ended: Arc<AtomicBool>,
) -> impl Future<Output = ()> + Send + use<> {
    let (pace_ms, deletions) = (plan.pace_ms, plan.deletions != Deletions::None);
    let mut number = 0;
    async move {
        loop {
            sleep(dice.between_ms(pace_ms.0, pace_ms.1)).await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
            number += 1;
            let change = choose(&callers, &mut dice, number, deletions);
            callers.change(change).await;
        }
    }
}

/// The next change: mostly keys switched on and off, of those whose state is known for certain.
fn choose(callers: &Callers, dice: &mut Dice, number: u64, deletions: bool) -> Change {
    let book = callers.book.lock();
    let certain: Vec<usize> =
        (0..book.keys.len()).filter(|key| book.keys[*key].state.is_certain()).collect();
    let waits = |key: &usize| book.keys[*key].state.last_acknowledged() == Some(&KeyView::Pending);
    let waiting: Vec<usize> = certain.iter().copied().filter(waits).collect();
    if certain.len() - waiting.len() < KEYS_FIRST || dice.permille(60) {
        return Change::Create;
    }
    if deletions && !waiting.is_empty() && dice.permille(80) {
        return Change::Cancel(waiting[dice.index(waiting.len())]);
    }
    let young = certain.len().saturating_sub(6);
    let key = certain[young + dice.index(certain.len() - young)];
    let alias = dice.index(book.aliases.len());
    match dice.below(100) {
        0..=9 if deletions => Change::Schedule(key),
        0..=59 => Change::SetEnabled(key, dice.permille(500)),
        60..=74 => Change::Describe(key, format!("text {number} of {:08x}", dice.word() >> 32)),
        75..=84 => Change::Rotate(key),
        85..=89 => Change::CreateAlias(alias, key),
        90..=96 => Change::UpdateAlias(alias, key),
        _ => Change::DeleteAlias(alias),
    }
}

/// Uses keys on one node all the time.
async fn use_things(callers: Arc<Callers>, mut dice: Dice, index: usize, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(6, 24)).await;
        // Fewer calls pile up at a process that stands still.
        if !callers.cluster.is_frozen(index) || dice.permille(100) {
            callers.use_something(index);
        }
    }
}
