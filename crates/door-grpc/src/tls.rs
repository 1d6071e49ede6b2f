//! Mutual TLS: who is on the other end of a connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyward_env::{Env, RealEnv};
use keyward_model::{NodeId, Region, Timestamp};
use keyward_raft::Node;
use keyward_service::{Caller, Issuer, Origin, Subject, fingerprint};
use keyward_state::{Fingerprint, InvitationId};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::server::Connected;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A handshake takes two round trips; who takes longer than this holds a place for nothing.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Handshakes under way at once; further connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;

/// Certificates and key of a node, PEM as read from its files.
#[derive(Clone)]
pub struct TlsFiles {
    /// The node's certificate chain.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub private_key: zeroize_on_drop::Key,
    /// The Region's own certificate authority.
    pub authority: Vec<u8>,
}

impl TlsFiles {
    /// The node's certificate chain and key, DER.
    fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(&self.certificate, "the node's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(self.private_key.bytes())
            .map_err(|e| tls_error("the node's private key")(&e))?;
        Ok((chain, key))
    }
}

/// Wipes private keys that were read from files.
pub mod zeroize_on_drop {
    /// A private key, PEM.
    #[derive(Clone)]
    pub struct Key(zeroize::Zeroizing<Vec<u8>>);

    impl Key {
        /// Takes the bytes over.
        #[must_use]
        pub fn new(bytes: Vec<u8>) -> Self {
            Self(zeroize::Zeroizing::new(bytes))
        }

        /// The bytes.
        #[must_use]
        pub fn bytes(&self) -> &[u8] {
            &self.0
        }
    }
}

/// Who is on the other end.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A principal.
    Principal(Arc<Caller>),
    /// A node of this Region.
    Node(NodeId),
    /// A machine that was invited to become one.
    Invitation(InvitationId),
    /// A node of another Region, which an operator approved.
    Region(Region, [u8; 16]),
    /// A valid certificate that names nobody we know how to address, and why.
    Nobody(String),
}

/// The other end of a connection, and how it is reached.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who.
    pub identity: Identity,
    /// From where, and over which TLS.
    pub origin: Arc<Origin>,
}

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct TlsError {
    what: &'static str,
    why: String,
}

fn tls_error(what: &'static str) -> impl Copy + Fn(&dyn std::fmt::Display) -> TlsError {
    move |why| TlsError { what, why: why.to_string() }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| tls_error(what)(&e))?;
    if list.is_empty() { Err(tls_error(what)(&"no certificate in it")) } else { Ok(list) }
}

/// The time by which certificates are judged in handshakes: the Region's, once the node serves (one wrong wall
/// clock lets nobody in and keeps nobody out); before that, the node's own.
#[derive(Debug, Default)]
pub(crate) struct HandshakeTime {
    node: OnceLock<WeakNode>,
}

struct WeakNode(Weak<Node<RealEnv>>);

impl std::fmt::Debug for WeakNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakNode")
    }
}

impl HandshakeTime {
    pub(crate) fn follow(&self, node: &Arc<Node<RealEnv>>) {
        // A door serves one node, once.
        let _ = self.node.set(WeakNode(Arc::downgrade(node)));
    }
}

impl TimeProvider for HandshakeTime {
    fn current_time(&self) -> Option<UnixTime> {
        let node = self.node.get().and_then(|node| node.0.upgrade());
        let now = node.map_or_else(|| RealEnv.wall_now_ms(), |node| node.wall_now().0);
        let since = Duration::from_millis(u64::try_from(now).ok()?);
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// Makes connections to nodes of another Region.
pub(crate) fn region_connector(
    authority: &[u8],
    certificate: &[u8],
    private_key: &[u8],
    time: &Arc<HandshakeTime>,
) -> Result<Connector, TlsError> {
    let mut roots = RootCertStore::empty();
    let what = "another Region's CA certificate";
    roots.add(CertificateDer::from(authority.to_vec())).map_err(|e| tls_error(what)(&e))?;
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    let key = PrivateKeyDer::Pkcs8(private_key.to_vec().into());
    Connector::showing(roots, chain, key, Arc::clone(time))
}

/// Makes a node's connections to other nodes.
#[derive(Clone)]
pub(crate) struct Connector {
    connector: TlsConnector,
    time: Arc<HandshakeTime>,
}

impl Connector {
    /// Shows the node's own certificate, and trusts the Region's authority alone.
    pub(crate) fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        let what = "the Region's CA certificate";
        let mut roots = RootCertStore::empty();
        for der in certificates(&files.authority, what)? {
            roots.add(der).map_err(|e| tls_error(what)(&e))?;
        }
        let (chain, key) = files.own()?;
        Self::showing(roots, chain, key, Arc::default())
    }

    fn showing(
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        time: Arc<HandshakeTime>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clock: Arc<dyn TimeProvider> = Arc::<HandshakeTime>::clone(&time);
        let mut config = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls_error("TLS versions")(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| tls_error("the node's certificate and key")(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), time })
    }

    /// The clock of handshakes.
    pub(crate) fn time(&self) -> &HandshakeTime {
        &self.time
    }

    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        // An IPv6 address stands in brackets in a URI.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let socket = TcpStream::connect((host, port)).await?;
        socket.set_nodelay(true)?;
        self.connector.connect(name, socket).await
    }
}

/// Terminates TLS and tells who is there.
#[derive(Clone)]
pub struct Terminator {
    files: Arc<TlsFiles>,
    time: Arc<HandshakeTime>,
    /// The Region's own authority, DER.
    authority: Arc<CertificateDer<'static>>,
    trust: Arc<ArcSwap<Trust>>,
}

/// Whose certificates are let in. Changes as other Regions are approved.
struct Trust {
    acceptor: TlsAcceptor,
    regions: Vec<TrustedRegion>,
    outside: Vec<Outside>,
    /// The outside authorities as they were told, those that cannot be used too.
    told: Vec<Vec<u8>>,
}

/// An outside authority. Whose certificate a chain leads to says nobody but a verifier that knows no other.
struct Outside {
    /// Its certificate, DER.
    certificate: Vec<u8>,
    fingerprint: Fingerprint,
    not_after: Timestamp,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Outside {
    fn new(certificate: &[u8]) -> Result<Self, TlsError> {
        let wrong = tls_error("an outside authority's certificate");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(certificate.to_vec())).map_err(|e| wrong(&e))?;
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| wrong(&e))?;
        let not_after = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| wrong(&e))?;
        let fingerprint = fingerprint(certificate);
        Ok(Self { certificate: certificate.to_vec(), fingerprint, not_after, verifier })
    }
}

/// Another Region, as far as TLS is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustedRegion {
    pub(crate) region: Region,
    pub(crate) region_id: [u8; 16],
    /// Its authority, DER.
    pub(crate) authority: Vec<u8>,
}

/// Peers would refuse a certificate that the Region's authority has not signed: better said at the start.
fn issued_by(authority: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
    let wrong = tls_error("the node's certificate");
    let own = chain.first().ok_or_else(|| wrong(&"no certificate in it"))?;
    let (_, own) = X509Certificate::from_der(own).map_err(|e| wrong(&e))?;
    let (_, authority) = X509Certificate::from_der(authority)
        .map_err(|e| tls_error("the Region's CA certificate")(&e))?;
    own.verify_signature(Some(authority.public_key())).map_err(|_| {
        wrong(&"the Region's authority has not signed it: it is damaged, or another Region's")
    })
}

impl Terminator {
    /// Prepares TLS with a node's files. Every client must show a certificate.
    pub fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        let own = certificates(&files.authority, "the Region's CA certificate")?;
        let (chain, _) = files.own()?;
        let authority = own
            .into_iter()
            .next()
            .ok_or_else(|| tls_error("the Region's CA certificate")(&"no certificate in it"))?;
        issued_by(&authority, &chain)?;
        let time = Arc::new(HandshakeTime::default());
        let trust = Self::trusting(files, &time, Vec::new(), Vec::new())?;
        Ok(Self {
            files: Arc::new(files.clone()),
            time,
            authority: Arc::new(authority),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
        })
    }

    /// Lets nodes of these Regions in from now on, and principals whom these or the outside authorities (certificates, DER)
    /// certify; and no others.
    pub(crate) fn trust(&self, regions: Vec<TrustedRegion>, authorities: &[&[u8]]) {
        let trusted = self.trust.load();
        if trusted.regions == regions && trusted.told == authorities {
            return;
        }
        // One that cannot be used keeps nobody else out.
        let outside = authorities.iter().filter_map(|certificate| {
            Outside::new(certificate)
                .inspect_err(|error| tracing::error!(%error, "an outside authority cannot be used"))
                .ok()
        });
        match Self::trusting(&self.files, &self.time, regions, outside.collect()) {
            Ok(trust) => {
                let told = authorities.iter().map(|certificate| certificate.to_vec()).collect();
                self.trust.store(Arc::new(Trust { told, ..trust }));
            }
            Err(error) => tracing::error!(%error, "a Region that was approved cannot be let in"),
        }
    }

    fn trusting(
        files: &TlsFiles,
        time: &Arc<HandshakeTime>,
        regions: Vec<TrustedRegion>,
        outside: Vec<Outside>,
    ) -> Result<Trust, TlsError> {
        let own = certificates(&files.authority, "the Region's CA certificate")?;
        let mut roots = RootCertStore::empty();
        for other in &regions {
            let der = CertificateDer::from(other.authority.clone());
            roots.add(der).map_err(|e| tls_error("another Region's CA certificate")(&e))?;
        }
        let mut trust = |list: &[CertificateDer<'static>], what| {
            list.iter().try_for_each(|der| roots.add(der.clone()).map_err(|e| tls_error(what)(&e)))
        };
        trust(&own, "the Region's CA certificate")?;
        for authority in &outside {
            let der = CertificateDer::from(authority.certificate.clone());
            trust(&[der], "an outside authority's certificate")?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|e| tls_error("client certificates")(&e))?;
        let (chain, key) = files.own()?;
        let clock: Arc<dyn TimeProvider> = Arc::<HandshakeTime>::clone(time);
        let mut config = ServerConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls_error("TLS versions")(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| tls_error("the node's certificate and key")(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Trust {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            regions,
            outside,
            told: Vec::new(),
        })
    }

    /// The clock of handshakes.
    pub(crate) fn time(&self) -> &HandshakeTime {
        &self.time
    }

    /// Accepts connections for ever; each arrives with its identity once its handshake is done. Refused
    /// ones are logged and counted.
    pub async fn accept(self, listener: TcpListener, ready: mpsc::Sender<Connection>) {
        let places = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others are about to be closed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    RealEnv.sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if ready.is_closed() {
                return;
            }
            let (this, ready) = (self.clone(), ready.clone());
            RealEnv.spawn(async move {
                let result = RealEnv.timeout(HANDSHAKE_PATIENCE, this.handshake(socket)).await;
                drop(place);
                match result {
                    Some(Ok(connection)) => drop(ready.send(connection).await),
                    Some(Err(error)) => refused(&error, peer),
                    None => refused(&io::Error::from(io::ErrorKind::TimedOut), peer),
                }
            });
        }
    }

    async fn handshake(&self, socket: TcpStream) -> io::Result<Connection> {
        socket.set_nodelay(true)?;
        let acceptor = self.trust.load().acceptor.clone();
        let stream = acceptor.accept(socket).await?;
        let (socket, session) = stream.get_ref();
        let tls_version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let cipher_suite = session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .map(|name| name.replace("TLS13_", "TLS_"))
            .unwrap_or_default();
        let origin = Arc::new(Origin::new(socket.peer_addr()?.ip(), tls_version, cipher_suite));
        let identity = match session.peer_certificates().and_then(<[_]>::split_first) {
            Some((leaf, others)) => self.identify(leaf, others),
            None => Identity::Nobody("no client certificate was shown".to_owned()),
        };
        Ok(Connection { stream: BufWriter::new(stream), peer: Peer { identity, origin } })
    }

    /// The id of the other Region whose authority has issued it.
    fn region_that_issued(&self, certificate: &X509Certificate<'_>) -> Option<[u8; 16]> {
        let trust = self.trust.load();
        let issued = |other: &&TrustedRegion| {
            X509Certificate::from_der(&other.authority).is_ok_and(|(_, authority)| {
                certificate.verify_signature(Some(authority.public_key())).is_ok()
            })
        };
        trust.regions.iter().find(issued).map(|other| other.region_id)
    }

    /// The outside authority that a chain leads to, and when what that certifies ends.
    fn outside_that_issued(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Option<(Fingerprint, Timestamp)> {
        let now = self.time.current_time()?;
        let trust = self.trust.load();
        let led_to =
            |outside: &&Outside| outside.verifier.verify_client_cert(leaf, others, now).is_ok();
        trust.outside.iter().find(led_to).map(|outside| (outside.fingerprint, outside.not_after))
    }

    /// Reads a certificate that was verified already; `others` came with it.
    fn identify(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Identity {
        let nobody = |why: &str| Identity::Nobody(why.to_owned());
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return nobody("the certificate cannot be read");
        };
        let Ok((_, authority)) = X509Certificate::from_der(&self.authority) else {
            return nobody("the authority's certificate cannot be read");
        };
        let own_authority = certificate.verify_signature(Some(authority.public_key())).is_ok();
        let names = certificate.subject_alternative_name().ok().flatten();
        let subject = names.and_then(|names| {
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => Subject::from_uri(uri),
                _ => None,
            })
        });
        match subject {
            // Only the Region's own authority makes nodes.
            Some(Subject::Node(node)) if own_authority => Identity::Node(node),
            Some(Subject::Invitation(id)) if own_authority => Identity::Invitation(id),
            Some(Subject::Node(_) | Subject::Invitation(_)) => {
                nobody("a node's certificate must be issued by the Region's own authority")
            }
            Some(Subject::Region(region, region_id)) => {
                let trust = self.trust.load();
                let issued = |other: &&TrustedRegion| {
                    other.region == region
                        && other.region_id == region_id
                        && X509Certificate::from_der(&other.authority).is_ok_and(
                            |(_, authority)| {
                                certificate.verify_signature(Some(authority.public_key())).is_ok()
                            },
                        )
                };
                match trust.regions.iter().find(issued) {
                    Some(_) => Identity::Region(region, region_id),
                    None => nobody("the certificate names a Region that is not approved here"),
                }
            }
            Some(Subject::Snapshot(..)) => nobody("the certificate of a snapshot opens no door"),
            Some(Subject::Principal(principal)) => {
                let ends = certificate.validity().not_after.timestamp().saturating_mul(1000);
                let mut not_after = Timestamp(ends);
                let issuer = if own_authority {
                    Issuer::Own
                } else if let Some(home) = self.region_that_issued(&certificate) {
                    Issuer::Region(home)
                } else if let Some((authority, ends)) = self.outside_that_issued(leaf, others) {
                    not_after = not_after.min(ends);
                    Issuer::Outside(authority)
                } else {
                    // Trusted when the handshake began, and removed since.
                    return nobody(
                        "the authority that has issued the certificate is trusted no more",
                    );
                };
                let serial = certificate.raw_serial().to_vec();
                Identity::Principal(Arc::new(Caller::new(principal, serial, not_after, issuer)))
            }
            None => nobody("the certificate names no principal: its URI name must be an ARN"),
        }
    }
}

fn refused(error: &io::Error, peer: std::net::SocketAddr) {
    use rustls::CertificateError as Cert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reason = match inner {
        Some(rustls::Error::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. })) => {
            "expired_certificate"
        }
        Some(rustls::Error::InvalidCertificate(Cert::UnknownIssuer | Cert::BadSignature)) => {
            "foreign_certificate"
        }
        Some(rustls::Error::InvalidCertificate(_)) => "bad_certificate",
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(_) => "tls",
        None if error.kind() == io::ErrorKind::TimedOut => "timeout",
        None => "connection",
    };
    metrics::counter!("keyward_connections_refused_total", "reason" => reason).increment(1);
    if reason == "connection" {
        tracing::debug!(%peer, %error, "a connection ended before its handshake did");
    } else {
        tracing::warn!(%peer, reason, %error, "a connection was refused");
    }
}

/// A connection whose handshake is done.
pub struct Connection {
    /// What is larger than `h2` gathers comes in two pieces, head and payload: one TLS record all the same.
    stream: BufWriter<TlsStream<TcpStream>>,
    peer: Peer,
}

impl Connection {
    /// The other end.
    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// So that any server of tonic can serve it: what a call costs here is measured beside one.
impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    // Not vectored: TLS copies all the same, and `h2` would write each frame of more than 256 bytes on its own, with a
    // system call and a TLS record each, where it gathers frames of up to 1,024 bytes otherwise.
}

/// Begin and end of a certificate (PEM).
#[must_use]
pub fn validity_of(certificate: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let chain = certificates(certificate, "the node's certificate").ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let validity = leaf.validity();
    let at = |time: &x509_parser::time::ASN1Time| Timestamp(time.timestamp() * 1000);
    Some((at(&validity.not_before), at(&validity.not_after)))
}

/// The node that a certificate (PEM) names, if it names one.
#[must_use]
pub fn node_of(certificate: &[u8]) -> Option<NodeId> {
    let chain = certificates(certificate, "the node's certificate").ok()?;
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => match Subject::from_uri(uri) {
            Some(Subject::Node(node)) => Some(node),
            _ => None,
        },
        _ => None,
    })
}
