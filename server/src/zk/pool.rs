//! The sessions that hold ephemerals: registrations, contenders and leases.
//!
//! Each has a fence, made before anything else, and a heartbeat: a write to the fence every eighth of its time-out, so
//! that there is always an answer that is evidence that the session lives. Closing one is left to ZooKeeper's time-out,
//! always: an ephemeral that was acknowledged must not go because a replica does.
//!
//! There are [`Config::sessions`] of them, and more when what they hold needs it, up to [`Config::max_sessions`]: the
//! surplus. New paths go into the surplus only when the others are full, and into few of it, so that it empties again.

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
/// session ends: with the chroot and the length of each. When such a record is over ZooKeeper's frame limit, the servers
/// that have to read it never start again (ZOOKEEPER-4306).
pub(crate) const SESSION_PATH_BYTES: usize = 512 * 1024;
/// Time without any answer after which a session is asked only when there is no other. What is asked before that may wait
/// until its connection is given up: with a longer time a busy replica has all that it may have under way wait there.
const PATIENCE: Duration = Duration::from_millis(500);
/// What [`Inner::path_bytes`] is of a session that is given up: no path fits, and adding some does not overflow.
const GIVEN_UP: usize = usize::MAX / 2;

/// A session that holds ephemerals. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Owner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: SessionId,
    session: Session,
    writer: Writer,
    /// The slot that the session is in; from [`Config::sessions`] on they are surplus.
    slot: usize,
    /// What its ephemeral paths come to, the fence's included, by [`Config::path_cost`].
    path_bytes: AtomicUsize,
    /// The fence's part of it.
    fence_bytes: usize,
    shared: Arc<Shared>,
}

/// Room for an ephemeral's path in a session's budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Room {
    owner: Owner,
    bytes: usize,
}

/// Why there is no room for an ephemeral's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// No session that has room is connected.
    NotConnected,
    /// All are full, and another is being opened.
    Opening,
    /// All are full, and there are as many as there may be, or ZooKeeper takes no more.
    Full,
}

/// How often the heartbeat of a session with this time-out writes.
fn heartbeat_interval(timeout: Duration) -> Duration {
    timeout / 8
}

/// How long a session certainly stands after evidence of it.
fn certain_for(timeout: Duration) -> Duration {
    // ZooKeeper does not tell its tick: its own documents' ratio of it to a session time-out, at the least.
    let tick = timeout / 10;
    timeout.saturating_sub(heartbeat_interval(timeout) + 2 * tick)
}

/// See [`Owner::horizon`].
fn horizon(timeout: Duration) -> Duration {
    certain_for(timeout).saturating_sub(2 * heartbeat_interval(timeout))
}

impl Owner {
    /// The ZooKeeper session's id: what the nodes that it owns have as `ephemeralOwner`.
    pub(crate) fn id(&self) -> SessionId {
        self.0.id
    }

    /// The session, for reads, and for writes that are no part of a batch.
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

    /// Commits operations by themselves, without a guard. They are sent when this is called: what is asked of the session
    /// after the call is carried out after them. The stats of what they create are not asked for.
    pub(crate) fn commit_now(
        &self,
        ops: &[Request],
    ) -> impl Future<Output = Result<Committed, CommitError>> + Send + use<> {
        writer::send_one(self.session(), Vec::new(), ops, Stats::Unwanted)
    }

    /// The session's evidence; moves with every heartbeat at least. See [`Session::evidence`].
    pub(crate) fn evidence(&self) -> watch::Receiver<Instant> {
        self.session().evidence()
    }

    /// How old the evidence of a session may grow before it is in doubt.
    pub(crate) fn overdue(&self) -> Duration {
        self.heartbeat_interval() * 2
    }

    /// Until when the session certainly stands, by this evidence: nothing of it can have been given to another before.
    pub(crate) fn certain_until(&self, evidence: Instant) -> Instant {
        evidence + certain_for(self.session().timeout())
    }

    /// How often the heartbeat writes.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        heartbeat_interval(self.session().timeout())
    }

    /// How long the session certainly stands after its evidence was [overdue](Owner::overdue): what was told before that
    /// can be relied on for so long, though this process should be stopped right after it.
    pub(crate) fn horizon(&self) -> Duration {
        horizon(self.session().timeout())
    }

    /// Room for the path of an ephemeral that is in this session already, or is put back into it; the path has so many
    /// bytes without the chroot.
    pub(crate) fn room_for_its_own(&self, path_bytes: usize) -> Room {
        let bytes = self.0.shared.config.path_cost(path_bytes);
        self.0.path_bytes.fetch_add(bytes, Ordering::AcqRel);
        Room { owner: self.clone(), bytes }
    }

    /// Room for a path that costs so many bytes.
    fn try_room(&self, bytes: usize) -> Option<Room> {
        let fits = |held: usize| (held + bytes <= SESSION_PATH_BYTES).then_some(held + bytes);
        let reserved = self.0.path_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        reserved.is_ok().then(|| Room { owner: self.clone(), bytes })
    }

    /// What its ephemeral paths come to, in bytes, as [`SESSION_PATH_BYTES`] counts them.
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

    /// Has nothing placed in it any more, if it holds nothing but its fence.
    fn give_up_if_empty(&self) -> bool {
        let (empty, given_up) = (self.0.fence_bytes, GIVEN_UP);
        self.0.path_bytes.compare_exchange(empty, given_up, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Room {
    /// The session that has the room.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Leaves the room taken for as long as the session stands: its node could not be deleted.
    pub(crate) fn forfeit(&mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.owner.0.path_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.owner.0.shared.room_is_free();
    }
}

/// The sessions that stand now.
pub(crate) type Owners = Arc<Vec<Owner>>;

/// A handle on the pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

/// What the handles and the sessions' tasks share.
#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    owners: watch::Sender<Owners>,
    growth: Mutex<Growth>,
    /// Has another session opened.
    wanted: Notify,
    /// Somebody was refused room since the last news of it.
    is_short: AtomicBool,
    /// Changes when there may be room again.
    news: watch::Sender<()>,
}

/// How far the pool has grown.
#[derive(Debug)]
struct Growth {
    /// Number of slots, with those whose session is being opened.
    slots: usize,
    /// No more are opened before: ZooKeeper did not take the last.
    not_before: Instant,
    /// The pause after the next that ZooKeeper does not take.
    pause: Duration,
}

impl Shared {
    fn new(config: &Arc<Config>) -> Self {
        let growth = Growth { slots: config.sessions, not_before: Instant::now(), pause: slots::FIRST_PAUSE };
        Self {
            config: config.clone(),
            owners: watch::Sender::new(Owners::default()),
            growth: Mutex::new(growth),
            wanted: Notify::new(),
            is_short: AtomicBool::new(false),
            news: watch::Sender::new(()),
        }
    }

    fn growth(&self) -> MutexGuard<'_, Growth> {
        lock(&self.growth)
    }

    /// Whether another session may be opened now: there may be more, none is on its way, and ZooKeeper took the last.
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

    /// Why nothing that costs so many bytes has room; asks for another session if that may help.
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

    /// The sessions that stand now; one that expires leaves the list, and its ephemerals are gone.
    pub(crate) fn owners(&self) -> watch::Receiver<Owners> {
        self.0.owners.subscribe()
    }

    /// Changes when somebody who found no room may find some: a session has connected or was opened, or something that
    /// was held has gone. At most once for each time that room was refused.
    pub(crate) fn room_news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// What the paths of all ephemerals may come to, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.0.config.max_sessions * SESSION_PATH_BYTES
    }

    /// The session with this id, if it is one of ours and stands.
    pub(crate) fn owner(&self, id: SessionId) -> Option<Owner> {
        self.0.owners.borrow().iter().find(|owner| owner.id() == id).cloned()
    }

    /// Room for an ephemeral's path, which has so many bytes without the chroot: in the connected session that holds
    /// least of those that are always there, or else in the surplus. When there is none, [`Pool::room_news`] tells when
    /// to ask again.
    pub(crate) fn room(&self, path_bytes: usize) -> Result<Room, NoRoom> {
        let cost = self.0.config.path_cost(path_bytes);
        if let Some(room) = place(&self.connected(), cost) {
            return Ok(room);
        }
        // What is given back from now on is told; what was before that is seen.
        self.0.is_short.swap(true, Ordering::AcqRel);
        place(&self.connected(), cost).ok_or_else(|| self.0.why_no_room(cost))
    }

    /// Room for an ephemeral's path in this session, if it is connected and has any.
    pub(crate) fn room_in(&self, id: SessionId, path_bytes: usize) -> Option<Room> {
        let cost = self.0.config.path_cost(path_bytes);
        self.connected().iter().find(|owner| owner.id() == id)?.try_room(cost)
    }

    /// Room for the path of an ephemeral that is taken over from another session: for all of one session in the same of
    /// ours, as far as it has room. Its fence is written with each multi, and who shares a writer does not get in each
    /// other's way.
    pub(crate) fn room_for_taken(&self, path_bytes: usize, from: SessionId) -> Result<Room, NoRoom> {
        let mut usual = self.connected();
        usual.retain(|owner| !owner.is_surplus());
        let count = u64::try_from(usual.len()).unwrap_or(1).max(1);
        let index = usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(from) % count);
        let usual = usual.get(index.unwrap_or_default());
        let room = usual.and_then(|owner| owner.try_room(self.0.config.path_cost(path_bytes)));
        room.map_or_else(|| self.room(path_bytes), Ok)
    }

    /// A connected session, for requests that leave no ephemeral.
    pub(crate) fn any(&self) -> Result<Owner, Error> {
        let mut connected = self.connected();
        if connected.is_empty() {
            return Err(Error::NotSent);
        }
        Ok(connected.swap_remove(rand::random_range(0..connected.len())))
    }

    /// The shortest [`Owner::horizon`] of the sessions, or, before there is one, what is to be expected.
    pub(crate) fn horizon(&self) -> Duration {
        let owners = self.owners();
        let shortest = owners.borrow().iter().map(Owner::horizon).min();
        shortest.unwrap_or_else(|| horizon(self.0.config.session_timeout))
    }

    /// The connected sessions; without those whose server may hang, if there are others: their evidence is overdue, or an
    /// answer is.
    fn connected(&self) -> Vec<Owner> {
        let now = clock::now();
        let is_fresh = |owner: &Owner| now < *owner.evidence().borrow() + owner.overdue();
        let answers = |owner: &Owner| owner.session().silence() < PATIENCE;
        let owners = self.0.owners.borrow().clone();
        let mut connected: Vec<_> = owners.iter().filter(|owner| owner.session().is_up()).cloned().collect();
        for is_well in [&is_fresh as &dyn Fn(&Owner) -> bool, &answers] {
            if connected.iter().any(is_well) {
                connected.retain(is_well);
            }
        }
        connected
    }
}

/// Room for a path that costs so many bytes: in the emptiest of the sessions that are always there, or in the first of the
/// surplus.
fn place(connected: &[Owner], cost: usize) -> Option<Room> {
    let mut tried = Vec::new();
    loop {
        let fits = |owner: &&Owner| owner.path_bytes() + cost <= SESSION_PATH_BYTES && !tried.contains(&owner.id());
        let order = |owner: &&Owner| if owner.is_surplus() { (owner.0.slot, 0) } else { (0, owner.path_bytes()) };
        let best = connected.iter().filter(fits).min_by_key(order)?;
        if let Some(room) = best.try_room(cost) {
            return Some(room);
        }
        // Others were faster.
        tried.push(best.id());
    }
}

#[cfg(test)]
mod tests;
