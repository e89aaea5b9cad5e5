//! HTTP/2 by hand, for clients that keep no rules: any frame, at any time, in any number.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::wait::soon;

/// The first bytes of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest possible window.
const WINDOW: u32 = 0x7fff_ffff;
/// Size of the kernel's buffers of a connection on this side, in bytes.
const BUFFER: u32 = 64 * 1024;
/// Size of a frame's header: length, type, flags and stream.
const HEADER: usize = 9;

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
    /// Acknowledges SETTINGS and PING.
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
}

/// A connection. Output waits for [`flush`](Self::flush). It reads and answers only when a test calls
/// [`converse`](Self::converse).
#[derive(Debug)]
pub struct Hand {
    socket: TcpStream,
    output: Vec<u8>,
    /// Number of bytes of `output` that were sent. A field, since a test may cancel the sending at any time.
    sent: usize,
    input: Vec<u8>,
}

/// A received frame.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// The content of all frames so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Bytes of messages, with their gRPC prefixes.
    pub data: usize,
    /// The streams that have ended.
    pub ended: BTreeSet<u32>,
    /// Whether the server has sent its settings: until then little may be sent.
    is_open: bool,
    /// Why the server closes the connection, if it does.
    pub goodbye: Option<String>,
}

impl Hand {
    /// Connects, and sends nothing.
    ///
    /// # Panics
    /// When nothing listens at the address.
    pub async fn connect(address: SocketAddr) -> Hand {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Answers that are not read have to stay in the server, not in the kernel.
        socket.set_send_buffer_size(BUFFER).expect("a small buffer");
        socket.set_recv_buffer_size(BUFFER).expect("a small buffer");
        let socket = soon("a connection", socket.connect(address)).await.expect("the server listens");
        socket.set_nodelay(true).expect("it stands");
        Hand { socket, output: Vec::new(), sent: 0, input: Vec::new() }
    }

    /// Connects, and opens the HTTP/2 connection, with a window of this size for each stream.
    pub async fn open(address: SocketAddr, window: u32) -> Hand {
        let mut hand = Hand::connect(address).await;
        hand.output.extend_from_slice(PREFACE);
        // ENABLE_PUSH is 0, INITIAL_WINDOW_SIZE the window.
        let settings = [&[0, 2, 0, 0, 0, 0, 0, 4][..], &window.to_be_bytes()].concat();
        hand.frame(kind::SETTINGS, 0, 0, &settings);
        hand.frame(kind::WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes());
        soon("the server's settings", hand.converse(|heard| heard.is_open)).await;
        hand
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
        self.output.extend_from_slice(&length[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    /// Starts a call by its headers. A client's streams have odd, rising numbers.
    pub fn call(&mut self, stream: u32, method: &str) {
        let mut headers = Vec::with_capacity(64);
        // POST and http are in HPACK's table; the other fields are never to be added to it.
        headers.extend_from_slice(&[0x83, 0x86]);
        literal(&mut headers, &[0x04], method);
        literal(&mut headers, &[0x01], "hand");
        literal(&mut headers, &[0x0f, 0x10], "application/grpc");
        literal(&mut headers, b"\x00\x02te", "trailers");
        self.frame(kind::HEADERS, flag::END_HEADERS, stream, &headers);
    }

    /// Adds a message to an open call.
    pub fn message(&mut self, stream: u32, message: &impl Message) {
        self.data(stream, 0, message);
    }

    /// Adds the last message of a call.
    pub fn last_message(&mut self, stream: u32, message: &impl Message) {
        self.data(stream, flag::END_STREAM, message);
    }

    fn data(&mut self, stream: u32, flags: u8, message: &impl Message) {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("a message is small").to_be_bytes();
        self.frame(kind::DATA, flags, stream, &[&[0][..], &length, &message].concat());
    }

    /// Sends all waiting output, and reads nothing meanwhile.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            self.sent += self.socket.write(&self.output[self.sent..]).await?;
        }
        self.forget_sent();
        Ok(())
    }

    fn forget_sent(&mut self) {
        self.output.drain(..self.sent);
        self.sent = 0;
    }

    /// Sends all waiting output while it reads, as an honest client does, and answers pings and settings, until
    /// `enough` returns true or the server closes the connection.
    pub async fn converse(&mut self, mut enough: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        while !enough(&heard) {
            let mut more = vec![0; 64 * 1024];
            let (mut reader, mut writer) = self.socket.split();
            tokio::select! {
                read = reader.read(&mut more) => match read {
                    Ok(count) if count > 0 => self.input.extend_from_slice(&more[..count]),
                    _ => {
                        heard.goodbye.get_or_insert_with(|| "closed".to_owned());
                        return heard;
                    }
                },
                written = writer.write(&self.output[self.sent..]), if self.sent < self.output.len() => match written {
                    Ok(count) => self.sent += count,
                    // The last frames of the server may still be read.
                    Err(_) => self.sent = self.output.len(),
                },
            }
            while let Some(frame) = self.take() {
                self.understand(&frame, &mut heard);
            }
            if self.sent == self.output.len() || self.sent > 1 << 20 {
                self.forget_sent();
            }
        }
        self.forget_sent();
        heard
    }

    fn understand(&mut self, frame: &Frame, heard: &mut Heard) {
        let Frame { kind, flags, stream, payload } = frame;
        match *kind {
            kind::SETTINGS if flags & flag::ACK == 0 => {
                heard.is_open = true;
                self.frame(kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if flags & flag::ACK == 0 => self.frame(kind::PING, flag::ACK, 0, payload),
            kind::RST_STREAM => drop(heard.ended.insert(*stream)),
            kind::GOAWAY => heard.goodbye = Some(String::from_utf8_lossy(&payload[4..]).into_owned()),
            kind::DATA if payload.is_empty() => {}
            kind::DATA => {
                heard.data += payload.len();
                let update = u32::try_from(payload.len()).expect("a frame is small").to_be_bytes();
                self.frame(kind::WINDOW_UPDATE, 0, 0, &update);
                self.frame(kind::WINDOW_UPDATE, 0, *stream, &update);
            }
            _ => {}
        }
        if matches!(*kind, kind::DATA | kind::HEADERS) && flags & flag::END_STREAM != 0 {
            heard.ended.insert(*stream);
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let header = self.input.get(..HEADER)?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        let stream = u32::from_be_bytes(header[5..HEADER].try_into().expect("four bytes"));
        let payload = self.input.get(HEADER..HEADER + length)?.to_vec();
        self.input.drain(..HEADER + length);
        Some(Frame { kind, flags, stream, payload })
    }
}

/// A header field that is not to be added to HPACK's table; `name` is encoded already.
fn literal(headers: &mut Vec<u8>, name: &[u8], value: &str) {
    headers.extend_from_slice(name);
    headers.push(u8::try_from(value.len()).expect("a header is short"));
    headers.extend_from_slice(value.as_bytes());
}
