//! The methods that the floods call, and their requests as bytes.

use std::time::Duration;

use prost::Message as _;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::{self, Consistency};

use super::wire::prefixed;
use crate::client::{span, text};

pub(super) const REGISTER: &str = "/rollcall.v1.Registry/Register";
pub(super) const GET: &str = "/rollcall.v1.Registry/Get";
pub(super) const WATCH: &str = "/rollcall.v1.Registry/Watch";
pub(super) const PUT: &str = "/rollcall.v1.Registry/Put";
pub(super) const DELETE: &str = "/rollcall.v1.Registry/Delete";
pub(super) const ACQUIRE: &str = "/rollcall.v1.Registry/AcquireLock";
pub(super) const RELEASE: &str = "/rollcall.v1.Registry/ReleaseLock";
pub(super) const DESCRIBE: &str = "/rollcall.v1.Registry/DescribeLock";
pub(super) const HEALTH: &str = "/grpc.health.v1.Health/Watch";
pub(super) const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// A request of a Register stream, with its gRPC prefix.
pub(super) fn register(request: Request) -> Vec<u8> {
    prefixed(&v1::RegisterRequest { request: Some(request) }.encode_to_vec())
}

pub(super) fn open(ttl: Option<Duration>) -> Vec<u8> {
    register(Request::Open(v1::OpenSession { ttl: ttl.map(span), ..Default::default() }))
}

pub(super) fn set(path: String) -> Vec<u8> {
    register(Request::Set(v1::SetRegistration { path, value: Some(text("x")), ..Default::default() }))
}

pub(super) fn unset(path: String) -> Vec<u8> {
    register(Request::Unset(v1::UnsetRegistration { path }))
}

pub(super) fn keep_alive() -> Vec<u8> {
    register(Request::KeepAlive(v1::KeepAlive {}))
}

/// The kind of a Get request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Cached,
    Latest,
    /// In pages of this size.
    Pages(i32),
    Recursive,
}

pub(super) fn get(path: String, read: Read) -> Vec<u8> {
    let mut request = v1::GetRequest { path, ..Default::default() };
    match read {
        Read::Cached => {}
        Read::Latest => request.consistency = Consistency::Latest.into(),
        Read::Pages(size) => request.page_size = size,
        Read::Recursive => request.recursive = true,
    }
    request.encode_to_vec()
}

pub(super) fn watch(path: String, recursive: bool, since_revision: i64) -> Vec<u8> {
    v1::WatchRequest { path, recursive, since_revision, ..Default::default() }.encode_to_vec()
}

pub(super) fn put(path: String, value: v1::Value) -> Vec<u8> {
    v1::PutRequest { path, value: Some(value), ..Default::default() }.encode_to_vec()
}

pub(super) fn delete(path: String) -> Vec<u8> {
    v1::DeleteRequest { path, recursive: true, ..Default::default() }.encode_to_vec()
}

pub(super) fn acquire(path: String, name: String) -> Vec<u8> {
    v1::AcquireLockRequest { path, name, ..Default::default() }.encode_to_vec()
}

pub(super) fn release(lock_id: String) -> Vec<u8> {
    v1::ReleaseLockRequest { lock_id }.encode_to_vec()
}

pub(super) fn describe(path: String) -> Vec<u8> {
    v1::DescribeLockRequest { path }.encode_to_vec()
}

/// A name of `bytes` bytes that begins with the number.
pub(super) fn long_name(number: usize, bytes: usize) -> String {
    format!("{number:0>12}-{}", "x".repeat(bytes.saturating_sub(13)))
}
