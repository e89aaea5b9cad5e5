//! What the two sides of a session's task share: who the session is, and the requests in flight.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rollcall_wire::{OpCode, Response};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::types::Zxid;
use crate::zk::error::Error;
use crate::zk::watches::{Batch, Mailbox};

/// ZooKeeper's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// For a write, its transaction; for a read, the last transaction that the server had applied.
    pub(crate) zxid: Zxid,
    pub(crate) response: Response,
    /// After `Session::submit_on` with a mailbox, the events that came before this answer; otherwise empty.
    pub(crate) events: Batch,
}

/// What ZooKeeper knows a session by, and what the session has last heard.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) id: i64,
    pub(super) password: Bytes,
    pub(super) timeout: Duration,
    pub(super) last_zxid: i64,
    pub(super) last_heard: Option<Instant>,
    /// The server of the last connection.
    pub(super) server: Option<SocketAddr>,
    /// Time that a request has waited while nothing at all was received.
    pub(super) silence: Duration,
}

/// A request that was sent and is not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) xid: i32,
    pub(super) op_code: OpCode,
    pub(super) sent_at: Instant,
    pub(super) mailbox: Option<Arc<Mailbox>>,
    pub(super) held: Option<KeptUntilAnswer>,
    pub(super) reply: oneshot::Sender<Result<Answer, Error>>,
}

/// A value that a request keeps until ZooKeeper is done with it. It is dropped with the answer, with the connection, or
/// when the request is not sent.
pub(crate) type KeptUntilAnswer = Box<dyn Any + Send + Sync>;
