//! Looking at the trail: filters, both orders, and following it while it grows.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{FOLDER, append, config, health, key_of, open, region, runtime, segment_path, until};
use keyward_audit::testing::FaultyFiles;
use keyward_audit::{
    Actor, Entry, Files, Filter, Follower, Identity, Order, ReadError, Record, SyncMode,
    TrailConfig, Value, follow, read,
};
use keyward_model::{ErrorCode, KmsError, Operation, Timestamp};

const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const KEY_ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

/// Ten records, a minute apart from the first on; every third is refused, every second is on the key.
fn ten(files: &Arc<dyn Files>) {
    let region = region();
    let arns = ["arn:aws:iam::111122223333:user/a", "arn:aws:iam::111122223333:role/b"];
    let actors = arns.map(|arn| Actor::new(&arn.parse().unwrap(), &[1]));
    let refusal = KmsError::new(ErrorCode::AccessDeniedException, "no");
    runtime().block_on(async {
        let (trail, _) = open(files, config(Path::new(FOLDER)));
        for n in 0..10u8 {
            let identity = Identity::Principal(&actors[usize::from(n / 5)]);
            let operation = if n == 9 { Operation::DescribeKey } else { Operation::Encrypt };
            let record = Record {
                key_arns: if n % 2 == 0 { &[KEY] } else { &[] },
                parameters: (n == 5).then_some(&[("keyId", Value::Str(KEY_ID))]),
                refusal: (n % 3 == 0).then_some(&refusal),
                ..Record::call(operation, minute(n.into()), &region, identity)
            };
            trail.append(&record).unwrap().await.unwrap();
        }
        trail.close().await.unwrap();
    });
}

fn minute(n: i64) -> Timestamp {
    Timestamp(1_800_000_000_000 + 60_000 * n)
}

#[test]
fn filters_find_what_they_name_from_either_end() {
    let files: Arc<dyn Files> = Arc::new(FaultyFiles::new());
    ten(&files);
    let numbers = |filter: Filter| -> Vec<u64> {
        let items = read(Arc::clone(&files), Path::new(FOLDER), filter).unwrap();
        items.map(|item| item.unwrap().sequence - 1).collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let all = Filter::default;
    assert_eq!(numbers(all()), Vec::from_iter(0..10));
    let newest = Filter { order: Order::NewestFirst, ..all() };
    assert_eq!(numbers(newest.clone()), Vec::from_iter((0..10).rev()));
    assert_eq!(numbers(Filter { limit: Some(3), ..newest.clone() }), [9, 8, 7]);
    assert!(numbers(Filter { limit: Some(0), ..all() }).is_empty());
    let from_to = Filter { since: Some(minute(2)), until: Some(minute(5)), ..all() };
    assert_eq!(numbers(from_to), [2, 3, 4]);
    let principal = text("arn:aws:iam::111122223333:role/b");
    assert_eq!(numbers(Filter { principal: principal.clone(), ..all() }), [5, 6, 7, 8, 9]);
    for key in [KEY, KEY_ID] {
        assert_eq!(numbers(Filter { key: text(key), ..all() }), [0, 2, 4, 5, 6, 8], "{key}");
    }
    assert!(numbers(Filter { key: text("34cd-56ef-1234567890ab"), ..all() }).is_empty());
    assert_eq!(numbers(Filter { name: text("DescribeKey"), ..all() }), [9]);
    for error in ["AccessDenied", "AccessDeniedException"] {
        assert_eq!(numbers(Filter { error: text(error), ..all() }), [0, 3, 6, 9]);
    }
    let both = Filter { principal, key: text(KEY), limit: Some(1), ..newest };
    assert_eq!(numbers(both), [8]);
}

#[test]
fn damage_is_told_in_its_place_from_either_end() {
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    ten(&files);
    let path = segment_path(Path::new(FOLDER), 1);
    let mut bytes = disk.content(&path).unwrap();
    let third = bytes.windows(12).position(|text| text == b"\"sequence\":3").unwrap();
    bytes[third + 100] ^= 1;
    disk.put(&path, &bytes);
    let numbers = |order| -> Vec<u64> {
        let filter = Filter { order, limit: Some(4), ..Filter::default() };
        let items = read(Arc::clone(&files), Path::new(FOLDER), filter).unwrap();
        items.map(|item| item.map_or(0, |entry| entry.sequence)).collect()
    };
    // Damage does not count against the limit.
    assert_eq!(numbers(Order::OldestFirst), [1, 2, 0, 4, 5]);
    let filter = Filter { order: Order::NewestFirst, ..Filter::default() };
    let items = read(files, Path::new(FOLDER), filter).unwrap();
    let backwards: Vec<u64> = items.map(|item| item.map_or(0, |entry| entry.sequence)).collect();
    assert_eq!(backwards, [10, 9, 8, 7, 6, 5, 4, 0, 2, 1]);
}

fn drain(follower: &mut Follower) -> Vec<Entry> {
    std::iter::from_fn(|| follower.poll_next().unwrap()).collect()
}

#[test]
fn following_gives_every_record_once_across_rolls() {
    let files: Arc<dyn Files> = Arc::new(FaultyFiles::new());
    let folder = Path::new(FOLDER);
    runtime().block_on(async {
        let (trail, _) = open(&files, config(folder));
        append(&trail, "old").unwrap().await.unwrap();
        let mut new = follow(Arc::clone(&files), folder, Filter::default(), None).unwrap();
        let mut all = follow(Arc::clone(&files), folder, Filter::default(), Some(0)).unwrap();
        let mut late = follow(Arc::clone(&files), folder, Filter::default(), Some(40)).unwrap();
        assert_eq!(drain(&mut new), []);
        let mut seen = Vec::new();
        for n in 0..100 {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
            // Sometimes right behind the writer, sometimes several segments.
            if n % 7 == 0 || n % 30 > 20 {
                seen.extend(drain(&mut new));
            }
        }
        // A record is followed once it is in a segment, a moment after its call was answered.
        until("the last record", || {
            seen.extend(drain(&mut new));
            seen.len() >= 100
        })
        .await;
        let keys: Vec<_> = seen.iter().map(key_of).collect();
        assert_eq!(keys, Vec::from_iter((0..100).map(|n| n.to_string())));
        assert_eq!(drain(&mut all).len(), 101);
        assert_eq!(drain(&mut late).first().map(|entry| entry.sequence), Some(41));
    });
}

#[test]
fn following_goes_on_over_a_failure_that_replaced_the_segment() {
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let folder = Path::new(FOLDER);
    runtime().block_on(async {
        // Nothing of the first segment is synced when the sync fails, so its successor takes its name;
        // the second time something is, and the successor has a name of its own.
        for (sync, before) in [(SyncMode::Soon, 1), (SyncMode::Always, 3)] {
            let (trail, _) = open(&files, TrailConfig { sync, ..config(folder) });
            let mut follower = follow(Arc::clone(&files), folder, Filter::default(), None).unwrap();
            let mut expected = Vec::new();
            if sync == SyncMode::Soon {
                disk.set_faults(|faults| faults.failing_syncs = true);
            }
            for n in 0..before {
                append(&trail, &format!("before {n}")).unwrap().await.unwrap();
                expected.push(format!("before {n}"));
            }
            let mut seen = drain(&mut follower);
            disk.set_faults(|faults| faults.failing_syncs = true);
            if sync == SyncMode::Always {
                append(&trail, "doubtful").unwrap().await.unwrap_err();
                expected.push("doubtful".to_owned());
                seen.extend(drain(&mut follower));
            }
            health(&trail, false).await;
            disk.set_faults(|faults| faults.failing_syncs = false);
            health(&trail, true).await;
            append(&trail, "after").unwrap().await.unwrap();
            expected.push("after".to_owned());
            until("the last record", || {
                seen.extend(drain(&mut follower));
                seen.len() >= expected.len()
            })
            .await;
            assert_eq!(seen.iter().map(key_of).collect::<Vec<_>>(), expected);
            trail.close().await.unwrap();
        }
    });
}

#[test]
fn following_tells_damage_once_and_goes_on() {
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    ten(&files);
    let path = segment_path(Path::new(FOLDER), 1);
    let mut bytes = disk.content(&path).unwrap();
    let third = bytes.windows(12).position(|text| text == b"\"sequence\":3").unwrap();
    bytes[third + 100] ^= 1;
    disk.put(&path, &bytes);
    let mut follower = follow(files, Path::new(FOLDER), Filter::default(), Some(0)).unwrap();
    let mut seen = Vec::new();
    loop {
        match follower.poll_next() {
            Ok(Some(entry)) => seen.push(entry.sequence),
            Ok(None) => break,
            Err(ReadError::Damaged(damage)) => {
                assert_eq!(damage.file, path);
                seen.push(0);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, [1, 2, 0, 4, 5, 6, 7, 8, 9, 10]);
}
