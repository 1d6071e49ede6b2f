//! What operators set, list and see of quotas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::Env;
use keyward_model::{ErrorCode, KmsError, NodeId};
use keyward_quota::{BucketId, Limit, Profile, Quota, QuotaName, Share, Window, WindowUse};
use keyward_state::Command;

use super::bucket::BucketFigures;
use super::shares::{QuotaAnswer, QuotaRequest};
use crate::api::Caller;
use crate::kms::Kms;
use crate::peer::{AppRequest, AppResponse};

/// How long a node may take to tell what it counts.
const FIGURES_PATIENCE: Duration = Duration::from_millis(500);

/// How a bucket stands on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeShare {
    /// The node.
    pub node: NodeId,
    /// Its part of the rate; none of prepaid buckets.
    pub share: Share,
    /// Tokens that it could spend now.
    pub tokens: u64,
    /// Calls admitted since it started.
    pub admitted: u64,
    /// Calls refused since it started.
    pub refused: u64,
}

/// How a bucket stands in the Region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketUsage {
    /// Which.
    pub bucket: BucketId,
    /// The quota that defines it.
    pub quota: QuotaName,
    /// Its limit.
    pub limit: Limit,
    /// Node by node.
    pub nodes: Vec<NodeShare>,
    /// What was handed out of the present window, as of a second ago. Long windows only.
    pub used: Option<u64>,
}

/// How the quotas stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaUsage {
    /// Every bucket that calls have drawn on.
    pub buckets: Vec<BucketUsage>,
    /// Nodes that did not answer.
    pub missing: Vec<NodeId>,
}

/// What is left of a bucket with one node less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanLine {
    /// The node that is lost.
    pub node: NodeId,
    /// What the others can admit at once, in calls a window.
    pub at_once: u64,
    /// What they can once the lost node's lease is over.
    pub later: u64,
}

impl BucketUsage {
    /// What is left at once, and after a lease, when one node is lost.
    #[must_use]
    pub fn without_one_node(&self) -> Vec<PlanLine> {
        let limit = self.limit.limit;
        let line = |node: &NodeShare| {
            let lost = if self.limit.is_prepaid() { node.tokens } else { node.share.rate };
            PlanLine { node: node.node, at_once: limit.saturating_sub(lost), later: limit }
        };
        self.nodes.iter().map(line).collect()
    }
}

impl<E: Env> Kms<E> {
    /// Sets a quota, in the place of the one of its name.
    pub async fn put_quota(
        &self,
        caller: &Caller,
        quota: Quota,
        patience: Duration,
    ) -> Result<Quota, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        let name = quota.name.clone();
        // Nonsense writes no entry.
        self.operator(caller, patience).await?.check_quota(&quota)?;
        self.change(deadline, Command::PutQuotas { quotas: vec![quota], profile: false }).await?;
        tracing::warn!(by = %caller.principal, quota = %name, "a quota was set");
        // It is acknowledged, so no node that serves is without it; this one may have yet to apply it.
        let left = deadline.saturating_sub(self.node.env().boot_now());
        let state = self.operator(caller, left).await.map_err(|why| {
            KmsError::unknown_outcome(format!(
                "quota {name} was set; how it stands now is not known: {why}"
            ))
        })?;
        state.quota(&name).map(|quota| Quota::clone(quota)).ok_or_else(|| gone(&name))
    }

    /// Removes a quota: calls that it alone counted are not limited any more.
    pub async fn delete_quota(
        &self,
        caller: &Caller,
        name: QuotaName,
        patience: Duration,
    ) -> Result<(), KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        self.operator(caller, patience).await?.existing_quota(&name)?;
        tracing::warn!(by = %caller.principal, quota = %name, "a quota is removed");
        self.change(deadline, Command::DeleteQuota { name }).await.map(drop)
    }

    /// Sets all quotas of one of AWS's profiles, in the place of another profile's. Returns how many.
    pub async fn apply_quota_profile(
        &self,
        caller: &Caller,
        profile: &str,
        patience: Duration,
    ) -> Result<usize, KmsError> {
        let deadline = self.node.env().boot_now() + patience;
        self.operator(caller, patience).await?;
        let profile =
            Profile::named(profile).map_err(|why| KmsError::validation(why.to_string()))?;
        let quotas: Vec<Quota> = profile.quotas().collect();
        let count = quotas.len();
        self.change(deadline, Command::PutQuotas { quotas, profile: true }).await?;
        tracing::warn!(by = %caller.principal, profile = profile.name, "a quota profile was applied");
        Ok(count)
    }

    /// All quotas, by name.
    pub async fn list_quotas(
        &self,
        caller: &Caller,
        patience: Duration,
    ) -> Result<Vec<Quota>, KmsError> {
        let state = self.operator(caller, patience).await?;
        Ok(state.quotas().map(|quota| Quota::clone(quota)).collect())
    }

    /// How the quotas stand, on every node.
    pub async fn quota_usage(
        self: &Arc<Self>,
        caller: &Caller,
        patience: Duration,
    ) -> Result<QuotaUsage, KmsError> {
        let state = self.operator(caller, patience).await?;
        let members = self.node.members();
        let asked = members.iter().map(|member| self.figures_of(member.node, &member.address));
        let answers = futures_util::future::join_all(asked).await;
        let mut buckets: BTreeMap<BucketId, BucketUsage> = BTreeMap::new();
        let mut missing = Vec::new();
        for (member, answer) in members.iter().zip(answers) {
            let Some(figures) = answer else {
                missing.push(member.node);
                continue;
            };
            for figure in figures {
                let BucketFigures { bucket, quota, limit, share, tokens, admitted, refused } =
                    figure;
                let node = member.node;
                let region_ms = u64::try_from(self.node.wall_now().0).unwrap_or(0);
                let now_in =
                    |used: &WindowUse| used.window == region_ms / (bucket.window.seconds() * 1000);
                let used = (bucket.window != Window::Second)
                    .then(|| state.quota_use(&bucket).filter(now_in).map_or(0, |used| used.used));
                buckets
                    .entry(bucket.clone())
                    .or_insert_with(|| BucketUsage {
                        bucket,
                        quota,
                        limit,
                        nodes: Vec::new(),
                        used,
                    })
                    .nodes
                    .push(NodeShare { node, share, tokens, admitted, refused });
            }
        }
        Ok(QuotaUsage { buckets: buckets.into_values().collect(), missing })
    }

    async fn figures_of(&self, node: NodeId, address: &str) -> Option<Vec<BucketFigures>> {
        if node == self.node.id() {
            return Some(self.quotas.figures(self.node.env().boot_now()));
        }
        let request = AppRequest::Quota(QuotaRequest::Figures);
        match self.ask_peer(node, address, &request, FIGURES_PATIENCE).await {
            Ok(AppResponse::Quota(QuotaAnswer::Figures(figures))) => Some(figures),
            _ => None,
        }
    }
}

fn gone(name: &QuotaName) -> KmsError {
    KmsError::new(ErrorCode::NotFoundException, format!("quota {name} was removed meanwhile"))
}
