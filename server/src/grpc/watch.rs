//! Watch.
//!
//! A step of the view becomes one response, or several when it is large. The parts are made one by one, as the client
//! reads them: a client that does not read costs no more than one.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use prost::Message as _;
use rollcall_proto::v1;
use rollcall_proto::v1::watch_response::Event;
use tonic::Request;

use super::admission::Place;
use super::{Responses, Service, convert, status};
use crate::error::Error;
use crate::types::Revision;
use crate::views::{Delta, State, Step, Watcher};

/// A larger step is told in parts, in bytes.
const PART_BYTES: usize = 1024 * 1024;

/// What lives as long as the RPC.
struct Open {
    watcher: Watcher,
    /// Zero: none.
    heartbeat: Duration,
    /// A step that is told in parts, and is not over.
    unfinished: Option<Unfinished>,
    has_ended: bool,
    _place: Place,
}

/// A step and how far it has been told.
enum Unfinished {
    Snapshot { state: Arc<State>, is_reset: bool, after: Option<Arc<str>> },
    Delta { delta: Arc<Delta>, told: usize },
}

impl Service {
    pub(super) fn do_watch(&self, request: Request<v1::WatchRequest>) -> Result<Responses<v1::WatchResponse>, Error> {
        let place = self.admit(&request)?;
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        let heartbeat = self.heartbeat(request.heartbeat)?;
        let since = match request.since_revision {
            0 => None,
            1.. => Some(Revision(request.since_revision)),
            _ => {
                return Err(Error::Protocol { field: "since_revision", cause: "it can't be negative".to_owned() });
            }
        };
        let watcher = self.views.open(&path, request.recursive)?.watch(since, request.full);
        let open = Open { watcher, heartbeat, unfinished: None, has_ended: false, _place: place };
        Ok(Box::pin(stream::unfold(open, next_response)))
    }
}

async fn next_response(mut open: Open) -> Option<(Result<v1::WatchResponse, tonic::Status>, Open)> {
    if open.has_ended {
        return None;
    }
    let event = match open.unfinished.take() {
        Some(unfinished) => Ok(open.go_on(unfinished)),
        None => open.next_step().await,
    };
    let stale = open.watcher.is_stale();
    let response = match event {
        Ok((revision, event)) => Ok(v1::WatchResponse { revision, stale, event: Some(event) }),
        Err(error) => {
            open.has_ended = true;
            Err(status::status(&error))
        }
    };
    Some((response, open))
}

impl Open {
    async fn next_step(&mut self) -> Result<(i64, Event), Error> {
        let step = if self.heartbeat.is_zero() {
            self.watcher.next().await?
        } else {
            match tokio::time::timeout(self.heartbeat, self.watcher.next()).await {
                Ok(step) => step?,
                Err(_) => return Ok((self.watcher.current().0, Event::Current(v1::Current {}))),
            }
        };
        Ok(match step {
            Step::Snapshot { state, is_reset } => self.go_on(Unfinished::Snapshot { state, is_reset, after: None }),
            Step::Delta(delta) => self.go_on(Unfinished::Delta { delta, told: 0 }),
            Step::Current { revision } => (revision.0, Event::Current(v1::Current {})),
            Step::Backend { state, as_of } => {
                (self.watcher.current().0, Event::Backend(convert::backend_to_proto(state, as_of)))
            }
        })
    }

    /// Makes the next part; only the last one carries the revision.
    fn go_on(&mut self, unfinished: Unfinished) -> (i64, Event) {
        let (revision, event, rest) = match unfinished {
            Unfinished::Snapshot { state, is_reset, after } => snapshot_part(state, is_reset, after.as_ref()),
            Unfinished::Delta { delta, told } => delta_part(delta, told),
        };
        self.unfinished = rest;
        (if self.unfinished.is_some() { 0 } else { revision.0 }, event)
    }
}

fn snapshot_part(state: Arc<State>, reset: bool, after: Option<&Arc<str>>) -> (Revision, Event, Option<Unfinished>) {
    let revision = state.revision;
    let mut node = convert::node_to_proto(&state.path, state.node.as_deref(), after.is_none());
    let begin = after.map_or(Bound::Unbounded, |after| Bound::Excluded(&**after));
    let mut rest = state.children.range::<str, _>((begin, Bound::Unbounded)).peekable();
    let last = convert::fill_children(&mut node, &mut rest, usize::MAX, PART_BYTES, after.is_some());
    let more = rest.next().is_some();
    let event = Event::Snapshot(v1::Snapshot { node: Some(node), more, reset });
    // Where the node alone fills the first part, the next begins with the first child: after the empty name.
    let rest = more.then(|| Unfinished::Snapshot { state, is_reset: reset, after: Some(last.unwrap_or_default()) });
    (revision, event, rest)
}

fn delta_part(delta: Arc<Delta>, told: usize) -> (Revision, Event, Option<Unfinished>) {
    let revision = delta.revision;
    let mut changes = Vec::new();
    let mut bytes = 0;
    for change in &delta.changes[told..] {
        let change = convert::change_to_proto(change);
        bytes += change.encoded_len();
        if bytes > PART_BYTES && !changes.is_empty() {
            break;
        }
        changes.push(change);
    }
    let told = told + changes.len();
    let more = told < delta.changes.len();
    let rest = more.then_some(Unfinished::Delta { delta, told });
    (revision, Event::Delta(v1::Delta { changes, more }), rest)
}
