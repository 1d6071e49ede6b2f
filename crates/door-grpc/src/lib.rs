//! The gRPC door: `keyward.v1` over mutual TLS, for principals ([`KeyService`], [`DataPlane`], [`OperatorService`]) and
//! between nodes ([`PeerService`]), with `grpc.health.v1` and reflection.
//!
//! **Invariant:** translation only. What a call means, whether it is allowed and what a refusal says is
//! decided in `crates/service`; this crate maps names.
//!
//! [`DataPlane`]: keyward_proto::v1::data_plane_server::DataPlane
//! [`KeyService`]: keyward_proto::v1::key_service_server::KeyService
//! [`OperatorService`]: keyward_proto::v1::operator_service_server::OperatorService
//! [`PeerService`]: keyward_proto::v1::peer_service_server::PeerService

mod common;
mod data_plane;
mod errors;
mod join;
mod kms;
mod link;
mod operator;
mod peer;
mod quota;
mod region;
mod server;
mod snapshot;
mod tls;
mod uses;

pub use errors::status;
pub use link::GrpcRegionTransport;
pub use peer::GrpcTransport;
pub use server::{Door, DoorConfig, DoorError};
pub use tls::{
    Identity, Terminator, TlsError, TlsFiles, node_of, validity_of, zeroize_on_drop::Key,
};

/// An error with its causes on one line: tonic's own text leaves the cause out.
#[must_use]
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
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
