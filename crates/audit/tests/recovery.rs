//! What a crash leaves, and what the next start makes of it.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{
    FOLDER, append, append_now, config, health, key_of, open, read_all, runtime, segment_path,
    sound_keys,
};
use keyward_audit::testing::FaultyFiles;
use keyward_audit::{
    AuditError, Cut, Files, Filter, Flaw, Order, RealFiles, SyncMode, Trail, TrailConfig, read,
};
use keyward_env::RealEnv;
use proptest::prelude::*;
use tokio::runtime::Runtime;

const RECORDS: usize = 5;

/// A segment of a few records, and the places at which its lines end.
fn segment(runtime: &Runtime) -> (Vec<u8>, Vec<usize>) {
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    runtime.block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        for n in 0..RECORDS {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
        }
        trail.close().await.unwrap();
    });
    let bytes = disk.content(&segment_path(Path::new(FOLDER), 1)).unwrap();
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let ends = ends.map(|(at, _)| at + 1).collect();
    (bytes, ends)
}

#[test]
fn cut_at_any_byte_the_whole_records_stay_the_torn_one_goes_and_the_trail_goes_on() {
    let runtime = runtime();
    let folder = Path::new(FOLDER);
    let (bytes, ends) = segment(&runtime);
    for cut in 0..=bytes.len() {
        for zeros in [0, 500] {
            let disk = FaultyFiles::new();
            let path = segment_path(folder, 1);
            disk.put(&path, &[&bytes[..cut], &vec![0; zeros]].concat());
            let files: Arc<dyn Files> = Arc::new(disk.clone());
            let whole = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            let recovery = runtime.block_on(async {
                let (trail, recovery) = open(&files, config(folder));
                append(&trail, "next").unwrap().await.unwrap();
                trail.close().await.unwrap();
                recovery
            });
            assert_eq!(recovery.next_sequence, whole as u64 + 1, "cut at {cut}");
            assert_eq!(recovery.damaged, [], "cut at {cut}");
            let last_end = ends.iter().rev().find(|end| **end <= cut).copied().unwrap_or(0);
            let torn = (whole > 0 && cut > last_end).then(|| Cut {
                file: path.clone(),
                offset: last_end as u64,
                bytes: (cut - last_end) as u64,
            });
            assert_eq!(recovery.cut, torn, "cut at {cut}");
            let mut expected: Vec<_> = (0..whole).map(|n| n.to_string()).collect();
            expected.push("next".to_owned());
            assert_eq!(sound_keys(&files, folder), expected, "cut at {cut}");
        }
    }
}

#[test]
fn any_changed_byte_is_reported_where_it_is_and_all_other_records_are_read() {
    let runtime = runtime();
    let folder = Path::new(FOLDER);
    let (bytes, ends) = segment(&runtime);
    let path = segment_path(folder, 1);
    // The last line's break is left alone: without it the line is one that was cut off.
    for at in 0..bytes.len() - 1 {
        let change = [1, 0x20, bytes[at]][at % 3];
        let disk = FaultyFiles::new();
        let mut changed = bytes.clone();
        changed[at] ^= change;
        disk.put(&path, &changed);
        let (entries, damaged) = read_all(&(Arc::new(disk) as _), folder);
        let hit = ends.iter().filter(|end| **end <= at).count();
        let line_start = if hit == 0 { 0 } else { ends[hit - 1] as u64 };
        assert!(!damaged.is_empty(), "byte {at} was changed and nobody noticed");
        assert!(damaged.iter().all(|damage| damage.file == path));
        assert_eq!(damaged[0].offset, line_start, "byte {at}: {damaged:?}");
        for entry in &entries {
            assert_eq!(key_of(entry), (entry.sequence - 1).to_string());
        }
        // A line break that is gone takes the next line with it, and nothing else takes two.
        let gone = RECORDS - entries.len();
        assert!(gone <= if bytes[at] == b'\n' { 2 } else { 1 }, "byte {at}: {gone} are gone");
    }
}

#[test]
fn damage_before_good_records_is_left_and_reported_at_the_start() {
    let runtime = runtime();
    let folder = Path::new(FOLDER);
    let (mut bytes, ends) = segment(&runtime);
    bytes[ends[2] + 150] ^= 1;
    let disk = FaultyFiles::new();
    disk.put(&segment_path(folder, 1), &bytes);
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let recovery = runtime.block_on(async {
        let (trail, recovery) = open(&files, config(folder));
        trail.close().await.unwrap();
        recovery
    });
    assert_eq!(recovery.next_sequence, RECORDS as u64 + 1);
    assert_eq!(recovery.cut, None);
    assert_eq!(recovery.damaged.len(), 1);
    assert_eq!(recovery.damaged[0].offset, ends[2] as u64);
    assert_eq!(recovery.damaged[0].flaw, Flaw::Checksum);
    assert_eq!(disk.content(&segment_path(folder, 1)).unwrap(), bytes);
}

#[test]
fn a_segment_with_nothing_readable_is_put_aside_and_not_written_over() {
    let folder = Path::new(FOLDER);
    let disk = FaultyFiles::new();
    disk.put(&segment_path(folder, 7), b"garbage\nmore garbage\n");
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let recovery = runtime().block_on(async {
        let (trail, recovery) = open(&files, config(folder));
        append(&trail, "a").unwrap().await.unwrap();
        trail.close().await.unwrap();
        recovery
    });
    assert_eq!(recovery.next_sequence, 7);
    let aside = recovery.moved_aside.unwrap();
    assert_eq!(disk.content(&aside).unwrap(), b"garbage\nmore garbage\n");
    assert_eq!(sound_keys(&files, folder), ["a"]);
}

#[test]
fn missing_records_are_noticed_within_a_segment_and_between_two() {
    let runtime = runtime();
    let folder = Path::new(FOLDER);
    let (bytes, ends) = segment(&runtime);
    let disk = FaultyFiles::new();
    let without = [&bytes[..ends[1]], &bytes[ends[2]..ends[4]]].concat();
    disk.put(&segment_path(folder, 1), &without);
    disk.put(&segment_path(folder, 8), &[]);
    let (entries, damaged) = read_all(&(Arc::new(disk) as _), folder);
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 3, 4]);
    let flaws: Vec<_> = damaged.iter().map(|damage| damage.flaw).collect();
    assert_eq!(
        flaws,
        [Flaw::Missing { expected: 2, found: 3 }, Flaw::Missing { expected: 5, found: 8 }]
    );
}

/// A runtime on which nothing runs but what is waited for: the writer comes to nothing before the process is killed.
fn busy_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn what_was_answered_and_is_in_no_segment_survives_the_death_of_the_process() {
    let folder = Path::new(FOLDER);
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let mut expected = Vec::new();
    for life in 0..4 {
        let runtime = busy_runtime();
        let opened = runtime.block_on(async {
            let (trail, recovery) = open(&files, config(folder));
            assert_eq!(recovery.from_ring, if life == 0 { 0 } else { 30 });
            assert_eq!(recovery.next_sequence, expected.len() as u64 + 1);
            for n in 0..30 {
                append(&trail, &format!("{life}/{n}")).unwrap().await.unwrap();
                expected.push(format!("{life}/{n}"));
            }
            trail
        });
        drop(runtime);
        drop(opened);
        assert_eq!(sound_keys(&files, folder), expected, "as it lies there");
        let newest = Filter { order: Order::NewestFirst, limit: Some(40), ..Filter::default() };
        let newest: Vec<_> = read(Arc::clone(&files), folder, newest)
            .unwrap()
            .map(|entry| key_of(&entry.unwrap()))
            .collect();
        let last: Vec<_> = expected.iter().rev().take(40).cloned().collect();
        assert_eq!(newest, last);
    }
    let (trail, _) = runtime().block_on(async { open(&files, config(folder)) });
    drop(trail);
    assert_eq!(sound_keys(&files, folder), expected, "after the next start");
}

#[test]
fn a_start_writes_anew_what_a_failed_sync_left_in_memory_alone() {
    let folder = Path::new(FOLDER);
    let disk = FaultyFiles::new();
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let dying = busy_runtime();
    let opened = dying.block_on(async {
        let (trail, _) = open(&files, config(folder));
        disk.set_faults(|faults| faults.failing_syncs = true);
        for n in 0..RECORDS {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
        }
        health(&trail, false).await;
        trail
    });
    drop(dying);
    drop(opened);
    disk.set_faults(|faults| faults.failing_syncs = false);
    // The next start finds the records, and then power is lost.
    let started = busy_runtime();
    let opened = started.block_on(async { open(&files, config(folder)).0 });
    let files: Arc<dyn Files> = Arc::new(disk.crash(|_| 0));
    drop(started);
    drop(opened);
    let expected: Vec<_> = (0..RECORDS).map(|n| n.to_string()).collect();
    assert_eq!(sound_keys(&files, folder), expected);
}

#[test]
fn a_ring_that_cannot_be_read_is_named_and_not_taken_for_an_empty_one() {
    let parent = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(RealFiles);
    busy_runtime().block_on(async {
        let (trail, _) = open(&files, config(parent.path()));
        append(&trail, "a").unwrap().await.unwrap();
        trail.close().await.unwrap();
        let ring = parent.path().join("audit.ring");
        std::fs::create_dir(&ring).unwrap();
        let opened = Trail::open(&RealEnv, Arc::clone(&files), config(parent.path()));
        let Some(AuditError::File { path, .. }) = opened.err() else { panic!("it opens") };
        assert_eq!(path, ring);
        let read = read(Arc::clone(&files), parent.path(), Filter::default()).unwrap();
        let items: Vec<_> = read.map(|item| item.map_err(|error| error.to_string())).collect();
        assert_eq!(items.len(), 2, "the record, and what is wrong: {items:?}");
        assert!(items[0].is_ok() && items[1].as_ref().is_err_and(|why| why.contains("audit.ring")));
        std::fs::remove_dir(&ring).unwrap();
        open(&files, config(parent.path())).0.close().await.unwrap();
    });
}

#[test]
fn a_full_ring_is_waited_for() {
    let files: Arc<dyn Files> = Arc::new(FaultyFiles::new());
    busy_runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        let long = "x".repeat(100_000);
        let mut taken = 0;
        while append_now(&trail, &long).is_ok() {
            taken += 1;
        }
        assert!(taken > 15, "{taken}");
        assert!(matches!(append_now(&trail, &long), Err(AuditError::Busy { .. })));
        for _ in 0..40 {
            trail.put(&RealEnv, |trail| append_now(trail, &long)).await.unwrap();
        }
        trail.close().await.unwrap();
        assert_eq!(sound_keys(&files, Path::new(FOLDER)).len(), taken + 40);
    });
}

/// One life of a node: how it syncs, how many records, whether a sync or a write fails at the end, and what
/// the disk happens to keep of what was not synced.
#[derive(Clone, Debug)]
struct Life {
    always: bool,
    records: usize,
    fault: u8,
    kept: Vec<usize>,
}

fn life() -> impl Strategy<Value = Life> {
    let kept = prop::collection::vec(prop_oneof![Just(0), Just(usize::MAX), 1..2000usize], 1..12);
    (any::<bool>(), 0..25usize, 0..4u8, kept).prop_map(|(always, records, fault, kept)| Life {
        always,
        records,
        fault,
        kept,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn over_power_cuts_no_synced_record_is_lost_and_none_is_invented(
        lives in prop::collection::vec(life(), 1..5),
    ) {
        let folder = Path::new(FOLDER);
        let runtime = runtime();
        let mut disk = FaultyFiles::new();
        let mut appended = Vec::new();
        let mut synced: Vec<(u64, String)> = Vec::new();
        for (n, life) in lives.iter().enumerate() {
            let files: Arc<dyn Files> = Arc::new(disk.clone());
            let sync = if life.always { SyncMode::Always } else { SyncMode::Soon };
            let (trail, recovery) = {
                let _inside = runtime.enter();
                open(&files, TrailConfig { sync, ..config(folder) })
            };
            let newest = synced.last().map_or(0, |(sequence, _)| *sequence);
            prop_assert!(recovery.next_sequence > newest);
            runtime.block_on(async {
                for record in 0..life.records {
                    if record + 3 == life.records {
                        disk.set_faults(|faults| match life.fault {
                            1 => faults.failing_syncs = true,
                            2 => faults.torn_writes = Some(200),
                            _ => {}
                        });
                    }
                    let key = format!("life {n} record {record}");
                    appended.push(key.clone());
                    let Ok(ticket) = append(&trail, &key) else { continue };
                    let sequence = ticket.sequence();
                    if ticket.await.is_ok() && life.always {
                        synced.push((sequence, key));
                    }
                }
            });
            let kept = |change: usize| life.kept[change % life.kept.len()];
            // The old trail still holds the old disk; it is dropped after the power is gone.
            disk = disk.crash(kept);
        }
        let files: Arc<dyn Files> = Arc::new(disk);
        let (trail, _) = {
            let _inside = runtime.enter();
            open(&files, config(folder))
        };
        runtime.block_on(trail.close()).unwrap();
        let (entries, _) = read_all(&files, folder);
        let found: Vec<_> = entries.iter().map(|entry| (entry.sequence, key_of(entry))).collect();
        for record in &synced {
            prop_assert!(found.contains(record), "{record:?} was synced and is lost");
        }
        for (_, key) in &found {
            prop_assert!(appended.contains(key), "{key} was never appended");
        }
        let mut numbers: Vec<_> = found.iter().map(|(sequence, _)| *sequence).collect();
        let in_order = numbers.is_sorted();
        numbers.dedup();
        prop_assert!(in_order && numbers.len() == found.len(), "{numbers:?}");
    }
}
