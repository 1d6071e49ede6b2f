//! The figures that the README and the decisions quote, measured on real processes and printed beside their bar:
//! `make bench`, or `cargo bench -p keyward --bench region -- --only keys --keys 100000`.

#[path = "figures/control.rs"]
mod control;
#[path = "figures/echo.rs"]
mod echo;
#[path = "figures/failover.rs"]
mod failover;
#[path = "figures/loads.rs"]
mod loads;
#[path = "figures/noisy.rs"]
mod noisy;
#[path = "peers/openbao.rs"]
mod openbao;
#[path = "figures/quick.rs"]
mod quick;
#[path = "figures/quotas.rs"]
mod quotas;
#[path = "figures/recording.rs"]
mod recording;
#[path = "figures/regions.rs"]
mod regions;
#[path = "figures/roots.rs"]
mod roots;
#[path = "figures/scale.rs"]
mod scale;
#[path = "figures/servers.rs"]
mod servers;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use support::{KEYWARD, Load, Region, create_key, encrypt, port_base, resident_mb, set_enabled};

#[tokio::main]
async fn main() {
    let option = |name: &str, default: usize| {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        arguments.nth(1).and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    if let Some(server) = servers::asked_to_serve() {
        return server.serve().await;
    }
    if noisy::offer_if_asked().await {
        return;
    }
    let mut arguments = std::env::args().skip_while(|argument| argument != "--only");
    let only = arguments.nth(1);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if only.as_deref() == Some("quick") {
        let all_hold = quick::ratios().await;
        std::process::exit(i32::from(!all_hold));
    }
    if wanted("start") {
        for nodes in [1, 3] {
            let took = dev_up(nodes);
            println!("dev up to ready, {nodes} node(s): {} ms", took.as_millis());
        }
    }
    if wanted("kills") {
        changes_and_kills(option("--kills", 20)).await;
    }
    if wanted("keys") {
        scale::many_keys(option("--keys", 100_000)).await;
    }
    if wanted("roots") {
        roots::a_region_moves(option("--sealed", 10_000)).await;
    }
    if wanted("recording") {
        recording::cost().await;
    }
    if wanted("quotas") {
        quotas::cost().await;
    }
    if wanted("noisy") {
        noisy::neighbours().await;
    }
    if wanted("nodes") {
        scale::three_nodes_beside_one().await;
    }
    if wanted("control") {
        control::changes_beside_the_disk().await;
    }
    if wanted("interference") {
        control::interference().await;
    }
    if wanted("regions") {
        regions::lag_and_failover(option("--replicated", 1000)).await;
    }
    if wanted("failover") {
        failover::side_by_side().await;
    }
}

/// A figure beside what it has to be.
fn against(figure: &str, took: Duration, bar: Duration) {
    let verdict = if took < bar { "held" } else { "MISSED" };
    println!("{figure}: {} ms (bar: under {} s, {verdict})", took.as_millis(), bar.as_secs());
}

fn milliseconds(mut samples: Vec<Duration>) -> (u128, u128) {
    samples.sort_unstable();
    let median = samples[samples.len() / 2];
    (median.as_millis(), samples.last().copied().unwrap_or_default().as_millis())
}

fn dev_up(nodes: u16) -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let began = RealEnv.boot_now();
    let mut up = Command::new(KEYWARD)
        .args(["dev", "up", "--nodes", &nodes.to_string(), "--port-base", &port_base().to_string()])
        .arg("--data")
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("keyward dev up");
    let mut lines = BufReader::new(up.stdout.take().expect("its output")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("is up"))));
    let took = RealEnv.boot_now() - began;
    let pid = rustix::process::Pid::from_raw(up.id().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told to stop");
    up.wait().expect("it ends");
    took
}

async fn changes_and_kills(kills: usize) {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let overhead = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob.len();
    println!("ciphertext overhead: {} bytes", overhead - b"plaintext".len());
    let at_rest: Vec<u64> = (1..=3).map(|node| resident_mb(region.pid(node))).collect();
    println!("memory at rest: {at_rest:?} MB a node");
    let mut samples = Vec::new();
    for round in 0..500 {
        let began = RealEnv.boot_now();
        set_enabled(&client, &key, round % 2 == 1).await.expect("changed");
        samples.push(RealEnv.boot_now() - began);
    }
    let (median, worst) = milliseconds(samples);
    println!("a change acknowledged, all nodes up: p50 {median} ms, worst {worst} ms");

    let (mut away, mut calls, mut failures) = (Vec::new(), 0, 0);
    for _ in 0..kills {
        let leader = region.leader().await;
        let survivors: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
        let clients = survivors.iter().map(|node| region.client(&[*node])).collect();
        let load = Load::start(clients, &key, Duration::from_millis(1));
        RealEnv.sleep(Duration::from_millis(300)).await;
        region.kill(leader);
        let killed = RealEnv.boot_now();
        set_enabled(&region.client(&survivors), &key, true).await.expect("changed");
        away.push(RealEnv.boot_now() - killed);
        RealEnv.sleep(Duration::from_secs(1)).await;
        let on_survivors = load.end().await;
        calls += on_survivors.answered;
        failures += on_survivors.failures.len();
        region.start_node(leader);
        region.wait_serving(3).await;
    }
    let (median, worst) = milliseconds(away);
    println!(
        "control plane away, kill to first acknowledged change, {kills} kills: p50 {median} ms, worst \
         {worst} ms"
    );
    println!(
        "data-plane calls on survivors through the kills: {calls} answered, {failures} failed"
    );
}
