//! Watch.
//!
//! A step of the view becomes one response, or several if it is large. Its bytes are made once for all watchers. The
//! parts of a large step are made one by one, as clients read them: a client that does not read costs at most two parts
//! (HTTP/2 asks for one ahead). It shares them with all clients that have the same parts, and they count for its
//! connection.

use std::sync::Arc;

use futures_util::stream;
use prost::Message as _;
use rollcall_proto::server::v1;
use rollcall_proto::server::v1::watch_response::Event;
use tonic::Request;

use super::acknowledged::Acknowledged;
use super::admission::{CallKind, CallPlace, account, acknowledged};
use super::frames::{Frame, frame};
use super::heartbeat::{self, Heartbeat};
use super::times::{FIRST_MEMORY_PAUSE, LONGEST_MEMORY_PAUSE};
use super::{Responses, Service, convert, page, status};
use crate::budget::Account;
use crate::error::Error;
use crate::metrics::Counter;
use crate::types::{Revision, Zxid};
use crate::views::{
    Begin, ConnectionKey, Delta, MadePart, PartForm, PartKey, State, Step, Views, Watcher, WatcherUpdate,
};

/// Size above which a step is sent in parts, in bytes.
const PART_BYTES: usize = 1024 * 1024;

/// State that lives as long as the RPC.
struct OpenWatch {
    views: Views,
    account: Account,
    /// The latest transaction acknowledged to the connection, and its value when the call began.
    acknowledged: (Acknowledged, Zxid),
    watcher: Watcher,
    heartbeat: Option<Heartbeat>,
    /// A step of which not all parts are sent.
    unfinished: Option<Unfinished>,
    /// The last revision that was sent.
    told: Revision,
    has_ended: bool,
    /// Counts the messages of all watchers.
    messages: Counter,
    _place: CallPlace,
}

/// A step and how far it has been sent.
enum Unfinished {
    Snapshot { state: Arc<State>, form: PartForm, begin: Begin },
    Delta { delta: Arc<Delta>, first: usize },
}

impl Service {
    pub(super) fn do_watch(&self, request: Request<v1::WatchRequest>) -> Result<Responses<Frame>, Error> {
        let place = self.admit(CallKind::Watch)?;
        let (account, acknowledged) = (account(&request), acknowledged(&request));
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
        let reader = self.views.open(&path, request.recursive, &account)?;
        let latest = acknowledged.latest();
        let at_least = latest.max(convert::at_least(request.min_revision)?);
        let watcher = Watcher::open(reader, since, at_least, request.full, ConnectionKey(account.id()));
        let (views, messages, told) =
            (self.views.clone(), self.metrics.watch_messages.clone(), since.unwrap_or_default());
        let open = OpenWatch {
            views,
            account,
            acknowledged: (acknowledged, latest),
            watcher,
            heartbeat,
            unfinished: None,
            told,
            has_ended: false,
            messages,
            _place: place,
        };
        Ok(Box::pin(stream::unfold(open, next_response)))
    }
}

async fn next_response(mut open: OpenWatch) -> Option<(Result<Frame, tonic::Status>, OpenWatch)> {
    if open.has_ended {
        return None;
    }
    let frame = match open.next().await {
        Ok(mut frame) => {
            frame.is_part = open.unfinished.as_ref().is_some_and(|unfinished| !unfinished.is_untold());
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

impl OpenWatch {
    async fn next(&mut self) -> Result<Frame, Error> {
        if let Some(unfinished) = self.unfinished.take() {
            let is_stale = self.watcher.is_stale();
            return self.part(unfinished, is_stale).await;
        }
        let next = heartbeat::or_due(&mut self.heartbeat, self.watcher.next()).await.transpose()?;
        if let Some(end) = self.watcher.take_end() {
            let (acknowledged, latest) = &self.acknowledged;
            acknowledged.forget(*latest, end);
        }
        let Some(WatcherUpdate { step, is_stale }) = next else {
            self.told = self.watcher.current();
            return Ok(self.current());
        };
        let (revision, event) = match step {
            Step::Snapshot { state, is_reset } => {
                let form = if is_reset { PartForm::Reset } else { PartForm::Snapshot };
                return self.part(Unfinished::Snapshot { state, form, begin: Begin::First }, is_stale).await;
            }
            Step::Delta(delta) => return self.part(Unfinished::Delta { delta, first: 0 }, is_stale).await,
            Step::Current { revision } => (revision, Event::Current(v1::Current {})),
            Step::Backend { state, as_of } => {
                (self.watcher.current(), Event::Backend(convert::backend_to_proto(state, as_of)))
            }
        };
        self.told = revision;
        Ok(Frame::of(&v1::WatchResponse { revision: revision.0, stale: is_stale, event: Some(event) }))
    }

    /// The message `current`, with the last revision that was sent.
    fn current(&self) -> Frame {
        let (revision, stale) = (self.told.0, self.watcher.is_stale());
        Frame::of(&v1::WatchResponse { revision, stale, event: Some(Event::Current(v1::Current {})) })
    }

    /// The next part of a step, as soon as the account has room for it: no watcher is dropped because of answers that
    /// other calls of the connection have not read. Between two parts there is no heartbeat: they are one message to
    /// the client.
    async fn part(&mut self, step: Unfinished, stale: bool) -> Result<Frame, Error> {
        let mut pause = FIRST_MEMORY_PAUSE;
        let made = loop {
            match self.made(&step).await {
                Err(Error::LimitExceeded { .. }) => {}
                made => break made?,
            }
            if heartbeat::is_due_within(&mut self.heartbeat, pause).await && step.is_untold() {
                self.unfinished = Some(step);
                return Ok(self.current());
            }
            pause = (2 * pause).min(LONGEST_MEMORY_PAUSE);
        };
        if made.next.is_none() {
            self.told = step.revision();
        }
        self.unfinished = match (step, made.next) {
            (Unfinished::Snapshot { state, form, .. }, Some(begin)) => {
                Some(Unfinished::Snapshot { state, form, begin })
            }
            (Unfinished::Delta { delta, .. }, Some(Begin::At(first))) => Some(Unfinished::Delta { delta, first }),
            _ => None,
        };
        // The bytes that are the same for all watchers, and the field that is not.
        Ok(Frame::with(&made.bytes, &v1::WatchResponse { stale, ..Default::default() }))
    }

    async fn made(&self, step: &Unfinished) -> Result<MadePart, Error> {
        match step {
            Unfinished::Snapshot { state, form, begin } => {
                let key = PartKey { form: *form, begin: begin.clone(), size: 0 };
                self.views.state_part(&self.account, state, key, snapshot_part).await
            }
            Unfinished::Delta { delta, first } => self.views.delta_part(&self.account, delta, *first, delta_part).await,
        }
    }
}

impl Unfinished {
    fn revision(&self) -> Revision {
        match self {
            Self::Snapshot { state, .. } => state.revision,
            Self::Delta { delta, .. } => delta.revision,
        }
    }

    /// Whether no part of it was sent.
    fn is_untold(&self) -> bool {
        match self {
            Self::Snapshot { begin, .. } => *begin == Begin::First,
            Self::Delta { first, .. } => *first == 0,
        }
    }
}

/// Only the last part carries the revision.
fn watch_response(revision: Revision, is_last: bool, event: Event) -> bytes::Bytes {
    let revision = if is_last { revision.0 } else { 0 };
    frame(&v1::WatchResponse { revision, stale: false, event: Some(event) })
}

fn snapshot_part(state: &State, key: &PartKey) -> MadePart {
    let (node, next) = page::node_part(state, &key.begin, usize::MAX, PART_BYTES);
    let (more, reset) = (next.is_some(), key.form == PartForm::Reset);
    let event = Event::Snapshot(v1::Snapshot { node: Some(node), more, reset });
    MadePart { bytes: watch_response(state.revision, !more, event), next: next.map(Begin::After) }
}

fn delta_part(delta: &Delta, first: usize) -> MadePart {
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for change in delta.changes.iter().skip(first) {
        let change = convert::change_to_proto(change);
        bytes += change.encoded_len();
        if bytes > PART_BYTES && !changes.is_empty() {
            break;
        }
        changes.push(change);
    }
    let next = Some(first + changes.len()).filter(|next| *next < delta.changes.len());
    let event = Event::Delta(v1::Delta { changes, more: next.is_some() });
    MadePart { bytes: watch_response(delta.revision, next.is_none(), event), next: next.map(Begin::At) }
}
