//! What a view reads from ZooKeeper, and how: always on the very connection that holds its watch.
//!
//! Batches are bounded by count, so that an answer stays below what the gateway reads in one frame even when every node
//! is as large as ZooKeeper allows, and by bytes, so that a request stays below what ZooKeeper reads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use super::rounds::{Names, Round};
use super::scope::{Scope, child_of};
use super::state::{Entry, NodeRead, Reads, State};
use crate::types::{NodePath, Zxid};
use crate::zk::{self, Answer, Batch, ErrorCode, Mailbox, Request, Response, Session, Subscription};

/// How many nodes one multi read asks for: 60 of a mebibyte each stay below the gateway's 64 MiB.
const BATCH_NODES: usize = 60;
/// How many bytes of relative names one multi read asks for; the path in front of each may add 4 KiB.
const BATCH_BYTES: usize = 128 * 1024;
/// How many multi reads of one view are under way at once.
const PIPELINE: usize = 8;

/// Why a view could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Everything has to be read again: the watch was set anew meanwhile, or too much happened to tell.
    Resync,
    /// ZooKeeper's access control list hides the path itself.
    Forbidden,
    /// What was read can't be all: ZooKeeper counts other numbers of children.
    Disagrees,
    /// ZooKeeper seems to have gone back in time.
    Behind,
    /// ZooKeeper did not answer, or not as it should.
    Zk(zk::Error),
}

impl From<zk::Error> for Failure {
    fn from(error: zk::Error) -> Self {
        Self::Zk(error)
    }
}

/// A connection on which the watch stands. When it is gone, reads fail; they never go to the next one.
#[derive(Debug)]
pub(super) struct Line<'a> {
    session: Session,
    connection: u64,
    mailbox: &'a Arc<Mailbox>,
    scope: &'a Scope,
}

/// What a load has read.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Everything, though not in one moment: a round over `named` has to follow.
    pub(super) state: State,
    /// What events named meanwhile.
    pub(super) named: Names,
}

/// An answer that is under way.
type Pending = Pin<Box<dyn Future<Output = Result<Answer, zk::Error>> + Send>>;

/// What a multi read found.
struct Found {
    parts: VecDeque<Result<Response, ErrorCode>>,
    events: Batch,
    zxid: Zxid,
}

impl<'a> Line<'a> {
    /// The line, if the watch stands.
    pub(super) fn new(subscription: &Subscription, mailbox: &'a Arc<Mailbox>, scope: &'a Scope) -> Option<Self> {
        let (session, connection) = subscription.connection()?;
        Some(Self { session, connection, mailbox, scope })
    }

    /// Reads everything, behind a sync: a session that has just begun may be on a server that is behind what was shown
    /// before.
    pub(super) async fn load(&self) -> Result<Loaded, Failure> {
        let mut state = State::empty(self.scope.path.clone(), self.scope.recursive);
        let sync = self.sync();
        let path = self.scope.path.as_str();
        let head = self.submit([get_data(path), get_children(path)].into_iter().chain(self.ancestors()));
        sync.await?;
        let mut found = take(head).await?;
        let mut named = self.scope.named(&found.events);
        let node = node(&mut found, |found| drop(found.parts.pop_front()))?;
        let Some(entry) = node else {
            let ancestor = ancestor_pzxid(&found);
            state.take_in(NodeRead::Absent(ancestor), Reads::new());
            return Ok(Loaded { state, named });
        };
        let mut reads = Reads::new();
        let mut level = self.listed("", &mut found);
        while !level.is_empty() {
            level = self.load_level(level, &mut reads, &mut named).await?;
        }
        state.take_in(NodeRead::Present(entry), reads);
        Ok(Loaded { state, named })
    }

    /// Reads these nodes and, if recursive, lists them; gives the next level.
    async fn load_level(
        &self,
        names: Vec<Arc<str>>,
        reads: &mut Reads,
        named: &mut Names,
    ) -> Result<Vec<Arc<str>>, Failure> {
        let recursive = self.scope.recursive;
        let mut batches = batches(names).into_iter();
        let mut under_way = VecDeque::new();
        let mut next_level = Vec::new();
        loop {
            while under_way.len() < PIPELINE {
                let Some(names) = batches.next() else { break };
                let requests = names.iter().flat_map(|name| {
                    let path = self.scope.absolute(name);
                    [Some(get_data(&path)), recursive.then(|| get_children(&path))].into_iter().flatten()
                });
                let answer = self.submit(requests);
                under_way.push_back((names, answer));
            }
            let Some((names, answer)) = under_way.pop_front() else { return Ok(next_level) };
            let mut found = take(answer).await?;
            named.extend(self.scope.named(&found.events));
            for name in names {
                let read = entry(found.parts.pop_front())?;
                if recursive {
                    next_level.extend(self.listed(&name, &mut found));
                }
                reads.insert(name, read);
            }
        }
    }

    /// Takes a list of children; none when the node is gone or can't be listed.
    fn listed(&self, parent: &str, found: &mut Found) -> Vec<Arc<str>> {
        match found.parts.pop_front() {
            Some(Ok(Response::Children { names, .. })) => {
                names.iter().map(|name| child_of(parent, name)).filter(|name| !self.scope.hides(name)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Reads these nodes and, in one multi read with the last of them, the path's own. With a sync in front of that last
    /// read, if asked for. While the path is absent its ancestors have to be read too, to date that.
    pub(super) async fn round(&self, names: &Names, is_absent: bool, with_sync: bool) -> Result<Round, Failure> {
        let mut round = Round::default();
        let mut batches = batches(names.iter().cloned().collect());
        let last = batches.pop().unwrap_or_default();
        let mut batches = batches.into_iter();
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < PIPELINE {
                let Some(names) = batches.next() else { break };
                let answer = self.submit(names.iter().map(|name| get_data(&self.scope.absolute(name))));
                under_way.push_back((names, answer));
            }
            let Some((names, answer)) = under_way.pop_front() else { break };
            self.take_in(&mut round, names, take(answer).await?)?;
        }
        let sync = with_sync.then(|| self.sync());
        let below = last.iter().map(|name| get_data(&self.scope.absolute(name)));
        let ancestors = is_absent.then(|| self.ancestors()).into_iter().flatten();
        let answer = self.submit([get_data(self.scope.path.as_str())].into_iter().chain(below).chain(ancestors));
        if let Some(sync) = sync {
            sync.await?;
        }
        let mut found = take(answer).await?;
        let node = node(&mut found, |_| {})?;
        round.zxid = found.zxid;
        let found = self.take_in(&mut round, last, found)?;
        round.node = match node {
            Some(entry) => Some(NodeRead::Present(entry)),
            None => is_absent.then(|| NodeRead::Absent(ancestor_pzxid(&found))),
        };
        Ok(round)
    }

    fn take_in(&self, round: &mut Round, names: Vec<Arc<str>>, mut found: Found) -> Result<Found, Failure> {
        let mut reads = Vec::with_capacity(names.len());
        for name in names {
            reads.push((name, entry(found.parts.pop_front())?));
        }
        round.answer(self.scope.named(&found.events), reads);
        Ok(found)
    }

    fn ancestors(&self) -> impl Iterator<Item = Request> + use<> {
        self.scope.ancestors().map(|path: NodePath| get_data(path.as_str()))
    }

    fn sync(&self) -> impl Future<Output = Result<Answer, zk::Error>> + Send + use<> {
        let path = self.scope.path.as_str().to_owned();
        self.session.submit_on(self.connection, Request::Sync { path }, None)
    }

    /// Sends a multi read, now.
    fn submit(&self, parts: impl Iterator<Item = Request>) -> Pending {
        let request = Request::MultiRead(parts.collect());
        Box::pin(self.session.submit_on(self.connection, request, Some(self.mailbox)))
    }
}

fn get_data(path: &str) -> Request {
    Request::GetData { path: path.to_owned(), watch: false }
}

fn get_children(path: &str) -> Request {
    Request::GetChildren { path: path.to_owned(), watch: false }
}

async fn take(answer: Pending) -> Result<Found, Failure> {
    let answer = answer.await?;
    if !answer.events.resync.is_empty() {
        return Err(Failure::Resync);
    }
    match answer.response {
        Response::Parts(parts) => Ok(Found { parts: parts.into(), events: answer.events, zxid: answer.zxid }),
        _ => Err(Failure::Zk(zk::Error::OutcomeUnknown)),
    }
}

/// A node below, as one part of an answer has it.
fn entry(part: Option<Result<Response, ErrorCode>>) -> Result<Option<Arc<Entry>>, Failure> {
    match part {
        Some(Ok(Response::Data { data, stat })) => Ok(Some(Arc::new(Entry::new(&data, stat)))),
        Some(Err(ErrorCode::NoNode)) => Ok(None),
        Some(Err(ErrorCode::NoAuth)) => Ok(Some(Arc::new(Entry::default()))),
        Some(Err(code)) => Err(Failure::Zk(zk::Error::Refused(code))),
        Some(Ok(_)) | None => Err(Failure::Zk(zk::Error::OutcomeUnknown)),
    }
}

/// The path's own node, which is the first part; when it is absent, `skip` what was asked along with it.
fn node(found: &mut Found, skip: impl FnOnce(&mut Found)) -> Result<Option<Arc<Entry>>, Failure> {
    let node = entry(found.parts.pop_front())?;
    match &node {
        Some(entry) if !entry.is_readable => return Err(Failure::Forbidden),
        Some(_) => {}
        None => skip(found),
    }
    Ok(node)
}

/// The pzxid of the nearest ancestor that exists and can be read; the parts that are left are the ancestors.
fn ancestor_pzxid(found: &Found) -> i64 {
    let pzxid = found.parts.iter().find_map(|part| match part {
        Ok(Response::Data { stat, .. }) => Some(stat.pzxid),
        _ => None,
    });
    // Not even the root can be read: the moment itself dates the absence. It rises, if often in vain.
    pzxid.unwrap_or(found.zxid.0)
}

fn batches(names: Vec<Arc<str>>) -> Vec<Vec<Arc<str>>> {
    let mut batches: Vec<Vec<Arc<str>>> = Vec::new();
    let mut bytes = 0;
    for name in names {
        bytes += name.len();
        match batches.last_mut().filter(|batch| batch.len() < BATCH_NODES && bytes <= BATCH_BYTES) {
            Some(batch) => batch.push(name),
            None => {
                bytes = name.len();
                batches.push(vec![name]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_by_count_and_bytes() {
        let sizes = |length: usize, count: usize| -> Vec<usize> {
            batches(vec!["x".repeat(length).into(); count]).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(10, 150), [60, 60, 30]);
        assert_eq!(sizes(50 * 1024, 5), [2, 2, 1]);
        assert_eq!(sizes(500 * 1024, 2), [1, 1]);
        assert!(sizes(1, 0).is_empty());
    }
}
