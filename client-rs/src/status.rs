//! Status: how a replica stands.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::{duration_from_proto, time_from_proto};

/// How one replica stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it started, by its own clock.
    pub started: Option<SystemTime>,
    /// Whether it takes calls.
    pub state: ReplicaState,
    /// What it keeps everything in.
    pub backend: Backend,
    /// Its sessions with ZooKeeper.
    pub sessions: Vec<ZooKeeperSession>,
    /// Amounts that it has now.
    pub counts: Counts,
    /// Memory for what clients send and have not read.
    pub memory: Usage,
    /// Memory for live copies of the paths that are read and watched.
    pub view_memory: Usage,
    /// All replicas that have a session with ZooKeeper, as it last read them.
    pub replicas: Vec<ReplicaSessions>,
    /// When it read them, by its own clock; `None`: never.
    pub replicas_as_of: Option<SystemTime>,
}

/// Whether a replica takes calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReplicaState {
    /// It takes every call.
    Serving,
    /// It is not ready.
    NotServing {
        /// Why, for a human reader.
        cause: String,
    },
    /// It is about to stop, and takes no new streams.
    Draining {
        /// Time that streams may still live.
        remaining: Duration,
    },
    /// It says something that this version of the client does not know.
    #[default]
    Unknown,
}

/// What a replica keeps everything in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Backend {
    /// It is the memory of the replica, not a ZooKeeper ensemble.
    pub is_embedded: bool,
    /// Whether the replica reaches it.
    pub is_connected: bool,
    /// Since when that is so, by the replica's clock.
    pub since: Option<SystemTime>,
    /// The addresses of the servers that the replica is connected to.
    pub servers: Vec<String>,
    /// How the last try to connect failed; `None` while it is connected.
    pub last_error: Option<String>,
}

/// One session of a replica with ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ZooKeeperSession {
    /// Its id, which the nodes that it holds have as [`ephemeral_owner`](crate::Stat::ephemeral_owner).
    pub id: i64,
    /// Whether it is connected.
    pub is_connected: bool,
    /// The server of its last connection.
    pub server: Option<String>,
    /// What its paths come to, in bytes; `None`: it watches, and holds none.
    pub path_bytes: Option<Usage>,
}

/// An amount in use, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// How much is in use.
    pub used: u64,
    /// How much may be.
    pub limit: u64,
}

/// Amounts that a replica has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Connections of clients for gRPC.
    pub connections: u64,
    /// Calls under way of every service, streams included.
    pub calls: u64,
    /// Open Register streams.
    pub register_streams: u64,
    /// Open Watch streams.
    pub watch_streams: u64,
    /// Open AcquireLock streams.
    pub lock_streams: u64,
    /// Get calls that wait for a first child.
    pub waiting_gets: u64,
    /// Registrations that clients hold or ask for.
    pub registrations: u64,
    /// Locks that clients hold or wait for.
    pub locks: u64,
    /// Paths with a live copy.
    pub views: u64,
}

/// A replica, as ZooKeeper shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReplicaSessions {
    /// Its name; empty where it does not say.
    pub name: String,
    /// Its sessions that hold registrations and locks.
    pub sessions: Vec<i64>,
}

impl Client {
    /// Tells how the replica stands that this client is on. Of a client for one replica it is that one, and no other: to ask
    /// each of several, make a client for each. It is answered while ZooKeeper is away, and while the replica drains.
    ///
    /// # Errors
    /// Those of every call; [`Error::Unreachable`].
    ///
    /// # Cancellation
    /// Safe.
    ///
    /// # Connection loss
    /// Another replica is asked, if the client has others.
    pub async fn status(&self) -> Result<ReplicaStatus, Error> {
        let status = |attempt: Attempt| async move {
            let mut stub = attempt.stub();
            attempt.bounded(stub.status(v1::StatusRequest {})).await
        };
        self.call(Call::read("/"), status).await.map(ReplicaStatus::from_proto)
    }
}

impl ReplicaStatus {
    fn from_proto(status: v1::StatusResponse) -> Self {
        let state = match status.state() {
            v1::ReplicaState::Serving => ReplicaState::Serving,
            v1::ReplicaState::NotServing => ReplicaState::NotServing { cause: status.state_cause },
            v1::ReplicaState::Draining => {
                ReplicaState::Draining { remaining: status.remaining.map(duration_from_proto).unwrap_or_default() }
            }
            v1::ReplicaState::Unspecified => ReplicaState::Unknown,
        };
        let replicas = status.replicas.into_iter();
        Self {
            name: status.replica,
            version: status.version,
            started: status.start_time.and_then(time_from_proto),
            state,
            backend: status.backend.map(Backend::from_proto).unwrap_or_default(),
            sessions: status.sessions.into_iter().map(ZooKeeperSession::from_proto).collect(),
            counts: status.counts.map(Counts::from_proto).unwrap_or_default(),
            memory: Usage::from_proto(status.memory),
            view_memory: Usage::from_proto(status.view_memory),
            replicas: replicas
                .map(|replica| ReplicaSessions { name: replica.replica, sessions: replica.sessions })
                .collect(),
            replicas_as_of: status.replicas_time.and_then(time_from_proto),
        }
    }
}

impl Backend {
    fn from_proto(backend: v1::BackendStatus) -> Self {
        Self {
            is_embedded: backend.kind() == v1::BackendKind::Embedded,
            is_connected: backend.state() == v1::BackendState::Connected,
            since: backend.since_time.and_then(time_from_proto),
            servers: backend.servers,
            last_error: (!backend.last_error.is_empty()).then_some(backend.last_error),
        }
    }
}

impl ZooKeeperSession {
    fn from_proto(session: v1::SessionStatus) -> Self {
        Self {
            id: session.id,
            is_connected: session.connected,
            server: (!session.server.is_empty()).then_some(session.server),
            path_bytes: (!session.watching).then(|| Usage::from_proto(session.path_bytes)),
        }
    }
}

impl Usage {
    fn from_proto(usage: Option<v1::Usage>) -> Self {
        usage.map(|usage| Self { used: usage.used, limit: usage.limit }).unwrap_or_default()
    }
}

impl Counts {
    fn from_proto(counts: v1::ReplicaCounts) -> Self {
        Self {
            connections: counts.connections,
            calls: counts.calls,
            register_streams: counts.register_streams,
            watch_streams: counts.watch_streams,
            lock_streams: counts.lock_streams,
            waiting_gets: counts.waiting_gets,
            registrations: counts.registrations,
            locks: counts.locks,
            views: counts.views,
        }
    }

    /// Open streams of every kind.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.register_streams + self.watch_streams + self.lock_streams
    }
}
