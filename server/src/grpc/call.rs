//! The share of its connection's account that a call takes: a place among the calls, and memory.
//!
//! Both bodies of a call keep its [`Call`] alive, and so does each part of its answer that HTTP/2 has not sent. When
//! the last of them is gone, everything is given back.

use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::request::Parts;
use parking_lot::{Mutex, MutexGuard};
use tonic::Status;

use super::status;
use crate::budget::{Account, Resource, Share};
use crate::contact::{Arriving, Heard};
use crate::error::Error;

/// Memory that every call takes: the tasks and states of HTTP/2, tonic and the handler. Measured: 4.3 KB for a Register
/// stream of which only the headers have arrived. With a larger number, a connection with the maximum number of calls
/// has less memory left for their messages; with a smaller one, calls take more than is counted for them.
const CALL: usize = 4 * 1024;
/// Bytes of a request that [`CALL`] includes, so that small messages cost no arithmetic.
pub(super) const SMALL_REQUEST: usize = 512;
/// Memory that a part of an answer takes in HTTP/2's queue besides its bytes. A larger number makes fast streams of
/// small messages wait more often; a smaller one counts less than small messages take.
pub(super) const QUEUED: usize = 512;
/// Bytes of an answer that HTTP/2 may hold without being counted, [`QUEUED`] included: a client that reads never has
/// more unsent. With a larger number, each call may hold that much more of which the account knows nothing.
const UNCOUNTED_UNSENT: usize = 4 * 1024;
/// Number of unsent bytes above which no more of an answer is made. A larger number lets a client that does not read
/// hold more; a smaller one makes a fast stream wait for its connection more often.
const MOST_UNSENT: usize = 64 * 1024;

/// A call under way.
#[derive(Debug)]
pub(super) struct Call {
    memory: Mutex<CallMemory>,
    account: Account,
    /// Bytes that the call takes before it has a body.
    base: usize,
    /// For a Register stream: when its client was last heard.
    heard: OnceLock<Heard>,
    _stream: Share,
}

#[derive(Debug)]
struct CallMemory {
    share: Share,
    /// Bytes of the request that are kept.
    request: usize,
    /// Bytes of the answer that HTTP/2 has and has not sent.
    unsent: usize,
    /// The task that sends the answer, while it waits for HTTP/2 to send what it has.
    sender: Option<Waker>,
    /// Why the request was cut off. Tonic passes on the status of a body's error, not the error.
    refusal: Option<Box<Error>>,
}

/// A part of an answer, counted until HTTP/2 has sent it or the stream is over.
struct Unsent {
    bytes: Bytes,
    amount: usize,
    call: Arc<Call>,
}

impl Call {
    /// Begins a call: takes its place and its memory.
    ///
    /// # Errors
    /// When a limit is reached.
    pub(super) fn begin(account: &Account, request: &Parts) -> Result<Arc<Self>, Error> {
        let stream = account.take(Resource::Streams, 1)?;
        let headers = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let base = CALL + headers.sum::<usize>().saturating_sub(SMALL_REQUEST);
        let share = account.take(Resource::Bytes, base)?;
        let memory = CallMemory { share, request: 0, unsent: 0, sender: None, refusal: None };
        Ok(Arc::new(Self {
            memory: Mutex::new(memory),
            account: account.clone(),
            base,
            heard: OnceLock::new(),
            _stream: stream,
        }))
    }

    /// Why the request was cut off, if it was.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.memory().refusal.as_deref().cloned()
    }

    /// Marks the call as a Register stream, whose client counts as heard while bytes that have arrived are unread.
    pub(super) fn is_heard_by(&self, heard: Heard) {
        self.heard.get_or_init(|| heard);
    }

    /// Marks that the stream is not read, for as long as the returned guard is kept.
    pub(super) fn held_back(&self) -> Option<Arriving> {
        self.heard.get().map(Heard::arriving)
    }

    fn memory(&self) -> MutexGuard<'_, CallMemory> {
        self.memory.lock()
    }

    fn amount(&self, memory: &CallMemory) -> usize {
        self.base + memory.request.saturating_sub(SMALL_REQUEST) + memory.unsent.saturating_sub(UNCOUNTED_UNSENT)
    }

    /// Sets how much of its request the call keeps.
    ///
    /// # Errors
    /// When it does not fit.
    pub(super) fn keep(&self, request: usize) -> Result<(), Error> {
        let memory = &mut *self.memory();
        memory.request = request;
        let amount = self.amount(memory);
        if amount == memory.share.amount() { Ok(()) } else { memory.share.resize(amount) }
    }

    /// The same for an open stream: bytes that have arrived count, whether or not they fit.
    pub(super) fn keep_open(&self, request: usize) {
        let memory = &mut *self.memory();
        memory.request = request;
        memory.share.set(self.amount(memory));
    }

    /// Whether its connection, or the replica, has no memory left even for open streams.
    pub(super) fn is_exhausted(&self) -> bool {
        self.account.is_exhausted(Resource::Bytes)
    }

    /// Cuts the request off.
    pub(super) fn refuse(&self, error: Error) -> Status {
        let status = status::status(&error);
        self.memory().refusal = Some(Box::new(error));
        status
    }

    /// Whether HTTP/2 has so much of the answer that no more should be made now. The task is woken when HTTP/2 has sent
    /// some.
    pub(super) fn is_full(&self, context: &Context<'_>) -> bool {
        let memory = &mut *self.memory();
        let is_full = memory.unsent >= MOST_UNSENT || memory.unsent > 0 && self.is_exhausted();
        memory.sender = is_full.then(|| context.waker().clone());
        is_full
    }

    /// Counts a part of the answer that HTTP/2 gets, for as long as HTTP/2 has it; `bytes` of it are not counted
    /// elsewhere. A part that was counted before, or is shared, counts whether or not it fits. So does a small part, so
    /// that no lock is lost because of answers that other calls of the connection have not read.
    ///
    /// # Errors
    /// When it does not fit.
    pub(super) fn hand_to_http2(self: &Arc<Self>, part: Bytes, bytes: usize, always: bool) -> Result<Bytes, Error> {
        let amount = bytes + QUEUED;
        let memory = &mut *self.memory();
        memory.unsent += amount;
        if memory.unsent > UNCOUNTED_UNSENT {
            let sum = self.amount(memory);
            if always || amount <= UNCOUNTED_UNSENT {
                memory.share.set(sum);
            } else if let Err(error) = memory.share.resize_open(sum) {
                memory.unsent -= amount;
                return Err(error);
            }
        }
        Ok(Bytes::from_owner(Unsent { bytes: part, amount, call: self.clone() }))
    }

    /// HTTP/2 calls this while it holds its own lock, so nothing here may call HTTP/2.
    fn has_sent(&self, amount: usize) {
        let memory = &mut *self.memory();
        let was_charged = memory.unsent > UNCOUNTED_UNSENT;
        memory.unsent -= amount;
        if was_charged {
            memory.share.set(self.amount(memory));
        }
        if memory.unsent <= MOST_UNSENT / 2
            && let Some(sender) = memory.sender.take()
        {
            sender.wake();
        }
    }
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.call.has_sent(self.amount);
    }
}
