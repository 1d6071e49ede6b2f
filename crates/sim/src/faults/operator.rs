//! What an operator does about the members, with everything tried until it is done: a node is removed; a machine is
//! invited, joins, follows, and asks for its vote.

use std::sync::Arc;
use std::time::Duration;

use keyward_model::{KmsError, NodeId};
use keyward_service::{Kms, signing_request};
use keyward_state::InvitationId;

use crate::client::Callers;
use crate::cluster::operator;
use crate::env::SimEnv;
use crate::sleep;

/// How long one of the operator's calls may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between tries.
pub(super) const AGAIN: Duration = Duration::from_millis(200);
/// An invitation holds for an hour, in milliseconds.
const INVITED_MS: i64 = 3_600_000;

/// Works on one machine, through the nodes of the others in turn.
pub(crate) struct Operator<'a> {
    callers: &'a Callers,
    machine: usize,
    turn: usize,
}

impl<'a> Operator<'a> {
    /// One who works on that machine.
    pub(crate) fn of(callers: &'a Callers, machine: usize) -> Self {
        Self { callers, machine, turn: machine }
    }

    /// Tries once, on the next node. The text says what it was told.
    async fn try_once<T, F, Fut>(&mut self, call: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Kms<SimEnv>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, KmsError>> + Send + 'static,
    {
        let others = self.callers.cluster.others(self.turn);
        let others = others.into_iter().find(|other| *other != self.machine);
        self.turn = others.unwrap_or(self.machine);
        let answer = self.callers.cluster.operate(self.turn, call).await;
        if let Err(why) = &answer {
            self.callers.cluster.note(self.machine, why.clone());
            sleep(AGAIN).await;
        }
        answer
    }

    fn set_clocks_right(&self) {
        let cluster = &self.callers.cluster;
        cluster.machines().for_each(|machine| cluster.walls.set_off(machine, 0));
    }

    /// The node leaves. A leader does not remove itself: it hands over first.
    pub(crate) async fn remove(&mut self, node: NodeId) {
        loop {
            let removed = self.try_once(move |kms| async move {
                kms.remove_node(&operator(), node, PATIENCE).await
            });
            match removed.await {
                Ok(()) => return,
                Err(why) if why.contains("NotFoundException") => return,
                Err(why) if why.contains("transfer leadership first") => {
                    // A leader whose clock is wrong would give it back at once.
                    self.set_clocks_right();
                    let handed_over = self.try_once(|kms| async move {
                        kms.transfer_leadership(&operator(), None, PATIENCE).await
                    });
                    drop(handed_over.await);
                }
                Err(_) => {}
            }
        }
    }

    async fn invite(&mut self) -> (NodeId, InvitationId) {
        loop {
            let invited = self.try_once(|kms| async move {
                let invited = kms.invite(&operator(), INVITED_MS, PATIENCE).await?;
                let state = kms.node().state();
                let found = state.invitations.values().find(|i| i.node == invited.node);
                Ok(found.map(|invitation| (invited.node, invitation.id)))
            });
            if let Ok(Some(invited)) = invited.await {
                return invited;
            }
        }
    }

    /// The machine uses its invitation. False: it has expired (the Region's clock was moved ahead).
    async fn join(&mut self, invitation: InvitationId, request: &[u8]) -> bool {
        loop {
            let (request, address) = (request.to_vec(), self.callers.cluster.address(self.machine));
            let joined = self.try_once(move |kms| async move {
                let state = kms.node().state();
                if state.invitations.get(&invitation).is_some_and(|i| i.used.is_some()) {
                    return Ok(());
                }
                kms.join(invitation, &request, address, PATIENCE).await.map(drop)
            });
            match joined.await {
                Ok(()) => return true,
                // Expired ones are forgotten after a while.
                Err(why)
                    if why.contains("has expired") || why.contains("knows no such invitation") =>
                {
                    return false;
                }
                Err(_) => {}
            }
        }
    }

    /// The machine begins anew, as a node that is invited and has used its invitation. None: it could not ask to.
    pub(crate) async fn bring_in(&mut self) -> Option<InvitationId> {
        let (callers, machine) = (self.callers, self.machine);
        // The machine's own key and certificate are no part of the simulation; the request must be a good one.
        let request = match signing_request() {
            Ok((_, request)) => request,
            Err(why) => {
                callers.book.lock().violate(format!("NO SIGNING REQUEST: {why}"));
                return None;
            }
        };
        loop {
            let (id, invitation) = self.invite().await;
            let trail = callers.cluster.audit_disk(machine);
            callers.invariants.trails().put_away(machine, trail);
            callers.cluster.begin_anew(machine, id);
            callers.cluster.boot(machine);
            if self.join(invitation, &request).await {
                return Some(invitation);
            }
        }
    }

    /// The node is let in, follows, and asks for its vote by itself. False: the invitation was forgotten before that.
    pub(crate) async fn enter(&mut self, invitation: InvitationId) -> bool {
        let cluster = &self.callers.cluster;
        while !cluster.votes(self.machine) {
            let entered =
                self.try_once(move |kms| async move { kms.enter(invitation, PATIENCE).await });
            match entered.await {
                // It may be cut off half done, and is asked for again then.
                Ok(_) => sleep(AGAIN * 5).await,
                // Clocks that disagree are set right by the operator, who cannot tell which one is wrong.
                Err(why) if why.contains("clock is") => {
                    self.set_clocks_right();
                }
                Err(why) if why.contains("is not of this Region") => return false,
                Err(_) => {}
            }
        }
        true
    }
}

/// The old node is removed, and another one joins on its machine.
pub(crate) async fn replace(callers: &Arc<Callers>, index: usize) {
    let mut operator = Operator::of(callers, index);
    operator.remove(callers.cluster.id(index)).await;
    while let Some(invitation) = operator.bring_in().await {
        if operator.enter(invitation).await {
            callers.book.lock().counters.joined += 1;
            return;
        }
    }
}
