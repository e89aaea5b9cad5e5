//! Registrations and their lifetimes.
//!
//! - [`Sessions`]: the handle. One task (`task`) owns all registrations of the replica as pure state (`state`, `entry`);
//!   what has to be done in ZooKeeper (`claims`) runs beside it, one operation a path at a time.
//! - [`Outbox`]: what a stream's client is still to be told.
//!
//! What may be lost: a registration of a replica that dies stands until its ZooKeeper session times out, no longer.

mod attempted;
mod claims;
mod entry;
mod outbox;
mod pulse;
mod state;
#[cfg(test)]
mod state_tests;
mod task;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use outbox::{LostReason, Notice, Outbox};
use state::Input;
pub(crate) use state::{Limits, StreamId};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::types::{Generation, NodePath};
use crate::value::EncodedValue;
use crate::zk::Zk;
use crate::zk::layout::is_in_lock_queue;

/// How many inputs may wait for the task; a stream whose input finds no place is not read meanwhile.
const QUEUE: usize = 4096;

/// A handle on all registrations of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    inputs: mpsc::Sender<Message>,
    departures: Arc<Departures>,
    next_stream: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    /// A stream's first message, with where to tell it things.
    Open {
        input: Input,
        stream: StreamId,
        outbox: Arc<Outbox>,
    },
    Input(Input),
    /// To be dropped when nothing is to be taken down any more.
    Settle(oneshot::Sender<()>),
}

/// Streams that are over: told without waiting, so that it can be done on drop. Bounded by the number of streams.
#[derive(Debug, Default)]
struct Departures {
    gone: Mutex<Vec<StreamId>>,
    news: Notify,
    /// Whether the replica goes: what a stream holds stands then, whatever becomes of the stream.
    ignored: AtomicBool,
}

/// What a client asked on its stream.
#[derive(Debug)]
pub(crate) enum Request {
    /// See [`Input::Set`].
    Set {
        path: NodePath,
        value: EncodedValue,
        /// How long the value is in a znode.
        bytes: usize,
        generation: Option<Generation>,
        exclusive: bool,
        created: String,
    },
    /// See [`Input::Unset`].
    Unset { path: NodePath },
    /// See [`Input::KeepAlive`].
    KeepAlive,
    /// See [`Input::Close`].
    Close,
    /// See [`Input::Fail`].
    Fail { error: Error },
    /// A request that is refused without a look at it.
    Reject { path: String, error: Error },
}

/// The writing side of one Register stream. Clones are the same stream.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    stream: StreamId,
    inputs: mpsc::Sender<Message>,
}

/// A place in the queue, for one message of a stream.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    stream: StreamId,
    permit: mpsc::Permit<'a, Message>,
}

/// The RPC of one Register stream: when this is dropped, the RPC is over.
#[derive(Debug)]
pub(crate) struct Rpc {
    stream: StreamId,
    departures: Arc<Departures>,
    outbox: Arc<Outbox>,
}

impl Sessions {
    /// Starts the task that owns the registrations, in `tasks`.
    pub(crate) fn start(zk: Zk, limits: Limits, tasks: &mut JoinSet<()>) -> Self {
        let (inputs, queue) = mpsc::channel(QUEUE);
        let departures = Arc::new(Departures::default());
        tasks.spawn(task::run(zk, limits, queue, departures.clone()));
        Self { inputs, departures, next_stream: Arc::new(AtomicU64::new(1)) }
    }

    /// From now on the end of a stream takes nothing down: the replica goes, and its clients come back elsewhere.
    pub(crate) fn leave_standing(&self) {
        self.departures.ignored.store(true, Ordering::Release);
    }

    /// Waits until all that is to be taken down is gone: what clients gave back, and what streams held that are over.
    pub(crate) async fn settled(&self) {
        let (settle, settled) = oneshot::channel();
        if self.inputs.send(Message::Settle(settle)).await.is_ok() {
            drop(settled.await);
        }
    }

    /// A new stream.
    pub(crate) fn stream(&self) -> (Requests, Rpc) {
        let stream = StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed));
        let rpc = Rpc { stream, departures: self.departures.clone(), outbox: Arc::default() };
        (Requests { stream, inputs: self.inputs.clone() }, rpc)
    }
}

impl Requests {
    /// Waits for a place in the queue. `None` when the replica is going down.
    pub(crate) async fn turn(&self) -> Option<Turn<'_>> {
        // Not the message itself is handed over here, which every stream would then keep room for.
        let permit = self.inputs.reserve().await.ok()?;
        Some(Turn { stream: self.stream, permit })
    }

    /// Ends a stream that was never opened.
    pub(crate) fn refuse(outbox: &Outbox, error: Error) {
        outbox.close(Err(error));
    }
}

impl Turn<'_> {
    /// Opens the session: before everything else, and once.
    pub(crate) fn open(self, outbox: Arc<Outbox>, ttl: Option<Duration>, pid: Option<u32>) {
        let stream = self.stream;
        let session_id = format!("{:016x}", rand::random::<u64>());
        self.permit.send(Message::Open { input: Input::Open { stream, session_id, ttl, pid }, stream, outbox });
    }

    /// Hands a request over.
    pub(crate) fn request(self, request: Request) {
        let stream = self.stream;
        self.permit.send(Message::Input(match request {
            // It would count as a contender.
            Request::Set { path, .. } if is_in_lock_queue(&path) => {
                Input::Reject { stream, path: path.as_str().to_owned(), error: Error::HasRegistrations { path } }
            }
            Request::Set { path, value, bytes, generation, exclusive, created } => {
                Input::Set { stream, path, value, bytes, generation, exclusive, created }
            }
            Request::Unset { path } => Input::Unset { stream, path },
            Request::KeepAlive => Input::KeepAlive { stream },
            Request::Close => Input::Close { stream },
            Request::Fail { error } => Input::Fail { stream, error },
            Request::Reject { path, error } => Input::Reject { stream, path, error },
        }));
    }
}

impl Rpc {
    /// What the client is to be told.
    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        if self.departures.ignored.load(Ordering::Acquire) {
            return;
        }
        // In this order: a first message that the task reads later is then known to be of no use.
        self.outbox.abandon();
        self.departures.gone.lock().unwrap_or_else(PoisonError::into_inner).push(self.stream);
        self.departures.news.notify_one();
    }
}

impl Departures {
    /// Waits until streams are over, and takes them.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready.
    async fn next(&self) -> Vec<StreamId> {
        loop {
            let gone = std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner));
            if !gone.is_empty() {
                return gone;
            }
            self.news.notified().await;
        }
    }

    /// Whether nobody is gone who was not taken yet.
    fn is_empty(&self) -> bool {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
