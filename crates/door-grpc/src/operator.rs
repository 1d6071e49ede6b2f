//! `keyward.v1.OperatorService`: translation, nothing else.

use std::sync::Arc;
use std::time::Duration;

use keyward_env::RealEnv;
use keyward_model::{KmsError, Region};
use keyward_proto::v1;
use keyward_proto::v1::operator_service_server::OperatorService;
use keyward_service::{
    Caller, FoundingRequest, Kms, RootCommand, RootReply, SeenAuthority, Trace, fingerprint,
};
use keyward_state::{Principal, Purpose, Timers};
use tonic::{Request, Status};

use crate::common::{Answer, answer, caller, date, patience, trace};
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

/// What the audit trail keeps of a request's parameters.
pub(crate) type Parameters = Vec<(&'static str, String)>;

/// An operator's call under way.
pub(crate) struct Begun<'a> {
    door: &'a OperatorDoor,
    pub(crate) caller: Arc<Caller>,
    pub(crate) patience: Duration,
    name: &'static str,
    changes: bool,
    trace: Trace,
    parameters: Parameters,
}

impl OperatorDoor {
    /// Begins a call: refused where the caller is nobody, or where nothing could be recorded.
    pub(crate) async fn begin<T>(
        &self,
        request: &Request<T>,
        (name, changes): (&'static str, bool),
        parameters: Parameters,
    ) -> Result<Begun<'_>, Status> {
        let audit = self.kms.audit();
        let trace = trace(request, audit.next_request_id());
        audit.check().map_err(status)?;
        match caller(request) {
            Ok(caller) => Ok(Begun {
                door: self,
                caller,
                patience: patience(request),
                name,
                changes,
                trace,
                parameters,
            }),
            Err(refusal) => {
                let told = audit.other_call(
                    self.kms.node().env(),
                    name,
                    changes,
                    true,
                    None,
                    &trace,
                    &parameters,
                    Some(&refusal),
                );
                Err(status(told.await.err().unwrap_or(refusal)))
            }
        }
    }
}

impl OperatorDoor {
    fn founding(&self, request: v1::FoundRegionRequest) -> Result<FoundingRequest, KmsError> {
        let operator = request
            .operator_arn
            .parse()
            .map_err(|e| KmsError::validation(format!("OperatorArn is {e}")))?;
        let purpose = match request.purpose.as_deref() {
            None | Some("production") => Purpose::Production,
            Some("dev") => Purpose::Dev,
            Some(other) => {
                return Err(KmsError::constraint_on(
                    "purpose",
                    other,
                    "Member must satisfy enum value set: [production, dev]",
                ));
            }
        };
        Ok(FoundingRequest {
            region: self.region.clone(),
            timers: self.timers,
            purpose,
            operator,
            ca_certificate: request.ca_certificate,
            ca_private_key: zeroize::Zeroizing::new(request.ca_private_key),
            outside_authorities: request.outside_authorities,
        })
    }
}

impl Begun<'_> {
    /// Puts the call on record, then lets its answer go.
    pub(crate) async fn end<T>(self, result: Result<T, KmsError>) -> Answer<T> {
        let kms = &self.door.kms;
        let put = kms.audit().other_call(
            kms.node().env(),
            self.name,
            self.changes,
            true,
            Some(&self.caller),
            &self.trace,
            &self.parameters,
            result.as_ref().err(),
        );
        let result = match put.await {
            Ok(()) => result,
            Err(unwritten) => Err(unwritten),
        };
        answer(result, self.trace.request_id)
    }
}

fn root_id(text: &str) -> Result<keyward_hsm::RootId, KmsError> {
    text.parse().map_err(|_| {
        KmsError::validation(format!(
            "'{text}' is not a root id: expected one as `keyward root list` shows it"
        ))
    })
}

/// A refusal, or a reply to another command.
fn odd<T>(result: Result<RootReply, KmsError>) -> Result<T, KmsError> {
    Err(result.err().unwrap_or_else(|| {
        KmsError::new(
            keyward_model::ErrorCode::KMSInternalException,
            "an answer to another command",
        )
    }))
}

fn principal(principal: &Principal, home: Option<&Region>) -> v1::Principal {
    let kinds = principal.kinds;
    let named = [
        (kinds.operator, "operator"),
        (kinds.administrator, "administrator"),
        (kinds.user, "user"),
    ];
    v1::Principal {
        arn: principal.arn.to_string(),
        kinds: named.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned()).collect(),
        disabled: principal.is_disabled(),
        home_region: home.map(ToString::to_string),
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

fn authority(seen: &SeenAuthority) -> v1::OutsideAuthority {
    v1::OutsideAuthority {
        fingerprint: hex::encode(seen.fingerprint),
        subject: seen.subject.clone(),
        not_after: Some(date(seen.not_after)),
        home_region: seen.home.as_ref().map(ToString::to_string),
        trusted: seen.believed,
    }
}

#[tonic::async_trait]
impl OperatorService for OperatorDoor {
    async fn found_region(
        &self,
        request: Request<v1::FoundRegionRequest>,
    ) -> Answer<v1::FoundRegionResponse> {
        let arn = vec![("operatorArn", request.get_ref().operator_arn.clone())];
        let call = self.begin(&request, ("FoundRegion", true), arn).await?;
        let founded = match self.founding(request.into_inner()) {
            Ok(founding) => self.kms.found(&call.caller, founding, call.patience).await,
            Err(refusal) => Err(refusal),
        };
        call.end(founded.map(|region_id| v1::FoundRegionResponse { region_id })).await
    }

    async fn cluster_status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Answer<v1::ClusterStatusResponse> {
        let call = self.begin(&request, ("ClusterStatus", false), Vec::new()).await?;
        let caller = Arc::clone(&call.caller);
        let status = self.kms.cluster_status(&caller).await;
        call.end(status.map(|cluster| {
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
                            cpu_microseconds: status.cpu_us,
                            resident_bytes: status.resident_bytes,
                        }
                    })
                    .collect(),
                keys: cluster.keys as u64,
                active_domain_key_id: cluster.active_domain_key,
                domain_keys: u32::try_from(cluster.domain_keys).unwrap_or(u32::MAX),
                purpose: cluster.purpose.name().to_owned(),
                time: Some(date(cluster.time)),
                clock_offset_ms: cluster.clock_offset_ms,
                voters_change: cluster.voters_change,
            }
        }))
        .await
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Answer<v1::InviteResponse> {
        let call = self.begin(&request, ("Invite", true), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let seconds = request.into_inner().valid_seconds.unwrap_or(INVITATION_SECONDS);
        let invited = self.kms.invite(&caller, i64::from(seconds) * 1000, patience).await;
        call.end(invited.map(|invited| v1::InviteResponse {
            region: invited.region,
            node_id: invited.node,
            expires: Some(date(invited.expires)),
            endpoints: invited.endpoints,
            ca_certificate: invited.authority,
            certificate: invited.certificate,
            private_key: invited.private_key.to_vec(),
        }))
        .await
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Answer<v1::AddNodeResponse> {
        let call = self
            .begin(
                &request,
                ("AddNode", true),
                vec![
                    ("nodeId", request.get_ref().node_id.to_string()),
                    ("address", request.get_ref().address.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let added = self.kms.add_node(&caller, r.node_id, r.address, r.learner, patience).await;
        call.end(added.map(|()| v1::AddNodeResponse {})).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let call = self
            .begin(
                &request,
                ("RemoveNode", true),
                vec![("nodeId", request.get_ref().node_id.to_string())],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let removed = self.kms.remove_node(&caller, request.into_inner().node_id, patience).await;
        call.end(removed.map(|()| v1::RemoveNodeResponse {})).await
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Answer<v1::TransferLeadershipResponse> {
        let call = self
            .begin(
                &request,
                ("TransferLeadership", true),
                request.get_ref().to.iter().map(|to| ("to", to.to_string())).collect(),
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let to = request.into_inner().to;
        let transferred = self.kms.transfer_leadership(&caller, to, patience).await;
        call.end(transferred.map(|leader_id| v1::TransferLeadershipResponse { leader_id })).await
    }

    async fn rotate_domain_key(
        &self,
        request: Request<v1::RotateDomainKeyRequest>,
    ) -> Answer<v1::RotateDomainKeyResponse> {
        let call = self.begin(&request, ("RotateDomainKey", true), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let rotated = self.kms.rotate_domain_key(&caller, patience).await;
        call.end(rotated.map(|domain_key_id| v1::RotateDomainKeyResponse { domain_key_id })).await
    }

    async fn list_roots(
        &self,
        request: Request<v1::ListRootsRequest>,
    ) -> Answer<v1::ListRootsResponse> {
        let call = self.begin(&request, ("ListRoots", false), Vec::new()).await?;
        let caller = Arc::clone(&call.caller);
        let listed = self.kms.all_roots(&caller).await;
        call.end(listed.map(|nodes| {
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
        .await
    }

    async fn add_root(&self, request: Request<v1::AddRootRequest>) -> Answer<v1::AddRootResponse> {
        let call = self
            .begin(
                &request,
                ("AddRoot", true),
                vec![
                    ("nodeId", request.get_ref().node_id.to_string()),
                    ("spec", request.get_ref().spec.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let command = RootCommand::Add { spec: r.spec };
        let result = match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Added(id)) => Ok(v1::AddRootResponse { root_id: id.to_string() }),
            other => odd(other),
        };
        call.end(result).await
    }

    async fn remove_root(
        &self,
        request: Request<v1::RemoveRootRequest>,
    ) -> Answer<v1::RemoveRootResponse> {
        let call = self
            .begin(
                &request,
                ("RemoveRoot", true),
                vec![
                    ("nodeId", request.get_ref().node_id.to_string()),
                    ("rootId", request.get_ref().root_id.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let root_id = match root_id(&r.root_id) {
            Ok(id) => id,
            Err(refusal) => return call.end(Err(refusal)).await,
        };
        let command = RootCommand::Remove { root: root_id };
        let result = match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Done) => Ok(v1::RemoveRootResponse {}),
            other => odd(other),
        };
        call.end(result).await
    }

    async fn offer_share(
        &self,
        request: Request<v1::OfferShareRequest>,
    ) -> Answer<v1::OfferShareResponse> {
        let call = self
            .begin(
                &request,
                ("OfferShare", true),
                vec![
                    ("nodeId", request.get_ref().node_id.to_string()),
                    ("rootId", request.get_ref().root_id.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let root_id = match root_id(&r.root_id) {
            Ok(id) => id,
            Err(refusal) => return call.end(Err(refusal)).await,
        };
        let command = RootCommand::Offer { root: root_id, share: r.share };
        let result = match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Progress(given, needed)) => {
                Ok(v1::OfferShareResponse { given: u32::from(given), needed: u32::from(needed) })
            }
            other => odd(other),
        };
        call.end(result).await
    }

    async fn take_share(
        &self,
        request: Request<v1::TakeShareRequest>,
    ) -> Answer<v1::TakeShareResponse> {
        let call = self
            .begin(
                &request,
                ("TakeShare", true),
                vec![
                    ("nodeId", request.get_ref().node_id.to_string()),
                    ("rootId", request.get_ref().root_id.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let root_id = match root_id(&r.root_id) {
            Ok(id) => id,
            Err(refusal) => return call.end(Err(refusal)).await,
        };
        let command = RootCommand::NextShare { root: root_id };
        let result = match self.kms.roots_of_node(&caller, r.node_id, command, patience).await {
            Ok(RootReply::Share(index, share, left)) => {
                Ok(v1::TakeShareResponse { index: u32::from(index), share, left: u32::from(left) })
            }
            other => odd(other),
        };
        call.end(result).await
    }

    async fn advance_clock(
        &self,
        request: Request<v1::AdvanceClockRequest>,
    ) -> Answer<v1::AdvanceClockResponse> {
        let call = self
            .begin(
                &request,
                ("AdvanceClock", true),
                vec![("milliseconds", request.get_ref().milliseconds.to_string())],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let milliseconds = request.into_inner().milliseconds;
        let moved = self.kms.advance_clock(&caller, milliseconds, patience).await;
        call.end(moved.map(|offset| v1::AdvanceClockResponse { offset_milliseconds: offset })).await
    }

    async fn create_principal(
        &self,
        request: Request<v1::CreatePrincipalRequest>,
    ) -> Answer<v1::CreatePrincipalResponse> {
        let call = self
            .begin(
                &request,
                ("CreatePrincipal", true),
                vec![
                    ("arn", request.get_ref().arn.clone()),
                    ("kinds", request.get_ref().kinds.join(",")),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
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
        call.end(created.map(|(created, certificate)| v1::CreatePrincipalResponse {
            principal: Some(principal(&created, None)),
            certificate,
        }))
        .await
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Answer<v1::IssueCertificateResponse> {
        let call = self
            .begin(
                &request,
                ("IssueCertificate", true),
                vec![("arn", request.get_ref().arn.clone())],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let signing_request = &r.certificate_signing_request;
        let issued = self
            .kms
            .issue_certificate(&caller, &r.arn, signing_request, r.validity_in_days, patience)
            .await;
        call.end(issued.map(|issued| v1::IssueCertificateResponse {
            serial_number: hex::encode(&issued.serial),
            certificate: issued.certificate,
        }))
        .await
    }

    async fn list_principals(
        &self,
        request: Request<v1::ListPrincipalsRequest>,
    ) -> Answer<v1::ListPrincipalsResponse> {
        let call = self.begin(&request, ("ListPrincipals", false), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let listed =
            self.kms.list_principals(&caller, r.limit, r.marker.as_deref(), patience).await;
        call.end(listed.map(|page| {
            v1::ListPrincipalsResponse {
                principals: page
                    .items
                    .iter()
                    .map(|listed| {
                        principal(&listed.principal, listed.home.as_ref().map(|(home, _)| home))
                    })
                    .collect(),
                truncated: page.next_marker.is_some(),
                next_marker: page.next_marker,
            }
        }))
        .await
    }

    async fn disable_principal(
        &self,
        request: Request<v1::DisablePrincipalRequest>,
    ) -> Answer<v1::DisablePrincipalResponse> {
        let call = self
            .begin(
                &request,
                ("DisablePrincipal", true),
                vec![("arn", request.get_ref().arn.clone())],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let arn = request.into_inner().arn;
        let done = self.kms.set_principal_disabled(&caller, &arn, true, patience).await;
        call.end(done.map(|change| v1::DisablePrincipalResponse { change })).await
    }

    async fn enable_principal(
        &self,
        request: Request<v1::EnablePrincipalRequest>,
    ) -> Answer<v1::EnablePrincipalResponse> {
        let call = self
            .begin(
                &request,
                ("EnablePrincipal", true),
                vec![("arn", request.get_ref().arn.clone())],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let arn = request.into_inner().arn;
        let done = self.kms.set_principal_disabled(&caller, &arn, false, patience).await;
        call.end(done.map(|change| v1::EnablePrincipalResponse { change })).await
    }

    async fn revoke_certificate(
        &self,
        request: Request<v1::RevokeCertificateRequest>,
    ) -> Answer<v1::RevokeCertificateResponse> {
        let call = self
            .begin(
                &request,
                ("RevokeCertificate", true),
                vec![
                    ("arn", request.get_ref().arn.clone()),
                    ("serialNumber", request.get_ref().serial_number.clone()),
                ],
            )
            .await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let r = request.into_inner();
        let done = self.kms.revoke_certificate(&caller, &r.arn, &r.serial_number, patience).await;
        call.end(done.map(|change| v1::RevokeCertificateResponse { change })).await
    }

    async fn add_authority(
        &self,
        request: Request<v1::AddAuthorityRequest>,
    ) -> Answer<v1::AddAuthorityResponse> {
        let fingerprint = hex::encode(fingerprint(&request.get_ref().certificate));
        let about = vec![("fingerprint", fingerprint)];
        let call = self.begin(&request, ("AddAuthority", true), about).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let certificate = request.into_inner().certificate;
        let added = self.kms.add_authority(&caller, certificate, patience).await;
        call.end(added.map(|(fingerprint, change)| v1::AddAuthorityResponse {
            fingerprint: hex::encode(fingerprint),
            change,
        }))
        .await
    }

    async fn remove_authority(
        &self,
        request: Request<v1::RemoveAuthorityRequest>,
    ) -> Answer<v1::RemoveAuthorityResponse> {
        let about = vec![("fingerprint", request.get_ref().fingerprint.clone())];
        let call = self.begin(&request, ("RemoveAuthority", true), about).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let fingerprint = request.into_inner().fingerprint;
        let removed = self.kms.remove_authority(&caller, &fingerprint, patience).await;
        call.end(removed.map(|change| v1::RemoveAuthorityResponse { change })).await
    }

    async fn list_authorities(
        &self,
        request: Request<v1::ListAuthoritiesRequest>,
    ) -> Answer<v1::ListAuthoritiesResponse> {
        let call = self.begin(&request, ("ListAuthorities", false), Vec::new()).await?;
        let (caller, patience) = (Arc::clone(&call.caller), call.patience);
        let listed = self.kms.list_authorities(&caller, patience).await;
        call.end(listed.map(|seen| v1::ListAuthoritiesResponse {
            authorities: seen.iter().map(authority).collect(),
        }))
        .await
    }
}
