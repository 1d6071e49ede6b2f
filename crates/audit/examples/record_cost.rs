//! What a record costs in CPU time, for decision 0008: `cargo run --release -p keyward-audit --example record_cost`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_audit::{
    Actor, AuditError, Client, Identity, RealFiles, Record, Ticket, Tls, Trail, TrailConfig, Value,
};
use keyward_env::{Env, RealEnv};
use keyward_model::{Operation, PrincipalArn, Region, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// As many as the ring holds: here the disk is not to be waited for.
const RECORDS: u64 = 20_000;
const ROUNDS: usize = 8;
const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

struct Sample {
    region: Region,
    actor: Actor,
    client: Client,
    context: BTreeMap<String, String>,
}

impl Sample {
    fn append(&self, trail: &Trail) -> Result<Ticket, AuditError> {
        let identity = Identity::Principal(&self.actor);
        let time = Timestamp(RealEnv.wall_now_ms());
        trail.append(&Record {
            client: Some(&self.client),
            request_id: Some([9; 16]),
            parameters: Some(&[
                ("keyId", Value::Str(KEY)),
                ("encryptionContext", (&self.context).into()),
                ("encryptionAlgorithm", Value::Str("SYMMETRIC_DEFAULT")),
            ]),
            additional: &[("keyMaterialId", Value::Str(&KEY[..64]))],
            key_arns: &[KEY],
            ..Record::call(Operation::Encrypt, time, &self.region, identity)
        })
    }
}

fn sample() -> Arc<Sample> {
    let arn: PrincipalArn =
        "arn:aws:iam::111122223333:user/alice".parse().unwrap_or_else(|e| panic!("{e}"));
    let tls = Tls {
        version: "TLSv1.3",
        cipher_suite: "TLS_AES_256_GCM_SHA384",
        host: Some("kms.example:7101"),
    };
    let ip = Some([192, 0, 2, 1].into());
    Arc::new(Sample {
        region: "eu-west-1".parse().unwrap_or_else(|error| panic!("{error}")),
        actor: Actor::new(&arn, &[7; 16]),
        client: Client::new(ip, Some("keyward-client/0.1"), Some(tls)),
        context: BTreeMap::from([("tenant".to_owned(), "blue-0042".to_owned())]),
    })
}

async fn in_flight(trail: &Arc<Trail>, sample: &Arc<Sample>, tasks: u64) {
    let left = Arc::new(AtomicU64::new(RECORDS));
    let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
    for _ in 0..tasks {
        let (trail, sample, left) = (Arc::clone(trail), Arc::clone(sample), Arc::clone(&left));
        let done = done.clone();
        RealEnv.spawn(async move {
            let claim =
                || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            while claim().is_ok() {
                let put = trail.put(&RealEnv, |trail| sample.append(trail)).await;
                put.unwrap_or_else(|error| panic!("{error}"));
            }
            drop(done);
        });
    }
    drop(done);
    let _ = all_done.recv().await;
}

fn best(what: &str, per: u64, mut round: impl FnMut()) {
    let best = (0..ROUNDS).map(|_| {
        std::thread::park_timeout(Duration::from_millis(500));
        let (cpu_began, began) = (cpu(), RealEnv.boot_now());
        round();
        (cpu() - cpu_began, RealEnv.boot_now() - began)
    });
    let (cpu, wall) = best.min().unwrap_or_default();
    let us = |time: Duration| time.as_secs_f64() * 1e6 / per as f64;
    println!("{what:60} {:6.2} us CPU  {:6.2} us wall", us(cpu), us(wall));
}

fn inline_writes(folder: &Path, line: &[u8]) {
    let file = File::create(folder.join("inline")).unwrap_or_else(|error| panic!("{error}"));
    for n in 0..RECORDS {
        let at = n % 50_000 * line.len() as u64;
        file.write_all_at(line, at).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "target/audit-cost".to_owned());
    let folder = Path::new(&folder);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let config = TrailConfig {
        keep: keyward_audit::Keep { bytes: Some(256 << 20), days: None },
        ..TrailConfig::new(folder.to_owned(), 1, sample().region.clone())
    };
    let sample = sample();
    runtime.block_on(async {
        let opened = Trail::open(&RealEnv, Arc::new(RealFiles), config);
        let trail = Arc::new(opened.unwrap_or_else(|error| panic!("{error}")).0);
        for tasks in [1, 8, 64, 512] {
            best(&format!("append and wait, {tasks} in flight"), RECORDS, || {
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(in_flight(&trail, &sample, tasks));
                });
            });
        }
    });
    best("for comparison: one write(2) of 900 bytes a record", RECORDS, || {
        inline_writes(folder, &[b'x'; 900]);
    });
}
