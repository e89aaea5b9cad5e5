//! Every behaviour of ZooKeeper that the server relies on, as a case, for a client that speaks the protocol by hand.
//! The parts of `server/src` that rely on each:
//!
//! - `sessions`: sessions granted, resumed, moved, refused and ended; what ends with a session, and in which order.
//!   `zk/session.rs`, `zk/pool.rs`; for fences and evidence `sessions/claims.rs`, `locks/task.rs`, `locks/hold/`.
//! - `writes`: versions, transactions, refusals, sequential names, access control lists, the frame limit.
//!   `zk/calls.rs`, `zk/writer.rs`, `durable/`, `locks/acquire/`, `locks/recipe/`.
//! - `multi`: all or nothing, one transaction, the answers of its parts; the multis of a takeover, a removal, a grant.
//!   `zk/writer.rs`, `sessions/claims.rs`, `locks/acquire/`, `locks/hold/`, `durable/`.
//! - `reads`: multi reads, stats, `sync`, the transaction id in a read's header. `views/fetch.rs`, `views/state.rs`,
//!   `durable/`, `locks/describe.rs`.
//! - `watches`: which events are sent, once, in which order, before which answer, and which are not. `zk/hub.rs`,
//!   `zk/watches.rs`, `views/consistent_read.rs`, `sessions/registration.rs`, `locks/acquire/wait.rs`.
//! - `mortal`, `logins`, `words`, and the events of `setWatches2`: not the server, but other programs that share the
//!   tree.

mod logins;
mod mortal;
mod multi;
mod reads;
mod sessions;
mod watches;
mod words;
mod writes;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rollcall_tests::arm::Own;
use rollcall_tests::raw::{Answer, Event, Raw, newcomer};
use rollcall_wire::{
    Acl, ConnectRequest, ConnectResponse, CreateMode, ErrorCode, EventKind, OpCode, Request, Response, Stat,
};

use super::ARM;

/// A session time-out longer than any case takes.
const LIFETIME: Duration = Duration::from_secs(30);

/// The place for a case's nodes: a subtree that nothing else uses.
#[derive(Clone)]
struct Ground {
    address: SocketAddr,
    root: String,
}

/// A backend with durable nodes (parents first), below which `children_created` children were created before; and all
/// of it as the ground.
async fn old_ground(paths: &[&str], children_created: i32) -> (Own, Ground) {
    let own = ARM.own_with_old_nodes(paths, children_created).await;
    let ground = Ground { address: own.address(), root: String::new() };
    (own, ground)
}

async fn ground() -> Ground {
    let sandbox = ARM.sandbox("conformance").await;
    Ground { address: sandbox.servers.parse().unwrap(), root: sandbox.chroot }
}

impl Ground {
    /// A client with a new session.
    async fn client(&self) -> Client {
        self.client_for(LIFETIME).await
    }

    async fn client_for(&self, timeout: Duration) -> Client {
        self.open(&newcomer(timeout)).await.expect("a session is granted")
    }

    /// `None` when the server closes the connection.
    async fn open(&self, request: &ConnectRequest) -> Option<Client> {
        Some(Client { raw: Raw::connect(self.address, request).await?, root: self.root.clone() })
    }
}

/// One connection. Its paths are below the ground.
struct Client {
    raw: Raw,
    root: String,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Sent {
    op_code: OpCode,
    xid: i32,
}

impl Client {
    fn session(&self) -> &ConnectResponse {
        &self.raw.session
    }

    fn id(&self) -> i64 {
        self.raw.session.session_id
    }

    fn outer(&self, path: &str) -> String {
        if path == "/" && !self.root.is_empty() { self.root.clone() } else { format!("{}{path}", self.root) }
    }

    fn inner(&self, path: &str) -> String {
        match path.strip_prefix(&self.root).expect("nobody is told of what is elsewhere") {
            "" => "/".to_owned(),
            inner => inner.to_owned(),
        }
    }

    async fn send(&mut self, mut request: Request) -> Sent {
        request.map_paths(&|path| self.outer(path));
        Sent { op_code: request.op_code(), xid: self.raw.ask(&request).await }
    }

    async fn answer(&mut self, sent: Sent) -> Answer {
        let mut answer = self.raw.answer(sent.op_code, sent.xid).await.expect("the server does not hang up");
        if let Ok(response) = &mut answer.result {
            response.map_paths(&|path| self.inner(path));
        }
        for event in &mut answer.events {
            event.path = self.inner(&event.path);
        }
        answer
    }

    async fn ask(&mut self, request: Request) -> Answer {
        let sent = self.send(request).await;
        self.answer(sent).await
    }

    /// Sends a request that must succeed. Returns its transaction id and its answer.
    async fn done(&mut self, request: Request) -> (i64, Response) {
        let answer = self.ask(request.clone()).await;
        let response = answer.result.unwrap_or_else(|code| panic!("{request:?}: {code}"));
        (answer.zxid, response)
    }

    /// Sends a request that must fail.
    async fn refused(&mut self, request: Request) -> ErrorCode {
        self.ask(request.clone()).await.result.expect_err(&format!("{request:?} is refused"))
    }

    async fn create(&mut self, path: &str, mode: CreateMode) -> Stat {
        let (zxid, response) = self.done(create(path, mode)).await;
        let stat = stat_of(&response);
        assert_eq!(stat.czxid, zxid, "the stat of a create is its own");
        stat
    }

    /// Creates plain nodes.
    async fn plant(&mut self, paths: &[&str]) {
        for path in paths {
            self.create(path, CreateMode::Persistent).await;
        }
    }

    async fn stat(&mut self, path: &str) -> Option<Stat> {
        match self.ask(exists(path)).await.result {
            Ok(response) => Some(stat_of(&response)),
            Err(ErrorCode::NoNode) => None,
            Err(code) => panic!("exists {path}: {code}"),
        }
    }

    async fn multi(&mut self, parts: Vec<Request>) -> (i64, Vec<Result<Response, ErrorCode>>) {
        match self.done(Request::Multi(parts)).await {
            (zxid, Response::Parts(parts)) => (zxid, parts),
            (_, other) => panic!("no parts: {other:?}"),
        }
    }

    async fn multi_read(&mut self, parts: Vec<Request>) -> Vec<Result<Response, ErrorCode>> {
        match self.done(Request::MultiRead(parts)).await.1 {
            Response::Parts(parts) => parts,
            other => panic!("no parts: {other:?}"),
        }
    }

    /// All events that it has been sent and has not read. They include those of every change that was acknowledged to
    /// anybody before.
    async fn events(&mut self) -> Vec<Event> {
        self.ask(Request::Ping).await.events
    }

    /// Waits until the server closes the connection.
    async fn hung_up_on(&mut self) {
        if let Some(frame) = self.raw.next().await {
            panic!("the server closes, and does not say {:?}", frame.header);
        }
    }
}

fn create(path: &str, mode: CreateMode) -> Request {
    create_with(path, mode, vec![Acl::open()])
}

fn create_with(path: &str, mode: CreateMode, acl: Vec<Acl>) -> Request {
    Request::Create { path: path.into(), data: Bytes::from_static(b"data"), acl, mode }
}

fn delete(path: &str, version: i32) -> Request {
    Request::Delete { path: path.into(), version }
}

fn set(path: &str, version: i32) -> Request {
    Request::SetData { path: path.into(), data: Bytes::from_static(b"other"), version }
}

fn check(path: &str, version: i32) -> Request {
    Request::Check { path: path.into(), version }
}

fn exists(path: &str) -> Request {
    Request::Exists { path: path.into(), watch: false }
}

fn get(path: &str) -> Request {
    Request::GetData { path: path.into(), watch: false }
}

fn list(path: &str) -> Request {
    Request::GetChildren { path: path.into(), watch: false }
}

fn stat_of(response: &Response) -> Stat {
    match response {
        Response::Created { stat, .. }
        | Response::Stat(stat)
        | Response::Data { stat, .. }
        | Response::Acl { stat, .. }
        | Response::Children { stat, .. } => *stat,
        Response::Parts(_) | Response::Done => panic!("no stat in {response:?}"),
    }
}

fn path_of(response: &Response) -> &str {
    match response {
        Response::Created { path, .. } => path,
        _ => panic!("no path in {response:?}"),
    }
}

fn names_of(response: &Response) -> Vec<&str> {
    match response {
        Response::Children { names, .. } => {
            let mut names: Vec<_> = names.iter().map(String::as_str).collect();
            names.sort_unstable();
            names
        }
        _ => panic!("no names in {response:?}"),
    }
}

/// The events without their transaction ids.
fn told(events: &[Event]) -> Vec<(EventKind, &str)> {
    events.iter().map(|event| (event.kind, event.path.as_str())).collect()
}

/// An ACL for clients that have authenticated as `user:password`, and nobody else.
fn private() -> Vec<Acl> {
    vec![Acl { scheme: "auth".into(), id: String::new(), ..Acl::open() }]
}

fn proof() -> Request {
    Request::Auth { scheme: "digest".into(), auth: Bytes::from_static(b"user:password") }
}
