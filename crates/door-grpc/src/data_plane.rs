//! `keyward.v1.DataPlane`: many calls on one stream. Translation into numbered [`Call`]s and back, nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use keyward_env::RealEnv;
use keyward_model::limits::{CALL_DEADLINE_DEFAULT, CALL_DEADLINE_MAX};
use keyward_model::{ErrorCode, KmsError, Operation};
use keyward_proto::v1;
use keyward_proto::v1::data_plane_server::DataPlane;
use keyward_proto::v1::stream_request::Call as Asks;
use keyward_proto::v1::stream_response::Answer as Tells;
use keyward_service::{
    Call, Caller, Kms, Multiplex, Numbered, Response as Reply, Stack, Trace, api,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::common::{caller, trace, turned_away};
use crate::errors::detail;
use crate::uses::{Asked, Told};

/// The data plane on one node.
pub(crate) struct DataPlaneDoor {
    pub(crate) stack: Stack<RealEnv>,
    pub(crate) kms: Arc<Kms<RealEnv>>,
    /// Turns true when the node stops: streams take no more calls then.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// What an answer is known by.
struct Number {
    /// The caller's own.
    id: u64,
    request_id: [u8; 16],
    operation: Option<Operation>,
}

#[tonic::async_trait]
impl DataPlane for DataPlaneDoor {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::StreamResponse, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let id = self.kms.audit().next_request_id();
        let origin = trace(&request, id);
        let caller = match caller(&request) {
            Ok(caller) => caller,
            Err(refusal) => {
                return Err(turned_away(&self.kms, "Stream", &origin, id, refusal).await);
            }
        };
        let kms = Arc::clone(&self.kms);
        let mut stopping = self.stopping.clone();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        let calls = request
            .into_inner()
            // A broken stream ends as one that was closed: nobody is there to be told.
            .take_while(|asked| std::future::ready(asked.is_ok()))
            .filter_map(|asked| std::future::ready(asked.ok()))
            .map(move |asked| numbered(&kms, &caller, &origin, asked))
            .take_until(Box::pin(stopped));
        let answers = Multiplex::new(self.stack.clone(), calls);
        Ok(Response::new(Box::pin(answers.map(|(number, result)| Ok(answer(number, result))))))
    }
}

fn numbered(
    kms: &Kms<RealEnv>,
    caller: &Arc<Caller>,
    origin: &Trace,
    asked: v1::StreamRequest,
) -> Numbered<Number> {
    let request_id = kms.audit().next_request_id();
    let request = asked.call.map(|call| match call {
        Asks::Encrypt(r) => r.asked(),
        Asks::Decrypt(r) => r.asked(),
        Asks::ReEncrypt(r) => r.asked(),
        Asks::GenerateDataKey(r) => r.asked(),
        Asks::GenerateDataKeyWithoutPlaintext(r) => r.asked(),
        Asks::GenerateRandom(r) => r.asked(),
    });
    let operation = request.as_ref().map(api::Request::operation);
    let number = Number { id: asked.id, request_id, operation };
    let Some(request) = request else {
        return (
            number,
            Err(KmsError::validation("the message has no call, or one that is not known here")),
        );
    };
    let patience = match asked.timeout_milliseconds {
        0 => CALL_DEADLINE_DEFAULT,
        some => Duration::from_millis(u64::from(some)).min(CALL_DEADLINE_MAX),
    };
    let mut call = Call::new(Arc::clone(caller), request, patience);
    call.trace = Trace { request_id, ..origin.clone() };
    (number, Ok(call))
}

fn answer(number: Number, result: Result<Reply, KmsError>) -> v1::StreamResponse {
    let told = result.and_then(|reply| {
        tells(number.operation, reply).ok_or_else(|| {
            KmsError::new(ErrorCode::KMSInternalException, "an answer of another operation")
        })
    });
    v1::StreamResponse {
        id: number.id,
        request_id: number.request_id.to_vec(),
        answer: Some(told.unwrap_or_else(|refusal| Tells::Error(detail(&refusal)))),
    }
}

fn tells(operation: Option<Operation>, reply: Reply) -> Option<Tells> {
    match operation? {
        Operation::Encrypt => Told::told(reply).map(Tells::Encrypt),
        Operation::Decrypt => Told::told(reply).map(Tells::Decrypt),
        Operation::ReEncrypt => Told::told(reply).map(Tells::ReEncrypt),
        Operation::GenerateDataKey => Told::told(reply).map(Tells::GenerateDataKey),
        Operation::GenerateDataKeyWithoutPlaintext => {
            Told::told(reply).map(Tells::GenerateDataKeyWithoutPlaintext)
        }
        Operation::GenerateRandom => Told::told(reply).map(Tells::GenerateRandom),
        _ => None,
    }
}
