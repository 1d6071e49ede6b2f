//! The least that a call can cost a server: the door's TLS and tonic, and an answer that was made before.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use keyward_door_grpc::{Terminator, TlsFiles};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1::{EncryptRequest, EncryptResponse};
use keyward_raft::BoxFuture;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tower::Service;

/// Answers every Encrypt with `answer`, without end.
pub async fn serve(listen: &str, tls: &TlsFiles, answer: EncryptResponse) {
    let terminator = Terminator::new(tls).expect("TLS");
    let listener = TcpListener::bind(listen).await.expect("an address");
    let (connections, incoming) = tokio::sync::mpsc::channel(64);
    RealEnv.spawn(async move { terminator.accept(listener, connections).await });
    let served = Server::builder().add_service(Echo(answer));
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, Infallible>);
    served.serve_with_incoming(incoming).await.expect("it serves");
}

/// As tonic generates a server of one method.
#[derive(Clone)]
struct Echo(EncryptResponse);

impl NamedService for Echo {
    const NAME: &'static str = "keyward.v1.KeyService";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<EncryptResponse, EncryptRequest>::default();
            Ok(Grpc::new(codec).unary(echo, request).await)
        })
    }
}

impl UnaryService<EncryptRequest> for Echo {
    type Response = EncryptResponse;
    type Future = std::future::Ready<Result<Response<EncryptResponse>, Status>>;

    fn call(&mut self, _: Request<EncryptRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.clone())))
    }
}
