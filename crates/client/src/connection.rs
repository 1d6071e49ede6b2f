//! Calls to a Region: mutual TLS, several nodes, typed refusals.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_proto::v1::join_service_client::JoinServiceClient;
use keyward_proto::v1::key_service_client::KeyServiceClient;
use keyward_proto::v1::operator_service_client::OperatorServiceClient;
use keyward_proto::v1::quota_service_client::QuotaServiceClient;
use keyward_proto::v1::region_service_client::RegionServiceClient;
use keyward_proto::v1::snapshot_service_client::SnapshotServiceClient;
use keyward_proto::{rpc, v1};
use prost::Message;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};

/// A node that does not take a connection within this is passed over.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Tries over all nodes before a call is given up.
const ROUNDS_MAX: u32 = 3;
/// Between rounds, times the round.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Where a Region is and who calls.
#[derive(Clone)]
pub struct ClientConfig {
    /// `host:port` of its nodes; the first that answers is used.
    pub endpoints: Vec<String>,
    /// The Region's certificate authority, PEM.
    pub authority: Vec<u8>,
    /// The caller's certificate, PEM.
    pub certificate: Vec<u8>,
    /// The caller's private key, PEM.
    pub private_key: zeroize::Zeroizing<Vec<u8>>,
    /// How long one call may take.
    pub patience: Duration,
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No node was named.
    #[error("no endpoint is named: give at least one host:port")]
    NoEndpoint,
    /// Not an address.
    #[error("'{endpoint}' is not an endpoint ({why}): expected host:port")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The caller's certificate has ended.
    #[error(
        "the certificate expired on {0}: get a new one from an operator (`keyward principal renew`)"
    )]
    Expired(String),
    /// The caller's certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
}

/// A refusal, as the server typed it; or what went wrong on the way.
#[derive(Debug, Clone)]
pub struct CallError {
    /// AWS's error name; none when no server answered.
    pub code: Option<String>,
    /// What was wrong.
    pub message: String,
    /// The same call may succeed later.
    pub retryable: bool,
    /// The call may have taken effect.
    pub outcome_unknown: bool,
    /// The quota that was hit.
    pub throttle: Option<v1::Throttle>,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) if self.message.is_empty() => f.write_str(code),
            Some(code) => write!(f, "{code}: {}", self.message),
            None => f.write_str(&self.message),
        }?;
        match &self.throttle {
            Some(throttle) => {
                write!(f, ". Try again in {} ms", throttle.retry_after_milliseconds)
            }
            None => Ok(()),
        }
    }
}

impl std::error::Error for CallError {}

pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl CallError {
    /// A refusal, as the server typed it.
    pub(crate) fn typed(detail: v1::ErrorDetail) -> Self {
        Self {
            code: Some(detail.code),
            message: detail.message,
            retryable: detail.retryable,
            outcome_unknown: detail.outcome_unknown,
            throttle: detail.throttle,
        }
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let detail = rpc::Status::decode(status.details())
            .ok()
            .and_then(|envelope| envelope.details.into_iter().next())
            .and_then(|any| v1::ErrorDetail::decode(any.value.as_slice()).ok());
        match detail {
            Some(detail) => Self::typed(detail),
            None => Self {
                code: None,
                message: plain(&describe(&status)),
                retryable: status.code() == Code::Unavailable,
                outcome_unknown: status.code() == Code::DeadlineExceeded,
                throttle: None,
            },
        }
    }
}

/// Names the cause of the failures that callers meet most.
fn plain(text: &str) -> String {
    let causes = [
        (
            "CertificateExpired",
            "the server refused the certificate: it has expired; get a new one from an operator",
        ),
        ("certificate expired", "the server's or the caller's certificate has expired"),
        (
            "UnknownCA",
            "the server refused the certificate: it was not issued by this Region's authority",
        ),
        (
            "DecryptError",
            "the server refused the certificate: it was not issued by this Region's authority",
        ),
        ("BadCertificate", "the server refused the certificate"),
        ("CertificateRequired", "the server asks for a client certificate"),
        (
            "UnknownIssuer",
            "the server's certificate is not of the authority given as CA: is this the right Region?",
        ),
        (
            // Of another Region of that name, whose authority is called the same.
            "BadSignature",
            "the server's certificate is not of the authority given as CA: is this the right Region?",
        ),
        ("Connection refused", "nothing listens there: is the node running?"),
    ];
    match causes.iter().find(|(sign, _)| text.contains(sign)) {
        Some((_, cause)) => format!("{cause} ({text})"),
        None => text.to_owned(),
    }
}

/// Whether a call may be sent again when its answer got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Reads and uses of a key: again, on another node.
    Safe,
    /// Changes: only when it is certain that nothing was sent.
    IfUnsent,
}

/// A client of one Region. Cheap to share.
pub struct Client {
    endpoints: Vec<String>,
    channels: Vec<Channel>,
    /// The node that answered last.
    preferred: AtomicUsize,
    patience: Duration,
    /// The caller's certificate is not of the authority that was given. It may be of the outside
    /// authority; if a server hangs up, it is not.
    foreign: bool,
}

impl Client {
    /// Prepares the connections; they are made when they are first needed.
    pub fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        if config.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        check_expiry(&config.certificate)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&config.authority))
            .identity(Identity::from_pem(&config.certificate, &*config.private_key));
        let channels = config
            .endpoints
            .iter()
            .map(|endpoint| {
                Endpoint::from_shared(format!("https://{endpoint}"))
                    .and_then(|e| {
                        e.connect_timeout(CONNECT_PATIENCE)
                            .tcp_nodelay(true)
                            .tls_config(tls.clone())
                    })
                    .map(|e| e.connect_lazy())
                    .map_err(|e| ConfigError::Endpoint {
                        endpoint: endpoint.clone(),
                        why: describe(&e),
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            endpoints: config.endpoints.clone(),
            channels,
            preferred: AtomicUsize::new(0),
            patience: config.patience,
            foreign: !issued_by(&config.certificate, &config.authority),
        })
    }

    /// The nodes' addresses.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Calls the key service on the preferred node, once: what a caller without retries sees. The next call goes to the
    /// next node if this one does not serve.
    pub async fn key_once<In, Out, F, Fut>(&self, message: In, call: F) -> Result<Out, CallError>
    where
        F: Fn(KeyServiceClient<Channel>, Request<In>) -> Fut,
        Fut: Future<Output = Result<Response<Out>, Status>> + Send,
        Out: Send,
    {
        let at = self.preferred();
        let call = |channel, r| call(KeyServiceClient::new(channel), r);
        let ended = self.ask(at, message, &call).await;
        self.went(at, &ended);
        ended
    }

    /// Passes over a node that does not serve. A quota is the Region's: another node has no more of it.
    pub(crate) fn went<Out>(&self, at: usize, ended: &Result<Out, CallError>) {
        let elsewhere = |error: &CallError| {
            (error.retryable || error.code.is_none()) && error.throttle.is_none()
        };
        if ended.as_ref().is_err_and(elsewhere) {
            let next = (at + 1) % self.channels.len();
            // Others that were under way there say the same: the first of them counts.
            let _ = self.preferred.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    async fn run<In, Out, F, Fut>(
        &self,
        repeat: Repeat,
        message: In,
        call: F,
    ) -> Result<Out, CallError>
    where
        In: Clone,
        F: Fn(Channel, Request<In>) -> Fut,
        Fut: Future<Output = Result<Response<Out>, Status>> + Send,
        Out: Send,
    {
        self.on_nodes(repeat, |at| self.ask(at, message.clone(), &call)).await
    }

    /// Asks the nodes in turn, the preferred one first, as often as `repeat` allows.
    pub(crate) async fn on_nodes<Out, Fut>(
        &self,
        repeat: Repeat,
        ask: impl Fn(usize) -> Fut,
    ) -> Result<Out, CallError>
    where
        Fut: Future<Output = Result<Out, CallError>>,
    {
        let count = self.channels.len();
        let first = self.preferred();
        let mut last: Option<CallError> = None;
        let end = RealEnv.boot_now() + self.patience;
        for round in 0..ROUNDS_MAX {
            for step in 0..count {
                let at = (first + step) % count;
                let error = match ask(at).await {
                    Ok(answer) => {
                        self.preferred.store(at, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(error) => error,
                };
                if !may_repeat(repeat, &error) {
                    return Err(error);
                }
                // The quota is the Region's: another node has no more of it.
                if let Some(throttle) = &error.throttle {
                    let wait = Duration::from_millis(throttle.retry_after_milliseconds);
                    if RealEnv.boot_now() + wait >= end {
                        return Err(error);
                    }
                    RealEnv.sleep(wait).await;
                }
                // What a node says tells more than that another one is silent.
                if error.code.is_some() || last.as_ref().is_none_or(|last| last.code.is_none()) {
                    last = Some(error);
                }
            }
            RealEnv.sleep(ROUND_PAUSE * (round + 1)).await;
        }
        Err(last.unwrap_or_else(|| Status::unavailable("no node was asked").into()))
    }

    /// The node that answered last.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// How long one call may take.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn channel(&self, at: usize) -> Channel {
        self.channels[at].clone()
    }
}

impl Client {
    /// One call on one node.
    async fn ask<In, Out, F, Fut>(&self, at: usize, message: In, call: &F) -> Result<Out, CallError>
    where
        F: Fn(Channel, Request<In>) -> Fut,
        Fut: Future<Output = Result<Response<Out>, Status>> + Send,
        Out: Send,
    {
        let mut request = Request::new(message);
        request.set_timeout(self.patience);
        // The server answers a little before the deadline that it is told; the margin here is for a
        // server that does not answer at all.
        let patience = self.patience + Duration::from_millis(250);
        let answer = RealEnv.timeout(patience, call(self.channels[at].clone(), request)).await;
        match answer.unwrap_or_else(|| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.explain(at, status)),
        }
    }

    /// What a node's refusal, or silence, means.
    pub(crate) fn explain(&self, at: usize, status: Status) -> CallError {
        let mut error = CallError::from(status);
        if error.code.is_none() {
            let hung_up = [
                "BrokenPipe",
                "broken pipe",
                "ConnectionReset",
                "reset by peer",
                "connection closed",
            ];
            if self.foreign && hung_up.iter().any(|sign| error.message.contains(sign)) {
                // The server's alert can get lost when it hangs up while we write.
                error.message = format!(
                    "the server hung up; the certificate was not issued by this Region's authority \
                     ({})",
                    error.message
                );
            }
            error.message = format!("{}: {}", self.endpoints[at], error.message);
        }
        error
    }
}

/// One method a service: calls it on the nodes in turn, as often as `repeat` allows.
macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $service:ident),+ $(,)?) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name<In, Out, F, Fut>(
                &self,
                repeat: Repeat,
                message: In,
                call: F,
            ) -> Result<Out, CallError>
            where
                In: Clone,
                F: Fn($service<Channel>, Request<In>) -> Fut,
                Fut: Future<Output = Result<Response<Out>, Status>> + Send,
                Out: Send,
            {
                self.run(repeat, message, |channel, request| call($service::new(channel), request))
                    .await
            })+
        }
    };
}

services! {
    /// Calls the key service.
    key: KeyServiceClient,
    /// Calls the operator service.
    operator: OperatorServiceClient,
    /// Calls the quota service.
    quota: QuotaServiceClient,
    /// Calls the service about other Regions.
    region: RegionServiceClient,
    /// Calls the service for backups.
    snapshot: SnapshotServiceClient,
    /// Calls the service for joining.
    joining: JoinServiceClient,
}

fn may_repeat(repeat: Repeat, error: &CallError) -> bool {
    if error.outcome_unknown && repeat == Repeat::IfUnsent {
        return false;
    }
    match (&error.code, repeat) {
        // The server says so, and knows whether anything happened.
        (Some(_), _) => error.retryable,
        // Whatever has happened to the connection: a node that dies ends calls in several ways. A deadline that has passed
        // leaves no time.
        (None, Repeat::Safe) => error.retryable || !error.outcome_unknown,
        (None, Repeat::IfUnsent) => {
            error.retryable
                && ["tcp connect error", "Connection refused", "connect timed out"]
                    .iter()
                    .any(|sign| error.message.contains(sign))
        }
    }
}

/// Whether the first certificate of `certificate` was signed by the first one of `authority`, both PEM.
fn issued_by(certificate: &[u8], authority: &[u8]) -> bool {
    let read = |pem| x509_parser::pem::parse_x509_pem(pem).ok().map(|(_, block)| block);
    let (Some(leaf), Some(issuer)) = (read(certificate), read(authority)) else { return false };
    match (leaf.parse_x509(), issuer.parse_x509()) {
        (Ok(leaf), Ok(issuer)) => leaf.verify_signature(Some(issuer.public_key())).is_ok(),
        _ => false,
    }
}

/// Says so here rather than have a handshake fail with an alert.
fn check_expiry(pem: &[u8]) -> Result<(), ConfigError> {
    let unreadable = |why: &str| ConfigError::Certificate(why.to_owned());
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| unreadable("not PEM"))?;
    let certificate = block.parse_x509().map_err(|_| unreadable("not an X.509 certificate"))?;
    let end = certificate.validity().not_after;
    if end.timestamp() * 1000 <= RealEnv.wall_now_ms() {
        return Err(ConfigError::Expired(end.to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_whose_connection_broke_goes_on_at_another_node_if_it_may() {
        // What tonic makes of a node that dies in the middle of an answer.
        for code in [Code::Unknown, Code::Internal, Code::Cancelled, Code::Unavailable] {
            let error = CallError::from(Status::new(code, "h2 protocol error: broken pipe"));
            assert!(may_repeat(Repeat::Safe, &error), "{code:?}");
            assert!(!may_repeat(Repeat::IfUnsent, &error), "{code:?}");
        }
        let late = CallError::from(Status::deadline_exceeded("no answer in time"));
        assert!(!may_repeat(Repeat::Safe, &late) && !may_repeat(Repeat::IfUnsent, &late));
        let unsent = CallError::from(Status::unavailable("tcp connect error"));
        assert!(may_repeat(Repeat::IfUnsent, &unsent));
    }
}
