//! Rollcall's API in Rust: the code that is generated from the .proto files, and its encoding.
//!
//! The promises of each call are in `rollcall/v1/registry.proto`, and are copied as comments to the methods of
//! [`v1::registry_client::RegistryClient`] and [`server::v1::registry_server::Registry`].
#![forbid(unsafe_code)]

pub mod codec;

/// Package `rollcall.v1`: messages and [client](v1::registry_client) of the service `Registry`.
///
/// Map fields are `BTreeMap`s, so that equal messages have equal bytes; bytes fields are
/// [`Bytes`](prost::bytes::Bytes). Message and oneof fields are `Option`s whether or not the .proto says so.
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::cast_possible_truncation,
    clippy::semicolon_if_nothing_returned,
    rustdoc::all,
    reason = "generated; its comments are written for every language"
)]
pub mod v1 {
    tonic::include_proto!("rollcall.v1");
}

/// The API as the server reads and writes it.
pub mod server {
    /// Package `rollcall.v1`: messages and [server](v1::registry_server) of the service `Registry`.
    ///
    /// Like [`crate::v1`], except that `Value.data` is the encoded `google.protobuf.Struct`. Rust's `Struct` takes a
    /// hundred times the memory of its bytes, and all the time that it takes to build. The server can refuse a value
    /// before it has spent either, and answer for the one value that is at fault.
    #[allow(
        missing_docs,
        unreachable_pub,
        rust_2018_idioms,
        clippy::all,
        clippy::unwrap_used,
        clippy::needless_pass_by_value,
        clippy::cast_possible_truncation,
        clippy::semicolon_if_nothing_returned,
        rustdoc::all,
        reason = "generated; its comments are written for every language"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/server/rollcall.v1.rs"));
    }
}

/// The descriptors of every file of the API and of those that they import, with comments: an encoded
/// `google.protobuf.FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("rollcall");
