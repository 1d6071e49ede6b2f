//! Scenes: the worst moment of one rule, staged in a Region where nothing else goes wrong.
//!
//! What breaks by chance in `faults/` comes to most of these moments once in hundreds of seeds, or never. A scene waits for
//! the state that it needs, strikes then, and tries a few times; the seed draws the clocks, the ways' delays, and how long each
//! step waits. All rules are looked at as in any run.

mod disks;
mod leaders;
mod members;
mod shares;

use std::sync::Arc;
use std::time::Duration;

use crate::client::Callers;
use crate::dice::{Dice, Stream};
use crate::faults::change_elsewhere;
use crate::metered::MeteredCallers;
use crate::plan::{Metering, Plan};
use crate::sleep;

/// Between looks whether a moment has come.
const LOOK: Duration = Duration::from_millis(1);
/// A moment that has not come by then does not come.
const COMES_WITHIN: Duration = Duration::from_secs(10);
/// What a strike leaves behind is watched for so long: longer than a lease lasts.
const WATCHED: Duration = Duration::from_millis(3000);
/// Until every node has a lease again, and logs are even.
const CALM: Duration = Duration::from_secs(2);

/// A moment that is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// A node that has restarted is asked for its vote while the leader that it has forgotten serves.
    RestartedVoter,
    /// A leader wins that followed another one than the last.
    MissedLeader,
    /// The leader falls while a removal is half done, and the next one as soon as it has completed it.
    HalfRemoved,
    /// A removal that is in the log of a leader who is cut off is asked for again.
    UncommittedRemoval,
    /// A node that has waited alone with an old copy of its disk starts again.
    StaleDisk,
    /// A node is to let go of what it has of a quota, and does not hear of it.
    DeafHolder,
}

impl Scene {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RestartedVoter,
        Self::MissedLeader,
        Self::HalfRemoved,
        Self::UncommittedRemoval,
        Self::StaleDisk,
        Self::DeafHolder,
    ];

    /// Its name, as `keyward-sim --scene` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RestartedVoter => "restarted-voter",
            Self::MissedLeader => "missed-leader",
            Self::HalfRemoved => "half-removed",
            Self::UncommittedRemoval => "uncommitted-removal",
            Self::StaleDisk => "stale-disk",
            Self::DeafHolder => "deaf-holder",
        }
    }

    /// The scene of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scene| scene.name() == name)
    }

    /// A calm Region with what the scene needs.
    pub(crate) fn plan(self, seed: u64) -> Plan {
        let machines = match self {
            Self::HalfRemoved | Self::UncommittedRemoval => 4,
            _ => 3,
        };
        let plan = Plan::calm(seed, machines);
        match self {
            Self::DeafHolder => Plan { metering: Some(Metering::staged()), ..plan },
            _ => plan,
        }
    }

    /// Plays it to its end. Links are mended then, and every node is started.
    pub(crate) async fn play(
        self,
        callers: &Arc<Callers>,
        metered: Option<&Arc<MeteredCallers>>,
        seed: u64,
    ) {
        let mut stage =
            Stage { callers: Arc::clone(callers), dice: Dice::new(seed, Stream::Scene) };
        let came = match (self, metered) {
            (Self::RestartedVoter, _) => stage.a_restarted_voter().await,
            (Self::MissedLeader, _) => stage.a_missed_leader().await,
            (Self::HalfRemoved, _) => stage.a_removal_half_done().await,
            (Self::UncommittedRemoval, _) => stage.an_uncommitted_removal().await,
            (Self::StaleDisk, _) => stage.a_stale_disk_that_waits().await,
            (Self::DeafHolder, Some(metered)) => stage.a_deaf_holder(metered).await,
            (Self::DeafHolder, None) => None,
        };
        if came.is_none() {
            let nodes = callers.cluster.describe();
            callers.book.lock().violate(format!("THE SCENE did not come to its moment: {nodes}"));
        }
    }
}

/// Where a scene is played. Its steps return nothing when a moment did not come.
struct Stage {
    callers: Arc<Callers>,
    dice: Dice,
}

impl Stage {
    /// Waits until that is so.
    async fn until<T>(&self, look: impl Fn(&Callers) -> Option<T>) -> Option<T> {
        let world = &self.callers.cluster.world;
        let end = world.now() + COMES_WITHIN;
        while world.now() < end {
            if let Some(seen) = look(&self.callers) {
                return Some(seen);
            }
            sleep(LOOK).await;
        }
        None
    }

    /// The leader's machine, once it is calm.
    async fn leader(&self) -> Option<usize> {
        sleep(CALM).await;
        self.until(|callers| callers.cluster.leader()).await
    }

    /// The other two of three, in an order that the seed draws.
    fn others(&mut self, leader: usize) -> Option<(usize, usize)> {
        let others = self.callers.cluster.others(leader);
        let turned = self.dice.permille(500);
        match others[..] {
            [first, second] => Some(if turned { (second, first) } else { (first, second) }),
            _ => None,
        }
    }

    fn cut(&self, from: usize, to: usize) {
        let cluster = &self.callers.cluster;
        cluster.net.cut(cluster.id(from), cluster.id(to));
    }

    fn part(&self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    fn isolate(&self, machine: usize) {
        for other in self.callers.cluster.machines().filter(|other| *other != machine) {
            self.part(machine, other);
        }
    }

    /// As soon as another one leads, a key is made there: no node may go on as if there was none.
    async fn watch(&self, deposed: usize) {
        let world = &self.callers.cluster.world;
        let until = world.now() + WATCHED;
        change_elsewhere(&self.callers, deposed, until).await;
        sleep(until.saturating_sub(world.now())).await;
    }

    fn mend(&self) {
        let cluster = &self.callers.cluster;
        cluster.net.mend();
        for machine in cluster.machines().filter(|machine| cluster.group(*machine).is_none()) {
            cluster.boot(machine);
        }
    }
}
