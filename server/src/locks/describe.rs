//! Who holds a lock and who waits for it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::id::queue_path;
use super::queue::{Limit, Queue, contender_name};
use super::record::{Record, record_path};
use super::{Interrupt, node};
use crate::types::{FencingToken, NodePath};
use crate::zk::layout::FENCES;
use crate::zk::{ErrorCode, Read, Request, Response, Session};

/// How often what changes meanwhile is read again, to give one consistent state. After that, what was read is given.
const TRIES: usize = 4;
/// How many bytes of requests go into one reading.
const READ_BYTES: usize = 512 * 1024;

/// Who holds a lock and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// The path that was asked for.
    pub(crate) path: NodePath,
    /// How many may hold the lock at once; 0 for a path that was never locked.
    pub(crate) simultaneous: u32,
    /// Those who hold it, the earliest grant first.
    pub(crate) holders: Vec<Party>,
    /// Those who wait, in order.
    pub(crate) waiters: Vec<Party>,
}

/// One who holds a lock or waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Party {
    /// The name that it gave.
    pub(crate) name: String,
    /// Of a holder: the transaction of its grant.
    pub(crate) fencing_token: Option<FencingToken>,
    /// Since when, in milliseconds since the epoch, by ZooKeeper's clock.
    pub(crate) since_ms: i64,
    /// Not through Rollcall: its session has no fence.
    pub(crate) foreign: bool,
    /// How long it outlives its stream, if it is known to.
    pub(crate) ttl: Option<Duration>,
}

/// Reads all of it in one transaction, if it fits and holds still; otherwise in as few as possible.
pub(super) async fn describe(session: &Session, path: &NodePath) -> Result<Description, Interrupt> {
    session.sync(path).await?;
    let queue = queue_path(path);
    let mut nodes: Vec<NodePath> = Vec::new();
    let mut tries = 0;
    loop {
        let state = State::read(session, path, &queue, &nodes).await?;
        tries += 1;
        let needed: Vec<_> = state.needed(path, &queue);
        if tries >= TRIES || needed.iter().all(|node| state.nodes.contains_key(node)) {
            return state.description(path, &queue);
        }
        nodes = needed;
    }
}

#[derive(Debug, Default)]
struct State {
    lock: Option<Read>,
    leases: Vec<String>,
    contenders: Vec<String>,
    fences: HashSet<String>,
    /// Each node that was read; one that is gone as `None`.
    nodes: HashMap<NodePath, Option<Read>>,
}

impl State {
    async fn read(session: &Session, path: &NodePath, queue: &NodePath, nodes: &[NodePath]) -> Result<Self, Interrupt> {
        let mut state = Self::default();
        let children = |path: &str| Request::GetChildren { path: path.to_owned(), watch: false };
        let mut parts = vec![get(path.as_str()), children(path.as_str()), children(queue.as_str()), children(FENCES)];
        let mut rest = nodes.iter();
        let mut chunk = Vec::new();
        loop {
            let mut bytes = parts.iter().map(Request::encoded_len).sum::<usize>();
            while bytes < READ_BYTES
                && let Some(node) = rest.next()
            {
                let part = get(node.as_str());
                bytes += part.encoded_len();
                parts.push(part);
                chunk.push(node);
            }
            if parts.is_empty() {
                return Ok(state);
            }
            let answer = session.submit(Request::MultiRead(std::mem::take(&mut parts))).await?;
            let Response::Parts(answers) = answer.response else {
                return Err(crate::zk::Error::OutcomeUnknown.into());
            };
            let heads = answers.len().saturating_sub(chunk.len());
            let mut answers = answers.into_iter();
            for (index, head) in answers.by_ref().take(heads).enumerate() {
                state.take_head(index, head, path)?;
            }
            for (node, answer) in chunk.drain(..).zip(answers) {
                state.nodes.insert(node.clone(), as_read(answer));
            }
        }
    }

    fn take_head(
        &mut self,
        index: usize,
        answer: Result<Response, ErrorCode>,
        path: &NodePath,
    ) -> Result<(), Interrupt> {
        match (index, answer) {
            (_, Err(code)) if code != ErrorCode::NoNode => return Err(node::refusal(code, path).into()),
            (0, answer) => self.lock = as_read(answer),
            (1, Ok(Response::Children { names, .. })) => self.leases = names,
            (2, Ok(Response::Children { names, .. })) => self.contenders = names,
            (3, Ok(Response::Children { names, .. })) => self.fences = names.into_iter().collect(),
            _ => {}
        }
        Ok(())
    }

    /// The nodes that a description is made of.
    fn needed(&self, path: &NodePath, queue: &NodePath) -> Vec<NodePath> {
        let mut nodes: Vec<_> = self.leases.iter().map(|name| path.join(name)).collect();
        // What makes a durable child a lease, once it is known to be durable.
        let records = nodes.iter().filter(|lease| self.get(lease).is_some_and(|lease| node::is_durable(&lease.stat)));
        let records: Vec<_> = records.map(|lease| record_path(lease.name())).collect();
        nodes.extend(records);
        nodes.extend(Queue::of(self.contenders.clone()).names().map(|name| queue.join(name)));
        nodes
    }

    fn get(&self, node: &NodePath) -> Option<&Read> {
        self.nodes.get(node)?.as_ref()
    }

    fn description(&self, path: &NodePath, queue: &NodePath) -> Result<Description, Interrupt> {
        let simultaneous = match self.lock.as_ref().map(|lock| Limit::of(&lock.data)) {
            None | Some(Limit::Empty) => 0,
            Some(Limit::Number(number)) => number,
            Some(Limit::Foreign) => return Err(node::not_a_lock(path, "its data is no number")),
        };
        let mut holders = Vec::new();
        for name in &self.leases {
            let Some(lease) = self.get(&path.join(name)) else { continue };
            let record_path = record_path(name);
            if node::is_durable(&lease.stat) && self.nodes.get(&record_path) == Some(&None) {
                return Err(node::not_a_lock(path, "it has durable children that are no leases"));
            }
            let record = self.get(&record_path).and_then(|record| Record::parse(&record.data));
            let name = String::from_utf8_lossy(&lease.data).into_owned();
            holders.push(Party { ttl: record.map(|record| record.ttl), ..self.party(lease, name) });
        }
        holders.sort_unstable_by_key(|holder| holder.fencing_token);
        let contenders = Queue::of(self.contenders.clone());
        let waiters = contenders.names().filter_map(|name| self.get(&queue.join(name)));
        let waiters =
            waiters.map(|waiter| Party { fencing_token: None, ..self.party(waiter, contender_name(&waiter.data)) });
        Ok(Description { path: path.clone(), simultaneous, holders, waiters: waiters.collect() })
    }

    fn party(&self, read: &Read, name: String) -> Party {
        let owner = format!("{:016x}", read.stat.ephemeral_owner);
        Party {
            name,
            fencing_token: Some(FencingToken(read.stat.czxid)),
            since_ms: read.stat.ctime,
            foreign: !node::is_durable(&read.stat) && !self.fences.contains(&owner),
            ttl: None,
        }
    }
}

fn get(path: &str) -> Request {
    Request::GetData { path: path.to_owned(), watch: false }
}

fn as_read(answer: Result<Response, ErrorCode>) -> Option<Read> {
    match answer {
        Ok(Response::Data { data, stat }) => Some(Read { data, stat }),
        _ => None,
    }
}
