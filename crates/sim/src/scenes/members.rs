//! Moments of removals (DESIGN section 5, rule 5).

use std::time::Duration;

use keyward_model::NodeId;

use super::Stage;
use crate::client::Callers;
use crate::cluster::{Death, operator};
use crate::faults::{Moment, Operator};
use crate::runtime::{HARNESS, JoinHandle};
use crate::sleep;

/// How often the moment is tried, until the next leader finds the removal half done.
const TRIES: usize = 6;
/// How long a removal may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// A node that is cut off has no lease any more after this.
const LEASE_OVER: Duration = Duration::from_secs(4);
/// Between the two times that the removal is asked for.
const A_MOMENT: Duration = Duration::from_millis(100);
/// Until the others have elected one of theirs.
const ELECTED: Duration = Duration::from_millis(1500);

/// Says whether that moment has come, and on which leader's machine.
fn leader_at(moment: Moment, node: NodeId) -> impl Fn(&Callers) -> Option<usize> {
    move |callers| callers.cluster.leader().filter(|leader| moment.has_come(callers, *leader, node))
}

impl Stage {
    /// A fourth machine joins. Its node votes, or is a member alone that hears nothing of the leader.
    async fn joins(&self, machine: usize, votes: bool) -> Option<()> {
        let cluster = &self.callers.cluster;
        if !cluster.take_in_hand(machine) {
            return None;
        }
        let mut operator = Operator::of(&self.callers, machine);
        let invitation = operator.bring_in().await?;
        if votes {
            return operator.enter(invitation).await.then_some(());
        }
        let callers = std::sync::Arc::clone(&self.callers);
        let enters = async move { Operator::of(&callers, machine).enter(invitation).await };
        drop(cluster.world.spawn_in(HARNESS, enters));
        self.until(|callers| {
            let leader = callers.cluster.leader()?;
            let node = callers.cluster.running(leader)?.kms;
            node.node().has_member(callers.cluster.id(machine)).then_some(())
        })
        .await?;
        self.isolate(machine);
        Some(())
    }

    /// Asks for that node's removal, through that machine. True: it was acknowledged.
    fn remove(&self, through: usize, node: NodeId) -> Option<JoinHandle<bool>> {
        let cluster = &self.callers.cluster;
        let running = cluster.running(through)?;
        let kms = running.kms;
        Some(cluster.world.spawn_in(running.group, async move {
            kms.remove_node(&operator(), node, PATIENCE).await.is_ok()
        }))
    }

    /// Whatever has become of the removal: it is asked for until it is done.
    async fn remove_at_last(&self, machine: usize) {
        let cluster = &self.callers.cluster;
        Operator::of(&self.callers, machine).remove(cluster.id(machine)).await;
        cluster.has_left(machine);
        cluster.let_go(machine);
    }

    /// The leader falls when the first step of a removal is in the log. The next one completes it, and falls as soon as it has:
    /// the node that was removed, which hears of nothing, must have no lease left.
    pub(super) async fn a_removal_half_done(&mut self) -> Option<()> {
        let added = self.callers.cluster.next_spare()?;
        self.joins(added, true).await?;
        for _ in 0..TRIES {
            let leader = self.leader().await?;
            let removed = self.dice.pick(&self.callers.cluster.others(leader));
            let node = self.callers.cluster.id(removed);
            drop(self.remove(leader, node)?);
            let first = self.until(leader_at(Moment::Leaving, node)).await?;
            // It is on its way to the others, and they have not answered yet.
            sleep(self.dice.between_ms(1, 8)).await;
            self.callers.cluster.kill(first, Death::Kill);
            self.until(|callers| callers.cluster.leader()).await?;
            self.callers.cluster.boot(first);
            let is_now = |moment| leader_at(moment, node)(&self.callers).is_some();
            if is_now(Moment::Leaving) {
                let next = self.until(leader_at(Moment::Gone, node)).await?;
                self.isolate(removed);
                // It is committed in the meantime, by the others.
                sleep(self.dice.between_ms(5, 30)).await;
                self.callers.cluster.kill(next, Death::Kill);
                self.watch(next).await;
                self.mend();
            } else if !is_now(Moment::Gone) {
                // It was lost with the leader.
                continue;
            }
            self.remove_at_last(removed).await;
            break;
        }
        Some(())
    }

    /// A node that does not vote is removed by a leader whom the voters do not hear: that is in this leader's log alone. The
    /// leader is asked once more, and heard again when the others have elected one of theirs, who knows of no removal.
    pub(super) async fn an_uncommitted_removal(&mut self) -> Option<()> {
        let added = self.callers.cluster.next_spare()?;
        self.joins(added, false).await?;
        sleep(LEASE_OVER).await;
        let leader = self.until(|callers| callers.cluster.leader()).await?;
        let node = self.callers.cluster.id(added);
        for voter in self.callers.cluster.others(leader).into_iter().filter(|other| *other != added)
        {
            self.part(leader, voter);
        }
        drop(self.remove(leader, node)?);
        sleep(A_MOMENT).await;
        let again = self.remove(leader, node)?;
        sleep(ELECTED + self.dice.between_ms(0, 500)).await;
        self.mend();
        if again.await == Ok(true) {
            self.callers.cluster.has_left(added);
        }
        // It must serve nothing, if it has left.
        sleep(LEASE_OVER).await;
        self.remove_at_last(added).await;
        Some(())
    }
}
