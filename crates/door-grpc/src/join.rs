//! `keyward.v1.JoinService`: translation, nothing else.

use std::sync::Arc;

use keyward_env::RealEnv;
use keyward_model::{ErrorCode, KmsError};
use keyward_proto::v1;
use keyward_proto::v1::join_service_server::JoinService;
use keyward_service::Kms;
use keyward_state::InvitationId;
use tonic::{Request, Response, Status};

use crate::common::patience;
use crate::errors::status;
use crate::tls::Identity;

/// Where invited machines ask.
pub struct JoinDoor {
    pub(crate) kms: Arc<Kms<RealEnv>>,
}

fn invitation<T>(request: &Request<T>) -> Result<InvitationId, Status> {
    match request.extensions().get::<Identity>() {
        Some(Identity::Invitation(id)) => Ok(*id),
        _ => Err(status(&KmsError::new(
            ErrorCode::AccessDeniedException,
            "only the certificate of an invitation is let in here: `keyward cluster join` shows it",
        ))),
    }
}

#[tonic::async_trait]
impl JoinService for JoinDoor {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let (id, patience) = (invitation(&request)?, patience(&request));
        let r = request.into_inner();
        let joined = self.kms.join(id, &r.certificate_signing_request, r.address, patience).await;
        let joined = joined.map_err(|error| status(&error))?;
        Ok(Response::new(v1::JoinResponse {
            node_id: joined.node,
            certificate: joined.certificate,
        }))
    }

    async fn enter(
        &self,
        request: Request<v1::EnterRequest>,
    ) -> Result<Response<v1::EnterResponse>, Status> {
        let (id, patience) = (invitation(&request)?, patience(&request));
        let node_id = self.kms.enter(id, patience).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::EnterResponse { node_id }))
    }
}
