//! The handle that turns faults on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_wire::ErrorCode;

use crate::hub::Hub;
use crate::types::SessionId;

/// Makes a running server misbehave. Cloneable; works for as long as the server runs.
#[derive(Debug, Clone)]
pub struct Faults {
    hub: Arc<Hub>,
}

impl Faults {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// The ids of the sessions that are alive.
    #[must_use]
    pub fn sessions(&self) -> Vec<i64> {
        self.hub.look(|state| state.sessions.ids().map(|id| id.0).collect())
    }

    /// Cuts every connection, in the middle of whatever is being sent. Sessions stay.
    pub fn cut_all(&self) {
        self.hub.cut_all();
    }

    /// Cuts a session's connection. False when the session has none.
    #[must_use]
    pub fn cut(&self, session: i64) -> bool {
        let connection = self.hub.look(|state| state.sessions.connection(SessionId(session)));
        connection.inspect(|connection| self.hub.cut(*connection)).is_some()
    }

    /// Holds back everything that is sent to clients from now on; zero ends it.
    pub fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.hub.switches.delay_ms.store(millis, Ordering::Relaxed);
    }

    /// Ends a session as if its time were over. False when there is none with this id.
    #[must_use]
    pub fn expire(&self, session: i64) -> bool {
        self.hub.step(|state, now, effects| state.expire_session(SessionId(session), now, effects))
    }

    /// Closes every new connection at once, until this is called with `false`. Open connections stay.
    pub fn refuse(&self, refuse: bool) {
        self.hub.switches.refusing.store(refuse, Ordering::Relaxed);
    }

    /// Makes a node count its children as if this many had been created below it. False when there is no such node.
    #[must_use]
    pub fn make_old(&self, path: &str, children_created: i32) -> bool {
        self.hub.step(|state, _, _| state.tree.make_old(path, children_created))
    }

    /// Carries the next `count` writes out, and instead of answering each cuts its connection.
    pub fn lose_replies(&self, count: u64) {
        self.hub.switches.lost_replies.store(count, Ordering::Relaxed);
    }

    /// Does not carry out the next `count` writes, and answers each with this code; a transaction fails in its
    /// first part.
    pub fn refuse_writes(&self, count: u64, code: ErrorCode) {
        self.hub.switches.refusal.store(code.to_wire(), Ordering::Relaxed);
        self.hub.switches.refused_writes.store(count, Ordering::Relaxed);
    }
}
