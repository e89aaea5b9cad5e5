//! Compiles the .proto files at build time, in pure Rust: no protoc is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

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

    let configured = || {
        tonic_prost_build::configure()
            // The same message always has the same bytes, so that an encoding can be shared and compared.
            .btree_map(".")
            .bytes(".")
            .emit_rerun_if_changed(false)
    };
    configured().codec_path("crate::codec::SmallBuffers").build_server(false).compile_fds(descriptors.clone())?;
    let server = out.join("server");
    fs::create_dir_all(&server)?;
    let configured = configured().codec_path("crate::codec::Guarded").build_client(false).out_dir(server);
    configured.compile_fds(with_encoded_data(descriptors)?)?;
    Ok(())
}

/// The same descriptors, except that `Value.data` is bytes. On the wire a message and its bytes are the same.
fn with_encoded_data(mut descriptors: FileDescriptorSet) -> Result<FileDescriptorSet, &'static str> {
    let files = descriptors.file.iter_mut().filter(|file| file.package() == "rollcall.v1");
    let value = files.flat_map(|file| &mut file.message_type).find(|message| message.name() == "Value");
    let data = value.and_then(|value| value.field.iter_mut().find(|field| field.name() == "data"));
    let data = data.ok_or("the API has no Value.data")?;
    data.set_type(Type::Bytes);
    data.type_name = None;
    Ok(descriptors)
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
