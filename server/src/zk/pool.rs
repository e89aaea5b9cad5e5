//! The sessions that hold ephemerals: registrations, contenders and leases.
//!
//! Each has a fence, made before anything else, and a heartbeat: a write to the fence every eighth of its time-out, so
//! that there is always an answer that is evidence that the session lives. Closing one is left to ZooKeeper's time-out,
//! always: an ephemeral that was acknowledged must not go because a replica does.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rollcall_wire::{CreateMode, ErrorCode, Request, WatchMode};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::layout::{self, FENCES, LEASES};
use super::session::Session;
use super::watches::Watches;
use super::writer::{CommitError, Committed, Guard, Stats, Unit, Writer};
use super::{Config, Error, writer};
use crate::types::SessionId;

/// How many bytes of ephemeral paths one session holds at most. ZooKeeper writes them into one log record when the
/// session ends, and does not start again when that is over its frame limit (ZOOKEEPER-4306).
pub(crate) const SESSION_PATH_BYTES: usize = 512 * 1024;

/// A session that holds ephemerals. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Owner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: SessionId,
    session: Session,
    writer: Writer,
    path_bytes: AtomicUsize,
}

/// Room for an ephemeral's path in a session's budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Room {
    owner: Owner,
    bytes: usize,
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
        evidence + self.session().timeout().saturating_sub(self.heartbeat_interval() + 2 * self.tick())
    }

    /// How often the heartbeat writes.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.session().timeout() / 8
    }

    /// ZooKeeper's tick, which it does not tell: its own documents' ratio of it to a session time-out, at the least.
    fn tick(&self) -> Duration {
        self.session().timeout() / 10
    }

    /// Room for the path of an ephemeral that is in this session already, or is put back into it.
    pub(crate) fn room_for_its_own(&self, bytes: usize) -> Room {
        self.0.path_bytes.fetch_add(bytes, Ordering::AcqRel);
        Room { owner: self.clone(), bytes }
    }

    fn try_room(&self, bytes: usize) -> Option<Room> {
        let fits = |held: usize| (held + bytes <= SESSION_PATH_BYTES || held == 0).then_some(held + bytes);
        let reserved = self.0.path_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        reserved.is_ok().then(|| Room { owner: self.clone(), bytes })
    }
}

impl Room {
    /// The session that has the room.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.owner.0.path_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The sessions that stand now, by slot.
pub(crate) type Owners = Arc<Vec<Owner>>;

/// A handle on the pool.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    owners: watch::Receiver<Owners>,
    grow: Arc<Notify>,
}

impl Pool {
    /// Starts the pool as a task of `tasks`.
    pub(super) fn start(config: &Arc<Config>, tasks: &mut JoinSet<()>) -> Self {
        let (sender, owners) = watch::channel(Owners::default());
        let grow = Arc::new(Notify::new());
        tasks.spawn(run(config.clone(), Arc::new(sender), grow.clone()));
        Self { owners, grow }
    }

    /// The sessions that stand now; one that expires leaves the list, and its ephemerals are gone.
    pub(crate) fn owners(&self) -> watch::Receiver<Owners> {
        self.owners.clone()
    }

    /// The session with this id, if it is one of ours and stands.
    pub(crate) fn owner(&self, id: SessionId) -> Option<Owner> {
        self.owners.borrow().iter().find(|owner| owner.id() == id).cloned()
    }

    /// Room for an ephemeral's path in the connected session that holds least. `None`: none is connected, or all are
    /// full and another is being opened; [`Pool::owners`] changes when it is there.
    pub(crate) fn room(&self, path_bytes: usize) -> Option<Room> {
        let connected = self.connected();
        let least = connected.iter().min_by_key(|owner| owner.0.path_bytes.load(Ordering::Acquire))?;
        let room = least.try_room(path_bytes);
        if room.is_none() {
            self.grow.notify_one();
        }
        room
    }

    /// Room for an ephemeral's path in this session, if it is connected and has any.
    pub(crate) fn room_in(&self, id: SessionId, path_bytes: usize) -> Option<Room> {
        self.connected().iter().find(|owner| owner.id() == id)?.try_room(path_bytes)
    }

    /// Room for the path of an ephemeral that is taken over from another session: for all of one session in the same of
    /// ours, as far as it has room. Its fence is written with each multi, and who shares a writer does not get in each
    /// other's way.
    pub(crate) fn room_for_taken(&self, path_bytes: usize, from: SessionId) -> Option<Room> {
        let connected = self.connected();
        let count = u64::try_from(connected.len()).unwrap_or(1).max(1);
        let index = usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(from) % count);
        let usual = connected.get(index.unwrap_or_default())?;
        usual.try_room(path_bytes).or_else(|| self.room(path_bytes))
    }

    /// A connected session, for requests that leave no ephemeral.
    pub(crate) fn any(&self) -> Result<Owner, Error> {
        let mut connected = self.connected();
        if connected.is_empty() {
            return Err(Error::NotSent);
        }
        Ok(connected.swap_remove(rand::random_range(0..connected.len())))
    }

    /// The connected sessions; without those whose evidence is overdue, if there are others: their server may hang.
    fn connected(&self) -> Vec<Owner> {
        let now = Instant::now();
        let is_fresh = |owner: &Owner| now < *owner.evidence().borrow() + owner.overdue();
        let owners = self.owners.borrow().clone();
        let mut connected: Vec<_> = owners.iter().filter(|owner| owner.session().is_up()).cloned().collect();
        if connected.iter().any(is_fresh) {
            connected.retain(is_fresh);
        }
        connected
    }
}

async fn run(config: Arc<Config>, owners: Arc<watch::Sender<Owners>>, grow: Arc<Notify>) {
    let mut slots = JoinSet::new();
    for _ in 0..config.sessions.max(1) {
        slots.spawn(keep_slot(config.clone(), owners.clone()));
    }
    loop {
        tokio::select! {
            () = grow.notified() => {
                // Calls that come while the new session is on its way ask for one, not for one each.
                let before = owners.borrow().len();
                if before == slots.len() {
                    tracing::info!(sessions = before + 1, "opening another zookeeper session");
                    slots.spawn(keep_slot(config.clone(), owners.clone()));
                }
            }
            // A slot never ends but by a panic, which is the process's end.
            Some(_) = slots.join_next() => return,
        }
    }
}

/// Keeps one session after the other in the list.
async fn keep_slot(config: Arc<Config>, owners: Arc<watch::Sender<Owners>>) {
    loop {
        let (session, life) = Session::start(config.clone(), Arc::new(Watches::default()));
        let serve = async {
            if let Some(owner_id) = prepare(&session, &config).await {
                own(session.clone(), owner_id, &owners).await;
            }
            // The session is over; so will be its life.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = life => {}
            () = serve => {}
        }
        let id = session.id();
        owners.send_modify(|owners| Arc::make_mut(owners).retain(|owner| owner.id() != id));
    }
}

/// Makes the znodes that are ours, and the session's fence; `None` when the session expired meanwhile.
async fn prepare(session: &Session, config: &Config) -> Option<SessionId> {
    loop {
        if !session.connected().await {
            return None;
        }
        match try_prepare(session, config).await {
            Ok(()) => return Some(session.id()),
            Err(Error::SessionExpired) => return None,
            Err(error) => {
                tracing::warn!(%error, "can't prepare a zookeeper session");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn try_prepare(session: &Session, config: &Config) -> Result<(), Error> {
    let mut chroot = String::new();
    for segment in config.chroot.split('/').skip(1) {
        chroot = format!("{chroot}/{segment}");
        // Looked at first: who may use what stands need not be allowed to create it.
        let look = Request::Exists { path: chroot.clone(), watch: false };
        if session.submit_outer(look).await.is_ok() {
            continue;
        }
        let create = super::calls::create(&chroot, Bytes::new(), CreateMode::Persistent);
        exists_is_fine(session.submit_outer(create).await.map(drop))?;
    }
    for path in [crate::types::RESERVED_ROOT, FENCES, LEASES] {
        exists_is_fine(session.create(path, Bytes::new(), CreateMode::Persistent).await.map(drop))?;
    }
    // The version check: without persistent watches (before 3.6) nothing that Rollcall promises can be kept.
    let probe = Request::AddWatch { path: LEASES.to_owned(), mode: WatchMode::Persistent };
    match session.submit(probe).await {
        Err(Error::Refused(ErrorCode::Unimplemented)) => {
            tracing::error!("this zookeeper has no persistent watches: rollcall needs zookeeper 3.6 or newer");
            return Err(Error::Refused(ErrorCode::Unimplemented));
        }
        answer => drop(answer?),
    }
    session.submit(Request::RemoveWatches { path: LEASES.to_owned() }).await?;
    let fence = layout::fence(session.id());
    // It stands already when the answer to an earlier try was lost.
    exists_is_fine(session.create(&fence, Bytes::new(), CreateMode::Ephemeral).await.map(drop))
}

fn exists_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Refused(ErrorCode::NodeExists)) => Ok(()),
        result => result,
    }
}

/// Puts the session into the list, and keeps its writer and its heartbeat going.
async fn own(session: Session, id: SessionId, owners: &watch::Sender<Owners>) {
    let (writer, writing) = Writer::start(session.clone(), layout::fence(id));
    let owner = Owner(Arc::new(Inner { id, session, writer, path_bytes: AtomicUsize::new(0) }));
    owners.send_modify(|owners| Arc::make_mut(owners).push(owner.clone()));
    tokio::select! {
        () = writing => {}
        () = heartbeat(&owner) => {}
    }
}

/// Writes to the fence, an interval after the last answer; at once after every connect.
async fn heartbeat(owner: &Owner) {
    let mut link = owner.session().link();
    while owner.session().connected().await {
        link.mark_unchanged();
        let moves = owner.writer().moves();
        match owner.writer().commit(Unit { guard: Guard::Own(moves), ops: Vec::new() }).await {
            Ok(_) => tokio::select! {
                () = tokio::time::sleep(owner.heartbeat_interval()) => {}
                _ = link.changed() => {}
            },
            Err(CommitError::Zk(Error::SessionExpired)) => return,
            // The fence moved, or the connection did: again, once the writer knows more.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
