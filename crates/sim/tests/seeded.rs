//! The seeded simulation: 200 seeds (and some that found something) that must break no rule, and runs that must repeat step for step.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use keyward_sim::{Counters, Options, Outcome, Scene, Spared, run};
use parking_lot::Mutex;

const SEEDS: u64 = 200;
const THREADS: usize = 2;

/// Seeds that found something, beyond those of the sweep: a second key after time had jumped, a stale answer after a
/// removal that was tried twice, roots of a node that was removed, material of a deleted key that stayed open, a leader
/// that was no member (204), a root that was slow from the start (1431), a node that was forgotten before its removal was
/// committed (1448), a Region whose next leader waited for somebody to vouch for it (1653).
const FOUND: [u64; 10] = [204, 464, 541, 625, 809, 912, 914, 1431, 1448, 1653];
/// How often each scene is played.
const SCENES: u64 = 8;

fn run_all() -> Vec<Outcome> {
    let next = AtomicU64::new(0);
    let outcomes: Vec<_> = FOUND.map(|seed| run(seed, &Options::default())).into();
    let outcomes = Mutex::new(outcomes);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let outcome = run(seed, &Options::default());
                    outcomes.lock().push(outcome);
                }
            });
        }
    });
    outcomes.into_inner()
}

#[test]
fn no_scene_breaks_a_rule() {
    let runs: Vec<(Scene, u64)> = Scene::ALL
        .into_iter()
        .flat_map(|scene| (0..SCENES).map(move |seed| (scene, seed)))
        .collect();
    let (next, broken) = (AtomicUsize::new(0), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((scene, seed)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, &Options { scene: Some(*scene), ..Options::default() });
                    if !outcome.violations.is_empty() {
                        let (name, violations) = (scene.name(), outcome.violations.join("\n  "));
                        *broken.lock() += &format!(
                            "\nreplay: cargo run -p keyward-sim -- --scene {name} --seed {seed}\n  {violations}"
                        );
                    }
                }
            });
        }
    });
    let broken = broken.into_inner();
    assert!(broken.is_empty(), "{broken}");
}

#[test]
fn no_seed_breaks_a_rule() {
    let outcomes = run_all();
    let mut sum = Counters::default();
    let mut broken = String::new();
    for outcome in &outcomes {
        sum.add(&outcome.counters);
        if !outcome.violations.is_empty() {
            let (seed, violations) = (outcome.seed, outcome.violations.join("\n  "));
            broken +=
                &format!("\nreplay: cargo run -p keyward-sim -- --seed {seed}\n  {violations}");
        }
    }
    assert!(broken.is_empty(), "{broken}");
    assert_eq!(outcomes.len() as u64, SEEDS + FOUND.len() as u64);
    // A run in which nothing happens would prove nothing.
    assert!(sum.acknowledged > 20 * SEEDS, "{sum:?}");
    assert!(sum.calls > 1000 * SEEDS, "{sum:?}");
    assert!(sum.kills + sum.power_cuts > 5 * SEEDS, "{sum:?}");
    assert!(sum.pauses > SEEDS && sum.partitions > SEEDS && sum.hand_overs > SEEDS / 2, "{sum:?}");
    assert!(sum.suspended_leaders > 20 && sum.suspended_followers > 20, "{sum:?}");
    assert!(sum.wrong_leaders > 20 && sum.wrong_followers > 20 && sum.expired_refused > SEEDS);
    assert!(sum.scheduled > 50 && sum.cancelled > 50 && sum.deleted > 20, "{sum:?}");
    assert!(sum.wiped > 10 && sum.old_copies > 10 && sum.foreign_disks > 10, "{sum:?}");
    assert!(sum.rotten_disks > 5 && sum.disk_faults > 50 && sum.snapshots > 20, "{sum:?}");
    assert!(sum.replaced > 10 && sum.joined > 40, "{sum:?}");
    assert!(sum.misused > 50 * SEEDS && sum.chased > SEEDS / 2, "{sum:?}");
    // A quarter of the runs send calls over streams, and half of these end them now and then.
    assert!(sum.streamed > 200 * SEEDS && sum.hung_up > 10, "{sum:?}");
    assert!(sum.streams_broken > 5 * SEEDS && sum.streams_closed > 2 * SEEDS, "{sum:?}");
    assert!(sum.root_faults > 100 && sum.roots_changed > 25 && sum.last_roots_kept > 10, "{sum:?}");
}

#[test]
fn what_is_left_out_does_not_go_wrong() {
    for seed in [3, 11, 204] {
        let kinds = |outcome: &Outcome| outcome.faults.iter().map(|f| f.kind).collect();
        let mut without = Spared(kinds(&run(seed, &Options::default())));
        assert!(without.0.len() > 5, "{without}");
        // Others go wrong once these do not: until none is left.
        loop {
            let outcome = run(seed, &Options { without: without.clone(), ..Options::default() });
            assert_eq!(outcome.violations, Vec::<String>::new());
            if outcome.faults.is_empty() {
                break;
            }
            let left: BTreeSet<_> = kinds(&outcome);
            assert!(left.is_disjoint(&without.0), "{left:?}");
            without.0.extend(left);
        }
    }
}

fn trace_of_another_process(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_keyward-sim"))
        .args(["--seed", &seed.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().next().unwrap().to_owned()
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 1007] {
        let first = run(seed, &Options::default());
        let second = run(seed, &Options::default());
        assert_eq!(first, second, "two runs of seed {seed} in one process");
        let trace = format!("trace {:016x}", first.trace_hash);
        assert_eq!(trace_of_another_process(seed), trace, "seed {seed} in another process");
        assert_eq!(trace_of_another_process(seed), trace, "seed {seed} in a third process");
    }
    let (a, b) = (run(1, &Options::default()), run(2, &Options::default()));
    assert_ne!(a.trace_hash, b.trace_hash, "seeds decide");
}
