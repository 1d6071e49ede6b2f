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
mod connection;
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
mod unary;
mod uses;

pub use errors::status;
pub use link::GrpcRegionTransport;
pub use peer::GrpcTransport;
pub use server::{Door, DoorConfig, DoorError};
pub use tls::{
    Identity, Terminator, TlsError, TlsFiles, node_of, validity_of, zeroize_on_drop::Key,
};

/// An error with its causes on one line: tonic's own text leaves the cause out, and a status's begins with words that are for
/// programs.
#[must_use]
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let status = error.downcast_ref::<tonic::Status>();
    let message = status.map(tonic::Status::message).filter(|message| !message.is_empty());
    let mut text = message.map_or_else(|| error.to_string(), ToOwned::to_owned);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_without_its_code() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let mut status = tonic::Status::unavailable("no way there");
        status.set_source(std::sync::Arc::new(refused));
        assert_eq!(describe(&status), "no way there: connection refused");
        let silent = tonic::Status::new(tonic::Code::Unavailable, "");
        assert!(describe(&silent).contains("unavailable"), "{}", describe(&silent));
    }
}
