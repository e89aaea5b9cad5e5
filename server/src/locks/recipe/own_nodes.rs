//! The nodes that one attempt may have in ZooKeeper, and their removal.
//!
//! An attempt awaits each of its requests to the end; only waits are cut short. So [`OwnNodes`] always knows which
//! nodes may exist, and [`OwnNodes::clear`] finds and deletes them.

use std::time::Duration;

use bytes::Bytes;

use super::commit::delete;
use super::lease_record::{self, Record};
use super::lock_id::Mark;
use crate::locks::timing::pause;
use crate::types::NodePath;
use crate::zk::layout::{LOCK_MARK, lock_queue};
use crate::zk::{self, CreateMode, EphemeralSession, PathReservation, Pool, Request};

/// The knowledge of an attempt about one of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// It does not exist.
    Absent,
    /// Its create was sent, and the answer was lost.
    Unknown,
    /// It was created, and this attempt has not deleted it. For a contender: its name with the digits.
    Exists(String),
}

/// The result of [`OwnNodes::clear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleared {
    /// ZooKeeper has answered that none of the nodes exists.
    Gone,
    /// Nodes that may exist end with their session.
    Left,
}

/// A reserved path in one session: first for a contender, then for a lease, never for both.
#[derive(Debug)]
pub(crate) struct OwnNodes {
    reservation: PathReservation,
    pool: Pool,
    /// Set if the lease outlives its stream, and therefore its session.
    ttl: Option<Duration>,
    path: NodePath,
    queue: NodePath,
    /// The prefix of the contender's name.
    prefix: String,
    lease_name: String,
    pub(crate) contender: NodeState,
    pub(crate) lease: NodeState,
}

/// Number of bytes of paths that an attempt reserves in its session: those of the contender's path, the longer of the
/// two. In queues of ZooKeeper before 3.9 the ten digits may have a sign.
pub(crate) fn path_bytes(path: &NodePath) -> usize {
    lock_queue(path).as_str().len() + 1 + 32 + LOCK_MARK.len() + 11
}

impl OwnNodes {
    pub(crate) fn new(
        reservation: PathReservation,
        pool: &Pool,
        path: &NodePath,
        mark: &Mark,
        ttl: Option<Duration>,
    ) -> Self {
        Self {
            reservation,
            pool: pool.clone(),
            ttl,
            path: path.clone(),
            queue: lock_queue(path),
            prefix: format!("{}{LOCK_MARK}", mark.fresh_name()),
            lease_name: mark.fresh_name(),
            contender: NodeState::Absent,
            lease: NodeState::Absent,
        }
    }

    /// The session that owns the nodes.
    pub(crate) fn owner(&self) -> &EphemeralSession {
        self.reservation.owner()
    }

    /// The node whose children are the contenders.
    pub(crate) fn queue(&self) -> &NodePath {
        &self.queue
    }

    /// The request that creates the contender.
    pub(crate) fn enqueue(&self, holder: Bytes) -> Request {
        zk::create(self.queue.join(&self.prefix).as_str(), holder, CreateMode::EphemeralSequential)
    }

    /// The path of the contender if ZooKeeper gives it these digits.
    pub(crate) fn contender_with(&self, digits: i32) -> NodePath {
        self.queue.join(&format!("{}{digits:010}", self.prefix))
    }

    /// The contender's path, if the contender is known to exist.
    pub(crate) fn contender_path(&self) -> Option<NodePath> {
        match &self.contender {
            NodeState::Exists(name) => Some(self.queue.join(name)),
            NodeState::Absent | NodeState::Unknown => None,
        }
    }

    /// The lease's name.
    pub(crate) fn lease_name(&self) -> &str {
        &self.lease_name
    }

    /// The lease's path.
    pub(crate) fn lease_path(&self) -> NodePath {
        self.path.join(&self.lease_name)
    }

    /// The path of a lease that may exist and ends with its stream.
    pub(crate) fn stream_lease(&self) -> Option<NodePath> {
        (self.ttl.is_none() && self.lease != NodeState::Absent).then(|| self.lease_path())
    }

    /// The operations that turn the contender into a lease.
    pub(crate) fn grant(&self, contender: &NodePath, holder: Bytes) -> Vec<Request> {
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

    /// Finds out whether a contender exists whose create was not answered.
    pub(crate) async fn find_contender(&mut self) -> Result<(), zk::Error> {
        if self.contender == NodeState::Unknown {
            let session = self.owner().session();
            // The create may have gone to another server: this one must have caught up with the leader.
            session.sync(&self.queue).await?;
            let names = session.children(&self.queue).await?.map(|(names, _)| names).unwrap_or_default();
            let ours = names.into_iter().find(|name| name.starts_with(&self.prefix));
            self.contender = ours.map_or(NodeState::Absent, NodeState::Exists);
        }
        Ok(())
    }

    /// Deletes the nodes that may exist, over any number of lost connections, until they are gone or their session is.
    /// A lease that outlives its session is deleted through any session.
    ///
    /// This needs no fence: each name is used once, so that no other node can have it.
    pub(crate) async fn clear(&mut self) -> Cleared {
        let session = self.owner().session().clone();
        let mut cleared = Cleared::Gone;
        loop {
            if !session.connected().await {
                cleared = Cleared::Left;
                self.contender = NodeState::Absent;
                if self.ttl.is_none() {
                    self.lease = NodeState::Absent;
                }
            }
            match self.try_clear().await {
                Ok(()) => return cleared,
                Err(zk::Error::Refused(code)) => {
                    // The end of the session, or of the ttl, will remove the nodes.
                    tracing::error!(path = %self.path, %code, "zookeeper refuses to delete a lock's nodes");
                    self.reservation.forfeit();
                    return Cleared::Left;
                }
                Err(_) => pause().await,
            }
        }
    }

    /// Deletes the contender.
    pub(crate) async fn leave_queue(&mut self) -> Result<(), zk::Error> {
        self.find_contender().await?;
        if let Some(contender) = self.contender_path() {
            delete(self.owner(), &contender).await?;
            self.contender = NodeState::Absent;
        }
        Ok(())
    }

    async fn try_clear(&mut self) -> Result<(), zk::Error> {
        self.leave_queue().await?;
        if self.lease != NodeState::Absent {
            match self.ttl {
                None => delete(self.owner(), &self.lease_path()).await?,
                Some(_) => {
                    let owner = if self.owner().session().is_up() { self.owner().clone() } else { self.pool.any()? };
                    // ZooKeeper may have carried out more than it has answered to a session that is over.
                    owner.session().sync(&self.path).await?;
                    // A replica that has picked the lease up meanwhile keeps it.
                    lease_record::remove(&owner, &self.path, &self.lease_name, 0).await?;
                }
            }
            self.lease = NodeState::Absent;
        }
        Ok(())
    }
}
