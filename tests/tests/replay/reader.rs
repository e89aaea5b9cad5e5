//! A reader: its current state, and all its earlier states.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, ChangeKind, WatchRequest};
use rollcall_tests::client::shown;
use rollcall_tests::wait::SOON;
use serde_json::Value as Json;
use tokio::time::timeout;

use super::{END, ROOT, World, pause};

/// The first line of a value, which identifies it.
pub(super) fn first_line(mut value: Json) -> Json {
    if let Some(Json::String(text)) = value.get_mut("text") {
        text.truncate(text.find('\n').unwrap_or(text.len()));
    }
    value
}

/// A node as a reader has it, or as a writer wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) value: Json,
    pub(super) mzxid: i64,
}

/// The state that a reader knows: by relative path, empty for the path itself.
pub(super) type Copy = BTreeMap<String, Seen>;

/// The state of a reader after a message.
pub(super) struct State {
    pub(super) revision: i64,
    pub(super) known: Copy,
    /// The message and its stream, for diagnosis.
    pub(super) how: String,
}

pub(super) struct Reader {
    world: Arc<World>,
    random: StdRng,
    pub(super) request: WatchRequest,
    pub(super) known: Copy,
    revision: i64,
    /// Whether the current state has parts to come.
    is_partial: bool,
    /// All its states, by revision.
    pub(super) history: Vec<State>,
    streams: usize,
    /// Number of times that it resumed with a delta, without a change, and with a snapshot.
    pub(super) resumed: [usize; 3],
}

impl Reader {
    pub(super) fn new(world: Arc<World>, number: u64, seed: u64) -> Reader {
        let request = WatchRequest {
            path: ROOT.to_owned(),
            recursive: number % 2 == 1,
            full: number % 4 == 2,
            heartbeat: Some(rollcall_tests::client::span(Duration::from_secs(1))),
            ..Default::default()
        };
        Reader {
            world,
            random: StdRng::seed_from_u64(seed + 100 + number),
            request,
            known: Copy::new(),
            revision: 0,
            is_partial: false,
            history: Vec::new(),
            streams: 0,
            resumed: [0; 3],
        }
    }

    /// Reads, hangs up and resumes elsewhere, until the test is over and it has seen the last node.
    pub(super) async fn run(mut self) -> Reader {
        while !(self.world.is_over() && self.known.contains_key(END)) {
            let client = self.world.client(&mut self.random);
            self.streams += 1;
            let request = WatchRequest { since_revision: self.revision, ..self.request.clone() };
            if let Ok(Ok(stream)) = timeout(SOON, client.clone().watch(request)).await {
                self.read(stream.into_inner()).await;
            }
            // An incomplete state is discarded.
            if std::mem::take(&mut self.is_partial) {
                self.known = self.history.last().map(|state| state.known.clone()).unwrap_or_default();
            }
            pause(&mut self.random, self.world.course.absence()).await;
        }
        self
    }

    async fn read(&mut self, mut stream: tonic::Streaming<v1::WatchResponse>) {
        let is_resuming = self.revision > 0;
        for number in 0..self.random.random_range(1..40) {
            // A silent stream is left, like a broken one.
            let Ok(Ok(Some(message))) = timeout(Duration::from_secs(3), stream.message()).await else { return };
            if is_resuming && number == 0 {
                match &message.event {
                    Some(Event::Delta(_)) => self.resumed[0] += 1,
                    Some(Event::Current(_)) => self.resumed[1] += 1,
                    Some(Event::Snapshot(_)) => self.resumed[2] += 1,
                    _ => {}
                }
            }
            self.hear(message);
        }
    }

    fn hear(&mut self, message: v1::WatchResponse) {
        let before = self.revision;
        let how = match &message.event {
            Some(Event::Snapshot(_)) => "snapshot".to_owned(),
            Some(Event::Delta(delta)) => {
                let changes = delta.changes.iter().map(|change| format!("{:?} {}", change.kind(), change.name));
                changes.collect::<Vec<_>>().join(", ")
            }
            _ => String::new(),
        };
        let more = match message.event.expect("a message has an event") {
            Event::Snapshot(snapshot) => {
                assert!(!snapshot.reset, "zookeeper never went back");
                if !self.is_partial {
                    self.known.clear();
                }
                self.take_in(snapshot.node.unwrap());
                snapshot.more
            }
            Event::Delta(delta) => {
                assert!(!self.request.full && before > 0 && !delta.changes.is_empty());
                delta.changes.into_iter().for_each(|change| self.apply(change));
                delta.more
            }
            Event::Current(_) => {
                assert!(!self.is_partial && message.revision >= before, "{} after {before}", message.revision);
                self.revision = message.revision;
                if before > 0 {
                    self.note("current");
                }
                return;
            }
            Event::Backend(_) => {
                assert!(!self.is_partial && message.revision >= before, "{} after {before}", message.revision);
                return;
            }
            Event::Draining(_) => return,
        };
        self.is_partial = more;
        if !more {
            assert!(message.revision > before, "a new state's revision rises: {} after {before}", message.revision);
            self.revision = message.revision;
            self.note(&how);
        }
    }

    fn note(&mut self, how: &str) {
        let how = format!("{how} on stream {}", self.streams);
        self.history.push(State { revision: self.revision, known: self.known.clone(), how });
    }

    fn take_in(&mut self, node: v1::Node) {
        if node.exists {
            let stat = node.stat.unwrap();
            let own = Seen { value: first_line(shown(node.value.as_ref())), mzxid: stat.mzxid };
            // Only the first part has the value.
            self.known.entry(String::new()).or_insert(own);
        }
        for (name, child) in node.children {
            assert!(self.known.insert(name.clone(), Seen::new(&child)).is_none(), "{name} comes twice");
        }
    }

    fn apply(&mut self, change: v1::Change) {
        let (kind, name) = (change.kind(), change.name);
        let Some(child) = change.child else {
            let gone = self.known.remove(&name);
            assert!(gone.is_some(), "{kind:?} {name:?}, which was not there");
            if kind == ChangeKind::Deleted {
                self.known.clear();
            }
            return;
        };
        let now = Seen::new(&child);
        let before = self.known.insert(name.clone(), now.clone());
        match kind {
            ChangeKind::Added | ChangeKind::Created => assert!(before.is_none(), "{name:?} comes twice"),
            ChangeKind::Updated | ChangeKind::DataChanged => {
                assert!(before.is_some_and(|before| before.value != now.value), "{name:?} is as it was");
            }
            other => panic!("{other:?} with a child"),
        }
    }
}

impl Seen {
    pub(super) fn new(child: &v1::Child) -> Seen {
        Seen { value: first_line(shown(child.value.as_ref())), mzxid: child.stat.unwrap().mzxid }
    }
}
