//! A connection that does not wait for its peer for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::places::ConnectionPlace;
use super::times::OPENING_TIMEOUT;

/// The requirements that a peer must meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerRequirements {
    /// Time after which a peer that neither sends nor takes anything counts as gone.
    pub(super) silence: Duration,
    /// Number of bytes that must have arrived within [`OPENING_TIMEOUT`].
    pub(super) opening: usize,
}

/// A connection, and its place among all connections. Reads and writes fail with [`io::ErrorKind::TimedOut`] when the
/// peer
/// - has not opened the connection in time, or
/// - takes no data, and was not heard of for as long as `silence`. HTTP/2's pings alone do not end such a connection:
///   its last frames would have to be delivered first.
#[derive(Debug)]
pub(crate) struct Socket<S = TcpStream> {
    stream: S,
    silence: Duration,
    opening: Option<OpeningBytes>,
    /// When bytes last arrived.
    heard: Instant,
    stuck: Option<Stuck>,
    _place: Option<ConnectionPlace>,
}

/// The bytes that must arrive before the connection is open.
#[derive(Debug)]
struct OpeningBytes {
    left: usize,
    alarm: Pin<Box<Sleep>>,
}

/// A write that the peer does not take.
#[derive(Debug)]
struct Stuck {
    since: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, requirements: PeerRequirements, place: impl Into<Option<ConnectionPlace>>) -> Self {
        let PeerRequirements { silence, opening } = requirements;
        let opening = (opening > 0).then(|| OpeningBytes { left: opening, alarm: Box::pin(sleep(OPENING_TIMEOUT)) });
        Self { stream, silence, opening, heard: Instant::now(), stuck: None, _place: place.into() }
    }

    /// Notes the result of a write. Fails when the write is stuck, and the peer is gone.
    fn written<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        // At least half of the time counts from when the write got stuck: a process that was stopped first reads what
        // arrived meanwhile.
        let due = |since: Instant| (self.heard + self.silence).max(since + self.silence / 2);
        let stuck = self.stuck.get_or_insert_with(|| {
            let since = Instant::now();
            Stuck { since, alarm: Box::pin(sleep_until(due(since))) }
        });
        loop {
            ready!(stuck.alarm.as_mut().poll(context));
            let due = due(stuck.since);
            if due <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")));
            }
            stuck.alarm.as_mut().reset(due);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending => {
                if let Some(opening) = &mut this.opening {
                    ready!(opening.alarm.as_mut().poll(context));
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was not opened")));
                }
                Poll::Pending
            }
            read => {
                this.heard = Instant::now();
                let count = buffer.filled().len() - before;
                this.opening.take_if(|opening| {
                    opening.left = opening.left.saturating_sub(count);
                    opening.left == 0
                });
                read
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{advance, timeout};

    use super::*;

    const SILENCE: Duration = Duration::from_secs(20);

    fn pair(opening: usize) -> (Socket<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(16);
        (Socket::new(ours, PeerRequirements { silence: SILENCE, opening }, None), theirs)
    }

    async fn ends_with_time_out<T: std::fmt::Debug>(what: impl Future<Output = io::Result<T>>) -> Duration {
        let began = Instant::now();
        assert_eq!(what.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_opened_by_half_has_no_longer_than_one_that_is_not() {
        for sent in [0, 1, 32] {
            let (mut socket, mut peer) = pair(33);
            let filling = tokio::spawn(async move {
                for _ in 0..sent {
                    peer.write_all(b"x").await.unwrap();
                }
                peer
            });
            let after = ends_with_time_out(socket.read_exact(&mut [0; 33])).await;
            assert_eq!(after.as_secs(), OPENING_TIMEOUT.as_secs());
            drop(filling.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_opened_may_be_silent() {
        let (mut socket, mut peer) = pair(3);
        peer.write_all(b"yes").await.unwrap();
        socket.read_exact(&mut [0; 3]).await.unwrap();
        assert!(timeout(100 * SILENCE, socket.read_u8()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_and_says_nothing_is_gone() {
        let (mut socket, _peer) = pair(0);
        advance(SILENCE / 4).await;
        let after = ends_with_time_out(socket.write_all(&[0; 100])).await;
        assert_eq!(after.as_secs(), SILENCE.as_secs() * 3 / 4, "it counts from when the peer was last heard");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_heard_keeps_a_connection_that_is_stuck() {
        let (socket, mut peer) = pair(0);
        let (mut reading, mut writing) = tokio::io::split(socket);
        let stuck = tokio::spawn(async move { writing.write_all(&[0; 100]).await });
        for _ in 0..5 {
            advance(SILENCE - Duration::from_secs(1)).await;
            peer.write_u8(0).await.unwrap();
            reading.read_u8().await.unwrap();
        }
        assert!(!stuck.is_finished());
        peer.read_exact(&mut [0; 100]).await.unwrap();
        stuck.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_was_not_heard_because_we_were_stopped_has_half_of_the_time() {
        let (mut socket, _peer) = pair(0);
        advance(10 * SILENCE).await;
        let after = ends_with_time_out(socket.write_all(&[0; 100])).await;
        assert_eq!(after.as_secs(), SILENCE.as_secs() / 2);
    }
}
