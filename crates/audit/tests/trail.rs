//! The trail while it runs: many callers, restarts, rolls, full and failing disks, retention.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{
    FOLDER, append, config, health, open, read_all, region, runtime, segment_path, sound_keys,
    until,
};
use keyward_audit::testing::FaultyFiles;
use keyward_audit::{
    AuditError, Files, Health, Identity, Keep, RealFiles, Record, SyncMode, TrailConfig, Value,
};
use keyward_env::{Env, RealEnv};
use keyward_model::{Operation, Timestamp};

fn faulty() -> (FaultyFiles, Arc<dyn Files>) {
    let disk = FaultyFiles::new();
    (disk.clone(), Arc::new(disk))
}

#[test]
fn records_of_many_threads_are_all_there_in_sequence_and_none_twice() {
    const THREADS: usize = 64;
    const EACH: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(RealFiles);
    let runtime = runtime();
    let _inside = runtime.enter();
    // Small enough that it rolls dozens of times meanwhile.
    let config = TrailConfig { segment_bytes: 1 << 20, ..config(folder.path()) };
    let (trail, _) = open(&files, config);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let trail = &trail;
            scope.spawn(move || {
                let mut last = 0;
                for n in 0..EACH {
                    let ticket = append(trail, &format!("{thread}/{n}")).unwrap();
                    assert!(ticket.sequence() > last, "numbers rise for one caller");
                    last = ticket.sequence();
                    ticket.wait().unwrap();
                }
            });
        }
    });
    runtime.block_on(trail.close()).unwrap();
    let mut keys = sound_keys(&files, folder.path());
    assert_eq!(keys.len(), THREADS * EACH);
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), THREADS * EACH);
}

#[test]
fn a_record_is_in_the_file_when_its_ticket_is_done() {
    let (_, files) = faulty();
    runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        for n in 0..50 {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
            assert_eq!(sound_keys(&files, Path::new(FOLDER)).len(), n + 1);
        }
    });
}

#[test]
fn numbers_go_on_after_a_restart_and_segments_that_hold_nothing_do_not_pile_up() {
    let (disk, files) = faulty();
    let folder = Path::new(FOLDER);
    runtime().block_on(async {
        for start in 0..4u64 {
            let (trail, recovery) = open(&files, config(folder));
            assert_eq!(recovery.next_sequence, 1 + 2 * start);
            assert_eq!((recovery.cut, recovery.damaged), (None, vec![]));
            append(&trail, "a").unwrap().await.unwrap();
            append(&trail, "b").unwrap().await.unwrap();
            trail.close().await.unwrap();
            // A start that records nothing.
            open(&files, config(folder)).0.close().await.unwrap();
        }
    });
    assert_eq!(sound_keys(&files, folder), ["a", "b"].repeat(4));
    let expected: Vec<_> = [1, 3, 5, 7, 9].map(|first| segment_path(folder, first)).into();
    assert_eq!(disk.names(), expected);
}

#[test]
fn files_are_for_the_owner_to_write_and_for_the_group_to_read() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("audit");
    let files: Arc<dyn Files> = Arc::new(RealFiles);
    runtime().block_on(async {
        let (trail, _) = open(&files, config(&folder));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder) & !0o750, 0);
        let path = segment_path(&folder, 1);
        assert_eq!(mode(&path) & !0o640, 0);
        append(&trail, "a").unwrap().await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096, "taken from the disk at once");
        trail.close().await.unwrap();
        let text = std::fs::read(&path).unwrap();
        assert!(!text.contains(&0), "unused space is given back");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 2);
    });
}

#[test]
fn records_are_synced_soon_by_themselves() {
    let (disk, files) = faulty();
    runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        let before = disk.syncs();
        append(&trail, "a").unwrap().await.unwrap();
        until("a sync", || disk.syncs() > before).await;
        let after = disk.crash(|_| 0);
        assert_eq!(sound_keys(&(Arc::new(after) as _), Path::new(FOLDER)), ["a"]);
    });
}

#[test]
fn with_sync_always_a_record_is_on_disk_before_its_ticket_is_done() {
    let (disk, files) = faulty();
    let folder = Path::new(FOLDER);
    runtime().block_on(async {
        let (trail, _) = open(&files, TrailConfig { sync: SyncMode::Always, ..config(folder) });
        for n in 0..30 {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
            let after: Arc<dyn Files> = Arc::new(disk.crash(|_| 0));
            assert_eq!(sound_keys(&after, folder).len(), n + 1);
        }
    });
}

/// Fails the trail in one way, and mends it: what was acknowledged is there afterwards, once, in order,
/// and what was refused outright is not.
fn fails_and_comes_back(
    sync: SyncMode,
    segment_bytes: u64,
    break_it: fn(&FaultyFiles),
    mend_it: fn(&FaultyFiles),
) -> (FaultyFiles, AuditError) {
    let (disk, files) = faulty();
    let folder = Path::new(FOLDER);
    let reason = runtime().block_on(async {
        let (trail, _) = open(&files, TrailConfig { sync, segment_bytes, ..config(folder) });
        let mut acknowledged = Vec::new();
        for n in 0..5 {
            append(&trail, &format!("before {n}")).unwrap().await.unwrap();
            acknowledged.push(format!("before {n}"));
        }
        break_it(&disk);
        // Until it fails, records are taken or refused; those of tickets that failed may turn up.
        let mut doubtful = Vec::new();
        for n in 0.. {
            assert!(n < 10_000, "it does not fail");
            let key = format!("broken {n}");
            let Ok(ticket) = append(&trail, &key) else { break };
            match ticket.await {
                Ok(()) => acknowledged.push(key),
                Err(_) => doubtful.push(key),
            }
            RealEnv.sleep(Duration::from_millis(1)).await;
        }
        health(&trail, false).await;
        let Health::Failing { since, reason } = trail.health() else { panic!("it fails") };
        assert!((RealEnv.wall_now_ms() - since.0).abs() < 60_000);
        assert!(trail.check().unwrap_err().is_failure());
        assert!(append(&trail, "refused").is_err());
        // It tries, and still cannot.
        RealEnv.sleep(Duration::from_millis(600)).await;
        assert!(append(&trail, "refused").is_err());
        mend_it(&disk);
        health(&trail, true).await;
        trail.check().unwrap();
        append(&trail, "after").unwrap().await.unwrap();
        acknowledged.push("after".to_owned());
        // A crash right now loses nothing that the trail had before it came back.
        let crashed: Arc<dyn Files> = Arc::new(disk.crash(|_| 0));
        let survived = sound_keys(&crashed, folder);
        for key in acknowledged.iter().filter(|key| *key != "after") {
            assert!(survived.contains(key), "{key} was lost");
        }
        trail.close().await.unwrap();
        let keys = sound_keys(&files, folder);
        // What was rewritten is in one file only, and no half record in any.
        let texts: Vec<_> = disk.names().iter().map(|path| disk.content(path).unwrap()).collect();
        assert!(texts.iter().all(|text| text.ends_with(b"\n")));
        let lines = texts.iter().flatten().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, texts.len() + keys.len(), "headers and records");
        let certain: Vec<_> = keys.iter().filter(|key| !doubtful.contains(key)).collect();
        assert_eq!(certain, acknowledged.iter().collect::<Vec<_>>());
        reason
    });
    (disk, reason)
}

#[test]
fn a_full_disk_fails_the_trail_and_space_brings_it_back() {
    let (_, reason) = fails_and_comes_back(
        SyncMode::Soon,
        8192,
        |disk| disk.set_faults(|faults| faults.space_bytes = Some(20_000)),
        |disk| disk.set_faults(|faults| faults.space_bytes = None),
    );
    assert!(matches!(reason, AuditError::DiskFull { .. }), "{reason}");
    assert!(reason.to_string().contains("free some"), "{reason}");
}

#[test]
fn a_full_disk_shows_at_the_roll_and_takes_nothing_from_what_is_there() {
    let (disk, _) = fails_and_comes_back(
        SyncMode::Always,
        8192,
        |disk| disk.set_faults(|faults| faults.space_bytes = Some(8192)),
        |disk| disk.set_faults(|faults| faults.space_bytes = None),
    );
    let first = disk.content(&segment_path(Path::new(FOLDER), 1)).unwrap();
    assert!(first.len() > 7000, "the first segment was filled before: {}", first.len());
}

#[test]
fn a_torn_write_fails_the_trail_and_leaves_no_half_record() {
    for torn in [0, 1, 100, 300] {
        let faults = [0, 1, 100, 300].iter().position(|one| *one == torn).unwrap();
        const BREAK: [fn(&FaultyFiles); 4] = [
            |disk| disk.set_faults(|faults| faults.torn_writes = Some(0)),
            |disk| disk.set_faults(|faults| faults.torn_writes = Some(1)),
            |disk| disk.set_faults(|faults| faults.torn_writes = Some(100)),
            |disk| disk.set_faults(|faults| faults.torn_writes = Some(300)),
        ];
        let mend: fn(&FaultyFiles) = |disk| disk.set_faults(|faults| faults.torn_writes = None);
        let (_, reason) = fails_and_comes_back(SyncMode::Soon, 1 << 20, BREAK[faults], mend);
        assert!(matches!(reason, AuditError::File { .. }), "{reason}");
    }
}

#[test]
fn after_a_failed_sync_what_it_covered_is_written_anew_and_never_just_synced_again() {
    for sync in [SyncMode::Soon, SyncMode::Always] {
        let (_, reason) = fails_and_comes_back(
            sync,
            1 << 20,
            |disk| disk.set_faults(|faults| faults.failing_syncs = true),
            |disk| disk.set_faults(|faults| faults.failing_syncs = false),
        );
        assert!(reason.to_string().contains("sync"), "{reason}");
    }
}

#[test]
fn a_folder_that_is_gone_for_a_while_is_found_again() {
    fails_and_comes_back(
        SyncMode::Always,
        1 << 20,
        |disk| disk.set_faults(|faults| faults.gone = true),
        |disk| disk.set_faults(|faults| faults.gone = false),
    );
}

#[test]
fn a_trail_that_cannot_be_written_does_not_open() {
    let (disk, files) = faulty();
    disk.set_faults(|faults| faults.space_bytes = Some(100));
    runtime().block_on(async {
        let opened =
            keyward_audit::Trail::open(&RealEnv, Arc::clone(&files), config(Path::new(FOLDER)));
        assert!(matches!(opened.err(), Some(AuditError::DiskFull { .. })));
        assert_eq!(disk.names(), Vec::<std::path::PathBuf>::new(), "nothing half-made is left");
    });
}

#[test]
fn old_segments_go_when_too_much_is_kept_and_that_is_on_record_first() {
    let (disk, files) = faulty();
    let folder = Path::new(FOLDER);
    runtime().block_on(async {
        let keep = Keep { bytes: Some(20_000), days: None };
        let (trail, _) = open(&files, TrailConfig { keep, ..config(folder) });
        for n in 0..100 {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
        }
        until("a removal", || disk.content(&segment_path(folder, 1)).is_none()).await;
        trail.close().await.unwrap();
    });
    let (entries, damaged) = read_all(&files, folder);
    assert_eq!(damaged, []);
    assert!(entries[0].sequence > 1);
    let removal = entries.iter().find(|entry| entry.line.contains("RemoveAuditSegments")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&removal.line).unwrap();
    assert_eq!(value["eventType"], "AwsServiceEvent");
    assert_eq!(value["serviceEventDetails"]["firstSequence"], 1);
    let last = value["serviceEventDetails"]["lastSequence"].as_u64().unwrap();
    assert!(last < entries[0].sequence);
}

#[test]
fn nothing_is_removed_by_default() {
    let (disk, files) = faulty();
    runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        for n in 0..100 {
            append(&trail, &n.to_string()).unwrap().await.unwrap();
        }
        trail.close().await.unwrap();
    });
    assert!(disk.names().len() > 10);
    assert_eq!(sound_keys(&files, Path::new(FOLDER)).len(), 100);
}

#[test]
fn a_closed_trail_takes_nothing_and_has_what_it_took() {
    let (_, files) = faulty();
    runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        let tickets: Vec<_> = (0..20).map(|n| append(&trail, &n.to_string()).unwrap()).collect();
        trail.close().await.unwrap();
        for ticket in tickets {
            ticket.await.unwrap();
        }
    });
    assert_eq!(sound_keys(&files, Path::new(FOLDER)).len(), 20);
}

#[test]
fn a_record_beyond_every_bound_is_refused_and_a_large_one_is_not() {
    let (_, files) = faulty();
    let region = region();
    runtime().block_on(async {
        let (trail, _) = open(&files, config(Path::new(FOLDER)));
        let append = |policy: &str| {
            trail.append(&Record {
                parameters: Some(&[("policy", Value::Str(policy))]),
                ..Record::call(Operation::CreateKey, Timestamp(0), &region, Identity::Unknown)
            })
        };
        // The largest request that a door takes, in the bytes that grow most.
        append(&"\u{1}".repeat(256 * 1024)).unwrap().await.unwrap();
        let refused = append(&"\u{1}".repeat(400 * 1024)).err();
        assert!(matches!(refused, Some(AuditError::TooLarge { .. })));
        append("small").unwrap().await.unwrap();
        trail.close().await.unwrap();
    });
    let (entries, damaged) = read_all(&files, Path::new(FOLDER));
    assert_eq!((entries.len(), damaged), (2, vec![]));
}
