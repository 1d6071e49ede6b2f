//! Disks that lie: a wiped disk, a stale copy, the image of another day.
//!
//! Raft rests on disks that remember. A node whose disk has forgotten what it acknowledged could vote twice
//! in a term, or let a committed entry vanish. So (DESIGN section 4):
//!
//! * A **counter** on each node's disk is raised with every write to its log while the disk is proved, at least
//!   once a second, and told only once it is synced: in appends and their answers, so that whoever counts an
//!   acknowledgement knows how far the disk behind it had come, and in lease renewals. Grants carry what the
//!   leader knows of everybody, so that every node remembers everybody's; each writes that down once a second,
//!   and once a minute it goes into replicated state.
//! * After a start a node is **unproved**: it takes no entry, no snapshot, and does not vote. A leader that
//!   meets it compares the counter that the disk had at the start with what it remembers, and vouches for it or
//!   condemns it. Without a leader, a majority of voters (itself included) does so.
//! * Vouched for by a leader, it votes once it has caught up with what that leader had committed. Confirmed
//!   by a majority, it votes if nobody has heard from a leader lately, and then only for a log that reaches as
//!   far as those who confirmed it have come: what it may have lost since it last told its counter is with one
//!   of them.
//! * A **condemned** node puts that on its own disk and stops. It comes back under a new id.
//!
//! Not covered: copies of a majority of the disks brought back at once, all from the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyward_model::NodeId;
use keyward_state::DiskMark;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::types::LogId;

/// What a node says about another one's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// Why the other one is refused, if it is.
    pub refused: Option<String>,
    /// The node leads, or has heard from a leader lately.
    pub leader_lives: bool,
    /// The end of its log.
    pub last_log: Option<LogId>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The most that each node has told.
    known: BTreeMap<NodeId, DiskMark>,
    /// Vouched for or confirmed since the start.
    proved: bool,
    /// Votes once it has applied this.
    votes_after: Option<u64>,
    /// Where the logs ended of those who confirmed.
    floor: Option<LogId>,
    condemned: Option<String>,
}

/// What one node knows of its own disk and of the others'.
#[derive(Debug)]
pub(crate) struct Disks {
    me: NodeId,
    /// This start, and the counter as the disk had it then.
    found: DiskMark,
    /// The counter, as far as it is synced.
    synced: Arc<AtomicU64>,
    /// Read at every message, and by the log's writer.
    proved: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

impl Disks {
    /// `synced` is this node's counter, right after the start as the disk had it; `proved` is shared with the
    /// log.
    pub(crate) fn new(
        me: NodeId,
        boot: u64,
        synced: Arc<AtomicU64>,
        known: BTreeMap<NodeId, DiskMark>,
        proved: Arc<AtomicBool>,
    ) -> Self {
        let found = DiskMark { boot, counter: synced.load(Ordering::SeqCst) };
        let inner = Mutex::new(Inner { known, ..Inner::default() });
        Self { me, found, synced, proved, inner }
    }

    /// This start, and the counter as this node's disk had it then.
    pub(crate) fn found(&self) -> DiskMark {
        self.found
    }

    /// What this node may tell of its own disk.
    pub(crate) fn told(&self) -> DiskMark {
        DiskMark { boot: self.found.boot, counter: self.synced.load(Ordering::SeqCst) }
    }

    /// Somebody told counters: a node its own, or a leader everybody's.
    pub(crate) fn learn(&self, told: impl IntoIterator<Item = (NodeId, DiskMark)>) {
        let mut inner = self.inner.lock();
        for (node, mark) in told {
            let known = inner.known.entry(node).or_default();
            if mark.counter > known.counter {
                *known = mark;
            }
        }
    }

    /// Everybody's counters as this node knows them, its own included.
    pub(crate) fn known(&self) -> BTreeMap<NodeId, DiskMark> {
        let mut known = self.inner.lock().known.clone();
        known.insert(self.me, self.told());
        known
    }

    /// Whether `node`, whose disk had the counter `mark` at this start, may take part; otherwise why not.
    /// What this very start has told since does not count against it: messages are delayed.
    pub(crate) fn judge(&self, node: NodeId, mark: DiskMark) -> Result<(), String> {
        let known = self.inner.lock().known.get(&node).copied().unwrap_or_default();
        let found = mark.counter;
        if found >= known.counter || mark.boot == known.boot {
            return Ok(());
        }
        let known = known.counter;
        let what = if found == 0 { "is empty" } else { "is an older copy" };
        Err(format!(
            "the disk of node {node} {what}: its counter stands at {found}, and node {} remembers {known}. It \
             has forgotten what it acknowledged, so it must not take part again. Remove the node (`keyward \
             cluster remove {node}`), empty its data folder, and have it join under a new id (`keyward \
             cluster invite`)",
            self.me
        ))
    }

    /// A leader vouches: entries are taken from now on, and votes cast once `committed` is applied.
    pub(crate) fn vouched(&self, committed: u64) {
        let mut inner = self.inner.lock();
        if !inner.proved {
            inner.votes_after = Some(committed);
        }
        inner.proved = true;
        self.proved.store(inner.condemned.is_none(), Ordering::SeqCst);
    }

    /// A majority confirms, whose logs end at `floor`; or there is nobody else to ask.
    pub(crate) fn confirmed(&self, floor: Option<LogId>) {
        let mut inner = self.inner.lock();
        inner.proved = true;
        inner.votes_after = None;
        inner.floor = floor;
        self.proved.store(inner.condemned.is_none(), Ordering::SeqCst);
    }

    pub(crate) fn condemn(&self, why: &str) {
        let mut inner = self.inner.lock();
        inner.condemned.get_or_insert_with(|| why.to_owned());
        self.proved.store(false, Ordering::SeqCst);
    }

    pub(crate) fn condemned(&self) -> Option<String> {
        self.inner.lock().condemned.clone()
    }

    /// Entries and snapshots are taken.
    pub(crate) fn is_proved(&self) -> bool {
        self.proved.load(Ordering::SeqCst)
    }

    /// Votes are cast.
    pub(crate) fn may_vote(&self, applied: u64) -> bool {
        self.is_proved() && self.inner.lock().votes_after.is_none_or(|after| applied >= after)
    }

    /// Whether a log that ends there, of a candidate or this node's own, may win with this node's vote.
    pub(crate) fn may_win(&self, last_log: Option<LogId>) -> bool {
        last_log >= self.inner.lock().floor
    }

    /// Whether what voters answered is enough: a majority of each voter set, this node included, confirms,
    /// and nobody has heard from a leader. Somebody's refusal condemns.
    pub(crate) fn weigh(
        &self,
        voters: &[BTreeSet<NodeId>],
        answers: &BTreeMap<NodeId, Confirmation>,
    ) {
        if let Some(why) = answers.values().find_map(|answer| answer.refused.as_deref()) {
            self.condemn(why);
            return;
        }
        if answers.values().any(|answer| answer.leader_lives) {
            return;
        }
        let majority = |set: &BTreeSet<NodeId>| {
            let confirm = |node: &&NodeId| **node == self.me || answers.contains_key(node);
            set.iter().filter(confirm).count() > set.len() / 2
        };
        if !voters.is_empty() && voters.iter().all(majority) {
            self.confirmed(answers.values().filter_map(|answer| answer.last_log).max());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(boot: u64, counter: u64) -> DiskMark {
        DiskMark { boot, counter }
    }

    fn disks(me: NodeId, known: BTreeMap<NodeId, DiskMark>) -> Disks {
        Disks::new(me, 1, Arc::new(AtomicU64::new(5)), known, Arc::default())
    }

    fn log_id(term: u64, index: u64) -> LogId {
        LogId { leader_id: crate::types::LeaderId { term, node_id: 1 }, index }
    }

    fn confirmation(leader_lives: bool) -> Confirmation {
        Confirmation { refused: None, leader_lives, last_log: None }
    }

    #[test]
    fn a_disk_that_is_behind_is_refused_and_told_what_to_do() {
        let disks = disks(1, BTreeMap::from([(2, mark(7, 10))]));
        assert!(disks.judge(2, mark(8, 10)).is_ok());
        assert!(disks.judge(2, mark(8, 11)).is_ok());
        assert!(disks.judge(3, mark(8, 0)).is_ok(), "nobody knows it");
        assert!(disks.judge(2, mark(8, 9)).unwrap_err().contains("older copy"));
        let why = disks.judge(2, mark(8, 0)).unwrap_err();
        assert!(why.contains("empty") && why.contains("cluster invite"), "{why}");
        disks.learn([(2, mark(6, 7)), (3, mark(9, 4))]);
        assert!(disks.judge(2, mark(8, 9)).is_err(), "what is known never goes back");
        assert!(disks.judge(3, mark(8, 3)).is_err());
        assert!(disks.judge(3, mark(9, 3)).is_ok(), "that start has told more since");
    }

    #[test]
    fn vouched_for_it_votes_once_it_has_caught_up() {
        let disks = disks(2, BTreeMap::new());
        assert!(!disks.is_proved() && !disks.may_vote(100));
        disks.vouched(50);
        assert!(disks.is_proved() && !disks.may_vote(49) && disks.may_vote(50));
    }

    #[test]
    fn a_majority_proves_it_where_no_leader_lives() {
        let voters = [BTreeSet::from([1, 2, 3])];
        let weigh = |answers: BTreeMap<NodeId, Confirmation>| {
            let disks = disks(2, BTreeMap::new());
            disks.weigh(&voters, &answers);
            (disks.may_vote(0), disks.condemned())
        };
        assert_eq!(weigh(BTreeMap::new()), (false, None));
        assert_eq!(weigh(BTreeMap::from([(1, confirmation(false))])), (true, None));
        assert_eq!(weigh(BTreeMap::from([(1, confirmation(true))])), (false, None));
        let refusal =
            Confirmation { refused: Some("no".to_owned()), leader_lives: false, last_log: None };
        let answers = BTreeMap::from([(1, confirmation(false)), (3, refusal)]);
        assert_eq!(weigh(answers), (false, Some("no".to_owned())));
    }

    #[test]
    fn it_helps_no_log_to_win_that_ends_before_the_logs_of_those_who_confirmed_it() {
        let disks = disks(2, BTreeMap::new());
        let ends_at = |id: LogId| Confirmation { last_log: Some(id), ..confirmation(false) };
        let answers = BTreeMap::from([(1, ends_at(log_id(3, 9))), (3, ends_at(log_id(2, 12)))]);
        disks.weigh(&[BTreeSet::from([1, 2, 3])], &answers);
        assert!(disks.may_vote(0));
        assert!(!disks.may_win(None) && !disks.may_win(Some(log_id(3, 8))));
        assert!(!disks.may_win(Some(log_id(2, 12))), "of an earlier term");
        assert!(disks.may_win(Some(log_id(3, 9))) && disks.may_win(Some(log_id(4, 1))));
        // Asked again, with the one gone that had come farthest: two disks failed, not one.
        disks.weigh(&[BTreeSet::from([1, 2, 3])], &BTreeMap::from([(3, ends_at(log_id(2, 12)))]));
        assert!(disks.may_win(Some(log_id(2, 12))));
    }

    #[test]
    fn what_is_told_is_what_is_synced() {
        let synced = Arc::new(AtomicU64::new(5));
        let disks = Disks::new(2, 8, Arc::clone(&synced), BTreeMap::new(), Arc::default());
        synced.store(7, Ordering::SeqCst);
        assert_eq!((disks.found(), disks.told()), (mark(8, 5), mark(8, 7)));
        assert_eq!(disks.known(), BTreeMap::from([(2, mark(8, 7))]));
    }

    #[test]
    fn condemned_it_stays_so() {
        let disks = disks(2, BTreeMap::new());
        disks.vouched(0);
        disks.condemn("old");
        disks.vouched(0);
        disks.confirmed(None);
        assert!(!disks.is_proved() && !disks.may_vote(100));
        assert_eq!(disks.condemned().as_deref(), Some("old"));
    }
}
