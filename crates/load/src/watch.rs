//! What the Region says of itself while a load runs: the CPU and memory of its nodes, what its quotas have counted.

use std::sync::Arc;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use crate::run::Stop;

const ROUND: Duration = Duration::from_secs(1);

/// What was seen at one time.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// When, on the clock that counts from boot.
    pub at: Duration,
    /// The Region.
    pub region: String,
    /// Its KMS keys.
    pub keys: u64,
    /// Its nodes.
    pub nodes: Vec<v1::NodeStatus>,
    /// What its quotas have counted.
    pub buckets: Vec<v1::BucketUsage>,
    /// Nodes whose counts are not in there.
    pub missing_nodes: Vec<u64>,
}

/// Asks once, as an operator.
///
/// # Errors
/// The refusal: whoever asks is no operator, or nobody answers.
pub async fn observe(operator: &Client) -> Result<Observation, CallError> {
    let began = RealEnv.boot_now();
    let request = v1::ClusterStatusRequest {};
    let status = operator
        .operator(Repeat::Safe, request, |mut c, r| async move { c.cluster_status(r).await });
    let status = status.await?;
    let at = began + (RealEnv.boot_now() - began) / 2;
    let request = v1::GetQuotaUsageRequest {};
    let usage =
        operator.quota(Repeat::Safe, request, |mut c, r| async move { c.get_quota_usage(r).await });
    let usage = usage.await?;
    Ok(Observation {
        at,
        region: status.region,
        keys: status.keys,
        nodes: status.nodes,
        buckets: usage.buckets,
        missing_nodes: usage.missing_nodes,
    })
}

/// Asks about once a second, until told to stop and once more then. What was not answered is left out.
pub async fn watch(operator: Arc<Client>, stop: Stop) -> Vec<Observation> {
    let mut seen = Vec::new();
    loop {
        let last = stop.is_told();
        let began = RealEnv.boot_now();
        seen.extend(observe(&operator).await.ok());
        if last {
            return seen;
        }
        let next = began + ROUND;
        while !stop.is_told() && RealEnv.boot_now() < next {
            RealEnv.sleep(Duration::from_millis(20)).await;
        }
    }
}
