//! Messages between Regions over tonic: the server side, and the [`RegionTransport`] that calls it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use keyward_env::{Env, RealEnv};
use keyward_model::{ErrorCode, KmsError, Region};
use keyward_proto::v1;
use keyward_proto::v1::link_service_client::LinkServiceClient;
use keyward_proto::v1::link_service_server::LinkService;
use keyward_raft::{BoxFuture, Node};
use keyward_regions::RegionTransport;
use keyward_service::Kms;
use keyward_state::PeerRegion;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tower::service_fn;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::errors::status;
use crate::peer::PEER_BYTES_MAX;
use crate::tls::{HandshakeTime, Identity, Peer, region_connector};

/// Another Region is a round trip around the world away at most.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A certificate is made anew when this part of its life is over, in percent.
const RENEWED_AT_PERCENT: i64 = 50;

/// Answers other Regions' messages.
pub struct LinkDoor {
    pub(crate) kms: Arc<Kms<RealEnv>>,
}

#[tonic::async_trait]
impl LinkService for LinkDoor {
    async fn call(
        &self,
        request: Request<v1::LinkFrame>,
    ) -> Result<Response<v1::LinkFrame>, Status> {
        let identity = request.extensions().get::<Peer>().map(|peer| peer.identity.clone());
        let (region, id) = match identity {
            Some(Identity::Region(region, id)) => (region, id),
            Some(Identity::Nobody(why)) => {
                return Err(status(KmsError::new(ErrorCode::AccessDeniedException, why)));
            }
            _ => {
                return Err(status(KmsError::new(
                    ErrorCode::AccessDeniedException,
                    "only nodes of other Regions are let in here",
                )));
            }
        };
        let body = self.kms.answer_region(region, id, request.into_inner().body).await;
        body.map(|body| Response::new(v1::LinkFrame { body })).map_err(status)
    }
}

/// The certificate that this node shows to other Regions.
struct Shown {
    certificate: Vec<u8>,
    private_key: zeroize::Zeroizing<Vec<u8>>,
    /// From then on another one is wanted, in milliseconds.
    renewed_at_ms: i64,
}

/// Calls nodes of other Regions over mutual TLS.
#[derive(Default)]
pub struct GrpcRegionTransport {
    time: Arc<HandshakeTime>,
    shown: Mutex<Option<Shown>>,
    channels: Mutex<BTreeMap<(Region, String), Dialled>>,
}

/// A connection to an endpoint, and the authority that was trusted there.
struct Dialled {
    authority: Vec<u8>,
    channel: Channel,
}

impl GrpcRegionTransport {
    /// From now on certificates are judged by the Region's time, as `node` knows it.
    pub fn follow(&self, node: &Arc<Node<RealEnv>>) {
        self.time.follow(node);
    }

    fn channel(&self, peer: &PeerRegion, endpoint: &str) -> Result<Channel, String> {
        let slot = (peer.region.clone(), endpoint.to_owned());
        if let Some(dialled) = self.channels.lock().get(&slot)
            && dialled.authority == peer.ca_certificate
        {
            return Ok(dialled.channel.clone());
        }
        let connector = {
            let shown = self.shown.lock();
            let shown = shown.as_ref().ok_or("this node has no certificate for links yet")?;
            region_connector(
                &peer.ca_certificate,
                &shown.certificate,
                &shown.private_key,
                &self.time,
            )
            .map_err(|e| e.to_string())?
        };
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
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))
            .map_err(|e| e.to_string())?
            .connect_timeout(CONNECT_PATIENCE)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connect);
        let dialled = Dialled { authority: peer.ca_certificate.clone(), channel: channel.clone() };
        self.channels.lock().insert(slot, dialled);
        Ok(channel)
    }
}

impl RegionTransport for GrpcRegionTransport {
    fn call(
        &self,
        peer: Arc<PeerRegion>,
        endpoint: String,
        body: Vec<u8>,
        patience: Duration,
    ) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let mut client = LinkServiceClient::new(self.channel(&peer, &endpoint)?)
                .max_decoding_message_size(PEER_BYTES_MAX)
                .max_encoding_message_size(PEER_BYTES_MAX);
            let request = Request::new(v1::LinkFrame { body });
            match RealEnv.timeout(patience, client.call(request)).await {
                None => Err("no answer in time".to_owned()),
                Some(Ok(response)) => Ok(response.into_inner().body),
                Some(Err(error)) => Err(crate::describe(&error)),
            }
        })
    }

    fn wants_identity(&self, now_ms: i64) -> bool {
        self.shown.lock().as_ref().is_none_or(|shown| now_ms >= shown.renewed_at_ms)
    }

    fn take_identity(&self, certificate: &[u8], private_key: &[u8]) -> Result<(), String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
        let validity = parsed.validity();
        let (begins, ends) =
            (validity.not_before.timestamp() * 1000, validity.not_after.timestamp() * 1000);
        *self.shown.lock() = Some(Shown {
            certificate: certificate.to_vec(),
            private_key: zeroize::Zeroizing::new(private_key.to_vec()),
            renewed_at_ms: begins + (ends - begins) * RENEWED_AT_PERCENT / 100,
        });
        // Connections that stand go on: the other side has seen the certificate that was good then.
        self.channels.lock().clear();
        Ok(())
    }
}
