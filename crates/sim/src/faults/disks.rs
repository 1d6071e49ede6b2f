//! Disks that lie, and nodes that are replaced: a machine comes back with an empty disk, with an old copy of
//! its own, or with another one's. Its node must be refused, and the machine comes back as another node, as an
//! operator does it: the old node is removed, the machine invited; it joins, follows, and asks for its vote.
//! One machine at a time: a minority.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_model::{KmsError, NodeId};
use keyward_service::{Kms, signing_request};
use keyward_state::InvitationId;

use crate::client::Callers;
use crate::cluster::{NODES, Refusal, operator};
use crate::dice::Dice;
use crate::env::SimEnv;
use crate::faults::FaultKind;
use crate::sleep;

/// How long one of the operator's calls may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between tries.
const AGAIN: Duration = Duration::from_millis(200);
/// An invitation holds for an hour, in milliseconds.
const INVITED_MS: i64 = 3_600_000;
/// A node with a lying disk is refused once the others can be reached, within this.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug)]
enum Lie {
    Wiped,
    OldCopy,
    ForeignDisk,
    /// None: a node is taken out of service and another one put in its place.
    Replaced,
    /// A block of the log, or of the state, can be read no more.
    Rotten,
}

/// Has disks lie for that long, one machine after the other. Ends when every machine has a node that votes.
pub async fn lie_about_disks(callers: Arc<Callers>, mut dice: Dice, duration: Duration) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    (0..NODES).for_each(|index| cluster.copy_disks(index));
    while cluster.world.now() < end {
        sleep(dice.between_ms(1000, 4000)).await;
        (0..NODES).for_each(|index| cluster.copy_disks(index));
        let index = match cluster.leader() {
            Some(leader) if dice.permille(500) => leader,
            _ => dice.index(NODES),
        };
        let lie = dice.pick(&[
            Lie::Wiped,
            Lie::OldCopy,
            Lie::OldCopy,
            Lie::ForeignDisk,
            Lie::Replaced,
            Lie::Rotten,
        ]);
        let half = dice.permille(500);
        if cluster.running(index).is_none()
            || cluster.is_frozen(index)
            || cluster.disk_is_broken(index)
        {
            continue;
        }
        callers.tell(FaultKind::Lies, || format!("machine {index}: {lie:?}"));
        match lie {
            Lie::Rotten => {
                cluster.rot(index, half);
                callers.book.lock().counters.rotten_disks += 1;
            }
            Lie::Wiped if cluster.would_notice_wiping(index) => {
                cluster.swap_disks(index, None, true);
                callers.book.lock().counters.wiped += 1;
            }
            Lie::OldCopy => {
                let Some(copy) = cluster.stale_copy(index, dice.index(8)) else { continue };
                cluster.swap_disks(index, Some(&copy), true);
                callers.book.lock().counters.old_copies += 1;
            }
            Lie::ForeignDisk => {
                foreign_disk(&callers, &mut dice, index).await;
                continue;
            }
            Lie::Replaced => {
                callers.book.lock().counters.replaced += 1;
                replace(&callers, index).await;
                continue;
            }
            Lie::Wiped => continue,
        }
        sleep(dice.between_ms(5, 2000)).await;
        if cluster.group(index).is_none() {
            cluster.boot(index);
        }
        must_be_refused(&callers, index, matches!(lie, Lie::Rotten)).await;
        replace(&callers, index).await;
    }
}

/// The node says why it may not take part, and takes none.
async fn must_be_refused(callers: &Arc<Callers>, index: usize, rotten: bool) {
    let cluster = &callers.cluster;
    let mut late = None;
    loop {
        match cluster.refusal(index) {
            Some(Refusal::Condemned(_)) if !rotten => return,
            Some(Refusal::Disk(_)) if rotten => return,
            Some(other) => {
                let id = cluster.id(index);
                let what =
                    format!("A LYING DISK is refused for another reason: node {id}: {other:?}");
                return callers.book.lock().violate(what);
            }
            None => {}
        }
        if callers.healed.load(Ordering::Relaxed) {
            let late = *late.get_or_insert(cluster.world.now() + REFUSED_WITHIN);
            if cluster.world.now() > late {
                let nodes = cluster.describe();
                let what = format!("A LYING DISK IS TAKEN: node {}: {nodes}", cluster.id(index));
                return callers.book.lock().violate(what);
            }
        }
        sleep(AGAIN).await;
    }
}

/// The disk of another machine is put in by mistake; then the right one again.
async fn foreign_disk(callers: &Arc<Callers>, dice: &mut Dice, index: usize) {
    let cluster = &callers.cluster;
    let foreign = cluster.copy_of((index + 1 + dice.index(NODES - 1)) % NODES);
    cluster.kill(index, crate::cluster::Death::PowerCut);
    let own = cluster.copy_of(index);
    cluster.swap_disks(index, Some(&foreign), true);
    callers.book.lock().counters.foreign_disks += 1;
    cluster.boot(index);
    // While all its roots are away the process is started again and again, and does not come to its folder.
    while cluster.refusal(index).is_none() && cluster.running(index).is_none() {
        sleep(AGAIN).await;
    }
    let refusal = cluster.refusal(index);
    if refusal != Some(Refusal::Foreign) {
        let what = format!("A FOREIGN DISK IS TAKEN: node {}: {refusal:?}", cluster.id(index));
        callers.book.lock().violate(what);
    }
    cluster.swap_disks(index, Some(&own), false);
    cluster.boot(index);
}

/// Asks the nodes of the other machines in turn.
struct Operator<'a> {
    callers: &'a Callers,
    machine: usize,
    turn: usize,
}

impl Operator<'_> {
    /// Tries once, on the next node. The text says what it was told.
    async fn try_once<T, F, Fut>(&mut self, call: F) -> Result<T, String>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Kms<SimEnv>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, KmsError>> + Send + 'static,
    {
        self.turn = (self.turn + 1) % NODES;
        if self.turn == self.machine {
            self.turn = (self.turn + 1) % NODES;
        }
        let answer = self.callers.cluster.operate(self.turn, call).await;
        if let Err(why) = &answer {
            self.callers.cluster.note(self.machine, why.clone());
            sleep(AGAIN).await;
        }
        answer
    }

    fn set_clocks_right(&self) {
        (0..NODES).for_each(|machine| self.callers.cluster.walls.set_off(machine, 0));
    }

    /// The node leaves. A leader does not remove itself: it hands over first.
    async fn remove(&mut self, node: NodeId) {
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

    /// The node is let in, follows, and asks for its vote by itself.
    async fn enter(&mut self, invitation: InvitationId) {
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
                Err(_) => {}
            }
        }
    }
}

/// The old node is removed, and another one joins on its machine. Every step is tried until it is done.
async fn replace(callers: &Arc<Callers>, index: usize) {
    let cluster = &callers.cluster;
    // The machine's own key and certificate are no part of the simulation; the request must be a good one.
    let request = match signing_request() {
        Ok((_, request)) => request,
        Err(why) => return callers.book.lock().violate(format!("NO SIGNING REQUEST: {why}")),
    };
    let mut operator = Operator { callers, machine: index, turn: index };
    operator.remove(cluster.id(index)).await;
    let invitation = loop {
        let (id, invitation) = operator.invite().await;
        let trail = cluster.audit_disk(index);
        callers.invariants.trails().put_away(index, trail);
        cluster.begin_anew(index, id);
        cluster.boot(index);
        if operator.join(invitation, &request).await {
            break invitation;
        }
    };
    operator.enter(invitation).await;
    callers.book.lock().counters.joined += 1;
}
