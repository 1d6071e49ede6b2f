//! What a node does all the time: stands when it may, renews leases, sends fences.

use super::*;

impl<E: Env> Node<E> {
    pub(super) async fn stand_when_allowed(self: Arc<Self>) {
        while self.is_mute() || !self.disks.may_win(self.log.last_id()) {
            if self.is_stopped() {
                return;
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
        self.raft.runtime_config().elect(true);
        let alone = {
            use openraft::async_runtime::WatchReceiver;
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().voter_ids().eq([self.id()])
        };
        if alone {
            // The only voter need not wait for an election timeout.
            let _ = self.raft.trigger().elect(false).await;
        }
    }

    /// Asks the leader for a lease at every interval; keeps an only voter's own lease fresh.
    pub(super) async fn renew_leases(self: Arc<Self>) {
        let renewal = Duration::from_millis(self.config.timers.renewal_ms);
        let mut follows = None;
        while !self.stopped.load(Ordering::SeqCst) {
            let now = self.env.boot_now();
            self.keeper.tick(now);
            self.look_at_clocks();
            self.step_aside_with_a_wrong_clock();
            self.step_aside_when_removed();
            let leader = self.leader();
            let known = leader.as_ref().map(|(id, _)| *id);
            match leader {
                Some((leader, node)) if leader != self.id() && self.disks.is_proved() => {
                    let this = Arc::clone(&self);
                    self.env.spawn(async move { this.renew_lease(leader, node, now).await });
                }
                _ => {}
            }
            // A leader that has just appeared is asked at once, not an interval later.
            let pause = if known.is_none() || known != follows { renewal / 8 } else { renewal };
            follows = known;
            self.env.sleep(pause).await;
        }
    }

    pub(super) async fn renew_lease(
        self: Arc<Self>,
        leader: NodeId,
        node: BasicNode,
        asked: Duration,
    ) {
        let request = PeerRequest::<E>::Lease(self.keeper.request(
            self.env.wall_now_ms(),
            self.disks.told().counter,
            asked,
        ));
        let ttl = Duration::from_millis(self.config.timers.lease_ttl_ms);
        let Some(PeerResponse::Lease(Ok(grant))) = self.ask(leader, &node, &request, ttl).await
        else {
            return;
        };
        self.note_round_trip(leader, asked);
        if let Some(region_ms) = grant.region_ms {
            self.time.learn(region_ms, asked);
        }
        self.disks.learn(grant.counters.iter().copied());
        while !self.keeper.take(&grant, asked, self.env.boot_now()) {
            self.env.sleep(LOOK_AGAIN / 5).await;
        }
        self.keeper.stepped().notify_waiters();
    }

    /// A leader whose clock is off from a majority's hands over to a voter whose clock is right.
    fn step_aside_with_a_wrong_clock(self: &Arc<Self>) {
        let Some(look) = self.clock_look() else { return };
        let Some(better) = self.time.better_clock(&look) else { return };
        if self.keeper.leading_ready().is_none() {
            return;
        }
        let off_ms = self.time.offsets(&look).get(&self.id()).copied().unwrap_or(0);
        tracing::error!(
            off_ms,
            to = better,
            "this node's wall clock is wrong: it hands leadership over; set the clock (chrony or ntpd keeps \
             it right)"
        );
        let this = Arc::clone(self);
        self.env.spawn(async move {
            let patience = Duration::from_millis(this.config.timers.election_ms_max);
            if let Err(why) = this.transfer(Some(better), patience).await {
                tracing::warn!(%why, "leadership was not handed over");
            }
        });
    }

    /// A node may be elected while its own removal is in the log, and commits that then. Nobody asks a leader that is no
    /// member for a lease: it hands over.
    fn step_aside_when_removed(self: &Arc<Self>) {
        if !self.keeper.leads_without_membership() {
            return;
        }
        tracing::info!("this node was removed while it was elected: it hands leadership over");
        let this = Arc::clone(self);
        self.env.spawn(async move {
            let patience = Duration::from_millis(this.config.timers.election_ms_max);
            if let Err(why) = this.transfer(None, patience).await {
                tracing::warn!(%why, "leadership was not handed over");
            }
        });
    }

    /// Rule 7: a Region is a place whose round trips stay under half a heartbeat; a wider one needs longer
    /// timers. Said at most once a minute.
    pub(super) fn note_round_trip(&self, leader: NodeId, asked: Duration) {
        let now = self.env.boot_now();
        let took = now.saturating_sub(asked);
        let limit = Duration::from_millis(self.config.timers.heartbeat_ms / 2);
        let second = now.as_secs();
        let said = self.slow_said.load(Ordering::Relaxed);
        if took > limit && (said == 0 || second >= said + 60) {
            self.slow_said.store(second, Ordering::Relaxed);
            tracing::warn!(
                leader,
                took_ms = took.as_millis() as u64,
                limit_ms = limit.as_millis() as u64,
                "a round trip to the leader took longer than half a heartbeat: if that is usual here, the \
                 Region needs longer timers"
            );
        }
    }

    /// Tells every node that owes an answer; one message under way to each, always the newest index.
    pub(super) async fn send_fences(self: Arc<Self>) {
        while !self.stopped.load(Ordering::SeqCst) {
            let nodes = self.addresses();
            for owed in self.keeper.owed() {
                let Some(node) = nodes.get(&owed.node) else { continue };
                if self.fencing.lock().insert(owed.node) {
                    let (this, node) = (Arc::clone(&self), node.clone());
                    self.env.spawn(async move { this.send_fence(owed, node).await });
                }
            }
            let wanted = self.fence_wanted.notified();
            self.env.timeout(Duration::from_millis(self.config.timers.heartbeat_ms), wanted).await;
        }
    }

    pub(super) async fn send_fence(self: Arc<Self>, owed: Owed, node: BasicNode) {
        let request = PeerRequest::Fence { leader: owed.leader, index: owed.index };
        let answer = self.ask(owed.node, &node, &request, FENCE_CALL).await;
        self.fencing.lock().remove(&owed.node);
        if matches!(answer, Some(PeerResponse::Ok)) {
            self.keeper.fence_answered(&owed);
            self.fence_answered.notify_waiters();
            // Changes that came meanwhile are owed now.
            self.fence_wanted.notify_one();
        }
    }

    pub(super) fn addresses(&self) -> BTreeMap<NodeId, BasicNode> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.nodes().map(|(id, node)| (*id, node.clone())).collect()
    }
}
