//! A leader dies at every step of what concerns two Regions: one run for each message that is delivered meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyward_model::{KeyId, KeyMaterialId};

use super::callers::Change;
use super::{Regions, RegionsPlan, ending, faults};
use crate::cluster::Death;
use crate::faults::Schedule;
use crate::invariants::regions_agree;
use crate::runtime::{HARNESS, World};
use crate::sleep;

/// The primary's Region, the one that it is about, and one more.
const HERE: usize = 0;
const THERE: usize = 1;
const THIRD: usize = 2;
/// Between looks whether the time has come.
const LOOK: Duration = Duration::from_millis(1);
/// A dead leader's node starts again after this.
const DOWN: Duration = Duration::from_millis(400);
/// Nothing is waited for longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The unshipped change of a Region that is lost is made within this, while nobody hears of it.
const ALONE: Duration = Duration::from_millis(700);

/// What concerns two Regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joint {
    /// A replica is made.
    Replicate,
    /// The primary moves.
    Move,
    /// New material comes everywhere, and then encrypts.
    Rotate,
    /// A Region that is cut off, and has done something that nobody heard of, is given up: a replica is promoted.
    Promote,
}

impl Joint {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Replicate, Self::Move, Self::Rotate, Self::Promote];
}

/// When which leader dies.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    /// In the primary's Region, or in the other one.
    pub here: bool,
    /// After so many messages since the operation began.
    pub after: u64,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ended {
    /// Broken rules.
    pub violations: Vec<String>,
    /// Messages from the beginning of the operation until all Regions agreed.
    pub messages: u64,
    /// The operation was acknowledged.
    pub acknowledged: bool,
}

/// Runs one operation in a world where nothing else happens.
#[must_use]
pub fn run(seed: u64, joint: Joint, victim: Option<Victim>) -> Ended {
    let plan = RegionsPlan::quiet(seed);
    let world = World::new(seed, 0);
    let regions = Regions::new(seed, &plan, &world, Schedule::default());
    let ended = Arc::new(parking_lot::Mutex::new((0, false)));
    let (all, told) = (Arc::clone(&regions), Arc::clone(&ended));
    world.run(async move {
        let came = all.live_through(joint, victim).await;
        if let Some(came) = came {
            *told.lock() = came;
        }
        all.clusters.iter().for_each(|cluster| cluster.shut_down());
    });
    let mut ledger = regions.ledger.lock();
    for panic in world.take_panics() {
        ledger.violate(format!("A PANIC: {panic}"));
    }
    let (messages, acknowledged) = *ended.lock();
    Ended { violations: std::mem::take(&mut ledger.violations), messages, acknowledged }
}

impl Regions {
    fn delivered(&self) -> u64 {
        let within: u64 = self.clusters.iter().map(|cluster| cluster.net.delivered()).sum();
        within + self.roads.net.delivered()
    }

    fn current(&self, number: usize, key: KeyId) -> Option<KeyMaterialId> {
        let state = self.leaders_state(number)?;
        state.key(&key).map(|key| key.current_material().id)
    }

    /// A key with what the operation needs of replicas.
    async fn prepare(self: &Arc<Self>, joint: Joint) -> Option<KeyId> {
        self.change(HERE, &Change::Create).await;
        let key = self.ledger.lock().keys.last().copied()?;
        let replicas: &[usize] = if joint == Joint::Replicate { &[THIRD] } else { &[THERE, THIRD] };
        for to in replicas {
            self.change(HERE, &Change::Replicate(key, *to)).await;
        }
        let end = self.world.now() + PATIENCE;
        let there = |number: &usize| self.current(*number, key).is_some();
        while !(replicas.iter().all(there) && regions_agree::differences(self).is_empty()) {
            if self.world.now() > end {
                self.violate("THE KEY COULD NOT BE PREPARED".to_owned());
                return None;
            }
            sleep(LOOK * 10).await;
        }
        if joint == Joint::Promote {
            for other in [THERE, THIRD] {
                self.roads.cut(HERE, other);
                self.roads.cut(other, HERE);
            }
            self.change(HERE, &Change::SetRotation(key, Some(180))).await;
            sleep(ALONE).await;
        }
        Some(key)
    }

    async fn live_through(
        self: &Arc<Self>,
        joint: Joint,
        victim: Option<Victim>,
    ) -> Option<(u64, bool)> {
        if let Err(why) = self.set_up().await {
            self.violate(format!("THE REGIONS COULD NOT BE SET UP: {why}"));
            return None;
        }
        let key = self.prepare(joint).await?;
        let before = self.current(HERE, key);
        self.encrypt_once(HERE, key).await;
        drop(self.world.spawn_in(HARNESS, super::watch(Arc::clone(self))));
        let began = self.delivered();
        if let Some(victim) = victim {
            drop(self.world.spawn_in(HARNESS, kill_after(Arc::clone(self), began, victim)));
        }
        let acknowledged = match joint {
            Joint::Replicate => self.change(HERE, &Change::Replicate(key, THERE)).await,
            Joint::Move => self.change(HERE, &Change::Move(key, THERE)).await,
            Joint::Rotate => self.change(HERE, &Change::Rotate(key)).await,
            Joint::Promote => faults::promoted(self, THERE, HERE).await,
        };
        // What nobody heard of before is told now, and gives way.
        self.roads.net.mend();
        let seen = self.delivered() - began;
        let wanted = victim.map_or(0, |victim| victim.after);
        while self.delivered() - began < wanted {
            sleep(LOOK).await;
        }
        sleep(DOWN * 2).await;
        ending::must_agree(self).await;
        let messages = if victim.is_some() { seen } else { self.delivered() - began };
        if acknowledged {
            self.must_be_so(joint, key, before).await;
        }
        self.healed.store(true, Ordering::Relaxed);
        self.encrypt_once(THIRD, key).await;
        ending::every_ciphertext_opens(self).await;
        let failures = self.clusters.iter().flat_map(|cluster| cluster.failures());
        failures.for_each(|failure| self.violate(format!("A NODE FAILED: {failure}")));
        Some((messages, acknowledged))
    }

    /// What was acknowledged comes true.
    async fn must_be_so(&self, joint: Joint, key: KeyId, before: Option<KeyMaterialId>) {
        let is_so = || match joint {
            Joint::Replicate => self.current(THERE, key).is_some(),
            Joint::Move | Joint::Promote => self.primary_of(&key) == Some(THERE),
            Joint::Rotate => (0..self.clusters.len()).all(|n| self.current(n, key) != before),
        };
        let end = self.world.now() + PATIENCE;
        while !is_so() {
            if self.world.now() > end {
                return self.violate(format!("{joint:?} WAS ACKNOWLEDGED, and is not so"));
            }
            sleep(LOOK * 10).await;
        }
    }
}

/// The leader of a Region dies once so many messages have been delivered, and its node starts again.
async fn kill_after(regions: Arc<Regions>, began: u64, victim: Victim) {
    while regions.delivered() - began < victim.after {
        sleep(LOOK).await;
    }
    let cluster = &regions.clusters[if victim.here { HERE } else { THERE }];
    let Some(leader) = cluster.leader() else { return };
    regions.look();
    let death = if victim.after.is_multiple_of(2) { Death::Kill } else { Death::PowerCut };
    cluster.kill(leader, death);
    sleep(DOWN).await;
    cluster.boot(leader);
}
