//! **A deleted replica never comes back**: once a Region has shown that its key of some generation is gone, it has none
//! of that generation or an earlier one, whatever other Regions tell. (With old disks
//! it may have one until it has heard: `regions_agree.rs` looks at that in the end.) And none goes that nobody wanted gone there.

use std::collections::BTreeMap;

use keyward_model::KeyId;
use keyward_state::State;

use crate::regions::Ledger;

/// What a Region has shown of a key.
#[derive(Debug, Default)]
struct Shown {
    /// The highest generation that was there, and the first entry at which it was seen.
    had: Option<(u64, u64)>,
    /// The highest generation that is gone, and the first entry at which that was seen.
    gone: Option<(u64, u64)>,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct GoneInARegion {
    keys: BTreeMap<(usize, KeyId), Shown>,
}

impl GoneInARegion {
    /// The Region of that number comes back with old disks: what it has deleted since, others must tell it.
    pub(super) fn forget(&mut self, number: usize) {
        self.keys.retain(|(region, _), _| *region != number);
    }

    /// Looks at one node of the Region of that number.
    pub(super) fn look(&mut self, number: usize, state: &State, ledger: &mut Ledger) {
        for row in state.multi_region_keys() {
            let shown = self.keys.entry((number, row.key)).or_default();
            let Some(here) = &row.here else {
                let had = shown.had.filter(|(_, applied)| *applied <= state.applied);
                let gone = had.map(|(generation, _)| generation);
                if gone > shown.gone.map(|(generation, _)| generation) {
                    shown.gone = gone.map(|generation| (generation, state.applied));
                    ledger.counters.replicas_gone += 1;
                    if !ledger.unwanted.contains(&(number, row.key)) {
                        ledger.violate(format!(
                            "A KEY WENT that nobody wanted gone: {} in Region {number}",
                            row.key
                        ));
                    }
                }
                continue;
            };
            if let Some((generation, applied)) = shown.gone
                && state.applied >= applied
                && here.generation <= generation
            {
                ledger.violate(format!(
                    "RESURRECTION of {} in Region {number}: generation {} at entry {}; {generation} was gone at \
                     entry {applied}",
                    row.key, here.generation, state.applied
                ));
            }
            if shown.had.is_none_or(|(generation, _)| generation < here.generation) {
                shown.had = Some((here.generation, state.applied));
            }
        }
    }
}
