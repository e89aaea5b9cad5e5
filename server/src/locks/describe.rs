//! DescribeLock: the holders of a lock and its queue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::long_lists::{LONG, READ_CHUNK, go_through};
use super::outcome::StepError;
use super::readings::Readings;
use super::recipe::contenders::{Queue, contender_name, lease_name, looks_like_a_lease};
use super::recipe::lease_record::{Record, record_path};
use super::recipe::limit::Limit;
use super::recipe::lock_node::{is_durable, not_a_lock};
use super::timing::{PATIENCE, pause};
use crate::budget::Account;
use crate::error::Error;
use crate::refusal;
use crate::shared_bytes::SharedBytes;
use crate::types::{FencingToken, NodePath, SessionId};
use crate::zk::layout::{FENCES, LEASES, lock_queue, session_of_fence};
use crate::zk::{self, ErrorCode, Listed, Pool, Read, Request, Response, Roster, Session};

/// Maximum number of reads for one consistent state of a lock that changes. After that the last read is described: a
/// larger value costs more reads of a busy lock.
const READ_TRIES: usize = 4;
/// Maximum number of descriptions of more than [`LONG`] parties that are read at a time: each takes some 30 MB
/// meanwhile.
const LARGE_DESCRIPTIONS: usize = 4;
/// Maximum number of holders, and of waiters, in a description.
const PARTIES: usize = 10_000;
/// Number of bytes that are kept of a node: more than any name or record of ours has. Other programs may write up to 1
/// MiB.
const KEPT: usize = 16 * 1024;

/// The holders of a lock and its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// The path of the lock.
    pub(crate) path: NodePath,
    /// Maximum number of holders; 0 for a path that was never locked.
    pub(crate) simultaneous: u32,
    /// The holders, the earliest grant first.
    pub(crate) holders: Vec<Party>,
    /// The waiters, in order.
    pub(crate) waiters: Vec<Party>,
}

/// A holder or a waiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    /// The name that its client gave.
    pub(crate) name: String,
    /// The transaction of the grant; `None` for a waiter.
    pub(crate) fencing_token: Option<FencingToken>,
    /// The time of the grant, or of the place in the queue, in milliseconds since the epoch by ZooKeeper's clock.
    pub(crate) since_ms: i64,
    /// Whether its client does not use Rollcall: its session has no fence.
    pub(crate) foreign: bool,
    /// Time for which it outlives its stream; `None`: it does not, or this is not known.
    pub(crate) ttl: Option<Duration>,
    /// The name of the replica that keeps it; empty if it is not known.
    pub(crate) replica: String,
}

/// Describes locks. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Describer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Pool,
    roster: Roster,
    descriptions: Readings<SharedBytes>,
    /// Places for the descriptions of locks with many holders and waiters.
    large_descriptions: Semaphore,
    /// The account of all connections, for the bytes that they share.
    common: Account,
}

impl Describer {
    pub(super) fn new(pool: Pool, roster: Roster, common: Account) -> Self {
        let large_descriptions = Semaphore::new(LARGE_DESCRIPTIONS);
        Self(Arc::new(Shared { pool, roster, descriptions: Readings::default(), large_descriptions, common }))
    }

    /// See `Locks::describe`.
    pub(super) async fn describe(
        &self,
        path: &NodePath,
        account: &Account,
        make: fn(&Description) -> Bytes,
    ) -> Result<Bytes, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (shared, lock) = (self.0.clone(), path.clone());
            let reading = self.0.descriptions.read(path, move || async move { shared.described(&lock, make).await });
            let described = timeout_at(deadline, reading).await.map_err(|_| Error::BackendUnavailable)?;
            match described {
                Ok(described) => return described.held_by(account),
                Err(StepError::Zk(zk::Error::Refused(code))) => return Err(refusal::refused(path, code)),
                Err(StepError::Zk(_)) if Instant::now() < deadline => pause().await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Shared {
    async fn described(&self, path: &NodePath, make: fn(&Description) -> Bytes) -> Result<SharedBytes, StepError> {
        let owner = self.pool.any()?;
        let bytes = describe(owner.session(), path, self, make).await?;
        Ok(SharedBytes::new(bytes, &self.common)?)
    }
}

/// The next step after a read.
enum Next {
    /// Read these nodes as well.
    Read(Vec<NodePath>),
    Made(Bytes),
}

/// Reads the lock in one transaction, if it fits and does not change meanwhile; otherwise in as few as possible. The
/// first read shows whether the node is a lock at all, before any of its children is read.
async fn describe(
    session: &Session,
    path: &NodePath,
    shared: &Shared,
    make: fn(&Description) -> Bytes,
) -> Result<Bytes, StepError> {
    session.sync(path).await?;
    // A node that is no lock may have any number of children.
    if session.get(path).await?.is_some_and(|read| Limit::of(&read.data) == Limit::Foreign) {
        return Err(not_a_number(path));
    }
    let queue = lock_queue(path);
    let mut nodes: Vec<NodePath> = Vec::new();
    let mut place = None;
    for tries in 1.. {
        if place.is_none() && nodes.len() > LONG {
            // Few locks with very many parties may be read at a time. The semaphore is never closed.
            place = shared.large_descriptions.acquire().await.ok();
        }
        let mut state = State::read(session, path, &queue, &nodes).await?;
        state.replicas = shared.roster.last();
        if !state.fences.iter().all(|fence| state.replicas.names.contains_key(fence)) {
            state.replicas = shared.roster.current().await;
        }
        let (path, queue) = (path.clone(), queue.clone());
        let next = go_through(state.parties(), move || state.next(&path, &queue, tries >= READ_TRIES, make)).await?;
        match next {
            Next::Read(needed) => nodes = needed,
            Next::Made(made) => return Ok(made),
        }
    }
    Err(zk::Error::NotSent.into())
}

#[derive(Debug, Default)]
struct State {
    lock: Option<Read>,
    leases: Vec<String>,
    contenders: Queue,
    /// The sessions that have a fence.
    fences: HashSet<SessionId>,
    replicas: Listed,
    /// The nodes that were read; `None`: the node is gone.
    nodes: HashMap<NodePath, Option<Read>>,
}

impl State {
    async fn read(session: &Session, path: &NodePath, queue: &NodePath, nodes: &[NodePath]) -> Result<Self, StepError> {
        let mut state = Self::default();
        let children = |path: &str| Request::GetChildren { path: path.to_owned(), watch: false };
        let mut parts = vec![get(path.as_str()), children(path.as_str()), children(queue.as_str()), children(FENCES)];
        let mut rest = nodes.iter();
        loop {
            let chunk: Vec<_> = rest.by_ref().take(READ_CHUNK - parts.len()).collect();
            parts.extend(chunk.iter().map(|node| get(node.as_str())));
            if parts.is_empty() {
                return Ok(state);
            }
            let answer = session.submit(Request::MultiRead(std::mem::take(&mut parts))).await?;
            let Response::Parts(answers) = answer.response else {
                return Err(zk::Error::OutcomeUnknown.into());
            };
            let heads = answers.len().saturating_sub(chunk.len());
            let mut answers = answers.into_iter();
            let mut contenders = Vec::new();
            for (index, head) in answers.by_ref().take(heads).enumerate() {
                state.take_head(index, head, path, &mut contenders)?;
            }
            if heads > 0 {
                state.contenders = go_through(contenders.len(), move || Queue::of(contenders)).await;
            }
            for (node, answer) in chunk.into_iter().zip(answers) {
                state.nodes.insert(node.clone(), as_read(answer));
            }
        }
    }

    fn take_head(
        &mut self,
        index: usize,
        answer: Result<Response, ErrorCode>,
        path: &NodePath,
        contenders: &mut Vec<String>,
    ) -> Result<(), StepError> {
        match (index, answer) {
            (_, Err(code)) if code != ErrorCode::NoNode => return Err(refusal::refused(path, code).into()),
            (0, answer) => self.lock = as_read(answer),
            (1, Ok(Response::Children { names, .. })) => self.leases = names,
            (2, Ok(Response::Children { names, .. })) => *contenders = names,
            (3, Ok(Response::Children { names, .. })) => {
                self.fences = names.iter().filter_map(|name| session_of_fence(name)).collect();
            }
            _ => {}
        }
        Ok(())
    }

    /// Number of names that were listed.
    fn parties(&self) -> usize {
        self.leases.len() + self.contenders.len()
    }

    fn next(
        &self,
        path: &NodePath,
        queue: &NodePath,
        is_last: bool,
        make: fn(&Description) -> Bytes,
    ) -> Result<Next, StepError> {
        self.simultaneous(path)?;
        let needed = self.needed(path, queue);
        if !is_last && !needed.iter().all(|node| self.has_read(node)) {
            return Ok(Next::Read(needed));
        }
        Ok(Next::Made(make(&self.description(path, queue)?)))
    }

    /// The nodes that the description needs: the first of very many.
    fn needed(&self, path: &NodePath, queue: &NodePath) -> Vec<NodePath> {
        let mut nodes: Vec<_> = self.leases.iter().take(PARTIES).map(|name| path.join(name)).collect();
        // The records of leases with a ttl, of children that are known to be durable.
        let records = nodes.iter().filter(|lease| self.get(lease).is_some_and(|lease| is_durable(&lease.stat)));
        let records: Vec<_> = records.map(|lease| record_path(lease.name())).collect();
        nodes.extend(records);
        nodes.extend(self.contenders.names().take(PARTIES).map(|name| queue.join(name)));
        nodes
    }

    fn get(&self, node: &NodePath) -> Option<&Read> {
        self.nodes.get(node)?.as_ref()
    }

    /// Whether a listed node was read. A grant between two reads shows in neither: its contender was gone, and its
    /// lease not listed yet. A record may be missing.
    fn has_read(&self, node: &NodePath) -> bool {
        let read = self.nodes.get(node);
        read.is_some_and(|read| read.is_some() || node.parent().is_some_and(|parent| parent.as_str() == LEASES))
    }

    /// The lock's limit; an error if the node is no lock.
    fn simultaneous(&self, path: &NodePath) -> Result<u32, StepError> {
        match self.lock.as_ref().map(|lock| Limit::of(&lock.data)) {
            Some(Limit::Foreign) => Err(not_a_number(path)),
            Some(Limit::Empty) if !self.leases.iter().all(|name| looks_like_a_lease(name)) => {
                Err(not_a_lock(path, "it has children that are no leases"))
            }
            Some(Limit::Number(number)) => Ok(number),
            None | Some(Limit::Empty) => Ok(0),
        }
    }

    fn description(&self, path: &NodePath, queue: &NodePath) -> Result<Description, StepError> {
        let simultaneous = self.simultaneous(path)?;
        let mut holders = Vec::new();
        for name in &self.leases {
            let Some(lease) = self.get(&path.join(name)) else { continue };
            let record_path = record_path(name);
            if is_durable(&lease.stat) && self.nodes.get(&record_path) == Some(&None) {
                return Err(not_a_lock(path, "it has durable children that are no leases"));
            }
            let record = self.get(&record_path).and_then(|record| Record::parse(&record.data));
            let party = self.party(lease, lease_name(&lease.data));
            holders.push(match record {
                Some(record) => Party { ttl: Some(record.ttl), replica: self.replica(record.owner), ..party },
                None => party,
            });
        }
        holders.sort_unstable_by_key(|holder| holder.fencing_token);
        let waiters = self.contenders.names().take(PARTIES).filter_map(|name| self.get(&queue.join(name)));
        let waiters =
            waiters.map(|waiter| Party { fencing_token: None, ..self.party(waiter, contender_name(&waiter.data)) });
        Ok(Description { path: path.clone(), simultaneous, holders, waiters: waiters.collect() })
    }

    fn party(&self, read: &Read, name: String) -> Party {
        let owner = SessionId(read.stat.ephemeral_owner);
        Party {
            name,
            fencing_token: Some(FencingToken(read.stat.czxid)),
            since_ms: read.stat.ctime,
            foreign: !is_durable(&read.stat) && !self.fences.contains(&owner),
            ttl: None,
            replica: self.replica(owner),
        }
    }

    /// The name of the replica that has this session.
    fn replica(&self, session: SessionId) -> String {
        self.replicas.name_of(session).unwrap_or_default().to_owned()
    }
}

fn not_a_number(path: &NodePath) -> StepError {
    not_a_lock(path, "its data is no number")
}

fn get(path: &str) -> Request {
    Request::GetData { path: path.to_owned(), watch: false }
}

/// A copy of the node's first bytes. The rest, which another program may have written, is freed with the answer.
fn as_read(answer: Result<Response, ErrorCode>) -> Option<Read> {
    match answer {
        Ok(Response::Data { data, stat }) => {
            Some(Read { data: Bytes::copy_from_slice(&data[..data.len().min(KEPT)]), stat })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Stat;

    fn state(data: &'static str, children: &[&str]) -> State {
        let lock = Some(Read { data: data.into(), stat: Stat::default() });
        State { lock, leases: children.iter().map(|&name| name.to_owned()).collect(), ..State::default() }
    }

    #[test]
    fn what_is_no_lock_is_told_before_its_children_are_read() {
        let (path, lease) = (NodePath::trusted("/a"), "0123456789abcdef0123456789abcdef");
        assert_eq!(State::default().simultaneous(&path).unwrap(), 0);
        assert_eq!(state("", &[lease]).simultaneous(&path).unwrap(), 0);
        assert_eq!(state("3", &[lease, "stray"]).simultaneous(&path).unwrap(), 3);
        for foreign in [state("{}", &[]), state("{}", &[lease]), state("", &[lease, "stray"])] {
            let error = Error::from(foreign.simultaneous(&path).unwrap_err());
            assert!(matches!(error, Error::NotALock { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_party_that_is_gone_has_to_be_read_again_and_a_missing_record_has_not() {
        let (party, record) = (NodePath::trusted("/a/x"), record_path("x"));
        let mut state = State::default();
        assert!(!state.has_read(&party) && !state.has_read(&record));
        state.nodes.extend([(party.clone(), None), (record.clone(), None)]);
        assert!(!state.has_read(&party) && state.has_read(&record));
        state.nodes.insert(party.clone(), Some(Read { data: "".into(), stat: Stat::default() }));
        assert!(state.has_read(&party));
    }
}
