//! gRPC by hand, as a client that does next to nothing: it counts the messages that it receives, and never looks into
//! them. The measured system shares its cores with this client, and a client library costs as much for a message as a
//! good server.
//!
//! It does only what the workloads need. Request headers are never compressed, and response headers are not read. The
//! receive windows never close, unless the caller asks for one that does. Requests are so small that they never fill a
//! server's window. When a stream ends other than after a message, the code that counts the messages finds out.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use rollcall_tests::hostile::wire::{
    FIRST_WINDOW, Header, PREFACE, PREFIX, call_headers, flag, frame, kind, prefixed, split,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) use rollcall_tests::hostile::wire::WINDOW;

/// Number of bytes after which a connection's window is opened again.
const ACKNOWLEDGED: u32 = 1 << 24;
/// Frames are of 16 KiB at most, since the server is allowed no more.
const INPUT: usize = 256 * 1024;

/// Whether the client has sent its last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// More requests may follow.
    Open,
    /// The first message was the only one.
    Closed,
}

/// A call. The number counts the calls of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call(usize);

/// The result of one read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Complete messages.
    pub(crate) messages: usize,
    /// Bytes of messages.
    pub(crate) bytes: usize,
    /// Calls that have ended.
    pub(crate) ended: usize,
}

/// A connection. Dropping closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    authority: String,
    output: Vec<u8>,
    input: Vec<u8>,
    /// Number of bytes of the input that are filled.
    filled: usize,
    calls: Vec<Messages>,
    /// Bytes that have been read, and not yet acknowledged to the server.
    unacknowledged: u32,
}

/// The messages of one call.
#[derive(Clone, Copy, Debug, Default)]
struct Messages {
    /// The bytes of the next message's prefix that have arrived.
    prefix: [u8; PREFIX],
    known: usize,
    /// Bytes of the current message that have still to come, once its prefix is known.
    left: usize,
    complete: usize,
}

impl Connection {
    /// Connects, and sends the preface. It does not wait for the server's.
    ///
    /// # Errors
    /// When nothing listens at the address.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        Connection::open_with(address, WINDOW).await
    }

    /// Connects with a window for each stream, which is never opened again.
    ///
    /// # Errors
    /// When nothing listens at the address.
    pub(crate) async fn open_with(address: SocketAddr, window: u32) -> anyhow::Result<Connection> {
        let socket = TcpStream::connect(address).await.with_context(|| format!("can't connect to {address}"))?;
        socket.set_nodelay(true)?;
        let mut connection = Connection {
            socket,
            authority: address.to_string(),
            output: PREFACE.to_vec(),
            input: vec![0; INPUT],
            filled: 0,
            calls: Vec::new(),
            unacknowledged: 0,
        };
        // ENABLE_PUSH is 0, INITIAL_WINDOW_SIZE the window.
        let settings = [&[0, 2, 0, 0, 0, 0, 0, 4][..], &window.to_be_bytes()].concat();
        frame(&mut connection.output, kind::SETTINGS, 0, 0, &settings);
        connection.widen(WINDOW - FIRST_WINDOW);
        connection.flush().await?;
        Ok(connection)
    }

    /// Begins a call with one message. Nothing is sent before [`flush`](Self::flush).
    pub(crate) fn call(&mut self, method: &str, message: &[u8], side: Side) -> Call {
        let call = Call(self.calls.len());
        self.calls.push(Messages::default());
        let headers = call_headers(method, &self.authority);
        frame(&mut self.output, kind::HEADERS, flag::END_HEADERS, call.stream(), &headers);
        self.data(call, message, side);
        call
    }

    /// Adds one more message to an open call.
    pub(crate) fn say(&mut self, call: Call, message: &[u8]) {
        self.data(call, message, Side::Open);
    }

    fn data(&mut self, call: Call, message: &[u8], side: Side) {
        let flags = if side == Side::Closed { flag::END_STREAM } else { 0 };
        frame(&mut self.output, kind::DATA, flags, call.stream(), &prefixed(message));
    }

    fn widen(&mut self, by: u32) {
        frame(&mut self.output, kind::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    }

    /// Sends all buffered output.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.socket.write_all(&self.output).await.context("the connection broke")?;
        self.output.clear();
        Ok(())
    }

    /// The number of messages that each call has received.
    pub(crate) fn told(&self) -> impl Iterator<Item = usize> {
        self.calls.iter().map(|messages| messages.complete)
    }

    /// Waits until something arrives, and counts it.
    ///
    /// # Errors
    /// When the server ends the connection, or resets a stream.
    pub(crate) async fn hear(&mut self) -> anyhow::Result<Heard> {
        let length = self.socket.read(&mut self.input[self.filled..]).await.context("the connection broke")?;
        ensure!(length > 0, "the server has closed the connection");
        self.filled += length;
        let input = std::mem::take(&mut self.input);
        let (mut rest, mut heard) = (&input[..self.filled], Heard::default());
        while let Some((header, payload, after)) = split(rest) {
            self.frame(header, payload, &mut heard)?;
            rest = after;
        }
        let (from, left) = (self.filled - rest.len(), rest.len());
        self.input = input;
        self.input.copy_within(from..self.filled, 0);
        self.filled = left;
        if self.unacknowledged >= ACKNOWLEDGED {
            self.widen(self.unacknowledged);
            self.unacknowledged = 0;
        }
        if !self.output.is_empty() {
            self.flush().await?;
        }
        Ok(heard)
    }

    fn frame(&mut self, header: Header, payload: &[u8], heard: &mut Heard) -> anyhow::Result<()> {
        let Header { kind, flags, stream } = header;
        match kind {
            kind::DATA => {
                ensure!(flags & flag::PADDED == 0, "padding, which no server of ours sends");
                self.unacknowledged += u32::try_from(payload.len()).expect("a frame is small");
                let messages = self.calls.get_mut(number(stream)).context("data of a stream that nobody opened")?;
                heard.messages += messages.take(payload);
                heard.bytes += payload.len();
            }
            kind::SETTINGS if flags & flag::ACK == 0 => frame(&mut self.output, kind::SETTINGS, flag::ACK, 0, &[]),
            kind::PING if flags & flag::ACK == 0 => frame(&mut self.output, kind::PING, flag::ACK, 0, payload),
            kind::RST_STREAM => bail!("the server has reset stream {stream}"),
            kind::GOAWAY => bail!("the server says goodbye: {payload:?}"),
            _ => {}
        }
        if matches!(kind, kind::DATA | kind::HEADERS) && flags & flag::END_STREAM != 0 {
            heard.ended += 1;
        }
        Ok(())
    }
}

impl Call {
    /// The stream id. A client's streams have odd numbers.
    fn stream(self) -> u32 {
        u32::try_from(2 * self.0 + 1).expect("fewer calls than a connection has streams")
    }
}

/// The call that a stream belongs to.
fn number(stream: u32) -> usize {
    usize::try_from(stream / 2).expect("an index")
}

impl Messages {
    /// Counts the messages that end in these bytes.
    fn take(&mut self, mut bytes: &[u8]) -> usize {
        let before = self.complete;
        while !bytes.is_empty() {
            if self.known < PREFIX {
                let taken = bytes.len().min(PREFIX - self.known);
                self.prefix[self.known..][..taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
                if self.known < PREFIX {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.left = usize::try_from(u32::from_be_bytes(length)).expect("a length");
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            bytes = &bytes[taken..];
            if self.left == 0 {
                self.known = 0;
                self.complete += 1;
            }
        }
        self.complete - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = [&[0][..], &length.to_be_bytes()].concat();
        bytes.resize(PREFIX + usize::try_from(length).unwrap(), 7);
        bytes
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let bytes = [message(3), message(0), message(300), message(0)].concat();
        for size in 1..=bytes.len() {
            let mut messages = Messages::default();
            let counted: usize = bytes.chunks(size).map(|chunk| messages.take(chunk)).sum();
            assert_eq!((counted, messages.complete), (4, 4), "in pieces of {size}");
        }
    }
}
