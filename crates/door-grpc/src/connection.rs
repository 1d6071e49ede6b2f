//! Connections whose handshake is done: HTTP/2 on each, and the way that each request goes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use keyward_env::{Env, RealEnv};
use tokio::sync::mpsc;
use tonic::service::Routes;
use tower::Service;

use crate::kms::KeyDoor;
use crate::tls::{Connection, Peer};
use crate::unary::{Answer, PutBack, Served};

/// Calls under way on one connection.
const STREAMS_PER_CONNECTION: u32 = 1024;
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// A connection on which nothing was heard for this long is asked whether it lives,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// and closed when it has not answered within this.
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(10);

/// What a door serves.
pub(crate) struct Services {
    /// The data plane's calls, where they can go the short way.
    pub(crate) key_door: Arc<KeyDoor>,
    /// Everything else.
    pub(crate) routes: Routes,
}

/// Serves connections until `stop` ends, then lets calls under way finish.
pub(crate) async fn serve(
    mut connections: mpsc::Receiver<Connection>,
    services: Arc<Services>,
    stop: impl Future<Output = ()>,
) {
    let mut http = http2::Builder::new(Tasks);
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_PATIENCE)
        // gRPC has no use for it.
        .auto_date_header(false);
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let connection = tokio::select! {
            biased;
            () = &mut stop => break,
            connection = connections.recv() => connection,
        };
        let Some(connection) = connection else { break };
        let requests =
            Requests { peer: connection.peer().clone(), services: Arc::clone(&services) };
        let served = http.serve_connection(TokioIo::new(connection), requests);
        let served = graceful.watch(served);
        RealEnv.spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(error = crate::describe(&error), "a connection broke");
            }
        });
    }
    drop(connections);
    graceful.shutdown().await;
}

/// Where HTTP/2 has its tasks run.
#[derive(Clone)]
struct Tasks;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        RealEnv.spawn(task);
    }
}

/// The requests of one connection.
struct Requests {
    peer: Peer,
    services: Arc<Services>,
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Way;

    fn call(&self, mut request: Request<Incoming>) -> Way {
        let arrived = match self.services.key_door.take(&self.peer, &mut request) {
            Ok(served) => return Way::Short(served),
            Err(arrived) => arrived,
        };
        request.extensions_mut().insert(self.peer.clone());
        let mut routes = self.services.routes.clone();
        Way::Long(routes.call(request.map(|rest| arrived.put_back(rest))))
    }
}

/// A request under way.
enum Way {
    /// `unary.rs`.
    Short(Served),
    /// The generated servers.
    Long(<Routes as Service<Request<PutBack<Incoming>>>>::Future),
}

impl Future for Way {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Short(call) => Pin::new(call).poll(context).map(Ok),
            Self::Long(call) => {
                Pin::new(call).poll(context).map_ok(|answer| answer.map(Answer::Long))
            }
        }
    }
}
