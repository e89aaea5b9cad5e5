//! A view's reads from ZooKeeper, always on the very connection that holds its watch.
//!
//! Batches are bounded by count, so that an answer stays below what the gateway reads in one frame even if every node
//! is as large as ZooKeeper allows; and by bytes, so that a request stays below what ZooKeeper reads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use super::apart::{Bulk, apart, discard};
use super::consistent_read::{Arrived, ReadRound};
use super::node::{NodeRead, ViewNode, weight};
use super::scope::RelativePaths;
use super::scope::{Scope, child_of};
use super::state::State;
use crate::error::Error;
use crate::turns::{TurnPermit, Turns};
use crate::types::Zxid;
use crate::zk::{self, Answer, Batch, ErrorCode, Mailbox, Request, Response, Session, Subscription};

/// Maximum number of nodes that one multi read asks for: 60 of a mebibyte each stay below the gateway's 64 MiB.
const BATCH_NODES: usize = 60;
/// Maximum number of bytes of relative names that one multi read asks for; the path in front of each may add 4 KiB.
const NAME_BYTES_PER_READ: usize = 128 * 1024;
/// Maximum number of multi reads of one view that are under way.
const PIPELINE: usize = 8;
/// Number of bytes of data that are copied before other tasks get a turn.
const COPIED_AT_ONCE: usize = 1024 * 1024;

/// The reason why a view could not be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// Everything has to be read again: the watch was set again meanwhile, or too many events came to list them.
    Resync,
    /// ZooKeeper's access control list hides the path itself.
    Forbidden,
    /// The reads can't be complete: ZooKeeper counts other numbers of children.
    Disagrees,
    /// ZooKeeper seems to have gone back in time.
    Behind,
    /// The path is larger than the view may hold.
    TooLarge(Error),
    /// ZooKeeper did not answer, or not as expected.
    Zk(zk::Error),
}

impl From<zk::Error> for Failure {
    fn from(error: zk::Error) -> Self {
        Self::Zk(error)
    }
}

/// A connection that holds the watch. Once it is lost, reads fail; they never move to the next connection.
#[derive(Debug)]
pub(super) struct Line<'a> {
    session: Session,
    connection: u64,
    mailbox: &'a Arc<Mailbox>,
    scope: &'a Scope,
}

/// The result of a load.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Everything, though not at one moment: a round over `named` has to follow.
    pub(super) state: State,
    /// The names in the events that arrived meanwhile.
    pub(super) named: RelativePaths,
}

/// An answer that is under way.
type PendingRead = Pin<Box<dyn Future<Output = Result<Answer, zk::Error>> + Send>>;

/// The result of a multi read.
struct MultiReadResult {
    parts: VecDeque<Result<Response, ErrorCode>>,
    events: Batch,
    zxid: Zxid,
}

/// Names that still have to be read. A list of children, which may be long, becomes names only as they are drawn.
#[derive(Debug, Default)]
struct Todo {
    /// Batches that were drawn and put back.
    returned: Vec<Vec<Arc<str>>>,
    /// A name that did not fit into the batch before.
    next: Option<Arc<str>>,
    lists: VecDeque<List>,
}

#[derive(Debug)]
enum List {
    Names(std::vec::IntoIter<Arc<str>>),
    Children { parent: Arc<str>, names: std::vec::IntoIter<String> },
}

impl Todo {
    fn of(names: Vec<Arc<str>>) -> Self {
        let lists = VecDeque::from([List::Names(names.into_iter())]);
        Self { returned: Vec::new(), next: None, lists }
    }

    /// Adds a list of children; nothing if the node is gone or can't be listed.
    fn add_children(&mut self, parent: &Arc<str>, found: &mut MultiReadResult) {
        if let Some(Ok(Response::Children { names, .. })) = found.parts.pop_front() {
            self.lists.push_back(List::Children { parent: parent.clone(), names: names.into_iter() });
        }
    }

    /// The names of one multi read; `None` when nothing is left.
    fn batch(&mut self, scope: &Scope) -> Option<Vec<Arc<str>>> {
        if let Some(batch) = self.returned.pop() {
            return Some(batch);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_NODES
            && let Some(name) = self.next.take().or_else(|| self.draw(scope))
        {
            bytes += name.len();
            if bytes > NAME_BYTES_PER_READ && !batch.is_empty() {
                self.next = Some(name);
                break;
            }
            batch.push(name);
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn draw(&mut self, scope: &Scope) -> Option<Arc<str>> {
        while let Some(list) = self.lists.front_mut() {
            let name = match list {
                List::Names(names) => names.next(),
                List::Children { parent, names } => {
                    names.map(|name| child_of(parent, &name)).find(|name| !scope.hides(name))
                }
            };
            if name.is_some() {
                return name;
            }
            self.lists.pop_front();
        }
        None
    }
}

impl Drop for Todo {
    /// A load that was given up may leave many names.
    fn drop(&mut self) {
        if !self.lists.is_empty() {
            discard(usize::MAX, std::mem::take(&mut self.lists));
        }
    }
}

/// Multi reads of many nodes, several at a time.
struct MultiReads<'l> {
    line: &'l Line<'l>,
    todo: Todo,
    /// The requests for each node.
    requests: fn(&str) -> [Option<Request>; 2],
    /// The turns that it waits for, and the connection that it waits as; `None`: it waits for none.
    turns: Option<&'l (Turns<()>, u64)>,
    under_way: VecDeque<(Vec<Arc<str>>, PendingRead)>,
}

impl MultiReads<'_> {
    /// The next nodes, and the result for them. A multi read whose answer is too large is halved.
    async fn next(&mut self) -> Result<Option<(Vec<Arc<str>>, MultiReadResult)>, Failure> {
        loop {
            self.ask().await;
            let Some((mut names, answer)) = self.under_way.pop_front() else { return Ok(None) };
            match take(answer).await {
                Err(failure) if is_too_large(&failure) && names.len() > 1 => {
                    self.todo.returned.push(names.split_off(names.len() / 2));
                    self.todo.returned.push(names);
                }
                found => return Ok(Some((names, found.map_err(of_one_node)?))),
            }
        }
    }

    /// Sends as many multi reads as may be under way. Waits for a turn only while none is under way.
    async fn ask(&mut self) {
        while self.under_way.len() < PIPELINE {
            let Some(names) = self.todo.batch(self.line.scope) else { return };
            let turn = match self.turns {
                None => None,
                Some((turns, connection)) => match turns.try_turn(&()) {
                    None if self.under_way.is_empty() => Some(turns.turn(&(), *connection).await),
                    None => {
                        self.todo.returned.push(names);
                        return;
                    }
                    turn => turn,
                },
            };
            let paths = names.iter().map(|name| self.line.scope.absolute(name));
            let requests = paths.flat_map(|path| (self.requests)(&path).into_iter().flatten());
            let answer = self.line.submit_in(turn, requests);
            self.under_way.push_back((names, answer));
        }
    }
}

impl<'a> Line<'a> {
    /// The line, if the watch is set.
    pub(super) fn new(subscription: &Subscription, mailbox: &'a Arc<Mailbox>, scope: &'a Scope) -> Option<Self> {
        let (session, connection) = subscription.connection()?;
        Some(Self { session, connection, mailbox, scope })
    }

    /// Reads everything, behind a sync: the server of a new session may be behind what was shown before. `hold` takes
    /// the memory, and ends the load when there is none. `turn` is the turn of the first read; with `turns`, each later
    /// read waits for a turn of a connection, too.
    pub(super) async fn load(
        &self,
        turn: Option<TurnPermit<()>>,
        turns: Option<&(Turns<()>, u64)>,
        hold: impl Fn(usize) -> Result<(), Error>,
    ) -> Result<Loaded, Failure> {
        let sync = self.sync();
        let path = self.scope.path.as_str();
        let head = self.submit_in(turn, [get_data(path), get_children(path)].into_iter());
        sync.await?;
        let mut found = take(head).await.map_err(of_one_node)?;
        let mut named = self.named(&mut found).await;
        let Some(own) = node(&mut found)? else {
            // The round that follows dates the absence.
            return Ok(Loaded { state: State::empty(self.scope.path.clone(), self.scope.recursive), named });
        };
        let recursive = self.scope.recursive;
        let requests = if recursive { data_and_children } else { data_alone };
        let mut reading = MultiReads { line: self, todo: Todo::default(), requests, turns, under_way: VecDeque::new() };
        reading.todo.add_children(&"".into(), &mut found);
        let (mut reads, mut bytes, mut copied) = (Bulk::default(), weight("", &own), 0);
        while let Some((names, mut found)) = reading.next().await? {
            named.extend(self.named(&mut found).await);
            for name in names {
                let read = entry(found.parts.pop_front())?;
                if recursive {
                    reading.todo.add_children(&name, &mut found);
                }
                if let Some(entry) = read {
                    bytes += weight(&name, &entry);
                    breathe(&mut copied, &entry).await;
                    reads.0.push((name, entry));
                }
            }
            hold(bytes).map_err(Failure::TooLarge)?;
        }
        let scope = self.scope.clone();
        let state = apart(reads.0.len(), move || State::loaded(scope, own, std::mem::take(&mut reads.0))).await;
        Ok(Loaded { state, named })
    }

    /// Reads these nodes and, in one multi read with the last of them, the path's own node; with `with_sync`, behind a
    /// sync. While the path is absent, its ancestors are read as well, to date the absence.
    pub(super) async fn round(
        &self,
        names: &RelativePaths,
        is_absent: bool,
        with_sync: bool,
    ) -> Result<ReadRound, Failure> {
        let mut round = ReadRound::default();
        let mut ahead = Todo::of(names.iter().cloned().collect());
        let mut last = ahead.batch(self.scope).unwrap_or_default();
        let ancestors = if is_absent { self.ancestors() } else { Vec::new() };
        let (mut found, answered) = loop {
            let (requests, under_way) = (data_alone as fn(&str) -> _, VecDeque::new());
            let mut reading = MultiReads { line: self, todo: ahead, requests, turns: None, under_way };
            while let Some((names, mut found)) = reading.next().await? {
                self.take_in(&mut round, names, &mut found).await?;
            }
            let sync = with_sync.then(|| self.sync());
            let below = last.iter().map(|name| get_data(&self.scope.absolute(name)));
            let above = ancestors.first().into_iter().flatten().map(|path| get_data(path));
            let answer = self.submit([get_data(self.scope.path.as_str())].into_iter().chain(below).chain(above));
            if let Some(sync) = sync {
                sync.await?;
            }
            match take(answer).await {
                Err(failure) if is_too_large(&failure) && !last.is_empty() => {
                    ahead = Todo::of(last.split_off(last.len() / 2));
                }
                found => break (found?, last),
            }
        };
        let node = node(&mut found)?;
        round.zxid = found.zxid;
        self.take_in(&mut round, answered, &mut found).await?;
        round.node = match node {
            Some(entry) => Some(NodeRead::Present(entry)),
            None if is_absent => self.date_absence(&mut round, found, ancestors).await?.map(NodeRead::Absent),
            None => None,
        };
        Ok(round)
    }

    /// The paths of the ancestors, in batches of one multi read each.
    fn ancestors(&self) -> Vec<Vec<Arc<str>>> {
        let mut todo = Todo::of(self.scope.ancestors().map(|path| path.as_str().into()).collect());
        std::iter::from_fn(|| todo.batch(self.scope)).collect()
    }

    async fn take_in(
        &self,
        round: &mut ReadRound,
        names: Vec<Arc<str>>,
        found: &mut MultiReadResult,
    ) -> Result<(), Failure> {
        let (mut reads, mut copied) = (Vec::with_capacity(names.len()), 0);
        round.arrived = Arrived { connection: self.connection, upto: found.events.upto };
        for name in names {
            let read = entry(found.parts.pop_front())?;
            if let Some(entry) = &read {
                breathe(&mut copied, entry).await;
            }
            reads.push((name, read));
        }
        round.answer(self.named(found).await, reads);
        Ok(())
    }

    /// The names in the events that came before an answer.
    async fn named(&self, found: &mut MultiReadResult) -> RelativePaths {
        let (scope, events) = (self.scope.clone(), std::mem::take(&mut found.events));
        let (events, names) = apart(events.events.len(), move || {
            let names = scope.named(&events);
            (events, names)
        })
        .await;
        found.events = events;
        names
    }

    /// The pzxid of the nearest ancestor that exists. `found` holds the answers for the first batch of ancestors; the
    /// other batches are read one after the other. `None` if the path may have been created meanwhile.
    async fn date_absence(
        &self,
        round: &mut ReadRound,
        mut found: MultiReadResult,
        ancestors: Vec<Vec<Arc<str>>>,
    ) -> Result<Option<i64>, Failure> {
        for batch in ancestors.iter().skip(1) {
            if ancestor_pzxid(&found).is_some() {
                break;
            }
            found = take(self.submit(batch.iter().map(|path| get_data(path)))).await?;
            round.zxid = found.zxid;
            self.take_in(round, Vec::new(), &mut found).await?;
            if found.events.events.contains_key(self.scope.path.as_str()) {
                return Ok(None);
            }
        }
        // Not even the root can be read, so the moment itself dates the absence. Such a revision rises, often without a
        // change.
        Ok(Some(ancestor_pzxid(&found).unwrap_or(found.zxid.0)))
    }

    fn sync(&self) -> impl Future<Output = Result<Answer, zk::Error>> + Send + use<> {
        let path = self.scope.path.as_str().to_owned();
        self.session.submit_on(self.connection, Request::Sync { path }, None, None)
    }

    /// Sends a multi read at once.
    fn submit(&self, parts: impl Iterator<Item = Request>) -> PendingRead {
        self.submit_in(None, parts)
    }

    /// Sends a multi read in a turn. The turn lasts until ZooKeeper has answered, even if the load is given up: turns
    /// bound the work of ZooKeeper.
    fn submit_in(&self, turn: Option<TurnPermit<()>>, parts: impl Iterator<Item = Request>) -> PendingRead {
        let request = Request::MultiRead(parts.collect());
        let held = turn.map(|turn| -> zk::KeptUntilAnswer { Box::new(turn) });
        Box::pin(self.session.submit_on(self.connection, request, Some(self.mailbox), held))
    }
}

fn get_data(path: &str) -> Request {
    Request::GetData { path: path.to_owned(), watch: false }
}

fn get_children(path: &str) -> Request {
    Request::GetChildren { path: path.to_owned(), watch: false }
}

fn data_alone(path: &str) -> [Option<Request>; 2] {
    [Some(get_data(path)), None]
}

fn data_and_children(path: &str) -> [Option<Request>; 2] {
    [Some(get_data(path)), Some(get_children(path))]
}

/// Gives other tasks a turn once much was copied since the last time.
async fn breathe(copied: &mut usize, entry: &ViewNode) {
    *copied += entry.data.len();
    if *copied >= COPIED_AT_ONCE {
        *copied = 0;
        tokio::task::yield_now().await;
    }
}

async fn take(answer: PendingRead) -> Result<MultiReadResult, Failure> {
    let answer = answer.await?;
    if !answer.events.resync.is_empty() {
        return Err(Failure::Resync);
    }
    match answer.response {
        Response::Parts(parts) => Ok(MultiReadResult { parts: parts.into(), events: answer.events, zxid: answer.zxid }),
        _ => Err(Failure::Zk(zk::Error::OutcomeUnknown)),
    }
}

/// Whether the answer was too large, so that the request should ask for less. The embedded server refuses to send more
/// than it keeps for a reader.
fn is_too_large(failure: &Failure) -> bool {
    use zk::Error::{AnswerTooLarge, Refused};
    matches!(failure, Failure::Zk(AnswerTooLarge(_) | Refused(ErrorCode::MarshallingError)))
}

/// The failure when a request can't ask for less: the path can never be read.
fn of_one_node(failure: Failure) -> Failure {
    if is_too_large(&failure) { Failure::TooLarge(Error::list_too_large(zk::MAX_REPLY)) } else { failure }
}

/// A node below the path, from one part of an answer.
fn entry(part: Option<Result<Response, ErrorCode>>) -> Result<Option<Arc<ViewNode>>, Failure> {
    match part {
        Some(Ok(Response::Data { data, stat })) => Ok(Some(Arc::new(ViewNode::new(&data, stat)))),
        Some(Err(ErrorCode::NoNode)) => Ok(None),
        Some(Err(ErrorCode::NoAuth)) => Ok(Some(Arc::new(ViewNode::default()))),
        Some(Err(code)) => Err(Failure::Zk(zk::Error::Refused(code))),
        Some(Ok(_)) | None => Err(Failure::Zk(zk::Error::OutcomeUnknown)),
    }
}

/// The path's own node, from the first part of an answer.
fn node(found: &mut MultiReadResult) -> Result<Option<Arc<ViewNode>>, Failure> {
    match entry(found.parts.pop_front())? {
        Some(entry) if !entry.is_readable => Err(Failure::Forbidden),
        node => Ok(node),
    }
}

/// The pzxid of the nearest ancestor that exists, if any; the parts that are left are the ancestors. If that ancestor
/// is hidden, the moment itself dates the absence, since the ancestors above may be older. Such a revision rises, often
/// without a change.
fn ancestor_pzxid(found: &MultiReadResult) -> Option<i64> {
    let nearest = found.parts.iter().find(|part| !matches!(part, Err(ErrorCode::NoNode)))?;
    Some(match nearest {
        Ok(Response::Data { stat, .. }) => stat.pzxid,
        _ => found.zxid.0,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::Stat;

    #[test]
    fn batches_are_bounded_by_count_and_bytes() {
        let scope = Scope { path: crate::types::NodePath::trusted("/"), recursive: true };
        let sizes = |length: usize, count: usize| -> Vec<usize> {
            let mut todo = Todo::of(vec!["x".repeat(length).into(); count]);
            std::iter::from_fn(|| todo.batch(&scope)).map(|batch| batch.len()).collect()
        };
        assert_eq!(sizes(10, 150), [60, 60, 30]);
        assert_eq!(sizes(50 * 1024, 5), [2, 2, 1]);
        assert_eq!(sizes(500 * 1024, 2), [1, 1]);
        assert!(sizes(1, 0).is_empty());
    }

    #[test]
    fn lists_become_names_as_they_are_drawn_and_what_is_returned_comes_first() {
        let scope = Scope { path: crate::types::NodePath::trusted("/"), recursive: true };
        let list = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let parts = VecDeque::from([Ok(Response::Children { names, stat: Stat::default() })]);
            MultiReadResult { parts, events: Batch::default(), zxid: Zxid(1) }
        };
        let mut todo = Todo::default();
        todo.add_children(&"".into(), &mut list(&["a", ".rollcall", "b"]));
        todo.add_children(&"a".into(), &mut list(&["x"]));
        let mut batch = todo.batch(&scope).unwrap();
        assert_eq!(batch, ["a", "b", "a/x"].map(Arc::from));
        todo.add_children(&"b".into(), &mut list(&["y"]));
        todo.returned.push(batch.split_off(1));
        todo.returned.push(batch);
        let rest: Vec<_> = std::iter::from_fn(|| todo.batch(&scope)).map(|batch| batch.join(" ")).collect();
        assert_eq!(rest, ["a", "b a/x", "b/y"]);
    }

    #[test]
    fn an_absence_is_dated_by_the_nearest_ancestor_and_by_the_moment_when_that_is_hidden() {
        let absent = Err(ErrorCode::NoNode);
        let hidden = Err(ErrorCode::NoAuth);
        let present = || Ok(Response::Data { data: Bytes::new(), stat: Stat { pzxid: 5, ..Stat::default() } });
        let dated = |parts: Vec<_>| {
            ancestor_pzxid(&MultiReadResult { parts: parts.into(), events: Batch::default(), zxid: Zxid(120) })
        };
        assert_eq!(dated(vec![absent.clone(), present(), hidden.clone()]), Some(5));
        assert_eq!(dated(vec![absent.clone(), hidden.clone(), present()]), Some(120));
        assert_eq!(dated(vec![absent]), None);
    }
}
