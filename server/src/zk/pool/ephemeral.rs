//! A session that holds ephemerals, and the state that all of them share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rollcall_wire::Request;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::types::SessionId;
use crate::zk::session::Session;
use crate::zk::times::FIRST_SURPLUS_PAUSE;
use crate::zk::writer::{CommitError, Committed, Guard, Stats, Unit, Writer};
use crate::zk::{Config, writer};

/// Maximum size of the ephemeral paths of one session, in bytes, as ZooKeeper writes them into one log record when the
/// session ends: with the chroot and the length of each. If such a record is over ZooKeeper's frame limit, the servers
/// that have to read it never start again (ZOOKEEPER-4306).
pub(crate) const SESSION_PATH_BYTES: usize = 512 * 1024;
/// The value of [`Inner::path_bytes`] for a session that is given up: no path fits, and adding some does not overflow.
const GIVEN_UP: usize = usize::MAX / 2;

/// A session that holds ephemerals. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EphemeralSession(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) id: SessionId,
    pub(super) session: Session,
    pub(super) writer: Writer,
    /// The session's slot; slots from [`Config::sessions`] on are surplus.
    pub(super) slot: usize,
    /// Number of bytes of its ephemeral paths, the fence's included, by [`Config::path_cost`].
    pub(super) path_bytes: AtomicUsize,
    /// The fence's share of `path_bytes`.
    pub(super) fence_bytes: usize,
    pub(super) shared: Arc<Shared>,
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
pub(super) fn heartbeat_interval(timeout: Duration) -> Duration {
    timeout / 8
}

/// Time for which a session certainly exists after evidence of it.
pub(super) fn certain_for(timeout: Duration) -> Duration {
    // ZooKeeper does not reveal its tick: this is its ratio to a session time-out in ZooKeeper's own documents, at the
    // least.
    let tick = timeout / 10;
    timeout.saturating_sub(heartbeat_interval(timeout) + 2 * tick)
}

/// See [`EphemeralSession::horizon`].
pub(super) fn horizon(timeout: Duration) -> Duration {
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
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<PathReservation> {
        let fits = |held: usize| (held + bytes <= SESSION_PATH_BYTES).then_some(held + bytes);
        let reserved = self.0.path_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        reserved.is_ok().then(|| PathReservation { owner: self.clone(), bytes })
    }

    /// Number of bytes of its ephemeral paths, as [`SESSION_PATH_BYTES`] counts them.
    pub(in crate::zk) fn path_bytes(&self) -> usize {
        self.0.path_bytes.load(Ordering::Acquire)
    }

    pub(super) fn is_surplus(&self) -> bool {
        self.0.slot >= self.0.shared.config.sessions
    }

    /// Whether it holds nothing but its fence.
    pub(super) fn is_empty(&self) -> bool {
        self.path_bytes() == self.0.fence_bytes
    }

    /// If the session holds nothing but its fence, makes sure that nothing is placed in it any more; returns whether it
    /// did.
    pub(super) fn give_up_if_empty(&self) -> bool {
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

/// The state that the handles and the sessions' tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) owners: watch::Sender<EphemeralSessions>,
    pub(super) growth: Mutex<Growth>,
    /// Asks for another session to be opened.
    pub(super) wanted: Notify,
    /// Whether a caller was refused room since `news` last changed.
    pub(super) is_short: AtomicBool,
    /// Changes when there may be room again.
    pub(super) news: watch::Sender<()>,
}

/// The present size of the pool.
#[derive(Debug)]
pub(super) struct Growth {
    /// Number of slots, including those whose session is being opened.
    pub(super) slots: usize,
    /// No session is opened before then, since ZooKeeper did not take the last one.
    pub(super) not_before: Instant,
    /// The pause after the next session that ZooKeeper does not take.
    pub(super) pause: Duration,
}

impl Shared {
    pub(super) fn new(config: &Arc<Config>) -> Self {
        let growth = Growth { slots: config.sessions, not_before: Instant::now(), pause: FIRST_SURPLUS_PAUSE };
        Self {
            config: config.clone(),
            owners: watch::Sender::new(EphemeralSessions::default()),
            growth: Mutex::new(growth),
            wanted: Notify::new(),
            is_short: AtomicBool::new(false),
            news: watch::Sender::new(()),
        }
    }

    pub(super) fn growth(&self) -> MutexGuard<'_, Growth> {
        self.growth.lock()
    }

    /// Whether another session may be opened now: the maximum is not reached, none is being opened, and no pause is
    /// running.
    pub(super) fn may_grow(&self) -> bool {
        let growth = self.growth();
        growth.slots < self.config.max_sessions && self.is_complete(&growth) && Instant::now() >= growth.not_before
    }

    fn is_complete(&self, growth: &Growth) -> bool {
        self.owners.borrow().len() >= growth.slots
    }

    pub(super) fn room_is_free(&self) {
        if self.is_short.swap(false, Ordering::AcqRel) {
            self.news.send_replace(());
        }
    }

    /// The reason why there is no room for this many bytes; asks for another session if that may help.
    pub(super) fn why_no_room(&self, cost: usize) -> NoRoom {
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
