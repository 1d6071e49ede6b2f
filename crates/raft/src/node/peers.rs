//! What a node says to its peers, and what it answers them.

use super::*;

impl<E: Env> Node<E> {
    pub(super) async fn ask(
        &self,
        target: NodeId,
        node: &BasicNode,
        request: &PeerRequest<E>,
        patience: Duration,
    ) -> Option<PeerResponse<E>> {
        let body = codec::encode(request);
        let answer = self.transport.call(target, node, body, patience).await.ok()?;
        codec::decode(&answer).ok()
    }

    /// Asks the layer above of another node.
    pub async fn ask_app(
        &self,
        target: NodeId,
        address: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Vec<u8>, String> {
        let node = BasicNode::new(address);
        match self.ask(target, &node, &PeerRequest::App(body), patience).await {
            Some(PeerResponse::App(answer)) => Ok(answer),
            Some(PeerResponse::Failed(reason)) => Err(reason),
            Some(_) => Err("an answer of another kind".to_owned()),
            None => Err(format!("node {target} at {address} did not answer")),
        }
    }

    /// Asks the layer above of the leader.
    pub async fn ask_leader_app(
        &self,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Vec<u8>, String> {
        let (leader, node) = self.leader().ok_or("no leader is known")?;
        if leader == self.id() {
            let app = self.app.get().ok_or("the node is starting")?;
            return app.answer(leader, body).await;
        }
        self.ask_app(leader, &node.addr, body, patience).await
    }

    /// Answers a message of `from`, whom the transport vouches for.
    pub fn answer(self: &Arc<Self>, from: NodeId, body: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let response = match codec::decode(&body) {
                Ok(request) => this.answer_request(from, request).await,
                Err(error) => PeerResponse::Failed(error.to_string()),
            };
            codec::encode(&response)
        })
    }

    pub(super) async fn answer_request(
        self: &Arc<Self>,
        from: NodeId,
        request: PeerRequest<E>,
    ) -> PeerResponse<E> {
        fn or_failed<E: Env, T, Err: std::fmt::Display>(
            result: Result<T, Err>,
            wrap: impl FnOnce(T) -> PeerResponse<E>,
        ) -> PeerResponse<E> {
            match result {
                Ok(value) => wrap(value),
                Err(error) => PeerResponse::Failed(error.to_string()),
            }
        }
        // The Region went on without them: nothing of theirs counts (`recover.rs`).
        if let Some(why) = self.is_lost(from) {
            return match request {
                PeerRequest::Confirm { .. } => self.confirmation(Some(why)),
                _ => PeerResponse::Failed(why),
            };
        }
        // A disk is proved before anything of it counts (`disk.rs`).
        match &request {
            PeerRequest::Append { .. }
            | PeerRequest::SnapshotPiece { .. }
            | PeerRequest::SnapshotDone { .. }
                if !self.disks.is_proved() =>
            {
                return match self.disks.condemned() {
                    Some(why) => PeerResponse::Failed(why),
                    None => PeerResponse::Unproved { found: self.disks.found() },
                };
            }
            _ => {}
        }
        match request {
            PeerRequest::Append { rpc, told } => {
                self.heard_leader();
                self.disks.learn([(from, told)]);
                let appended = self.raft.append_entries(rpc).await;
                // After the sync: whoever counts this acknowledgement knows how far this disk has come.
                let told = self.disks.told();
                or_failed(appended, |response| PeerResponse::Append { response, told })
            }
            // Rule 6: openraft forgets in a restart what it heard, so this node neither votes nor
            // stands for one leader lease.
            PeerRequest::Vote(_) | PeerRequest::PreVote(_) | PeerRequest::TransferLeader(_)
                if self.is_mute() =>
            {
                PeerResponse::Failed(
                    "this node has started lately and does not vote yet".to_owned(),
                )
            }
            PeerRequest::Vote(VoteRequest { last_log_id, .. })
            | PeerRequest::PreVote(VoteRequest { last_log_id, .. })
                if !self.disks.may_win(last_log_id) =>
            {
                PeerResponse::Failed(
                    "another voter's log goes further, and this node's disk is not trusted to know it"
                        .to_owned(),
                )
            }
            PeerRequest::Vote(rpc) => or_failed(self.raft.vote(rpc).await, PeerResponse::Vote),
            PeerRequest::PreVote(rpc) => {
                or_failed(self.raft.pre_vote(rpc).await, PeerResponse::Vote)
            }
            PeerRequest::TransferLeader(rpc) => {
                self.keeper.asked_to_stand(*rpc.from_leader().leader_id());
                or_failed(self.raft.handle_transfer_leader(rpc).await, |_| PeerResponse::Ok)
            }
            PeerRequest::SnapshotPiece { transfer, number, file, offset, bytes } => {
                let transfer = (from, transfer);
                let written = self.receive_piece(transfer, number, file, offset, bytes).await;
                or_failed(written, |()| PeerResponse::Ok)
            }
            PeerRequest::SnapshotDone { transfer, pieces, vote, last_log_id, membership } => {
                let last = (last_log_id, membership);
                let installed = self.install((from, transfer), pieces, vote, last).await;
                or_failed(installed, PeerResponse::Snapshot)
            }
            PeerRequest::Lease(request) => {
                let now = self.env.boot_now();
                if let Some(leader) = self.keeper.leading() {
                    self.time.note(leader, from, request.wall_ms, now);
                }
                self.disks
                    .learn([(from, DiskMark { boot: request.boot, counter: request.counter })]);
                let region_ms = self.look_at_clocks();
                let beside = self.keeper.cell().applied();
                if on(Bug::GrantBesideFence) {
                    self.env.sleep(LOOK_AGAIN * 10).await;
                }
                let granted = self.keeper.grant(from, &request, region_ms, now);
                PeerResponse::Lease(granted.map(|mut grant| {
                    if on(Bug::GrantBesideFence) {
                        grant.fence = beside;
                    }
                    grant.counters = self.disks.known().into_iter().collect();
                    grant
                }))
            }
            PeerRequest::Fence { index, .. } => {
                self.wait_applied(index, FENCE_PATIENCE).await;
                self.keeper.fence_here(index);
                PeerResponse::Ok
            }
            // A node that was removed may not know that yet, and goes on with its housekeeping.
            PeerRequest::Propose { .. } if !self.has_member(from) => {
                PeerResponse::Failed(format!("node {from} is not a member here"))
            }
            PeerRequest::Propose { envelope, patience_ms } => {
                let patience = Duration::from_millis(patience_ms);
                PeerResponse::Proposed(self.propose_here(*envelope, patience).await)
            }
            // Meant for an earlier start: it is over.
            PeerRequest::Vouch { boot, .. } | PeerRequest::Condemn { boot, .. }
                if boot != self.disks.found().boot =>
            {
                PeerResponse::Failed("that was an earlier start of this node".to_owned())
            }
            PeerRequest::Vouch { counters, committed, .. } => {
                self.disks.learn(counters);
                self.disks.vouched(committed);
                PeerResponse::Ok
            }
            PeerRequest::Condemn { why, .. } => {
                self.condemn(&why).await;
                PeerResponse::Ok
            }
            PeerRequest::Banish { why } => {
                if self.has_member(from) || self.is_superseded_by(from) {
                    self.condemn(&why).await;
                    PeerResponse::Ok
                } else {
                    PeerResponse::Failed(format!("node {from} is not a member here"))
                }
            }
            PeerRequest::Confirm { found } => {
                let refused = self.disks.judge(from, found).err();
                self.confirmation(refused.filter(|_| !on(Bug::DiskCounterIgnored)))
            }
            PeerRequest::Status => PeerResponse::Status(Box::new(self.status())),
            PeerRequest::App(body) => match self.app.get() {
                Some(app) => or_failed(app.answer(from, body).await, PeerResponse::App),
                None => PeerResponse::Failed("the node is starting".to_owned()),
            },
        }
    }

    fn confirmation(&self, refused: Option<String>) -> PeerResponse<E> {
        PeerResponse::Confirmed(Confirmation {
            refused,
            leader_lives: self.leader_lives(),
            last_log: self.log.last_id(),
        })
    }

    pub(super) fn is_mute(&self) -> bool {
        let just_started = self.env.boot_now() < self.mute_until && !on(Bug::VoteAfterRestart);
        just_started || !self.disks.may_vote(self.keeper.cell().applied())
    }

    pub(super) async fn wait_applied(&self, index: u64, patience: Duration) {
        let end = self.env.boot_now() + patience;
        while self.keeper.cell().applied() < index {
            let left = end.saturating_sub(self.env.boot_now());
            if left.is_zero() {
                return;
            }
            self.env.timeout(left.min(LOOK_AGAIN / 5), self.keeper.stepped().notified()).await;
        }
    }
}
