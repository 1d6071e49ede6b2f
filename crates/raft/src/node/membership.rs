//! Members: adding, promoting, removing, and handing leadership over.

use keyward_env::AsyncRuntime;
use openraft::ChangeMembers;
use openraft::errors::ChangeMembershipError;

use super::*;

impl<E: Env> Node<E> {
    /// The members, by the last configuration in the log.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        membership
            .nodes()
            .map(|(id, node)| Member {
                node: *id,
                address: node.addr.clone(),
                voter: voters.contains(id),
            })
            .collect()
    }

    /// A change of the voters is under way, as far as this node knows: two sets of them are in force.
    #[must_use]
    pub fn voters_change(&self) -> bool {
        self.keeper.voters().len() > 1
    }

    /// Whether that node is a member, by the last configuration in the log.
    #[must_use]
    pub fn has_member(&self, node: NodeId) -> bool {
        self.members().iter().any(|member| member.node == node)
    }

    /// Whether that node has left for good. A removal that is in the log alone is waited for: the next leader might not have
    /// it. Leader only.
    pub async fn has_left(&self, node: NodeId, patience: Duration) -> Result<bool, String> {
        let end = self.env.boot_now() + patience;
        loop {
            match self.keeper.is_member(node) {
                (true, _) => return Ok(false),
                (false, false) => return Ok(true),
                (false, true) if on(Bug::RemovalOnTrust) => return Ok(true),
                (false, true) => {}
            }
            if self.env.boot_now() >= end || self.keeper.leading().is_none() {
                return Err(format!("the removal of node {node} is not committed yet; try again"));
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Carries out one change of the members, as soon as it is `allowed`. One that is under way is waited for: openraft takes
    /// them one at a time, and nodes may be added together.
    async fn in_turn<T, F>(
        &self,
        patience: Duration,
        allowed: impl Fn() -> Result<(), String> + Send + Sync,
        change: impl Fn() -> F + Send + Sync,
    ) -> Result<(), String>
    where
        F: Future<Output = Result<T, RaftError<TypeConfig<E>, ClientWriteError<TypeConfig<E>>>>>
            + Send,
        T: Send,
    {
        let end = self.env.boot_now() + patience;
        loop {
            allowed()?;
            let error = match change().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let under_way = matches!(
                error,
                RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_)
                ))
            );
            if !under_way || self.env.boot_now() >= end {
                return Err(error.to_string());
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Completes a change of the voters that an earlier leader left half done. Leader only.
    pub async fn complete_voters_change(&self) -> Result<(), String> {
        // Nobody is added: the voters are those that the change was to lead to.
        let change = ChangeMembers::AddVoterIds(BTreeSet::new());
        self.raft.change_membership(change, false).await.map(drop).map_err(|e| e.to_string())
    }

    /// Makes this node the only voter of a new Region. Refused by a node that has a log.
    pub async fn found(&self) -> Result<(), String> {
        self.disks.confirmed(None);
        let members = BTreeMap::from([(self.id(), BasicNode::new(self.config.address.clone()))]);
        self.raft.initialize(members).await.map_err(|e| e.to_string())
    }

    /// Adds a node that follows and does not vote. Leader only.
    pub async fn add_learner(
        &self,
        node: NodeId,
        address: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let add = || self.raft.add_learner(node, BasicNode::new(address), false);
        self.in_turn(patience, || Ok(()), add).await
    }

    /// Makes followers that have caught up vote. Leader only.
    pub async fn promote(&self, node: NodeId, patience: Duration) -> Result<(), String> {
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
        let promote = || self.raft.change_membership(change.clone(), true);
        self.in_turn(patience, || Ok(()), promote).await
    }

    /// Removes a node: first nothing more is granted to it and its leases run out, then the membership
    /// changes (rule 5). Goes on to its end even if nobody waits for it any more. Leader only.
    pub async fn remove(self: &Arc<Self>, node: NodeId, patience: Duration) -> Result<(), String> {
        if node == self.id() {
            return Err("the leader cannot remove itself: transfer leadership first".to_owned());
        }
        let this = Arc::clone(self);
        let removed = E::Runtime::spawn(async move {
            let Some(term) = this.keeper.stop_granting(node) else {
                return Err("this node does not lead".to_owned());
            };
            let result = this.remove_in(term, node, patience).await;
            if result.is_err() {
                this.keeper.grant_again(node, term);
            }
            result
        });
        removed.await.map_err(|error| error.to_string())?
    }

    /// Removes a node that is granted nothing in that term.
    async fn remove_in(
        &self,
        term: LeaderId,
        node: NodeId,
        patience: Duration,
    ) -> Result<(), String> {
        let end = self.env.boot_now() + patience;
        let holds_nothing = || {
            self.keeper.lease_is_over(node, term, self.env.boot_now())
                || on(Bug::RemovedNodeForgotten)
        };
        while !holds_nothing() {
            if self.env.boot_now() >= end || self.keeper.leading() != Some(term) {
                return Err(format!("node {node}'s lease did not run out in time; try again"));
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
        let votes = self.members().iter().any(|member| member.node == node && member.voter);
        let removed = BTreeSet::from([node]);
        let change = if votes {
            ChangeMembers::RemoveVoters(removed)
        } else {
            ChangeMembers::RemoveNodes(removed)
        };
        // While it waits for its turn another call may have made a member of it anew, or another term have begun.
        let allowed = || match holds_nothing() {
            true => Ok(()),
            false => Err(format!("node {node} may hold a lease again; try again")),
        };
        let left = end.saturating_sub(self.env.boot_now());
        self.in_turn(left, allowed, || self.raft.change_membership(change.clone(), false)).await
    }

    /// Hands leadership to `to`, or to whichever voter takes it. Returns the new leader. An error also if
    /// another one than `to` took it.
    pub async fn transfer(&self, to: Option<NodeId>, patience: Duration) -> Result<NodeId, String> {
        let end = self.env.boot_now() + patience;
        let candidates: Vec<NodeId> = match to {
            Some(node) => vec![node],
            None => self
                .members()
                .into_iter()
                .filter(|member| member.voter && member.node != self.id())
                .map(|member| member.node)
                .collect(),
        };
        if candidates.is_empty() {
            return Err("no other voter to hand leadership to".to_owned());
        }
        let step = Duration::from_millis(self.config.timers.election_ms_max);
        let mut turn = candidates.iter().cycle();
        while self.keeper.leading().is_some() {
            let Some(target) = turn.next() else { break };
            if self.env.boot_now() >= end {
                return Err("no voter took leadership over in time".to_owned());
            }
            // Rule 6: the self-lease is given up before any message leaves.
            self.keeper.hand_over(self.env.boot_now());
            self.raft.trigger().transfer_leader(*target).await.map_err(|e| e.to_string())?;
            let wait_until = self.env.boot_now() + step;
            while self.keeper.leading().is_some() && self.env.boot_now() < wait_until {
                self.env.sleep(LOOK_AGAIN).await;
            }
        }
        while self.env.boot_now() < end {
            match self.leader_id() {
                Some(leader) if to.is_some_and(|to| to != leader && leader != self.id()) => {
                    return Err(format!("node {leader} took leadership; try again"));
                }
                Some(leader) if leader != self.id() => return Ok(leader),
                _ => self.env.sleep(LOOK_AGAIN).await,
            }
        }
        Err("leadership was given up, and no new leader is known yet".to_owned())
    }
}
