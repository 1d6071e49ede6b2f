//! `keyward.v1.KeyService`: translation into a [`Call`](keyward_service::Call) and back, nothing else. (What uses a key comes
//! the short way as a rule: `unary.rs`.)

use std::sync::Arc;

use keyward_env::RealEnv;
use keyward_model::{ErrorCode, KeyState, KmsError};
use keyward_proto::v1;
use keyward_proto::v1::key_service_server::KeyService;
use keyward_service::api::{self, AliasEntry, KeyMetadata, RotationEntry, Tag};
use keyward_service::{Handler, Kms, Response as Reply, Stack};
use tonic::{Request, Response, Status};

use crate::common::{answer, call, caller, date, trace, turned_away};
use crate::uses::{Asked, Told};

/// The one algorithm of the keys that there are.
pub(crate) const ALGORITHM: &str = "SYMMETRIC_DEFAULT";

/// The key service on one node.
pub struct KeyDoor {
    pub(crate) stack: Stack<RealEnv>,
    pub(crate) kms: Arc<Kms<RealEnv>>,
}

impl KeyDoor {
    async fn run<In, Out>(
        &self,
        request: Request<In>,
        translate: impl FnOnce(In) -> api::Request,
        shape: impl FnOnce(Reply) -> Option<Out>,
    ) -> Result<Response<Out>, Status> {
        let id = self.kms.audit().next_request_id();
        let caller = match caller(&request) {
            Ok(caller) => caller,
            Err(refusal) => {
                let trace = trace(&request, id);
                let name = translate(request.into_inner()).operation().name();
                return Err(Box::pin(turned_away(&self.kms, name, &trace, id, refusal)).await);
            }
        };
        let (metadata, extensions, asked) = request.into_parts();
        let request = Request::from_parts(metadata, extensions, ());
        let call = call(&request, caller, translate(asked), id);
        let reply = match self.stack.handle(call).await {
            Ok(reply) => reply,
            Err(refusal) => return answer(Err(refusal), id),
        };
        let odd =
            || KmsError::new(ErrorCode::KMSInternalException, "an answer of another operation");
        answer(shape(reply).ok_or_else(odd), id)
    }
}

fn tags_in(tags: Vec<v1::Tag>) -> Vec<Tag> {
    tags.into_iter().map(|tag| Tag { key: tag.tag_key, value: tag.tag_value }).collect()
}

fn metadata(key: KeyMetadata) -> v1::KeyMetadata {
    let own = key.arn.clone();
    v1::KeyMetadata {
        aws_account_id: key.account,
        key_id: key.key_id,
        arn: key.arn,
        creation_date: Some(date(key.creation_date)),
        enabled: key.state == KeyState::Enabled,
        description: key.description,
        key_usage: "ENCRYPT_DECRYPT".to_owned(),
        key_state: key.state.name().to_owned(),
        deletion_date: key.deletion_date.map(date),
        origin: "AWS_KMS".to_owned(),
        key_manager: "CUSTOMER".to_owned(),
        key_spec: ALGORITHM.to_owned(),
        customer_master_key_spec: ALGORITHM.to_owned(),
        encryption_algorithms: vec![ALGORITHM.to_owned()],
        multi_region: key.multi_region.is_some(),
        current_key_material_id: key.current_key_material_id,
        pending_deletion_window_in_days: key
            .pending_window_days
            .map(|days| i32::try_from(days).unwrap_or(i32::MAX)),
        multi_region_configuration: key.multi_region.map(|of| {
            let one = |(arn, region): (String, String)| v1::MultiRegionKey { arn, region };
            let primary = of.primary.0 == own;
            v1::MultiRegionConfiguration {
                multi_region_key_type: if primary { "PRIMARY" } else { "REPLICA" }.to_owned(),
                primary_key: Some(one(of.primary)),
                replica_keys: of.replicas.into_iter().map(one).collect(),
            }
        }),
    }
}

fn alias(alias: AliasEntry) -> v1::AliasListEntry {
    v1::AliasListEntry {
        alias_name: alias.name,
        alias_arn: alias.arn,
        target_key_id: alias.target_key_id,
        creation_date: Some(date(alias.creation_date)),
        last_updated_date: Some(date(alias.last_updated_date)),
    }
}

fn rotation(entry: RotationEntry) -> v1::RotationsListEntry {
    v1::RotationsListEntry {
        key_id: entry.key_id,
        key_material_id: entry.key_material_id,
        key_material_state: entry.key_material_state.to_owned(),
        rotation_date: entry.rotation_date.map(date),
        rotation_type: entry.rotation_type.map(str::to_owned),
    }
}

/// The answer for the one shape of reply that an operation has.
macro_rules! when {
    ($pattern:pat => $answer:expr) => {
        |reply| match reply {
            $pattern => Some($answer),
            _ => None,
        }
    };
}

#[tonic::async_trait]
impl KeyService for KeyDoor {
    async fn create_key(
        &self,
        request: Request<v1::CreateKeyRequest>,
    ) -> Result<Response<v1::CreateKeyResponse>, Status> {
        self.run(
            request,
            |r| {
                api::CreateKey {
                    description: r.description,
                    key_usage: r.key_usage,
                    key_spec: r.key_spec,
                    origin: r.origin,
                    tags: tags_in(r.tags),
                    multi_region: r.multi_region,
                    policy: r.policy,
                }
                .into()
            },
            when!(Reply::Key(key) => v1::CreateKeyResponse { key_metadata: Some(metadata(*key)) }),
        )
        .await
    }

    async fn describe_key(
        &self,
        request: Request<v1::DescribeKeyRequest>,
    ) -> Result<Response<v1::DescribeKeyResponse>, Status> {
        self.run(request, |r| api::DescribeKey { key_id: r.key_id }.into(), when!(Reply::Key(key) => v1::DescribeKeyResponse { key_metadata: Some(metadata(*key)) })).await
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        self.run(
            request,
            |r| api::ListKeys { limit: r.limit, marker: r.marker }.into(),
            when!(Reply::Keys(page) => v1::ListKeysResponse {
                truncated: page.next_marker.is_some(),
                next_marker: page.next_marker,
                keys: page
                    .items
                    .into_iter()
                    .map(|(key_id, key_arn)| v1::KeyListEntry { key_id, key_arn })
                    .collect(),
            }),
        )
        .await
    }

    async fn update_key_description(
        &self,
        request: Request<v1::UpdateKeyDescriptionRequest>,
    ) -> Result<Response<v1::UpdateKeyDescriptionResponse>, Status> {
        self.run(
            request,
            |r| api::UpdateKeyDescription { key_id: r.key_id, description: r.description }.into(),
            when!(Reply::Done => v1::UpdateKeyDescriptionResponse {}),
        )
        .await
    }

    async fn enable_key(
        &self,
        request: Request<v1::EnableKeyRequest>,
    ) -> Result<Response<v1::EnableKeyResponse>, Status> {
        self.run(
            request,
            |r| api::EnableKey { key_id: r.key_id }.into(),
            when!(Reply::Done => v1::EnableKeyResponse {}),
        )
        .await
    }

    async fn disable_key(
        &self,
        request: Request<v1::DisableKeyRequest>,
    ) -> Result<Response<v1::DisableKeyResponse>, Status> {
        self.run(
            request,
            |r| api::DisableKey { key_id: r.key_id }.into(),
            when!(Reply::Done => v1::DisableKeyResponse {}),
        )
        .await
    }

    async fn schedule_key_deletion(
        &self,
        request: Request<v1::ScheduleKeyDeletionRequest>,
    ) -> Result<Response<v1::ScheduleKeyDeletionResponse>, Status> {
        self.run(request, |r| api::ScheduleKeyDeletion {
                key_id: r.key_id,
                pending_window_in_days: r.pending_window_in_days,
            }.into(), when!(Reply::DeletionScheduled { key_arn, deletion_date, window_days } => v1::ScheduleKeyDeletionResponse {
                key_id: key_arn,
                key_state: match deletion_date {
                    Some(_) => KeyState::PendingDeletion,
                    None => KeyState::PendingReplicaDeletion,
                }.name().to_owned(),
                deletion_date: deletion_date.map(date),
                pending_window_in_days: window_days,
            })).await
    }

    async fn cancel_key_deletion(
        &self,
        request: Request<v1::CancelKeyDeletionRequest>,
    ) -> Result<Response<v1::CancelKeyDeletionResponse>, Status> {
        self.run(
            request,
            |r| api::CancelKeyDeletion { key_id: r.key_id }.into(),
            when!(Reply::KeyArn(key_id) => v1::CancelKeyDeletionResponse { key_id }),
        )
        .await
    }

    async fn get_key_deletion_status(
        &self,
        request: Request<v1::GetKeyDeletionStatusRequest>,
    ) -> Result<Response<v1::GetKeyDeletionStatusResponse>, Status> {
        self.run(
            request,
            |r| api::GetKeyDeletionStatus { key_id: r.key_id }.into(),
            when!(Reply::DeletionStatus(status) => v1::GetKeyDeletionStatusResponse {
                key_id: status.key_arn,
                key_state: status.state.map_or("Deleted", KeyState::name).to_owned(),
                deletion_date: status.deletion_date.map(date),
                deleted_date: status.deleted.map(date),
                nodes: status
                    .nodes
                    .into_iter()
                    .map(|node| v1::KeyDeletionNode {
                        node_id: node.node,
                        address: node.address,
                        reachable: node.reachable,
                        gone: node.gone,
                    })
                    .collect(),
            }),
        )
        .await
    }

    async fn replicate_key(
        &self,
        request: Request<v1::ReplicateKeyRequest>,
    ) -> Result<Response<v1::ReplicateKeyResponse>, Status> {
        self.run(
            request,
            |r| {
                api::ReplicateKey {
                    key_id: r.key_id,
                    replica_region: r.replica_region,
                    description: r.description,
                    tags: tags_in(r.tags),
                    policy: r.policy,
                }
                .into()
            },
            when!(Reply::Replicated(key) => v1::ReplicateKeyResponse {
                replica_key_metadata: Some(metadata(*key)),
            }),
        )
        .await
    }

    async fn update_primary_region(
        &self,
        request: Request<v1::UpdatePrimaryRegionRequest>,
    ) -> Result<Response<v1::UpdatePrimaryRegionResponse>, Status> {
        self.run(
            request,
            |r| {
                api::UpdatePrimaryRegion { key_id: r.key_id, primary_region: r.primary_region }
                    .into()
            },
            when!(Reply::Done => v1::UpdatePrimaryRegionResponse {}),
        )
        .await
    }

    async fn get_key_replication_status(
        &self,
        request: Request<v1::GetKeyReplicationStatusRequest>,
    ) -> Result<Response<v1::GetKeyReplicationStatusResponse>, Status> {
        self.run(
            request,
            |r| api::GetKeyReplicationStatus { key_id: r.key_id }.into(),
            when!(Reply::Replication(status) => v1::GetKeyReplicationStatusResponse {
                key_id: status.key_arn,
                epoch: status.epoch,
                primary_region: status.primary_region,
                offered_to: status.offered_to,
                rotation_waits: status.rotation_waits,
                regions: status
                    .regions
                    .into_iter()
                    .map(|one| v1::KeyReplica {
                        region: one.region,
                        arn: one.arn,
                        primary: one.primary,
                        being_made: one.being_made,
                        up_to_date: one.up_to_date,
                        behind_milliseconds: one.behind_ms,
                        endpoints: one.endpoints,
                        ca_certificate: one.ca_certificate,
                    })
                    .collect(),
                change: status.change,
            }),
        )
        .await
    }

    async fn wait_for_change(
        &self,
        request: Request<v1::WaitForChangeRequest>,
    ) -> Result<Response<v1::WaitForChangeResponse>, Status> {
        self.run(
            request,
            |r| api::WaitForChange { change: r.change }.into(),
            when!(Reply::Done => v1::WaitForChangeResponse {}),
        )
        .await
    }

    async fn create_alias(
        &self,
        request: Request<v1::CreateAliasRequest>,
    ) -> Result<Response<v1::CreateAliasResponse>, Status> {
        self.run(
            request,
            |r| {
                api::CreateAlias { alias_name: r.alias_name, target_key_id: r.target_key_id }.into()
            },
            when!(Reply::Done => v1::CreateAliasResponse {}),
        )
        .await
    }

    async fn update_alias(
        &self,
        request: Request<v1::UpdateAliasRequest>,
    ) -> Result<Response<v1::UpdateAliasResponse>, Status> {
        self.run(
            request,
            |r| {
                api::UpdateAlias { alias_name: r.alias_name, target_key_id: r.target_key_id }.into()
            },
            when!(Reply::Done => v1::UpdateAliasResponse {}),
        )
        .await
    }

    async fn delete_alias(
        &self,
        request: Request<v1::DeleteAliasRequest>,
    ) -> Result<Response<v1::DeleteAliasResponse>, Status> {
        self.run(
            request,
            |r| api::DeleteAlias { alias_name: r.alias_name }.into(),
            when!(Reply::Done => v1::DeleteAliasResponse {}),
        )
        .await
    }

    async fn list_aliases(
        &self,
        request: Request<v1::ListAliasesRequest>,
    ) -> Result<Response<v1::ListAliasesResponse>, Status> {
        self.run(
            request,
            |r| api::ListAliases { key_id: r.key_id, limit: r.limit, marker: r.marker }.into(),
            when!(Reply::Aliases(page) => v1::ListAliasesResponse {
                truncated: page.next_marker.is_some(),
                next_marker: page.next_marker,
                aliases: page.items.into_iter().map(alias).collect(),
            }),
        )
        .await
    }

    async fn tag_resource(
        &self,
        request: Request<v1::TagResourceRequest>,
    ) -> Result<Response<v1::TagResourceResponse>, Status> {
        self.run(
            request,
            |r| api::TagResource { key_id: r.key_id, tags: tags_in(r.tags) }.into(),
            when!(Reply::Done => v1::TagResourceResponse {}),
        )
        .await
    }

    async fn untag_resource(
        &self,
        request: Request<v1::UntagResourceRequest>,
    ) -> Result<Response<v1::UntagResourceResponse>, Status> {
        self.run(
            request,
            |r| api::UntagResource { key_id: r.key_id, tag_keys: r.tag_keys }.into(),
            when!(Reply::Done => v1::UntagResourceResponse {}),
        )
        .await
    }

    async fn list_resource_tags(
        &self,
        request: Request<v1::ListResourceTagsRequest>,
    ) -> Result<Response<v1::ListResourceTagsResponse>, Status> {
        self.run(
            request,
            |r| api::ListResourceTags { key_id: r.key_id, limit: r.limit, marker: r.marker }.into(),
            when!(Reply::Tags(page) => v1::ListResourceTagsResponse {
                truncated: page.next_marker.is_some(),
                next_marker: page.next_marker,
                tags: page
                    .items
                    .into_iter()
                    .map(|tag| v1::Tag { tag_key: tag.key, tag_value: tag.value })
                    .collect(),
            }),
        )
        .await
    }

    async fn enable_key_rotation(
        &self,
        request: Request<v1::EnableKeyRotationRequest>,
    ) -> Result<Response<v1::EnableKeyRotationResponse>, Status> {
        self.run(
            request,
            |r| {
                api::EnableKeyRotation {
                    key_id: r.key_id,
                    rotation_period_in_days: r.rotation_period_in_days,
                }
                .into()
            },
            when!(Reply::Done => v1::EnableKeyRotationResponse {}),
        )
        .await
    }

    async fn disable_key_rotation(
        &self,
        request: Request<v1::DisableKeyRotationRequest>,
    ) -> Result<Response<v1::DisableKeyRotationResponse>, Status> {
        self.run(
            request,
            |r| api::DisableKeyRotation { key_id: r.key_id }.into(),
            when!(Reply::Done => v1::DisableKeyRotationResponse {}),
        )
        .await
    }

    async fn get_key_rotation_status(
        &self,
        request: Request<v1::GetKeyRotationStatusRequest>,
    ) -> Result<Response<v1::GetKeyRotationStatusResponse>, Status> {
        self.run(request, |r| api::GetKeyRotationStatus { key_id: r.key_id }.into(), when!(Reply::RotationStatus { key_id, enabled, period_days, next, on_demand_started } => v1::GetKeyRotationStatusResponse {
                key_id,
                key_rotation_enabled: enabled,
                rotation_period_in_days: period_days,
                next_rotation_date: next.map(date),
                on_demand_rotation_start_date: on_demand_started.map(date),
            })).await
    }

    async fn rotate_key_on_demand(
        &self,
        request: Request<v1::RotateKeyOnDemandRequest>,
    ) -> Result<Response<v1::RotateKeyOnDemandResponse>, Status> {
        self.run(
            request,
            |r| api::RotateKeyOnDemand { key_id: r.key_id }.into(),
            when!(Reply::KeyArn(key_id) => v1::RotateKeyOnDemandResponse { key_id }),
        )
        .await
    }

    async fn list_key_rotations(
        &self,
        request: Request<v1::ListKeyRotationsRequest>,
    ) -> Result<Response<v1::ListKeyRotationsResponse>, Status> {
        self.run(
            request,
            |r| {
                api::ListKeyRotations {
                    key_id: r.key_id,
                    include_key_material: r.include_key_material,
                    limit: r.limit,
                    marker: r.marker,
                }
                .into()
            },
            when!(Reply::Rotations(page) => v1::ListKeyRotationsResponse {
                truncated: page.next_marker.is_some(),
                next_marker: page.next_marker,
                rotations: page.items.into_iter().map(rotation).collect(),
            }),
        )
        .await
    }

    async fn encrypt(
        &self,
        request: Request<v1::EncryptRequest>,
    ) -> Result<Response<v1::EncryptResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }

    async fn decrypt(
        &self,
        request: Request<v1::DecryptRequest>,
    ) -> Result<Response<v1::DecryptResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }

    async fn re_encrypt(
        &self,
        request: Request<v1::ReEncryptRequest>,
    ) -> Result<Response<v1::ReEncryptResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }

    async fn generate_data_key(
        &self,
        request: Request<v1::GenerateDataKeyRequest>,
    ) -> Result<Response<v1::GenerateDataKeyResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }

    async fn generate_data_key_without_plaintext(
        &self,
        request: Request<v1::GenerateDataKeyWithoutPlaintextRequest>,
    ) -> Result<Response<v1::GenerateDataKeyWithoutPlaintextResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }

    async fn generate_random(
        &self,
        request: Request<v1::GenerateRandomRequest>,
    ) -> Result<Response<v1::GenerateRandomResponse>, Status> {
        self.run(request, Asked::asked, Told::told).await
    }
}
