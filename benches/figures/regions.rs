//! Several Regions: how far replicas lag behind, and how long a failover takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_proto::v1;

use crate::support::regions::{NAMES, Regions};
use crate::support::{Load, encrypt, wait_until};

const IRELAND: &str = NAMES[1];
const VIRGINIA: &str = NAMES[2];
/// Changes a second beside those that are timed.
const CHANGES: u64 = 100;
/// Changes that are timed, one after the other.
const PROBES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls under way while keys are made.
const CREATORS: usize = 64;

async fn rotate_every(client: &Client, key: &str, days: i32) -> Result<(), CallError> {
    let request = v1::EnableKeyRotationRequest {
        key_id: key.to_owned(),
        rotation_period_in_days: Some(days),
    };
    let changed =
        client.key(Repeat::Safe, request, |mut c, r| async move { c.enable_key_rotation(r).await });
    changed.await.map(drop)
}

async fn period(client: &Client, key: &str) -> Option<i32> {
    let request = v1::GetKeyRotationStatusRequest { key_id: key.to_owned() };
    let told = client
        .key(Repeat::Safe, request, |mut c, r| async move { c.get_key_rotation_status(r).await });
    told.await.ok()?.rotation_period_in_days
}

async fn make(client: &Client, to: &[&str]) -> String {
    let request =
        v1::CreateKeyRequest { multi_region: Some(true), ..v1::CreateKeyRequest::default() };
    let made = client
        .key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_key(r).await })
        .await
        .expect("a key");
    let key = made.key_metadata.expect("metadata").key_id;
    for region in to {
        let request = v1::ReplicateKeyRequest {
            key_id: key.clone(),
            replica_region: (*region).to_owned(),
            ..v1::ReplicateKeyRequest::default()
        };
        client
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.replicate_key(r).await })
            .await
            .expect("replicated");
    }
    key
}

/// Three Regions of three nodes.
pub async fn lag_and_failover(keys: usize) {
    let regions = Regions::start(3);
    let (virginia, ireland) =
        (regions.client(VIRGINIA, PATIENCE), regions.client(IRELAND, PATIENCE));
    memory(&regions);
    usable_after_replicate(&virginia, &ireland).await;
    lag(&regions, &virginia, &ireland).await;
    failover(&regions, keys).await;
}

/// What the nine processes keep in RAM together: pages that several of them map, as those of the program, count once
/// (proportional set size, proc_pid_smaps_rollup(5)).
fn memory(regions: &Regions) {
    let kib = |process: u32| {
        let all = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = all.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let nodes = regions.processes();
    let all: u64 = nodes.iter().filter_map(|process| kib(*process)).sum();
    println!("{} processes, three Regions: {} MiB in RAM (bar: 600 MB)", nodes.len(), all >> 10);
}

async fn usable_after_replicate(virginia: &Client, ireland: &Client) {
    let mut took = Vec::new();
    for _ in 0..20 {
        let key = make(virginia, &[IRELAND]).await;
        let began = RealEnv.boot_now();
        while encrypt(ireland, &key).await.is_err() {
            RealEnv.sleep(Duration::from_millis(1)).await;
        }
        took.push(RealEnv.boot_now() - began);
    }
    let (median, most) = crate::milliseconds(took);
    println!(
        "a replica is usable after ReplicateKey: {median} ms, at most {most} ms of 20 (bar: 1000 ms)"
    );
}

async fn lag(regions: &Regions, virginia: &Arc<Client>, ireland: &Arc<Client>) {
    let key = regions.key_everywhere(VIRGINIA).await;
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(make(virginia, &NAMES[..2]).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let beside: Vec<_> = (0..4)
        .map(|part: usize| {
            let (client, stop) = (Arc::clone(virginia), Arc::clone(&stop));
            let others = others.clone();
            <RealEnv as Env>::Runtime::spawn(async move {
                let (began, mut made) = (RealEnv.boot_now(), 0u32);
                while !stop.load(Ordering::Relaxed) {
                    let key = &others[(made as usize * 4 + part) % others.len()];
                    rotate_every(&client, key, 90 + (made % 1000) as i32).await.expect("changed");
                    made += 1;
                    let due = began + Duration::from_secs(1) * made * 4 / CHANGES as u32;
                    RealEnv.sleep(due.saturating_sub(RealEnv.boot_now())).await;
                }
                f64::from(made) / (RealEnv.boot_now() - began).as_secs_f64()
            })
        })
        .collect();
    let mut lags = Vec::new();
    for probe in 0..PROBES {
        let days = 100 + i32::try_from(probe).expect("few");
        rotate_every(virginia, &key, days).await.expect("changed");
        let acknowledged = RealEnv.boot_now();
        while period(ireland, &key).await != Some(days) {
            RealEnv.sleep(Duration::from_millis(1)).await;
        }
        lags.push(RealEnv.boot_now() - acknowledged);
    }
    stop.store(true, Ordering::Relaxed);
    let mut rate = 0.0;
    for changer in beside {
        rate += changer.await.expect("it ends");
    }
    lags.sort_unstable();
    let at = |part: usize| lags[lags.len() * part / 100].as_millis();
    println!(
        "replication lag, acknowledged to seen in another Region, {rate:.0} changes a second beside it: p50 {} ms, p99 {} ms (bar: 500 ms)",
        at(50),
        at(99)
    );
}

async fn failover(regions: &Regions, keys: usize) {
    let clients: Vec<_> = (0..CREATORS).map(|_| regions.client(VIRGINIA, PATIENCE)).collect();
    let makers = clients.into_iter().enumerate().map(|(number, client)| {
        <RealEnv as Env>::Runtime::spawn(async move {
            let mut last = String::new();
            for _ in (number..keys).step_by(CREATORS) {
                last = make(&client, &NAMES[..2]).await;
            }
            last
        })
    });
    let mut key = String::new();
    for maker in makers.collect::<Vec<_>>() {
        key = maker.await.expect("it ends");
    }
    let shipped = |status: &serde_json::Value| {
        status["Links"].as_array().is_some_and(|all| all.iter().all(|one| one["Unshipped"] == 0))
    };
    let settled = async || shipped(&regions.json(VIRGINIA, &["region", "status"]));
    wait_until("all is replicated", Duration::from_secs(120), settled).await;
    let client = regions.client(IRELAND, PATIENCE);
    wait_until("the last key is there", Duration::from_secs(20), async || {
        encrypt(&client, &key).await.is_ok()
    })
    .await;
    let load = Load::start(
        NAMES.iter().map(|region| regions.client(region, PATIENCE)).collect(),
        &key,
        Duration::from_millis(5),
    );
    let began = RealEnv.boot_now();
    let moved = regions.json(VIRGINIA, &["region", "fail-over", IRELAND]);
    let took = RealEnv.boot_now() - began;
    let calls = load.end().await;
    println!(
        "planned failover of {} keys: {} ms, {} left; {} calls in all Regions meanwhile, {} failed (bar: 10 s for 1,000 keys, none lost)",
        moved["Offered"],
        took.as_millis(),
        moved["Left"],
        calls.answered,
        calls.failures.len()
    );
    regions.fault(&["down", IRELAND]);
    let mut took = Duration::ZERO;
    wait_until("the loss is noticed", Duration::from_secs(20), async || {
        let began = RealEnv.boot_now();
        let promoted = regions.run(VIRGINIA, &["region", "promote", IRELAND]).status.success();
        took = RealEnv.boot_now() - began;
        promoted
    })
    .await;
    println!(
        "promotion after a loss: {} ms of operator time (bar: 5 s); refused for 5 s after the Region was last heard",
        took.as_millis()
    );
}
