//! Kills, pauses, restarts, and what must hold through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};

use crate::support::{
    Load, Region, code, create_key, decrypt, encrypt, found_in, set_enabled, wait_until,
};

/// Disable on one node, then the first call on each other: never stale, over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disable_is_seen_by_the_first_call_on_every_node() {
    const ROUNDS: u16 = 1000;
    let region = Region::start(3);
    region.wait_serving(3).await;
    let clients = [1, 2, 3].map(|node| region.client(&[node]));
    let key = create_key(&clients[0]).await.expect("a key");
    for round in 0..ROUNDS {
        let changer = &clients[usize::from(round) % 3];
        set_enabled(changer, &key, false).await.expect("disabled");
        for (node, client) in clients.iter().enumerate() {
            let got = code(encrypt(client, &key).await);
            assert_eq!(got, "DisabledException", "round {round}, node {}", node + 1);
        }
        set_enabled(changer, &key, true).await.expect("enabled");
        for (node, client) in clients.iter().enumerate() {
            assert_eq!(code(encrypt(client, &key).await), "ok", "round {round}, node {}", node + 1);
        }
    }
}

/// The leader dies again and again: survivors refuse nothing, acknowledged changes stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_costs_survivors_no_call_and_loses_no_acknowledged_change() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let mut acknowledged = vec![key.clone()];
    for _ in 0..3 {
        let leader = region.leader().await;
        let survivors: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicU64::new(0));
        let load: Vec<_> = survivors
            .iter()
            .map(|node| {
                let client = region.client(&[*node]);
                let (stop, calls, key) = (Arc::clone(&stop), Arc::clone(&calls), key.clone());
                <RealEnv as Env>::Runtime::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = encrypt(&client, &key).await {
                            failures.push(error.to_string());
                        }
                        calls.fetch_add(1, Ordering::Relaxed);
                        RealEnv.sleep(Duration::from_millis(1)).await;
                    }
                    failures
                })
            })
            .collect();
        wait_until("load runs", Duration::from_secs(5), async || {
            calls.load(Ordering::Relaxed) > 100
        })
        .await;
        region.kill(leader);
        let killed = RealEnv.boot_now();
        acknowledged.push(create_key(&region.client(&survivors)).await.expect("a key"));
        let away = RealEnv.boot_now() - killed;
        assert!(away < Duration::from_secs(2), "the control plane was away for {away:?}");
        stop.store(true, Ordering::Relaxed);
        for client in load {
            let failures = client.await.expect("the load ends");
            assert_eq!(failures, Vec::<String>::new(), "calls failed on a survivor");
        }
        region.start_node(leader);
        region.wait_serving(3).await;
    }
    for node in 1..=3 {
        let client = region.client(&[node]);
        for key in &acknowledged {
            assert_eq!(code(encrypt(&client, key).await), "ok", "key {key} on node {node}");
        }
    }
}

/// A node that stood still through a change must not answer from the past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_paused_beyond_its_lease_serves_nothing_stale() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    for _ in 0..3 {
        let leader = region.leader().await;
        let paused = (1..=3).find(|node| *node != leader).expect("a follower");
        let others: Vec<u16> = (1..=3).filter(|node| *node != paused).collect();
        let stale = region.client(&[paused]);
        assert_eq!(code(encrypt(&stale, &key).await), "ok");
        region.pause(paused);
        let began = RealEnv.boot_now();
        set_enabled(&region.client(&others), &key, false).await.expect("disabled");
        let took = RealEnv.boot_now() - began;
        assert!(took < Duration::from_secs(4), "one mute node held the change up for {took:?}");
        region.resume(paused);
        for _ in 0..50 {
            assert_ne!(code(encrypt(&stale, &key).await), "ok", "served from before the pause");
        }
        region.wait_serving(3).await;
        assert_eq!(code(encrypt(&stale, &key).await), "DisabledException");
        set_enabled(&region.client(&others), &key, true).await.expect("enabled");
    }
}

/// A paused leader is replaced, and does not serve from the past when it wakes up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_is_replaced_and_serves_nothing_stale() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let old = region.leader().await;
    let others: Vec<u16> = (1..=3).filter(|node| *node != old).collect();
    let stale = region.client(&[old]);
    assert_eq!(code(encrypt(&stale, &key).await), "ok");
    region.pause(old);
    set_enabled(&region.client(&others), &key, false).await.expect("disabled by the others");
    region.resume(old);
    for _ in 0..50 {
        assert_ne!(code(encrypt(&stale, &key).await), "ok", "the old leader served from the past");
    }
    region.wait_serving(3).await;
    assert_eq!(code(encrypt(&stale, &key).await), "DisabledException");
}

/// Alone, a node refuses within one lease with an error that says so, and heals by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_refuses_and_heals() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let leader = region.leader().await;
    let others: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
    let alone = region.client(&[leader]);
    others.iter().for_each(|node| region.pause(*node));
    let began = RealEnv.boot_now();
    wait_until("the cut-off leader refuses", Duration::from_secs(5), async || {
        code(encrypt(&alone, &key).await) == "DependencyTimeoutException"
    })
    .await;
    assert!(RealEnv.boot_now() - began < Duration::from_secs(4));
    let error = encrypt(&alone, &key).await.expect_err("refused");
    assert!(error.retryable && error.message.contains("majority"), "{error}");
    let change = region.client_as("dev", &[leader], Duration::from_secs(1));
    let error = set_enabled(&change, &key, false).await.expect_err("no majority");
    assert!(error.retryable, "{error}");
    others.iter().for_each(|node| region.resume(*node));
    region.wait_serving(3).await;
    // The change may have taken effect since: its outcome was not known.
    set_enabled(&region.client(&[]), &key, true).await.expect("enabled");
    assert_eq!(code(encrypt(&alone, &key).await), "ok");
}

/// Everything stops and starts: keys, aliases and ciphertexts are all there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lost_power_serves_again_with_everything_acknowledged() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    region.run_ok(&["alias", "create", "alias/kept", &key]);
    let blob = encrypt(&region.client(&[1]), "alias/kept").await.expect("a ciphertext");
    for node in 1..=3 {
        region.kill(node);
    }
    for node in 1..=3 {
        region.start_node(node);
    }
    region.wait_serving(3).await;
    for node in 1..=3 {
        let client = region.client(&[node]);
        let opened = decrypt(&client, &blob.ciphertext_blob).await.expect("it opens");
        assert_eq!(opened.plaintext, b"plaintext");
        assert_eq!(code(encrypt(&client, "alias/kept").await), "ok");
    }
}

/// A rolling restart with SIGTERM, under load: leadership is handed over, and the nodes that are up refuse no call, from
/// before a node is told to stop until it serves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_refuses_no_call_elsewhere() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    for node in 1..=3u16 {
        let leader = region.leader().await;
        let others: Vec<u16> = (1..=3).filter(|n| *n != node).collect();
        let clients = others.iter().map(|n| region.client(&[*n])).collect();
        let load = Load::start(clients, &key, Duration::from_millis(1));
        RealEnv.sleep(Duration::from_millis(200)).await;
        region.stop(node);
        let began = RealEnv.boot_now();
        let changer = region.client(&others);
        set_enabled(&changer, &key, true).await.expect("the control plane is there");
        let took = RealEnv.boot_now() - began;
        assert!(took < Duration::from_secs(4), "node {node} (leader was {leader}): {took:?}");
        region.start_node(node);
        region.wait_serving(3).await;
        let calls = load.end_well().await;
        println!(
            "node {node} (leader was {leader}): a change after {took:?}; {} calls, the slowest {:?}",
            calls.answered, calls.slowest
        );
    }
}

/// A node is removed, comes back empty, and is added again; leadership moves on request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_removed_added_and_promoted_and_leadership_moves() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[1]), &key).await.expect("a ciphertext").ciphertext_blob;
    // Node 3 has led: its own entries come back to it from others after its disk is emptied.
    region.have_lead(3).await;
    region.run_ok(&["alias", "create", "alias/from-3", &key]);
    region.have_lead(1).await;
    region.run_ok(&["cluster", "remove", "3", "--timeout", "20"]);
    assert_eq!(region.status().await.expect("a status").nodes.len(), 2);
    region.stop(3);
    std::fs::remove_dir_all(region.node_folder(3).join("data")).expect("removed");
    region.start_node(3);
    // Its disk has forgotten what it acknowledged: it comes back under a new id only.
    let address = region.endpoint(3);
    wait_until("the emptied node answers", Duration::from_secs(10), async || {
        let refused = region.run(&["cluster", "add", "3", &address, "--timeout", "30"]);
        assert!(!refused.status.success(), "an emptied node was let in under its old id");
        String::from_utf8_lossy(&refused.stderr).contains("under a new id")
    })
    .await;
    region.stop(3);
    assert_eq!(region.join(), 4);
    region.wait_serving(3).await;
    let newcomer = region.client(&[4]);
    assert_eq!(decrypt(&newcomer, &blob).await.expect("it opens").plaintext, b"plaintext");
    // Rotating the domain key needs a copy for each root, the newcomer's too.
    region.run_ok(&["cluster", "rotate-domain-key"]);
    let young = create_key(&region.client(&[2])).await.expect("a key");
    assert_eq!(code(encrypt(&newcomer, &young).await), "ok");
    assert_eq!(decrypt(&newcomer, &blob).await.expect("it opens").plaintext, b"plaintext");
    wait_until("the newcomer votes", Duration::from_secs(10), async || {
        let status = region.status().await.unwrap_or_default();
        status.nodes.iter().any(|node| node.node_id == 4 && node.role == "voter")
    })
    .await;
    region.have_lead(4).await;
    let unknown = region.run(&["cluster", "remove", "9"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("NotFoundException"));
    assert!(found_in(region.folder.path(), b"plaintext").is_none());
}

/// A node that comes when the log no longer begins at the beginning gets a snapshot, and serves from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_sent_a_snapshot_when_the_log_was_purged() {
    /// Snapshots come every 10,000 entries, and 2,000 entries are kept behind one.
    const KEYS: u64 = 12_500;
    const CREATORS: usize = 64;
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    region.have_lead(1).await;
    let left = Arc::new(AtomicU64::new(KEYS));
    let creators: Vec<_> = (0..CREATORS)
        .map(|_| {
            let (client, left) = (region.client(&[1]), Arc::clone(&left));
            <RealEnv as Env>::Runtime::spawn(async move {
                let mut last = None;
                let take = |n: u64| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    last = Some(create_key(&client).await.expect("a key"));
                }
                last
            })
        })
        .collect();
    let mut keys = Vec::new();
    for creator in creators {
        keys.extend(creator.await.expect("it ends"));
    }
    region.run_ok(&["cluster", "remove", "3", "--timeout", "20"]);
    region.stop(3);
    let newcomer = region.join();
    region.wait_serving(3).await;
    let client = region.client(&[newcomer]);
    for key in &keys {
        assert_eq!(code(encrypt(&client, key).await), "ok", "key {key}");
    }
    let state = region.node_folder(newcomer).join("data/state/CURRENT-DB");
    let current = std::fs::read_to_string(state).expect("read");
    assert_eq!(current.trim(), "db-2", "the state came as a snapshot");
    // What was installed survives a restart, and goes on from there.
    region.kill(newcomer);
    region.start_node(newcomer);
    region.wait_serving(3).await;
    let late = create_key(&region.client(&[1])).await.expect("a key");
    for key in keys.iter().take(5).chain([&late]) {
        assert_eq!(code(encrypt(&client, key).await), "ok", "key {key}");
    }
}

/// A node that was away while many changes were made is sent what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_many_changes_catches_up() {
    /// More than a node keeps in memory.
    const CHANGES: u64 = 22_000;
    const CHANGERS: usize = 64;
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    region.have_lead(1).await;
    let first = create_key(&region.client(&[1])).await.expect("a key");
    region.kill(3);
    let left = Arc::new(AtomicU64::new(CHANGES));
    let changers: Vec<_> = (0..CHANGERS)
        .map(|_| {
            let (client, left) = (region.client(&[1]), Arc::clone(&left));
            <RealEnv as Env>::Runtime::spawn(async move {
                let key = create_key(&client).await.expect("a key");
                let take = |n: u64| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    set_enabled(&client, &key, true).await.expect("changed");
                }
                key
            })
        })
        .collect();
    let mut keys = vec![first];
    for changer in changers {
        keys.push(changer.await.expect("it ends"));
    }
    region.start_node(3);
    region.wait_serving(3).await;
    let client = region.client(&[3]);
    for key in &keys {
        assert_eq!(code(encrypt(&client, key).await), "ok", "key {key}");
    }
}
