//! What a call takes from its connection's account: a place among the calls, and memory.
//!
//! Both bodies of a call hold on to its [`Call`]; when the last of them is gone, everything is given back.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::message::Lengths;
use super::pace::Unread;
use super::status;
use crate::budget::{Account, Resource, Share};
use crate::error::Error;

/// Memory that a call takes whatever it asks: the tasks and states of HTTP/2, tonic and the handler. Measured: 4.3 KB for
/// a Register stream of which only headers have come. A larger number leaves a connection with as many calls as it may
/// have less for what they say; with a smaller one calls take more than they are counted with.
const CALL: usize = 4 * 1024;
/// Bytes of a request that are part of [`CALL`], so that small messages cost no arithmetic.
const SMALL: usize = 512;
/// Time in which a request of one message must be complete.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The most that a reflection stream may ask, in bytes; its server answers with what it was asked, twice.
const REFLECTION: usize = 64 * 1024;

/// A call under way.
#[derive(Debug)]
pub(super) struct Call {
    memory: Mutex<Memory>,
    /// What is taken before there is a body.
    base: usize,
    _stream: Share,
}

#[derive(Debug)]
struct Memory {
    share: Share,
    /// Why the request was cut off. Tonic hands on the status of a body's error, and not the error.
    refusal: Option<Box<Error>>,
}

/// How a call uses its request.
#[derive(Debug)]
pub(super) enum Form {
    /// One message, which is kept as long as the call.
    Single,
    /// Register: any number of messages, at any time, of which each is handed on.
    Many,
    /// Reflection: any number of messages, for a while.
    Reflection { _place: OwnedSemaphorePermit },
}

impl Call {
    /// Takes what a call needs.
    ///
    /// # Errors
    /// When it is over a limit.
    pub(super) fn begin(account: &Account, request: &Parts) -> Result<Arc<Self>, Error> {
        let stream = account.take(Resource::Streams, 1)?;
        let headers = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let base = CALL + headers.sum::<usize>().saturating_sub(SMALL);
        let share = account.take(Resource::Bytes, base)?;
        Ok(Arc::new(Self { memory: Mutex::new(Memory { share, refusal: None }), base, _stream: stream }))
    }

    /// Why its request was cut off, if it was.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.memory().refusal.as_deref().cloned()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how much of its body the call keeps.
    fn keep(&self, body: usize) -> Result<(), Error> {
        let amount = self.base + body.saturating_sub(SMALL);
        let share = &mut self.memory().share;
        if amount == share.amount() { Ok(()) } else { share.resize(amount) }
    }

    /// Cuts its request off.
    fn refuse(&self, error: Error) -> Status {
        let status = status::status(&error);
        self.memory().refusal = Some(Box::new(error));
        status
    }
}

/// The body of a request: it is counted as it comes, and has to come in time.
pub(super) struct Upload {
    body: Body,
    form: Form,
    began: Instant,
    /// When the time of a single message is over. Most are complete before anybody waits.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Bytes that are kept.
    kept: usize,
    lengths: Lengths,
    call: Arc<Call>,
    unread: Arc<Unread>,
}

impl Upload {
    pub(super) fn new(body: Body, form: Form, call: Arc<Call>, unread: Arc<Unread>) -> Self {
        Self { body, form, began: Instant::now(), alarm: None, kept: 0, lengths: Lengths::default(), call, unread }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Error> {
        if !data.is_empty() {
            self.unread.is_read();
        }
        self.kept += data.len();
        match self.form {
            Form::Single => {}
            Form::Many => self.lengths.pass(data),
            Form::Reflection { .. } if self.kept > REFLECTION => {
                let limit = REFLECTION as u64;
                let what = "what a reflection stream asks, in bytes,";
                return Err(Error::LimitExceeded { reason: "TOO_MANY_BYTES", what, limit });
            }
            Form::Reflection { .. } => {}
        }
        self.call.keep(self.kept)
    }

    /// Whether the time of a single message is over.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let due = self.began + REQUEST_TIME;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        alarm.as_mut().poll(context).is_ready()
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if matches!(this.form, Form::Many) && this.kept > 0 {
            // Asked for more, the reader has handed on every message that was complete.
            this.kept = this.lengths.unfinished();
            // Less always fits.
            drop(this.call.keep(this.kept));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            if matches!(this.form, Form::Single) && this.is_late(context) {
                return Poll::Ready(Some(Err(this.call.refuse(Error::RequestUnfinished { after: REQUEST_TIME }))));
            }
            return Poll::Pending;
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.count(data)
        {
            return Poll::Ready(Some(Err(this.call.refuse(error))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer: the call is under way until its end.
#[derive(Default)]
pub(crate) struct Download {
    body: Body,
    call: Option<Arc<Call>>,
}

impl Download {
    pub(super) fn new(body: Body, call: Arc<Call>) -> Self {
        Self { body, call: Some(call) }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if frame.as_ref().is_none_or(|frame| !frame.as_ref().is_ok_and(Frame::is_data)) {
            this.call = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
