//! Watch.
//!
//! A step of the view becomes one response, or several when it is large. The bytes of a delta, and of the present state, are
//! made once for all. The parts of a state are made one by one, as clients read them: a client that does not read costs
//! no more than two (HTTP/2 asks for one ahead), which it shares with all who have the same.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use prost::Message as _;
use rollcall_proto::server::v1;
use rollcall_proto::server::v1::watch_response::Event;
use tokio::time::{Instant, Sleep};
use tonic::Request;

use super::admission::{Place, account};
use super::frames::{Frame, frame};
use super::{Responses, Service, convert, status};
use crate::error::Error;
use crate::metrics::Counter;
use crate::types::Revision;
use crate::views::{Delta, Form, Made, Neighbourhood, State, Step, Told, Watcher};

/// A larger step is told in parts, in bytes.
const PART_BYTES: usize = 1024 * 1024;

/// What lives as long as the RPC.
struct Open {
    watcher: Watcher,
    heartbeat: Option<Heartbeat>,
    /// A step that is told in parts, and is not over.
    unfinished: Option<Unfinished>,
    has_ended: bool,
    /// Counts the messages of all.
    messages: Counter,
    _place: Place,
}

/// When a message is due though nothing has happened.
struct Heartbeat {
    interval: Duration,
    /// When the last message was made.
    last: Instant,
    /// It is set once an interval, and not with each message.
    alarm: Pin<Box<Sleep>>,
}

/// A step and how far it has been told.
enum Unfinished {
    Snapshot { state: Arc<State>, form: Form, after: Arc<str> },
    Delta { delta: Arc<Delta>, told: usize },
}

impl Service {
    pub(super) fn do_watch(&self, request: Request<v1::WatchRequest>) -> Result<Responses<Frame>, Error> {
        let place = self.admit()?;
        let neighbourhood = Neighbourhood(account(&request).id());
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        let heartbeat = Heartbeat::every(self.heartbeat(request.heartbeat)?);
        let since = match request.since_revision {
            0 => None,
            1.. => Some(Revision(request.since_revision)),
            _ => {
                return Err(Error::Protocol { field: "since_revision", cause: "it can't be negative".to_owned() });
            }
        };
        let watcher = self.views.open(&path, request.recursive)?.watch(since, request.full, neighbourhood);
        let messages = self.metrics.watch_messages.clone();
        let open = Open { watcher, heartbeat, unfinished: None, has_ended: false, messages, _place: place };
        Ok(Box::pin(stream::unfold(open, next_response)))
    }
}

async fn next_response(mut open: Open) -> Option<(Result<Frame, tonic::Status>, Open)> {
    if open.has_ended {
        return None;
    }
    let frame = match open.next().await {
        Ok(mut frame) => {
            frame.is_part = open.unfinished.is_some();
            open.messages.inc();
            Ok(frame)
        }
        Err(error) => {
            open.has_ended = true;
            Err(status::status(&error))
        }
    };
    Some((frame, open))
}

impl Open {
    async fn next(&mut self) -> Result<Frame, Error> {
        if let Some(unfinished) = self.unfinished.take() {
            let is_stale = self.watcher.is_stale();
            let ready = match unfinished {
                Unfinished::Snapshot { state, form, after } => self.snapshot(state, form, Some(&after)),
                Unfinished::Delta { delta, told } => self.delta(delta, told),
            };
            return Ok(told(&ready, is_stale));
        }
        let next = match &mut self.heartbeat {
            None => Some(self.watcher.next().await?),
            Some(heartbeat) => {
                tokio::select! {
                    biased;
                    next = self.watcher.next() => Some(next?),
                    () = heartbeat.is_due() => None,
                }
            }
        };
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.last = Instant::now();
        }
        let Some(Told { step, is_stale }) = next else {
            let (revision, stale) = (self.watcher.current().0, self.watcher.is_stale());
            return Ok(Frame::of(&v1::WatchResponse { revision, stale, event: Some(Event::Current(v1::Current {})) }));
        };
        let (revision, event) = match step {
            Step::Snapshot { state, is_reset } => {
                let form = if is_reset { Form::Reset } else { Form::Snapshot };
                return Ok(told(&self.snapshot(state, form, None), is_stale));
            }
            Step::Delta(delta) => return Ok(told(&self.delta(delta, 0), is_stale)),
            Step::Current { revision } => (revision.0, Event::Current(v1::Current {})),
            Step::Backend { state, as_of } => {
                (self.watcher.current().0, Event::Backend(convert::backend_to_proto(state, as_of)))
            }
        };
        Ok(Frame::of(&v1::WatchResponse { revision, stale: is_stale, event: Some(event) }))
    }

    /// The next part of a state.
    fn snapshot(&mut self, state: Arc<State>, form: Form, after: Option<&Arc<str>>) -> Bytes {
        let made = state.part(form, after, || snapshot_part(&state, form, after));
        self.unfinished = made.next.map(|after| Unfinished::Snapshot { state, form, after });
        made.bytes
    }

    /// The next part of a delta.
    fn delta(&mut self, delta: Arc<Delta>, told: usize) -> Bytes {
        let parts = delta.parts(delta_parts);
        let part = parts[told].clone();
        let has_more = told + 1 < parts.len();
        self.unfinished = has_more.then_some(Unfinished::Delta { delta, told: told + 1 });
        part
    }
}

/// What is the same for all, and what is not.
fn told(ready: &Bytes, stale: bool) -> Frame {
    Frame::with(ready, &v1::WatchResponse { stale, ..Default::default() })
}

/// Only the last part carries the revision.
fn watch_response(revision: Revision, is_last: bool, event: Event) -> Bytes {
    let revision = if is_last { revision.0 } else { 0 };
    frame(&v1::WatchResponse { revision, stale: false, event: Some(event) })
}

fn snapshot_part(state: &State, form: Form, after: Option<&Arc<str>>) -> Made {
    let mut node = convert::node_to_proto(&state.path, state.node.as_deref(), after.is_none());
    let mut rest = state.children.after(after.map_or("", |after| after)).peekable();
    let last = convert::fill_children(&mut node, &mut rest, usize::MAX, PART_BYTES, after.is_some());
    let more = rest.next().is_some();
    let event = Event::Snapshot(v1::Snapshot { node: Some(node), more, reset: form == Form::Reset });
    // Where the node alone fills the first part, the next begins with the first child: after the empty name.
    Made { bytes: watch_response(state.revision, !more, event), next: more.then(|| last.unwrap_or_default()) }
}

fn delta_parts(delta: &Delta) -> Box<[Bytes]> {
    let mut parts = Vec::new();
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for change in &delta.changes {
        let change = convert::change_to_proto(change);
        let length = change.encoded_len();
        if bytes + length > PART_BYTES && !changes.is_empty() {
            let event = Event::Delta(v1::Delta { changes: std::mem::take(&mut changes), more: true });
            parts.push(watch_response(delta.revision, false, event));
            bytes = 0;
        }
        bytes += length;
        changes.push(change);
    }
    parts.push(watch_response(delta.revision, true, Event::Delta(v1::Delta { changes, more: false })));
    parts.into()
}

impl Heartbeat {
    /// `None` for zero.
    fn every(interval: Duration) -> Option<Self> {
        let alarm = || Box::pin(tokio::time::sleep(interval));
        (!interval.is_zero()).then(|| Self { interval, last: Instant::now(), alarm: alarm() })
    }

    /// Resolves when the last message is that long ago.
    async fn is_due(&mut self) {
        loop {
            self.alarm.as_mut().await;
            let due = self.last + self.interval;
            if due <= Instant::now() {
                return;
            }
            self.alarm.as_mut().reset(due);
        }
    }
}
