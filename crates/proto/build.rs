//! Compiles `proto/` with protox (no system `protoc`) and keeps the descriptor set for reflection.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "keyward/v1/kms.proto",
        "keyward/v1/operator.proto",
        "keyward/v1/peer.proto",
        "keyward/v1/join.proto",
        "keyward/v1/quota.proto",
        "keyward/v1/region.proto",
        "keyward/v1/data_plane.proto",
        "keyward/v1/snapshot.proto",
        "google/rpc/status.proto",
    ];
    let descriptors = protox::compile(files, [root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("keyward.bin"), descriptors.encode_to_vec())?;
    // Maps are BTreeMaps: an iteration order that differs between runs would break simulation.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
