//! A run: the Region is founded, used and changed while things break; then everything heals, and what
//! must hold is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_model::ErrorCode;
use keyward_service::api::{DescribeKey, Encrypt, Secret};
use keyward_service::{Request, Response};
use keyward_state::{Store, Table};

use crate::book::{Change, Counters, KeyView, Told, alias_name};
use crate::client::{Callers, decrypt};
use crate::cluster::{Cluster, NODES, id_of};
use crate::dice::{Dice, Stream};
use crate::faults::{break_clocks, break_things, heal};
use crate::invariants;
use crate::plan::Plan;
use crate::runtime::{HARNESS, JoinHandle, World};
use crate::sleep;

/// Clients that change things.
const CLIENTS: u32 = 2;
/// Names of aliases that they fight for.
const ALIASES: usize = 3;
/// Keys made before anything breaks.
const KEYS_FIRST: usize = 4;
/// Once faults are over, a change is acknowledged and every node serves within this.
const HEAL_WITHIN: Duration = Duration::from_secs(10);
/// The longest that a client's last change may take.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(40);

/// What a run may be told beyond its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long things break; 20 to 40 s by the seed otherwise.
    pub faults: Option<Duration>,
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
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: Options) -> Outcome {
    let plan = Plan::new(seed, options.faults);
    let world = World::new(seed, plan.stall_permille);
    let cluster = Cluster::new(seed, &plan, &world);
    let callers = Callers::new(cluster, Dice::new(seed, Stream::Client(0)), ALIASES);
    let all = Arc::clone(&callers);
    world.run(async move {
        live(&all, seed, &plan).await;
        all.cluster.shut_down();
    });
    let mut book = callers.book.lock();
    for panic in world.take_panics() {
        book.violate(format!("A PANIC: {panic}"));
    }
    let (trace_hash, steps) = world.trace();
    book.counters.steps = steps;
    book.counters.messages = callers.cluster.net.delivered();
    book.counters.simulated_ms = u64::try_from(world.now().as_millis()).unwrap_or(u64::MAX);
    Outcome { seed, trace_hash, counters: book.counters, violations: book.violations.clone() }
}

async fn live(callers: &Arc<Callers>, seed: u64, plan: &Plan) {
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
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients: Vec<JoinHandle<()>> = (1..=CLIENTS)
        .map(|number| {
            let dice = Dice::new(seed, Stream::Client(number));
            let changes =
                change_things(Arc::clone(callers), dice, plan.pace_ms, Arc::clone(&ended));
            world.spawn_in(HARNESS, changes)
        })
        .collect();
    for (number, index) in (CLIENTS + 1..).zip(0..NODES) {
        let dice = Dice::new(seed, Stream::Client(number));
        let uses = use_things(Arc::clone(callers), dice, index, Arc::clone(&ended));
        clients.push(world.spawn_in(HARNESS, uses));
    }
    drop(world.spawn_in(HARNESS, invariants::watch(Arc::clone(callers))));
    sleep(Duration::from_secs(1)).await;
    callers.cluster.net.set_weather(plan.weather);
    if plan.wrong_walls {
        let dice = Dice::new(seed, Stream::Walls);
        let clocks = break_clocks(Arc::clone(callers), dice, plan.faults);
        drop(world.spawn_in(HARNESS, clocks));
    }
    break_things(Arc::clone(callers), Dice::new(seed, Stream::Faults), plan.faults).await;
    heal(callers);
    must_heal(callers).await;
    ended.store(true, Ordering::Relaxed);
    let end = world.now() + CLIENTS_END_WITHIN;
    for client in clients {
        let left = end.saturating_sub(world.now());
        if crate::timeout(left, client).await.is_none() {
            callers.book.lock().violate("A CALL DID NOT END long after its deadline".to_owned());
        }
    }
    nothing_acknowledged_is_lost(callers).await;
    every_ciphertext_opens(callers).await;
    replicas_agree(callers).await;
    let failures = callers.cluster.failures();
    let mut book = callers.book.lock();
    for failure in failures {
        book.violate(format!("A NODE FAILED: {failure}"));
    }
}

// --- Clients.

async fn change_things(
    callers: Arc<Callers>,
    mut dice: Dice,
    pace_ms: (u64, u64),
    ended: Arc<AtomicBool>,
) {
    let mut number = 0;
    loop {
        sleep(dice.between_ms(pace_ms.0, pace_ms.1)).await;
        if ended.load(Ordering::Relaxed) {
            return;
        }
        number += 1;
        let change = choose(&callers, &mut dice, number);
        callers.change(change).await;
    }
}

/// The next change: mostly keys switched on and off, of those whose state is known for certain.
fn choose(callers: &Callers, dice: &mut Dice, number: u64) -> Change {
    let book = callers.book.lock();
    let certain: Vec<usize> =
        (0..book.keys.len()).filter(|key| book.keys[*key].state.is_certain()).collect();
    if certain.len() < KEYS_FIRST || dice.permille(60) {
        return Change::Create;
    }
    let young = certain.len().saturating_sub(6);
    let key = certain[young + dice.index(certain.len() - young)];
    let alias = dice.index(book.aliases.len());
    match dice.below(100) {
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

// --- What must hold in the end.

/// Liveness: once faults are over, a change is acknowledged, and every node serves.
async fn must_heal(callers: &Arc<Callers>) {
    let world = &callers.cluster.world;
    let end = world.now() + HEAL_WITHIN;
    let mut changed = false;
    let mut serves = [false; NODES];
    while !changed || serves.contains(&false) {
        if world.now() > end {
            let nodes = callers.cluster.describe();
            let what = format!(
                "NO RECOVERY within {HEAL_WITHIN:?}: a change was acknowledged: {changed}, nodes serve: \
                 {serves:?}; {nodes}"
            );
            return callers.book.lock().violate(what);
        }
        for (index, serves) in serves.iter_mut().enumerate() {
            if !changed && let Some(running) = callers.cluster.running(index) {
                let change = Change::Describe(0, "healed".to_owned());
                let told = callers.try_change(running, &change, Duration::from_secs(2)).await;
                changed |= told == Told::Done;
            }
            if !*serves {
                *serves = serves_now(callers, index).await;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn serves_now(callers: &Callers, index: usize) -> bool {
    let key_id = callers.book.lock().keys[0].id.clone();
    match callers.ask(index, DescribeKey { key_id }.into()).await {
        Some(Ok(_)) => true,
        Some(Err(error)) => error.code != ErrorCode::DependencyTimeoutException,
        None => false,
    }
}

/// An answer, though a node may need a moment.
async fn insist(
    callers: &Callers,
    index: usize,
    request: impl Fn() -> Request,
) -> Result<Response, (ErrorCode, String)> {
    let mut last = (ErrorCode::DependencyTimeoutException, "the node is down".to_owned());
    for _ in 0..20 {
        match callers.ask(index, request()).await {
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) if error.code != ErrorCode::DependencyTimeoutException => {
                return Err((error.code, error.to_string()));
            }
            Some(Err(error)) => last.1 = error.to_string(),
            None => {}
        }
        sleep(Duration::from_millis(100)).await;
    }
    last.1 = format!("{}; {}", last.1, callers.cluster.describe());
    Err(last)
}

/// No lost acknowledgement: what every node shows in the end is the last write of each thing, or one
/// whose outcome nobody knows.
async fn nothing_acknowledged_is_lost(callers: &Arc<Callers>) {
    let world = &callers.cluster.world;
    for index in 0..NODES {
        let who = format!("node {} in the end", id_of(index));
        let (keys, aliases) = {
            let book = callers.book.lock();
            (book.keys.len(), book.aliases.len())
        };
        for key in 0..keys {
            let key_id = callers.book.lock().keys[key].id.clone();
            let began = world.step();
            let shown =
                insist(callers, index, || DescribeKey { key_id: key_id.clone() }.into()).await;
            let ended = world.step();
            let mut book = callers.book.lock();
            match shown {
                Ok(Response::Key(metadata)) => {
                    let enabled = metadata.state == keyward_model::KeyState::Enabled;
                    let view = if enabled { KeyView::Enabled } else { KeyView::Disabled };
                    book.read_state(key, view, began, ended, &who);
                    book.read_description(key, &metadata.description, began, ended, &who);
                }
                other => book.violate(format!("LOST KEY {key_id} on {who}: {other:?}")),
            }
        }
        for alias in 0..aliases {
            let began = world.step();
            let request = || DescribeKey { key_id: alias_name(alias) }.into();
            let shown = insist(callers, index, request).await;
            let ended = world.step();
            let mut book = callers.book.lock();
            match shown {
                Ok(Response::Key(metadata)) => {
                    book.read_alias(alias, Some(&metadata.key_id), began, ended, &who);
                }
                Err((ErrorCode::NotFoundException, _)) => {
                    book.read_alias(alias, None, began, ended, &who);
                }
                other => book.violate(format!("AN ALIAS CANNOT BE READ on {who}: {other:?}")),
            }
        }
        materials_are_there(callers, index, &who);
    }
}

/// Every acknowledged rotation made a material, and nothing else did.
fn materials_are_there(callers: &Callers, index: usize, who: &str) {
    let Some(running) = callers.cluster.running(index) else { return };
    let state = running.kms.node().state();
    let mut book = callers.book.lock();
    let mut found = Vec::new();
    for key in &book.keys {
        let Some(row) = key.id.parse().ok().and_then(|id| state.key(&id)) else { continue };
        let (acknowledged, possible) = key.rotations;
        let materials = row.materials.len();
        if !(acknowledged + 1..=possible + 1).contains(&materials) {
            found.push(format!(
                "LOST OR SURPLUS ROTATION of key {} on {who}: {materials} materials after {acknowledged} \
                 acknowledged and {possible} possible rotations",
                key.id
            ));
        }
    }
    for what in found {
        book.violate(what);
    }
}

/// Every ciphertext that was returned opens again, on every node, once its key is enabled.
async fn every_ciphertext_opens(callers: &Arc<Callers>) {
    let (keys, samples) = {
        let book = callers.book.lock();
        (book.keys.len(), book.samples.clone())
    };
    for key in 0..keys {
        if !callers.change(Change::SetEnabled(key, true)).await {
            callers.book.lock().violate(format!("KEY {key} COULD NOT BE ENABLED in the end"));
        }
    }
    for index in 0..NODES {
        for sample in &samples {
            let what = match insist(callers, index, || decrypt(sample).into()).await {
                Ok(Response::Decrypted { plaintext, .. })
                    if plaintext.bytes() == sample.plaintext =>
                {
                    continue;
                }
                Ok(_) => "to something else".to_owned(),
                Err(why) => format!("not at all: {why:?}"),
            };
            let node = id_of(index);
            callers.book.lock().violate(format!("A CIPHERTEXT OPENS {what}, on node {node}"));
        }
    }
    // And every key still makes new ones.
    for key in 0..keys {
        let key_id = callers.book.lock().keys[key].id.clone();
        let request = || {
            let plaintext = Secret::new(vec![7; 16]);
            Encrypt { key_id: key_id.clone(), plaintext, ..Encrypt::default() }.into()
        };
        if let Err(why) = insist(callers, key % NODES, request).await {
            callers
                .book
                .lock()
                .violate(format!("KEY {key_id} DOES NOT ENCRYPT in the end: {why:?}"));
        }
    }
}

/// All replicas hold the same rows once they have applied the same entries.
async fn replicas_agree(callers: &Callers) {
    let applied = |index: usize| {
        callers.cluster.running(index).map(|running| running.kms.node().state().applied)
    };
    for _ in 0..200 {
        let first = applied(0);
        if first.is_some() && (1..NODES).all(|index| applied(index) == first) {
            // Rows and positions are written in one batch: look at once, before anything else runs.
            return compare_rows(callers);
        }
        sleep(Duration::from_millis(5)).await;
    }
    callers.book.lock().violate("REPLICAS do not reach the same index".to_owned());
}

fn compare_rows(callers: &Callers) {
    const TABLES: [Table; 7] = [
        Table::Keys,
        Table::Tokens,
        Table::Aliases,
        Table::Principals,
        Table::DomainKeys,
        Table::Roots,
        Table::Outcomes,
    ];
    let rows = |index: usize, table: Table| {
        let mut rows = Vec::new();
        let store = callers.cluster.state_store(index);
        let scanned = store.scan(table, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(())
        });
        (scanned.is_ok(), rows)
    };
    for table in TABLES {
        let first = rows(0, table);
        for index in 1..NODES {
            if rows(index, table) != first {
                let node = id_of(index);
                let what = format!("REPLICAS DIFFER: table {} of node {node}", table.name());
                callers.book.lock().violate(what);
            }
        }
    }
}
