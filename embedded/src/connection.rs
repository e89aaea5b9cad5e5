//! One TCP connection: frames in, four-letter words, the handshake, requests.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use rollcall_wire::server::Request;
use rollcall_wire::{ConnectRequest, Decoder, RequestHeader};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::hub::{Hub, Received};
use crate::outbox::Outbox;
use crate::types::ConnectionId;
use crate::words;

/// Time within which a connection must have a session.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the answer to a word, its way to a client that does not read included.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for which a connection is read after the server's last answer, so that the answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(1);
const READ_CHUNK: usize = 16 * 1024;

/// Serves a connection until its end. Whatever it sends, at most this connection ends for it.
pub(crate) async fn serve(hub: Arc<Hub>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection gone before it was served");
        return;
    }
    let (id, outbox) = match hub.accept(peer) {
        Ok(accepted) => accepted,
        Err(untold) => {
            if let Some(connections) = untold {
                tracing::warn!(connections, limit = hub.config.max_connections, "too many connections: refused");
            }
            return;
        }
    };
    // The connection's place is given back however this task ends.
    let _place = Place { hub: hub.clone(), id };
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader { reader, buffer: BytesMut::new(), max_frame: hub.config.max_frame };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, reader.opening()).await {
        Ok(Ok(Opening::Word(word))) => {
            hub.step(|state, _, _| state.count_received(id));
            let told = tokio::time::timeout(WORD_TIMEOUT, tell(word, &hub, &mut writer)).await;
            if matches!(told, Ok(Ok(()))) {
                reader.linger().await;
            }
            return;
        }
        Ok(Ok(Opening::Frame(frame))) => {
            let mut decoder = Decoder::new(frame);
            let Ok(request) = ConnectRequest::decode(&mut decoder) else {
                tracing::debug!("first frame is no connect request");
                return;
            };
            if !decoder.is_empty() {
                outbox.know_read_only();
            }
            hub.connect(id, &request);
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "connection ended before its handshake");
            return;
        }
        Err(_) => {
            tracing::debug!("no handshake in time");
            return;
        }
    }
    tokio::select! {
        end = outbox.write_to(&mut writer, || hub.switches.delay()) => match end {
            Ok(()) => reader.linger().await,
            Err(error) => tracing::debug!(%error, "connection broke"),
        },
        error = read_requests(&hub, &mut reader, id, &outbox) => tracing::debug!(%error, "connection ended"),
        () = outbox.overdue() => tracing::debug!("connection cut"),
    }
}

/// Answers a word. Only one long answer is made at a time, on a thread where it delays nobody.
async fn tell(word: [u8; 4], hub: &Arc<Hub>, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let turn = hub.words.acquire().await.map_err(io::Error::other)?;
    let asked = hub.clone();
    let answer = tokio::task::spawn_blocking(move || words::answer(word, &asked)).await?;
    drop(turn);
    writer.write_all(answer.as_bytes()).await?;
    writer.shutdown().await
}

/// Reads requests and carries them out, until the connection ends or sends bytes that are no frame. While a client does
/// not read its replies, no requests are read from it.
async fn read_requests(hub: &Hub, reader: &mut FrameReader, id: ConnectionId, outbox: &Outbox) -> io::Error {
    let mut received = VecDeque::new();
    loop {
        if let Err(error) = reader.receive(&mut received).await {
            return error;
        }
        hub.traffic.received.fetch_add(received.len() as u64, Ordering::Relaxed);
        while let Some(next) = received.pop_front() {
            hub.request(id, next);
            if outbox.is_congested() {
                outbox.relieved().await;
            }
        }
        // So that a client that sends without end leaves the others their turns.
        tokio::task::yield_now().await;
    }
}

struct Place {
    hub: Arc<Hub>,
    id: ConnectionId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.disconnect(self.id);
    }
}

/// The beginning of a connection.
enum Opening {
    Word([u8; 4]),
    Frame(Bytes),
}

struct FrameReader {
    reader: OwnedReadHalf,
    buffer: BytesMut,
    max_frame: usize,
}

impl FrameReader {
    async fn opening(&mut self) -> io::Result<Opening> {
        loop {
            if let Some(word) = self.buffer.first_chunk::<4>()
                && words::is_known(*word)
            {
                return Ok(Opening::Word(*word));
            }
            if let Some(frame) = self.frame()? {
                return Ok(Opening::Frame(frame));
            }
            self.fill().await?;
        }
    }

    /// Waits for at least one request, and takes all that have arrived.
    async fn receive(&mut self, received: &mut VecDeque<Received>) -> io::Result<()> {
        loop {
            while let Some(frame) = self.frame()? {
                let mut decoder = Decoder::new(frame);
                let header = RequestHeader::decode(&mut decoder).map_err(io::Error::other)?;
                let request = Request::decode(header.op_code, &mut decoder);
                received.push_back(Received { xid: header.xid, request });
            }
            if !received.is_empty() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// The next complete frame of the bytes that have been read.
    fn frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(header) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes(*header))
            .ok()
            .filter(|&length| length <= self.max_frame)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame with an impossible length"))?;
        if self.buffer.len() - 4 < length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Reads some more. The memory grows with the bytes that have arrived, not with a length that was promised.
    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(READ_CHUNK);
        match self.reader.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads on and discards the bytes, until the client closes too.
    async fn linger(&mut self) {
        let forget = async {
            while self.fill().await.is_ok() {
                self.buffer.clear();
            }
        };
        drop(tokio::time::timeout(LINGER, forget).await);
    }
}
