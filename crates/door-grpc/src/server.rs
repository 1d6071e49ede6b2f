//! The door of one node, put together.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_model::Region;
use keyward_model::limits::REQUEST_BYTES_MAX;
use keyward_proto::DESCRIPTOR_SET;
use keyward_proto::v1::data_plane_server::DataPlaneServer;
use keyward_proto::v1::join_service_server::JoinServiceServer;
use keyward_proto::v1::key_service_server::KeyServiceServer;
use keyward_proto::v1::link_service_server::LinkServiceServer;
use keyward_proto::v1::operator_service_server::OperatorServiceServer;
use keyward_proto::v1::peer_service_server::PeerServiceServer;
use keyward_proto::v1::quota_service_server::QuotaServiceServer;
use keyward_proto::v1::region_service_server::RegionServiceServer;
use keyward_proto::v1::snapshot_service_server::SnapshotServiceServer;
use keyward_service::{Kms, stack};
use keyward_state::Timers;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::connection::{self, Services};
use crate::data_plane::DataPlaneDoor;
use crate::join::JoinDoor;
use crate::kms::KeyDoor;
use crate::link::LinkDoor;
use crate::operator::OperatorDoor;
use crate::peer::{PEER_BYTES_MAX, PeerDoor};
use crate::quota::QuotaDoor;
use crate::region::RegionDoor;
use crate::snapshot::SnapshotDoor;
use crate::tls::{Terminator, TlsFiles, TrustedRegion};

/// Connections that wait to be served.
const CONNECTIONS_WAITING_MAX: usize = 64;
/// Between looks at whether this node serves, for `grpc.health.v1`.
const HEALTH_ROUND: Duration = Duration::from_millis(250);

/// Between looks at which other Regions are approved.
const TRUST_ROUND: Duration = Duration::from_millis(100);

/// What a door is opened with.
pub struct DoorConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The Region that the node is configured for.
    pub region: Region,
    /// The timers that the node is configured with.
    pub timers: Timers,
    /// Certificates and key.
    pub tls: TlsFiles,
    /// A folder on a disk that has room for a snapshot of the Region, in a file without a name, while it is sent.
    pub spool: PathBuf,
}

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address.
    #[error("cannot listen on {address}: {why}; is another process using it?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        why: std::io::Error,
    },
    /// Certificates or key.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// A built-in descriptor is broken.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A door that listens and does not answer yet.
pub struct Door {
    listener: TcpListener,
    config: DoorConfig,
    terminator: Terminator,
}

impl Door {
    /// Takes the address, so that a port in use is known before anything else starts.
    pub async fn bind(config: DoorConfig) -> Result<Self, DoorError> {
        let terminator = Terminator::new(&config.tls)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|why| DoorError::Listen { address: config.listen, why })?;
        Ok(Self { listener, config, terminator })
    }

    /// Serves until `stop` ends, then lets calls under way finish.
    pub async fn serve(
        self,
        kms: Arc<Kms<RealEnv>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), DoorError> {
        let (connections, incoming) = mpsc::channel(CONNECTIONS_WAITING_MAX);
        self.terminator.time().follow(kms.node());
        RealEnv.spawn(trust(self.terminator.clone(), Arc::clone(&kms)));
        RealEnv.spawn(self.terminator.accept(self.listener, connections));

        let stack = stack(Arc::clone(&kms));
        let (stop_streams, stopping) = watch::channel(false);
        let stop = async move {
            stop.await;
            stop_streams.send_replace(true);
        };
        let data_plane = DataPlaneServer::new(DataPlaneDoor {
            stack: stack.clone(),
            kms: Arc::clone(&kms),
            stopping,
        })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
        let key_door = Arc::new(KeyDoor { stack, kms: Arc::clone(&kms) });
        let key = KeyServiceServer::from_arc(Arc::clone(&key_door))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let operator_door = Arc::new(OperatorDoor {
            kms: Arc::clone(&kms),
            region: self.config.region,
            timers: self.config.timers,
        });
        let quota = QuotaServiceServer::new(QuotaDoor(Arc::clone(&operator_door)))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let operator = OperatorServiceServer::from_arc(Arc::clone(&operator_door))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let join = JoinServiceServer::new(JoinDoor { kms: Arc::clone(&kms) })
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let region = RegionServiceServer::new(RegionDoor(Arc::clone(&operator_door)))
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        let snapshot = SnapshotDoor { door: Arc::clone(&operator_door), spool: self.config.spool };
        let snapshot =
            SnapshotServiceServer::new(snapshot).max_decoding_message_size(REQUEST_BYTES_MAX);
        let link = LinkServiceServer::new(LinkDoor { kms: Arc::clone(&kms) })
            .max_decoding_message_size(PEER_BYTES_MAX)
            .max_encoding_message_size(PEER_BYTES_MAX);
        let peer = PeerServiceServer::new(PeerDoor { node: Arc::clone(kms.node()) })
            .max_decoding_message_size(PEER_BYTES_MAX)
            .max_encoding_message_size(PEER_BYTES_MAX);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let (reporter, health) = tonic_health::server::health_reporter();
        RealEnv.spawn(report_health(reporter, kms));

        let routes = Routes::new(health)
            .add_service(reflection)
            .add_service(operator)
            .add_service(quota)
            .add_service(region)
            .add_service(snapshot)
            .add_service(link)
            .add_service(join)
            .add_service(peer)
            .add_service(data_plane)
            .add_service(key)
            .prepare();
        connection::serve(incoming, Arc::new(Services { key_door, routes }), stop).await;
        Ok(())
    }
}

/// Nodes of Regions that are approved are let in, and principals whom they or outside authorities certify; others no more.
async fn trust(terminator: Terminator, kms: Arc<Kms<RealEnv>>) {
    while !kms.node().is_stopped() {
        let state = kms.node().state();
        let trusted = state.peer_regions().map(|peer| TrustedRegion {
            region: peer.region.clone(),
            region_id: peer.region_id,
            authority: peer.ca_certificate.clone(),
        });
        let believed = state.authorities().filter(|authority| state.believes(authority));
        let mut outside: Vec<&[u8]> =
            believed.map(|authority| &authority.certificate[..]).collect();
        // Several Regions may have added it.
        outside.dedup();
        terminator.trust(trusted.collect(), &outside);
        RealEnv.sleep(TRUST_ROUND).await;
    }
}

/// `grpc.health.v1`: the node serves while it holds a lease. The empty name stands for the process.
async fn report_health(reporter: tonic_health::server::HealthReporter, kms: Arc<Kms<RealEnv>>) {
    let services = [
        "",
        "keyward.v1.KeyService",
        "keyward.v1.DataPlane",
        "keyward.v1.OperatorService",
        "keyward.v1.QuotaService",
        "keyward.v1.RegionService",
        "keyward.v1.SnapshotService",
    ];
    while !kms.node().is_stopped() {
        let serves = kms.node().admit_now().is_ok()
            && kms.node().state().region.is_some()
            && kms.audit().failing().is_none();
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in services {
            reporter.set_service_status(service, status).await;
        }
        RealEnv.sleep(HEALTH_ROUND).await;
    }
}
