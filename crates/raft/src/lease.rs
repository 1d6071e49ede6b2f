//! Serving leases: who may answer from memory, until when, and not before which index.
//!
//! The rules are numbered as in DESIGN section 5; `docs/decisions/0006-serving-leases.md` carries the
//! safety argument, rule by rule. Granting, fencing and excusing happen under one lock, one at a time
//! ([`Keeper`]); calls read two atomics ([`LeaseCell`]) and take no lock.
//!
//! All times are points on the node's own `CLOCK_BOOTTIME`, passed in; nothing here reads a clock.

mod cell;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward_env::sabotage::{Bug, on};
use keyward_model::NodeId;
use keyward_state::Timers;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::messages::{Grant, LeaseRequest};
use crate::types::{LeaderId, Membership};

pub use cell::LeaseCell;
use cell::nanos;

/// The most by which a clock's rate may be off, in parts per hundred. Real ones are off by under 0.1 %.
pub const RHO_PERCENT: u32 = 5;

/// The window over which a holder's clock is compared with the leader's.
const CLOCK_WINDOW: Duration = Duration::from_secs(60);

/// A promise of `duration` as its holder may count it: shortened by what both clocks can be off.
fn holders_share(duration: Duration) -> Duration {
    duration * (100 - RHO_PERCENT) / (100 + RHO_PERCENT)
}

/// How long the grantor must wait until a promise of `duration` is over on any clock.
fn grantors_wait(duration: Duration) -> Duration {
    duration * (100 + RHO_PERCENT) / (100 - RHO_PERCENT)
}

/// Whether a removal of `node` is in the log, committed or not. It may commit whatever became of the call that
/// began it, and nobody fences the node from then on.
fn leaves(effective: &Membership, node: NodeId) -> bool {
    let sets = effective.get_joint_config();
    let votes_last = sets.last().is_some_and(|set| set.contains(&node));
    effective.get_node(&node).is_none()
        || (!votes_last && sets.iter().any(|set| set.contains(&node)))
}

/// A follower's clock, as seen from the leader.
#[derive(Clone, Copy, Debug)]
struct ClockWatch {
    ours: Duration,
    theirs: Duration,
    wrong: bool,
}

/// What a leader keeps, for one term.
#[derive(Debug)]
struct Leading {
    id: LeaderId,
    elected: Duration,
    /// Index of the first entry of this term, written by this very incarnation.
    first: u64,
    /// Rule 4: that entry is applied, so it is committed.
    first_applied: bool,
    /// Rule 6: the author of the last entry before ours held at most a self-lease, which is over.
    spared: Option<NodeId>,
    /// Leadership is being handed over: no self-lease for the rest of the term.
    handing_over: bool,
    /// Send times of the latest appends acknowledged in this term.
    acks: BTreeMap<NodeId, Duration>,
    /// When the latest lease granted in this term is over, by our clock.
    holders: BTreeMap<NodeId, Duration>,
    /// The highest fence answered.
    fenced: BTreeMap<NodeId, u64>,
    /// Fences wanted, and since when.
    wanted: BTreeMap<u64, Duration>,
    /// On their way out, and how many calls see to it: granted nothing more until all of them have given up.
    leaving: BTreeMap<NodeId, usize>,
    clocks: BTreeMap<NodeId, ClockWatch>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Grants of leaders below this are refused: this node has won a later term since.
    floor: Option<LeaderId>,
    held: Option<(LeaderId, Duration)>,
    leading: Option<Leading>,
    /// The configuration in force: the last one in the log, committed or not.
    effective: Membership,
    /// The last configuration applied, so committed.
    committed: Membership,
    /// This node was asked to stand by a leader that hands over.
    asked_to_stand: Option<LeaderId>,
}

/// The one place where leases are granted, taken and ended.
#[derive(Debug)]
pub struct Keeper {
    me: NodeId,
    boot: u64,
    timers: Timers,
    cell: LeaseCell,
    stepped: Notify,
    inner: Mutex<Inner>,
}

/// A fence that a peer still owes an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Who owes.
    pub node: NodeId,
    /// In which term.
    pub leader: LeaderId,
    /// Up to where.
    pub index: u64,
}

/// Whether a change may be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// Every node has answered, or can hold no lease any more.
    Yes,
    /// Not yet.
    Waiting,
    /// This node leads no longer: somebody else must fence it.
    LeadershipLost,
}

impl Keeper {
    /// A keeper that holds nothing. `boot` is drawn anew at each start.
    #[must_use]
    pub fn new(me: NodeId, boot: u64, timers: Timers, now: Duration) -> Self {
        let (cell, stepped, inner) = Default::default();
        let keeper = Self { me, boot, timers, cell, stepped, inner };
        keeper.be_patient(now);
        keeper
    }

    /// What calls read.
    #[must_use]
    pub fn cell(&self) -> &LeaseCell {
        &self.cell
    }

    /// Woken when a call that waits may have become one that can be served: a lease begins, or a step shows to calls.
    #[must_use]
    pub fn stepped(&self) -> &Notify {
        &self.stepped
    }

    fn leader_lease(&self) -> Duration {
        Duration::from_millis(self.timers.election_ms_max)
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.timers.lease_ttl_ms)
    }

    fn renewal(&self) -> Duration {
        Duration::from_millis(self.timers.renewal_ms)
    }

    fn be_patient(&self, now: Duration) {
        self.cell.be_patient_until(now + self.ttl());
    }

    // --- The log tells (before anybody else can know).

    /// This node's first entry as leader is about to be written: it has won. Its follower lease ends
    /// here, before that entry can be seen by anybody (rule 6).
    pub fn won(&self, id: LeaderId, first: u64, last_author: Option<NodeId>, now: Duration) {
        let mut inner = self.inner.lock();
        if inner.leading.as_ref().is_some_and(|leading| leading.id == id) {
            return;
        }
        let by_hand_over = inner.asked_to_stand.take().is_some();
        let followed = inner.held.map(|(leader, _)| leader.node_id);
        inner.floor = inner.floor.max(Some(id));
        // Patience first: a call must not see the one without the other.
        self.be_patient(now);
        if !on(Bug::KeepLeaseAsLeader) {
            inner.held = None;
            self.cell.end();
        }
        let last_leader = if on(Bug::SpareTheFollowed) { followed } else { last_author };
        let spares_nobody =
            by_hand_over && !on(Bug::SpareAfterHandOver) && !on(Bug::HandOverLikeElection);
        inner.leading = Some(Leading {
            id,
            elected: now,
            first,
            first_applied: on(Bug::GrantBeforeOwnEntry),
            spared: if spares_nobody { None } else { last_leader },
            handing_over: false,
            acks: BTreeMap::new(),
            holders: BTreeMap::new(),
            fenced: BTreeMap::new(),
            wanted: BTreeMap::new(),
            leaving: BTreeMap::new(),
            clocks: BTreeMap::new(),
        });
    }

    /// A vote is about to be saved. Another leader's, or a candidate's, ends this node's leadership.
    pub fn voted(&self, vote: LeaderId, now: Duration) {
        let mut inner = self.inner.lock();
        if vote.node_id != self.me && inner.asked_to_stand.is_some_and(|by| vote > by) {
            inner.asked_to_stand = None;
        }
        if inner.leading.as_ref().is_some_and(|leading| leading.id != vote) {
            inner.leading = None;
            self.be_patient(now);
            self.cell.end();
        }
    }

    /// Who votes, by the last configuration in the log; two sets while it changes.
    #[must_use]
    pub fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        self.inner.lock().effective.get_joint_config().clone()
    }

    /// Whether that node is a member by the last configuration in the log, and by the last one that is committed.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> (bool, bool) {
        let inner = self.inner.lock();
        let has = |membership: &Membership| membership.get_node(&node).is_some();
        (has(&inner.effective), has(&inner.committed))
    }

    /// This node may not take part any more: no lease from here on, of whatever kind.
    pub fn give_up(&self) {
        let mut inner = self.inner.lock();
        inner.leading = None;
        inner.floor = Some(LeaderId { term: u64::MAX, node_id: NodeId::MAX });
        self.cell.end();
    }

    /// The last configuration in the log changed.
    pub fn configured(&self, effective: Membership) {
        self.inner.lock().effective = effective;
    }

    // --- The state machine tells (after calls can see it).

    /// Entries up to `index` are visible to calls; `committed` is the last configuration among them.
    pub fn applied(&self, index: u64, committed: &Membership, now: Duration) {
        let mut inner = self.inner.lock();
        self.cell.set_applied(index);
        if inner.committed != *committed {
            inner.committed = committed.clone();
            // A removal that is committed is complete: membership itself refuses the node now, and it
            // may be added again.
            if let Some(leading) = &mut inner.leading {
                leading.leaving.retain(|node, _| committed.get_node(node).is_some());
            }
        }
        if let Some(leading) = &mut inner.leading
            && index >= leading.first
        {
            leading.first_applied = true;
            self.cell.raise_fence(index);
        }
        self.renew_self(&inner, now);
    }

    // --- The transport tells.

    /// A peer acknowledged an append or heartbeat of `leader` that was sent at `sent`.
    pub fn acknowledged(&self, leader: LeaderId, peer: NodeId, sent: Duration, now: Duration) {
        let mut inner = self.inner.lock();
        let Some(leading) = &mut inner.leading else { return };
        if leading.id != leader {
            return;
        }
        let latest = leading.acks.entry(peer).or_default();
        *latest = sent.max(*latest);
        self.renew_self(&inner, now);
    }

    /// Called now and then: the only voter of a Region hears no acknowledgements.
    pub fn tick(&self, now: Duration) {
        self.renew_self(&self.inner.lock(), now);
    }

    /// A hand-over message is about to leave: no self-lease from here on (rule 6).
    pub fn hand_over(&self, now: Duration) {
        if on(Bug::SelfLeaseInHandOver) || on(Bug::HandOverLikeElection) {
            return;
        }
        let mut inner = self.inner.lock();
        if let Some(leading) = &mut inner.leading {
            leading.handing_over = true;
            self.be_patient(now);
            self.cell.end();
        }
    }

    /// A leader asks this node to stand: should it win, it spares nobody (rule 6). Once it has voted for a later
    /// leader, it will not have won because of that.
    pub fn asked_to_stand(&self, by: LeaderId) {
        let mut inner = self.inner.lock();
        inner.asked_to_stand = inner.asked_to_stand.max(Some(by));
    }

    // --- The leader's self-lease.

    /// When a majority of every voter set last acknowledged, counted from the send.
    fn quorum_ack(&self, inner: &Inner, now: Duration) -> Duration {
        let Some(leading) = &inner.leading else { return Duration::ZERO };
        let newest_majority = |voters: &BTreeSet<NodeId>| {
            let mut acks: Vec<Duration> = voters
                .iter()
                .map(|voter| {
                    if *voter == self.me {
                        now
                    } else {
                        leading.acks.get(voter).copied().unwrap_or_default()
                    }
                })
                .collect();
            acks.sort_unstable_by(|a, b| b.cmp(a));
            acks.get(voters.len() / 2).copied().unwrap_or_default()
        };
        inner.effective.get_joint_config().iter().map(newest_majority).min().unwrap_or_default()
    }

    /// Rule 2: a leader serves for its leader lease after its last quorum acknowledgement; rule 4: not
    /// before its own first entry is applied.
    fn renew_self(&self, inner: &Inner, now: Duration) {
        let Some(leading) = &inner.leading else { return };
        if !leading.first_applied || leading.handing_over {
            return;
        }
        let lasts = if on(Bug::LongSelfLease) { self.ttl() } else { self.leader_lease() };
        let mut until = self.quorum_ack(inner, now) + holders_share(lasts);
        if on(Bug::KeepLeaseAsLeader) {
            until = until.max(inner.held.map_or(Duration::ZERO, |(_, held)| held));
        }
        if self.cell.set_until(until, now) {
            self.stepped.notify_waiters();
        }
    }

    // --- Follower leases, at the leader.

    /// Grants a lease, or says why not.
    pub fn grant(
        &self,
        peer: NodeId,
        request: &LeaseRequest,
        region_ms: Option<i64>,
        now: Duration,
    ) -> Result<Grant, String> {
        let mut inner = self.inner.lock();
        let quorum_ack = self.quorum_ack(&inner, now);
        // Learners only once their adding is committed (rule 5).
        let added = inner.committed.get_node(&peer).is_some()
            || (on(Bug::LearnerGrantedEarly) && inner.effective.get_node(&peer).is_some());
        let leaves = leaves(&inner.effective, peer) && !on(Bug::LeavingNodeGranted);
        let member = added && !leaves;
        let Some(leading) = &mut inner.leading else {
            return Err("this node does not lead".to_owned());
        };
        if !leading.first_applied {
            return Err("the leader's own first entry is not committed yet".to_owned());
        }
        if !member || leading.leaving.contains_key(&peer) {
            return Err(format!("node {peer} is not a committed member, or is being removed"));
        }
        if !clock_fits(leading, peer, request, now) {
            return Err(format!(
                "node {peer}'s clock runs more than {RHO_PERCENT} % off the leader's: repair its clock"
            ));
        }
        // A node that is mute to fences would stop every change for as long as it is granted anything.
        let answered = leading.fenced.get(&peer).copied().unwrap_or(0);
        let owes = leading
            .wanted
            .iter()
            .any(|(index, since)| *index > answered && now > *since + self.renewal());
        if owes {
            return Err(format!("node {peer} owes an answer to a fence"));
        }
        let bound = if on(Bug::NoQuorumBound) { now } else { quorum_ack };
        let end = bound + self.ttl();
        if end <= now {
            return Err("the leader has not heard from a majority".to_owned());
        }
        let duration = self.ttl().min(end - now);
        let over = leading.holders.entry(peer).or_default();
        *over = (now + duration).max(*over);
        Ok(Grant {
            leader: leading.id,
            boot: request.boot,
            fence: if on(Bug::NoFenceInGrant) { 0 } else { self.cell.applied() },
            duration_ns: nanos(duration),
            region_ms,
            counters: Vec::new(),
        })
    }

    // --- Follower leases, at the holder.

    /// What to ask with.
    #[must_use]
    pub fn request(&self, wall_ms: i64, counter: u64, now: Duration) -> LeaseRequest {
        LeaseRequest { boot: self.boot, clock_ns: nanos(now), wall_ms, counter }
    }

    /// Takes up a grant that was asked for at `asked`. False: its fence is not applied here yet and the
    /// old lease still serves; try again in a moment.
    pub fn take(&self, grant: &Grant, asked: Duration, now: Duration) -> bool {
        let mut inner = self.inner.lock();
        if grant.boot != self.boot
            || inner.leading.is_some()
            || inner.floor.is_some_and(|floor| grant.leader < floor)
            || inner.held.is_some_and(|(leader, _)| grant.leader < leader)
        {
            return true;
        }
        let applied = self.cell.applied();
        if applied < grant.fence && self.cell.lasts(now) && applied >= self.cell.fence() {
            return false;
        }
        // Counted from before it was asked for (rule 1), and shortened by what clocks can be off.
        let begins = if on(Bug::LeaseFromAnswer) { now } else { asked };
        let end = begins + holders_share(Duration::from_nanos(grant.duration_ns));
        let until = match inner.held {
            Some((leader, until)) if leader == grant.leader => end.max(until),
            _ => end,
        };
        inner.held = Some((grant.leader, until));
        self.cell.raise_fence(grant.fence);
        if self.cell.set_until(until, now) {
            self.stepped.notify_waiters();
        }
        true
    }

    /// A leader says "not before `index`". The answer may leave once this has returned.
    pub fn fence_here(&self, index: u64) {
        let _one_at_a_time = self.inner.lock();
        self.cell.raise_fence(index);
    }

    // --- Fences, at the leader.

    /// The change at `index` is committed and must be fenced.
    pub fn want_fence(&self, index: u64, now: Duration) {
        let mut inner = self.inner.lock();
        if let Some(leading) = &mut inner.leading {
            leading.wanted.entry(index).or_insert(now);
        }
    }

    /// Whom to tell, and up to which index.
    #[must_use]
    pub fn owed(&self) -> Vec<Owed> {
        let inner = self.inner.lock();
        let Some(leading) = &inner.leading else { return Vec::new() };
        let Some((&index, _)) = leading.wanted.last_key_value() else { return Vec::new() };
        self.must_answer(&inner, leading)
            .into_iter()
            .filter(|node| leading.fenced.get(node).copied().unwrap_or(0) < index)
            .map(|node| Owed { node, leader: leading.id, index })
            .collect()
    }

    /// Every node that may hold a lease: members by the last configuration in the log, by the last one
    /// committed, and those with a grant of this term.
    fn must_answer(&self, inner: &Inner, leading: &Leading) -> BTreeSet<NodeId> {
        let mut nodes: BTreeSet<NodeId> = inner.effective.nodes().map(|(node, _)| *node).collect();
        if !on(Bug::RemovedNodeForgotten) {
            nodes.extend(inner.committed.nodes().map(|(node, _)| *node));
            nodes.extend(leading.holders.keys());
        }
        if on(Bug::FenceHoldersOnly) {
            nodes = leading.holders.keys().copied().collect();
        }
        nodes.remove(&self.me);
        nodes
    }

    /// A peer has answered a fence.
    pub fn fence_answered(&self, owed: &Owed) {
        let mut inner = self.inner.lock();
        if let Some(leading) = &mut inner.leading
            && leading.id == owed.leader
        {
            let answered = leading.fenced.entry(owed.node).or_default();
            *answered = owed.index.max(*answered);
        }
    }

    /// Rule 5: may the change at `index`, committed under `leader`, be acknowledged?
    pub fn fenced(&self, leader: LeaderId, index: u64, now: Duration) -> Fenced {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(leading) = &inner.leading else { return Fenced::LeadershipLost };
        if leading.id != leader {
            return Fenced::LeadershipLost;
        }
        let waiting = self.must_answer(inner, leading).into_iter().any(|node| {
            let answered = leading.fenced.get(&node).copied().unwrap_or(0) >= index;
            !answered && self.may_hold(leading, node, now)
        });
        if waiting {
            return Fenced::Waiting;
        }
        self.cell.raise_fence(index);
        if let Some(leading) = &mut inner.leading {
            // Lower fences are answered with it; a higher one is still wanted.
            leading.wanted = leading.wanted.split_off(&(index + 1));
        }
        Fenced::Yes
    }

    /// Every other node that may hold a lease now, of this term or an earlier one. None: this node does not lead.
    #[must_use]
    pub fn possible_holders(&self, now: Duration) -> Option<BTreeSet<NodeId>> {
        let inner = self.inner.lock();
        let leading = inner.leading.as_ref()?;
        let mut nodes = self.must_answer(&inner, leading);
        nodes.retain(|node| self.may_hold(leading, *node, now));
        Some(nodes)
    }

    fn may_hold(&self, leading: &Leading, node: NodeId, now: Duration) -> bool {
        let earlier_terms_over =
            on(Bug::NoElectionWait) || now >= leading.elected + grantors_wait(self.ttl());
        let granted_now = leading.holders.get(&node).is_some_and(|over| now < *over);
        granted_now || (!earlier_terms_over && leading.spared != Some(node))
    }

    // --- Removal, first step.

    /// Nothing more is granted to `node` in this term, which is returned, until `grant_again`. None: this node does not lead.
    pub fn stop_granting(&self, node: NodeId) -> Option<LeaderId> {
        let mut inner = self.inner.lock();
        let leading = inner.leading.as_mut()?;
        *leading.leaving.entry(node).or_default() += 1;
        Some(leading.id)
    }

    /// A call that was to remove it in that term has given up. Another one may go on: it has seen that the node holds
    /// nothing.
    pub fn grant_again(&self, node: NodeId, term: LeaderId) {
        let mut inner = self.inner.lock();
        let Some(leading) = inner.leading.as_mut().filter(|leading| leading.id == term) else {
            return;
        };
        if let Some(calls) = leading.leaving.get_mut(&node) {
            *calls = calls.saturating_sub(1);
            if *calls == 0 {
                leading.leaving.remove(&node);
            }
        }
    }

    /// True once `node` can hold no lease, of that term or an earlier one, and is granted none.
    #[must_use]
    pub fn lease_is_over(&self, node: NodeId, term: LeaderId, now: Duration) -> bool {
        let inner = self.inner.lock();
        let Some(leading) = inner.leading.as_ref().filter(|leading| leading.id == term) else {
            return false;
        };
        leading.leaving.contains_key(&node)
            && leading.holders.get(&node).is_none_or(|over| now >= *over)
            && now >= leading.elected + grantors_wait(self.ttl())
    }

    /// This node leads, and its own first entry of the term is applied: its state holds all that was committed before.
    #[must_use]
    pub fn has_applied_own_entry(&self) -> bool {
        self.inner.lock().leading.as_ref().is_some_and(|leading| leading.first_applied)
    }

    /// This node leads, and its own removal is committed.
    #[must_use]
    pub fn leads_without_membership(&self) -> bool {
        let inner = self.inner.lock();
        inner.leading.as_ref().is_some_and(|leading| leading.first_applied)
            && inner.committed.get_node(&self.me).is_none()
    }

    // --- Seen from outside.

    /// The term that this node leads, if it does.
    #[must_use]
    pub fn leading(&self) -> Option<LeaderId> {
        self.inner.lock().leading.as_ref().map(|leading| leading.id)
    }

    /// True once this leader may serve and grant.
    #[must_use]
    pub fn leading_ready(&self) -> Option<LeaderId> {
        let inner = self.inner.lock();
        let leading = inner.leading.as_ref()?;
        (leading.first_applied && !leading.handing_over).then_some(leading.id)
    }

    /// `leader`, `follower` or `none`.
    #[must_use]
    pub fn describe(&self, now: Duration) -> &'static str {
        let inner = self.inner.lock();
        if !self.cell.lasts(now) {
            "none"
        } else if inner.leading.is_some() {
            "leader"
        } else {
            "follower"
        }
    }
}

/// Compares a holder's clock with ours over a window; a wrong one gets nothing until it has run right
/// for a whole window.
fn clock_fits(leading: &mut Leading, peer: NodeId, request: &LeaseRequest, now: Duration) -> bool {
    let theirs = Duration::from_nanos(request.clock_ns);
    let fresh = ClockWatch { ours: now, theirs, wrong: false };
    let watch = leading.clocks.entry(peer).or_insert(fresh);
    if theirs < watch.theirs {
        // Another boot of that node: its clock began anew.
        *watch = fresh;
        return true;
    }
    let ours_ran = now.saturating_sub(watch.ours);
    if ours_ran >= CLOCK_WINDOW {
        let theirs_ran = theirs - watch.theirs;
        let off = ours_ran.abs_diff(theirs_ran);
        let wrong = off > ours_ran * RHO_PERCENT / 100;
        if wrong && !watch.wrong {
            tracing::error!(
                node = peer,
                ours_ms = ours_ran.as_millis() as u64,
                theirs_ms = theirs_ran.as_millis() as u64,
                "a node's clock runs wrong: it gets no lease"
            );
        }
        *watch = ClockWatch { ours: now, theirs, wrong };
    }
    !watch.wrong
}

#[cfg(test)]
mod tests;
