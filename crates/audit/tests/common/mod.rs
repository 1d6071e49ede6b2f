//! What the tests share: a runtime, a sample record, and the whole trail as a list.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, each of which uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_audit::{
    Actor, Damage, Entry, Filter, Identity, ReadError, Record, Recovery, Ticket, Trail,
    TrailConfig, Value, read,
};
use keyward_audit::{AuditError, Files};
use keyward_env::{Env, RealEnv};
use keyward_model::{Operation, Region, Timestamp};
use tokio::runtime::Runtime;

pub const FOLDER: &str = "/audit";

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn region() -> Region {
    "eu-west-1".parse().unwrap()
}

pub fn config(folder: &Path) -> TrailConfig {
    TrailConfig { segment_bytes: 4096, ..TrailConfig::new(folder.to_owned(), 1, region()) }
}

pub fn open(files: &Arc<dyn Files>, config: TrailConfig) -> (Trail, Recovery) {
    Trail::open(&RealEnv, Arc::clone(files), config).unwrap()
}

/// Appends a record that names `text` as its key, as soon as there is room.
pub fn append(trail: &Trail, text: &str) -> Result<Ticket, AuditError> {
    loop {
        match append_now(trail, text) {
            Err(AuditError::Busy { .. }) => std::thread::park_timeout(Duration::from_micros(200)),
            other => return other,
        }
    }
}

/// The same, if there is room.
pub fn append_now(trail: &Trail, text: &str) -> Result<Ticket, AuditError> {
    let region = region();
    let arn = "arn:aws:iam::111122223333:user/alice".parse().unwrap();
    let actor = Actor::new(&arn, &[1]);
    trail.append(&Record {
        parameters: Some(&[("keyId", Value::Str(text))]),
        ..Record::call(
            Operation::Encrypt,
            Timestamp(RealEnv.wall_now_ms()),
            &region,
            Identity::Principal(&actor),
        )
    })
}

/// The key that a record names.
pub fn key_of(entry: &Entry) -> String {
    let value: serde_json::Value = serde_json::from_str(&entry.line).unwrap();
    assert_eq!(value["additionalEventData"]["keyward"]["sequence"], entry.sequence);
    value["requestParameters"]["keyId"].as_str().unwrap_or_default().to_owned()
}

pub fn read_all(files: &Arc<dyn Files>, folder: &Path) -> (Vec<Entry>, Vec<Damage>) {
    let (mut entries, mut damaged) = (Vec::new(), Vec::new());
    for item in read(Arc::clone(files), folder, Filter::default()).unwrap() {
        match item {
            Ok(entry) => entries.push(entry),
            Err(ReadError::Damaged(damage)) => damaged.push(damage),
            Err(error) => panic!("{error}"),
        }
    }
    (entries, damaged)
}

/// The keys that the records name, after making sure that nothing is damaged, missing or there twice.
pub fn sound_keys(files: &Arc<dyn Files>, folder: &Path) -> Vec<String> {
    let (entries, damaged) = read_all(files, folder);
    assert_eq!(damaged, []);
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.sequence, entries[0].sequence + index as u64);
    }
    entries.iter().map(key_of).collect()
}

pub fn segment_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("audit-{first:020}.jsonl"))
}

/// Waits for a condition, 10 s at most.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let bound = RealEnv.boot_now() + Duration::from_secs(10);
    while !condition() {
        assert!(RealEnv.boot_now() < bound, "{what} did not come");
        RealEnv.sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the trail fails, or is good again: 10 s at most.
pub async fn health(trail: &Trail, good: bool) {
    let mut watch = trail.watch();
    let changed = async { watch.wait_for(|health| health.is_good() == good).await.is_ok() };
    let changed = RealEnv.timeout(Duration::from_secs(10), changed).await;
    assert_eq!(changed, Some(true), "the trail's health did not become {good}");
}
