//! One node's wall clock is a year off, as leader and as follower: nothing is deleted early, nothing runs
//! backwards, nobody loses a call.

use std::path::Path;
use std::time::Duration;

use keyward_env::{Env, RealEnv};

use crate::support::{
    Region, code, create_key, encrypt, schedule_deletion, set_enabled, wait_until,
};

/// libfaketime, from Debian: shifts the wall clock that a process reads through the C library, and no other.
pub const SHIFTER: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The clock of a node started with this goes as the file says.
pub fn shifter(file: &Path) -> Vec<(String, String)> {
    let file = file.display().to_string();
    let set = [
        ("LD_PRELOAD", SHIFTER),
        ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn off_ms(region: &Region, node: u64) -> Option<i64> {
    let status = region.status().await?;
    status.nodes.iter().find(|n| n.node_id == node).and_then(|n| n.clock_off_ms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_a_year_off_destroys_nothing() {
    if !Path::new(SHIFTER).exists() {
        eprintln!("skipped: {SHIFTER} is not installed (Debian: libfaketime)");
        return;
    }
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let (doomed, kept) =
        (create_key(&client).await.expect("a key"), create_key(&client).await.expect("a key"));
    schedule_deletion(&client, &doomed, 7).await;
    let real = || RealEnv.wall_now_ms();
    let file = region.folder.path().join("clock");
    for offset in ["+365d", "-365d"] {
        // As a follower, while it runs.
        let leader = region.leader().await;
        let wrong = (1..=3).find(|node| *node != leader).expect("a follower");
        std::fs::write(&file, "+0").expect("written");
        region.stop(wrong);
        region.environment = shifter(&file);
        region.start_node(wrong);
        region.environment.clear();
        region.wait_serving(3).await;
        std::fs::write(&file, offset).expect("written");
        wait_until("the wrong clock is seen", Duration::from_secs(10), async || {
            off_ms(&region, u64::from(wrong)).await.is_some_and(|off| off.abs() > 300 * 86_400_000)
        })
        .await;
        // Certificates are judged by the Region's time: the node with the wrong clock serves like the others.
        assert_eq!(code(encrypt(&region.client(&[wrong]), &kept).await), "ok", "{offset}");
        // As a leader: it takes over, and hands on by itself.
        drop(region.run(&["cluster", "transfer", "--to", &wrong.to_string()]));
        wait_until("a node with a right clock leads", Duration::from_secs(20), async || {
            region.leader().await != wrong
        })
        .await;
        for round in 0..4 {
            let changer = region.client(&[]);
            set_enabled(&changer, &kept, round % 2 == 1).await.expect("changed");
            RealEnv.sleep(Duration::from_millis(500)).await;
        }
        let status = region.status().await.expect("a status");
        let told = status.time.expect("a time").seconds * 1000;
        assert!((told - real()).abs() < 60_000, "{offset}: Region time is {told}, not {}", real());
        let state = region.run_ok(&["key", "describe", &doomed]);
        assert!(state.contains("PendingDeletion"), "{offset}: {state}");
        let young = create_key(&region.client(&[])).await.expect("a key");
        let described = region.run_ok(&["--output", "json", "key", "describe", &young]);
        let described: serde_json::Value = serde_json::from_str(&described).expect("JSON");
        let year = described["CreationDate"].as_str().expect("a date")[..4].to_owned();
        let now = region.run_ok(&["--output", "json", "key", "describe", &kept]);
        let now: serde_json::Value = serde_json::from_str(&now).expect("JSON");
        assert_eq!(year, now["CreationDate"].as_str().expect("a date")[..4], "{offset}");
        // Started with such a clock, it serves; or it says why it does not start.
        region.stop(wrong);
        region.environment = shifter(&file);
        region.start_node(wrong);
        region.environment.clear();
        if offset.starts_with('-') {
            wait_until("it does not start", Duration::from_secs(10), async || {
                region.has_ended(wrong)
            })
            .await;
            assert!(region.log(wrong).contains("the clock is wrong"), "{}", region.log(wrong));
            region.start_node(wrong);
        }
        region.wait_serving(3).await;
        region.stop(wrong);
        region.start_node(wrong);
        region.wait_serving(3).await;
    }
}
