//! **Admitted never exceeds quota plus burst**, in any window, over all nodes and through failovers (decision 0012);
//! a cut that was acknowledged counts for every call that begins later; and a refusal says which limit was hit and
//! when to try again. What is counted, and the bounds, are in `crates/check/src/meter.rs`.

use keyward_check::{LeaderChange, Meter};
use keyward_env::Env;
use keyward_quota::{Quota, QuotaName, Window};

use crate::book::Book;
use crate::cluster::Cluster;
use crate::runtime::Group;

/// Region time drifts by less than this in a run.
const SET_AHEAD_MS: i64 = 20_000;

/// All of them, and when the leader changed.
#[derive(Debug, Default)]
pub struct Meters {
    /// One a principal.
    pub meters: Vec<Meter>,
    /// The names of their quotas, in the same order.
    pub names: Vec<QuotaName>,
    leader: Option<Group>,
    changes: Vec<LeaderChange>,
    /// By how much Region time was ahead of the world's time, at most, in milliseconds.
    ahead_ms: Option<i64>,
    /// How often it was set ahead: each time another minute began, and a later one.
    jumps: u64,
}

impl Meters {
    /// Whether an operator has asked for that quota, now or before.
    pub(super) fn were_asked_for(&self, quota: &Quota) -> bool {
        let mut of_name =
            self.meters.iter().zip(&self.names).filter(|(_, name)| **name == quota.name);
        of_name.any(|(meter, _)| matches!(&*quota.limits, [limit] if meter.was_asked_for(limit)))
    }

    /// Notes when the leader changes, and when Region time is set ahead.
    pub(super) fn look(&mut self, cluster: &Cluster) {
        let world_ms = i64::try_from(cluster.world.now().as_millis()).unwrap_or(i64::MAX);
        let times = cluster.machines().filter_map(|index| cluster.running(index));
        let times = times.map(|running| running.kms.node().region_now().0 - world_ms);
        if let Some(ahead_ms) = times.max() {
            let before_ms = *self.ahead_ms.get_or_insert(ahead_ms);
            if ahead_ms >= before_ms + SET_AHEAD_MS {
                self.jumps += 1;
                self.ahead_ms = Some(ahead_ms);
            }
        }
        let leader = cluster.leader().and_then(|index| cluster.group(index));
        if leader != self.leader {
            let figures =
                cluster.machines().filter_map(|index| cluster.running(index)).flat_map(|running| {
                    running.kms.quotas().figures(running.kms.node().env().boot_now())
                });
            let prepaid = figures.filter(|figure| figure.limit.window != Window::Second);
            let prepaid = prepaid.map(|figure| figure.tokens).sum();
            self.changes.push(LeaderChange { at: cluster.world.now(), prepaid });
            self.leader = leader;
        }
    }

    /// Looks at everything that was admitted.
    pub(super) fn look_in_the_end(&self, cluster: &Cluster, book: &mut Book) {
        for meter in &self.meters {
            if let Err(why) = meter.check(cluster.fastest_ppm(), &self.changes, self.jumps) {
                book.violate(format!("MORE THAN THE QUOTA: {why}"));
            }
            book.counters.metered += meter.admitted();
            book.counters.throttled += meter.refused();
        }
    }
}
