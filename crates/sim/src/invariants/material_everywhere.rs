//! **A material encrypts only once every Region that has its key has it too**, so that no Region meets a ciphertext that
//! it cannot open. A promotion may come between: a lost Region may have had made a replica that nobody else knew; and a Region
//! that comes back with old disks lacks what it had.

use std::collections::BTreeSet;

use keyward_model::{KeyId, KeyMaterialId};

use super::regions::Latest;
use crate::regions::Ledger;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct MaterialEverywhere {
    /// Materials that encrypt, or did.
    current: BTreeSet<(KeyId, KeyMaterialId)>,
}

impl MaterialEverywhere {
    /// Looks at the latest state of every Region.
    pub(super) fn look(&mut self, latest: &Latest, ledger: &mut Ledger) {
        for (name, state) in latest.iter() {
            for row in state.multi_region_keys() {
                let Some(key) = state.key(&row.key) else { continue };
                let material = key.current_material().id;
                let new = self.current.insert((row.key, material));
                let excused =
                    ledger.promoted.contains(&row.key) || ledger.restored.contains(&row.key);
                if !new || excused {
                    continue;
                }
                for (other, state) in latest.iter() {
                    if state.key(&row.key).is_some_and(|key| key.material(&material).is_none()) {
                        ledger.violate(format!(
                            "A MATERIAL ENCRYPTS TOO EARLY: {material} of {} in {name}, and {other} lacks it",
                            row.key
                        ));
                    }
                }
            }
        }
    }
}
