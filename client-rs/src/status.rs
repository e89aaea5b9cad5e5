//! Status: the state of a replica.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1;

use crate::client::{Attempt, Call, Client};
use crate::error::Error;
use crate::node::{duration_from_proto, time_from_proto};

/// The state of one replica.
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
    /// Where it keeps everything.
    pub backend: Backend,
    /// Its sessions with ZooKeeper.
    pub sessions: Vec<ZooKeeperSession>,
    /// Its present amounts.
    pub counts: Counts,
    /// Memory for messages that clients send and messages that they have not read.
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
        /// The cause, for people.
        cause: String,
    },
    /// It is about to stop, and takes no new streams.
    Draining {
        /// Time that streams have left.
        remaining: Duration,
    },
    /// A state that this version of the client does not know.
    #[default]
    Unknown,
}

/// Where a replica keeps everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Backend {
    /// Whether it is the memory of the replica, instead of a ZooKeeper ensemble.
    pub is_embedded: bool,
    /// Whether the replica reaches it.
    pub is_connected: bool,
    /// Time since which that is so, by the replica's clock.
    pub since: Option<SystemTime>,
    /// The addresses of the servers that the replica is connected to.
    pub servers: Vec<String>,
    /// Why the last attempt to connect failed; `None` while it is connected.
    pub last_error: Option<String>,
}

/// One session of a replica with ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ZooKeeperSession {
    /// Its id. Nodes that it holds have it as [`ephemeral_owner`](crate::Stat::ephemeral_owner).
    pub id: i64,
    /// Whether it is connected.
    pub is_connected: bool,
    /// The server of its last connection.
    pub server: Option<String>,
    /// The size of its paths, in bytes; `None`: the session only watches, and holds no paths.
    pub path_bytes: Option<Usage>,
}

/// An amount in use, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// The amount in use.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// The present amounts of a replica.
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
    /// Its name; empty when it gives none.
    pub name: String,
    /// Its sessions that hold registrations and locks.
    pub sessions: Vec<i64>,
}

impl Client {
    /// Asks the replica that this client uses for its state. With a client for one replica, that is always this
    /// replica: to ask each of several, create a client for each. A replica also answers while ZooKeeper is away, and
    /// while it drains.
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
