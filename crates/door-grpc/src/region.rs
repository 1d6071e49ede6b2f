//! `keyward.v1.RegionService`: translation, nothing else.

use std::sync::Arc;

use keyward_model::KmsError;
use keyward_proto::v1;
use keyward_proto::v1::region_service_server::RegionService;
use keyward_service::{Decision, RegionsStatus, SeenLink};
use keyward_state::Reconciliation;
use tonic::Request;

use crate::common::{Answer, date};
use crate::operator::OperatorDoor;

/// Operator calls about other Regions.
pub(crate) struct RegionDoor(pub(crate) Arc<OperatorDoor>);

fn described(status: RegionsStatus) -> v1::DescribeRegionsResponse {
    let links =
        status.links.into_iter().map(|SeenLink { link, endpoints, primaries, has_change }| {
            v1::RegionLink {
                region: link.region.to_string(),
                endpoints,
                has_change,
                heard_milliseconds: link.heard_ms,
                pulled_milliseconds: link.pulled_ms,
                failing: link.failing,
                behind: link.behind,
                behind_milliseconds: link.behind_ms,
                unshipped: link.unshipped,
                unshipped_milliseconds: link.unshipped_ms,
                primaries,
            }
        });
    v1::DescribeRegionsResponse {
        region: status.region.to_string(),
        region_id: hex::encode(status.region_id),
        history: hex::encode(status.history),
        keys: status.keys,
        primaries: status.primaries,
        links: links.collect(),
        reconciliations: status.reconciliations,
        admitted: status.admitted,
    }
}

fn reconciliation(entry: &Reconciliation) -> v1::Reconciliation {
    let had = &entry.had;
    v1::Reconciliation {
        key_id: entry.key.to_string(),
        aws_account_id: entry.account.to_string(),
        epoch: had.version.epoch.number,
        epoch_region: had.version.epoch.region.to_string(),
        sequence: had.version.sequence,
        winner_epoch: entry.winner.epoch.number,
        winner_region: entry.winner.epoch.region.to_string(),
        winner_began: entry.base.as_ref().map(|base| base.sequence),
        key_material_id: had.waiting.unwrap_or(had.current).to_string(),
        rotation_enabled: had.rotation.enabled,
        rotation_period_in_days: had.rotation.period_days,
        regions: had.related.keys().map(ToString::to_string).collect(),
        noticed_date: Some(date(entry.noticed)),
    }
}

#[tonic::async_trait]
impl RegionService for RegionDoor {
    async fn get_region_card(
        &self,
        request: Request<v1::GetRegionCardRequest>,
    ) -> Answer<v1::GetRegionCardResponse> {
        let call = self.0.begin(&request, ("GetRegionCard", true), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let card = self.0.kms.region_card(&caller, patience).await;
        call.end(card.map(|card| v1::GetRegionCardResponse {
            region: card.region.to_string(),
            region_id: hex::encode(card.region_id),
            card: Some(v1::RegionCard {
                ca_certificate: card.ca_certificate,
                attestation: card.attestation,
                endpoints: card.endpoints,
            }),
        }))
        .await
    }

    async fn add_region(
        &self,
        request: Request<v1::AddRegionRequest>,
    ) -> Answer<v1::AddRegionResponse> {
        let card = request.get_ref().card.clone().unwrap_or_default();
        let parameters = vec![("endpoints", card.endpoints.join(","))];
        let call = self.0.begin(&request, ("AddRegion", true), parameters).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let added = self.0.kms.add_region(
            &caller,
            card.ca_certificate,
            &card.attestation,
            card.endpoints,
            patience,
        );
        let added = added.await;
        call.end(added.map(|(region, id)| v1::AddRegionResponse {
            region: region.to_string(),
            region_id: hex::encode(id),
        }))
        .await
    }

    async fn forget_region(
        &self,
        request: Request<v1::ForgetRegionRequest>,
    ) -> Answer<v1::ForgetRegionResponse> {
        let region = request.get_ref().region.clone();
        let parameters = vec![("region", region.clone())];
        let call = self.0.begin(&request, ("ForgetRegion", true), parameters).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let forgotten = self.0.kms.forget_region(&caller, &region, patience).await;
        call.end(forgotten.map(|()| v1::ForgetRegionResponse {})).await
    }

    async fn describe_regions(
        &self,
        request: Request<v1::DescribeRegionsRequest>,
    ) -> Answer<v1::DescribeRegionsResponse> {
        let call = self.0.begin(&request, ("DescribeRegions", false), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let change = request.into_inner().change;
        let status = self.0.kms.regions_status(&caller, change.as_deref(), patience).await;
        call.end(status.map(described)).await
    }

    async fn promote_region(
        &self,
        request: Request<v1::PromoteRegionRequest>,
    ) -> Answer<v1::PromoteRegionResponse> {
        let r = request.get_ref().clone();
        let parameters = vec![("lost", r.lost.clone()), ("force", r.force.to_string())];
        let call = self.0.begin(&request, ("PromoteRegion", true), parameters).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let keys = self.0.kms.promote_region(&caller, &r.lost, r.force, patience).await;
        call.end(keys.map(|keys| v1::PromoteRegionResponse { keys })).await
    }

    async fn fail_over_region(
        &self,
        request: Request<v1::FailOverRegionRequest>,
    ) -> Answer<v1::FailOverRegionResponse> {
        let to = request.get_ref().to.clone();
        let call =
            self.0.begin(&request, ("FailOverRegion", true), vec![("to", to.clone())]).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let keys = self.0.kms.fail_over(&caller, &to, patience).await;
        call.end(keys.map(|keys| v1::FailOverRegionResponse { keys })).await
    }

    async fn admit_region(
        &self,
        request: Request<v1::AdmitRegionRequest>,
    ) -> Answer<v1::AdmitRegionResponse> {
        let call = self.0.begin(&request, ("AdmitRegion", true), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let admitted = self.0.kms.admit_region(&caller, patience).await;
        call.end(admitted.map(|()| v1::AdmitRegionResponse {})).await
    }

    async fn list_reconciliations(
        &self,
        request: Request<v1::ListReconciliationsRequest>,
    ) -> Answer<v1::ListReconciliationsResponse> {
        let call = self.0.begin(&request, ("ListReconciliations", false), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let entries = self.0.kms.reconciliations(&caller, patience).await;
        call.end(entries.map(|entries| v1::ListReconciliationsResponse {
            reconciliations: entries.iter().map(|entry| reconciliation(entry)).collect(),
        }))
        .await
    }

    async fn reconcile(
        &self,
        request: Request<v1::ReconcileRequest>,
    ) -> Answer<v1::ReconcileResponse> {
        let r = request.get_ref().clone();
        let parameters = vec![("keyId", r.key_id.clone()), ("decision", r.decision.clone())];
        let call = self.0.begin(&request, ("Reconcile", true), parameters).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let decision = match r.decision.as_str() {
            "discard" => Ok(Decision::Discard),
            "apply" => Ok(Decision::Apply),
            "separate" => Ok(Decision::Separate),
            other => Err(KmsError::constraint_on(
                "decision",
                other,
                "Member must satisfy enum value set: [discard, apply, separate]",
            )),
        };
        let done = match decision {
            Ok(decision) => self.0.kms.reconcile(&caller, &r.key_id, decision, patience).await,
            Err(refusal) => Err(refusal),
        };
        call.end(
            done.map(|made| v1::ReconcileResponse {
                separate_key_id: made.map(|key| key.to_string()),
            }),
        )
        .await
    }
}
