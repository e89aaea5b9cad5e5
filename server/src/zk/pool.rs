//! The sessions that hold ephemerals: registrations, contenders and leases.
//!
//! Each session has a fence, which is created before anything else, and a heartbeat: a write to the fence every eighth
//! of its time-out, so that there is always an answer that proves that the session is alive. A session is never closed,
//! but left to ZooKeeper's time-out: an ephemeral that was acknowledged must not disappear because a replica does.
//!
//! There are [`Config::sessions`] of them, and more if their ephemerals need it, up to [`Config::max_sessions`]: the
//! surplus sessions. New paths go to surplus sessions only when the others are full, and to few of them, so that they
//! empty again.

mod prepare;
mod slots;

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rollcall_wire::Request;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::session::Session;
use super::writer::{CommitError, Committed, Guard, Stats, Unit, Writer};
use super::{Config, Error, writer};
use crate::clock;
use crate::mutex::lock;
use crate::types::SessionId;

/// Maximum size of the ephemeral paths of one session, in bytes, as ZooKeeper writes them into one log record when the
/// session ends: with the chroot and the length of each. If such a record is over ZooKeeper's frame limit, the servers
/// that have to read it never start again (ZOOKEEPER-4306).
pub(crate) const SESSION_PATH_BYTES: usize = 512 * 1024;
/// Time without any answer after which a session is used only if there is no other. A request that is sent before then
/// may wait until the connection is given up; with a longer time, everything that a busy replica may have under way
/// waits there.
const SESSION_SILENCE: Duration = Duration::from_millis(500);
/// The value of [`Inner::path_bytes`] for a session that is given up: no path fits, and adding some does not overflow.
const GIVEN_UP: usize = usize::MAX / 2;

/// A session that holds ephemerals. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EphemeralSession(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: SessionId,
    session: Session,
    writer: Writer,
    /// The session's slot; slots from [`Config::sessions`] on are surplus.
    slot: usize,
    /// Number of bytes of its ephemeral paths, the fence's included, by [`Config::path_cost`].
    path_bytes: AtomicUsize,
    /// The fence's share of `path_bytes`.
    fence_bytes: usize,
    shared: Arc<Shared>,
}

/// Room that is reserved for an ephemeral's path in a session's budget, given back on drop.
#[derive(Debug)]
pub(crate) struct PathReservation {
    owner: EphemeralSession,
    bytes: usize,
}

/// The reason why there is no room for an ephemeral's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// No session that has room is connected.
    NotConnected,
    /// All sessions are full, and another is being opened.
    Opening,
    /// All sessions are full, and there are as many as there may be, or ZooKeeper takes no more.
    Full,
}

/// Time between two heartbeats of a session with this time-out.
fn heartbeat_interval(timeout: Duration) -> Duration {
    timeout / 8
}

/// Time for which a session certainly exists after evidence of it.
fn certain_for(timeout: Duration) -> Duration {
    // ZooKeeper does not reveal its tick: this is its ratio to a session time-out in ZooKeeper's own documents, at the
    // least.
    let tick = timeout / 10;
    timeout.saturating_sub(heartbeat_interval(timeout) + 2 * tick)
}

/// See [`EphemeralSession::horizon`].
fn horizon(timeout: Duration) -> Duration {
    certain_for(timeout).saturating_sub(2 * heartbeat_interval(timeout))
}

impl EphemeralSession {
    /// The id of the ZooKeeper session, which is the `ephemeralOwner` of the nodes that it owns.
    pub(crate) fn id(&self) -> SessionId {
        self.0.id
    }

    /// The session, for reads, and for writes that are not part of a batch.
    pub(crate) fn session(&self) -> &Session {
        &self.0.session
    }

    /// The session's write batcher.
    pub(crate) fn writer(&self) -> &Writer {
        &self.0.writer
    }

    /// Commits a unit without a guard.
    pub(crate) async fn commit(&self, ops: Vec<Request>) -> Result<Committed, CommitError> {
        self.0.writer.commit(Unit { guard: Guard::None, ops }).await
    }

    /// Commits operations by themselves, without a guard. They are sent by this call: a later request of the session is
    /// carried out after them. The stats of the nodes that they create are not read.
    pub(crate) fn commit_now(
        &self,
        ops: &[Request],
    ) -> impl Future<Output = Result<Committed, CommitError>> + Send + use<> {
        writer::send_one(self.session(), Vec::new(), ops, Stats::Unwanted)
    }

    /// The session's evidence, which every heartbeat renews. See [`Session::evidence`].
    pub(crate) fn evidence(&self) -> watch::Receiver<Instant> {
        self.session().evidence()
    }

    /// Age of a session's evidence after which the session is in doubt.
    pub(crate) fn overdue(&self) -> Duration {
        self.heartbeat_interval() * 2
    }

    /// The time until which the session certainly exists, by this evidence: before that, nothing that it holds can have
    /// gone to another owner.
    pub(crate) fn certain_until(&self, evidence: Instant) -> Instant {
        evidence + certain_for(self.session().timeout())
    }

    /// Time between two heartbeats.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        heartbeat_interval(self.session().timeout())
    }

    /// Time for which the session certainly exists after its evidence became [overdue](EphemeralSession::overdue).
    /// Anything that was reported before then can be relied on for this long, even if this process is stopped right
    /// after it.
    pub(crate) fn horizon(&self) -> Duration {
        horizon(self.session().timeout())
    }

    /// Reserves room for the path of an ephemeral that is in this session already, or is put back into it.
    /// `path_bytes`: the length of the path without the chroot.
    pub(crate) fn reserve_for_its_own(&self, path_bytes: usize) -> PathReservation {
        let bytes = self.0.shared.config.path_cost(path_bytes);
        self.0.path_bytes.fetch_add(bytes, Ordering::AcqRel);
        PathReservation { owner: self.clone(), bytes }
    }

    /// Reserves room for a path that costs this many bytes.
    fn try_reserve(&self, bytes: usize) -> Option<PathReservation> {
        let fits = |held: usize| (held + bytes <= SESSION_PATH_BYTES).then_some(held + bytes);
        let reserved = self.0.path_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        reserved.is_ok().then(|| PathReservation { owner: self.clone(), bytes })
    }

    /// Number of bytes of its ephemeral paths, as [`SESSION_PATH_BYTES`] counts them.
    pub(super) fn path_bytes(&self) -> usize {
        self.0.path_bytes.load(Ordering::Acquire)
    }

    fn is_surplus(&self) -> bool {
        self.0.slot >= self.0.shared.config.sessions
    }

    /// Whether it holds nothing but its fence.
    fn is_empty(&self) -> bool {
        self.path_bytes() == self.0.fence_bytes
    }

    /// If the session holds nothing but its fence, makes sure that nothing is placed in it any more; returns whether it
    /// did.
    fn give_up_if_empty(&self) -> bool {
        let (empty, given_up) = (self.0.fence_bytes, GIVEN_UP);
        self.0.path_bytes.compare_exchange(empty, given_up, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl PathReservation {
    /// The session in which the room is reserved.
    pub(crate) fn owner(&self) -> &EphemeralSession {
        &self.owner
    }

    /// Leaves the room reserved for as long as the session exists: its node could not be deleted.
    pub(crate) fn forfeit(&mut self) {
        self.bytes = 0;
    }
}

impl Drop for PathReservation {
    fn drop(&mut self) {
        self.owner.0.path_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.owner.0.shared.room_is_free();
    }
}

/// The sessions that exist now.
pub(crate) type EphemeralSessions = Arc<Vec<EphemeralSession>>;

/// A handle to the pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

/// The state that the handles and the sessions' tasks share.
#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    owners: watch::Sender<EphemeralSessions>,
    growth: Mutex<Growth>,
    /// Asks for another session to be opened.
    wanted: Notify,
    /// Whether a caller was refused room since `news` last changed.
    is_short: AtomicBool,
    /// Changes when there may be room again.
    news: watch::Sender<()>,
}

/// The present size of the pool.
#[derive(Debug)]
struct Growth {
    /// Number of slots, including those whose session is being opened.
    slots: usize,
    /// No session is opened before then, since ZooKeeper did not take the last one.
    not_before: Instant,
    /// The pause after the next session that ZooKeeper does not take.
    pause: Duration,
}

impl Shared {
    fn new(config: &Arc<Config>) -> Self {
        let growth = Growth { slots: config.sessions, not_before: Instant::now(), pause: slots::FIRST_SURPLUS_PAUSE };
        Self {
            config: config.clone(),
            owners: watch::Sender::new(EphemeralSessions::default()),
            growth: Mutex::new(growth),
            wanted: Notify::new(),
            is_short: AtomicBool::new(false),
            news: watch::Sender::new(()),
        }
    }

    fn growth(&self) -> MutexGuard<'_, Growth> {
        lock(&self.growth)
    }

    /// Whether another session may be opened now: the maximum is not reached, none is being opened, and no pause is
    /// running.
    fn may_grow(&self) -> bool {
        let growth = self.growth();
        growth.slots < self.config.max_sessions && self.is_complete(&growth) && Instant::now() >= growth.not_before
    }

    fn is_complete(&self, growth: &Growth) -> bool {
        self.owners.borrow().len() >= growth.slots
    }

    fn room_is_free(&self) {
        if self.is_short.swap(false, Ordering::AcqRel) {
            self.news.send_replace(());
        }
    }

    /// The reason why there is no room for this many bytes; asks for another session if that may help.
    fn why_no_room(&self, cost: usize) -> NoRoom {
        if self.owners.borrow().iter().any(|owner| owner.path_bytes() + cost <= SESSION_PATH_BYTES) {
            return NoRoom::NotConnected;
        }
        if self.may_grow() {
            self.wanted.notify_one();
            return NoRoom::Opening;
        }
        if self.is_complete(&self.growth()) { NoRoom::Full } else { NoRoom::Opening }
    }
}

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
        shortest.unwrap_or_else(|| horizon(self.0.config.session_timeout))
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
