//! The gateway to ZooKeeper: the only place that knows its protocol.
//!
//! - [`Pool`]: the sessions that hold ephemerals, each with a fence, a heartbeat and a write batcher.
//! - [`Hub`]: recursive watches on sessions of their own. After every reconnect it sets them again, and everything is
//!   read again.
//! - [`Session`]: one session, kept up over any number of connections; typed requests in `calls`.
//!
//! Errors come in the classes of [`Error`], and callers decide by the class alone.

mod activation;
mod calls;
mod config;
mod connection;
mod created;
mod error;
mod fence;
mod fence_mark;
mod horizon;
mod hub;
pub(crate) mod layout;
mod pauses;
mod pool;
#[cfg(test)]
pub(crate) mod proxy;
mod reports;
mod roster;
mod server_addresses;
mod session;
mod times;
mod watches;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) use activation::Activation;
pub(crate) use calls::{Read, create, delete, set_data};
pub(crate) use config::{Config, ConnectStringError, PATH_LENGTH, parse_connect_string};
pub(crate) use connection::MAX_REPLY;
pub(crate) use error::{Error, ErrorCode};
pub(crate) use fence_mark::LONGEST_NAME;
pub(crate) use hub::{Hub, Subscription, Synced, WatchSessionId};
pub(crate) use pauses::Pauses;
pub(crate) use pool::{EphemeralSession, EphemeralSessions, NoRoom, PathReservation, Pool, SESSION_PATH_BYTES};
pub(crate) use reports::Reports;
pub(crate) use rollcall_wire::{CreateMode, MAX_FRAME, Request, Response};
pub(crate) use roster::{Listed, Roster};
pub(crate) use server_addresses::Resolver;
pub(crate) use session::{Answer, KeptUntilAnswer, Link, Session};
use tokio::task::JoinSet;
pub(crate) use watches::{Batch, EventKind, Fired, Mailbox, NodeEvents, OneShot};
pub(crate) use writer::{CommitError, Committed, FenceEpoch, Guard, Unit};

use self::times::{ACTIVATION, ACTIVATION_LOOK};
use crate::types::{SessionId, Zxid};

/// Number of sessions that watch, in addition to the pool.
pub(crate) const WATCHING_SESSIONS: usize = 2;

/// The gateway's handle. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Zk {
    /// The sessions that hold ephemerals, and write.
    pub(crate) pool: Pool,
    /// The sessions that watch, and feed views.
    pub(crate) hub: Hub,
    /// The sessions of all replicas.
    pub(crate) roster: Roster,
    reports: Reports,
    activation: Activation,
}

/// The state of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionReport {
    /// Its id; zero before its first connection.
    pub(crate) id: SessionId,
    pub(crate) is_connected: bool,
    /// The server of the last connection.
    pub(crate) server: Option<SocketAddr>,
    /// Number of bytes of its ephemeral paths. `None` for a session that watches and holds none.
    pub(crate) path_bytes: Option<usize>,
}

impl Zk {
    /// Starts all sessions as tasks of `tasks`; they connect in the background, when [`Config::activation`] lets them, and none
    /// of the tasks ends.
    pub(crate) fn start(config: Config, tasks: &mut JoinSet<()>) -> Self {
        let config = Arc::new(config);
        let pool = Pool::start(&config, tasks);
        let (roster, reading) = Roster::start(pool.clone());
        tasks.spawn(reading);
        let hub = Hub::start(&config, WATCHING_SESSIONS, tasks);
        let zk = Self { pool, hub, roster, reports: config.reports.clone(), activation: config.activation.clone() };
        if !zk.is_active() {
            tasks.spawn(zk.clone().activation());
        }
        zk
    }

    /// The state of each session, those that hold ephemerals first.
    pub(crate) fn sessions(&self) -> Vec<SessionReport> {
        let report = |session: &Session, path_bytes| SessionReport {
            id: session.id(),
            is_connected: session.is_up(),
            server: session.server(),
            path_bytes,
        };
        let owners = self.pool.owners().borrow().clone();
        let holding = owners.iter().map(|owner| report(owner.session(), Some(owner.path_bytes())));
        let watching = self.hub.each_session().map(|session| report(&session, None)).collect::<Vec<_>>();
        holding.chain(watching).collect()
    }

    /// The last failed attempt to connect, with its server; `None` if that server has been reached since.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.reports.last()
    }

    /// The last transaction that this process knows of, from the present sessions.
    pub(crate) fn last_zxid(&self) -> Zxid {
        let owners = self.pool.owners();
        let of_pool = owners.borrow().iter().map(|owner| owner.session().last_zxid()).max().unwrap_or_default();
        of_pool.max(self.hub.last_zxid())
    }

    /// Whether requests of every kind can be sent now, or could be after [`Zk::activate`].
    pub(crate) fn is_up(&self) -> bool {
        !self.is_active() || self.is_connected()
    }

    fn is_connected(&self) -> bool {
        self.hub.is_up() && self.pool.any().is_ok()
    }

    /// Whether a call can be served without [`Zk::activate`].
    pub(crate) fn is_active(&self) -> bool {
        self.activation.is_over()
    }

    /// Opens the sessions that are opened on demand, and waits until they are open, or have not been for a few seconds.
    ///
    /// # Cancellation
    /// Safe: the sessions are opened all the same.
    pub(crate) async fn activate(&self) {
        self.activation.activate().await;
    }

    /// Ends the activation when the sessions are open. Never ends itself.
    async fn activation(self) {
        self.activation.requested().await;
        let connected = async {
            while !self.is_connected() {
                tokio::time::sleep(ACTIVATION_LOOK).await;
            }
        };
        if tokio::time::timeout(ACTIVATION, connected).await.is_err() {
            tracing::warn!("zookeeper can't be used yet: calls do not wait for it any longer");
        }
        self.activation.end();
        std::future::pending::<()>().await;
    }
}
