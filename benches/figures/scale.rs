//! Many keys: what a call costs among a million of them, what a key costs in memory, and how long starts take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use parking_lot::Mutex;

use crate::loads::{closed, measure, target, target_each, window, window_each};
use crate::servers::{median, ratio, verdict};
use crate::support::{Region, create_key, encrypt, resident_mb, wait_until};

/// Clients that create keys side by side.
const CREATORS: usize = 128;
const ROUNDS: usize = 12;
const WINDOW: Duration = Duration::from_secs(2);

/// Keys, created by many clients side by side.
pub async fn create_keys(region: &Region, keys: usize) -> Vec<String> {
    let left = Arc::new(AtomicUsize::new(keys));
    let made = Arc::new(Mutex::new(Vec::with_capacity(keys)));
    let creators: Vec<_> = (0..CREATORS)
        .map(|_| {
            let (client, left, made) = (region.client(&[]), Arc::clone(&left), Arc::clone(&made));
            <RealEnv as Env>::Runtime::spawn(async move {
                let take = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    let key = create_key(&client).await.expect("a key");
                    made.lock().push(key);
                }
            })
        })
        .collect();
    for creator in creators {
        creator.await.expect("it ends");
    }
    std::mem::take(&mut *made.lock())
}

/// One node with that many keys.
pub async fn many_keys(keys: usize) {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let empty = resident_mb(region.pid(1));
    let began = RealEnv.boot_now();
    // An account has a million at most.
    let all = create_keys(&region, keys).await;
    let took = (RealEnv.boot_now() - began).as_secs_f64();
    println!("{keys} keys created by {CREATORS} clients: {:.0} a second", keys as f64 / took);

    for how in ["kill -9", "SIGTERM"] {
        match how {
            "SIGTERM" => region.stop(1),
            _ => region.kill(1),
        }
        let began = RealEnv.boot_now();
        region.start_node(1);
        region.wait_serving(1).await;
        let took = (RealEnv.boot_now() - began).as_millis();
        println!("restart with {keys} keys after {how}: {took} ms");
    }
    let at_rest = resident_mb(region.pid(1));
    let per_key = |mb: u64| (mb.saturating_sub(empty) << 20) as f64 / keys as f64;
    println!(
        "memory with {keys} keys after a restart: {at_rest} MB, {:.0} bytes a key",
        per_key(at_rest)
    );

    // One hot key beside all of them, in turn.
    let hot = all[0].clone();
    let one = target(&region, &[1], vec![hot.clone()], "encrypt").await;
    let many = target(&region, &[1], all, "encrypt").await;
    let pids = [region.pid(1)];
    measure(&many, closed(64, Duration::from_secs(10))).await;
    let (mut of_one, mut of_many) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for round in 0..ROUNDS * 2 {
        let (load, seen) = match round % 4 {
            0 | 3 => (&one, &mut of_one),
            _ => (&many, &mut of_many),
        };
        let (cpu, _, p99) = window(load, &pids, WINDOW).await;
        seen.0.push(cpu);
        seen.1.push(p99);
    }
    let (middle, low, high) = ratio(&of_many.0, &of_one.0);
    println!(
        "CPU of an Encrypt, {keys} keys in turn beside one: {:.1} us beside {:.1} us, {middle:.2} times ({low:.2} to {high:.2})",
        median(of_many.0),
        median(of_one.0)
    );
    let (middle, low, high) = ratio(&of_many.1, &of_one.1);
    println!(
        "p99 of an Encrypt, {keys} keys in turn beside one: {:.2} ms beside {:.2} ms, {middle:.2} times ({low:.2} to {high:.2}), bar 3: {}",
        median(of_many.1),
        median(of_one.1),
        verdict(low, high, 3.0)
    );
    println!("memory with {keys} keys in use: {} MB", resident_mb(region.pid(1)));
    newcomers(&mut region, &hot, keys).await;
}

/// Nodes that join: the state is sent to them as a snapshot.
async fn newcomers(region: &mut Region, key: &str, keys: usize) {
    for _ in 0..2 {
        let began = RealEnv.boot_now();
        let newcomer = region.join();
        let client = region.client(&[newcomer]);
        let patience = Duration::from_secs(120);
        wait_until("it serves", patience, async || encrypt(&client, key).await.is_ok()).await;
        let took = RealEnv.boot_now() - began;
        println!(
            "node {newcomer} joins {keys} keys by a snapshot, invitation to first Encrypt: {} ms",
            took.as_millis()
        );
        region.wait_serving(usize::from(newcomer)).await;
    }
}

/// What a call costs on three nodes, beside one: CPU of all processes. Each node has as many calls in flight and as many
/// connections as the one: what is compared is nodes, not how many calls share a system call. And what it costs where only
/// one of three is called: then it has the processors to itself, as nodes have on machines of their own, and what calls
/// cost the other nodes would show.
pub async fn three_nodes_beside_one() {
    let one = Region::start(1);
    one.wait_serving(1).await;
    let key = create_key(&one.client(&[])).await.expect("a key");
    let on_one = target(&one, &[1], vec![key], "encrypt").await;
    let three = Region::start_beside(3);
    three.wait_serving(3).await;
    let key = create_key(&three.client(&[])).await.expect("a key");
    let on_three = target_each(&three, &[1, 2, 3], vec![key.clone()], "encrypt").await;
    let on_one_of_three = target(&three, &[2], vec![key], "encrypt").await;
    let (one_pid, three_pids) = ([one.pid(1)], [three.pid(1), three.pid(2), three.pid(3)]);
    let (mut alone, mut all, mut one_of_three) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rate_alone, mut rate_all) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (cpu_alone, answered_alone, _) = window(&on_one, &one_pid, WINDOW).await;
        let (cpu_all, answered_all, _) = window_each(&on_three, &three_pids, WINDOW).await;
        let (cpu_one_of_three, ..) = window(&on_one_of_three, &three_pids, WINDOW).await;
        if round > 0 {
            alone.push(cpu_alone);
            all.push(cpu_all);
            one_of_three.push(cpu_one_of_three);
            rate_alone.push(answered_alone);
            rate_all.push(answered_all);
        }
    }
    for (which, costs) in [("on three nodes", all), ("on one of three nodes", one_of_three)] {
        let (middle, low, high) = ratio(&costs, &alone);
        println!(
            "CPU of an Encrypt, {which} beside one alone: {:.1} us beside {:.1} us, {middle:.2} times ({low:.2} to {high:.2}); goodput per processor {:.2} times",
            median(costs),
            median(alone.clone()),
            1.0 / middle
        );
    }
    let (middle, ..) = ratio(&rate_all, &rate_alone);
    println!("goodput of three nodes beside one, on the same processors: {middle:.2} times");
}
