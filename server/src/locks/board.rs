//! What all that wait for one lock in one session look at: one reading of the queue and the leases serves them all.
//!
//! - [`Board::look`] gives a reading that began after the call. Calls that come while one is under way share the next:
//!   ten thousand that queue up at once cost a few lists, not ten thousand.
//! - [`Board::recent`] is the last reading, at no cost.
//! - [`Board::changed`] is for telling clients their place, and for finding that it was taken from them. When a thing has
//!   changed it is read again, but only after a pause of a second, and twenty times what reading took: so much late, and
//!   merged, is what clients are told.
//!
//! One session reads it and owns the contenders. That is what makes a reading usable for the recipe: a session never
//! sees less than it saw before, and a lease is listed after the queue in which one was found to be the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::node::is_durable;
use super::queue::{NEAR, Queue, digits_after, is_worn_out, lease_name, next_digits};
use super::{READ_CHUNK, go_through};
use crate::types::{NodePath, Zxid};
use crate::zk::layout::{LEASES, lock_queue};
use crate::zk::{self, OneShot, Session};

/// How many callers may wait for a reading; more wait until there is room.
const CALLERS: usize = 1024;
const SHOW_PAUSE: Duration = Duration::from_secs(1);
const SHOW_PAUSE_FACTOR: u32 = 20;
/// Maximum number of holders that are told by name.
const HOLDERS: usize = 100;
/// Maximum size of the names of holders that are told, in bytes. Each stream that waits may have them unread: with more,
/// ten thousand streams of one connection keep a gigabyte.
const HOLDERS_BYTES: usize = 4 * 1024;

/// One reading: contenders, then leases.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Those who wait.
    pub(super) queue: Queue,
    /// The transaction that last wrote the node whose children they are; `None` when there is none.
    pub(super) queue_written: Option<Zxid>,
    /// The transaction that last wrote the lock node; `None` when there is none.
    pub(super) lock: Option<Zxid>,
    /// The digits of who comes next, if nobody has come since; `None`: not known.
    next: Option<i32>,
    /// Whether the queue's node is to be replaced: its sequence numbers run out.
    pub(super) worn_out: bool,
    /// Whether the queue's node has children that are no contenders.
    pub(super) queue_strays: bool,
    /// How many children the lock node has: all of them count as leases. `None`: not known any more.
    pub(super) leases: Option<usize>,
    /// The first holders' names, the earliest grant first.
    pub(super) holders: Arc<[String]>,
    /// Whether a durable child stands that is no lease of ours.
    pub(super) strays: bool,
}

impl Snapshot {
    /// How things stand once this contender has come. `None`: they have to be read.
    fn joined(&self, contender: &str) -> Option<Self> {
        let next = self.next.filter(|_| self.queue.len() < NEAR)?;
        let queue = self.queue.joined(contender, next)?;
        Some(Self { queue, next: digits_after(next), holders: self.holders.clone(), ..*self })
    }

    /// How things stand once this contender has taken a lease. `None`: they have to be read.
    fn granted(&self, contender: &str) -> Option<Self> {
        let queue = if self.queue.len() <= NEAR { self.queue.left(contender)? } else { return None };
        Some(Self { queue, leases: None, holders: self.holders.clone(), ..*self })
    }
}

#[derive(Debug, Clone)]
struct Lease {
    holder: String,
    czxid: i64,
    stray: bool,
}

type SnapshotReading = Result<Arc<Snapshot>, zk::Error>;

/// A handle of one who waits; when the last is dropped the board's task ends.
#[derive(Debug, Clone)]
pub(super) struct Board {
    callers: mpsc::Sender<oneshot::Sender<SnapshotReading>>,
    show: watch::Sender<Arc<Snapshot>>,
    shown: watch::Receiver<Arc<Snapshot>>,
}

/// What keeps a board findable without keeping it alive.
#[derive(Debug, Clone)]
pub(super) struct WeakBoard {
    callers: mpsc::WeakSender<oneshot::Sender<SnapshotReading>>,
    show: watch::Sender<Arc<Snapshot>>,
}

impl WeakBoard {
    /// The board, if anybody uses it.
    pub(super) fn upgrade(&self) -> Option<Board> {
        Some(Board { callers: self.callers.upgrade()?, shown: self.show.subscribe(), show: self.show.clone() })
    }
}

impl Board {
    /// A board for the lock at `path` on `session`; the future does the work, and ends with the last handle.
    pub(super) fn start(session: Session, path: NodePath) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (callers, calls) = mpsc::channel(CALLERS);
        let (show, shown) = watch::channel(Arc::default());
        let queue = lock_queue(&path);
        let task = Task { session, queue, path, show: show.clone(), known: HashMap::new(), watches: Vec::new() };
        (Self { callers, show, shown }, task.run(calls))
    }

    /// For the table of boards.
    pub(super) fn downgrade(&self) -> WeakBoard {
        WeakBoard { callers: self.callers.downgrade(), show: self.show.clone() }
    }

    /// A reading that begins after this call.
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn look(&self) -> SnapshotReading {
        let (reply, reading) = oneshot::channel();
        self.callers.send(reply).await.map_err(|_| zk::Error::NotSent)?;
        reading.await.unwrap_or(Err(zk::Error::NotSent))
    }

    /// The last reading; empty before the first.
    pub(super) fn recent(&self) -> Arc<Snapshot> {
        self.shown.borrow().clone()
    }

    /// How things stand once this contender has come, at no cost, if nobody else has come since the last reading. Those
    /// ahead may have left.
    pub(super) fn join(&self, contender: &str) -> Option<Arc<Snapshot>> {
        self.change(|last| last.joined(contender))
    }

    /// Takes a contender that was granted a lease out of the last reading.
    pub(super) fn granted(&self, contender: &str) {
        self.change(|last| last.granted(contender));
    }

    fn change(&self, change: impl FnOnce(&Snapshot) -> Option<Snapshot>) -> Option<Arc<Snapshot>> {
        let mut changed = None;
        self.show.send_if_modified(|last| {
            if let Some(snapshot) = change(last) {
                *last = Arc::new(snapshot);
                changed = Some(last.clone());
            }
            // Not worth waking anybody.
            false
        });
        changed
    }

    /// Waits until there is something new to tell that this handle has not told yet, and gives it.
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn changed(&mut self) -> Arc<Snapshot> {
        if self.shown.changed().await.is_err() {
            // Nothing is shown any more.
            std::future::pending::<()>().await;
        }
        self.shown.borrow_and_update().clone()
    }
}

struct Task {
    session: Session,
    path: NodePath,
    queue: NodePath,
    /// Holds the last reading; receivers are woken only when it is time to show it.
    show: watch::Sender<Arc<Snapshot>>,
    /// The leases of the last reading. What a lease's node holds never changes.
    known: HashMap<String, Lease>,
    /// Fire when the last reading is out of date.
    watches: Vec<OneShot>,
}

impl Task {
    async fn run(mut self, mut calls: mpsc::Receiver<oneshot::Sender<SnapshotReading>>) {
        let mut show_at = Instant::now();
        let mut unshown = false;
        let session = self.session.clone();
        loop {
            let showable = async {
                tokio::time::sleep_until(show_at).await;
                session.connected().await
            };
            tokio::select! {
                call = calls.recv() => {
                    let Some(first) = call else { break };
                    let mut waiting = vec![first];
                    while let Ok(next) = calls.try_recv() {
                        waiting.push(next);
                    }
                    let reading = self.read().await;
                    for reply in waiting {
                        drop(reply.send(reading.clone()));
                    }
                    // After a failure nothing would tell of a change.
                    unshown = true;
                    if reading.is_err() {
                        show_at = show_at.max(Instant::now() + SHOW_PAUSE);
                    }
                }
                () = first_of(&mut self.watches), if !self.watches.is_empty() => {
                    self.watches.clear();
                    unshown = true;
                    show_at = show_at.max(Instant::now() + Duration::from_millis(20));
                }
                connected = showable, if unshown => {
                    let began = Instant::now();
                    // A reading whose watches have not fired is still true.
                    let read = !self.watches.is_empty() || self.read().await.is_ok();
                    if read {
                        self.show.send_modify(|_| {});
                    }
                    // A session that is over has nothing more to show.
                    unshown = !read && connected;
                    let took = if read { began.elapsed() } else { Duration::ZERO };
                    show_at = Instant::now() + SHOW_PAUSE + took * SHOW_PAUSE_FACTOR;
                }
            }
        }
        self.watches.clear();
        self.session.watches().forget_closed(self.path.as_str());
        self.session.watches().forget_closed(self.queue.as_str());
    }

    async fn read(&mut self) -> SnapshotReading {
        self.watches.clear();
        // Polled in this order, sent in this order: the queue is never read later than the leases.
        let contenders = self.session.watch_children(&self.queue);
        let leases = self.session.watch_children(&self.path);
        let (contenders, leases) = futures_util::future::join(contenders, leases).await;
        let ((contenders, queue_watch), (leases, lock_watch)) = (contenders?, leases?);
        let queue_written = contenders.as_ref().map(|(_, stat)| Zxid(stat.mzxid));
        let next = contenders.as_ref().and_then(|(_, stat)| next_digits(stat));
        let worn_out = contenders.as_ref().is_some_and(|(_, stat)| is_worn_out(stat));
        let names = contenders.map(|(names, _)| names).unwrap_or_default();
        let children = names.len();
        let queue = go_through(children, move || Queue::of(names)).await;
        let queue_strays = queue.len() < children;
        let lock = leases.as_ref().map(|(_, stat)| Zxid(stat.mzxid));
        let names = leases.map(|(names, _)| names).unwrap_or_default();
        let count = names.len();
        self.learn(names).await?;
        let strays = self.known.values().any(|lease| lease.stray);
        let mut holders = first_holders(self.known.values());
        let before = self.show.borrow().clone();
        if holders == before.holders {
            // Shared by all who were told them.
            holders = before.holders.clone();
        }
        let leases = Some(count);
        let snapshot = Snapshot { queue, queue_written, next, worn_out, queue_strays, lock, leases, holders, strays };
        let snapshot = Arc::new(snapshot);
        self.show.send_if_modified(|last| {
            *last = snapshot.clone();
            false
        });
        // A lock that does not stand yet has no watch that would fire.
        self.watches = if lock.is_some() { vec![queue_watch, lock_watch] } else { vec![queue_watch] };
        Ok(snapshot)
    }

    /// Reads the leases that are new, and forgets those that are gone.
    async fn learn(&mut self, names: Vec<String>) -> Result<(), zk::Error> {
        let before = std::mem::take(&mut self.known);
        let (known, new) = go_through(before.len() + names.len(), move || still_known(before, names)).await;
        self.known = known;
        for chunk in new.chunks(READ_CHUNK) {
            let paths: Vec<_> = chunk.iter().map(|name| self.path.join(name)).collect();
            let reads = self.session.get_many(paths.iter().map(NodePath::as_str)).await?;
            for (name, read) in chunk.iter().zip(reads) {
                // One that is gone already, or that may not be read.
                let Ok(Some(read)) = read else { continue };
                let stray = is_durable(&read.stat) && self.is_stray(name).await?;
                let holder = lease_name(&read.data);
                self.known.insert(name.clone(), Lease { holder, czxid: read.stat.czxid, stray });
            }
        }
        Ok(())
    }

    /// Whether a durable child has no record that makes it a lease. Both come and go together, so both are read so.
    async fn is_stray(&self, name: &str) -> Result<bool, zk::Error> {
        let (lease, record) = (self.path.join(name), NodePath::trusted(LEASES).join(name));
        let reads = self.session.get_many([lease.as_str(), record.as_str()]).await?;
        Ok(matches!(reads.as_slice(), [Ok(Some(_)), Ok(None)]))
    }
}

/// Of the leases that were known those that are listed, and the names that are new.
fn still_known(mut before: HashMap<String, Lease>, names: Vec<String>) -> (HashMap<String, Lease>, Vec<String>) {
    let mut known = HashMap::with_capacity(names.len());
    let mut new = Vec::new();
    for name in names {
        match before.remove(&name) {
            Some(lease) => drop(known.insert(name, lease)),
            None => new.push(name),
        }
    }
    (known, new)
}

/// The names of the first holders, the earliest grant first.
fn first_holders<'a>(leases: impl Iterator<Item = &'a Lease>) -> Arc<[String]> {
    let mut leases: Vec<_> = leases.collect();
    if leases.len() > HOLDERS {
        leases.select_nth_unstable_by_key(HOLDERS, |lease| lease.czxid);
        leases.truncate(HOLDERS);
    }
    leases.sort_unstable_by_key(|lease| lease.czxid);
    let mut room = HOLDERS_BYTES;
    let fits = |lease: &&Lease| {
        let left = room.checked_sub(lease.holder.len());
        room = left.unwrap_or_default();
        left.is_some()
    };
    leases.into_iter().take_while(fits).map(|lease| lease.holder.clone()).collect()
}

/// Waits until one of the watches fires.
async fn first_of(watches: &mut [OneShot]) {
    let (_fired, ..) = futures_util::future::select_all(watches).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a__lock__0000000003", "b__lock__0000000004"];

    #[test]
    fn the_first_holders_are_those_of_the_earliest_grants() {
        let lease = |czxid: i64| Lease { holder: czxid.to_string(), czxid, stray: false };
        for count in [0, 3, HOLDERS, HOLDERS + 1, 5 * HOLDERS] {
            let leases: Vec<_> = (0..i64::try_from(count).unwrap()).rev().map(lease).collect();
            let expected: Vec<_> = (0..count.min(HOLDERS)).map(|number| number.to_string()).collect();
            assert_eq!(first_holders(leases.iter())[..], expected);
        }
    }

    #[test]
    fn the_names_of_the_first_holders_are_few_bytes_however_long_they_are() {
        let lease = |czxid: i64| Lease { holder: lease_name(&[0xff; 1024]), czxid, stray: false };
        let leases: Vec<_> = (0..100).map(lease).collect();
        let bytes: usize = first_holders(leases.iter()).iter().map(String::len).sum();
        assert!((1..=HOLDERS_BYTES).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_reading_goes_on_with_who_comes_next_and_knows_no_more_of_room_after_a_grant() {
        let queue = Queue::of(vec![NAMES[0].to_owned()]);
        let read = Snapshot { queue, next: Some(4), leases: Some(0), ..Snapshot::default() };
        let joined = read.joined(NAMES[1]).unwrap();
        assert_eq!(joined.queue.names().collect::<Vec<_>>(), NAMES);
        assert_eq!((joined.next, joined.leases), (Some(5), Some(0)));
        let granted = joined.granted(NAMES[0]).unwrap();
        assert_eq!(granted.queue.names().collect::<Vec<_>>(), NAMES[1..]);
        assert_eq!((granted.next, granted.leases), (Some(5), None), "the next would take a lease beyond the limit");
        let unread = Snapshot { next: None, ..read };
        assert!(unread.joined(NAMES[1]).is_none() && unread.granted(NAMES[1]).is_none());
    }
}
