//! The requests that callers make, with typed answers.

use bytes::Bytes;
use futures_util::future::join_all;
use rollcall_wire::{Acl, CreateMode, ErrorCode, Request, Response};

use super::Error;
use super::session::{Answer, Session};
use super::watches::OneShot;
use crate::types::{NodePath, Stat, Zxid};

/// Maximum size of a multi, in bytes; ZooKeeper's frame limit is twice that. A larger operation is sent alone.
pub(super) const MULTI_BYTES: usize = 512 * 1024;
/// Maximum number of ancestors that are checked at once, from the nearest on. Of more, most would be found to exist.
const ANCESTORS_AT_ONCE: usize = 8;

/// A node as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) data: Bytes,
    pub(crate) stat: Stat,
}

/// A create without a watch, with all permissions for everybody.
pub(crate) fn create(path: &str, data: Bytes, mode: CreateMode) -> Request {
    Request::Create { path: path.to_owned(), data, acl: vec![Acl::open()], mode }
}

/// Deletes a node that must have this version; -1 for any.
pub(crate) fn delete(path: &str, version: i32) -> Request {
    Request::Delete { path: path.to_owned(), version }
}

/// Writes the data of a node that must have this version; -1 for any.
pub(crate) fn set_data(path: &str, data: Bytes, version: i32) -> Request {
    Request::SetData { path: path.to_owned(), data, version }
}

impl Session {
    /// A node's data and stat; `None` when it does not exist.
    pub(crate) async fn get(&self, path: &NodePath) -> Result<Option<Read>, Error> {
        let request = Request::GetData { path: path.as_str().to_owned(), watch: false };
        match absent_is_none(self.submit(request).await)?.map(|answer| answer.response) {
            Some(Response::Data { data, stat }) => Ok(Some(Read { data, stat })),
            Some(_) => Err(Error::OutcomeUnknown),
            None => Ok(None),
        }
    }

    /// A node's stat; `None` when it does not exist.
    pub(crate) async fn exists(&self, path: &NodePath) -> Result<Option<Stat>, Error> {
        let request = Request::Exists { path: path.as_str().to_owned(), watch: false };
        match absent_is_none(self.submit(request).await)?.map(|answer| answer.response) {
            Some(Response::Stat(stat)) => Ok(Some(stat)),
            Some(_) => Err(Error::OutcomeUnknown),
            None => Ok(None),
        }
    }

    /// A node's stat, and a watch that fires when the node is deleted or written. For a node that does not exist no
    /// watch is set: it never fires, and costs ZooKeeper nothing.
    pub(crate) async fn watch_exists(&self, path: &NodePath) -> Result<(Option<Stat>, OneShot), Error> {
        let watch = self.watches().once(path.as_str());
        let request = Request::GetData { path: path.as_str().to_owned(), watch: true };
        match absent_is_none(self.submit(request).await)?.map(|answer| answer.response) {
            Some(Response::Data { stat, .. }) => Ok((Some(stat), watch)),
            Some(_) => Err(Error::OutcomeUnknown),
            None => Ok((None, watch)),
        }
    }

    /// The names of a node's children, and its stat; `None` when it does not exist.
    pub(crate) async fn children(&self, path: &NodePath) -> Result<Option<(Vec<String>, Stat)>, Error> {
        self.read_children(path, false).await
    }

    /// Like [`Session::children`], with a watch that fires when a child is created or deleted, or the node itself is
    /// deleted. For a node that does not exist no watch is set: it never fires.
    pub(crate) async fn watch_children(
        &self,
        path: &NodePath,
    ) -> Result<(Option<(Vec<String>, Stat)>, OneShot), Error> {
        let watch = self.watches().once(path.as_str());
        Ok((self.read_children(path, true).await?, watch))
    }

    async fn read_children(&self, path: &NodePath, watch: bool) -> Result<Option<(Vec<String>, Stat)>, Error> {
        let request = Request::GetChildren { path: path.as_str().to_owned(), watch };
        match absent_is_none(self.submit(request).await)?.map(|answer| answer.response) {
            Some(Response::Children { names, stat }) => Ok(Some((names, stat))),
            Some(_) => Err(Error::OutcomeUnknown),
            None => Ok(None),
        }
    }

    /// Several nodes in one consistent state; each may be absent, or hidden by its access control list.
    pub(crate) async fn get_many(
        &self,
        paths: impl IntoIterator<Item = &str>,
    ) -> Result<Vec<Result<Option<Read>, ErrorCode>>, Error> {
        let parts =
            paths.into_iter().map(|path| Request::GetData { path: path.to_owned(), watch: false }).collect::<Vec<_>>();
        let count = parts.len();
        let Response::Parts(parts) = self.submit(Request::MultiRead(parts)).await?.response else {
            return Err(Error::OutcomeUnknown);
        };
        if parts.len() != count {
            return Err(Error::OutcomeUnknown);
        }
        Ok(parts
            .into_iter()
            .map(|part| match part {
                Ok(Response::Data { data, stat }) => Ok(Some(Read { data, stat })),
                Ok(_) | Err(ErrorCode::NoNode) => Ok(None),
                Err(code) => Err(code),
            })
            .collect())
    }

    /// Splits operations into multis of at most `most` operations, each below ZooKeeper's frame limit with the chroot.
    pub(crate) fn batches(&self, ops: Vec<Request>, most: usize) -> Vec<Vec<Request>> {
        let mut batches: Vec<Vec<Request>> = Vec::new();
        let mut bytes = 0;
        for op in ops {
            let size = self.wire_len(&op);
            match batches.last_mut() {
                Some(batch) if batch.len() < most && bytes + size <= MULTI_BYTES => {
                    bytes += size;
                    batch.push(op);
                }
                _ => {
                    bytes = size;
                    batches.push(vec![op]);
                }
            }
        }
        batches
    }

    /// Whether everybody has all permissions for a node and its children; `None` when it does not exist.
    pub(crate) async fn is_open(&self, path: &NodePath) -> Result<Option<bool>, Error> {
        let request = Request::GetAcl { path: path.as_str().to_owned() };
        match absent_is_none(self.submit(request).await)?.map(|answer| answer.response) {
            Some(Response::Acl { acl, .. }) => Ok(Some(acl == [Acl::open()])),
            Some(_) => Err(Error::OutcomeUnknown),
            None => Ok(None),
        }
    }

    /// Waits until this session's server has applied what the leader had committed.
    pub(crate) async fn sync(&self, path: &NodePath) -> Result<(), Error> {
        self.submit(Request::Sync { path: path.as_str().to_owned() }).await.map(drop)
    }

    /// Creates a node; returns the transaction, the path and the stat.
    pub(crate) async fn create(
        &self,
        path: &str,
        data: Bytes,
        mode: CreateMode,
    ) -> Result<(Zxid, String, Stat), Error> {
        let answer = self.submit(create(path, data, mode)).await?;
        match answer.response {
            Response::Created { path, stat } => Ok((answer.zxid, path, stat)),
            _ => Err(Error::OutcomeUnknown),
        }
    }

    /// Makes sure that the parents of `path` exist, as durable, empty nodes, which stay.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NoNode`, among others, when a parent is deleted again meanwhile.
    pub(crate) async fn ensure_parents(&self, path: &NodePath) -> Result<(), Error> {
        // A session's requests are carried out in order.
        let creates = self.creates_of_parents(path).await?.into_iter().map(|create| self.submit(create));
        for created in join_all(creates).await {
            match created {
                Ok(_) | Err(Error::Refused(ErrorCode::NodeExists)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The creates, in order, after which the parents of `path` exist.
    pub(crate) async fn creates_of_parents(&self, path: &NodePath) -> Result<Vec<Request>, Error> {
        let path = path.as_str();
        let ancestors =
            || path.rmatch_indices('/').map(|(end, _)| &path[..end]).filter(|ancestor| !ancestor.is_empty());
        // Usually the direct parent, or one of the next, exists: only the missing ones below it are created.
        let mut missing = 0;
        loop {
            let asked: Vec<_> = ancestors().skip(missing).take(ANCESTORS_AT_ONCE).collect();
            let looks = asked.iter().map(|path| {
                let sent = self.submit(Request::Exists { path: (*path).to_owned(), watch: false });
                async move {
                    match absent_is_none(sent.await) {
                        // An ancestor that may not be read exists, and may allow creates below it.
                        Err(Error::Refused(ErrorCode::NoAuth)) => Ok(true),
                        answer => answer.map(|answer| answer.is_some()),
                    }
                }
            });
            let found = join_all(looks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            missing += found.iter().take_while(|exists| !**exists).count();
            if found.len() < ANCESTORS_AT_ONCE || found.contains(&true) {
                break;
            }
        }
        let absent: Vec<_> = ancestors().take(missing).collect();
        Ok(absent.into_iter().rev().map(|path| create(path, Bytes::new(), CreateMode::Persistent)).collect())
    }
}

fn absent_is_none(answer: Result<Answer, Error>) -> Result<Option<Answer>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Refused(ErrorCode::NoNode)) => Ok(None),
        Err(error) => Err(error),
    }
}
