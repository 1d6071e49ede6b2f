//! Goodput through a leader's death, and what a node that is cut off goes on doing: Keyward and OpenBao, side by side in one
//! run, each as its documentation sets it up with three nodes, TLS and an audit log.

use std::sync::Arc;
use std::time::Duration;

use keyward_client::Repeat;
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_load::plot::{Chart, Line, Scale};
use keyward_load::{Measured, Plan, Workload, percentile, shell};
use keyward_proto::v1;
use tokio::sync::RwLock;

use crate::loads::{IN_FLIGHT, closed, counted, measure, open, target};
use crate::openbao::{Encrypts, OpenBao, program};
use crate::servers::{cpu_of, median, ratio};
use crate::support::{Region, create_key, encrypt};

/// Windows of each, in turn.
const ROUNDS: usize = 12;
const WINDOW: Duration = Duration::from_secs(2);
/// What is offered while a leader dies.
const RATE: f64 = 600.0;
const KILLED_AFTER: Duration = Duration::from_secs(8);
const LASTS: Duration = Duration::from_secs(30);
/// How long a node that is cut off is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// What was seen of one of the two.
struct Seen {
    name: &'static str,
    cpu_us: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    rates: Vec<f64>,
    alone_ms: Vec<f64>,
    through: Option<Measured>,
    without_changes: Duration,
    cut_off: Option<Duration>,
}

impl Seen {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            cpu_us: Vec::new(),
            p50_ms: Vec::new(),
            p99_ms: Vec::new(),
            rates: Vec::new(),
            alone_ms: Vec::new(),
            through: None,
            without_changes: Duration::ZERO,
            cut_off: None,
        }
    }

    /// A window of a closed loop; CPU is that of the processes.
    async fn window(&mut self, load: &Arc<impl Workload>, pids: &[u32]) {
        let cpu = || pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>();
        let alone = measure(load, closed(1, Duration::from_millis(500))).await;
        self.alone_ms.extend(percentile(&alone, 0.5));
        let before = cpu();
        let measured = measure(load, closed(IN_FLIGHT, WINDOW)).await;
        let answered: u64 = measured.tally.values().map(|calls| calls.counts.answered).sum();
        self.cpu_us.push((cpu() - before).as_secs_f64() * 1e6 / answered as f64);
        self.rates.push(answered as f64 / measured.lasted.as_secs_f64());
        self.p50_ms.extend(percentile(&measured, 0.5));
        self.p99_ms.extend(percentile(&measured, 0.99));
    }
}

/// What is offered while a leader dies.
fn offered() -> Plan {
    open(RATE, LASTS, 1)
}

/// Both, and a page with the curves.
pub async fn side_by_side() {
    let Some(program) = program() else {
        println!("OpenBao cannot be had here: nothing to compare with");
        return;
    };
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    println!("OpenBao: three nodes are started");
    let bao = OpenBao::start(program, region.port_base + 40).await;
    let pids = bao.pids();
    let bao = Arc::new(RwLock::new(bao));
    let (mut ours, mut theirs) = (Seen::new("Keyward"), Seen::new("OpenBao"));

    let our_load = target(&region, &[1, 2, 3], vec![key.clone()], "encrypt").await;
    let our_pids: Vec<u32> = (1..=3).map(|node| region.pid(node)).collect();
    let their_load = Encrypts::on(&bao, vec![0, 1, 2]).await;
    println!("{ROUNDS} windows of each, in turn");
    for round in 0..=ROUNDS {
        if round % 2 == 0 {
            ours.window(&our_load, &our_pids).await;
            theirs.window(&their_load, &pids).await;
        } else {
            theirs.window(&their_load, &pids).await;
            ours.window(&our_load, &our_pids).await;
        }
        if round == 0 {
            // The first one warms up.
            (ours, theirs) = (Seen::new("Keyward"), Seen::new("OpenBao"));
        }
    }
    println!("leaders die");
    our_leader_dies(&mut region, &key, &mut ours).await;
    their_leader_dies(&bao, &mut theirs).await;
    println!("nodes are cut off");
    our_node_is_cut_off(&region, &key, &mut ours).await;
    their_node_is_cut_off(&bao, &mut theirs).await;
    print(&ours, &theirs);
    save(&ours, &theirs);
}

/// Waits for the moment of the kill, kills, and waits for the first change that succeeds.
async fn our_leader_dies(region: &mut Region, key: &str, seen: &mut Seen) {
    let leader = region.leader().await;
    let others: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
    let load = target(region, &[1, 2, 3], vec![key.to_owned()], "encrypt").await;
    let through = <RealEnv as Env>::Runtime::spawn(async move { measure(&load, offered()).await });
    RealEnv.sleep(KILLED_AFTER).await;
    let operator = region.client(&others);
    region.kill(leader);
    let killed = RealEnv.boot_now();
    loop {
        let request = v1::CreateKeyRequest::default();
        let made = operator
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_key(r).await });
        if made.await.is_ok() {
            break;
        }
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
    seen.without_changes = RealEnv.boot_now() - killed;
    seen.through = through.await.ok();
    region.start_node(leader);
    region.wait_serving(3).await;
}

async fn their_leader_dies(bao: &Arc<RwLock<OpenBao>>, seen: &mut Seen) {
    let leader = bao.read().await.leader().await;
    let other = (leader + 1) % 3;
    let load = Encrypts::on(bao, vec![0, 1, 2]).await;
    let through = <RealEnv as Env>::Runtime::spawn(async move { measure(&load, offered()).await });
    RealEnv.sleep(KILLED_AFTER).await;
    bao.write().await.kill(leader);
    let killed = RealEnv.boot_now();
    for number in 0.. {
        let made = bao.read().await.create_key(other, &format!("after-{number}")).await;
        if made.is_ok() {
            break;
        }
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
    seen.without_changes = RealEnv.boot_now() - killed;
    seen.through = through.await.ok();
    bao.write().await.restart(leader).await;
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("a signal");
}

/// From when all others stand still: as long as the node serves, at most for as long as it is watched.
async fn serves_for(mut serves: impl AsyncFnMut() -> bool) -> Duration {
    let began = RealEnv.boot_now();
    let mut last = Duration::ZERO;
    while RealEnv.boot_now() - began < WATCHED {
        if serves().await {
            last = RealEnv.boot_now() - began;
        } else if RealEnv.boot_now() - began > last + Duration::from_secs(10) {
            break;
        }
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
    last
}

async fn our_node_is_cut_off(region: &Region, key: &str, seen: &mut Seen) {
    let leader = region.leader().await;
    let alone = leader % 3 + 1;
    let client = region.client_as("dev", &[alone], Duration::from_secs(1));
    encrypt(&client, key).await.expect("it serves");
    let others: Vec<u16> = (1..=3).filter(|node| *node != alone).collect();
    others.iter().for_each(|node| region.pause(*node));
    seen.cut_off = Some(serves_for(async || encrypt(&client, key).await.is_ok()).await);
    others.iter().for_each(|node| region.resume(*node));
}

async fn their_node_is_cut_off(bao: &Arc<RwLock<OpenBao>>, seen: &mut Seen) {
    let bao = bao.read().await;
    let leader = bao.leader().await;
    let alone = (leader + 1) % 3;
    bao.encrypt(alone).await.expect("it serves");
    let pids = bao.pids();
    let others: Vec<u32> = (0..3).filter(|node| *node != alone).map(|node| pids[node]).collect();
    others.iter().for_each(|pid| signal(*pid, rustix::process::Signal::STOP));
    seen.cut_off = Some(serves_for(async || bao.encrypt(alone).await.is_ok()).await);
    others.iter().for_each(|pid| signal(*pid, rustix::process::Signal::CONT));
}

fn print(ours: &Seen, theirs: &Seen) {
    println!(
        "Keyward beside OpenBao: three nodes each, TLS, audit; Encrypt of 32 bytes; {ROUNDS} pairs"
    );
    let row = |name: &str, ours: &[f64], theirs: &[f64], unit: &str| {
        let (middle, low, high) = ratio(theirs, ours);
        println!(
            "{name:<34} {:.2} {unit} and {:.2} {unit}: {middle:.1} times ({low:.1} to {high:.1})",
            median(ours.to_vec()),
            median(theirs.to_vec())
        );
    };
    row("server CPU a call, 64 in flight", &ours.cpu_us, &theirs.cpu_us, "us");
    row("p50, 64 in flight", &ours.p50_ms, &theirs.p50_ms, "ms");
    row("p99, 64 in flight", &ours.p99_ms, &theirs.p99_ms, "ms");
    row("p50, one in flight", &ours.alone_ms, &theirs.alone_ms, "ms");
    let (_, low, _) = ratio(&theirs.cpu_us, &ours.cpu_us);
    println!(
        "aim: at least 5 times less CPU a call: {}",
        if low >= 5.0 { "held" } else { "not held" }
    );
    for seen in [ours, theirs] {
        let (answered, lost) = seen.through.as_ref().map_or((0, 0), counted);
        println!(
            "{}: leader killed at {RATE} calls a second: {answered} answered, {lost} lost (about {:.0} asked the dead node); no changes for {} ms; a node cut off goes on for {:.1} s{}",
            seen.name,
            RATE * (LASTS - KILLED_AFTER).as_secs_f64() / 3.0,
            seen.without_changes.as_millis(),
            seen.cut_off.unwrap_or_default().as_secs_f64(),
            if seen.cut_off.is_some_and(|on| on + Duration::from_secs(1) > WATCHED) {
                " (as long as it was watched)"
            } else {
                ""
            }
        );
    }
}

/// The curves, as a page.
fn save(ours: &Seen, theirs: &Seen) {
    let lines = |value: fn(&keyward_load::Second) -> f64| {
        let line = |seen: &Seen| {
            let seconds = seen.through.as_ref().map(|measured| measured.seconds.as_slice());
            let points = seconds.unwrap_or_default().iter();
            Line::new(seen.name, points.map(|s| ((s.at + s.lasted).as_secs_f64(), value(s))))
        };
        vec![line(ours), line(theirs)]
    };
    let chart =
        |y_name, y, lines| Chart { x_name: "seconds", y_name, x: Scale::Linear, y, lines }.svg();
    let goodput = chart("answered a second", Scale::Linear, lines(|s| s.rate(s.counts.answered)));
    let slow = |s: &keyward_load::Second| s.answered.value_at_quantile(0.99) as f64 / 1000.0;
    let slow = chart("99th percentile, ms", Scale::Log, lines(slow));
    let body = format!(
        "<p class=\"soft\">{RATE} calls a second offered in an open loop to all three nodes; the leader is killed after {} s.</p><h2>Goodput</h2>{goodput}<h2>Latency</h2>{slow}",
        KILLED_AFTER.as_secs()
    );
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    let path = folder.join("failover.html");
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&path, shell("A leader dies: Keyward and OpenBao", &body)));
    match written {
        Ok(()) => println!("curves: target/bench/failover.html"),
        Err(error) => println!("the curves could not be written: {error}"),
    }
}
