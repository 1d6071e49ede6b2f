//! Proving that this node's disk is the one it last ran with, before it takes part (`disk.rs`).

use super::*;

/// Between rounds of asking the other voters.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a voter may take to answer. All are waited for: one may know what the others don't.
const ANSWER_PATIENCE: Duration = Duration::from_millis(300);
/// Between raises of the counter when nothing else is written.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Between entries of everybody's counters in replicated state.
const RECORD_EVERY: Duration = Duration::from_secs(60);

impl<E: Env> Node<E> {
    /// Asks the other voters, as the log and the state know them, until this node may vote and stand. A node
    /// that knows of no Region waits for a leader to vouch for it; so does one that does not vote by its own log, while a
    /// leader lives. Where none does, the others may have made a voter of it and wait for its vote.
    pub(super) async fn prove_disk(self: Arc<Self>) {
        let may_stand = || {
            self.disks.may_vote(self.keeper.cell().applied())
                && self.disks.may_win(self.log.last_id())
        };
        while !self.is_stopped() && !may_stand() {
            let voters = self.keeper.voters();
            let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
            if all.contains(&self.id()) || (!all.is_empty() && !self.leader_lives()) {
                let nodes = self.members();
                let others: Vec<&Member> = nodes
                    .iter()
                    .filter(|member| member.node != self.id() && all.contains(&member.node))
                    .collect();
                let asked = others.iter().map(|member| self.confirmation_of(member));
                let answers = futures_util::future::join_all(asked).await;
                let answers = others
                    .iter()
                    .zip(answers)
                    .filter_map(|(member, answer)| Some((member.node, answer?)))
                    .collect();
                self.disks.weigh(&voters, &answers);
                if let Some(why) = self.disks.condemned() {
                    self.condemn(&why).await;
                    return;
                }
            }
            self.env.sleep(ASK_AGAIN).await;
        }
    }

    async fn confirmation_of(&self, member: &Member) -> Option<Confirmation> {
        let node = BasicNode::new(member.address.clone());
        let request = PeerRequest::Confirm { found: self.disks.found() };
        match self.ask(member.node, &node, &request, ANSWER_PATIENCE).await {
            Some(PeerResponse::Confirmed(confirmation)) => Some(confirmation),
            _ => None,
        }
    }

    /// Takes no part from here on, and not after a restart.
    pub(super) async fn condemn(&self, why: &str) {
        tracing::error!(why, "this node may not take part any more");
        self.disks.condemn(why);
        self.keeper.give_up();
        if let Err(error) = self.log.condemn(why).await {
            tracing::error!(%error, "it cannot be put on the disk that this node may not take part");
        }
    }

    /// Raises the counter once a second, and has everybody's put into replicated state once a minute.
    pub(super) async fn count(self: Arc<Self>) {
        let mut recorded = self.env.boot_now();
        while !self.is_stopped() {
            let recorded_before = Arc::clone(&self.visible.load().counters);
            self.disks.learn(recorded_before.iter().map(|(node, counter)| (*node, *counter)));
            if self.is_member()
                && let Err(error) = self.log.note_counters(&self.disks.known()).await
            {
                tracing::error!(%error, "the counter on the disk was not raised");
            }
            let now = self.env.boot_now();
            if now >= recorded + RECORD_EVERY && self.leads() {
                recorded = now;
                let counters = self.disks.known();
                let command = Command::NoteCounters { counters };
                let mut id = [0; 16];
                self.env.entropy().fill(&mut id);
                let envelope = Envelope { id, time: Timestamp(0), command };
                let patience = Duration::from_millis(self.config.timers.lease_ttl_ms);
                if let Err(error) = self.propose(envelope, patience).await {
                    tracing::debug!(%error, "counters were not recorded; tried again in a minute");
                }
            }
            self.env.sleep(COUNT_EVERY).await;
        }
    }

    /// Why the Region takes nothing from a node any more, if it was given up in a recovery.
    pub(super) fn is_lost(&self, node: NodeId) -> Option<String> {
        self.visible.load().lost.contains_key(&node).then(|| {
            format!(
                "node {node} was given up when the Region went on without it (`keyward cluster recover`, or `keyward \
                 snapshot restore`): its history is another one now. Empty its data folder, and have it join under a new id (`keyward \
                 cluster invite`)"
            )
        })
    }

    /// Whether this node's Region was restored from a backup: `from`, which the Region's authority has made a node, was
    /// never heard of here. A Region that lives is not ended by that: somebody may be looking at an old backup.
    pub(super) fn is_superseded_by(&self, from: NodeId) -> bool {
        let state = self.visible.load();
        let known = state.counters.contains_key(&from)
            || state.lost.contains_key(&from)
            || state.roots_of(from).next().is_some()
            || state.invitations.values().any(|invitation| invitation.node == from);
        !known && state.region.is_some() && !self.leader_lives()
    }

    /// Whether this node goes on after a recovery that is not in its state yet.
    #[must_use]
    pub fn recovers(&self) -> bool {
        let history = self.state().history;
        self.recovery.as_ref().is_some_and(|recovery| history != Some(recovery.history))
    }

    /// Puts a recovery into the state, and tells those who were given up whenever they can be reached.
    pub(super) async fn keep_the_lost_out(self: Arc<Self>) {
        let mut put = self.recovery.is_none();
        while !self.is_stopped() {
            if let Some(recovery) = self.recovery.as_ref().filter(|_| !put)
                && self.leads()
            {
                let Recovery { history, lost } = recovery.clone();
                let command = Command::Recover { history, lost };
                // Its name is the attempt's: however often it is proposed, it takes effect once.
                let envelope = Envelope { id: history, time: Timestamp(0), command };
                let patience = Duration::from_millis(self.config.timers.lease_ttl_ms);
                put = self.propose(envelope, patience).await.is_ok();
            }
            if self.leads() {
                let lost = Arc::clone(&self.visible.load().lost);
                for (node, address) in lost.iter() {
                    let Some(why) = self.is_lost(*node) else { continue };
                    let target = BasicNode::new(address.clone());
                    let banish = PeerRequest::Banish { why };
                    drop(self.ask(*node, &target, &banish, ANSWER_PATIENCE).await);
                }
            }
            self.env.sleep(COUNT_EVERY * 2).await;
        }
    }

    pub(super) fn heard_leader(&self) {
        let now = u64::try_from(self.env.boot_now().as_nanos()).unwrap_or(u64::MAX);
        self.heard_ns.store(now, Ordering::Relaxed);
    }

    /// This node leads, or has heard from a leader within a leader lease.
    pub(super) fn leader_lives(&self) -> bool {
        let heard = Duration::from_nanos(self.heard_ns.load(Ordering::Relaxed));
        let lately = heard + Duration::from_millis(self.config.timers.election_ms_max);
        self.keeper.leading_ready().is_some() || (!heard.is_zero() && self.env.boot_now() < lately)
    }
}
