//! The control plane: how many changes a second beside what the disk can sync, and what changes do to calls on other keys.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_load::percentile;

use crate::loads::{closed, counted, measure, open, target};
use crate::servers::{cpu_of, median, ratio, verdict};
use crate::support::{Region, create_key};

const ROUNDS: usize = 12;
const WINDOW: Duration = Duration::from_secs(3);
/// Entries of the log are about so large.
const ENTRY_BYTES: usize = 1024;
/// Changes a second while calls on other keys are measured, and those calls.
const CHANGES: f64 = 100.0;
const CALLS: f64 = 2000.0;

/// Syncs a second of a file that grows, beside the node's data.
fn syncs(region: &Region, lasts: Duration) -> f64 {
    let path = region.folder.path().join("syncs");
    let mut file = std::fs::File::create(&path).expect("a file");
    let began = RealEnv.boot_now();
    let mut count = 0.0;
    while RealEnv.boot_now() - began < lasts {
        file.write_all(&[7; ENTRY_BYTES]).expect("written");
        file.sync_data().expect("synced");
        count += 1.0;
    }
    count / (RealEnv.boot_now() - began).as_secs_f64()
}

/// CreateKey by 1 and by 64 clients, beside the disk.
pub async fn changes_beside_the_disk() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let load = target(&region, &[1], vec![key], "create-key").await;
    measure(&load, closed(64, WINDOW)).await;
    let (mut one, mut many, mut disk) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        disk.push(syncs(&region, Duration::from_secs(1)));
        for (clients, rates) in [(1, &mut one), (64, &mut many)] {
            let measured = measure(&load, closed(clients, WINDOW)).await;
            let (answered, lost) = counted(&measured);
            assert_eq!(lost, 0, "changes were refused");
            rates.push(answered as f64 / measured.lasted.as_secs_f64());
        }
    }
    let (middle, low, high) = ratio(&one, &disk);
    println!(
        "CreateKey, 1 client: {:.0} a second, the disk syncs {:.0} times a second: {middle:.2} changes a sync ({low:.2} to {high:.2}), at least 0.7: {}",
        median(one),
        median(disk.clone()),
        if low >= 0.7 {
            "held"
        } else if high < 0.7 {
            "MISSED"
        } else {
            "undecided"
        }
    );
    let (middle, low, high) = ratio(&many, &disk);
    println!(
        "CreateKey, 64 clients: {:.0} a second: {middle:.1} changes a sync ({low:.1} to {high:.1})",
        median(many)
    );
}

/// Calls on one key, with and without a hundred changes a second of others.
pub async fn interference() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(create_key(&client).await.expect("a key"));
    }
    let calls = target(&region, &[1], vec![key], "encrypt").await;
    let changes = target(&region, &[1], others, "update-key-description").await;
    let pid = region.pid(1);
    let (mut quiet, mut busy, mut cores) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS as u64 {
        let alone = measure(&calls, open(CALLS, WINDOW, round)).await;
        let before = cpu_of(pid);
        let changing = Arc::clone(&changes);
        let beside = <RealEnv as Env>::Runtime::spawn(async move {
            measure(&changing, open(CHANGES, WINDOW, round)).await
        });
        let among = measure(&calls, open(CALLS, WINDOW, round)).await;
        let (made, lost) = counted(&beside.await.expect("it ends"));
        assert!(lost == 0 && made as f64 > 0.8 * CHANGES * WINDOW.as_secs_f64(), "{made} changes");
        if round > 0 {
            cores.push((cpu_of(pid) - before).as_secs_f64() / WINDOW.as_secs_f64());
            quiet.push(percentile(&alone, 0.99).expect("answers"));
            busy.push(percentile(&among, 0.99).expect("answers"));
        }
    }
    let (middle, low, high) = ratio(&busy, &quiet);
    println!(
        "p99 of an Encrypt among {CHANGES} changes a second of other keys: {:.2} ms beside {:.2} ms, {middle:.2} times ({low:.2} to {high:.2}), bar 1.5: {}; the node used {:.2} processors",
        median(busy),
        median(quiet),
        verdict(low, high, 1.5),
        median(cores)
    );
}
