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
use crate::types::Zxid;
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
        let head = self.submit([get_data(path), get_children(path)].into_iter());
        sync.await?;
        let mut found = take(head).await?;
        let mut named = self.scope.named(&found.events);
        // If it is absent, the round that follows dates that.
        let Some(entry) = node(&mut found)? else { return Ok(Loaded { state, named }) };
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
        let mut next_level = Vec::new();
        let requests = |path: &str| [Some(get_data(path)), recursive.then(|| get_children(path))];
        let take_in = |names: Vec<Arc<str>>, mut found: Found| {
            named.extend(self.scope.named(&found.events));
            for name in names {
                let read = entry(found.parts.pop_front())?;
                if recursive {
                    next_level.extend(self.listed(&name, &mut found));
                }
                reads.insert(name, read);
            }
            Ok(())
        };
        self.read_batches(batches(names), requests, take_in).await?;
        Ok(next_level)
    }

    /// Reads what `requests` asks for of each node, some batches at a time. One whose answer is too large is halved.
    async fn read_batches<const N: usize>(
        &self,
        batches: Vec<Vec<Arc<str>>>,
        requests: impl Fn(&str) -> [Option<Request>; N],
        mut take_in: impl FnMut(Vec<Arc<str>>, Found) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut batches = VecDeque::from(batches);
        let mut under_way = VecDeque::new();
        loop {
            while under_way.len() < PIPELINE {
                let Some(names) = batches.pop_front() else { break };
                let parts = names.iter().flat_map(|name| requests(&self.scope.absolute(name)).into_iter().flatten());
                let answer = self.submit(parts);
                under_way.push_back((names, answer));
            }
            let Some((mut names, answer)) = under_way.pop_front() else { return Ok(()) };
            match take(answer).await {
                Err(failure) if is_too_large(failure) && names.len() > 1 => {
                    batches.push_front(names.split_off(names.len() / 2));
                    batches.push_front(names);
                }
                found => take_in(names, found?)?,
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
        let mut ahead = batches(names.iter().cloned().collect());
        let mut last = ahead.pop().unwrap_or_default();
        let ancestors = if is_absent {
            batches(self.scope.ancestors().map(|path| path.as_str().into()).collect())
        } else {
            Vec::new()
        };
        let (mut found, answered) = loop {
            let take_in = |names, mut found| self.take_in(&mut round, names, &mut found);
            self.read_batches(ahead, |path| [Some(get_data(path))], take_in).await?;
            let sync = with_sync.then(|| self.sync());
            let below = last.iter().map(|name| get_data(&self.scope.absolute(name)));
            let above = ancestors.first().into_iter().flatten().map(|path| get_data(path));
            let answer = self.submit([get_data(self.scope.path.as_str())].into_iter().chain(below).chain(above));
            if let Some(sync) = sync {
                sync.await?;
            }
            match take(answer).await {
                Err(failure) if is_too_large(failure) && !last.is_empty() => {
                    ahead = vec![last.split_off(last.len() / 2)];
                }
                found => break (found?, last),
            }
        };
        let node = node(&mut found)?;
        round.zxid = found.zxid;
        self.take_in(&mut round, answered, &mut found)?;
        round.node = match node {
            Some(entry) => Some(NodeRead::Present(entry)),
            None if is_absent => self.date_absence(&mut round, found, ancestors).await?.map(NodeRead::Absent),
            None => None,
        };
        Ok(round)
    }

    fn take_in(&self, round: &mut Round, names: Vec<Arc<str>>, found: &mut Found) -> Result<(), Failure> {
        let mut reads = Vec::with_capacity(names.len());
        for name in names {
            reads.push((name, entry(found.parts.pop_front())?));
        }
        round.answer(self.scope.named(&found.events), reads);
        Ok(())
    }

    /// The pzxid of the nearest ancestor that exists. `found` has what there is of the first batch of ancestors; the
    /// others are read one after the other. `None` when the path may have come to be meanwhile.
    async fn date_absence(
        &self,
        round: &mut Round,
        mut found: Found,
        ancestors: Vec<Vec<Arc<str>>>,
    ) -> Result<Option<i64>, Failure> {
        for batch in ancestors.iter().skip(1) {
            if ancestor_pzxid(&found).is_some() {
                break;
            }
            found = take(self.submit(batch.iter().map(|path| get_data(path)))).await?;
            round.zxid = found.zxid;
            self.take_in(round, Vec::new(), &mut found)?;
            if found.events.events.contains_key(self.scope.path.as_str()) {
                return Ok(None);
            }
        }
        // Not even the root can be read: the moment itself dates the absence. It rises, if often in vain.
        Ok(Some(ancestor_pzxid(&found).unwrap_or(found.zxid.0)))
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

/// Whether less should be asked for. The embedded server refuses to answer more than it keeps for a reader.
fn is_too_large(failure: Failure) -> bool {
    use zk::Error::{AnswerTooLarge, Refused};
    matches!(failure, Failure::Zk(AnswerTooLarge(_) | Refused(ErrorCode::MarshallingError)))
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

/// The path's own node, which is the first part.
fn node(found: &mut Found) -> Result<Option<Arc<Entry>>, Failure> {
    match entry(found.parts.pop_front())? {
        Some(entry) if !entry.is_readable => Err(Failure::Forbidden),
        node => Ok(node),
    }
}

/// The pzxid of the nearest ancestor that exists, if one does; the parts that are left are the ancestors. If it is hidden,
/// the moment itself dates the absence: what is above it may be older. That rises, if often in vain.
fn ancestor_pzxid(found: &Found) -> Option<i64> {
    let nearest = found.parts.iter().find(|part| !matches!(part, Err(ErrorCode::NoNode)))?;
    Some(match nearest {
        Ok(Response::Data { stat, .. }) => stat.pzxid,
        _ => found.zxid.0,
    })
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
    use bytes::Bytes;

    use super::*;
    use crate::types::Stat;

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

    #[test]
    fn an_absence_is_dated_by_the_nearest_ancestor_and_by_the_moment_when_that_is_hidden() {
        let absent = Err(ErrorCode::NoNode);
        let hidden = Err(ErrorCode::NoAuth);
        let present = || Ok(Response::Data { data: Bytes::new(), stat: Stat { pzxid: 5, ..Stat::default() } });
        let dated =
            |parts: Vec<_>| ancestor_pzxid(&Found { parts: parts.into(), events: Batch::default(), zxid: Zxid(120) });
        assert_eq!(dated(vec![absent.clone(), present(), hidden.clone()]), Some(5));
        assert_eq!(dated(vec![absent.clone(), hidden.clone(), present()]), Some(120));
        assert_eq!(dated(vec![absent]), None);
    }
}
