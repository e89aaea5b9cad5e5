//! The nodes that one attempt may have in ZooKeeper, and their removal.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;

use super::id::Mark;
use super::record::{self, Record};
use crate::types::NodePath;
use crate::zk::layout::{LOCK_MARK, lock_queue};
use crate::zk::{self, CommitError, CreateMode, EphemeralSession, ErrorCode, PathReservation, Pool, Request};

/// What is known of a node of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trace {
    /// It does not stand.
    None,
    /// Its creation was sent, and what became of it is not known.
    Maybe,
    /// It was created, and we have not deleted it. For a contender: its name with the digits.
    Stands(String),
}

/// What [`Seat::clear`] knows at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleared {
    /// ZooKeeper has said that nothing of the seat stands.
    Gone,
    /// What may stand goes with its session.
    Left,
}

/// A place in one session for a contender, and then a lease: never for both.
///
/// All requests of an attempt are awaited to their end; only waiting is ever cut short. So this always tells the truth,
/// and [`Seat::clear`] finds whatever may be left.
#[derive(Debug)]
pub(super) struct Seat {
    room: PathReservation,
    pool: Pool,
    /// Of a lease that outlives its stream, and therefore its session.
    ttl: Option<Duration>,
    path: NodePath,
    queue: NodePath,
    /// The prefix of the contender's name.
    prefix: String,
    /// The lease's name.
    lease_name: String,
    /// The contender.
    pub(super) contender: Trace,
    /// The lease.
    pub(super) lease: Trace,
}

/// How many bytes of paths a seat needs in its session: those of the contender, the longer of the two. Old queues of
/// ZooKeeper before 3.9 have a sign before their ten digits.
pub(super) fn path_bytes(path: &NodePath) -> usize {
    lock_queue(path).as_str().len() + 1 + 32 + LOCK_MARK.len() + 11
}

impl Seat {
    pub(super) fn new(room: PathReservation, pool: &Pool, path: &NodePath, mark: &Mark, ttl: Option<Duration>) -> Self {
        Self {
            room,
            pool: pool.clone(),
            ttl,
            path: path.clone(),
            queue: lock_queue(path),
            prefix: format!("{}{LOCK_MARK}", mark.fresh_name()),
            lease_name: mark.fresh_name(),
            contender: Trace::None,
            lease: Trace::None,
        }
    }

    /// The session that owns the nodes.
    pub(super) fn owner(&self) -> &EphemeralSession {
        self.room.owner()
    }

    /// The node whose children are the contenders.
    pub(super) fn queue(&self) -> &NodePath {
        &self.queue
    }

    /// The request that makes the contender.
    pub(super) fn enter(&self, holder: Bytes) -> Request {
        zk::create(self.queue.join(&self.prefix).as_str(), holder, CreateMode::EphemeralSequential)
    }

    /// The path that the contender gets if its digits are these.
    pub(super) fn contender_with(&self, digits: i32) -> NodePath {
        self.queue.join(&format!("{}{digits:010}", self.prefix))
    }

    /// The contender's path, if it is known to stand.
    pub(super) fn contender_path(&self) -> Option<NodePath> {
        match &self.contender {
            Trace::Stands(name) => Some(self.queue.join(name)),
            Trace::None | Trace::Maybe => None,
        }
    }

    /// The lease's name.
    pub(super) fn lease_name(&self) -> &str {
        &self.lease_name
    }

    /// The lease's path.
    pub(super) fn lease_path(&self) -> NodePath {
        self.path.join(&self.lease_name)
    }

    /// The path of a lease that stands, if it is to end with its stream.
    pub(super) fn stream_lease(&self) -> Option<NodePath> {
        (self.ttl.is_none() && self.lease != Trace::None).then(|| self.lease_path())
    }

    /// The transaction that turns the contender into a lease.
    pub(super) fn grant(&self, contender: &NodePath, holder: Bytes) -> Vec<Request> {
        let lease = self.lease_path();
        let mut ops = vec![zk::delete(contender.as_str(), -1)];
        match self.ttl {
            None => ops.push(zk::create(lease.as_str(), holder, CreateMode::Ephemeral)),
            Some(ttl) => {
                let record = Record { path: self.path.clone(), ttl, owner: self.owner().id() };
                ops.push(zk::create(lease.as_str(), holder, CreateMode::Persistent));
                ops.push(record.create(&self.lease_name));
            }
        }
        ops
    }

    /// Finds out what became of a contender whose creation was not answered.
    pub(super) async fn find_contender(&mut self) -> Result<(), zk::Error> {
        if self.contender == Trace::Maybe {
            let session = self.owner().session();
            // A server may be behind what the one before it had sent off; it must have caught up with its leader.
            session.sync(&self.queue).await?;
            let names = session.children(&self.queue).await?.map(|(names, _)| names).unwrap_or_default();
            let ours = names.into_iter().find(|name| name.starts_with(&self.prefix));
            self.contender = ours.map_or(Trace::None, Trace::Stands);
        }
        Ok(())
    }

    /// Deletes what may be left, over any number of lost connections, until it is gone or its session is. What outlives
    /// sessions is deleted through any of them.
    ///
    /// No fence is needed: the names are used once, so that nothing else can be met.
    pub(super) async fn clear(&mut self) -> Cleared {
        let session = self.owner().session().clone();
        let mut cleared = Cleared::Gone;
        loop {
            if !session.connected().await {
                cleared = Cleared::Left;
                self.contender = Trace::None;
                if self.ttl.is_none() {
                    self.lease = Trace::None;
                }
            }
            match self.try_clear().await {
                Ok(()) => return cleared,
                Err(zk::Error::Refused(code)) => {
                    // Nothing can be done from here: the session's end will take them, or the end of their ttl.
                    tracing::error!(path = %self.path, %code, "zookeeper refuses to delete a lock's nodes");
                    self.room.forfeit();
                    return Cleared::Left;
                }
                Err(_) => pause().await,
            }
        }
    }

    /// Deletes the contender.
    pub(super) async fn leave_queue(&mut self) -> Result<(), zk::Error> {
        self.find_contender().await?;
        if let Some(contender) = self.contender_path() {
            delete(self.owner(), &contender).await?;
            self.contender = Trace::None;
        }
        Ok(())
    }

    async fn try_clear(&mut self) -> Result<(), zk::Error> {
        self.leave_queue().await?;
        if self.lease != Trace::None {
            match self.ttl {
                None => delete(self.owner(), &self.lease_path()).await?,
                Some(_) => {
                    let owner = if self.owner().session().is_up() { self.owner().clone() } else { self.pool.any()? };
                    // A session that is over may have been answered less than its servers know.
                    owner.session().sync(&self.path).await?;
                    // Whoever has picked it up meanwhile keeps it.
                    record::remove(&owner, &self.path, &self.lease_name, 0).await?;
                }
            }
            self.lease = Trace::None;
        }
        Ok(())
    }
}

/// Deletes a node, whatever its version; one that is gone is as good.
pub(super) async fn delete(owner: &EphemeralSession, path: &NodePath) -> Result<(), zk::Error> {
    match owner.commit(vec![zk::delete(path.as_str(), -1)]).await {
        Ok(_) | Err(CommitError::Part { code: ErrorCode::NoNode, .. }) => Ok(()),
        Err(CommitError::Part { code, .. }) => Err(zk::Error::Refused(code)),
        Err(CommitError::FenceMoved) => Err(zk::Error::NotSent),
        Err(CommitError::Zk(error)) => Err(error),
    }
}

/// A short rest before trying again while connected, when too much is under way.
pub(super) async fn pause() {
    let milliseconds = rand::rng().random_range(20..80);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
