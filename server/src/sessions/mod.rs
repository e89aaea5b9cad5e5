//! Registrations and their lifetimes.
//!
//! - [`Sessions`]: the handle. One task (`task`) owns all registrations of the replica as pure state (`state` and the
//!   files that it names). Operations in ZooKeeper (`claiming`, `upkeep`) run beside it, one operation a path at a
//!   time, and a bounded number in all (`lanes`).
//! - [`Outbox`]: the messages that a stream's client has still to get.
//!
//! Everything that a client makes this replica hold is taken from its connection's account before it is accepted
//! (`footprint`, `outbox`), and given back when it is gone.
//!
//! A registration of a replica that dies exists until its ZooKeeper session times out, no longer.

mod advance;
mod claiming;
#[cfg(test)]
mod claiming_tests;
mod claims;
mod comparison;
mod confirmations;
mod dispute;
#[cfg(test)]
mod dispute_tests;
mod effects;
#[cfg(test)]
mod evict_tests;
mod footprint;
#[cfg(test)]
mod goodbye_tests;
mod inbox;
mod lanes;
mod lifetimes;
#[cfg(test)]
mod load_tests;
mod operations;
mod outbox;
mod outcomes;
mod path_reservations;
#[cfg(test)]
mod random_tests;
mod reads;
mod registration;
mod retries;
mod stalls;
mod state;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod stepped;
mod streams;
mod task;
mod times;
mod uncertain_creates;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use effects::Input;
pub(crate) use effects::StreamId;
use inbox::{Departures, Message};
pub(crate) use outbox::{Notice, Outbox, RegistrationLostReason};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::budget::Account;
use crate::clock;
use crate::contact::{Heard, StallDetector};
use crate::error::Error;
use crate::evictions::Evictions;
use crate::types::{Generation, NodePath};
use crate::value::EncodedValue;
use crate::zk::layout::is_in_lock_queue;
use crate::zk::{Pool, Zk};

/// Maximum number of inputs that wait for the task. A stream whose input finds no place is not read meanwhile. The
/// bound limits how long messages of other streams may delay an input: the streams that wait for a place get it in
/// turn.
const INPUT_QUEUE: usize = 256;

/// A handle on all registrations of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    inputs: mpsc::Sender<Message>,
    departures: Arc<Departures>,
    next_stream: Arc<AtomicU64>,
    pool: Pool,
}

/// A client's request on its stream.
#[derive(Debug)]
pub(crate) enum Request {
    /// See [`Input::Set`].
    Set {
        path: NodePath,
        value: EncodedValue,
        /// Length of the value in a znode.
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
    /// A request that is refused without being carried out.
    Reject { path: String, error: Error },
}

/// The writing side of one Register stream, for the task that reads its messages.
#[derive(Debug)]
pub(crate) struct Requests {
    stream: StreamId,
    inputs: mpsc::Sender<Message>,
    heard: Heard,
    account: Account,
}

/// The RPC of one Register stream. When this is dropped, the RPC is over.
#[derive(Debug)]
pub(crate) struct Rpc {
    stream: StreamId,
    departures: Arc<Departures>,
    outbox: Arc<Outbox>,
}

impl Sessions {
    /// Starts the task that owns the registrations, in `tasks`. The task makes `stall_detector` tick.
    pub(crate) fn start(
        zk: Zk,
        evictions: Evictions,
        stall_detector: Arc<StallDetector>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (inputs, queue) = mpsc::channel(INPUT_QUEUE);
        let departures = Arc::new(Departures::default());
        let pool = zk.pool.clone();
        tasks.spawn(task::run(zk, evictions, stall_detector, queue, departures.clone()));
        Self { inputs, departures, next_stream: Arc::new(AtomicU64::new(1)), pool }
    }

    /// From now on the end of a stream removes nothing: the replica goes down, and its clients come back elsewhere.
    pub(crate) fn leave_standing(&self) {
        self.departures.ignore();
    }

    /// Waits until everything that is to be removed is gone: registrations that clients gave back, and those of streams
    /// that are over.
    pub(crate) async fn settled(&self) {
        let (settle, settled) = oneshot::channel();
        if self.inputs.send(Message::Settle(settle)).await.is_ok() {
            drop(settled.await);
        }
    }

    /// How long a client may hear nothing from this replica before its registrations may be gone with a ZooKeeper
    /// session.
    pub(crate) fn horizon(&self) -> Duration {
        self.pool.horizon()
    }

    /// A new stream of a connection with this account.
    pub(crate) fn stream(&self, account: Account) -> (Requests, Rpc) {
        let stream = StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed));
        let outbox = Arc::new(Outbox::new(&account));
        let rpc = Rpc { stream, departures: self.departures.clone(), outbox };
        (Requests { stream, inputs: self.inputs.clone(), heard: Heard::new(clock::now()), account }, rpc)
    }
}

impl Requests {
    /// Opens the session. Must be called before everything else, and once. `None` when the replica is going down.
    pub(crate) async fn open(&self, outbox: Arc<Outbox>, ttl: Option<Duration>, pid: Option<u32>) -> Option<()> {
        let stream = self.stream;
        let session_id = format!("{:016x}", rand::random::<u64>());
        let (account, heard) = (self.account.clone(), self.heard.clone());
        let input = Input::Open { stream, session_id, ttl, pid, account, heard };
        self.send_message(Message::Open { input, stream, outbox }).await
    }

    /// Hands a request over, once there is a place in the queue. `None` when the replica is going down.
    ///
    /// # Cancellation
    /// The request is dropped.
    pub(crate) async fn send(&self, request: Request) -> Option<()> {
        self.send_message(Message::Input(self.input(request))).await
    }

    async fn send_message(&self, message: Message) -> Option<()> {
        let arriving = self.heard.arriving();
        let place = self.inputs.reserve().await.ok()?;
        drop(arriving);
        place.send(message);
        Some(())
    }

    /// A request in the form that the task takes. Its memory is taken from the account, or the request is refused.
    fn input(&self, request: Request) -> Input {
        let stream = self.stream;
        match request {
            // The node would count as a lock's contender.
            Request::Set { path, .. } if is_in_lock_queue(&path) => {
                Input::Reject { stream, path: path.as_str().to_owned(), error: Error::HasRegistrations { path } }
            }
            Request::Set { path, value, bytes, generation, exclusive, created } => {
                match footprint::request(&self.account, &path, bytes) {
                    Ok(memory) => Input::Set { stream, path, value, generation, exclusive, created, memory },
                    Err(error) => Input::Reject { stream, path: path.as_str().to_owned(), error },
                }
            }
            Request::Unset { path } => Input::Unset { stream, path },
            Request::KeepAlive => Input::KeepAlive { stream },
            Request::Close => Input::Close { stream },
            Request::Fail { error } => Input::Fail { stream, error },
            Request::Reject { path, error } => Input::Reject { stream, path, error },
        }
    }

    /// When its client was last heard.
    pub(crate) fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Ends a stream that was never opened.
    pub(crate) fn refuse(outbox: &Outbox, error: Error) {
        outbox.close(Err(error));
    }
}

impl Rpc {
    /// The messages for the client.
    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.departures.add(self.stream, &self.outbox);
    }
}
