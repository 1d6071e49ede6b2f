//! Disks that lie, and nodes that are replaced: a machine comes back with an empty disk, with an old copy of
//! its own, or with another one's. Its node must be refused, and the machine comes back as another node.
//! One machine at a time: a minority.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::FaultKind;
use super::operator::{AGAIN, replace};
use crate::client::Callers;
use crate::cluster::Refusal;
use crate::dice::Dice;
use crate::sleep;

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
    cluster.members().into_iter().for_each(|index| cluster.copy_disks(index));
    while cluster.world.now() < end {
        sleep(dice.between_ms(1000, 4000)).await;
        cluster.members().into_iter().for_each(|index| cluster.copy_disks(index));
        let index = match cluster.leader() {
            Some(leader) if dice.permille(500) => leader,
            _ => dice.pick(&cluster.members()),
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
            || !cluster.take_in_hand(index)
        {
            continue;
        }
        callers.tell(FaultKind::Lies, || format!("machine {index}: {lie:?}"));
        tell(&callers, &mut dice, index, (lie, half)).await;
        cluster.let_go(index);
    }
}

async fn tell(callers: &Arc<Callers>, dice: &mut Dice, index: usize, (lie, half): (Lie, bool)) {
    let cluster = &callers.cluster;
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
            let Some(copy) = cluster.stale_copy(index, dice.index(8)) else { return };
            cluster.swap_disks(index, Some(&copy), true);
            callers.book.lock().counters.old_copies += 1;
        }
        Lie::ForeignDisk => return foreign_disk(callers, dice, index).await,
        Lie::Replaced => {
            callers.book.lock().counters.replaced += 1;
            return replace(callers, index).await;
        }
        Lie::Wiped => return,
    }
    sleep(dice.between_ms(5, 2000)).await;
    if cluster.group(index).is_none() {
        cluster.boot(index);
    }
    must_be_refused(callers, index, matches!(lie, Lie::Rotten)).await;
    replace(callers, index).await;
}

/// The node says why it may not take part, and takes none.
pub(crate) async fn must_be_refused(callers: &Arc<Callers>, index: usize, rotten: bool) {
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
    let foreign = cluster.copy_of(dice.pick(&cluster.others(index)));
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
