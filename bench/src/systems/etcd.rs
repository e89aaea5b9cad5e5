//! One etcd member with its defaults, fsync on, started as etcd's documentation does; and its API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;
use rollcall_tests::zookeeper::free_address;
use tonic::transport::Channel;

use super::rollcall::endpoint;
use super::{Directory, START};

/// The code generated from etcd's protos.
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub(crate) mod api {
    tonic::include_proto!("etcdserverpb");

    pub(crate) mod lock {
        tonic::include_proto!("v3lockpb");
    }
}

use api::kv_client::KvClient;
use api::lease_client::LeaseClient;
use api::lock::lock_client::LockClient;
use api::lock::{LockRequest, UnlockRequest};
use api::watch_request::RequestUnion;
use api::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest};

/// Duration of a lease without keep-alives, in seconds: longer than any measurement.
const TTL: i64 = 600;

/// One member. Dropping kills it.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Process,
    address: SocketAddr,
    _directory: Directory,
}

impl Etcd {
    /// Starts a member, and waits until it answers.
    pub(crate) async fn start() -> anyhow::Result<Etcd> {
        let program = program();
        ensure!(program.is_file(), "no etcd in {}: run tests/setup.sh etcd", program.display());
        let directory = scratch("etcd");
        let (address, peer) = (free_address(), free_address());
        let (clients, peers) = (format!("http://{address}"), format!("http://{peer}"));
        let mut command = Command::new(program);
        command
            .args(["--name", "bench", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("bench={peers}")]);
        let mut process = Process::spawn("etcd", directory.path(), &mut command);
        eventually("etcd answers", START, async || {
            if let Some(status) = process.exited() {
                return Err(format!("it ended at its start, {status}:\n{}", process.stderr()));
            }
            let channel = endpoint(address).map_err(|error| error.to_string())?.connect().await;
            let mut client = KvClient::new(channel.map_err(|error| error.to_string())?);
            // Not a serializable read, so it is answered only once there is a leader.
            let range = RangeRequest { key: "/".into(), ..Default::default() };
            client.range(range).await.map(|_| ()).map_err(|status| status.to_string())
        })
        .await;
        Ok(Etcd { process, address, _directory: Box::new(directory) })
    }

    /// The version of etcd.
    pub(super) fn version() -> String {
        super::facts::first_line(Command::new(program()).arg("--version"))
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The address for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens a new connection.
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        endpoint(self.address)?.connect().await.context("can't connect to etcd")
    }
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/bin/etcd")
}

/// Makes etcd's counterpart of a registration: a lease, and a key that ends with it. Returns the lease.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn register(channel: &Channel, key: String, value: String) -> anyhow::Result<i64> {
    let lease = grant(channel).await?;
    put(channel, key, value, lease).await?;
    Ok(lease)
}

/// Puts a value, with a lease unless that is 0.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn put(channel: &Channel, key: String, value: String, lease: i64) -> anyhow::Result<()> {
    let put = PutRequest { key: key.into(), value: value.into(), lease };
    KvClient::new(channel.clone()).put(put).await?;
    Ok(())
}

/// Grants a new lease.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn grant(channel: &Channel) -> anyhow::Result<i64> {
    let grant = LeaseGrantRequest { ttl: TTL, id: 0 };
    Ok(LeaseClient::new(channel.clone()).lease_grant(grant).await?.into_inner().id)
}

/// Ends a lease, and deletes its keys.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn revoke(channel: &Channel, lease: i64) -> anyhow::Result<()> {
    LeaseClient::new(channel.clone()).lease_revoke(LeaseRevokeRequest { id: lease }).await?;
    Ok(())
}

/// A request to watch all keys with this prefix.
pub(crate) fn watch_request(prefix: &str) -> WatchRequest {
    let RangeRequest { key, range_end, .. } = range_request(prefix);
    let create = WatchCreateRequest { key, range_end };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// A request for all keys with this prefix, as this member has them.
pub(crate) fn range_request(prefix: &str) -> RangeRequest {
    // All keys are ASCII. The range ends before the prefix with its last character replaced by the next.
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), serializable: true }
}

/// The values of all keys with this prefix.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn range(channel: &Channel, prefix: &str) -> anyhow::Result<Vec<Bytes>> {
    let found = KvClient::new(channel.clone()).range(range_request(prefix)).await?.into_inner();
    Ok(found.kvs.into_iter().map(|kv| kv.value).collect())
}

/// Takes a lock of etcd's lock service, for at most as long as the lease lives. Returns the argument for [`unlock`].
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn lock(channel: &Channel, name: String, lease: i64) -> anyhow::Result<UnlockRequest> {
    let lock = LockRequest { name: name.into(), lease };
    let key = LockClient::new(channel.clone()).lock(lock).await?.into_inner().key;
    Ok(UnlockRequest { key })
}

/// Releases the lock.
///
/// # Errors
/// Any error that etcd returns.
pub(crate) async fn unlock(channel: &Channel, unlock: UnlockRequest) -> anyhow::Result<()> {
    LockClient::new(channel.clone()).unlock(unlock).await?;
    Ok(())
}
