//! One TCP connection to a ZooKeeper server: the handshake, frames in, bytes out.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rollcall_wire::{ConnectRequest, ConnectResponse, Decoder, Encoder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The bounds of a handshake. A new session is a write of the whole ensemble; a server that is just starting may never
/// answer, and must not hold up the next one for long.
const HANDSHAKE_TIMEOUTS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// The largest frame that is read, in bytes. ZooKeeper bounds what it takes, not what it sends: a list of children can
/// exceed its own limit.
const MAX_REPLY: usize = 64 * 1024 * 1024;
const READ_CHUNK: usize = 64 * 1024;

/// Connects to a server, on the first of its addresses that answers.
pub(super) async fn dial(host: &str) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(host)).await??.collect();
    let each = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Two requests that follow each other must not wait for the first one's acknowledgement.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// How long a handshake may take, where a session with this time-out tries this many servers in turn.
pub(super) fn handshake_timeout(session_timeout: Duration, hosts: usize) -> Duration {
    let (least, most) = HANDSHAKE_TIMEOUTS;
    (session_timeout / 3 / u32::try_from(hosts.max(1)).unwrap_or(u32::MAX)).clamp(least, most)
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
    let frame = tokio::time::timeout(timeout, answer).await??;
    let response = ConnectResponse::decode(&mut Decoder::new(frame)).map_err(io::Error::other)?;
    Ok((response, reader, writer))
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// Whether a frame has come in part.
    pub(super) fn is_amid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next frame's body.
    ///
    /// # Cancellation
    /// Safe: what has been read stays for the next call.
    pub(super) async fn next(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<4>() {
                let length = usize::try_from(i32::from_be_bytes(*header))
                    .ok()
                    .filter(|&length| length <= MAX_REPLY)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame with an impossible length"))?;
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(self.buffer.split_to(length).freeze());
                }
                self.buffer.reserve(4 + length - self.buffer.len());
            } else {
                self.buffer.reserve(READ_CHUNK);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed by zookeeper"));
            }
        }
    }
}
