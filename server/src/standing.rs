//! The name and state of this replica, and of its connection to ZooKeeper, as it reports them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::zk::{Listed, SESSION_PATH_BYTES, SessionReport, Zk};

/// A handle on the replica's report of itself. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    backend: Backend,
    started: Started,
    zk: Zk,
    reachability: Mutex<Reachability>,
}

/// When the process started, by both clocks.
#[derive(Debug, Clone, Copy)]
struct Started {
    at: Instant,
    time: SystemTime,
}

/// The kind of backend of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A ZooKeeper ensemble.
    ZooKeeper,
    /// The memory of this process.
    Embedded,
}

/// Whether the backend can be reached, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reachability {
    is_up: bool,
    since: Duration,
}

/// The report of a replica.
#[derive(Debug)]
pub(crate) struct ReplicaReport {
    pub(crate) name: String,
    pub(crate) started: SystemTime,
    pub(crate) backend: Backend,
    /// Whether requests of every kind can be sent now.
    pub(crate) is_up: bool,
    /// When `is_up` last changed.
    pub(crate) since: SystemTime,
    /// How the last attempt to connect failed; only while ZooKeeper is away.
    pub(crate) last_failure: Option<String>,
    pub(crate) sessions: Vec<SessionReport>,
    /// Maximum number of bytes of the ephemeral paths of one session.
    pub(crate) session_path_bytes: usize,
    /// The sessions of all replicas.
    pub(crate) replicas: Listed,
}

impl Standing {
    pub(crate) fn new(name: String, backend: Backend, zk: Zk) -> Self {
        let started = Started { at: Instant::now(), time: SystemTime::now() };
        let reachability = Mutex::new(Reachability { is_up: false, since: Duration::ZERO });
        Self(Arc::new(Inner { name, backend, started, zk, reachability }))
    }

    /// Checks whether the backend can be reached. Must be called often: a change counts from when it is seen.
    pub(crate) fn look(&self) -> bool {
        let is_up = self.0.zk.is_up();
        let mut reachability = self.0.reachability.lock();
        if reachability.is_up != is_up {
            *reachability = Reachability { is_up, since: self.0.started.at.elapsed() };
        }
        is_up
    }

    /// Whether a call can be served without [`Standing::activate`].
    pub(crate) fn is_active(&self) -> bool {
        self.0.zk.is_active()
    }

    /// Opens the sessions that are opened on demand, and waits until they are there, for a few seconds at most.
    pub(crate) async fn activate(&self) {
        self.0.zk.activate().await;
    }

    /// Number of ZooKeeper sessions that hold ephemerals.
    pub(crate) fn owners(&self) -> usize {
        self.0.zk.pool.owners().borrow().len()
    }

    /// The report of the replica. Takes half a second at most.
    pub(crate) async fn report(&self) -> ReplicaReport {
        let Inner { name, backend, started, zk, reachability } = &*self.0;
        self.look();
        let Reachability { is_up, since } = *reachability.lock();
        let replicas = if is_up { zk.roster.current().await } else { zk.roster.last() };
        ReplicaReport {
            name: name.clone(),
            started: started.time,
            backend: *backend,
            is_up,
            since: started.time + since,
            last_failure: zk.last_failure().filter(|_| !is_up),
            sessions: zk.sessions(),
            session_path_bytes: SESSION_PATH_BYTES,
            replicas,
        }
    }
}
