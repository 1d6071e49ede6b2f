//! The books that a leader keeps of shares: what each node holds of every bucket, and what nobody holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward_model::NodeId;
use keyward_quota::{BucketId, Ledger, Limit, RateCell, Share, share_out};
use keyward_raft::LeaderId;
use keyward_state::DiskMark;

use super::shares::Want;

/// A node that did not answer is not waited for again before this.
const SILENT_FOR: Duration = Duration::from_millis(500);

/// One shared bucket, as the leader keeps it.
pub(super) struct Pie {
    pub(super) definition: u64,
    pub(super) whole: Share,
    pub(super) held: BTreeMap<NodeId, Share>,
    /// The number of the latest word by which each node let go of something.
    pub(super) lowered: BTreeMap<NodeId, u64>,
    /// Calls a second that come to each node, and when it said so.
    pub(super) wanted: BTreeMap<NodeId, (u64, Duration)>,
    /// What nobody holds, and the tokens that came together in it meanwhile.
    pub(super) rest: RateCell,
}

impl Pie {
    /// Nobody holds anything, and tokens come together from that time on.
    pub(super) fn new(definition: u64, whole: Share, since: Duration) -> Self {
        Self {
            definition,
            whole,
            held: BTreeMap::new(),
            lowered: BTreeMap::new(),
            wanted: BTreeMap::new(),
            rest: RateCell::new(whole, 0, since),
        }
    }

    pub(super) fn free(&self) -> Share {
        let sum = |part: fn(&Share) -> u64| self.held.values().map(part).sum::<u64>();
        Share {
            rate: self.whole.rate.saturating_sub(sum(|share| share.rate)),
            burst: self.whole.burst.saturating_sub(sum(|share| share.burst)),
        }
    }

    /// Sets what a node holds, and the rest accordingly. What tokens the rest can't keep are lost.
    pub(super) fn hold(&mut self, node: NodeId, share: Share, now: Duration) {
        self.held.insert(node, share);
        self.settle(0, now);
    }

    /// What a node says that it holds. Not if it let go of some while it was saying so: that may be somebody else's by
    /// now.
    pub(super) fn heard(&mut self, node: NodeId, want: &Want, leader: LeaderId, now: Duration) {
        let heeded = want.heeded.filter(|(by, _)| *by == leader).map_or(0, |(_, number)| number);
        if self.lowered.get(&node).is_none_or(|lowered| heeded >= *lowered) {
            self.hold(node, want.holds, now);
        }
    }

    /// It holds nothing any more.
    pub(super) fn forget(&mut self, node: NodeId) -> bool {
        self.lowered.remove(&node);
        self.wanted.remove(&node);
        self.held.remove(&node).is_some()
    }

    pub(super) fn settle(&mut self, milli_tokens: u64, now: Duration) {
        let left = self.rest.close(now) + milli_tokens;
        let free = self.free();
        self.rest = RateCell::new(free, left.min(free.burst * 1000), now);
    }

    /// What each node should hold, by what is wanted.
    pub(super) fn parts(&self) -> BTreeMap<NodeId, Share> {
        let wanted = self
            .held
            .keys()
            .chain(self.wanted.keys())
            .map(|node| (*node, self.wanted.get(node).map_or(0, |(wanted, _)| *wanted)));
        share_out(self.whole, &wanted.collect())
    }
}

/// What a leader keeps, for one term.
pub(super) struct Term {
    pub(super) leader: LeaderId,
    /// Since then nobody else can have given anything away.
    pub(super) since: Duration,
    /// Nodes that have not said yet what they hold from an earlier term.
    pub(super) unheard: BTreeSet<NodeId>,
    /// Everybody has.
    pub(super) complete: Option<Duration>,
    /// The latest ask of each node.
    pub(super) asked: BTreeMap<NodeId, (DiskMark, u64)>,
    pub(super) pies: BTreeMap<BucketId, Pie>,
    pub(super) ledgers: BTreeMap<BucketId, (u64, Limit, Ledger)>,
    /// Nodes that did not answer, and since when.
    pub(super) silent: BTreeMap<NodeId, Duration>,
    /// Numbers what is told.
    pub(super) number: u64,
    /// The number of the latest answer to an ask of each node.
    pub(super) told: BTreeMap<NodeId, u64>,
}

impl Term {
    /// Empty books. These nodes may hold something from an earlier term.
    pub(super) fn new(leader: LeaderId, unheard: BTreeSet<NodeId>, since: Duration) -> Self {
        Self {
            leader,
            since,
            unheard,
            complete: None,
            asked: BTreeMap::new(),
            pies: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            silent: BTreeMap::new(),
            number: 0,
            told: BTreeMap::new(),
        }
    }

    /// Nodes that can hold no lease any more hold nothing.
    pub(super) fn forget_the_gone(
        &mut self,
        me: NodeId,
        holders: &BTreeSet<NodeId>,
        now: Duration,
    ) {
        self.unheard.retain(|node| holders.contains(node));
        self.look_whether_complete(now);
        for pie in self.pies.values_mut() {
            let gone = |node: &NodeId| *node != me && !holders.contains(node);
            let gone: Vec<NodeId> = pie.held.keys().copied().filter(gone).collect();
            if !gone.is_empty() {
                for node in gone {
                    pie.forget(node);
                }
                pie.settle(0, now);
            }
        }
    }

    /// Once everybody was heard, what nobody holds is known, and fills up from then on.
    pub(super) fn look_whether_complete(&mut self, now: Duration) {
        if self.complete.is_some() || !self.unheard.is_empty() {
            return;
        }
        self.complete = Some(now);
        for pie in self.pies.values_mut() {
            pie.rest.close(now);
            pie.settle(0, now);
        }
    }

    /// A node that does not answer is left alone for a while.
    pub(super) fn note_silence(&mut self, node: NodeId, answered: bool, now: Duration) {
        if answered {
            self.silent.remove(&node);
        } else {
            self.silent.insert(node, now);
        }
    }

    pub(super) fn is_silent(&self, node: NodeId, now: Duration) -> bool {
        self.silent.get(&node).is_some_and(|since| now < *since + SILENT_FOR)
    }

    /// Whether a bucket was shared and is prepaid by now, or the other way round.
    pub(super) fn must_turn(&self, id: &BucketId, limit: &Limit) -> bool {
        if limit.is_prepaid() { self.pies.contains_key(id) } else { self.ledgers.contains_key(id) }
    }

    /// Keeps a bucket's books in the other way. They begin empty: the burst may have been spent a moment ago.
    pub(super) fn turn(&mut self, id: &BucketId, definition: u64, limit: &Limit, now: Duration) {
        if limit.is_prepaid() {
            self.pies.remove(id);
            let ledger = Ledger::new(limit, None, now);
            self.ledgers.insert(id.clone(), (definition, *limit, ledger));
        } else {
            self.ledgers.remove(id);
            let whole = Share { rate: limit.limit, burst: limit.burst };
            self.pies.insert(id.clone(), Pie::new(definition, whole, now));
        }
    }

    /// The books of a bucket, as it is defined now.
    pub(super) fn pie(
        &mut self,
        id: &BucketId,
        definition: u64,
        limit: &Limit,
        now: Duration,
    ) -> &mut Pie {
        let whole = Share { rate: limit.limit, burst: limit.burst };
        // What nobody holds has filled up since everybody said so.
        let since = self.complete.unwrap_or(now);
        let pie = self.pies.entry(id.clone()).or_insert_with(|| Pie::new(definition, whole, since));
        if pie.definition != definition {
            (pie.definition, pie.whole) = (definition, whole);
            pie.settle(0, now);
        }
        pie
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_quota::{Covers, Given, Holder, Pool, Window};

    const LEADER: LeaderId = LeaderId { term: 3, node_id: 1 };

    fn at(ms: u64) -> Duration {
        Duration::from_secs(100) + Duration::from_millis(ms)
    }

    fn share(rate: u64, burst: u64) -> Share {
        Share { rate, burst }
    }

    fn bucket() -> BucketId {
        let holder = Holder::Account("111122223333".parse().expect("an account"));
        BucketId { holder, covers: Covers::Pool(Pool::SymmetricCrypto), window: Window::Second }
    }

    fn want(holds: Share, heeded: Option<u64>) -> Want {
        Want {
            bucket: bucket(),
            definition: 1,
            holds,
            heeded: heeded.map(|number| (LEADER, number)),
            wanted: 1,
            tokens: 1,
            returned: 0,
        }
    }

    #[test]
    fn what_a_node_said_before_it_let_go_of_some_does_not_count() {
        let mut pie = Pie::new(1, share(90, 30), at(0));
        pie.hold(2, share(90, 30), at(0));
        // It asks; on the way, the leader has it let go of most, for somebody else.
        let asked = want(share(90, 30), Some(4));
        pie.held.insert(2, share(30, 10));
        pie.lowered.insert(2, 5);
        pie.hold(3, share(60, 20), at(1));
        pie.heard(2, &asked, LEADER, at(2));
        assert_eq!((pie.held[&2], pie.free()), (share(30, 10), Share::NONE));
        // What an earlier leader said is no sign that it has heard this one.
        let earlier = LeaderId { term: 2, node_id: 3 };
        let stale = Want { heeded: Some((earlier, 9)), ..asked };
        pie.heard(2, &stale, LEADER, at(2));
        assert_eq!(pie.held[&2], share(30, 10));
        // Said afterwards, it counts: here the node has been without a lease since.
        pie.heard(2, &want(Share::NONE, Some(5)), LEADER, at(3));
        assert_eq!((pie.held[&2], pie.free()), (Share::NONE, share(30, 10)));
        // A start of its own has heeded nobody, and holds nothing.
        pie.forget(2);
        pie.heard(2, &want(Share::NONE, None), LEADER, at(4));
        assert_eq!(pie.free(), share(30, 10));
    }

    #[test]
    fn a_bucket_that_is_kept_in_the_other_way_begins_empty() {
        let mut term = Term::new(LEADER, BTreeSet::new(), at(0));
        term.look_whether_complete(at(0));
        let limit = |limit, burst| Limit { window: Window::Second, limit, burst };
        let (shared, prepaid) = (limit(90, 30), limit(10, 10));
        assert!(!term.must_turn(&bucket(), &shared) && !term.must_turn(&bucket(), &prepaid));
        // Nobody has taken anything for a minute: it is full.
        let full = term.pie(&bucket(), 1, &shared, at(60_000)).rest.milli_tokens(at(60_000));
        assert_eq!(full, 30_000);
        assert!(!term.must_turn(&bucket(), &shared) && term.must_turn(&bucket(), &prepaid));
        term.turn(&bucket(), 2, &prepaid, at(60_000));
        let (_, _, ledger) = term.ledgers.get_mut(&bucket()).expect("a ledger");
        assert!(matches!(ledger.give(&prepaid, 2, 5, 3, at(60_050), 0), Given::Dry(_)));
        assert!(matches!(ledger.give(&prepaid, 2, 5, 3, at(61_050), 0), Given::Tokens(5, _)));
        assert!(term.must_turn(&bucket(), &shared));
        term.turn(&bucket(), 3, &shared, at(62_000));
        let pie = term.pie(&bucket(), 3, &shared, at(62_000));
        assert_eq!((pie.rest.milli_tokens(at(62_000)), pie.free()), (0, share(90, 30)));
        assert!(!term.must_turn(&bucket(), &shared));
    }
}
