//! `keyward.v1.QuotaService`: translation, nothing else.

use std::sync::Arc;

use keyward_model::KmsError;
use keyward_proto::v1;
use keyward_proto::v1::quota_service_server::QuotaService;
use keyward_quota::{Limit, PROFILES_AS_OF, Profile, Quota, QuotaName, Scope};
use keyward_service::{BucketUsage, QuotaUsage};
use tonic::Request;

use crate::common::Answer;
use crate::operator::OperatorDoor;

/// Calls about quotas, on one node.
pub(crate) struct QuotaDoor(pub(crate) Arc<OperatorDoor>);

fn name(name: Option<v1::QuotaName>) -> Result<QuotaName, KmsError> {
    let name = name.ok_or_else(|| KmsError::missing("name"))?;
    let scope = Scope::parse(&name.scope, name.holder.as_deref()).map_err(KmsError::validation)?;
    let covers = name.covers.parse().map_err(|why: String| KmsError::validation(why))?;
    Ok(QuotaName { scope, covers })
}

fn quota(request: v1::SetQuotaRequest) -> Result<Quota, KmsError> {
    let limits = request.limits.into_iter().map(|limit| {
        let window = limit.window.parse().map_err(|why: String| KmsError::validation(why))?;
        Ok(Limit::new(window, limit.limit, limit.burst))
    });
    let limits = limits.collect::<Result<_, KmsError>>()?;
    Quota::new(name(request.name)?, limits).map_err(|why| KmsError::validation(why.to_string()))
}

fn told_name(name: &QuotaName) -> v1::QuotaName {
    v1::QuotaName {
        scope: name.scope.kind().to_owned(),
        holder: name.scope.holder(),
        covers: name.covers.name().to_owned(),
    }
}

fn told_limit(limit: &Limit) -> v1::QuotaLimit {
    v1::QuotaLimit {
        window: limit.window.name().to_owned(),
        limit: limit.limit,
        burst: (limit.burst > 0).then_some(limit.burst),
    }
}

fn told(quota: &Quota) -> v1::Quota {
    v1::Quota {
        name: Some(told_name(&quota.name)),
        limits: quota.limits.iter().map(told_limit).collect(),
        profile: quota.profile.clone(),
    }
}

fn told_usage(bucket: &BucketUsage) -> v1::BucketUsage {
    let nodes = bucket.nodes.iter().map(|node| v1::NodeQuotaUsage {
        node_id: node.node,
        share: node.share.rate,
        tokens: node.tokens,
        admitted: node.admitted,
        refused: node.refused,
    });
    let without = bucket.without_one_node();
    v1::BucketUsage {
        holder: bucket.bucket.holder.to_string(),
        quota: Some(told_name(&bucket.quota)),
        limit: Some(told_limit(&bucket.limit)),
        nodes: nodes.collect(),
        used: bucket.used,
        without: without
            .iter()
            .map(|line| v1::QuotaWithoutNode {
                node_id: line.node,
                at_once: line.at_once,
                later: line.later,
            })
            .collect(),
    }
}

/// What the audit trail keeps of a name.
fn named(name: Option<&v1::QuotaName>) -> Vec<(&'static str, String)> {
    let Some(name) = name else { return Vec::new() };
    let mut kept = vec![("scope", name.scope.clone()), ("covers", name.covers.clone())];
    kept.extend(name.holder.clone().map(|holder| ("holder", holder)));
    kept
}

fn limits(request: &v1::SetQuotaRequest) -> String {
    let limits = request.limits.iter().map(|l| format!("{} a {}", l.limit, l.window));
    limits.collect::<Vec<_>>().join(", ")
}

#[tonic::async_trait]
impl QuotaService for QuotaDoor {
    async fn set_quota(
        &self,
        request: Request<v1::SetQuotaRequest>,
    ) -> Answer<v1::SetQuotaResponse> {
        let mut kept = named(request.get_ref().name.as_ref());
        kept.push(("limits", limits(request.get_ref())));
        let call = self.0.begin(&request, ("SetQuota", true), kept).await?;
        let set = match quota(request.into_inner()) {
            Ok(quota) => self.0.kms.put_quota(&call.caller, quota, call.patience).await,
            Err(error) => Err(error),
        };
        call.end(set.map(|quota| v1::SetQuotaResponse { quota: Some(told(&quota)) })).await
    }

    async fn delete_quota(
        &self,
        request: Request<v1::DeleteQuotaRequest>,
    ) -> Answer<v1::DeleteQuotaResponse> {
        let kept = named(request.get_ref().name.as_ref());
        let call = self.0.begin(&request, ("DeleteQuota", true), kept).await?;
        let deleted = match name(request.into_inner().name) {
            Ok(name) => self.0.kms.delete_quota(&call.caller, name, call.patience).await,
            Err(error) => Err(error),
        };
        call.end(deleted.map(|()| v1::DeleteQuotaResponse {})).await
    }

    async fn list_quotas(
        &self,
        request: Request<v1::ListQuotasRequest>,
    ) -> Answer<v1::ListQuotasResponse> {
        let call = self.0.begin(&request, ("ListQuotas", false), Vec::new()).await?;
        let listed = self.0.kms.list_quotas(&call.caller, call.patience).await;
        call.end(
            listed
                .map(|quotas| v1::ListQuotasResponse { quotas: quotas.iter().map(told).collect() }),
        )
        .await
    }

    async fn apply_quota_profile(
        &self,
        request: Request<v1::ApplyQuotaProfileRequest>,
    ) -> Answer<v1::ApplyQuotaProfileResponse> {
        let profile = request.get_ref().profile.clone();
        let kept = vec![("profile", profile.clone())];
        let call = self.0.begin(&request, ("ApplyQuotaProfile", true), kept).await?;
        let applied = self.0.kms.apply_quota_profile(&call.caller, &profile, call.patience).await;
        call.end(applied.map(|count| v1::ApplyQuotaProfileResponse {
            quotas: u32::try_from(count).unwrap_or(u32::MAX),
        }))
        .await
    }

    async fn list_quota_profiles(
        &self,
        request: Request<v1::ListQuotaProfilesRequest>,
    ) -> Answer<v1::ListQuotaProfilesResponse> {
        let call = self.0.begin(&request, ("ListQuotaProfiles", false), Vec::new()).await?;
        // The same for everybody, but who asks must be an operator.
        let listed = self.0.kms.list_quotas(&call.caller, call.patience).await.map(|_| {
            let profiles = Profile::all().map(|profile| v1::QuotaProfile {
                name: profile.name,
                symmetric_per_second: profile.symmetric,
                as_of: PROFILES_AS_OF.to_owned(),
            });
            v1::ListQuotaProfilesResponse { profiles: profiles.collect() }
        });
        call.end(listed).await
    }

    async fn get_quota_usage(
        &self,
        request: Request<v1::GetQuotaUsageRequest>,
    ) -> Answer<v1::GetQuotaUsageResponse> {
        let call = self.0.begin(&request, ("GetQuotaUsage", false), Vec::new()).await?;
        let usage = self.0.kms.quota_usage(&call.caller, call.patience).await;
        call.end(usage.map(|QuotaUsage { buckets, missing }| v1::GetQuotaUsageResponse {
            buckets: buckets.iter().map(told_usage).collect(),
            missing_nodes: missing,
        }))
        .await
    }
}
