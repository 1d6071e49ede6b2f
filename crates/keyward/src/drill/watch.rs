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

/// What was seen so far.
pub type Looks = Arc<Mutex<Vec<Look>>>;

/// Looks at every Region once a second. Ends with the drill.
pub fn watch(stage: &Stage, began: Duration, lasts: Duration, looks: &Looks) -> Result<(), Failure> {
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
    let lag_ms = links.iter().filter_map(|link| link.behind_milliseconds).max().unwrap_or(0);
    let request = v1::GetQuotaUsageRequest {};
    let usage =
        operator.quota(Repeat::Safe, request, |mut c, r| async move { c.get_quota_usage(r).await });
    let buckets = usage.await.map(|usage| usage.buckets).unwrap_or_default();
    let lost: BTreeMap<String, u64> = buckets.iter().filter_map(headroom_lost).collect();
    Some(Look { at_us, region: region.to_owned(), lag_ms, headroom_lost_ppm: lost })
}

/// How much of a limit a second no node has: a node that is lost takes its share with it until it is divided anew.
fn headroom_lost(bucket: &v1::BucketUsage) -> Option<(String, u64)> {
    let limit = bucket.limit.as_ref().filter(|limit| limit.window == "second" && limit.limit > 0)?;
    let held: u64 = bucket.nodes.iter().map(|node| node.share).sum();
    let lost = limit.limit.saturating_sub(held) * MILLION / limit.limit;
    let covers = bucket.quota.as_ref().map_or("", |name| &name.covers);
    Some((format!("{} ({covers}, {} a second)", bucket.holder, limit.limit), lost))
}
