//! Known bugs: rules left out on purpose, one at a time, to show that the simulator notices
//! (docs/simulation.md, "That it can fail").
//!
//! Without the feature `sabotage` [`on`] is a constant `false`, there is no way to select a bug, and nothing of one
//! is in the program. With it one build holds all bugs, and a process selects at most one: a build with the
//! feature is unsafe, and for the simulator and the chaos test alone.

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident $name:literal)+) => {
        /// A rule that is left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug { $($(#[doc = $what])+ $bug,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// Its name, as `keyward-sim --bug` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$bug => $name,)+ }
            }

            /// What is wrong, in one line.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$bug => concat!($($what),+),)+ }
            }
        }
    };
}

bugs! {
    // Serving leases, by the rules of DESIGN section 5. Rule 1: follower leases.
    /// A lease counts from when its grant came, not from before it was asked for.
    LeaseFromAnswer "lease-from-answer"
    /// A leader grants for a whole ttl, however long ago it last heard from a majority.
    NoQuorumBound "no-quorum-bound"
    /// A grant carries no fence.
    NoFenceInGrant "no-fence-in-grant"
    /// A grant's fence is read before the grant is noted, and not in the one place where fences are decided.
    GrantBesideFence "grant-beside-fence"
    // Rule 2: the leader's self-lease.
    /// A leader serves for a ttl after its last quorum acknowledgement, not for a leader lease.
    LongSelfLease "long-self-lease"
    /// Several appends are in flight, and an acknowledgement is credited to the last one sent.
    PipelinedAppends "pipelined-appends"
    // Rule 3: serving.
    /// Calls are decided on a state that has not applied the fence.
    FenceNotAwaited "fence-not-awaited"
    /// The lease is not looked at again when an answer is about to leave.
    NoSecondLook "no-second-look"
    // Rule 4: nothing before the leader's own first entry.
    /// A leader serves and grants before an entry of its own is committed and applied.
    GrantBeforeOwnEntry "grant-before-own-entry"
    /// openraft's leader restore is on: a leader that restarts goes on leading, and grants at once.
    LeaderRestore "leader-restore"
    // Rule 5: fences.
    /// A change is acknowledged as soon as it is committed.
    NoFence "no-fence"
    /// Only nodes with a lease of this term are fenced.
    FenceHoldersOnly "fence-holders-only"
    /// A new leader does not wait until leases of earlier terms are over.
    NoElectionWait "no-election-wait"
    /// A learner is granted a lease before its adding is committed.
    LearnerGrantedEarly "learner-granted-early"
    /// A node is removed in one step, and is no longer fenced.
    RemovedNodeForgotten "removed-node-forgotten"
    /// A node whose removal is in the log and not committed is granted a lease.
    LeavingNodeGranted "leaving-node-granted"
    /// A node counts as removed once that is in the leader's log: its root is forgotten, whatever becomes of the removal.
    RemovalOnTrust "removal-on-trust"
    // Rule 6: the last leader is spared.
    /// Winning an election does not end the follower lease.
    KeepLeaseAsLeader "keep-lease-as-leader"
    /// A node votes and stands as soon as it has started.
    VoteAfterRestart "vote-after-restart"
    /// A leader keeps its self-lease while it hands over.
    SelfLeaseInHandOver "self-lease-in-hand-over"
    /// A leader that was elected by a hand-over spares the last one.
    SpareAfterHandOver "spare-after-hand-over"
    /// Both: a hand-over is an election like any other.
    HandOverLikeElection "hand-over-like-election"
    /// A new leader spares the one that it followed last, not the author of the last entry.
    SpareTheFollowed "spare-the-followed"
    // Rule 7: timers.
    /// A node whose timers differ from the Region's starts all the same.
    DifferentTimers "different-timers"
    // Rule 8: rotation.
    /// New material encrypts before every node has it.
    RotationInOneStep "rotation-in-one-step"

    // The replicated state and the disks under it.
    /// The last applied index is written before the rows, and not with them.
    AppliedOutsideBatch "applied-outside-batch"
    /// A snapshot that is taken over comes without tombstones.
    SnapshotWithoutTombstones "snapshot-without-tombstones"
    /// Each try of a change has an id of its own: one that is tried again may be made twice.
    RetryAppliesTwice "retry-applies-twice"
    /// Entries and votes are acknowledged before they are synced.
    AcknowledgedUnsynced "acknowledged-unsynced"
    /// Nobody compares the counters of disks.
    DiskCounterIgnored "disk-counter-ignored"
    /// A disk that is not proved counts on.
    UnprovedDiskCounts "unproved-disk-counts"

    // Time and deletion.
    /// The Region takes the latest of the voters' clocks for the time.
    LatestClock "latest-clock"
    /// A node serves before it knows the Region's time.
    ServesBeforeTime "serves-before-time"
    /// A key is deleted when the leader's own clock says so.
    DeletionByOneClock "deletion-by-one-clock"
    /// Sealed material of deleted keys stays in the log.
    LogNotScrubbed "log-not-scrubbed"
    /// Sealed material of deleted keys stays in the files of the state.
    StateNotPurged "state-not-purged"

    // Quotas.
    /// A share is given before those who are to let go of it have said that they did.
    SharesRaisedFirst "shares-raised-first"
    /// A node's bucket begins full.
    RestartedBucketFull "restarted-bucket-full"

    // Audit.
    /// An answer leaves before its record is written.
    AuditAfterAnswer "audit-after-answer"

    // Streams.
    /// The answer to a call that waited goes to another call of its stream.
    StreamMixesAnswers "stream-mixes-answers"

    // Regions.
    /// A Region does not tell where a key is gone.
    GoneNotTold "gone-not-told"
    /// A Region does not tell that it refused to become the primary's.
    RefusalNotTold "refusal-not-told"
    /// A page leaves out its first change where it has others, and its cursor runs past it.
    PageSkips "page-skips"
    /// A follower answers pulls.
    FollowerAnswersPulls "follower-answers-pulls"
    /// The cursor of one history is used in another.
    CursorOverHistories "cursor-over-histories"
    /// A pull says that changes are taken over before they are.
    TakenTooEarly "taken-too-early"
    /// A Region takes the word of an earlier epoch for the latest.
    OldEpochAccepted "old-epoch-accepted"
    /// Materials that a telling of no later version names are not taken over.
    LosersMaterialDropped "losers-material-dropped"
    /// The tokens of materials that come together change places.
    TokensMixedUp "tokens-mixed-up"
    /// New material encrypts before other Regions have it.
    RotationBeforeReplicas "rotation-before-replicas"
    /// New material does not wait for Regions that cannot be reached.
    RotationWithoutTheLost "rotation-without-the-lost"
    /// What is told of a principal by a Region that does not know it shut out lets it in.
    AnyWordLetsIn "any-word-lets-in"
    /// Other Regions are not told that a principal is shut out.
    ShutOutNotTold "shut-out-not-told"
}

impl Bug {
    /// The bug of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

/// Whether this process has that bug.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
#[must_use]
pub const fn on(_: Bug) -> bool {
    false
}

#[cfg(feature = "sabotage")]
pub use selection::{on, select, select_by_environment};

#[cfg(feature = "sabotage")]
mod selection {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    /// Where a real process is told its bug.
    const VARIABLE: &str = "KEYWARD_SABOTAGE";
    const NONE: u8 = u8::MAX;
    static SELECTED: AtomicU8 = AtomicU8::new(NONE);

    /// Whether this process has that bug.
    #[must_use]
    pub fn on(bug: Bug) -> bool {
        SELECTED.load(Ordering::Relaxed) == bug as u8
    }

    /// Gives this process that bug, or none. Between runs, not in one.
    pub fn select(bug: Option<Bug>) {
        SELECTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::Relaxed);
    }

    /// Gives this process the bug that `KEYWARD_SABOTAGE` names, if it is set. An error if no bug has that name.
    pub fn select_by_environment() -> Result<Option<Bug>, String> {
        let Ok(name) = std::env::var(VARIABLE) else { return Ok(None) };
        let bug = Bug::by_name(&name);
        select(bug);
        bug.map(Some).ok_or_else(|| format!("{VARIABLE}: no bug is called '{name}'"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_bug_has_a_name_of_its_own_and_a_description() {
        let names: BTreeSet<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        for bug in Bug::ALL {
            assert_eq!(Bug::by_name(bug.name()), Some(*bug));
            assert!(bug.what().ends_with('.'));
        }
        assert_eq!(Bug::by_name("none"), None);
    }

    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn a_build_for_use_has_no_bug() {
        const NONE: bool = on(Bug::NoFence);
        assert!(!NONE && Bug::ALL.iter().all(|bug| !on(*bug)));
    }
}
