//! Many keys: what a call costs among a million of them, what a key costs in memory, and how long starts take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use parking_lot::Mutex;

use crate::loads::{closed, measure, target, window};
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

/// What a call costs on three nodes, beside one: CPU of all processes.
pub async fn three_nodes_beside_one() {
    let one = Region::start(1);
    one.wait_serving(1).await;
    let key = create_key(&one.client(&[])).await.expect("a key");
    let on_one = target(&one, &[1], vec![key], "encrypt").await;
    let three = Region::start_beside(3);
    three.wait_serving(3).await;
    let key = create_key(&three.client(&[])).await.expect("a key");
    let on_three = target(&three, &[1, 2, 3], vec![key], "encrypt").await;
    let (one_pid, three_pids) = ([one.pid(1)], [three.pid(1), three.pid(2), three.pid(3)]);
    let (mut of_one, mut of_three) = (Vec::new(), Vec::new());
    let (mut rate_one, mut rate_three) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (cpu_one, answered_one, _) = window(&on_one, &one_pid, WINDOW).await;
        let (cpu_three, answered_three, _) = window(&on_three, &three_pids, WINDOW).await;
        if round > 0 {
            of_one.push(cpu_one);
            of_three.push(cpu_three);
            rate_one.push(answered_one);
            rate_three.push(answered_three);
        }
    }
    let (middle, low, high) = ratio(&of_three, &of_one);
    println!(
        "CPU of an Encrypt, on three nodes beside one: {:.1} us beside {:.1} us, {middle:.2} times ({low:.2} to {high:.2}); goodput per processor {:.2} times",
        median(of_three),
        median(of_one),
        1.0 / middle
    );
    let (middle, ..) = ratio(&rate_three, &rate_one);
    println!("goodput of three nodes beside one, on the same processors: {middle:.2} times");
}
