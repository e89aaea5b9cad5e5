//! Compiles etcd's protos at build time, in Rust throughout: no protoc is needed.

use std::env;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let protos = ["etcdserverpb/rpc.proto", "v3lockpb/lock.proto"].map(|proto| root.join(proto));
    for proto in &protos {
        println!("cargo::rerun-if-changed={}", proto.display());
    }
    let descriptors = protox::compile(&protos, [&root])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
