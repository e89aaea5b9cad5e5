//! Reads the queue and the leases of one lock for all attempts that wait for it in one session.
//!
//! - [`QueueReader::look`] returns a reading that began after the call. Calls that arrive during a reading share the
//!   next: ten thousand clients that queue up at once cost a few lists, not ten thousand.
//! - [`QueueReader::recent`] is the last reading, at no cost.
//! - [`QueueReader::changed`] is for telling clients their place, and for finding that a place was taken from them.
//!   After a change the lists are read again, but only after a pause of a second, and of twenty times the duration of
//!   the reading. So clients are told of several changes at once, and that much late.
//!
//! The session that reads also owns the contenders. That makes a reading usable for the recipe: a session never sees
//! less than it saw before, and the leases are listed after the queue in which a contender was found to be the first.
//!
//! A contender that comes next after the last reading, by its digits, is added to that reading and reads nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::contenders::{NEAR, Queue, digits_after, is_worn_out, lease_name, next_digits};
use super::lock_node::is_durable;
use crate::locks::long_lists::{READ_CHUNK, go_through};
use crate::types::{NodePath, Zxid};
use crate::zk::layout::{LEASES, lock_queue};
use crate::zk::{self, OneShot, Session};

/// Number of callers that may wait for a reading; further callers wait for a place.
const CALLERS: usize = 1024;
/// Pause between two readings for [`QueueReader::changed`], beside [`SHOW_PAUSE_FACTOR`] times what a reading takes.
/// Smaller values load ZooKeeper where long queues move; larger ones tell clients later.
const SHOW_PAUSE: Duration = Duration::from_secs(1);
const SHOW_PAUSE_FACTOR: u32 = 20;
/// Maximum number of holders whose names clients are told.
const HOLDERS: usize = 100;
/// Maximum size of those names in bytes. Each waiting stream may have them unread: with more, ten thousand streams of
/// one connection keep a gigabyte.
const HOLDERS_BYTES: usize = 4 * 1024;

/// One reading: contenders, then leases.
#[derive(Debug, Default)]
pub(crate) struct QueueSnapshot {
    /// The contenders.
    pub(crate) queue: Queue,
    /// The transaction that last wrote the queue's node; `None`: it does not exist.
    pub(crate) queue_written: Option<Zxid>,
    /// The transaction that last wrote the lock node; `None`: it does not exist.
    pub(crate) lock: Option<Zxid>,
    /// The digits of the next contender, if none has come since; `None`: not known.
    next: Option<i32>,
    /// Whether the queue's node has to be replaced, because its sequence numbers run out.
    pub(crate) worn_out: bool,
    /// Whether the queue's node has children that are no contenders.
    pub(crate) queue_strays: bool,
    /// Number of children of the lock node, which all count as leases. `None`: not known any more.
    pub(crate) leases: Option<usize>,
    /// The names of the first holders, the earliest grant first.
    pub(crate) holders: Arc<[String]>,
    /// Whether the lock node has a durable child that is no lease.
    pub(crate) strays: bool,
}

impl QueueSnapshot {
    /// The reading with this contender, whose create was just answered. `None`: the lists have to be read.
    fn joined(&self, contender: &str) -> Option<Self> {
        let next = self.next.filter(|_| self.queue.len() < NEAR)?;
        let queue = self.queue.joined(contender, next)?;
        Some(Self { queue, next: digits_after(next), holders: self.holders.clone(), ..*self })
    }

    /// The reading after this contender has taken a lease. `None`: the lists have to be read.
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

type SnapshotReading = Result<Arc<QueueSnapshot>, zk::Error>;

/// A handle on the reader; its task ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct QueueReader {
    callers: mpsc::Sender<oneshot::Sender<SnapshotReading>>,
    show: watch::Sender<Arc<QueueSnapshot>>,
    shown: watch::Receiver<Arc<QueueSnapshot>>,
}

/// A handle that does not keep the reader's task alive.
#[derive(Debug, Clone)]
pub(crate) struct WeakQueueReader {
    callers: mpsc::WeakSender<oneshot::Sender<SnapshotReading>>,
    show: watch::Sender<Arc<QueueSnapshot>>,
}

impl WeakQueueReader {
    /// A handle, if the reader's task runs for another one.
    pub(crate) fn upgrade(&self) -> Option<QueueReader> {
        Some(QueueReader { callers: self.callers.upgrade()?, shown: self.show.subscribe(), show: self.show.clone() })
    }
}

impl QueueReader {
    /// A reader for the lock at `path` on `session`; the future does the work, and ends with the last handle.
    pub(crate) fn start(session: Session, path: NodePath) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (callers, calls) = mpsc::channel(CALLERS);
        let (show, shown) = watch::channel(Arc::default());
        let queue = lock_queue(&path);
        let task = Task { session, queue, path, show: show.clone(), known: HashMap::new(), watches: Vec::new() };
        (Self { callers, show, shown }, task.run(calls))
    }

    /// A handle for the table of readers.
    pub(crate) fn downgrade(&self) -> WeakQueueReader {
        WeakQueueReader { callers: self.callers.downgrade(), show: self.show.clone() }
    }

    /// A reading that begins after this call.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn look(&self) -> SnapshotReading {
        let (reply, reading) = oneshot::channel();
        self.callers.send(reply).await.map_err(|_| zk::Error::NotSent)?;
        reading.await.unwrap_or(Err(zk::Error::NotSent))
    }

    /// The last reading; empty before the first.
    pub(crate) fn recent(&self) -> Arc<QueueSnapshot> {
        self.shown.borrow().clone()
    }

    /// Adds a new contender to the last reading, at no cost, if no other has come since. Contenders ahead of it may
    /// have left.
    pub(crate) fn join(&self, contender: &str) -> Option<Arc<QueueSnapshot>> {
        self.change(|last| last.joined(contender))
    }

    /// Removes a contender that has taken a lease from the last reading.
    pub(crate) fn granted(&self, contender: &str) {
        self.change(|last| last.granted(contender));
    }

    fn change(&self, change: impl FnOnce(&QueueSnapshot) -> Option<QueueSnapshot>) -> Option<Arc<QueueSnapshot>> {
        let mut changed = None;
        self.show.send_if_modified(|last| {
            if let Some(snapshot) = change(last) {
                *last = Arc::new(snapshot);
                changed = Some(last.clone());
            }
            // This is no news to other waiters.
            false
        });
        changed
    }

    /// Waits for a reading that this handle has not returned yet, and returns it.
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn changed(&mut self) -> Arc<QueueSnapshot> {
        if self.shown.changed().await.is_err() {
            // The task has ended.
            std::future::pending::<()>().await;
        }
        self.shown.borrow_and_update().clone()
    }
}

struct Task {
    session: Session,
    path: NodePath,
    queue: NodePath,
    /// The last reading; receivers are woken only when it is time to show it.
    show: watch::Sender<Arc<QueueSnapshot>>,
    /// The leases of the last reading. The data of a lease never change.
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
                    // After a failed reading no watch would fire.
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
                    // A session that is over reads nothing any more.
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
            // All streams that were told them share the bytes.
            holders = before.holders.clone();
        }
        let leases = Some(count);
        let snapshot =
            QueueSnapshot { queue, queue_written, next, worn_out, queue_strays, lock, leases, holders, strays };
        let snapshot = Arc::new(snapshot);
        self.show.send_if_modified(|last| {
            *last = snapshot.clone();
            false
        });
        // Without a lock node there is no watch on it that would fire.
        self.watches = if lock.is_some() { vec![queue_watch, lock_watch] } else { vec![queue_watch] };
        Ok(snapshot)
    }

    /// Reads the new leases, and forgets the leases that are gone.
    async fn learn(&mut self, names: Vec<String>) -> Result<(), zk::Error> {
        let before = std::mem::take(&mut self.known);
        let (known, new) = go_through(before.len() + names.len(), move || still_known(before, names)).await;
        self.known = known;
        for chunk in new.chunks(READ_CHUNK) {
            let paths: Vec<_> = chunk.iter().map(|name| self.path.join(name)).collect();
            let reads = self.session.get_many(paths.iter().map(NodePath::as_str)).await?;
            for (name, read) in chunk.iter().zip(reads) {
                // It is gone already, or may not be read.
                let Ok(Some(read)) = read else { continue };
                let stray = is_durable(&read.stat) && self.is_stray(name).await?;
                let holder = lease_name(&read.data);
                self.known.insert(name.clone(), Lease { holder, czxid: read.stat.czxid, stray });
            }
        }
        Ok(())
    }

    /// Whether a durable child has no record that makes it a lease. One read covers both nodes, since they are created
    /// and deleted together.
    async fn is_stray(&self, name: &str) -> Result<bool, zk::Error> {
        let (lease, record) = (self.path.join(name), NodePath::trusted(LEASES).join(name));
        let reads = self.session.get_many([lease.as_str(), record.as_str()]).await?;
        Ok(matches!(reads.as_slice(), [Ok(Some(_)), Ok(None)]))
    }
}

/// Splits a list of names: the leases that are known already, and the new names.
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
        let read = QueueSnapshot { queue, next: Some(4), leases: Some(0), ..QueueSnapshot::default() };
        let joined = read.joined(NAMES[1]).unwrap();
        assert_eq!(joined.queue.names().collect::<Vec<_>>(), NAMES);
        assert_eq!((joined.next, joined.leases), (Some(5), Some(0)));
        let granted = joined.granted(NAMES[0]).unwrap();
        assert_eq!(granted.queue.names().collect::<Vec<_>>(), NAMES[1..]);
        assert_eq!((granted.next, granted.leases), (Some(5), None), "the next would take a lease beyond the limit");
        let unread = QueueSnapshot { next: None, ..read };
        assert!(unread.joined(NAMES[1]).is_none() && unread.granted(NAMES[1]).is_none());
    }
}
