//! Leases, step by step, on times that are passed in.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use openraft::impls::BasicNode;

use super::*;

const TIMERS: Timers = Timers::DEFAULT;
const BOOT: u64 = 42;

fn at(ms: u64) -> Duration {
    Duration::from_secs(1000) + Duration::from_millis(ms)
}

fn leader(term: u64, node_id: NodeId) -> LeaderId {
    LeaderId { term, node_id }
}

fn members(nodes: &[NodeId]) -> Membership {
    let nodes: BTreeMap<NodeId, BasicNode> =
        nodes.iter().map(|node| (*node, BasicNode::default())).collect();
    let voters: BTreeSet<NodeId> = nodes.keys().copied().collect();
    Membership::new(vec![voters], nodes).expect("a configuration")
}

/// Node 1 of three, which has won term 5 at 0 ms after a leader's last entry, and has applied its own first.
fn leading(last_author: Option<NodeId>) -> Keeper {
    let keeper = Keeper::new(1, BOOT, TIMERS, at(0));
    keeper.configured(members(&[1, 2, 3]));
    keeper.won(leader(5, 1), 10, last_author, at(0));
    keeper.applied(10, &members(&[1, 2, 3]), at(0));
    keeper
}

fn granted(keeper: &Keeper, peer: NodeId, now: Duration) -> Grant {
    keeper.acknowledged(leader(5, 1), 2, now, now);
    let request = LeaseRequest { boot: 7, clock_ns: nanos(now), wall_ms: 0, counter: 0 };
    keeper.grant(peer, &request, None, now).expect("a grant")
}

/// When leases of earlier terms are over on any clock.
fn earlier_terms_over() -> Duration {
    at(0) + grantors_wait(Duration::from_millis(TIMERS.lease_ttl_ms))
}

const NS: Duration = Duration::from_nanos(1);

#[test]
fn the_epoch_rises_exactly_when_a_lease_begins_after_a_gap() {
    let holder = Keeper::new(2, BOOT, TIMERS, at(0));
    let grant = |fence| Grant {
        leader: leader(5, 1),
        boot: BOOT,
        fence,
        duration_ns: nanos(Duration::from_millis(TIMERS.lease_ttl_ms)),
        region_ms: None,
        counters: Vec::new(),
    };
    let epoch = || holder.cell().epoch();
    assert_eq!(epoch(), 0, "no lease yet");
    assert!(holder.take(&grant(0), at(0), at(5)));
    assert_eq!(epoch(), 1);
    let first_end = holder.cell().left(Duration::ZERO);
    // Renewed in the last moment: no gap.
    assert!(holder.take(&grant(0), at(900), first_end - NS));
    assert_eq!(epoch(), 1);
    // An answer that is so late that its lease is over already begins nothing.
    let second_end = holder.cell().left(Duration::ZERO);
    assert!(second_end > first_end);
    assert!(holder.take(&grant(0), at(0), second_end));
    assert_eq!(epoch(), 1);
    assert!(!holder.cell().lasts(second_end));
    // The first moment without a lease is a gap.
    assert!(holder.take(&grant(0), at(3000), second_end));
    assert_eq!(epoch(), 2);
    // A lease that is ended early and taken up again is another stretch, on any clock reading.
    holder.won(leader(6, 2), 20, None, at(3100));
    assert_eq!(epoch(), 2, "none began");
    holder.configured(members(&[2]));
    holder.applied(20, &members(&[2]), at(3100));
    assert_eq!(epoch(), 3);
    holder.tick(at(3200));
    assert_eq!(epoch(), 3);
}

#[test]
fn a_node_may_hold_a_lease_until_its_grants_and_earlier_terms_are_over() {
    let keeper = leading(None);
    let both = BTreeSet::from([2, 3]);
    assert_eq!(keeper.possible_holders(at(0)), Some(both.clone()));
    assert_eq!(keeper.possible_holders(earlier_terms_over() - NS), Some(both));
    assert_eq!(keeper.possible_holders(earlier_terms_over()), Some(BTreeSet::new()));
    let asked = earlier_terms_over();
    let grant = granted(&keeper, 3, asked);
    let over = asked + Duration::from_nanos(grant.duration_ns);
    assert_eq!(keeper.possible_holders(over - NS), Some(BTreeSet::from([3])));
    assert_eq!(keeper.possible_holders(over), Some(BTreeSet::new()));
    keeper.voted(leader(6, 3), over);
    assert_eq!(keeper.possible_holders(over), None, "it does not lead any more");
}

#[test]
fn the_last_leader_is_spared_until_it_is_granted_something() {
    let keeper = leading(Some(3));
    assert_eq!(keeper.possible_holders(at(1)), Some(BTreeSet::from([2])));
    let grant = granted(&keeper, 3, at(10));
    let over = at(10) + Duration::from_nanos(grant.duration_ns);
    assert_eq!(keeper.possible_holders(at(11)), Some(BTreeSet::from([2, 3])));
    assert_eq!(
        keeper.possible_holders(over.min(earlier_terms_over() - NS)),
        Some(BTreeSet::from([2]))
    );
}

#[test]
fn calls_that_wait_are_woken_when_a_lease_begins() {
    let mut context = Context::from_waker(Waker::noop());
    let holder = Keeper::new(2, BOOT, TIMERS, at(0));
    let mut woken = pin!(holder.stepped().notified());
    let mut is_woken = || woken.as_mut().poll(&mut context).is_ready();
    let grant = Grant {
        leader: leader(5, 1),
        boot: BOOT,
        fence: 0,
        duration_ns: nanos(Duration::from_millis(TIMERS.lease_ttl_ms)),
        region_ms: None,
        counters: Vec::new(),
    };
    assert!(holder.take(&grant, at(0), at(5000)));
    assert!(!is_woken(), "it was over before it came");
    assert!(holder.take(&grant, at(5000), at(5005)));
    assert!(is_woken());

    let keeper = Keeper::new(1, BOOT, TIMERS, at(0));
    keeper.configured(members(&[1, 2, 3]));
    keeper.won(leader(5, 1), 10, None, at(0));
    let mut woken = pin!(keeper.stepped().notified());
    let mut is_woken = || woken.as_mut().poll(&mut context).is_ready();
    keeper.acknowledged(leader(5, 1), 2, at(1), at(1));
    assert!(!is_woken(), "its own first entry is not applied yet");
    keeper.applied(10, &members(&[1, 2, 3]), at(2));
    assert!(is_woken());
}

#[test]
fn a_leader_that_handed_over_is_not_spared() {
    let keeper = Keeper::new(1, BOOT, TIMERS, at(0));
    keeper.configured(members(&[1, 2, 3]));
    keeper.asked_to_stand(leader(4, 3));
    // What it has voted for before, and its own vote, change nothing.
    keeper.voted(leader(4, 3), at(0));
    keeper.voted(leader(5, 1), at(0));
    keeper.won(leader(5, 1), 10, Some(3), at(0));
    assert_eq!(keeper.possible_holders(at(1)), Some(BTreeSet::from([2, 3])));
}

#[test]
fn a_hand_over_that_another_leader_followed_is_forgotten() {
    let keeper = Keeper::new(1, BOOT, TIMERS, at(0));
    keeper.configured(members(&[1, 2, 3]));
    keeper.asked_to_stand(leader(4, 3));
    keeper.voted(leader(5, 2), at(0));
    keeper.voted(leader(6, 1), at(0));
    keeper.won(leader(6, 1), 10, Some(2), at(0));
    assert_eq!(keeper.possible_holders(at(1)), Some(BTreeSet::from([3])));
}

#[test]
fn a_node_on_its_way_out_counts_while_its_grant_does() {
    let keeper = leading(None);
    let asked = earlier_terms_over();
    let grant = granted(&keeper, 3, asked);
    let over = asked + Duration::from_nanos(grant.duration_ns);
    let term = keeper.stop_granting(3).expect("it leads");
    keeper.configured(members(&[1, 2]));
    keeper.applied(11, &members(&[1, 2]), asked);
    assert_eq!(keeper.possible_holders(over - NS), Some(BTreeSet::from([3])));
    assert!(!keeper.lease_is_over(3, term, over - NS));
    assert_eq!(keeper.possible_holders(over), Some(BTreeSet::new()));
}

#[test]
fn a_call_that_gives_up_a_removal_leaves_those_of_others_alone() {
    let keeper = leading(None);
    let now = earlier_terms_over();
    keeper.acknowledged(leader(5, 1), 2, now, now);
    let request = keeper.request(0, 0, now);
    let refused = || keeper.grant(3, &request, None, now).is_err();
    let term = keeper.stop_granting(3).expect("it leads");
    assert_eq!(keeper.stop_granting(3), Some(term));
    keeper.grant_again(3, term);
    assert!(refused() && keeper.lease_is_over(3, term, now));
    // A call of an earlier term has nothing to give up in this one.
    keeper.grant_again(3, leader(1, 1));
    assert!(refused() && !keeper.lease_is_over(3, leader(1, 1), now));
    keeper.grant_again(3, term);
    assert!(!refused() && !keeper.lease_is_over(3, term, now));
}

#[test]
fn a_node_whose_removal_is_in_the_log_leaves_and_a_learner_does_not() {
    let membership = |sets: &[&[NodeId]], nodes: &[NodeId]| {
        let sets = sets.iter().map(|set| set.iter().copied().collect()).collect();
        let nodes: BTreeMap<NodeId, _> =
            nodes.iter().map(|node| (*node, openraft::impls::BasicNode::default())).collect();
        Membership::new(sets, nodes).expect("a configuration")
    };
    let joint = membership(&[&[1, 2, 3], &[1, 3]], &[1, 2, 3, 4]);
    assert!(leaves(&joint, 2) && !leaves(&joint, 3) && !leaves(&joint, 4));
    let removed = membership(&[&[1, 3]], &[1, 3, 4]);
    assert!(leaves(&removed, 2) && !leaves(&removed, 1) && !leaves(&removed, 4));
    let promoted = membership(&[&[1, 3], &[1, 3, 4]], &[1, 3, 4]);
    assert!(!leaves(&promoted, 4));
}
