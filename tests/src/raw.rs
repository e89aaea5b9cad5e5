//! ZooKeeper's protocol by hand, with the server's codec: one connection, frame by frame, for details that a client
//! library hides.

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_wire::{
    ConnectRequest, ConnectResponse, Decoder, Encoder, ErrorCode, EventKind, OpCode, ReplyHeader, Request,
    RequestHeader, Response, WatcherEvent, xid,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wait::soon;

/// A connection with a session. It sends nothing by itself, not even pings.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    /// The server's answer to the first frame.
    pub session: ConnectResponse,
    last_xid: i32,
}

/// A frame of the server after the handshake.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: ReplyHeader,
    /// The rest of the frame.
    pub body: Decoder,
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The transaction.
    pub zxid: i64,
    /// The kind of event.
    pub kind: EventKind,
    /// The path of the node.
    pub path: String,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The transaction id in its header.
    pub zxid: i64,
    /// The body.
    pub result: Result<Response, ErrorCode>,
    /// The notifications that arrived between the previous answer and this one.
    pub events: Vec<Event>,
}

/// The first frame of a client without a session.
pub fn newcomer(timeout: Duration) -> ConnectRequest {
    let timeout_ms = i32::try_from(timeout.as_millis()).expect("a time-out of a test is small");
    ConnectRequest { last_zxid_seen: 0, timeout_ms, session_id: 0, password: vec![0; 16].into() }
}

/// The first frame of a client that resumes a session, and has seen no transaction of the server.
pub fn resumption(session: &ConnectResponse) -> ConnectRequest {
    let ConnectResponse { timeout_ms, session_id, password } = session.clone();
    ConnectRequest { last_zxid_seen: 0, timeout_ms, session_id, password }
}

impl Raw {
    /// Connects, and asks for a session. `None` when the server closes the connection instead of an answer.
    ///
    /// # Panics
    /// When the server can't be reached, does not answer, or answers in another form than ZooKeeper 3.4 and newer.
    pub async fn connect(address: SocketAddr, request: &ConnectRequest) -> Option<Raw> {
        let mut stream = TcpStream::connect(address).await.expect("somebody listens");
        stream.set_nodelay(true).expect("the connection stands");
        let mut encoder = Encoder::new();
        encoder.frame(|encoder| request.encode(encoder));
        stream.write_all(&encoder.take()).await.expect("the connection stands");
        let mut answer = Decoder::new(soon("an answer to the handshake", read_frame(&mut stream)).await?.into());
        let session = ConnectResponse::decode(&mut answer).expect("the handshake is answered with its record");
        assert!(!answer.boolean().expect("the flag readOnly is answered") && answer.is_empty());
        Some(Raw { stream, session, last_xid: 0 })
    }

    /// Sends a request with any body. Returns its number.
    pub async fn send(&mut self, op_code: OpCode, body: &[u8]) -> i32 {
        let xid = match op_code {
            OpCode::Ping => xid::PING,
            OpCode::Auth => xid::AUTH,
            _ => {
                self.last_xid += 1;
                self.last_xid
            }
        };
        let mut encoder = Encoder::new();
        RequestHeader { xid, op_code: op_code as i32 }.encode(&mut encoder);
        let header = encoder.take();
        let length = i32::try_from(header.len() + body.len()).expect("a request of a test is small");
        let frame = [&length.to_be_bytes(), &header[..], body].concat();
        // The next read shows that a server has closed the connection.
        drop(self.stream.write_all(&frame).await);
        xid
    }

    /// The next frame of the server; `None` when it has closed the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut body = Decoder::new(soon("the server speaks or closes", read_frame(&mut self.stream)).await?.into());
        let header = ReplyHeader::decode(&mut body).expect("a frame has a header");
        Some(Frame { header, body })
    }

    /// Sends a request.
    pub async fn ask(&mut self, request: &Request) -> i32 {
        let mut encoder = Encoder::new();
        request.encode(&mut encoder);
        self.send(request.op_code(), &encoder.take()).await
    }

    /// Reads until the answer to the request with this number, which must be the next answer. `None` when the server
    /// closes the connection instead.
    pub async fn answer(&mut self, op_code: OpCode, xid: i32) -> Option<Answer> {
        let mut events = Vec::new();
        loop {
            let Frame { header, mut body } = self.next().await?;
            if header.xid == xid::NOTIFICATION {
                let event = WatcherEvent::decode(&mut body).expect("a notification has its record");
                events.push(Event { zxid: header.zxid, kind: event.kind, path: event.path });
                continue;
            }
            assert_eq!(header.xid, xid, "answers come in the order of the requests");
            let result = match ErrorCode::from_wire(header.error) {
                Some(code) => Err(code),
                None => Ok(Response::decode(op_code, &mut body).expect("the body is what was asked for")),
            };
            // The codec skips the bodies of the answers to sync and addWatch.
            assert!(body.is_empty() || result == Ok(Response::Done), "something is left over after {result:?}");
            return Some(Answer { zxid: header.zxid, result, events });
        }
    }

    /// Closes the connection, and leaves the session to its time-out.
    pub async fn hang_up(&mut self) {
        drop(self.stream.shutdown().await);
    }
}

/// Reads a frame; `None` when the connection was closed.
async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_i32().await.ok()?;
    let mut frame = vec![0; usize::try_from(length).expect("a length is not negative")];
    stream.read_exact(&mut frame).await.ok()?;
    Some(frame)
}
