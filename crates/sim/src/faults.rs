//! What goes wrong, and when: the fault mix of the lease model. Everything comes from the seed.

mod audit;
mod clocks;
mod dates;
mod disks;
mod full_disks;
mod hand_overs;
mod members;
mod operator;
mod roots;
mod schedule;
mod streams;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_audit::testing::Faults;

use crate::client::Callers;
use crate::cluster::{Death, operator};
use crate::dice::{Dice, Stream};
use crate::network::Weather;
use crate::sleep;

pub use audit::break_audit_disks;
pub use clocks::break_clocks;
pub use dates::reach_dates;
pub use disks::lie_about_disks;
pub(crate) use disks::must_be_refused;
pub use full_disks::break_disks;
pub use hand_overs::spoil_hand_overs;
pub use members::change_members;
pub(crate) use members::{Moment, change_elsewhere};
pub(crate) use operator::{Operator, replace};
pub use roots::break_roots;
pub use schedule::{Fault, FaultKind, Schedule, Spared};
pub use streams::end_streams;

/// Breaks things for that long, one by one. Each draws from a stream of its own, so that leaving one out leaves the
/// others as they are.
pub async fn break_things(callers: Arc<Callers>, seed: u64, duration: Duration) {
    let world = Arc::clone(&callers.cluster.world);
    let end = world.now() + duration;
    for number in 0.. {
        let mut dice = Dice::new(seed, Stream::Fault(number));
        sleep(dice.between_ms(300, 3000)).await;
        if world.now() >= end {
            return;
        }
        if callers.schedule.is_spared(FaultKind::Numbered(number)) {
            continue;
        }
        let leader = callers.cluster.leader();
        let index = match leader {
            Some(leader) if dice.permille(600) => leader,
            _ => dice.pick(&callers.cluster.members()),
        };
        let draw = dice.below(100);
        callers.tell(FaultKind::Numbered(number), || {
            let what = match draw {
                0..=9 => "a follower loses the leader, another one restarts again and again",
                10..=29 => "ways to and from it are cut",
                30..=49 => "it stands still",
                50..=74 => "it is killed, or loses power",
                75..=80 => "leadership is handed over",
                _ => "all links are mended",
            };
            format!("machine {index}, where machine {leader:?} leads: {what}")
        });
        match draw {
            0..=9 => lose_one_and_blink(&callers, &mut dice, leader),
            10..=29 => part(&callers, &mut dice, index),
            30..=49 => pause(&callers, &mut dice, index),
            50..=74 => kill(&callers, &mut dice, index),
            75..=80 => transfer(&callers, &mut dice),
            _ => callers.cluster.net.mend(),
        }
    }
}

/// Ends all faults: links are mended, the weather is fair, and every node is started and runs.
pub fn heal(callers: &Callers) {
    callers.healed.store(true, Ordering::Relaxed);
    let cluster = &callers.cluster;
    cluster.net.mend();
    cluster.net.set_weather(Weather::FAIR);
    cluster.world.calm_schedule();
    cluster.set_deaths(0);
    for index in cluster.machines() {
        if !cluster.walls.has_passed() {
            cluster.walls.set_off(index, 0);
        }
        cluster.cabinet(index).repair();
        cluster.audit_disk(index).set_faults(Faults::default(), cluster.world.now());
        cluster.mend_disk(index);
        match cluster.group(index) {
            Some(_) => cluster.freeze(index, false, Duration::ZERO),
            None => cluster.boot(index),
        }
    }
}

/// Cuts the way from one machine to another, unless nothing may break any more.
fn cut(callers: &Callers, from: usize, to: usize) {
    if callers.healed.load(Ordering::Relaxed) {
        return;
    }
    callers.cluster.net.cut(callers.cluster.id(from), callers.cluster.id(to));
}

/// A machine that nobody counts on (its disk lies) is not spared for.
fn some_node_is_down(callers: &Callers) -> bool {
    let cluster = &callers.cluster;
    cluster.members().into_iter().any(|index| {
        (cluster.group(index).is_none() && !cluster.lies(index)) || cluster.disk_is_broken(index)
    })
}

/// One follower loses the leader, then another restarts again and again.
fn lose_one_and_blink(callers: &Arc<Callers>, dice: &mut Dice, leader: Option<usize>) {
    let Some(leader) = leader else { return };
    let first = dice.pick(&callers.cluster.others(leader));
    let rest = |index: &usize| *index != leader && *index != first;
    let Some(second) = callers.cluster.members().into_iter().find(rest) else { return };
    callers.book.lock().counters.partitions += 1;
    let net = &callers.cluster.net;
    net.mend();
    net.cut(callers.cluster.id(leader), callers.cluster.id(first));
    net.cut(callers.cluster.id(first), callers.cluster.id(leader));
    for begins in (600..3000).step_by(400) {
        let at = dice.between_ms(begins, begins + 400);
        let (down, cut) = (dice.between_ms(5, 60), dice.permille(600));
        let again = Arc::clone(callers);
        callers.cluster.world.after(at, move || {
            if again.healed.load(Ordering::Relaxed) || some_node_is_down(&again) {
                return;
            }
            again.book.lock().counters.kills += 1;
            again.cluster.kill(second, Death::Kill);
            start_after(&again, second, down);
            if cut && let Some(leader) = again.cluster.leader() {
                again.cluster.net.cut(again.cluster.id(leader), again.cluster.id(second));
                again.cluster.net.cut(again.cluster.id(second), again.cluster.id(leader));
            }
        });
    }
}

/// The ways to and from one node, most of them.
fn part(callers: &Callers, dice: &mut Dice, index: usize) {
    callers.book.lock().counters.partitions += 1;
    let alone = dice.permille(300);
    for other in callers.cluster.members().into_iter().filter(|other| *other != index) {
        if alone || dice.permille(800) {
            callers.cluster.net.cut(callers.cluster.id(index), callers.cluster.id(other));
        }
        if alone || dice.permille(800) {
            callers.cluster.net.cut(callers.cluster.id(other), callers.cluster.id(index));
        }
    }
}

/// A process stands still for a while; or its whole machine does, and the monotonic clock with it.
fn pause(callers: &Arc<Callers>, dice: &mut Dice, index: usize) {
    let Some(group) = callers.cluster.group(index) else { return };
    if callers.cluster.is_frozen(index) {
        return;
    }
    let lasts = dice.between_ms(100, 6000);
    let slept = if dice.permille(300) { lasts } else { Duration::ZERO };
    {
        let counters = &mut callers.book.lock().counters;
        counters.pauses += 1;
        match callers.cluster.leader() {
            _ if slept.is_zero() => {}
            Some(leader) if leader == index => counters.suspended_leaders += 1,
            _ => counters.suspended_followers += 1,
        }
    }
    callers.cluster.freeze(index, true, Duration::ZERO);
    let again = Arc::clone(callers);
    callers.cluster.world.after(lasts, move || {
        if again.cluster.group(index) == Some(group) {
            again.cluster.freeze(index, false, slept);
        }
    });
}

fn kill(callers: &Arc<Callers>, dice: &mut Dice, index: usize) {
    if some_node_is_down(callers) {
        return;
    }
    let death = if dice.permille(500) { Death::Kill } else { Death::PowerCut };
    let down =
        if dice.permille(600) { dice.between_ms(5, 400) } else { dice.between_ms(400, 5000) };
    {
        let mut book = callers.book.lock();
        match death {
            Death::Kill => book.counters.kills += 1,
            Death::PowerCut => book.counters.power_cuts += 1,
        }
    }
    callers.cluster.kill(index, death);
    start_after(callers, index, down);
}

fn start_after(callers: &Arc<Callers>, index: usize, down: Duration) {
    let again = Arc::clone(callers);
    callers.cluster.world.after(down, move || {
        if again.cluster.group(index).is_none() {
            again.cluster.boot(index);
        }
    });
}

/// An operator hands leadership over, through any node.
fn transfer(callers: &Arc<Callers>, dice: &mut Dice) {
    let index = dice.pick(&callers.cluster.members());
    let Some(running) = callers.cluster.running(index) else { return };
    callers.book.lock().counters.hand_overs += 1;
    let kms = running.kms;
    drop(callers.cluster.world.spawn_in(running.group, async move {
        // It may fail, like any operator's call in such times.
        let _ = kms.transfer_leadership(&operator(), None, Duration::from_secs(3)).await;
    }));
}
