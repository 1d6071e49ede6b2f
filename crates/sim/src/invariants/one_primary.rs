//! **At most one primary per multi-Region key and epoch.** A version (epoch and sequence) means one thing, whichever
//! node of whichever Region shows it. Without a promotion the number of an epoch is one Region's alone, and what a
//! primary changed before it handed over is there afterwards.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use keyward_model::{KeyId, KeyMaterialId, Region};
use keyward_state::{Here, Key, MultiRegionKey, Offer, Rotation, State, Version};

use crate::regions::Ledger;

/// What a version says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    /// Which Regions have it, and which replica each.
    related: BTreeMap<Region, u64>,
    offer: Option<Offer>,
    current: KeyMaterialId,
    waiting: Option<KeyMaterialId>,
    rotation: Rotation,
    /// What the primary of this epoch had begun from.
    base: Option<Version>,
}

impl Word {
    fn of(here: &Here, key: &Key) -> Self {
        let generation = |(region, related): (&Region, &keyward_state::Related)| {
            (region.clone(), related.generation)
        };
        Self {
            related: here.related.iter().map(generation).collect(),
            offer: here.offer.clone(),
            current: key.current_material().id,
            waiting: key.introduced().map(|material| material.id),
            rotation: key.rotation,
            base: here.base.clone(),
        }
    }

    /// What must survive a hand-over. (Which Regions have the key, they tell themselves.)
    fn kept(&self) -> (KeyMaterialId, Option<KeyMaterialId>, Rotation) {
        (self.current, self.waiting, self.rotation)
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct OnePrimary {
    words: BTreeMap<KeyId, BTreeMap<Version, Word>>,
    primaries: BTreeMap<(KeyId, u64), Region>,
}

impl OnePrimary {
    /// Looks at one node of that Region.
    pub(super) fn look(&mut self, name: &Region, state: &State, ledger: &mut Ledger) {
        for row in state.multi_region_keys() {
            if let (Some(here), Some(key)) = (&row.here, state.key(&row.key)) {
                self.look_at(name, row, here, key, ledger);
            }
        }
    }

    fn look_at(
        &mut self,
        name: &Region,
        row: &MultiRegionKey,
        here: &Here,
        key: &Key,
        ledger: &mut Ledger,
    ) {
        let (id, version, word) = (row.key, &here.version, Word::of(here, key));
        // A primary with old disks counts again from where they are.
        if ledger.restored.contains(&id) {
            return;
        }
        let known = self.words.entry(id).or_default();
        match known.get(version) {
            Some(other) if *other == word => return,
            Some(other) => ledger.violate(format!(
                "TWO WORDS OF ONE VERSION: {version:?} of {id} in {name} is {word:?}, and was {other:?}"
            )),
            None => drop(known.insert(version.clone(), word)),
        }
        if ledger.promoted.contains(&id) {
            return;
        }
        if let Some(lost) = lost_in_a_hand_over(known) {
            ledger.violate(format!("A CHANGE IS LOST IN A HAND-OVER of {id}: {lost}"));
        }
        match self.primaries.entry((id, version.epoch.number)) {
            Entry::Vacant(free) => drop(free.insert(version.epoch.region.clone())),
            Entry::Occupied(first) if *first.get() == version.epoch.region => {}
            Entry::Occupied(first) => ledger.violate(format!(
                "TWO PRIMARIES of {id} at epoch {}: {} and {}",
                version.epoch.number,
                first.get(),
                version.epoch.region
            )),
        }
    }
}

/// A version that went on from what another epoch began with, and says something else.
fn lost_in_a_hand_over(words: &BTreeMap<Version, Word>) -> Option<String> {
    let mut bases = words.values().filter_map(|word| word.base.as_ref());
    bases.find_map(|base| {
        let kept = words.get(base)?.kept();
        let mut later = words.range(base.clone()..);
        let lost =
            later.find(|(version, word)| version.epoch == base.epoch && word.kept() != kept)?;
        Some(format!("{:?} came after {base:?}, where the next epoch began", lost.0))
    })
}
