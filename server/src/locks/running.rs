//! The locks that have a task on this replica.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::recipe::lock_id::{LockId, Mark};
use super::stream::state::AcquisitionState;

/// The states of the locks that have a task, by the mark in their nodes' names.
pub(super) type RunningTable = HashMap<Mark, Arc<AcquisitionState>>;

/// The locks that have a task on this replica.
#[derive(Debug, Default)]
pub(super) struct RunningLocks {
    /// No other mutex is taken while this one is locked, but that of an [`AcquisitionState`].
    table: Mutex<RunningTable>,
    orphaned: Notify,
}

impl RunningLocks {
    /// The table, to look up a lock and add it in one step.
    pub(super) fn table(&self) -> MutexGuard<'_, RunningTable> {
        self.table.lock()
    }

    /// The lock with this id, unless it is over.
    pub(super) fn find(&self, id: &LockId) -> Option<Arc<AcquisitionState>> {
        self.table().get(&id.mark()).filter(|state| state.id() == id && !state.is_over()).cloned()
    }

    /// Whether a task has a lock with this mark.
    pub(super) fn has(&self, mark: &Mark) -> bool {
        self.table().contains_key(mark)
    }

    /// Whether this is the latest task of its lock: another one can start once the client was told the end.
    pub(super) fn is_latest(&self, state: &Arc<AcquisitionState>) -> bool {
        self.table().get(&state.id().mark()).is_some_and(|latest| Arc::ptr_eq(latest, state))
    }

    /// The task of a lock has ended.
    pub(super) fn remove(&self, state: &Arc<AcquisitionState>) {
        let mark = state.id().mark();
        let mut table = self.table();
        if table.get(&mark).is_some_and(|latest| Arc::ptr_eq(latest, state)) {
            table.remove(&mark);
        }
        drop(table);
        if state.may_leave_a_lease() {
            self.orphaned.notify_one();
        }
    }

    /// Waits until a lease with a ttl may have lost its task.
    pub(super) async fn orphaned(&self) {
        self.orphaned.notified().await;
    }
}
