//! What goes wrong in and between Regions. Everything comes from the seed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_model::Timestamp;
use keyward_raft::{go_on_alone, survey};

use super::{Regions, RegionsPlan};
use crate::cluster::{Death, operator};
use crate::dice::{Dice, Stream};
use crate::env::SimEnv;
use crate::faults::FaultKind;
use crate::network::Weather;
use crate::runtime::HARNESS;
use crate::sleep;

/// Longer than a waiting period. Two of them are shorter than the certificates of callers hold.
const STEP_MS: i64 = 8 * Timestamp::DAY_MS;
/// How long an operator's call may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Breaks things for that long, one by one. Each draws from a stream of its own, so that leaving one out leaves the
/// others as they are.
pub(super) async fn break_things(regions: Arc<Regions>, seed: u64, plan: &RegionsPlan) {
    let end = regions.world.now() + plan.faults;
    for number in 0.. {
        let mut dice = Dice::new(seed, Stream::Fault(number));
        sleep(dice.between_ms(300, 2500)).await;
        if regions.world.now() >= end {
            return;
        }
        let kind = FaultKind::Numbered(number);
        if regions.schedule.is_spared(kind) {
            continue;
        }
        let at = dice.index(regions.clusters.len());
        let other = (at + 1 + dice.index(regions.clusters.len() - 1)) % regions.clusters.len();
        let (here, there) = (regions.name(at), regions.name(other));
        let draw = dice.below(100);
        let what = match draw {
            0..=24 => format!("the leader of {here} is killed, or loses power"),
            25..=39 => format!("the ways between {here} and {there} are cut"),
            40..=49 => format!("the way from {here} to {there} is cut"),
            50..=59 => format!("a node of {here} stands still"),
            60..=69 => format!("all of {here} stops"),
            70..=79 => format!("nodes of {here} do not reach each other"),
            80..=87 if plan.promotions => format!("{here} is promoted in the place of {there}"),
            _ => "all ways are mended".to_owned(),
        };
        regions.tell(kind, what);
        match draw {
            0..=24 => kill_leader(&regions, &mut dice, at),
            25..=39 => {
                regions.ledger.lock().counters.roads_cut += 1;
                regions.roads.cut(at, other);
                regions.roads.cut(other, at);
            }
            40..=49 => {
                regions.ledger.lock().counters.roads_cut += 1;
                regions.roads.cut(at, other);
            }
            50..=59 => pause(&regions, &mut dice, at),
            60..=69 => stop_region(&regions, &mut dice, at),
            70..=79 => part(&regions, &mut dice, at),
            80..=87 if plan.promotions => promote(&regions, at, other),
            _ => {
                regions.roads.net.mend();
                regions.clusters.iter().for_each(|cluster| cluster.net.mend());
            }
        }
    }
}

impl Regions {
    /// What a Region alone has, or has lately done, is about to be lost.
    fn give_up_on(&self, number: usize) {
        let keys = self.keys_of_all();
        let others = (0..self.clusters.len()).filter(|other| *other != number);
        let others: Vec<_> = others.filter_map(|other| self.leaders_state(other)).collect();
        self.rules.lock().forget(number);
        let mut ledger = self.ledger.lock();
        ledger.counters.old_copies += 1;
        ledger.restored.extend(keys);
        ledger.samples.retain(|sample| others.iter().any(|o| o.key(&sample.key).is_some()));
    }
}

/// Ends all faults.
pub(super) fn heal(regions: &Regions) {
    regions.healed.store(true, Ordering::Relaxed);
    regions.roads.net.mend();
    regions.roads.net.set_weather(Weather::FAIR);
    regions.world.calm_schedule();
    for cluster in &regions.clusters {
        cluster.net.mend();
        for index in cluster.machines() {
            match cluster.group(index) {
                Some(_) => cluster.freeze(index, false, Duration::ZERO),
                None => cluster.boot(index),
            }
        }
    }
}

/// A node's end. What it has shown until now is looked at first.
fn kill(regions: &Regions, dice: &mut Dice, number: usize, index: usize) {
    regions.look();
    let death = if dice.permille(500) { Death::Kill } else { Death::PowerCut };
    {
        let counters = &mut regions.ledger.lock().counters;
        match death {
            Death::Kill => counters.kills += 1,
            Death::PowerCut => counters.power_cuts += 1,
        }
    }
    regions.clusters[number].kill(index, death);
}

fn start_after(regions: &Arc<Regions>, number: usize, index: usize, down: Duration) {
    let again = Arc::clone(regions);
    regions.world.after(down, move || {
        if again.clusters[number].group(index).is_none() {
            again.clusters[number].boot(index);
        }
    });
}

fn kill_leader(regions: &Arc<Regions>, dice: &mut Dice, number: usize) {
    let Some(leader) = regions.clusters[number].leader() else { return };
    kill(regions, dice, number, leader);
    let down =
        if dice.permille(600) { dice.between_ms(5, 400) } else { dice.between_ms(400, 5000) };
    start_after(regions, number, leader, down);
}

fn stop_region(regions: &Arc<Regions>, dice: &mut Dice, number: usize) {
    regions.ledger.lock().counters.region_stops += 1;
    let down = dice.between_ms(500, 8000);
    for index in regions.clusters[number].machines() {
        kill(regions, dice, number, index);
        start_after(regions, number, index, down + dice.between_ms(0, 300));
    }
}

fn pause(regions: &Arc<Regions>, dice: &mut Dice, number: usize) {
    let cluster = &regions.clusters[number];
    let index = dice.pick(&cluster.members());
    let Some(group) = cluster.group(index).filter(|_| !cluster.is_frozen(index)) else { return };
    regions.ledger.lock().counters.pauses += 1;
    cluster.freeze(index, true, Duration::ZERO);
    let (again, cluster) = (dice.between_ms(100, 6000), Arc::clone(cluster));
    regions.world.after(again, move || {
        if cluster.group(index) == Some(group) {
            cluster.freeze(index, false, Duration::ZERO);
        }
    });
}

/// The ways between one node of a Region and the others, both or one.
fn part(regions: &Regions, dice: &mut Dice, number: usize) {
    let cluster = &regions.clusters[number];
    let index = dice.pick(&cluster.members());
    let (id, both) = (cluster.id(index), dice.permille(600));
    regions.ledger.lock().counters.partitions += 1;
    for other in cluster.others(index) {
        cluster.net.cut(id, cluster.id(other));
        if both {
            cluster.net.cut(cluster.id(other), id);
        }
    }
}

/// The same, of a Region that is lost: operators try again until it is done. False: they gave up.
pub(super) async fn must_promote(regions: &Arc<Regions>, at: usize, lost: usize) -> bool {
    for _ in 0..20 {
        if promoted(regions, at, lost).await {
            return true;
        }
        sleep(Duration::from_millis(200)).await;
    }
    false
}

/// An operator promotes a Region in the place of another one, whether that is lost or not.
fn promote(regions: &Arc<Regions>, at: usize, lost: usize) {
    let this = Arc::clone(regions);
    drop(regions.world.spawn_in(HARNESS, async move { promoted(&this, at, lost).await }));
}

/// True once the promotion was acknowledged.
pub(super) async fn promoted(regions: &Regions, at: usize, lost: usize) -> bool {
    // Any key there is may be concerned.
    let keys = regions.keys_of_all();
    regions.ledger.lock().promoted.extend(keys);
    let Some(index) = regions.some_node(at) else { return false };
    let lost = regions.name(lost).to_string();
    let promoted = regions.clusters[at].operate(index, |kms| async move {
        kms.promote_region(&operator(), &lost, true, PATIENCE).await
    });
    let promoted = promoted.await;
    if promoted.as_ref().is_ok_and(|keys| *keys > 0) {
        regions.ledger.lock().counters.promoted += 1;
    }
    promoted.is_ok()
}

/// A Region of one machine comes back with what its disks held a while ago, as operators do it who restore a backup:
/// first the others take its primaries' place, then it begins a new history.
pub(super) fn come_back_old(
    regions: Arc<Regions>,
    mut dice: Dice,
    plan: &RegionsPlan,
) -> impl Future<Output = ()> + Send + use<> {
    let seconds = plan.faults.as_secs();
    async move {
        let single = |number: &usize| regions.clusters[*number].size() == 1;
        let small: Vec<usize> = (0..regions.clusters.len()).filter(single).collect();
        if small.is_empty() {
            return;
        }
        let number = dice.pick(&small);
        let cluster = &regions.clusters[number];
        sleep(dice.between_ms(50 * seconds, 400 * seconds)).await;
        let copy = cluster.copy_of(0);
        sleep(dice.between_ms(50 * seconds, 400 * seconds)).await;
        if regions.healed.load(Ordering::Relaxed) {
            return;
        }
        let name = regions.name(number);
        regions.tell(FaultKind::Lies, format!("{name} comes back with old disks"));
        kill(&regions, &mut dice, number, 0);
        for other in (0..regions.clusters.len()).filter(|other| *other != number) {
            if !must_promote(&regions, other, number).await {
                return start_after(&regions, number, 0, Duration::ZERO);
            }
        }
        if cluster.group(0).is_some() {
            cluster.kill(0, Death::Kill);
        }
        regions.look();
        regions.give_up_on(number);
        cluster.swap_disks(0, Some(&copy), false);
        let (log, state) = (cluster.log_store(0), cluster.state_store(0));
        let mut history = [0; 16];
        dice.fill(&mut history);
        let alone = survey::<SimEnv>(&log, &state)
            .and_then(|survey| go_on_alone::<SimEnv>(&log, &survey, cluster.id(0), history));
        if let Err(why) = alone {
            regions.violate(format!("{name} COULD NOT GO ON with old disks: {why}"));
        }
        start_after(&regions, number, 0, dice.between_ms(100, 3000));
    }
}

/// Has dates come while faults go on: operators move the clocks of all Regions ahead.
pub(super) fn reach_dates(
    regions: Arc<Regions>,
    mut dice: Dice,
    plan: &RegionsPlan,
) -> impl Future<Output = ()> + Send + use<> {
    let (times, seconds) = (plan.dates, plan.faults.as_secs());
    async move {
        for _ in 0..times {
            sleep(dice.between_ms(200 * seconds, 450 * seconds)).await;
            for number in 0..regions.clusters.len() {
                advance(&regions, number).await;
            }
        }
    }
}

async fn advance(regions: &Regions, number: usize) {
    for _ in 0..5 {
        if let Some(index) = regions.some_node(number) {
            let moved = regions.clusters[number].operate(index, |kms| async move {
                kms.advance_clock(&operator(), STEP_MS, PATIENCE).await
            });
            if moved.await.is_ok() {
                regions.ledger.lock().counters.dates_reached += 1;
                return;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}
