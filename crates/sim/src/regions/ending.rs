//! What must hold among Regions in the end, once nothing breaks any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyward_model::KeyState;

use super::faults::must_promote;
use super::{Regions, Sample};
use crate::cluster::operator;
use crate::invariants::regions_agree;
use crate::sleep;

/// Once faults are over, the Regions agree within this: leaders are elected, links come back, what was offered, rotated
/// and deleted comes to its end.
const AGREE_WITHIN: Duration = Duration::from_secs(60);
/// Keys that are switched off or wait for their deletion are brought back within this.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Regions have heard each other within this.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How long a node is asked why it does not hear others.
const PATIENCE: Duration = Duration::from_secs(2);
/// A ciphertext opens within this: a Region that has just started must have heard from another one first.
const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// All Regions agree on every key.
pub(super) async fn must_agree(regions: &Regions) {
    let end = regions.world.now() + AGREE_WITHIN;
    loop {
        let differences = regions_agree::differences(regions);
        regions.look();
        if differences.is_empty() {
            return;
        }
        if regions.world.now() > end {
            let what = format!("{}; {}", differences.join("; "), failing(regions).await);
            return regions.violate(format!("REGIONS DIFFER after {AGREE_WITHIN:?}: {what}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// A Region that came back with old disks may be the last to have a key, and take for its primary a Region that has deleted
/// it: nobody can tell it better, so an operator promotes it.
pub(super) async fn promote_the_orphaned(regions: &Arc<Regions>) {
    if regions.ledger.lock().counters.old_copies == 0 {
        return;
    }
    sleep(HEARD_WITHIN).await;
    for at in 0..regions.clusters.len() {
        for lost in (0..regions.clusters.len()).filter(|lost| *lost != at) {
            let (Some(state), Some(other)) =
                (regions.leaders_state(at), regions.leaders_state(lost))
            else {
                continue;
            };
            let orphaned = state.multi_region_keys().any(|row| {
                row.primary() == Some(regions.name(lost)) && other.key(&row.key).is_none()
            });
            if orphaned && !must_promote(regions, at, lost).await {
                let (at, lost) = (regions.name(at), regions.name(lost));
                regions.violate(format!("{at} COULD NOT BE PROMOTED in the place of {lost}"));
            }
        }
    }
}

/// Why Regions do not hear each other, for people.
async fn failing(regions: &Regions) -> String {
    let mut text = String::new();
    for (number, cluster) in regions.clusters.iter().enumerate() {
        let status = cluster
            .operate(0, |kms| async move { kms.regions_status(&operator(), None, PATIENCE).await });
        let links = status.await.map(|status| status.links).unwrap_or_default();
        let links = links.iter().map(|seen| &seen.link);
        for link in links.filter(|link| link.failing.is_some() || link.behind > 0) {
            text += &format!("{} hears {link:?}; ", regions.name(number));
        }
    }
    text
}

/// Every ciphertext opens in every Region that has its key.
pub(super) async fn every_ciphertext_opens(regions: &Arc<Regions>) {
    bring_all_back(regions).await;
    let samples: Vec<Sample> = regions.ledger.lock().samples.clone();
    for sample in &samples {
        for number in 0..regions.clusters.len() {
            let has = |regions: &Regions| {
                regions.leaders_state(number).is_some_and(|state| state.key(&sample.key).is_some())
            };
            let end = regions.world.now() + OPENS_WITHIN;
            while has(regions) && !regions.open(number, sample).await {
                if regions.world.now() > end {
                    let (key, name) = (sample.key, regions.name(number));
                    regions.violate(format!(
                        "A CIPHERTEXT DOES NOT OPEN in the end: of {key} in {name}, within {OPENS_WITHIN:?}"
                    ));
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Keys that cannot be used are brought back to where they can.
async fn bring_all_back(regions: &Arc<Regions>) {
    let end = regions.world.now() + BACK_WITHIN;
    loop {
        let mut away = BTreeSet::new();
        for number in 0..regions.clusters.len() {
            let Some(state) = regions.leaders_state(number) else { continue };
            for row in state.multi_region_keys() {
                let Some(key) = state.key(&row.key) else { continue };
                if key.state != KeyState::Enabled {
                    away.insert((number, row.key));
                    regions.bring_back(number, row.key, key.state).await;
                }
            }
        }
        if away.is_empty() {
            return;
        }
        if regions.world.now() > end {
            return regions
                .violate(format!("KEYS DO NOT COME BACK within {BACK_WITHIN:?}: {away:?}"));
        }
        sleep(Duration::from_millis(100)).await;
    }
}
