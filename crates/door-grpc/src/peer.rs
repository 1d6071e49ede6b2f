//! Messages between nodes over tonic: the server side, and the [`Transport`] that calls it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use keyward_env::{Env, RealEnv};
use keyward_model::{ErrorCode, KmsError, NodeId};
use keyward_proto::v1;
use keyward_proto::v1::peer_service_client::PeerServiceClient;
use keyward_proto::v1::peer_service_server::PeerService;
use keyward_raft::{BasicNode, BoxFuture, Node, Transport, TransportError};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;

use crate::errors::status;
use crate::tls::{Connector, Identity, Peer, TlsError, TlsFiles};

/// One append may carry hundreds of commands with long descriptions.
pub(crate) const PEER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A connection within a Region is there in a moment, or not at all.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// Names the receiver that a message is meant for.
const TARGET: &str = "keyward-target";

/// Answers peers' messages.
pub struct PeerDoor {
    pub(crate) node: Arc<Node<RealEnv>>,
}

#[tonic::async_trait]
impl PeerService for PeerDoor {
    async fn call(
        &self,
        request: Request<v1::PeerFrame>,
    ) -> Result<Response<v1::PeerFrame>, Status> {
        let refuse =
            |why: String| Err(status(KmsError::new(ErrorCode::AccessDeniedException, why)));
        let from = match request.extensions().get::<Peer>().map(|peer| &peer.identity) {
            Some(Identity::Node(node)) => *node,
            _ => return refuse("only a node of this Region is let in here".to_owned()),
        };
        let target = request.metadata().get(TARGET).and_then(|value| value.to_str().ok());
        if target != Some(self.node.id().to_string().as_str()) {
            return refuse(format!("this is node {}, not the one addressed", self.node.id()));
        }
        let body = self.node.answer(from, request.into_inner().body).await;
        Ok(Response::new(v1::PeerFrame { body }))
    }
}

/// Calls peers over mutual TLS.
pub struct GrpcTransport {
    connector: Connector,
    channels: Mutex<BTreeMap<(NodeId, String), Channel>>,
}

impl GrpcTransport {
    /// A transport that shows the node's own certificate.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { connector: Connector::new(files)?, channels: Mutex::default() })
    }

    /// From now on peers' certificates are judged by the Region's time, as `node` knows it. Before that, by this
    /// machine's own clock.
    pub fn follow(&self, node: &Arc<Node<RealEnv>>) {
        self.connector.time().follow(node);
    }

    fn channel(&self, target: NodeId, address: &str) -> Result<Channel, String> {
        let mut channels = self.channels.lock();
        let slot = (target, address.to_owned());
        if let Some(channel) = channels.get(&slot) {
            return Ok(channel.clone());
        }
        let connector = self.connector.clone();
        let connect = service_fn(move |uri: Uri| {
            let connector = connector.clone();
            async move {
                let (host, port) = (uri.host(), uri.port_u16());
                let (Some(host), Some(port)) = (host, port) else {
                    return Err(io::Error::other("an address without host or port"));
                };
                connector.connect(host, port).await.map(TokioIo::new)
            }
        });
        // TLS is the connector's.
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| e.to_string())?
            .connect_timeout(CONNECT_PATIENCE)
            // A peer that is gone without a word is noticed, not waited for.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connect);
        // An address that changed leaves its old channel behind: drop it.
        channels.retain(|(node, _), _| *node != target);
        channels.insert(slot, channel.clone());
        Ok(channel)
    }
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        target: NodeId,
        node: &BasicNode,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let channel = self.channel(target, &node.addr);
        Box::pin(async move {
            let unreachable = |reason: String| TransportError::Unreachable { node: target, reason };
            let no_answer = |reason: String| TransportError::NoAnswer { node: target, reason };
            let mut client = PeerServiceClient::new(channel.map_err(unreachable)?)
                .max_decoding_message_size(PEER_BYTES_MAX)
                .max_encoding_message_size(PEER_BYTES_MAX);
            let mut request = Request::new(v1::PeerFrame { body });
            let name = target.to_string().parse().map_err(|_| unreachable("odd id".into()))?;
            request.metadata_mut().insert(TARGET, name);
            match RealEnv.timeout(patience, client.call(request)).await {
                None => Err(no_answer("no answer in time".to_owned())),
                Some(Ok(response)) => Ok(response.into_inner().body),
                Some(Err(error)) if error.code() == Code::Unavailable => {
                    Err(unreachable(crate::describe(&error)))
                }
                Some(Err(error)) => Err(no_answer(crate::describe(&error))),
            }
        })
    }
}
