//! A Region that grows from three members to as many as it has machines, and shrinks again, while everything goes on; and
//! what goes wrong at the worst moment of a change of the members: who may hold a lease rests on them (DESIGN section 5,
//! rules 1 and 5).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_model::NodeId;
use keyward_raft::Member;

use super::FaultKind;
use super::operator::Operator;
use crate::book::Change;
use crate::client::Callers;
use crate::cluster::{Death, operator};
use crate::dice::Dice;
use crate::network::Weather;
use crate::runtime::HARNESS;
use crate::sleep;

/// Between looks at how far a change has come.
const LOOK: Duration = Duration::from_millis(1);
/// Leases are fresh, and logs are even, after so long in fair weather.
const CALM: Duration = Duration::from_millis(300);
/// A moment that has not come by then does not come.
const COMES_WITHIN: Duration = Duration::from_secs(10);
/// What a spoilt change leaves behind is watched for so long before the weather turns: longer than a lease lasts.
const WATCHED: Duration = Duration::from_millis(3000);
/// How long a hand-over may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a minority is left to itself, in milliseconds: until leases of earlier terms are over, and longer.
const SPLIT_MS: (u64, u64) = (3500, 7000);

/// A change of the members, as the leader makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The node's root is registered; its adding comes next.
    Adding,
    /// That it votes is in the leader's log.
    Promoting,
    /// The first step of its removal is in the leader's log.
    Leaving,
    /// So is the last one.
    Gone,
}

/// What goes wrong at that moment.
#[derive(Clone, Copy, Debug)]
enum Worst {
    /// Nothing that the leader says arrives, but at the node that the change is about. Then it hears nothing either.
    Cut,
    /// The leader hears nothing, but from the node that the change is about. Then nothing that it says arrives.
    Deaf,
    /// The leader dies.
    Dies,
    /// It hands over.
    HandsOver,
}

const WORST: &[Worst] = &[Worst::Cut, Worst::Cut, Worst::Deaf, Worst::Dies, Worst::HandsOver];

/// Has the Region grow to all machines within that time, and then `leaving` members leave, as far as time is left. Ends
/// when no change is half done.
pub async fn change_members(
    callers: Arc<Callers>,
    mut dice: Dice,
    mut leaving: u32,
    duration: Duration,
    weather: Weather,
) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    loop {
        sleep(dice.between_ms(100, 1500)).await;
        if cluster.world.now() >= end {
            return;
        }
        match cluster.next_spare() {
            Some(machine) => grow(&callers, &mut dice, machine, weather).await,
            None if leaving > 0 && dice.permille(800) => {
                leaving -= 1;
                shrink(&callers, &mut dice, weather).await;
            }
            None => split(&callers, &mut dice).await,
        }
    }
}

/// One more machine is invited, and its node is let in and votes.
async fn grow(callers: &Arc<Callers>, dice: &mut Dice, machine: usize, weather: Weather) {
    let cluster = &callers.cluster;
    if !cluster.take_in_hand(machine) {
        return;
    }
    let mut operator = Operator::of(callers, machine);
    while let Some(invitation) = operator.bring_in().await {
        let moment = dice.pick(&[Moment::Adding, Moment::Adding, Moment::Promoting]);
        spoil(callers, dice, (moment, machine), weather).await;
        if operator.enter(invitation).await {
            callers.book.lock().counters.grown += 1;
            break;
        }
    }
    cluster.let_go(machine);
}

/// A member that lives is removed for good. It goes on running, and must serve nothing.
async fn shrink(callers: &Arc<Callers>, dice: &mut Dice, weather: Weather) {
    let cluster = &callers.cluster;
    let machine = dice.pick(&cluster.members());
    if !cluster.take_in_hand(machine) {
        return;
    }
    let moment = dice.pick(&[Moment::Leaving, Moment::Gone]);
    spoil(callers, dice, (moment, machine), weather).await;
    Operator::of(callers, machine).remove(cluster.id(machine)).await;
    cluster.has_left(machine);
    callers.book.lock().counters.left += 1;
    cluster.let_go(machine);
}

/// The leader and a minority are cut off from the majority.
async fn split(callers: &Callers, dice: &mut Dice) {
    let cluster = &callers.cluster;
    let Some(leader) = cluster.leader() else { return };
    let mut others = cluster.others(leader);
    let turned = dice.index(others.len());
    others.rotate_left(turned);
    let companions = (others.len() / 2).saturating_sub(1);
    let (near, far) = others.split_at(companions);
    let lasts = dice.between_ms(SPLIT_MS.0, SPLIT_MS.1);
    callers.tell(FaultKind::Members, || format!("machines {leader} and {near:?} are on their own"));
    callers.book.lock().counters.partitions += 1;
    for here in near.iter().chain([&leader]) {
        for there in far {
            super::cut(callers, *here, *there);
            super::cut(callers, *there, *here);
        }
    }
    sleep(lasts).await;
    cluster.net.mend();
}

// --- The worst moment.

/// Most changes of the members go wrong at their worst moment. In fair weather, or else that would rarely be it.
async fn spoil(
    callers: &Arc<Callers>,
    dice: &mut Dice,
    (moment, machine): (Moment, usize),
    weather: Weather,
) {
    let (spoilt, worst) = (dice.permille(800), dice.pick(WORST));
    let mut dice = dice.fork();
    if !spoilt || callers.healed.load(Ordering::Relaxed) {
        return;
    }
    let cluster = &callers.cluster;
    callers.tell(FaultKind::Members, || format!("{moment:?} of machine {machine}: {worst:?}"));
    cluster.net.mend();
    cluster.net.set_weather(Weather::FAIR);
    sleep(CALM).await;
    let this = Arc::clone(callers);
    drop(cluster.world.spawn_in(HARNESS, async move {
        if moment == Moment::Gone {
            remove_again(&this, &mut dice, machine).await;
        }
        if let Some(leader) = leader_at(&this, moment, machine).await {
            this.book.lock().counters.spoilt_changes += 1;
            strike(&this, &mut dice, worst, (leader, machine)).await;
            let until = this.cluster.world.now() + WATCHED;
            change_elsewhere(&this, leader, until).await;
            sleep(until.saturating_sub(this.cluster.world.now())).await;
        }
        if !this.healed.load(Ordering::Relaxed) {
            this.cluster.net.set_weather(weather);
        }
    }));
}

impl Moment {
    /// Whether it has come for that node, on the leader of that machine.
    pub(crate) fn has_come(self, callers: &Callers, leader: usize, node: NodeId) -> bool {
        let Some(running) = callers.cluster.running(leader) else { return false };
        let leads = running.kms.node();
        let votes = |member: &Member| member.node == node && member.voter;
        match self {
            Self::Adding => leads.state().roots_of(node).next().is_some(),
            Self::Promoting => leads.members().iter().any(votes),
            Self::Leaving => leads.voters_change() && leads.has_member(node),
            Self::Gone => !leads.has_member(node),
        }
    }
}

/// Waits for that moment. Returns the leader's machine.
async fn leader_at(callers: &Callers, moment: Moment, machine: usize) -> Option<usize> {
    let cluster = &callers.cluster;
    let (end, node) = (cluster.world.now() + COMES_WITHIN, cluster.id(machine));
    while cluster.world.now() < end && !callers.healed.load(Ordering::Relaxed) {
        let leader = cluster.leader().filter(|leader| moment.has_come(callers, *leader, node));
        if leader.is_some_and(|leader| leader != machine) {
            return leader;
        }
        sleep(LOOK).await;
    }
    None
}

/// While a removal is under way it is asked for once more, and that is given up before the first one is done.
async fn remove_again(callers: &Callers, dice: &mut Dice, machine: usize) {
    let Some(leader) = leader_at(callers, Moment::Leaving, machine).await else { return };
    let Some(running) = callers.cluster.running(leader) else { return };
    let (kms, node) = (running.kms, callers.cluster.id(machine));
    let patience = dice.between_ms(50, 300);
    drop(callers.cluster.world.spawn_in(running.group, async move {
        // It may fail, like any operator's call in such times.
        let _ = kms.remove_node(&operator(), node, patience).await;
    }));
}

/// As soon as another one leads, a key is made there: no node may go on as if there was none.
pub(crate) async fn change_elsewhere(callers: &Arc<Callers>, leader: usize, until: Duration) {
    let cluster = &callers.cluster;
    while cluster.world.now() < until {
        for machine in cluster.others(leader) {
            if let Some(running) = cluster.running(machine)
                && running.kms.node().leads()
                && callers.change_through((machine, running), &Change::Create, WATCHED).await
            {
                return;
            }
        }
        sleep(LOOK).await;
    }
}

async fn strike(
    callers: &Arc<Callers>,
    dice: &mut Dice,
    worst: Worst,
    (leader, machine): (usize, usize),
) {
    let cluster = &callers.cluster;
    let mut rest = cluster.others(leader);
    rest.retain(|other| *other != machine);
    let mute = || rest.iter().for_each(|other| super::cut(callers, leader, *other));
    let deafen = || rest.iter().for_each(|other| super::cut(callers, *other, leader));
    let later = dice.between_ms(20, 300);
    match worst {
        Worst::Cut => {
            mute();
            sleep(later).await;
            deafen();
        }
        Worst::Deaf => {
            deafen();
            sleep(later).await;
            mute();
        }
        Worst::Dies => {
            sleep(later / 10).await;
            if callers.healed.load(Ordering::Relaxed) || super::some_node_is_down(callers) {
                return;
            }
            callers.book.lock().counters.kills += 1;
            cluster.kill(leader, Death::Kill);
            super::start_after(callers, leader, dice.between_ms(5, 1500));
        }
        Worst::HandsOver => {
            sleep(later / 10).await;
            let Some(running) = cluster.running(leader) else { return };
            callers.book.lock().counters.hand_overs += 1;
            let kms = running.kms;
            drop(cluster.world.spawn_in(running.group, async move {
                let _ = kms.transfer_leadership(&operator(), None, PATIENCE).await;
            }));
        }
    }
}
