//! Code generated from `proto/keyward/v1`, and nothing else.

/// Messages, clients and servers of `keyward.v1`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("keyward.v1");
}

/// `google.rpc`: the envelope of error details.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

/// The encoded descriptor set, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keyward.bin"));
