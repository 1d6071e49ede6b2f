//! Many calls on one stream: for programs that make thousands of calls a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use keyward_proto::v1::data_plane_client::DataPlaneClient;
use keyward_proto::v1::stream_request::Call;
use keyward_proto::v1::stream_response::Answer;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::connection::{CallError, Client, Repeat, describe};

/// Calls that wait to be sent; more wait for room.
const TO_SEND_MAX: usize = 256;
/// The server answers a little before the deadline that it is told.
const MARGIN: Duration = Duration::from_millis(250);

/// The operations that use a key, on a stream: a fraction of what calls of their own cost. Cheap to share; calls of many
/// tasks go out side by side. Streams are opened when they are first needed, to another node where one is away, and what was
/// not answered is sent again there.
pub struct DataPlane {
    client: Arc<Client>,
    /// A lane to each node.
    lanes: Vec<Lane>,
}

/// The stream to one node.
#[derive(Default)]
struct Lane {
    open: Mutex<Option<Arc<Open>>>,
    /// Held while a stream is being opened.
    opening: tokio::sync::Mutex<()>,
}

/// A stream.
struct Open {
    to_send: mpsc::Sender<v1::StreamRequest>,
    next: AtomicU64,
    /// Who waits for which answer; none once the stream is over.
    waiting: Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>,
    /// Why it is over.
    over: Mutex<Option<Status>>,
}

impl Open {
    /// Hands answers out until the stream ends.
    async fn hear(self: Arc<Self>, mut answers: Streaming<v1::StreamResponse>) {
        let over = loop {
            match answers.message().await {
                Ok(Some(told)) => {
                    let waits = self.waiting.lock().as_mut().and_then(|all| all.remove(&told.id));
                    if let (Some(waits), Some(answer)) = (waits, told.answer) {
                        // Its caller may have given up.
                        drop(waits.send(answer));
                    }
                }
                Ok(None) => break Status::unavailable("the node has ended the stream"),
                // Whatever broke it, another one can be opened.
                Err(status) => {
                    break Status::unavailable(format!("the stream broke: {}", describe(&status)));
                }
            }
        };
        *self.over.lock() = Some(over);
        drop(self.waiting.lock().take());
    }

    fn why_over(&self) -> Status {
        let over = self.over.lock().clone();
        over.unwrap_or_else(|| Status::unavailable("the stream to the node is over"))
    }

    async fn call(&self, call: Call, patience: Duration) -> Result<Answer, Status> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answers, answer) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => drop(waiting.insert(id, answers)),
            None => return Err(self.why_over()),
        }
        let timeout_milliseconds = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let request = v1::StreamRequest { id, timeout_milliseconds, call: Some(call) };
        let answered = async {
            let sent = self.to_send.send(request).await;
            if sent.is_err() {
                return Err(self.why_over());
            }
            answer.await.map_err(|_| self.why_over())
        };
        match RealEnv.timeout(patience + MARGIN, answered).await {
            Some(answer) => answer,
            None => {
                if let Some(waiting) = &mut *self.waiting.lock() {
                    waiting.remove(&id);
                }
                Err(Status::deadline_exceeded("no answer in time"))
            }
        }
    }
}

impl DataPlane {
    /// Streams over the connections of `client`.
    #[must_use]
    pub fn new(client: Arc<Client>) -> Self {
        let lanes = client.endpoints().iter().map(|_| Lane::default()).collect();
        Self { client, lanes }
    }

    async fn open(&self, at: usize) -> Result<Arc<Open>, Status> {
        let lane = &self.lanes[at];
        let usable = |lane: &Lane| {
            let open = lane.open.lock();
            open.as_ref().filter(|open| open.waiting.lock().is_some()).cloned()
        };
        if let Some(open) = usable(lane) {
            return Ok(open);
        }
        let _one_at_a_time = lane.opening.lock().await;
        if let Some(open) = usable(lane) {
            return Ok(open);
        }
        let (to_send, sends) = mpsc::channel(TO_SEND_MAX);
        let mut door = DataPlaneClient::new(self.client.channel(at));
        let opened =
            RealEnv.timeout(self.client.patience(), door.stream(ReceiverStream::new(sends)));
        let answers = match opened.await {
            Some(answers) => answers?.into_inner(),
            None => return Err(Status::deadline_exceeded("no answer in time")),
        };
        let open = Arc::new(Open {
            to_send,
            next: AtomicU64::new(0),
            waiting: Mutex::new(Some(BTreeMap::new())),
            over: Mutex::new(None),
        });
        RealEnv.spawn(Arc::clone(&open).hear(answers));
        *lane.open.lock() = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Calls the preferred node, once: what a caller without retries sees. The next call goes to the next node if this
    /// one does not serve.
    ///
    /// # Errors
    /// The server's refusal, or what went wrong on the way.
    pub async fn once(&self, call: Call) -> Result<Answer, CallError> {
        let at = self.client.preferred();
        let ended = self.ask(at, call).await;
        self.client.went(at, &ended);
        ended
    }

    async fn ask(&self, at: usize, call: Call) -> Result<Answer, CallError> {
        let answered = match self.open(at).await {
            Ok(open) => open.call(call, self.client.patience()).await,
            Err(status) => Err(status),
        };
        match answered {
            Ok(Answer::Error(detail)) => Err(CallError::typed(detail)),
            Ok(answer) => Ok(answer),
            Err(status) => Err(self.client.explain(at, status)),
        }
    }

    async fn run(&self, call: Call) -> Result<Answer, CallError> {
        self.client.on_nodes(Repeat::Safe, |at| self.ask(at, call.clone())).await
    }
}

/// One method an operation.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $operation:ident, $request:ident => $response:ident;)+) => {
        impl DataPlane {
            $($(#[$doc])*
            ///
            /// # Errors
            /// The server's refusal, or what went wrong on the way, after tries on all nodes.
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, CallError> {
                match self.run(Call::$operation(request)).await? {
                    Answer::$operation(response) => Ok(response),
                    _ => Err(Status::internal("an answer of another operation").into()),
                }
            })+
        }
    };
}

operations! {
    /// Encrypts up to 4,096 bytes.
    encrypt: Encrypt, EncryptRequest => EncryptResponse;
    /// Decrypts.
    decrypt: Decrypt, DecryptRequest => DecryptResponse;
    /// Encrypts anew, under another key or context.
    re_encrypt: ReEncrypt, ReEncryptRequest => ReEncryptResponse;
    /// Makes a data key.
    generate_data_key: GenerateDataKey, GenerateDataKeyRequest => GenerateDataKeyResponse;
    /// Makes a data key that is not shown.
    generate_data_key_without_plaintext: GenerateDataKeyWithoutPlaintext,
        GenerateDataKeyWithoutPlaintextRequest => GenerateDataKeyWithoutPlaintextResponse;
    /// Draws random bytes.
    generate_random: GenerateRandom, GenerateRandomRequest => GenerateRandomResponse;
}
