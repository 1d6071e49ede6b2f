//! `keyward.v1.OperatorService`: translation, nothing else.

use std::sync::Arc;

use keyward_env::RealEnv;
use keyward_model::{KmsError, Region};
use keyward_proto::v1;
use keyward_proto::v1::operator_service_server::OperatorService;
use keyward_service::{FoundingRequest, Kms, RootCommand, RootReply};
use keyward_state::{Principal, Purpose, Timers};
use tonic::{Request, Response, Status};

use crate::common::{caller, date, patience};
use crate::errors::status;

/// How long an invitation holds when nobody says.
const INVITATION_SECONDS: u32 = 900;

/// Operator calls on one node.
pub struct OperatorDoor {
    pub(crate) kms: Arc<Kms<RealEnv>>,
    /// The Region that this node is configured for.
    pub(crate) region: Region,
    /// The timers that it is configured with.
    pub(crate) timers: Timers,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, keyward_model::KmsError>) -> Answer<T> {
    result.map(Response::new).map_err(|error| status(&error))
}

fn root_id(text: &str) -> Result<keyward_hsm::RootId, Status> {
    text.parse().map_err(|_| {
        status(&KmsError::validation(format!(
            "'{text}' is not a root id: expected one as `keyward root list` shows it"
        )))
    })
}

/// A refusal, or a reply to another command.
fn odd<T>(result: Result<RootReply, KmsError>) -> Answer<T> {
    let error = result.err().unwrap_or_else(|| {
        KmsError::new(
            keyward_model::ErrorCode::KMSInternalException,
            "an answer to another command",
        )
    });
    Err(status(&error))
}

fn principal(principal: &Principal) -> v1::Principal {
    let kinds = principal.kinds;
    let named = [
        (kinds.operator, "operator"),
        (kinds.administrator, "administrator"),
        (kinds.user, "user"),
    ];
    v1::Principal {
        arn: principal.arn.to_string(),
        kinds: named.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned()).collect(),
        disabled: principal.disabled,
        creation_date: Some(date(principal.created)),
        certificates: principal
            .certificates
            .iter()
            .map(|(serial, record)| v1::Certificate {
                serial_number: hex::encode(serial),
                not_after: Some(date(record.not_after)),
                revoked: record.revoked,
            })
            .collect(),
    }
}

#[tonic::async_trait]
impl OperatorService for OperatorDoor {
    async fn found_region(
        &self,
        request: Request<v1::FoundRegionRequest>,
    ) -> Answer<v1::FoundRegionResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let request = request.into_inner();
        let operator = request.operator_arn.parse().map_err(|e| {
            status(&keyward_model::KmsError::validation(format!("OperatorArn is {e}")))
        })?;
        let purpose = match request.purpose.as_deref() {
            None | Some("production") => Purpose::Production,
            Some("dev") => Purpose::Dev,
            Some(other) => {
                return Err(status(&keyward_model::KmsError::constraint_on(
                    "purpose",
                    other,
                    "Member must satisfy enum value set: [production, dev]",
                )));
            }
        };
        let founding = FoundingRequest {
            purpose,
            region: self.region.clone(),
            timers: self.timers,
            operator,
            ca_certificate: request.ca_certificate,
            ca_private_key: zeroize::Zeroizing::new(request.ca_private_key),
        };
        let founded = self.kms.found(&caller, founding, patience).await;
        answer(founded.map(|region_id| v1::FoundRegionResponse { region_id }))
    }

    async fn cluster_status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Answer<v1::ClusterStatusResponse> {
        let status = self.kms.cluster_status(&*caller(&request)?).await;
        answer(status.map(|cluster| {
            v1::ClusterStatusResponse {
                region: cluster.region,
                region_id: cluster.region_id,
                leader_id: cluster.leader,
                nodes: cluster
                    .nodes
                    .into_iter()
                    .map(|member| {
                        let reachable = member.status.is_some();
                        let status = member.status.unwrap_or_default();
                        v1::NodeStatus {
                            node_id: member.node,
                            address: member.address,
                            role: if member.voter { "voter" } else { "learner" }.to_owned(),
                            leader: cluster.leader == Some(member.node),
                            reachable,
                            term: status.term,
                            last_log: status.last_log,
                            committed: status.committed,
                            applied: status.applied,
                            lease: status.lease,
                            lease_ms: status.lease_ms,
                            fence: status.fence,
                            root_ids: member.roots,
                            version: status.version,
                            clock_off_ms: member.clock_off_ms,
                        }
                    })
                    .collect(),
                keys: cluster.keys as u64,
                active_domain_key_id: cluster.active_domain_key,
                domain_keys: u32::try_from(cluster.domain_keys).unwrap_or(u32::MAX),
                purpose: cluster.purpose.name().to_owned(),
                time: Some(date(cluster.time)),
                clock_offset_ms: cluster.clock_offset_ms,
            }
        }))
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Answer<v1::InviteResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let seconds = request.into_inner().valid_seconds.unwrap_or(INVITATION_SECONDS);
        let invited = self.kms.invite(&caller, i64::from(seconds) * 1000, patience).await;
        answer(invited.map(|invited| v1::InviteResponse {
            region: invited.region,
            node_id: invited.node,
            expires: Some(date(invited.expires)),
            endpoints: invited.endpoints,
            ca_certificate: invited.authority,
            certificate: invited.certificate,
            private_key: invited.private_key.to_vec(),
        }))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Answer<v1::AddNodeResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let added = self.kms.add_node(&caller, r.node_id, r.address, r.learner, patience).await;
        answer(added.map(|()| v1::AddNodeResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let removed = self.kms.remove_node(&caller, request.into_inner().node_id, patience).await;
        answer(removed.map(|()| v1::RemoveNodeResponse {}))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Answer<v1::TransferLeadershipResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let to = request.into_inner().to;
        let transferred = self.kms.transfer_leadership(&caller, to, patience).await;
        answer(transferred.map(|leader_id| v1::TransferLeadershipResponse { leader_id }))
    }

    async fn rotate_domain_key(
        &self,
        request: Request<v1::RotateDomainKeyRequest>,
    ) -> Answer<v1::RotateDomainKeyResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let rotated = self.kms.rotate_domain_key(&caller, patience).await;
        answer(rotated.map(|domain_key_id| v1::RotateDomainKeyResponse { domain_key_id }))
    }

    async fn list_roots(
        &self,
        request: Request<v1::ListRootsRequest>,
    ) -> Answer<v1::ListRootsResponse> {
        let listed = self.kms.all_roots(&*caller(&request)?).await;
        answer(listed.map(|nodes| {
            let silent = nodes.iter().filter(|(_, roots)| roots.is_none()).map(|(n, _)| *n);
            v1::ListRootsResponse {
                silent: silent.collect(),
                roots: nodes
                    .iter()
                    .flat_map(|(node, roots)| roots.iter().flatten().map(move |root| (*node, root)))
                    .map(|(node, root)| v1::Root {
                        node_id: node,
                        root_id: root.id.to_string(),
                        place: root.place.clone(),
                        health: root.health.clone(),
                        reason: root.reason.clone(),
                        registered: root.registered,
                        copies: root.copies,
                        domain_keys: root.domain_keys,
                    })
                    .collect(),
            }
        }))
    }

    async fn add_root(&self, request: Request<v1::AddRootRequest>) -> Answer<v1::AddRootResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let command = RootCommand::Add { spec: r.spec };
        match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Added(id)) => {
                Ok(Response::new(v1::AddRootResponse { root_id: id.to_string() }))
            }
            other => odd(other),
        }
    }

    async fn remove_root(
        &self,
        request: Request<v1::RemoveRootRequest>,
    ) -> Answer<v1::RemoveRootResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let command = RootCommand::Remove { root: root_id(&r.root_id)? };
        match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Done) => Ok(Response::new(v1::RemoveRootResponse {})),
            other => odd(other),
        }
    }

    async fn offer_share(
        &self,
        request: Request<v1::OfferShareRequest>,
    ) -> Answer<v1::OfferShareResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let command = RootCommand::Offer { root: root_id(&r.root_id)?, share: r.share };
        match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Progress(given, needed)) => Ok(Response::new(v1::OfferShareResponse {
                given: u32::from(given),
                needed: u32::from(needed),
            })),
            other => odd(other),
        }
    }

    async fn take_share(
        &self,
        request: Request<v1::TakeShareRequest>,
    ) -> Answer<v1::TakeShareResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let command = RootCommand::NextShare { root: root_id(&r.root_id)? };
        match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Share(index, share, left)) => Ok(Response::new(v1::TakeShareResponse {
                index: u32::from(index),
                share,
                left: u32::from(left),
            })),
            other => odd(other),
        }
    }

    async fn advance_clock(
        &self,
        request: Request<v1::AdvanceClockRequest>,
    ) -> Answer<v1::AdvanceClockResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let milliseconds = request.into_inner().milliseconds;
        let moved = self.kms.advance_clock(&caller, milliseconds, patience).await;
        answer(moved.map(|offset| v1::AdvanceClockResponse { offset_milliseconds: offset }))
    }

    async fn create_principal(
        &self,
        request: Request<v1::CreatePrincipalRequest>,
    ) -> Answer<v1::CreatePrincipalResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let created = self
            .kms
            .create_principal(
                &caller,
                &r.arn,
                &r.kinds,
                r.certificate_signing_request.as_deref(),
                r.validity_in_days,
                patience,
            )
            .await;
        answer(created.map(|(created, certificate)| v1::CreatePrincipalResponse {
            principal: Some(principal(&created)),
            certificate,
        }))
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Answer<v1::IssueCertificateResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let signing_request = &r.certificate_signing_request;
        let issued = self
            .kms
            .issue_certificate(&caller, &r.arn, signing_request, r.validity_in_days, patience)
            .await;
        answer(issued.map(|issued| v1::IssueCertificateResponse {
            serial_number: hex::encode(&issued.serial),
            certificate: issued.certificate,
        }))
    }

    async fn list_principals(
        &self,
        request: Request<v1::ListPrincipalsRequest>,
    ) -> Answer<v1::ListPrincipalsResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let listed =
            self.kms.list_principals(&caller, r.limit, r.marker.as_deref(), patience).await;
        answer(listed.map(|page| v1::ListPrincipalsResponse {
            principals: page.items.iter().map(|p| principal(p)).collect(),
            truncated: page.next_marker.is_some(),
            next_marker: page.next_marker,
        }))
    }

    async fn disable_principal(
        &self,
        request: Request<v1::DisablePrincipalRequest>,
    ) -> Answer<v1::DisablePrincipalResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let arn = request.into_inner().arn;
        let done = self.kms.set_principal_disabled(&caller, &arn, true, patience).await;
        answer(done.map(|()| v1::DisablePrincipalResponse {}))
    }

    async fn enable_principal(
        &self,
        request: Request<v1::EnablePrincipalRequest>,
    ) -> Answer<v1::EnablePrincipalResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let arn = request.into_inner().arn;
        let done = self.kms.set_principal_disabled(&caller, &arn, false, patience).await;
        answer(done.map(|()| v1::EnablePrincipalResponse {}))
    }

    async fn revoke_certificate(
        &self,
        request: Request<v1::RevokeCertificateRequest>,
    ) -> Answer<v1::RevokeCertificateResponse> {
        let (caller, patience) = (caller(&request)?, patience(&request));
        let r = request.into_inner();
        let done = self.kms.revoke_certificate(&caller, &r.arn, &r.serial_number, patience).await;
        answer(done.map(|()| v1::RevokeCertificateResponse {}))
    }
}
