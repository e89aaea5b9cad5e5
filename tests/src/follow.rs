//! Followers of Watch and AcquireLock streams. [`Watching`] puts together the state from a Watch, and checks the rules
//! of the stream at every message; [`Locking`] reads the events of a lock.

use std::collections::BTreeMap;

use rollcall_proto::v1::acquire_lock_response::Event as LockEvent;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, ChangeKind};
use serde_json::Value as Json;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Status, Streaming};

use crate::client::{Client, next, plain, shown};
use crate::wait::{SOON, soon};

/// The state that a client knows from a Watch stream; values as returned by [`shown`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Whether the watched path exists.
    pub exists: bool,
    /// The value of the path.
    pub value: Json,
    /// The children; with `recursive`, all descendants by relative path.
    pub children: BTreeMap<String, Json>,
}

impl Known {
    /// The names of the children.
    pub fn names(&self) -> Vec<&str> {
        self.children.keys().map(String::as_str).collect()
    }

    /// The changes from `before` to this state.
    fn differences_from(&self, before: &Known) -> Vec<(ChangeKind, String)> {
        let own = match (before.exists, self.exists) {
            (false, true) => Some(ChangeKind::Created),
            (true, false) => Some(ChangeKind::Deleted),
            _ => (before.value != self.value).then_some(ChangeKind::DataChanged),
        };
        let gone = before.children.keys().filter(|name| !self.children.contains_key(*name));
        let others = self.children.iter().filter_map(|(name, value)| match before.children.get(name) {
            None => Some((ChangeKind::Added, name.clone())),
            Some(known) => (known != value).then(|| (ChangeKind::Updated, name.clone())),
        });
        let own = own.map(|kind| (kind, String::new()));
        own.into_iter().chain(gone.map(|name| (ChangeKind::Removed, name.clone()))).chain(others).collect()
    }

    /// A child's value without the keys that the server adds; null when there is no such child.
    pub fn child(&self, name: &str) -> Json {
        self.children.get(name).cloned().map_or(Json::Null, plain)
    }
}

/// One Watch stream. Dropping it cancels the call.
#[derive(Debug)]
pub struct Watching {
    stream: Streaming<v1::WatchResponse>,
    /// The state put together from the messages.
    pub known: Known,
    /// The last revision that was sent.
    pub revision: i64,
    /// Number of snapshots, each counted once however many parts it has.
    pub snapshots: usize,
    /// Whether a snapshot said that ZooKeeper itself fell back.
    pub was_reset: bool,
    /// The kinds and names of the changes in all deltas so far.
    pub changes: Vec<(ChangeKind, String)>,
    /// The kinds and names of the differences between later snapshots and the state before them.
    pub differences: Vec<(ChangeKind, String)>,
    /// The state before the snapshot whose parts are arriving, unless that is the first.
    before: Option<Known>,
    /// Whether the current message has more parts to come.
    partial: bool,
    /// Whether the stream resumes an earlier one, and has not brought a state yet.
    resumed: bool,
}

impl Watching {
    /// Watches a path and its children, and reads the snapshot.
    pub async fn start(client: &Client, path: &str) -> Watching {
        Watching::start_with(client, v1::WatchRequest { path: path.to_owned(), ..Default::default() }).await
    }

    /// Watches, and reads until the first state is complete.
    pub async fn start_with(client: &Client, request: v1::WatchRequest) -> Watching {
        Watching::try_start(client, request).await.expect("Watch begins")
    }

    /// Watches, and reads until the first state is complete.
    ///
    /// # Errors
    /// The status that the stream ends with instead.
    pub async fn try_start(client: &Client, request: v1::WatchRequest) -> Result<Watching, Status> {
        let mut watching = Watching::open(client, request, Known::default(), 0).await?;
        watching.try_step().await?;
        while watching.partial {
            watching.try_step().await?;
        }
        Ok(watching)
    }

    /// Resumes from a known state, at the revision in the request, without reading yet.
    pub async fn come_back(client: &Client, request: v1::WatchRequest, known: Known) -> Watching {
        let revision = request.since_revision;
        Watching::open(client, request, known, revision).await.expect("Watch begins")
    }

    async fn open(client: &Client, request: v1::WatchRequest, known: Known, revision: i64) -> Result<Watching, Status> {
        let mut call = client.clone().max_decoding_message_size(2 << 20);
        let stream = soon("headers of Watch", call.watch(request)).await?.into_inner();
        Ok(Watching {
            stream,
            known,
            revision,
            snapshots: 0,
            was_reset: false,
            changes: Vec::new(),
            differences: Vec::new(),
            before: None,
            partial: false,
            resumed: false,
        })
    }

    /// Resumes with a new stream, at any replica, from the state of the old one.
    ///
    /// # Errors
    /// When the new stream can't be opened. The known state stays.
    pub async fn resume(&mut self, client: &Client, request: v1::WatchRequest) -> Result<(), Status> {
        let request = v1::WatchRequest { since_revision: self.revision, ..request };
        let mut call = client.clone().max_decoding_message_size(2 << 20);
        self.stream = soon("headers of Watch", call.watch(request)).await?.into_inner();
        assert!(!self.partial, "a state was interrupted, and what is known is half of it");
        self.resumed = true;
        Ok(())
    }

    /// Reads one message, applies it, and checks the rules of the stream.
    ///
    /// # Errors
    /// The status that the stream ends with.
    pub async fn try_step(&mut self) -> Result<v1::WatchResponse, Status> {
        let message = next("a message of Watch", &mut self.stream).await?.expect("the server does not end a Watch");
        let mut is_reset = false;
        let more = match message.event.as_ref().expect("a message has an event") {
            Event::Snapshot(snapshot) => {
                self.apply_snapshot(snapshot);
                is_reset = snapshot.reset;
                self.was_reset |= is_reset;
                snapshot.more
            }
            Event::Delta(delta) => {
                assert!(!delta.changes.is_empty(), "an empty delta");
                for change in &delta.changes {
                    self.apply(change);
                }
                delta.more
            }
            Event::Current(_) | Event::Backend(_) => {
                assert!(!self.partial, "a state is not interrupted by {message:?}");
                assert!(message.revision >= self.revision, "the revision never falls: {message:?}");
                self.revision = message.revision;
                return Ok(message);
            }
            Event::Draining(_) => return Ok(message),
        };
        if more {
            assert_eq!(message.revision, 0, "a part has no revision");
        } else {
            // The first snapshot after a resume may repeat the known state.
            let is_repeated = std::mem::take(&mut self.resumed) && message.revision == self.revision;
            assert!(
                message.revision > self.revision || is_repeated || is_reset,
                "the revision of a new state rises: {} after {}",
                message.revision,
                self.revision
            );
            self.revision = message.revision;
        }
        self.partial = more;
        if !more && let Some(before) = self.before.take() {
            self.differences.extend(self.known.differences_from(&before));
        }
        Ok(message)
    }

    /// Reads messages until a state is complete. The stream must not end.
    pub async fn step(&mut self) -> v1::WatchResponse {
        loop {
            let message = self.try_step().await.expect("the Watch stands");
            if !self.partial {
                return message;
            }
        }
    }

    /// Reads until `accept` returns true for the known state.
    pub async fn until(&mut self, what: &str, accept: impl Fn(&Known) -> bool) {
        let end = Instant::now() + SOON;
        while !accept(&self.known) {
            if timeout_at(end, self.step()).await.is_err() {
                panic!("not within {SOON:?}: the watch shows {what}; last seen: {:?}", self.known);
            }
        }
    }

    fn apply_snapshot(&mut self, snapshot: &v1::Snapshot) {
        let node = snapshot.node.as_ref().expect("a snapshot has a node");
        if !self.partial {
            let new = Known { exists: node.exists, value: shown(node.value.as_ref()), ..Default::default() };
            let before = std::mem::replace(&mut self.known, new);
            self.before = (self.snapshots > 0).then_some(before);
            self.snapshots += 1;
        }
        assert!(node.exists || node.children.is_empty(), "what does not exist has no children: {node:?}");
        for (name, child) in &node.children {
            let known = self.known.children.insert(name.clone(), shown(child.value.as_ref()));
            assert!(known.is_none(), "{name} comes twice in one snapshot");
        }
    }

    fn apply(&mut self, change: &v1::Change) {
        let value = shown(change.child.as_ref().and_then(|child| child.value.as_ref()));
        let name = &change.name;
        let known = &mut self.known;
        match change.kind() {
            ChangeKind::Added => {
                assert!(known.exists, "{name} is added to what does not exist");
                let old = known.children.insert(name.clone(), value);
                assert_eq!(old, None, "{name} is added twice");
            }
            ChangeKind::Updated => {
                let old = known.children.insert(name.clone(), value.clone());
                assert!(old.is_some(), "{name} is updated but was never added");
                assert_ne!(old, Some(value), "{name} is updated to what it was");
            }
            ChangeKind::Removed => {
                assert!(known.children.remove(name).is_some(), "{name} is removed but was never added");
            }
            ChangeKind::Created => {
                assert!(!known.exists, "created twice");
                *known = Known { exists: true, value, ..Default::default() };
            }
            ChangeKind::DataChanged => {
                assert!(known.exists, "what does not exist has changed");
                assert_ne!(known.value, value, "the data changed to what it was");
                known.value = value;
            }
            ChangeKind::Deleted => {
                assert!(known.exists, "deleted twice");
                *known = Known::default();
            }
            ChangeKind::Unspecified => panic!("a change without a kind: {change:?}"),
        }
        let own = matches!(change.kind(), ChangeKind::Created | ChangeKind::DataChanged | ChangeKind::Deleted);
        assert_eq!(own, name.is_empty(), "a change of the watched path has no name, others have one: {change:?}");
        self.changes.push((change.kind(), name.clone()));
    }
}

/// One AcquireLock stream. Dropping it cancels the call.
#[derive(Debug)]
pub struct Locking {
    stream: Streaming<v1::AcquireLockResponse>,
}

impl Locking {
    /// Queues for a lock.
    ///
    /// # Errors
    /// When the call is refused before its first message.
    pub async fn start(client: &Client, request: v1::AcquireLockRequest) -> Result<Locking, Status> {
        let answer = soon("headers of AcquireLock", client.clone().acquire_lock(request)).await?;
        Ok(Locking { stream: answer.into_inner() })
    }

    /// Queues as `name` for a lock with one holder, and reads `queued`.
    pub async fn queue(client: &Client, path: &str, name: &str) -> (Locking, v1::Queued) {
        let mut lock = Locking::start(client, lock(path, name)).await.expect("the lock may be asked for");
        let queued = match lock.next().await.expect("the stream stands") {
            Some(LockEvent::Queued(queued)) => queued,
            other => panic!("queued comes first, not {other:?}"),
        };
        (lock, queued)
    }

    /// Queues for a lock and waits until it is held.
    pub async fn take(client: &Client, path: &str, name: &str) -> (Locking, v1::Held) {
        let (mut lock, queued) = Locking::queue(client, path, name).await;
        let held = lock.held().await.expect("the lock is granted");
        assert_eq!(held.lock_id, queued.lock_id);
        (lock, held)
    }

    /// The next event other than a heartbeat; `None` at the end.
    ///
    /// # Errors
    /// The status that the stream ends with.
    pub async fn next(&mut self) -> Result<Option<LockEvent>, Status> {
        // A holder receives heartbeats for ever; some waiters wait for a session to expire.
        let event = async {
            loop {
                match self.said().await? {
                    Some(LockEvent::Heartbeat(_)) => {}
                    event => return Ok(event),
                }
            }
        };
        timeout(3 * SOON, event).await.expect("an event of AcquireLock comes")
    }

    /// The next event, heartbeats included; `None` at the end.
    ///
    /// # Errors
    /// The status that the stream ends with.
    pub async fn said(&mut self) -> Result<Option<LockEvent>, Status> {
        let message = next("an event of AcquireLock", &mut self.stream).await?;
        Ok(message.map(|message| message.event.expect("a message has an event")))
    }

    /// Waits until the lock is held.
    ///
    /// # Errors
    /// The status that the stream ends with instead.
    pub async fn held(&mut self) -> Result<v1::Held, Status> {
        loop {
            match self.next().await? {
                Some(LockEvent::Held(held)) => return Ok(held),
                Some(LockEvent::Queued(_)) => {}
                other => panic!("neither queued nor held: {other:?}"),
            }
        }
    }

    /// Reads to the end of the stream.
    ///
    /// # Errors
    /// The status that it ends with, unless that is OK.
    pub async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// A request for a lock with one holder, without a limit on the waiting.
pub fn lock(path: &str, name: &str) -> v1::AcquireLockRequest {
    v1::AcquireLockRequest { path: path.to_owned(), name: name.to_owned(), ..Default::default() }
}
