//! Hand-overs of leadership that go wrong at the worst moment: what a new leader may take for granted of the last
//! one rests on them (DESIGN section 5, rule 6).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::cut;
use crate::client::Callers;
use crate::cluster::{Death, operator};
use crate::dice::Dice;
use crate::network::Weather;
use crate::sleep;

/// How long a hand-over may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between looks at who leads.
const LOOK: Duration = Duration::from_millis(2);
/// Leases are fresh after so long in fair weather.
const CALM: Duration = Duration::from_millis(300);
/// What a spoilt hand-over leaves behind is watched for so long before the weather turns.
const WATCHED: Duration = Duration::from_millis(1500);
/// A new leader is waited for at most this long.
const ELECTED_WITHIN: Duration = Duration::from_millis(2500);

/// The nodes of a hand-over, by their machines.
struct Parts {
    from: usize,
    to: usize,
    rest: Vec<usize>,
}

/// Spoils hand-overs for that long. In fair weather, or else leases would be half over before it begins.
pub async fn spoil_hand_overs(
    callers: Arc<Callers>,
    mut dice: Dice,
    duration: Duration,
    weather: Weather,
) {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + duration;
    loop {
        sleep(dice.between_ms(800, 2500)).await;
        if cluster.world.now() >= end {
            return;
        }
        let is_well = |index| cluster.running(index).is_some() && !cluster.is_frozen(index);
        let well = cluster.members().into_iter().all(is_well);
        let Some(from) = cluster.leader().filter(|_| well) else { continue };
        let to = dice.pick(&cluster.others(from));
        let rest = cluster.others(from).into_iter().filter(|index| *index != to).collect();
        let parts = Parts { from, to, rest };
        callers.book.lock().counters.hand_overs += 1;
        cluster.net.mend();
        cluster.net.set_weather(Weather::FAIR);
        sleep(CALM).await;
        match dice.below(4) {
            0 => new_leader_is_cut_off(&callers, &parts).await,
            1 => old_leader_is_cut_off(&callers, &parts).await,
            2 => election_fails(&callers, &mut dice, &parts).await,
            _ => new_leader_dies(&callers, &mut dice, &parts).await,
        }
        sleep(WATCHED).await;
        if !callers.healed.load(Ordering::Relaxed) {
            cluster.net.set_weather(weather);
        }
    }
}

fn hand_over(callers: &Callers, parts: &Parts) {
    let cluster = &callers.cluster;
    let Some(running) = cluster.running(parts.from) else { return };
    let (kms, to) = (running.kms, cluster.id(parts.to));
    drop(cluster.world.spawn_in(running.group, async move {
        // It may fail, like any operator's call in such times.
        let _ = kms.transfer_leadership(&operator(), Some(to), PATIENCE).await;
    }));
}

fn cut_off(callers: &Callers, index: usize) {
    for other in callers.cluster.members().into_iter().filter(|other| *other != index) {
        cut(callers, index, other);
        cut(callers, other, index);
    }
}

/// True once one of these leads, within a while.
async fn leads(callers: &Callers, indices: &[usize]) -> Option<usize> {
    let cluster = &callers.cluster;
    let end = cluster.world.now() + ELECTED_WITHIN;
    while cluster.world.now() < end && !callers.healed.load(Ordering::Relaxed) {
        let leads = |index: &usize| {
            cluster.running(*index).is_some_and(|running| running.kms.node().leads())
        };
        if let Some(leader) = indices.iter().copied().find(leads) {
            return Some(leader);
        }
        sleep(LOOK).await;
    }
    None
}

/// The new leader is cut off as soon as it leads: the next one must not take its old follower lease for over.
async fn new_leader_is_cut_off(callers: &Callers, parts: &Parts) {
    hand_over(callers, parts);
    if leads(callers, &[parts.to]).await.is_some() {
        cut_off(callers, parts.to);
    }
}

/// The old leader hears of nothing after its message has left.
async fn old_leader_is_cut_off(callers: &Callers, parts: &Parts) {
    for third in parts.rest.iter().copied() {
        cut(callers, parts.from, third);
        cut(callers, third, parts.from);
    }
    cut(callers, parts.to, parts.from);
    hand_over(callers, parts);
    if leads(callers, &[parts.to]).await.is_some() {
        cut_off(callers, parts.from);
    }
}

/// The node that was asked to stand gets a vote, and does not hear of it. The one that gave it stands itself: nobody
/// has asked it to, and no leader's lease keeps it from that any more.
async fn election_fails(callers: &Callers, dice: &mut Dice, parts: &Parts) {
    for third in parts.rest.iter().copied() {
        cut(callers, parts.from, third);
        cut(callers, third, parts.from);
        cut(callers, third, parts.to);
    }
    cut(callers, parts.to, parts.from);
    hand_over(callers, parts);
    sleep(dice.between_ms(40, 250)).await;
    if !callers.healed.load(Ordering::Relaxed) {
        callers.cluster.net.mend();
        cut_off(callers, parts.from);
    }
}

/// The new leader dies right after it has granted its first leases, and comes back. Whoever leads then loses a third
/// node.
async fn new_leader_dies(callers: &Arc<Callers>, dice: &mut Dice, parts: &Parts) {
    hand_over(callers, parts);
    if leads(callers, &[parts.to]).await.is_none() {
        return;
    }
    sleep(dice.between_ms(5, 60)).await;
    if callers.healed.load(Ordering::Relaxed) || super::some_node_is_down(callers) {
        return;
    }
    callers.book.lock().counters.kills += 1;
    callers.cluster.kill(parts.to, Death::Kill);
    super::start_after(callers, parts.to, dice.between_ms(5, 300));
    let others = [&[parts.from], parts.rest.as_slice()].concat();
    if let Some(leader) = leads(callers, &others).await
        && !callers.healed.load(Ordering::Relaxed)
        && let Some(third) = others.into_iter().find(|index| *index != leader)
    {
        cut_off(callers, third);
    }
}
