//! A TCP connection that notices whether the other side speaks HTTP/2, and when the connection ends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Length of the head of an HTTP/2 frame.
const HEAD: usize = 9;
/// Type of a SETTINGS frame, the first frame that a server sends (RFC 9113, section 3.4).
const SETTINGS: u8 = 4;

/// A connection that inspects the first bytes that it receives.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: TcpStream,
    head: Vec<u8>,
    /// Gets whether the other side has begun with HTTP/2. Dropped when the connection ends before that.
    greeted: Option<oneshot::Sender<bool>>,
    /// Dropped with the connection.
    _alive: Arc<()>,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, greeted: oneshot::Sender<bool>, alive: Arc<()>) -> Self {
        Self { stream, head: Vec::with_capacity(HEAD), greeted: Some(greeted), _alive: alive }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.greeted.is_none() {
            return;
        }
        self.head.extend(bytes.iter().take(HEAD - self.head.len()));
        if self.head.len() == HEAD
            && let Some(greeted) = self.greeted.take()
        {
            // The length is three bytes, then come the type, the flags, and the stream, which is 0.
            let _ = greeted.send(self.head[3] == SETTINGS && self.head[5..] == [0; 4]);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.hear(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
