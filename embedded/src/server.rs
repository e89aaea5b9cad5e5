//! The listener, and the tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::Config;
use crate::connection;
use crate::hub::{Hub, now};
use crate::occasional::Occasional;

/// Why the server can't be started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Other machines could reach the address, and there is nothing to keep them out.
    #[error("{0} is not a loopback address: the embedded server is for one machine")]
    NotLoopback(SocketAddr),
    /// The address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// A server that listens, and answers once it [runs](Self::run).
#[derive(Debug)]
pub struct Embedded {
    listener: TcpListener,
    address: SocketAddr,
    hub: Arc<Hub>,
}

impl Embedded {
    /// Listens on a loopback address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is not a loopback address, or can't be listened on.
    pub async fn bind(address: SocketAddr, config: Config) -> Result<Self, BindError> {
        if !address.ip().to_canonical().is_loopback() {
            return Err(BindError::NotLoopback(address));
        }
        let listen = |source| BindError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, hub: Arc::new(Hub::new(config, address)) })
    }

    /// The address to which clients connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A handle that makes this server misbehave.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn faults(&self) -> crate::Faults {
        crate::Faults::new(self.hub.clone())
    }

    /// Serves until `stop` is done. Then every connection is closed, and everything is forgotten.
    ///
    /// # Cancellation
    /// Dropping the future is the same as stopping.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut clock = JoinSet::new();
        clock.spawn(keep_time(self.hub.clone()));
        let mut failures = Occasional::default();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                // A panic of a connection's task is our bug, and costs only that connection.
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "connection's task failed");
                    }
                }
                // Without the clock no session would ever end.
                Some(_) = clock.join_next() => {
                    tracing::error!("the clock's task ended");
                    return;
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) if !self.hub.switches.is_refusing() => {
                        connections.spawn(connection::serve(self.hub.clone(), stream, peer));
                    }
                    Ok(_) => tracing::debug!("connection refused, as told"),
                    Err(error) => {
                        // Most likely there are no file descriptors left: only the end of other connections helps.
                        const PAUSE: Duration = Duration::from_millis(50);
                        if let Some(times) = failures.note(now(self.hub.started).elapsed_ms) {
                            tracing::warn!(%error, times, "can't accept a connection");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

/// Ends sessions at every tick, and checks mortal nodes now and then.
async fn keep_time(hub: Arc<Hub>) {
    let tick = Duration::from_millis(hub.config.tick_ms());
    // Sessions end on whole ticks since the start.
    let mut ticks = tokio::time::interval_at(hub.started + tick, tick);
    let sweep_interval = hub.config.sweep_interval.max(Duration::from_millis(1));
    let mut sweeps = tokio::time::interval_at(hub.started + sweep_interval, sweep_interval);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => hub.step(|state, now, effects| state.expire(now, effects)),
            _ = sweeps.tick() => hub.step(|state, now, effects| state.sweep(now, effects)),
        }
    }
}
