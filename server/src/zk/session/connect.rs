//! Connects a session: to all addresses of all servers in turn, each with its handshake.
//!
//! For each connect all names are looked up. All addresses are tried in a random order, the server of the last
//! connection last. A server that accepts the connection and says nothing, or closes it, leads to the next. A name that
//! can't be looked up keeps the addresses that it had before. At most 16 addresses are tried in one round. Nothing is
//! sent while there is no connection, and requests that a connection has not delivered when it is given up never
//! arrive.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::RngExt as _;
use rollcall_wire::{ConnectRequest, ConnectResponse};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

use super::super::Error;
use super::super::connection::{self, FrameReader};
use super::Task;
use crate::zk::times::{RECONNECT_CAP, RECONNECT_FIRST, STAGGER};

type Connection = (FrameReader<OwnedReadHalf>, OwnedWriteHalf);

/// The result of one round over all addresses.
enum ConnectRound {
    Connected(Connection),
    /// ZooKeeper says that the session has ended.
    Expired,
    /// No server has taken the session.
    Failed {
        /// Whether a server has closed the connection without an answer.
        is_refused: bool,
        /// Whether a probe has found that the session exists.
        is_standing: bool,
    },
}

impl Task {
    /// Tries all servers in turn until one takes the session; `None` when the session has ended, or all handles are
    /// gone.
    pub(super) async fn connect(&mut self) -> Option<Connection> {
        let mut pause = RECONNECT_FIRST;
        let (mut is_probe, mut no_probe_until) = (false, Instant::now());
        while !self.queue.is_closed() {
            match self.round(is_probe).await {
                ConnectRound::Connected(connection) => return Some(connection),
                ConnectRound::Expired => return None,
                ConnectRound::Failed { is_refused, is_standing } => {
                    let identity = self.identity.lock().clone();
                    if is_standing {
                        // The session exists, but the servers may be behind, so it is not used. It is not probed again
                        // for as long as it can live now, since probes would keep it alive for ever.
                        no_probe_until = Instant::now() + 2 * identity.timeout;
                    }
                    let is_overdue = identity.last_heard.is_some_and(|heard| heard.elapsed() > identity.timeout);
                    is_probe = is_refused && is_overdue && !is_probe && Instant::now() >= no_probe_until;
                }
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(RECONNECT_CAP);
        }
        None
    }

    /// Tries each address once. If all of them accept connections and send nothing, that takes a third of the session
    /// time-out, or half a second for each address if that is more.
    async fn round(&mut self, is_probe: bool) -> ConnectRound {
        self.refuse_queued(Error::NotSent);
        let mut addresses = self.server_addresses.addresses(&self.config.hosts, &self.config.reports).await;
        // The server of the last connection may hang, so the others come first.
        addresses.sort_by_key(|address| Some(*address) == self.server);
        let patience = connection::handshake_timeout(self.config.session_timeout, addresses.len());
        let request = self.connect_request(is_probe);
        // All are called, a little after each other: an address that swallows packets must not delay the others.
        let mut calls: FuturesUnordered<_> = (0..)
            .zip(addresses)
            .map(|(nth, address)| async move {
                tokio::time::sleep(STAGGER * nth).await;
                (connection::dial(address).await, address)
            })
            .collect();
        let (mut is_refused, mut is_standing) = (false, false);
        while let Some((called, address)) = calls.next().await {
            self.refuse_queued(Error::NotSent);
            let (tried, opened) = match called {
                Ok(stream) => ("to open a session", connection::open(stream, &request, patience).await),
                Err(error) => ("to connect", Err(error)),
            };
            match opened {
                Ok((response, ..)) if response.timeout_ms > 0 && is_probe => is_standing = true,
                Ok((response, reader, writer)) if response.timeout_ms > 0 => {
                    self.connected(response, address);
                    return ConnectRound::Connected((reader, writer));
                }
                Ok(_) => return ConnectRound::Expired,
                Err(error) => {
                    // A server that is behind does this, and so does a server that is just starting or has enough
                    // connections.
                    is_refused |= error.kind() == io::ErrorKind::UnexpectedEof;
                    self.config.reports.failed(&self.server_addresses.named(address), tried, &error);
                }
            }
        }
        ConnectRound::Failed { is_refused, is_standing }
    }

    /// A server has taken the session.
    fn connected(&mut self, response: ConnectResponse, address: SocketAddr) {
        self.config.reports.reached(&self.server_addresses.named(address));
        self.server = Some(address);
        self.server_addresses.connected();
        let mut identity = self.identity.lock();
        identity.id = response.session_id;
        identity.password = response.password;
        identity.last_heard = Some(Instant::now());
        identity.server = Some(address);
        identity.timeout = Duration::from_millis(u64::try_from(response.timeout_ms).unwrap_or_default());
        tracing::info!(session = format_args!("{:#x}", identity.id), host = %address, "connected to zookeeper");
    }

    /// The request to a server. A probe claims to have seen nothing.
    fn connect_request(&self, is_probe: bool) -> ConnectRequest {
        let identity = self.identity.lock();
        ConnectRequest {
            last_zxid_seen: if is_probe { 0 } else { identity.last_zxid },
            timeout_ms: i32::try_from(self.config.session_timeout.as_millis()).unwrap_or(i32::MAX),
            session_id: identity.id,
            password: identity.password.clone(),
        }
    }
}
