//! Loads for measurements: `keyward_load` on the nodes of a Region of real processes.

use std::sync::Arc;
use std::time::Duration;

use keyward_load::{
    Lane, Measured, Mix, Pace, Plan, Schedule, Sizes, Spacing, Stop, Target, Workload, percentile,
    prepare, run,
};

use crate::servers::cpu_of;
use crate::support::Region;

pub const IN_FLIGHT: usize = 64;
/// Connections: as many to each node of three.
const CONNECTIONS: usize = 9;
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A load of a mix on those nodes and keys, over connections that stay with their node.
pub async fn target(region: &Region, nodes: &[u16], keys: Vec<String>, mix: &str) -> Arc<Target> {
    target_over(CONNECTIONS, region, nodes, keys, mix).await
}

/// The same with as many connections to each node as it has to one alone.
pub async fn target_each(
    region: &Region,
    nodes: &[u16],
    keys: Vec<String>,
    mix: &str,
) -> Arc<Target> {
    target_over(CONNECTIONS * nodes.len(), region, nodes, keys, mix).await
}

async fn target_over(
    connections: usize,
    region: &Region,
    nodes: &[u16],
    keys: Vec<String>,
    mix: &str,
) -> Arc<Target> {
    let lane = |number: usize| {
        let node = nodes[number % nodes.len()];
        Lane::new(region.client_as("dev", &[node], PATIENCE), false)
    };
    let lanes = (0..connections).map(lane).collect();
    let (mix, sizes) = (Mix::parse(mix).expect("a mix"), Sizes::parse("32").expect("sizes"));
    prepare(lanes, keys, mix, sizes, |_| {}).await.expect("prepared")
}

fn plan(pace: Pace, seed: u64) -> Plan {
    Plan { pace, warm_up: Duration::ZERO, seed, patience: PATIENCE }
}

/// So many callers, each waiting for its answer.
pub fn closed(in_flight: usize, lasts: Duration) -> Plan {
    plan(Pace::Closed { in_flight, lasts }, 1)
}

/// So many calls a second, come what may.
pub fn open(rate: f64, lasts: Duration, seed: u64) -> Plan {
    let schedule = Schedule::steady(rate, lasts);
    plan(Pace::Open { schedule, spacing: Spacing::Poisson, in_flight_max: 20_000 }, seed)
}

pub async fn measure(load: &Arc<impl Workload>, plan: Plan) -> Measured {
    run(Arc::clone(load), &plan, None, Stop::default(), |_| {}).await.expect("a sound plan")
}

/// Calls answered, and those that were not.
pub fn counted(measured: &Measured) -> (u64, u64) {
    let all = measured.tally.values().map(|calls| &calls.counts);
    all.fold((0, 0), |(answered, lost), counts| {
        (answered + counts.answered, lost + counts.all() - counts.answered)
    })
}

/// A window of 64 callers: microseconds of the processes' CPU a call, calls a second, and the 99th percentile in
/// milliseconds. All calls have to be answered.
pub async fn window(load: &Arc<impl Workload>, pids: &[u32], lasts: Duration) -> (f64, f64, f64) {
    window_of(load, IN_FLIGHT, pids, lasts).await
}

/// The same with 64 callers for each process.
pub async fn window_each(
    load: &Arc<impl Workload>,
    pids: &[u32],
    lasts: Duration,
) -> (f64, f64, f64) {
    window_of(load, IN_FLIGHT * pids.len(), pids, lasts).await
}

async fn window_of(
    load: &Arc<impl Workload>,
    in_flight: usize,
    pids: &[u32],
    lasts: Duration,
) -> (f64, f64, f64) {
    let cpu = || pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>();
    let before = cpu();
    let measured = measure(load, closed(in_flight, lasts)).await;
    let used = cpu() - before;
    let (answered, lost) = counted(&measured);
    assert_eq!(lost, 0, "calls were not answered");
    let p99 = percentile(&measured, 0.99).expect("answers");
    (
        used.as_secs_f64() * 1e6 / answered as f64,
        answered as f64 / measured.lasted.as_secs_f64(),
        p99,
    )
}
