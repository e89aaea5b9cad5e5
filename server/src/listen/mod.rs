//! Connections of clients on both ports: accepted, counted, and bounded in time.
//!
//! A connection over the limit is closed at once. A connection that does not say what it wants in time, or stops
//! reading, is ended by its [`Socket`].

mod http1;
mod places;
mod socket;
mod times;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) use http1::serve as serve_http1;
use places::Places;
pub(crate) use places::{Bounds, descriptors};
pub(crate) use socket::Socket;
use times::{BETWEEN_LINES, PAUSE};

use crate::metrics::{Metrics, Port};

/// Number of bytes that open an HTTP/2 connection: the preface, and the header of the first frame, which is SETTINGS.
const HTTP2_OPENING: usize = 24 + 9;

/// The accept loop of one port.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    places: Places,
    port: Port,
    requirements: socket::PeerRequirements,
    metrics: Metrics,
    refused: Seldom,
    failed: Seldom,
}

impl Listener {
    /// `silence` is the time after which a silent peer loses its connection, if data for it can't be delivered either.
    pub(crate) fn new(listener: TcpListener, port: Port, bounds: Bounds, silence: Duration, metrics: Metrics) -> Self {
        let opening = match port {
            Port::Grpc => HTTP2_OPENING,
            // The HTTP server bounds the time of each head.
            Port::Http => 0,
        };
        let requirements = socket::PeerRequirements { silence, opening };
        let places = Places::new(bounds, metrics.connections.get_or_create(&port.into()).clone());
        Self { listener, places, port, requirements, metrics, refused: Seldom::default(), failed: Seldom::default() }
    }

    /// The next connection that is within the limits.
    pub(crate) async fn accept(&mut self) -> Socket {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.pause_after(&error).await;
                    continue;
                }
            };
            match self.places.take(address.ip()) {
                // Without this, answers wait for acknowledgements. If it can't be set, the peer has gone.
                Ok(place) if stream.set_nodelay(true).is_ok() => return Socket::new(stream, self.requirements, place),
                Ok(_) => {}
                Err(limit) => self.refuse(address, limit),
            }
        }
    }

    /// All connections, for a server that takes a stream of them. The end of the stream returns the listener, so that
    /// the port stays open.
    pub(crate) fn lend(self) -> (impl Stream<Item = io::Result<Socket>>, oneshot::Receiver<Self>) {
        let (owner, returned) = oneshot::channel();
        let lent = Lent { listener: Some(self), owner: Some(owner) };
        let incoming = stream::unfold(lent, async |mut lent| {
            let socket = lent.listener.as_mut()?.accept().await;
            Some((Ok(socket), lent))
        });
        (incoming, returned)
    }

    /// All connections, for good.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Socket>> {
        self.lend().0
    }

    fn refuse(&mut self, address: SocketAddr, limit: places::Full) {
        self.metrics.connections_refused.get_or_create(&self.port.into()).inc();
        if let Some(times) = self.refused.is_due() {
            tracing::warn!(port = self.port.name(), %address, times, "connection refused: {limit}");
        }
    }

    async fn pause_after(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        // The peer left before it was accepted.
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return;
        }
        if let Some(times) = self.failed.is_due() {
            tracing::error!(port = self.port.name(), %error, times, "can't accept connections");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A listener on loan.
#[derive(Debug)]
struct Lent {
    /// Both are set until this is dropped.
    listener: Option<Listener>,
    owner: Option<oneshot::Sender<Listener>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(listener), Some(owner)) = (self.listener.take(), self.owner.take()) {
            // If nobody waits for the listener, the port is closed.
            drop(owner.send(listener));
        }
    }
}

/// Decides which of many equal log lines is written.
#[derive(Debug, Default)]
struct Seldom {
    last: Option<Instant>,
    times: usize,
}

impl Seldom {
    /// Counts one more event. Returns the number of events since the last line if a line is due.
    fn is_due(&mut self) -> Option<usize> {
        self.times += 1;
        if self.last.is_some_and(|last| last.elapsed() < BETWEEN_LINES) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_is_written_at_first_and_then_seldom() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.is_due(), Some(1));
        assert_eq!((seldom.is_due(), seldom.is_due()), (None, None));
        tokio::time::advance(BETWEEN_LINES).await;
        assert_eq!(seldom.is_due(), Some(3));
    }
}
