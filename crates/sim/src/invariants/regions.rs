//! What must hold of several Regions all the time: looked at on every node that is up.

use std::sync::Arc;

use keyward_model::Region;
use keyward_state::State;

use super::gone_in_a_region::GoneInARegion;
use super::material_everywhere::MaterialEverywhere;
use super::one_primary::OnePrimary;
use crate::regions::Regions;

/// The latest state that any node of each Region has shown.
#[derive(Debug, Default)]
pub struct Latest(Vec<(Region, Option<Arc<State>>)>);

impl Latest {
    fn take(&mut self, number: usize, state: &Arc<State>) {
        let known = &mut self.0[number].1;
        if known.as_ref().is_none_or(|known| known.applied < state.applied) {
            *known = Some(Arc::clone(state));
        }
    }

    /// All of them, by the Region's name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Region, &Arc<State>)> {
        self.0.iter().filter_map(|(name, state)| state.as_ref().map(|state| (name, state)))
    }
}

/// The rules, and what each node has shown last.
#[derive(Debug, Default)]
pub struct RegionRules {
    latest: Latest,
    /// Up to which entry each node has been looked at.
    looked: Vec<Vec<u64>>,
    one_primary: OnePrimary,
    material_everywhere: MaterialEverywhere,
    gone: GoneInARegion,
}

impl RegionRules {
    /// The Region of that number comes back with old disks.
    pub fn forget(&mut self, number: usize) {
        self.latest.0[number].1 = None;
        self.looked[number].fill(0);
        self.gone.forget(number);
    }

    /// Looks at every node that has changed since the last look.
    pub fn look(&mut self, regions: &Regions) {
        let mut ledger = regions.ledger.lock();
        if self.looked.is_empty() {
            self.latest.0 = regions.clusters.iter().map(|c| (c.region().clone(), None)).collect();
            self.looked = regions.clusters.iter().map(|c| vec![0; c.size()]).collect();
        }
        let mut changed = false;
        for (number, cluster) in regions.clusters.iter().enumerate() {
            for index in cluster.machines() {
                let Some(running) = cluster.running(index) else { continue };
                let state = running.kms.node().state();
                if std::mem::replace(&mut self.looked[number][index], state.applied)
                    == state.applied
                {
                    continue;
                }
                changed = true;
                self.latest.take(number, &state);
                self.one_primary.look(cluster.region(), &state, &mut ledger);
                self.gone.look(number, &state, &mut ledger);
            }
        }
        if changed {
            self.material_everywhere.look(&self.latest, &mut ledger);
        }
    }
}
