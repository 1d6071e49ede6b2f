//! What the service layers of two nodes say to each other: joining, handing domain keys from HSM to HSM,
//! and operator commands that only a leader can carry out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use keyward_env::Env;
use keyward_hsm::{ResealRequest, RootId};
use keyward_model::{DomainKeyId, ErrorCode, KmsError, NodeId, Region};
use keyward_raft::{BoxFuture, PeerApp};
use keyward_state::{ChangeToken, DiskMark, Timers, codec};
use serde::{Deserialize, Serialize};

use crate::kms::Kms;
use crate::quota::{QuotaAnswer, QuotaRequest};
use crate::regions::ToldLink;
use crate::roots::{RootCommand, RootReply};

/// A message to the service layer of another node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppRequest {
    /// Who are you? Asked by a leader of a node that is to be added.
    Hello,
    /// Domain keys, please, sealed to the HSM that asks. Its root must be registered.
    Reseal { request: ResealRequest, domain_keys: Vec<DomainKeyId> },
    /// An operator's command about the roots of the node that is asked. The sender has checked the operator.
    Roots(RootCommand),
    /// An operator's command for the leader. The sender has checked the operator.
    Operate { command: LeaderCommand, patience_ms: u64 },
    /// About quotas.
    Quota(QuotaRequest),
    /// May you use multi-Region keys?
    Admitted,
    /// How far has your audit trail come?
    TrailEnd,
}

/// Operator commands that only a leader can carry out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum LeaderCommand {
    AddNode {
        node: NodeId,
        address: String,
        learner: bool,
    },
    /// Sent by the node itself.
    Promote {
        node: NodeId,
    },
    RemoveNode {
        node: NodeId,
    },
    Transfer {
        to: Option<NodeId>,
    },
    RotateDomainKey,
    /// How the links with other Regions are: only the leader knows.
    Links,
    PromoteRegion {
        lost: Region,
        force: bool,
    },
    FailOver {
        to: Region,
    },
    /// The Region's disks are the latest, an operator says.
    Admit,
    /// Until a change of another Region has come to every node.
    WaitForChange(ChangeToken),
}

/// What came of a leader command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum LeaderReply {
    Done,
    NewLeader(NodeId),
    DomainKey(DomainKeyId),
    Links(Vec<ToldLink>),
    Count(u64),
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppResponse {
    Hello {
        root: RootId,
        region_id: Option<[u8; 16]>,
        timers: Timers,
        wall_ms: i64,
        disk: DiskMark,
    },
    Resealed(Vec<(DomainKeyId, Vec<u8>)>),
    Operated(Result<LeaderReply, KmsError>),
    Roots(Result<RootReply, KmsError>),
    Quota(QuotaAnswer),
    Admitted(bool),
    /// The number of its next record; none of a node without a trail.
    TrailEnd(Option<u64>),
}

impl<E: Env> Kms<E> {
    pub(crate) async fn ask_peer(
        &self,
        node: NodeId,
        address: &str,
        request: &AppRequest,
        patience: Duration,
    ) -> Result<AppResponse, String> {
        let answer = self.node.ask_app(node, address, codec::encode(request), patience).await?;
        codec::decode(&answer).map_err(|e| e.to_string())
    }

    async fn answer_peer(
        self: &Arc<Self>,
        from: NodeId,
        request: AppRequest,
    ) -> Result<AppResponse, String> {
        match request {
            AppRequest::Hello => Ok(AppResponse::Hello {
                root: self.hsm.root_id(),
                region_id: self.node.state().region.as_ref().map(|facts| facts.region_id),
                timers: self.node.timers(),
                wall_ms: self.node.env().wall_now_ms(),
                disk: self.node.disk_mark(),
            }),
            AppRequest::Reseal { request, domain_keys } => {
                self.reseal(from, &request, &domain_keys).await.map(AppResponse::Resealed)
            }
            AppRequest::Admitted => Ok(AppResponse::Admitted(self.is_admitted())),
            AppRequest::TrailEnd => Ok(AppResponse::TrailEnd(self.audit.next_sequence())),
            // What a node says that was removed is nobody's word any more.
            AppRequest::Roots(_) | AppRequest::Operate { .. } | AppRequest::Quota(_)
                if !self.node.has_member(from) =>
            {
                Err(format!("node {from} is not a member here"))
            }
            AppRequest::Roots(command) => Ok(AppResponse::Roots(self.command_roots(command).await)),
            AppRequest::Quota(request) => {
                Ok(AppResponse::Quota(self.answer_quota(from, request).await))
            }
            AppRequest::Operate { command: LeaderCommand::Promote { node }, .. }
                if node != from =>
            {
                Err("a node asks for its own vote only".to_owned())
            }
            AppRequest::Operate { command, patience_ms } => {
                let patience = Duration::from_millis(patience_ms);
                let result = if self.node.leads() {
                    self.lead(command, patience).await
                } else {
                    Err(KmsError::new(
                        ErrorCode::DependencyTimeoutException,
                        "the leader has just changed; nothing was done: try again",
                    ))
                };
                Ok(AppResponse::Operated(result))
            }
        }
    }

    /// Seals domain keys to the HSM of a node whose root an operator has approved. The bytes are never
    /// seen outside the two HSMs.
    async fn reseal(
        &self,
        from: NodeId,
        request: &ResealRequest,
        domain_keys: &[DomainKeyId],
    ) -> Result<Vec<(DomainKeyId, Vec<u8>)>, String> {
        let state = self.node.state();
        let registered =
            state.roots.get(&request.root).is_some_and(|registered| registered.node == from);
        if !registered {
            return Err(format!(
                "the root {} of node {from} is not registered: an operator adds the node first",
                request.root
            ));
        }
        let mut sealed = Vec::with_capacity(domain_keys.len());
        for id in domain_keys {
            self.open_domain_key(&state, *id).await.map_err(|e| e.to_string())?;
            let bytes = self.hsm.export_domain_key(*id, request).map_err(|e| e.to_string())?;
            sealed.push((*id, bytes));
        }
        Ok(sealed)
    }
}

/// The service layer, as its node reaches it. The service holds the node, so the node must not hold the
/// service: neither would ever be dropped, and keys would stay in memory.
pub(crate) struct App<E: Env>(pub(crate) Weak<Kms<E>>);

impl<E: Env> PeerApp for App<E> {
    fn answer(&self, from: NodeId, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let request = codec::decode(&body).map_err(|e| e.to_string())?;
            let kms = self.0.upgrade().ok_or("the node has stopped")?;
            kms.answer_peer(from, request).await.map(|answer| codec::encode(&answer))
        })
    }
}
