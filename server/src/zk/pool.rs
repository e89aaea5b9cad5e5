//! The sessions that hold ephemerals: registrations, contenders and leases.
//!
//! Each session has a fence, which is created before anything else, and a heartbeat: a write to the fence every eighth
//! of its time-out, so that there is always an answer that proves that the session is alive. A session is never closed,
//! but left to ZooKeeper's time-out: an ephemeral that was acknowledged must not disappear because a replica does.
//!
//! There are [`Config::sessions`] of them, and more if their ephemerals need it, up to [`Config::max_sessions`]: the
//! surplus sessions. New paths go to surplus sessions only when the others are full, and to few of them, so that they
//! empty again.
//!
//! Clients of one replica share the fate of its sessions. A session ends only when ZooKeeper says so in a handshake; a
//! reply that says so ends the connection alone.
//!
//! ZooKeeper writes all ephemeral paths of a session that ends into one record. So a session takes a bounded number of
//! bytes of paths (`SESSION_PATH_BYTES`), counted as they go over the wire. A path keeps its room for as long as its
//! node exists, or may exist: a create without an answer until it is known what became of it, a node that ZooKeeper
//! refuses to delete until its session ends or a later try succeeds. A node that is replaced on the same replica stays
//! in its session.
//!
//! The default of `--max-sessions` is 40: with the sessions that watch it stays well below the 60 connections that
//! ZooKeeper takes from one address. A surplus session that has held nothing for three minutes gets nothing any more,
//! and is left to its time-out without a connection. While nobody is connected, or another session is being opened, a
//! registration waits. When the pool is full, a new registration is refused, and a registration that existed before
//! waits. All connections together may hold seven eighths of the pool's capacity, one connection a quarter of that.

mod ephemeral;
mod prepare;
mod slots;

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use self::ephemeral::Shared;
pub(crate) use self::ephemeral::{EphemeralSession, EphemeralSessions, NoRoom, PathReservation, SESSION_PATH_BYTES};
use super::times::SESSION_SILENCE;
use super::{Config, Error};
use crate::clock;
use crate::types::SessionId;

/// A handle to the pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

impl Pool {
    /// Starts the pool as a task of `tasks`.
    pub(super) fn start(config: &Arc<Config>, tasks: &mut JoinSet<()>) -> Self {
        let shared = Arc::new(Shared::new(config));
        tasks.spawn(slots::run(shared.clone()));
        Self(shared)
    }

    /// The sessions that exist now. A session that expires leaves the list, and its ephemerals are gone.
    pub(crate) fn owners(&self) -> watch::Receiver<EphemeralSessions> {
        self.0.owners.subscribe()
    }

    /// Changes when a caller that found no room may find some: a session was opened or has connected, or an ephemeral
    /// is gone. At most once for each time that room was refused.
    pub(crate) fn room_news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// Maximum number of bytes of the paths of all ephemerals.
    pub(crate) fn capacity(&self) -> usize {
        self.0.config.max_sessions * SESSION_PATH_BYTES
    }

    /// The session with this id, if it is one of ours and exists.
    pub(crate) fn owner(&self, id: SessionId) -> Option<EphemeralSession> {
        self.0.owners.borrow().iter().find(|owner| owner.id() == id).cloned()
    }

    /// Reserves room for an ephemeral's path of this many bytes without the chroot: in the connected session that holds
    /// least of those that always exist, or else in a surplus session. If there is no room, [`Pool::room_news`] says
    /// when to ask again.
    pub(crate) fn reserve(&self, path_bytes: usize) -> Result<PathReservation, NoRoom> {
        let cost = self.0.config.path_cost(path_bytes);
        if let Some(reservation) = place(&self.connected(), cost) {
            return Ok(reservation);
        }
        // Room that is freed from now on is reported; room that was freed before is seen here.
        self.0.is_short.swap(true, Ordering::AcqRel);
        place(&self.connected(), cost).ok_or_else(|| self.0.why_no_room(cost))
    }

    /// Reserves room for an ephemeral's path in this session, if it is connected and has any.
    pub(crate) fn reserve_in(&self, id: SessionId, path_bytes: usize) -> Option<PathReservation> {
        let cost = self.0.config.path_cost(path_bytes);
        self.connected().iter().find(|owner| owner.id() == id)?.try_reserve(cost)
    }

    /// Reserves room for the path of an ephemeral that is taken over from another session. All paths from one session
    /// go to the same session of ours, as far as it has room: each multi writes the fence of the other session, and
    /// takeovers that share a writer do not get in each other's way.
    pub(crate) fn reserve_for_taken(&self, path_bytes: usize, from: SessionId) -> Result<PathReservation, NoRoom> {
        let mut usual = self.connected();
        usual.retain(|owner| !owner.is_surplus());
        let count = u64::try_from(usual.len()).unwrap_or(1).max(1);
        let index = usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(from) % count);
        let usual = usual.get(index.unwrap_or_default());
        let reservation = usual.and_then(|owner| owner.try_reserve(self.0.config.path_cost(path_bytes)));
        reservation.map_or_else(|| self.reserve(path_bytes), Ok)
    }

    /// A connected session, for requests that leave no ephemeral.
    pub(crate) fn any(&self) -> Result<EphemeralSession, Error> {
        let mut connected = self.connected();
        if connected.is_empty() {
            return Err(Error::NotSent);
        }
        Ok(connected.swap_remove(rand::random_range(0..connected.len())))
    }

    /// The shortest [`EphemeralSession::horizon`] of the sessions; before there is a session, the expected one.
    pub(crate) fn horizon(&self) -> Duration {
        let owners = self.owners();
        let shortest = owners.borrow().iter().map(EphemeralSession::horizon).min();
        shortest.unwrap_or_else(|| ephemeral::horizon(self.0.config.session_timeout))
    }

    /// The connected sessions. Those whose server may hang are left out, if there are others: their evidence is
    /// overdue, or an answer is.
    fn connected(&self) -> Vec<EphemeralSession> {
        let now = clock::now();
        let is_fresh = |owner: &EphemeralSession| now < *owner.evidence().borrow() + owner.overdue();
        let answers = |owner: &EphemeralSession| owner.session().silence() < SESSION_SILENCE;
        let owners = self.0.owners.borrow().clone();
        let mut connected: Vec<_> = owners.iter().filter(|owner| owner.session().is_up()).cloned().collect();
        for is_well in [&is_fresh as &dyn Fn(&EphemeralSession) -> bool, &answers] {
            if connected.iter().any(is_well) {
                connected.retain(is_well);
            }
        }
        connected
    }
}

/// Reserves room for a path that costs this many bytes: in the emptiest of the sessions that always exist, or in the
/// first surplus session.
fn place(connected: &[EphemeralSession], cost: usize) -> Option<PathReservation> {
    let mut tried = Vec::new();
    loop {
        let fits =
            |owner: &&EphemeralSession| owner.path_bytes() + cost <= SESSION_PATH_BYTES && !tried.contains(&owner.id());
        let order =
            |owner: &&EphemeralSession| if owner.is_surplus() { (owner.0.slot, 0) } else { (0, owner.path_bytes()) };
        let best = connected.iter().filter(fits).min_by_key(order)?;
        if let Some(reservation) = best.try_reserve(cost) {
            return Some(reservation);
        }
        // Other callers have taken the room meanwhile.
        tried.push(best.id());
    }
}

#[cfg(test)]
mod tests;
