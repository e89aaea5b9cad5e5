//! gRPC by hand, as a client that does next to nothing: it counts the messages that it is told, and never looks into
//! them. What is measured shares its cores with this, and a client library costs as much for a message as a good server.
//!
//! Only what the workloads need: headers that are sent are never compressed, those that come are not read; the windows
//! for what comes never close, unless one is asked for that does; what is sent is so little at a time that no window of a server closes. Whatever a stream
//! ends with, other than after a message, is found out by whoever counts.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest window that there is.
pub(crate) const WINDOW: u32 = 0x7fff_ffff;
/// The window that a connection begins with.
const FIRST_WINDOW: u32 = 65_535;
/// A connection's window is opened again after so many bytes.
const ACKNOWLEDGED: u32 = 1 << 24;
/// The length, type, flags and stream of a frame.
const HEADER: usize = 9;
/// Whether a message is compressed, and its length.
const PREFIX: usize = 5;
/// Frames are of 16 KiB at most, since nothing else is allowed to the server.
const INPUT: usize = 256 * 1024;

/// The types of frames that are sent, or looked at.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
}

/// Whether the client has said all that it will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// More requests may follow.
    Open,
    /// It was the only one.
    Closed,
}

/// A call: its number counts the calls of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call(usize);

/// What has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Messages that are complete.
    pub(crate) messages: usize,
    /// Bytes of messages.
    pub(crate) bytes: usize,
    /// Calls that are over.
    pub(crate) ended: usize,
}

/// A connection. Dropping closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    authority: String,
    output: Vec<u8>,
    input: Vec<u8>,
    /// How much of the input is filled.
    filled: usize,
    calls: Vec<Messages>,
    /// Bytes that the server does not yet know to be read.
    unacknowledged: u32,
}

/// The messages of one call.
#[derive(Clone, Copy, Debug, Default)]
struct Messages {
    /// What is known of the next one's prefix.
    prefix: [u8; PREFIX],
    known: usize,
    /// What is to come of the present one, once its prefix is known.
    left: usize,
    complete: usize,
}

impl Connection {
    /// Connects, and says so; waits for nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        Connection::open_with(address, WINDOW).await
    }

    /// The same, with a window for each stream, which is never opened again.
    ///
    /// # Errors
    /// When nobody listens.
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
        // POST and http stand in HPACK's table; what follows is never to be put into it.
        let mut headers = vec![0x83, 0x86];
        text(&mut headers, &[0x04], method);
        text(&mut headers, &[0x01], &self.authority);
        text(&mut headers, &[0x0f, 0x10], "application/grpc");
        text(&mut headers, b"\x00\x02te", "trailers");
        frame(&mut self.output, kind::HEADERS, flag::END_HEADERS, call.stream(), &headers);
        self.data(call, message, side);
        call
    }

    /// One more message of a call that is open.
    pub(crate) fn say(&mut self, call: Call, message: &[u8]) {
        self.data(call, message, Side::Open);
    }

    fn data(&mut self, call: Call, message: &[u8], side: Side) {
        let length = u32::try_from(message.len()).expect("a request is small");
        let data = [&[0][..], &length.to_be_bytes(), message].concat();
        let flags = if side == Side::Closed { flag::END_STREAM } else { 0 };
        frame(&mut self.output, kind::DATA, flags, call.stream(), &data);
    }

    fn widen(&mut self, by: u32) {
        frame(&mut self.output, kind::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    }

    /// Sends what there is to be sent.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) async fn flush(&mut self) -> anyhow::Result<()> {
        self.socket.write_all(&self.output).await.context("the connection broke")?;
        self.output.clear();
        Ok(())
    }

    /// How many messages each call has been told.
    pub(crate) fn told(&self) -> impl Iterator<Item = usize> {
        self.calls.iter().map(|messages| messages.complete)
    }

    /// Waits until something comes, and answers what that was.
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
    /// A client's streams have odd numbers.
    fn stream(self) -> u32 {
        u32::try_from(2 * self.0 + 1).expect("fewer calls than a connection has streams")
    }
}

/// Which call a stream is.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// The first frame, once it is complete, and what follows.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let [high, middle, low, kind, flags, stream @ ..] = header else { return None };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    let (payload, after) = rest.split_at_checked(length)?;
    let stream = u32::from_be_bytes(stream.try_into().ok()?);
    Some((Header { kind: *kind, flags: *flags, stream: stream & WINDOW }, payload, after))
}

fn frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("what is sent is small").to_be_bytes();
    output.extend_from_slice(&length[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(payload);
}

/// A header field, by what says its name.
fn text(headers: &mut Vec<u8>, name: &[u8], value: &str) {
    headers.extend_from_slice(name);
    // Up to 126 bytes, which all are.
    headers.push(u8::try_from(value.len()).expect("a value is short"));
    headers.extend_from_slice(value.as_bytes());
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

    #[test]
    fn a_frame_is_taken_once_it_is_complete() {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::PING, flag::ACK, 5, b"12345678");
        let whole = bytes.len();
        bytes.push(1);
        assert_eq!(split(&bytes[..whole - 1]), None);
        let header = Header { kind: kind::PING, flags: flag::ACK, stream: 5 };
        assert_eq!(split(&bytes), Some((header, &b"12345678"[..], &[1][..])));
    }
}
