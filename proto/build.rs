//! Compiles the .proto files at build time, in Rust throughout: no protoc is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let package = root.join("rollcall/v1");
    // The directory, so that a new file is seen; the files, so that an edit is.
    println!("cargo::rerun-if-changed={}", package.display());
    let protos = protos_in(&package)?;
    for proto in &protos {
        println!("cargo::rerun-if-changed={}", proto.display());
    }

    // With imports and comments: reflection clients need the first, and show the second.
    let descriptors = protox::compile(&protos, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("rollcall.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // The same message always has the same bytes, so that an encoding can be shared and compared.
        .btree_map(".")
        .bytes(".")
        .codec_path("crate::codec::SmallBuffers")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

/// The .proto files of a directory, by name, so that the output does not depend on the file system.
fn protos_in(directory: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut protos = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            protos.push(path);
        }
    }
    protos.sort();
    Ok(protos)
}
