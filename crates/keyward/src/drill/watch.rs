//! What Regions say of themselves while a drill is played: how far they are behind, and what is left of their quotas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use parking_lot::Mutex;

use super::caller::since_us;
use super::history::Look;
use super::stage::Stage;
use crate::error::Failure;

const ROUND: Duration = Duration::from_secs(1);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(900);
const MILLION: u64 = 1_000_000;
/// Regions ask each other at least once a second: one that is heard of later than that is silent.
const SILENT_MS: u64 = 1500;

/// What was seen so far.
pub type Looks = Arc<Mutex<Vec<Look>>>;

/// Looks at every Region once a second. Ends with the drill.
pub fn watch(
    stage: &Stage,
    began: Duration,
    lasts: Duration,
    looks: &Looks,
) -> Result<(), Failure> {
    for place in &stage.places {
        let operator = place.operator(PATIENCE)?;
        let (region, looks) = (place.region.clone(), Arc::clone(looks));
        RealEnv.spawn(async move {
            let mut next = began;
            while next < began + lasts {
                RealEnv.sleep(next.saturating_sub(RealEnv.boot_now())).await;
                let look = RealEnv.timeout(PATIENCE, look(&operator, &region, began)).await;
                looks.lock().extend(look.flatten());
                next += ROUND;
            }
        });
    }
    Ok(())
}

async fn look(operator: &Client, region: &str, began: Duration) -> Option<Look> {
    let at_us = since_us(began);
    let request = v1::DescribeRegionsRequest { change: None };
    let links = operator
        .region(Repeat::Safe, request, |mut c, r| async move { c.describe_regions(r).await })
        .await
        .ok()?
        .links;
    let lag_ms = links.iter().map(|link| behind_ms(link, at_us / 1000)).max().unwrap_or(0);
    let request = v1::GetQuotaUsageRequest {};
    let usage =
        operator.quota(Repeat::Safe, request, |mut c, r| async move { c.get_quota_usage(r).await });
    let buckets = usage.await.map(|usage| usage.buckets).unwrap_or_default();
    let lost: BTreeMap<String, u64> = buckets.iter().filter_map(headroom_lost).collect();
    Some(Look { at_us, region: region.to_owned(), lag_ms, headroom_lost_ppm: lost })
}

/// How old what is known of another Region is; since the beginning where it was not heard of.
fn behind_ms(link: &v1::RegionLink, since_began_ms: u64) -> u64 {
    let heard = link.heard_milliseconds.unwrap_or(since_began_ms);
    let silent = if heard > SILENT_MS { heard } else { 0 };
    link.behind_milliseconds.unwrap_or(0).max(silent)
}

/// How much of a limit a second no node has: a node that is lost takes its share with it until it is divided anew.
fn headroom_lost(bucket: &v1::BucketUsage) -> Option<(String, u64)> {
    let limit =
        bucket.limit.as_ref().filter(|limit| limit.window == "second" && limit.limit > 0)?;
    let held: u64 = bucket.nodes.iter().map(|node| node.share).sum();
    // Where tokens are prepaid, nodes have no shares.
    if held == 0 {
        return None;
    }
    let lost = limit.limit.saturating_sub(held) * MILLION / limit.limit;
    let covers = bucket.quota.as_ref().map_or("", |name| &name.covers);
    Some((format!("{} ({covers}, {} a second)", bucket.holder, limit.limit), lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_region_is_as_far_away_as_it_was_heard_of_last() {
        let link = |heard, behind| v1::RegionLink {
            heard_milliseconds: heard,
            behind_milliseconds: behind,
            ..Default::default()
        };
        assert_eq!(behind_ms(&link(Some(900), None), 5000), 0);
        assert_eq!(behind_ms(&link(Some(900), Some(300)), 5000), 300);
        assert_eq!(behind_ms(&link(Some(4000), Some(300)), 5000), 4000);
        assert_eq!(behind_ms(&link(None, None), 5000), 5000);
    }

    #[test]
    fn what_no_node_has_is_lost() {
        let node = |share| v1::NodeQuotaUsage { share, ..Default::default() };
        let bucket = |shares: &[u64]| v1::BucketUsage {
            limit: Some(v1::QuotaLimit { window: "second".to_owned(), limit: 100, burst: None }),
            nodes: shares.iter().map(|share| node(*share)).collect(),
            ..Default::default()
        };
        let lost = |shares| headroom_lost(&bucket(shares)).map(|(_, lost)| lost);
        assert_eq!(lost(&[40, 40]), Some(200_000));
        assert_eq!(lost(&[60, 40]), Some(0));
        assert_eq!(lost(&[0, 0]), None);
    }
}
