//! A client that does one thing at a time, and hides nothing that it reads.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use rollcall_embedded::{Config, Embedded};
use rollcall_wire::{
    Acl, ConnectRequest, ConnectResponse, CreateMode, Decoder, Encoder, ReplyHeader, Request, RequestHeader, Response,
    WatchMode, WatcherEvent, xid,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server that runs until the test ends.
pub(crate) async fn start(config: Config) -> SocketAddr {
    let embedded = Embedded::bind(FREE_PORT, config).await.unwrap();
    let address = embedded.local_addr();
    tokio::spawn(embedded.run(std::future::pending()));
    address
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) session: ConnectResponse,
    next_xid: i32,
}

/// A message that a client reads.
#[derive(Debug)]
pub(crate) enum Heard {
    Reply(ReplyHeader, Decoder),
    Event(i64, WatcherEvent),
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::resume(address, 0, Bytes::from_static(&[0; 16])).await.expect("a new session is granted")
    }

    /// `None` when the session is over, or the server hangs up.
    pub(crate) async fn resume(address: SocketAddr, session_id: i64, password: Bytes) -> Option<Self> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = ConnectRequest { last_zxid_seen: 0, timeout_ms: 10_000, session_id, password };
        let mut encoder = Encoder::new();
        encoder.frame(|encoder| request.encode(encoder));
        stream.write_all(&encoder.take()).await.ok()?;
        let session = ConnectResponse::decode(&mut read_frame(&mut stream).await?).unwrap();
        (session.timeout_ms > 0).then_some(Self { stream, session, next_xid: 1 })
    }

    pub(crate) fn frame(&mut self, request: &Request, encoder: &mut Encoder) {
        let xid = self.next_xid;
        self.next_xid += 1;
        encoder.frame(|encoder| {
            RequestHeader { xid, op_code: request.op_code() as i32 }.encode(encoder);
            request.encode(encoder);
        });
    }

    pub(crate) async fn send(&mut self, request: &Request) {
        let mut encoder = Encoder::new();
        self.frame(request, &mut encoder);
        self.stream.write_all(&encoder.take()).await.unwrap();
    }

    /// `None` when the server has closed.
    pub(crate) async fn hear(&mut self) -> Option<Heard> {
        let mut decoder = read_frame(&mut self.stream).await?;
        let header = ReplyHeader::decode(&mut decoder).unwrap();
        Some(match header.xid {
            xid::NOTIFICATION => Heard::Event(header.zxid, WatcherEvent::decode(&mut decoder).unwrap()),
            _ => Heard::Reply(header, decoder),
        })
    }

    /// The answer, or the error's number; `None` when the server has closed.
    pub(crate) async fn try_ask(&mut self, request: &Request) -> Option<Result<Response, i32>> {
        self.send(request).await;
        loop {
            if let Heard::Reply(header, mut decoder) = self.hear().await? {
                return Some(match header.error {
                    0 => Ok(Response::decode(request.op_code(), &mut decoder).unwrap()),
                    error => Err(error),
                });
            }
        }
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Response, i32> {
        self.try_ask(request).await.expect("the server answers")
    }
}

pub(crate) async fn read_frame(stream: &mut TcpStream) -> Option<Decoder> {
    let read = async {
        let length = stream.read_i32().await.ok()?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut frame).await.ok()?;
        Some(Decoder::new(frame.into()))
    };
    timeout(SOON, read).await.expect("the server answers or closes in time")
}

pub(crate) fn create(path: &str, data: Bytes, mode: CreateMode) -> Request {
    Request::Create { path: path.into(), data, acl: vec![Acl::open()], mode }
}

pub(crate) fn set(path: &str, size: usize) -> Request {
    Request::SetData { path: path.into(), data: vec![0; size].into(), version: -1 }
}

pub(crate) fn get(path: &str) -> Request {
    Request::GetData { path: path.into(), watch: false }
}

pub(crate) fn watch_all() -> Request {
    Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive }
}
