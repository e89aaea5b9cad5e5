//! One TCP connection to a ZooKeeper server: the handshake, frames in, bytes out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rollcall_wire::{ConnectRequest, ConnectResponse, Decoder, Encoder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::times::CONNECT_TIMEOUT;

/// Minimum and maximum time of a handshake. A new session is a write of the whole ensemble; a server that is just
/// starting may never answer, and must not delay the next one for long.
const HANDSHAKE_TIMEOUTS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// Maximum size of a frame that is read whole, in bytes. ZooKeeper limits what it accepts, not what it sends: a list of
/// children can exceed its own limit.
pub(crate) const MAX_REPLY: usize = 64 * 1024 * 1024;
/// Number of bytes of a larger frame that are read: the header of a reply.
const REPLY_HEADER_BYTES: usize = 16;
const READ_BUFFER: usize = 64 * 1024;

/// Connects to a server.
pub(super) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
    // A request must not wait for the acknowledgement of the request before it.
    stream.set_nodelay(true)?;
    // Data that a connection has not delivered when it is given up must never arrive. Otherwise a create would be
    // carried out after the session's next connection has found no node, and a client was told so.
    stream.set_zero_linger()?;
    Ok(stream)
}

/// Maximum time of a handshake, for a session with this time-out that tries this many addresses in turn.
pub(super) fn handshake_timeout(session_timeout: Duration, addresses: usize) -> Duration {
    let (least, most) = HANDSHAKE_TIMEOUTS;
    (session_timeout / 3 / u32::try_from(addresses.max(1)).unwrap_or(u32::MAX)).clamp(least, most)
}

/// Asks for a session.
pub(super) async fn open(
    stream: TcpStream,
    request: &ConnectRequest,
    timeout: Duration,
) -> io::Result<(ConnectResponse, FrameReader<OwnedReadHalf>, OwnedWriteHalf)> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader::new(reader);
    let mut encoder = Encoder::new();
    encoder.frame(|encoder| request.encode(encoder));
    let answer = async {
        writer.write_all(&encoder.take()).await?;
        reader.next().await
    };
    let frame = tokio::time::timeout(timeout, answer).await??.into_bytes();
    let response = ConnectResponse::decode(&mut Decoder::new(frame)).map_err(io::Error::other)?;
    Ok((response, reader, writer))
}

/// One frame's body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyFrame {
    Whole(Bytes),
    /// The frame is larger than what is read: its beginning, and its length. The rest is discarded.
    TooLarge(Bytes, usize),
}

impl ReplyFrame {
    /// The bytes that were read of it.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            ReplyFrame::Whole(bytes) | ReplyFrame::TooLarge(bytes, _) => bytes,
        }
    }
}

/// Splits a byte stream into frames.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
    /// Number of bytes that still have to be discarded.
    surplus: usize,
    received: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new(), surplus: 0, received: 0 }
    }

    /// Number of bytes that have been received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether a frame has been received in part.
    pub(super) fn is_amid_frame(&self) -> bool {
        !self.buffer.is_empty() || self.surplus > 0
    }

    /// The next frame's body.
    ///
    /// # Cancellation
    /// Safe: bytes that were read stay for the next call.
    pub(super) async fn next(&mut self) -> io::Result<ReplyFrame> {
        loop {
            let thrown_away = self.surplus.min(self.buffer.len());
            self.buffer.advance(thrown_away);
            self.surplus -= thrown_away;
            if let Some(header) = self.buffer.first_chunk::<4>() {
                let length = usize::try_from(i32::from_be_bytes(*header))
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "frame with an impossible length"))?;
                let read = if length <= MAX_REPLY { length } else { REPLY_HEADER_BYTES };
                if self.buffer.len() >= 4 + read {
                    self.buffer.advance(4);
                    self.surplus = length - read;
                    let bytes = self.buffer.split_to(read).freeze();
                    return Ok(if read == length {
                        ReplyFrame::Whole(bytes)
                    } else {
                        ReplyFrame::TooLarge(bytes, length)
                    });
                }
                self.buffer.reserve(4 + read - self.buffer.len());
            } else {
                self.buffer.reserve(READ_BUFFER);
            }
            match self.reader.read_buf(&mut self.buffer).await? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed by zookeeper")),
                read => self.received += u64::try_from(read).unwrap_or_default(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_a_connection_has_not_delivered_never_arrives_once_it_is_given_up() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (dialled, accepted) = tokio::join!(dial(listener.local_addr().unwrap()), listener.accept());
        let (stream, (mut server, _)) = (dialled.unwrap(), accepted.unwrap());
        let (reader, writer) = stream.into_split();
        let mut sent = 0;
        // More than the socket of the server holds, which reads nothing for now.
        loop {
            match writer.try_write(&[0; 64 * 1024]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        drop((reader, writer));
        let mut arrived = Vec::new();
        let end = server.read_to_end(&mut arrived).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(arrived.len() < sent, "{} of {sent} bytes", arrived.len());
    }

    #[tokio::test]
    async fn a_frame_that_is_too_large_is_thrown_away_and_the_next_one_is_read() {
        let (mut server, client) = tokio::io::duplex(1024 * 1024);
        let write = async move {
            for (length, filling) in [(3, 1), (MAX_REPLY + 5, 2), (0, 0), (20, 3)] {
                server.write_all(&i32::try_from(length).unwrap().to_be_bytes()).await.unwrap();
                server.write_all(&vec![filling; length]).await.unwrap();
            }
        };
        let mut reader = FrameReader::new(client);
        let read = async move {
            let mut frames = Vec::new();
            for _ in 0..4 {
                frames.push(reader.next().await.unwrap());
            }
            assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            frames
        };
        let (frames, ()) = tokio::join!(read, write);
        let whole = |bytes: &'static [u8]| ReplyFrame::Whole(bytes.into());
        let too_large = ReplyFrame::TooLarge([2; REPLY_HEADER_BYTES].as_slice().into(), MAX_REPLY + 5);
        assert_eq!(frames, [whole(&[1; 3]), too_large, whole(&[]), whole(&[3; 20])]);
    }
}
