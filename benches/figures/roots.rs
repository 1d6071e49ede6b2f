//! A Region moves to new roots while it serves, and a key of it is destroyed.

use std::time::Duration;

use keyward_env::{Env, RealEnv};

use crate::against;
use crate::scale::create_keys;
use crate::support::{
    Load, Region, create_key, found_in, roots_of, schedule_deletion, token_of, wait_until,
};

/// Domain keys that are sealed anew: as many as years of yearly rotation, and the first.
const DOMAIN_KEYS: usize = 4;
/// Clients on each node.
const CLIENTS: usize = 4;

/// Every node gets a new root and loses its old one, under load; then one key is destroyed.
pub async fn a_region_moves(keys: usize) {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    create_keys(&region, keys).await;
    for _ in 1..DOMAIN_KEYS {
        region.run_ok(&["cluster", "rotate-domain-key"]);
    }
    let key = create_key(&region.client(&[])).await.expect("a key");
    let clients = (0..CLIENTS).flat_map(|_| 1..=3).map(|node| region.client(&[node])).collect();
    let load = Load::start(clients, &key, Duration::ZERO);
    let began = RealEnv.boot_now();
    for node in 1..=3 {
        let old = roots_of(&region, node).await.remove(0);
        let path = region.node_folder(node).join("second.key").display().to_string();
        region.run_ok(&["root", "rotate", &node.to_string(), &old, "file", "--path", &path]);
    }
    let took = RealEnv.boot_now() - began;
    wait_until("every root is well", Duration::from_secs(20), async || {
        region.run(&["root", "status"]).status.success()
    })
    .await;
    let calls = load.end().await;
    against(
        &format!("three nodes with {keys} keys and {DOMAIN_KEYS} domain keys move to new roots"),
        took,
        Duration::from_secs(30),
    );
    println!(
        "  calls on all nodes meanwhile: {} answered, {} refused (bar: 0) {:?}",
        calls.answered,
        calls.failures.len(),
        calls.failures.first()
    );
    destroy(&mut region, &key).await;
}

async fn destroy(region: &mut Region, key: &str) {
    let materials = region.run_ok(&["--output", "json", "key", "rotations", key]);
    let material = materials
        .split(|c: char| !c.is_ascii_hexdigit())
        .find(|word| word.len() == 64)
        .expect("a material id");
    region.stop(1);
    let token = token_of(region, 1, material);
    region.start_node(1);
    region.wait_serving(3).await;
    let body = &token[token.len() - 24..];
    let holds = |node: u16| found_in(&region.node_folder(node), body);
    assert!((1..=3).all(|node| holds(node).is_some()), "the search finds what is there");
    schedule_deletion(&region.client(&[]), key, 7).await;
    region.run_ok(&["dev", "clock", "advance", "7d"]);
    let began = RealEnv.boot_now();
    wait_until("gone", Duration::from_secs(120), async || {
        (1..=3).all(|node| holds(node).is_none())
    })
    .await;
    let took = RealEnv.boot_now() - began;
    against("a destroyed key gone from every file of every node", took, Duration::from_secs(60));
    let status = region.run_ok(&["key", "deletion", "status", key]);
    assert!(status.contains("Deleted"), "{status}");
}
