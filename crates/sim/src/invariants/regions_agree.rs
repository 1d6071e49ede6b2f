//! **Regions converge**: once links heal, all Regions that have a key agree on its shared properties, on which Regions
//! have it, and on which of them is its primary; every material is in all of them, and nothing is left half done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyward_model::{KeyId, KeyMaterialId, KeyState, PrincipalArn, Region};
use keyward_state::{ForeignPrincipal, Here, Key, OutsideAuthority, State};

use crate::regions::Regions;

/// A key as one Region has it.
struct Held<'a> {
    region: &'a Region,
    here: &'a Here,
    key: &'a Key,
}

impl Held<'_> {
    fn materials(&self) -> BTreeSet<KeyMaterialId> {
        self.key.materials.iter().map(|material| material.id).collect()
    }

    /// What is half done.
    fn unfinished(&self) -> Option<&'static str> {
        [
            (self.here.offer.is_some(), "its primary's place is on offer"),
            (self.here.waits_for.is_some(), "it waits for the last primary"),
            (self.key.introduced().is_some(), "its rotation waits"),
            (self.key.state == KeyState::Updating, "it is updating"),
            (self.here.related.values().any(|r| r.first.is_some()), "a replica is being made"),
        ]
        .into_iter()
        .find_map(|(is_so, what)| is_so.then_some(what))
    }
}

/// Where they differ, for people. None: they agree.
pub fn differences(regions: &Regions) -> Vec<String> {
    let mut states: Vec<(&Region, Arc<State>)> = Vec::new();
    for number in 0..regions.clusters.len() {
        match regions.leaders_state(number) {
            Some(state) => states.push((regions.name(number), state)),
            None => return vec![format!("{} has no leader", regions.name(number))],
        }
    }
    let mut keys: BTreeMap<KeyId, Vec<Held<'_>>> = BTreeMap::new();
    for (region, state) in &states {
        for row in state.multi_region_keys() {
            if let (Some(here), Some(key)) = (&row.here, state.key(&row.key)) {
                keys.entry(row.key).or_default().push(Held { region, here, key });
            }
        }
    }
    let of_key = |(id, held): (&KeyId, &Vec<Held<'_>>)| {
        let difference = difference(held).or_else(|| came_back(id, held, &states))?;
        let rows = states.iter().map(|(region, state)| {
            (region, state.key(id).map(|key| key.state), state.multi_region(id))
        });
        Some(format!("{id}: {difference}; {:?}", rows.collect::<Vec<_>>()))
    };
    keys.iter().filter_map(of_key).chain(principals(&states)).chain(authorities(&states)).collect()
}

/// Outside authorities of which Regions know different things.
fn authorities(states: &[(&Region, Arc<State>)]) -> Vec<String> {
    let known = |state: &State| -> Vec<OutsideAuthority> {
        let mut all: Vec<_> =
            state.feed_after(0).filter_map(|fed| State::told_authority(&fed)).collect();
        all.sort_by_key(|row| (row.fingerprint, row.home_id));
        all
    };
    let all: Vec<_> = states.iter().map(|(region, state)| (region, known(state))).collect();
    let differ = all.iter().any(|(_, known)| *known != all[0].1);
    differ.then(|| format!("outside authorities: {all:?}")).into_iter().collect()
}

/// A principal and the id of its Region.
type Who = (PrincipalArn, [u8; 16]);

/// Principals of which Regions know different things.
fn principals(states: &[(&Region, Arc<State>)]) -> Vec<String> {
    let known = |state: &State| -> BTreeMap<Who, ForeignPrincipal> {
        let told = state.feed_after(0).filter_map(|fed| state.told_principal(&fed));
        told.map(|told| ((told.principal.arn.clone(), told.home_id), told)).collect()
    };
    let all: Vec<_> = states.iter().map(|(region, state)| (region, known(state))).collect();
    let who: BTreeSet<&Who> = all.iter().flat_map(|(_, known)| known.keys()).collect();
    let differs = |who: &&Who| {
        let seen: Vec<_> = all.iter().map(|(region, known)| (region, known.get(*who))).collect();
        let same = seen.iter().all(|(_, one)| *one == seen[0].1);
        (!same).then(|| format!("principal {}: {seen:?}", who.0))
    };
    who.iter().filter_map(differs).collect()
}

/// A replica that another Region knows to be gone.
fn came_back(id: &KeyId, held: &[Held<'_>], states: &[(&Region, Arc<State>)]) -> Option<String> {
    held.iter().find_map(|one| {
        let knows = |(_, state): &&(&Region, Arc<State>)| {
            let gone = state.multi_region(id).and_then(|row| row.gone.get(one.region).copied());
            gone >= Some(one.here.generation)
        };
        let (other, _) = states.iter().find(knows)?;
        Some(format!("its replica in {} came back: {other} knows that it is gone", one.region))
    })
}

fn difference(held: &[Held<'_>]) -> Option<String> {
    let first = held.first()?;
    for one in held {
        let name = one.region;
        if let Some(what) = one.unfinished() {
            return Some(format!("{what} in {name}"));
        }
        let differs = [
            (one.here.version != first.here.version, "version"),
            (one.here.related != first.here.related, "related Regions"),
            (one.key.current_material().id != first.key.current_material().id, "current material"),
            (one.key.rotation != first.key.rotation, "rotation"),
            (one.materials() != first.materials(), "materials"),
        ];
        if let Some((_, what)) = differs.iter().find(|(differs, _)| *differs) {
            return Some(format!("its {what} in {name} and in {} differ", first.region));
        }
    }
    let names: BTreeSet<&Region> = held.iter().map(|one| one.region).collect();
    let related: BTreeSet<&Region> = first.here.related.keys().collect();
    if names != related {
        return Some(format!("it is in {names:?}, and should be in {related:?}"));
    }
    let primary = &first.here.version.epoch.region;
    (!names.contains(primary))
        .then(|| format!("its primary should be in {primary}: it is gone there"))
}
