//! `keyward.v1.JoinService`: translation, nothing else.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::RealEnv;
use keyward_model::{ErrorCode, KmsError};
use keyward_proto::v1;
use keyward_proto::v1::join_service_server::JoinService;
use keyward_service::Kms;
use keyward_state::InvitationId;
use tonic::Request;

use crate::common::{Answer, answer, patience, trace};
use crate::tls::{Identity, Peer};

/// Where invited machines ask.
pub struct JoinDoor {
    pub(crate) kms: Arc<Kms<RealEnv>>,
}

impl JoinDoor {
    /// Who was invited; then the call, on record. (An invited machine is no principal yet: its invitation is
    /// among the parameters.)
    async fn run<In, Out, Fut>(
        &self,
        request: Request<In>,
        name: &'static str,
        parameters: Vec<(&'static str, String)>,
        work: impl FnOnce(InvitationId, In, Duration) -> Fut,
    ) -> Answer<Out>
    where
        Fut: Future<Output = Result<Out, KmsError>>,
    {
        let audit = self.kms.audit();
        let trace = trace(&request, audit.next_request_id());
        let (id, patience) = (trace.request_id, patience(&request));
        let mut parameters = parameters;
        let invited = match request.extensions().get::<Peer>().map(|peer| &peer.identity) {
            Some(Identity::Invitation(invitation)) => Ok(*invitation),
            _ => Err(KmsError::new(
                ErrorCode::AccessDeniedException,
                "only the certificate of an invitation is let in here: `keyward cluster join` shows it",
            )),
        };
        let result = match (audit.check(), invited) {
            (Err(refusal), _) => return answer(Err(refusal), id),
            (Ok(()), Err(refusal)) => Err(refusal),
            (Ok(()), Ok(invitation)) => {
                parameters.push(("invitation", hex::encode(invitation)));
                work(invitation, request.into_inner(), patience).await
            }
        };
        let (env, refusal) = (self.kms.node().env(), result.as_ref().err());
        let put = audit.other_call(env, name, true, true, None, &trace, &parameters, refusal);
        answer(put.await.and(result), id)
    }
}

#[tonic::async_trait]
impl JoinService for JoinDoor {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let address = vec![("address", request.get_ref().address.clone())];
        self.run(request, "Join", address, |invitation, r, patience| async move {
            let csr = r.certificate_signing_request;
            let joined = self.kms.join(invitation, &csr, r.address, patience).await?;
            Ok(v1::JoinResponse { node_id: joined.node, certificate: joined.certificate })
        })
        .await
    }

    async fn enter(&self, request: Request<v1::EnterRequest>) -> Answer<v1::EnterResponse> {
        self.run(request, "Enter", Vec::new(), |invitation, _, patience| async move {
            let node_id = self.kms.enter(invitation, patience).await?;
            Ok(v1::EnterResponse { node_id })
        })
        .await
    }
}
