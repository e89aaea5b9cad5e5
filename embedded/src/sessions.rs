//! Sessions: the connection that has each, and when it ends.
//!
//! As in ZooKeeper, a session expires at the first tick after its time-out, never in between: sessions are kept in
//! buckets, one for each tick, and a session whose client was heard moves to a later one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use sha1::{Digest as _, Sha1};

use crate::types::{ConnectionId, SessionId};

const PASSWORD_LENGTH: usize = 16;

#[derive(Debug)]
struct Session {
    timeout_ms: u64,
    expires_ms: u64,
    connection: Option<ConnectionId>,
}

/// All sessions that are alive.
#[derive(Debug)]
pub(crate) struct Sessions {
    by_id: HashMap<SessionId, Session>,
    buckets: BTreeMap<u64, BTreeSet<SessionId>>,
    next_id: i64,
    tick_ms: u64,
    /// The secret from which passwords are made. Without it nobody can guess a password, and take a session up.
    secret: u128,
}

impl Sessions {
    /// No sessions yet. Ids start from the wall clock, so that a restarted server gives out no id again.
    pub(crate) fn new(wall_ms: i64, tick_ms: u64, secret: u128) -> Self {
        const SERVER: i64 = 1 << 56;
        let next_id = SERVER | (wall_ms.wrapping_shl(24) as u64 >> 8) as i64;
        Self { by_id: HashMap::new(), buckets: BTreeMap::new(), next_id, tick_ms, secret }
    }

    /// Starts a session.
    pub(crate) fn create(&mut self, timeout_ms: u64, connection: ConnectionId, now_ms: u64) -> SessionId {
        let id = SessionId(self.next_id);
        self.next_id += 1;
        let expires_ms = self.bucket(now_ms, timeout_ms);
        self.by_id.insert(id, Session { timeout_ms, expires_ms, connection: Some(connection) });
        self.buckets.entry(expires_ms).or_default().insert(id);
        id
    }

    /// Takes a session up on another connection; returns the one that had it. `Err` if the session is over, or the
    /// password is not its own.
    pub(crate) fn take_up(
        &mut self,
        id: SessionId,
        password: &[u8],
        timeout_ms: u64,
        connection: ConnectionId,
        now_ms: u64,
    ) -> Result<Option<ConnectionId>, Over> {
        if password != self.password(id) {
            return Err(Over);
        }
        let session = self.by_id.get_mut(&id).ok_or(Over)?;
        session.timeout_ms = timeout_ms;
        let before = session.connection.replace(connection);
        self.touch(id, now_ms);
        Ok(before)
    }

    /// Notes that the session's client was heard. False when the session is over.
    pub(crate) fn touch(&mut self, id: SessionId, now_ms: u64) -> bool {
        let Some(session) = self.by_id.get(&id) else { return false };
        let (before, after) = (session.expires_ms, self.bucket(now_ms, session.timeout_ms));
        if before != after {
            self.leave_bucket(before, id);
            self.buckets.entry(after).or_default().insert(id);
            if let Some(session) = self.by_id.get_mut(&id) {
                session.expires_ms = after;
            }
        }
        true
    }

    /// The connection is gone; its session lives on until it expires.
    pub(crate) fn detach(&mut self, id: SessionId, connection: ConnectionId) {
        if let Some(session) = self.by_id.get_mut(&id)
            && session.connection == Some(connection)
        {
            session.connection = None;
        }
    }

    /// Ends a session; returns its connection. `None` when it was over already.
    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Option<ConnectionId>> {
        let session = self.by_id.remove(&id)?;
        self.leave_bucket(session.expires_ms, id);
        Some(session.connection)
    }

    /// The sessions whose time is over, which still have to be [removed](Self::remove).
    pub(crate) fn overdue(&self, now_ms: u64) -> Vec<SessionId> {
        self.buckets.range(..=now_ms).flat_map(|(_, ids)| ids).copied().collect()
    }

    /// The session's password: the same for as long as the server runs, and sent only to its client.
    pub(crate) fn password(&self, id: SessionId) -> Bytes {
        let mut hash = Sha1::new();
        hash.update(self.secret.to_be_bytes());
        hash.update(id.0.to_be_bytes());
        Bytes::copy_from_slice(&hash.finalize()[..PASSWORD_LENGTH])
    }

    /// The sessions that are alive.
    #[cfg(feature = "faults")]
    pub(crate) fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.by_id.keys().copied()
    }

    /// A session's connection.
    #[cfg(feature = "faults")]
    pub(crate) fn connection(&self, id: SessionId) -> Option<ConnectionId> {
        self.by_id.get(&id)?.connection
    }

    /// The sessions that are alive, by the time at which they end if their clients are not heard.
    pub(crate) fn by_end(&self) -> impl ExactSizeIterator<Item = (u64, &BTreeSet<SessionId>)> {
        self.buckets.iter().map(|(expires_ms, ids)| (*expires_ms, ids))
    }

    /// A session's time-out, and when it ends if its client is not heard.
    pub(crate) fn times(&self, id: SessionId) -> Option<(u64, u64)> {
        self.by_id.get(&id).map(|session| (session.timeout_ms, session.expires_ms))
    }

    /// Number of sessions that are alive.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    fn bucket(&self, now_ms: u64, timeout_ms: u64) -> u64 {
        (now_ms.saturating_add(timeout_ms) / self.tick_ms + 1).saturating_mul(self.tick_ms)
    }

    fn leave_bucket(&mut self, expires_ms: u64, id: SessionId) {
        if let Some(bucket) = self.buckets.get_mut(&expires_ms) {
            bucket.remove(&id);
            if bucket.is_empty() {
                self.buckets.remove(&expires_ms);
            }
        }
    }
}

/// The session is over, as far as this client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over;

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ConnectionId = ConnectionId(1);
    const TWO: ConnectionId = ConnectionId(2);

    #[test]
    fn sessions_expire_at_the_first_tick_after_their_time_out() {
        let mut sessions = Sessions::new(0, 1000, 7);
        let id = sessions.create(4000, ONE, 500);
        assert_eq!(sessions.overdue(4999), []);
        assert!(sessions.touch(id, 1000));
        assert_eq!(sessions.overdue(5999), []);
        assert_eq!(sessions.overdue(6000), [id]);
        assert_eq!(sessions.remove(id), Some(Some(ONE)));
        assert_eq!(sessions.overdue(u64::MAX), []);
        assert!(!sessions.touch(id, 6000));
    }

    #[test]
    fn a_session_moves_to_whoever_knows_its_password() {
        let mut sessions = Sessions::new(0, 1000, 7);
        let id = sessions.create(4000, ONE, 0);
        assert_eq!(sessions.take_up(id, b"guess", 4000, TWO, 0), Err(Over));
        let password = sessions.password(id);
        assert_eq!(sessions.take_up(id, &password, 9000, TWO, 0), Ok(Some(ONE)));
        sessions.detach(id, ONE);
        assert_eq!(sessions.overdue(9999), [], "the time-out is that of the new connection");
        assert_eq!(sessions.remove(id), Some(Some(TWO)));
        assert_eq!(sessions.take_up(id, &password, 4000, TWO, 0), Err(Over));
    }

    #[test]
    fn ids_are_of_no_kind_that_means_something_else() {
        for wall_ms in [0, 1_700_000_000_000, i64::MAX] {
            let sessions = Sessions::new(wall_ms, 1000, 0);
            assert_eq!(sessions.next_id >> 56, 1);
        }
    }
}
