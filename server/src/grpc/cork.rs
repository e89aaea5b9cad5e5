//! Connections that write what many streams say at once, at once.
//!
//! Each stream that has something to say wakes its connection's task, which would write a frame and be woken by the next
//! stream: a system call for each. Here a write goes into a buffer, and to the socket when the task runs the next time;
//! what else was ready to run has then had its say. With nothing else to run that is at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// How much is gathered; more waits for the socket.
const LIMIT: usize = 64 * 1024;
/// What is at least so long goes to the socket as it is, if nothing is before it.
const LONG: usize = 16 * 1024;

/// A connection that gathers what is written to it, for one turn of its task.
#[derive(Debug)]
pub(crate) struct Corked<Io> {
    io: Io,
    waiting: Vec<u8>,
    /// How much of it has been written.
    written: usize,
}

impl<Io> Corked<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Self { io, waiting: Vec::new(), written: 0 }
    }
}

impl<Io: AsyncWrite + Unpin> Corked<Io> {
    /// Writes what waits to the socket.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(context, &self.waiting[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        // A silent connection keeps no memory for what it may say.
        self.waiting = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Each turn of the task begins with a read. A socket that takes nothing now does not keep from reading; it wakes
        // the task when it does.
        if let Poll::Ready(Err(error)) = self.poll_drain(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Corked<Io> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.waiting.is_empty() && length >= LONG {
            return Pin::new(&mut self.io).poll_write_vectored(context, slices);
        }
        if self.waiting.len() >= LIMIT {
            ready!(self.poll_drain(context))?;
        }
        if self.waiting.is_empty() {
            // The next turn, in which it goes to the socket.
            context.waker().wake_by_ref();
        }
        slices.iter().for_each(|slice| self.waiting.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits goes with the next turn.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<Io: Connected> Connected for Corked<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Reads in vain once, as the connection's task does in each turn.
    async fn turn(corked: &mut Corked<tokio::io::DuplexStream>) -> io::Result<()> {
        let mut byte = [0];
        poll_fn(|context| match Pin::new(&mut *corked).poll_read(context, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        })
        .await
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_goes_out_together_with_the_next() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut corked = Corked::new(near);
        corked.write_all(b"one ").await.unwrap();
        corked.write_all(b"two").await.unwrap();
        corked.flush().await.unwrap();
        let mut seen = [0; 16];
        let mut reading = ReadBuf::new(&mut seen);
        let early = Pin::new(&mut far).poll_read(&mut Context::from_waker(Waker::noop()), &mut reading);
        assert!(early.is_pending());
        turn(&mut corked).await.unwrap();
        let length = far.read(&mut seen).await.unwrap();
        assert_eq!(&seen[..length], b"one two");
    }

    #[tokio::test]
    async fn nothing_is_lost_or_swapped_when_the_socket_takes_little() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut corked = Corked::new(near);
        let sent: Vec<u8> = (0..=250).cycle().take(3 * LIMIT + 17).collect();
        let expected = sent.clone();
        let reading = tokio::spawn(async move {
            let mut seen = Vec::new();
            far.read_to_end(&mut seen).await.unwrap();
            seen
        });
        for (index, piece) in sent.chunks(9_000).enumerate() {
            corked.write_all(piece).await.unwrap();
            if index % 3 == 0 {
                turn(&mut corked).await.unwrap();
            }
        }
        // Longer than what is sent as it is.
        corked.write_all(&sent).await.unwrap();
        corked.shutdown().await.unwrap();
        drop(corked);
        assert!(reading.await.unwrap() == [expected.clone(), expected].concat());
    }

    #[tokio::test]
    async fn a_connection_that_is_gone_is_an_error() {
        let (near, far) = tokio::io::duplex(100);
        let mut corked = Corked::new(near);
        drop(far);
        corked.write_all(b"in vain").await.unwrap();
        assert!(turn(&mut corked).await.is_err());
    }
}
