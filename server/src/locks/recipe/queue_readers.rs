//! The queue readers of all locks, and the choice of the session for a new attempt.
//!
//! All attempts that wait for a lock on this replica wait in one session, if it has space, so that they share one
//! reader.

use std::collections::HashMap;
use std::sync::Arc;

use super::own_nodes::path_bytes;
use super::queue_reader::{QueueReader, WeakQueueReader};
use crate::locks::spawner::Spawner;
use crate::types::{NodePath, SessionId};
use crate::zk::{EphemeralSession, NoRoom, PathReservation, Pool};
use parking_lot::Mutex;

/// The queue readers of all locks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct QueueReaders {
    pool: Pool,
    spawner: Spawner,
    readers: Arc<Mutex<ReaderTable>>,
}

type ReaderTable = HashMap<(NodePath, SessionId), WeakQueueReader>;

impl QueueReaders {
    pub(crate) fn new(pool: Pool, spawner: Spawner) -> Self {
        Self { pool, spawner, readers: Arc::default() }
    }

    /// Whether an attempt waits for this lock on this replica.
    pub(crate) fn is_waited_for(&self, path: &NodePath) -> bool {
        self.session_of_waiters(path).is_some()
    }

    fn session_of_waiters(&self, path: &NodePath) -> Option<SessionId> {
        let owners = self.pool.owners();
        let readers = self.readers.lock();
        let waited_for = |id| readers.get(&(path.clone(), id)).is_some_and(|reader| reader.upgrade().is_some());
        owners.borrow().iter().map(EphemeralSession::id).find(|id| waited_for(*id))
    }

    /// Reserves a path for an attempt, in the session of the other attempts for this lock if it has space.
    pub(crate) fn reserve(&self, path: &NodePath) -> Result<PathReservation, NoRoom> {
        let bytes = path_bytes(path);
        let among_others = self.session_of_waiters(path).and_then(|id| self.pool.reserve_in(id, bytes));
        among_others.map_or_else(|| self.pool.reserve(bytes), Ok)
    }

    /// The reader of a lock in this session, started if there is none.
    pub(crate) fn reader(&self, owner: &EphemeralSession, path: &NodePath) -> QueueReader {
        let key = (path.clone(), owner.id());
        let mut readers = self.readers.lock();
        if let Some(reader) = readers.get(&key).and_then(WeakQueueReader::upgrade) {
            return reader;
        }
        let (reader, work) = QueueReader::start(owner.session().clone(), path.clone());
        readers.insert(key.clone(), reader.downgrade());
        drop(readers);
        let table = self.readers.clone();
        self.spawner.spawn(Box::pin(async move {
            work.await;
            let mut readers = table.lock();
            if readers.get(&key).is_some_and(|reader| reader.upgrade().is_none()) {
                readers.remove(&key);
            }
        }));
        reader
    }
}
