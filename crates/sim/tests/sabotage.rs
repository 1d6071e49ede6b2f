//! Proof that the simulator can fail: each known bug must be found within a stated number of seeds, by the rule that
//! it breaks (docs/simulation.md, "That it can fail"). `make test-sabotage` runs it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::sabotage::{Bug, select};
use keyward_sim::{Options, Scene, run, shrink};
use parking_lot::Mutex;

const THREADS: usize = 2;
/// Bugs that must be found at least.
const CAUGHT_MIN: usize = 20;

/// A bug, the seeds among which one must find it, and what the broken rule is called.
struct Case {
    bug: Bug,
    from: u64,
    within: u64,
    says: &'static str,
    /// Whether it takes several Regions.
    regions: bool,
    /// The moment that is staged for it.
    scene: Option<Scene>,
}

const fn case(bug: Bug, from: u64, within: u64, says: &'static str) -> Case {
    Case { bug, from, within, says, regions: false, scene: None }
}

const fn between(bug: Bug, from: u64, within: u64, says: &'static str) -> Case {
    Case { bug, from, within, says, regions: true, scene: None }
}

const fn staged(bug: Bug, scene: Scene, within: u64, says: &'static str) -> Case {
    Case { bug, from: 0, within, says, regions: false, scene: Some(scene) }
}

impl Case {
    fn options(&self) -> Options {
        Options { regions: self.regions, scene: self.scene, ..Options::default() }
    }
}

/// Rare bugs begin shortly before a seed that finds them.
const CAUGHT: &[Case] = &[
    case(Bug::LeaseFromAnswer, 38, 8, "STALE"),
    case(Bug::NoFenceInGrant, 0, 4, "STALE"),
    case(Bug::GrantBesideFence, 300, 8, "STALE"),
    case(Bug::NoQuorumBound, 78, 8, "STALE"),
    case(Bug::LongSelfLease, 22, 8, "STALE"),
    case(Bug::PipelinedAppends, 58, 8, "STALE"),
    case(Bug::FenceNotAwaited, 0, 4, "STALE"),
    case(Bug::GrantBeforeOwnEntry, 16, 8, "STALE"),
    case(Bug::LeaderRestore, 40, 8, "REGION TIME went backwards"),
    case(Bug::NoFence, 0, 4, "STALE"),
    case(Bug::FenceHoldersOnly, 0, 8, "STALE"),
    case(Bug::NoElectionWait, 4, 8, "STALE"),
    case(Bug::LearnerGrantedEarly, 36, 8, "STALE"),
    case(Bug::RemovedNodeForgotten, 32, 8, "STALE"),
    case(Bug::KeepLeaseAsLeader, 82, 8, "STALE"),
    case(Bug::SelfLeaseInHandOver, 176, 8, "STALE"),
    case(Bug::HandOverLikeElection, 2, 8, "STALE"),
    case(Bug::DifferentTimers, 42, 8, "STALE"),
    case(Bug::RotationInOneStep, 6, 8, "AN UNEXPECTED ERROR"),
    case(Bug::AppliedOutsideBatch, 0, 8, "REGION TIME went backwards"),
    case(Bug::SnapshotWithoutTombstones, 46, 8, "RESURRECTION"),
    case(Bug::RetryAppliesTwice, 4, 8, "LOST OR SURPLUS ROTATION"),
    case(Bug::AcknowledgedUnsynced, 0, 4, "A SECOND VOTE"),
    case(Bug::DiskCounterIgnored, 16, 8, "A LYING DISK IS TAKEN"),
    case(Bug::LatestClock, 0, 4, "REGION TIME ran ahead"),
    case(Bug::ServesBeforeTime, 56, 8, "AN UNEXPECTED ERROR"),
    case(Bug::DeletionByOneClock, 0, 8, "REGION TIME ran ahead"),
    case(Bug::LogNotScrubbed, 0, 6, "NOT GONE"),
    case(Bug::StateNotPurged, 0, 6, "NOT GONE"),
    case(Bug::RestartedBucketFull, 0, 8, "MORE THAN THE QUOTA"),
    case(Bug::AuditAfterAnswer, 0, 4, "AN ANSWER WITHOUT ITS RECORD"),
    case(Bug::StreamMixesAnswers, 4, 8, "WRONG PLAINTEXT"),
    staged(Bug::VoteAfterRestart, Scene::RestartedVoter, 4, "STALE"),
    staged(Bug::SpareTheFollowed, Scene::MissedLeader, 32, "STALE"),
    staged(Bug::LeavingNodeGranted, Scene::HalfRemoved, 16, "STALE"),
    staged(Bug::RemovalOnTrust, Scene::UncommittedRemoval, 4, "A REMOVED NODE SERVES"),
    staged(Bug::UnprovedDiskCounts, Scene::StaleDisk, 4, "A LYING DISK IS TAKEN"),
    staged(Bug::SharesRaisedFirst, Scene::DeafHolder, 4, "MORE THAN THE QUOTA"),
    between(Bug::GoneNotTold, 0, 4, "REGIONS DIFFER"),
    between(Bug::RefusalNotTold, 0, 4, "REGIONS DIFFER"),
    between(Bug::PageSkips, 0, 4, "REGIONS DIFFER"),
    between(Bug::FollowerAnswersPulls, 2, 8, "REGIONS DIFFER"),
    between(Bug::CursorOverHistories, 260, 8, "REGIONS DIFFER"),
    between(Bug::TakenTooEarly, 0, 8, "A MATERIAL ENCRYPTS TOO EARLY"),
    between(Bug::OldEpochAccepted, 8, 8, "REGIONS DIFFER"),
    between(Bug::LosersMaterialDropped, 12, 8, "REGIONS DIFFER"),
    between(Bug::TokensMixedUp, 0, 4, "A CIPHERTEXT DOES NOT OPEN"),
    between(Bug::RotationBeforeReplicas, 0, 4, "A MATERIAL ENCRYPTS TOO EARLY"),
    between(Bug::RotationWithoutTheLost, 0, 4, "A MATERIAL ENCRYPTS TOO EARLY"),
    between(Bug::AnyWordLetsIn, 14, 4, "A CALLER WHO IS SHUT OUT GOT IN"),
    between(Bug::ShutOutNotTold, 4, 4, "REGIONS DIFFER"),
];

/// Bugs that nobody can see who is promised what Keyward promises, and why.
const NOT_CAUGHT: &[(Bug, &str)] = &[
    (Bug::NoSecondLook, "the call that is held up began before the change was acknowledged"),
    (Bug::SpareAfterHandOver, "the last leader's self-lease is over before the message leaves"),
];

/// The first seed that finds the bug, of those that the threads came to; what the runs said otherwise.
fn find(case: &Case) -> Result<u64, String> {
    let (next, to) = (AtomicU64::new(case.from), case.from + case.within);
    let (found, other) = (AtomicU64::new(u64::MAX), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || found.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    for violation in run(seed, &case.options()).violations {
                        if violation.starts_with(case.says) {
                            found.fetch_min(seed, Ordering::Relaxed);
                        } else {
                            *other.lock() += &format!("\n  seed {seed}: {violation}");
                        }
                    }
                }
            });
        }
    });
    match found.into_inner() {
        u64::MAX => Err(other.into_inner()),
        seed => Ok(seed),
    }
}

#[test]
fn every_known_bug_is_found() {
    let mut wrong = String::new();
    for case in CAUGHT {
        let name = case.bug.name();
        select(Some(case.bug));
        let found = find(case);
        select(None);
        match found {
            Err(other) => {
                let to = case.from + case.within;
                wrong += &format!("\n{name}: no '{}' in {}..{to}{other}", case.says, case.from);
            }
            // It is the bug that was found, and nothing else.
            Ok(seed) => {
                println!("{name}: seed {seed}");
                let violations = run(seed, &case.options()).violations;
                if !violations.is_empty() {
                    wrong += &format!("\nseed {seed} without {name}: {violations:?}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // The selection is the whole process's: no test of its own.
    a_failure_is_shrunk();
}

/// What is left of a shrunken failure breaks the rule when it is run again, and is less than all that went wrong.
fn a_failure_is_shrunk() {
    select(Some(Bug::NoFence));
    let options = Options { faults: Some(Duration::from_secs(8)), ..Options::default() };
    let all = run(0, &options);
    let shrunken = shrink(0, &options, |_, _| {}).expect("a failure");
    let again = run(0, &Options { without: shrunken.without.clone(), ..options.clone() });
    select(None);
    assert_eq!(again, shrunken.outcome);
    assert!(again.violations.iter().any(|violation| violation.starts_with("STALE")));
    assert!(again.faults.len() < all.faults.len(), "{:?}", again.faults);
    assert!(again.faults.iter().all(|fault| !shrunken.without.0.contains(&fault.kind)));
    assert!(shrink(0, &options, |_, _| {}).is_none(), "without the bug there is nothing to shrink");
}

#[test]
fn every_known_bug_has_its_place_in_the_table() {
    let caught = CAUGHT.iter().map(|case| case.bug);
    let all = caught.chain(NOT_CAUGHT.iter().map(|(bug, _)| *bug));
    let mut missing = Bug::ALL.to_vec();
    for bug in all {
        let place = missing.iter().position(|known| *known == bug);
        missing.remove(place.unwrap_or_else(|| panic!("{} stands twice", bug.name())));
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(CAUGHT.len() >= CAUGHT_MIN);
    assert!(NOT_CAUGHT.iter().all(|(_, why)| !why.is_empty()));
}
