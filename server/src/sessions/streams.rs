//! A Register stream: what it has asked for, until when it lives, and the work that its end leaves.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use super::effects::StreamId;
use super::footprint::Footprint;
use crate::budget::{Account, Resource};
use crate::contact::Heard;
use crate::types::NodePath;

/// The streams of a replica.
pub(super) type Streams = HashMap<StreamId, Stream>;

/// One Register stream: its RPC, and with a ttl what may follow it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pid: Option<u32>,
    pub(super) account: Account,
    pub(super) ttl: Option<Duration>,
    /// Whether the RPC is open.
    pub(super) attached: bool,
    /// When its last message was taken. See [`Stream::last_heard`].
    pub(super) last_taken: Instant,
    pub(super) heard: Heard,
    /// When its ttl is checked next.
    pub(super) check_at: Option<Instant>,
    /// When its ttl ended, while messages that have arrived may still have to be read.
    pub(super) doubted_since: Option<Instant>,
    /// The paths that it holds or has asked for, with the footprint of each once its turn has come.
    pub(super) paths: BTreeMap<NodePath, Option<Footprint>>,
    /// Number of `unregistered` notices that it has still to get.
    pub(super) farewells: usize,
    /// Whether it has said goodbye.
    pub(super) is_closing: bool,
}

/// The work that the end of a stream leaves, path by path.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) stream: StreamId,
    pub(super) paths: btree_map::IntoIter<NodePath, Option<Footprint>>,
    pub(super) ending: Ending,
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It has said goodbye, and is told of each path.
    Closed,
    /// The stream is over, and is told nothing.
    Dropped,
    /// It is open and was silent for its ttl: it is told what it has lost, and ended.
    Expired { ttl: Duration },
}

impl Departure {
    pub(super) fn new(stream: StreamId, paths: BTreeMap<NodePath, Option<Footprint>>, ending: Ending) -> Self {
        Self { stream, paths: paths.into_iter(), ending }
    }
}

impl Stream {
    pub(super) fn new(ttl: Option<Duration>, pid: Option<u32>, account: Account, heard: Heard, now: Instant) -> Self {
        Self {
            pid,
            account,
            ttl,
            attached: true,
            last_taken: now,
            heard,
            check_at: None,
            doubted_since: None,
            paths: BTreeMap::new(),
            farewells: 0,
            is_closing: false,
        }
    }

    /// Whether its RPC is open. With a ttl the RPC may be over while the registrations are kept.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether it has said goodbye.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// When its client was last heard: a message counts from when it was read. If the connection has no memory left,
    /// messages of its streams may not even arrive, behind unread messages of others. Each stream then gets one more
    /// ttl, and no more, or the registrations of a program that hangs would stay for as long as that lasts.
    pub(super) fn last_heard(&self, now: Instant) -> Instant {
        let heard = self.last_taken.max(self.heard.last(now));
        match self.ttl {
            Some(ttl) if self.attached && self.account.is_exhausted(Resource::Bytes) => now.min(heard + ttl),
            _ => heard,
        }
    }

    /// Whether its ttl has gone by since its client was last heard.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        !self.is_closing && self.ttl.is_some_and(|ttl| self.last_heard(now) + ttl <= now)
    }

    /// The paths that it holds or has asked for, in their order.
    pub(super) fn paths_in(&self, range: (Bound<&NodePath>, Bound<&NodePath>)) -> impl Iterator<Item = &NodePath> {
        self.paths.range::<NodePath, _>(range).map(|(path, _)| path)
    }

    /// The footprint of a path, if it is held or its claim is under way.
    pub(super) fn footprint(&mut self, path: &NodePath) -> &mut Option<Footprint> {
        self.paths.entry(path.clone()).or_default()
    }
}
