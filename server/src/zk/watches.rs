//! The destinations of a session's watch events.
//!
//! Persistent watches: events merge in a [`Mailbox`], into one state for each path, so that a slow reader costs bounded
//! memory. One-shot watches: a [`OneShot`] that resolves once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
pub(crate) use rollcall_wire::EventKind;
use tokio::sync::{Notify, oneshot};

use super::horizon::Horizon;
use crate::types::{NodePath, Zxid, ancestors};

/// Maximum number of unread paths in one mailbox. More are replaced by «read everything again».
const MAILBOX_PATHS: usize = 65_536;

/// Number of paths whose one-shot watches nobody waits for that every sweep leaves room for.
const UNSWEPT_WATCHES: usize = 1024;

/// An event of one node.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// The kind of the event.
    pub(crate) kind: EventKind,
    /// The node's path.
    pub(crate) path: Arc<str>,
    /// The transaction, if ZooKeeper sends it: 3.9 and newer do. It tells a registration's own writes from those of
    /// others; without it each costs a read.
    pub(crate) zxid: Option<Zxid>,
}

/// The news for a reader of a mailbox.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// These watched paths, with everything that the watch covers, have to be read again: the watch was just set, or
    /// set again after a lost connection, or too many events came to list them.
    pub(crate) resync: HashSet<NodePath>,
    /// The merged events since the last batch, by node.
    pub(crate) events: HashMap<Arc<str>, NodeEvents>,
    /// The number of the last arrival before the batch was taken. All arrivals up to it are in this batch or an earlier
    /// one.
    pub(crate) upto: u64,
}

/// The merged events of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NodeEvents {
    /// The node was created.
    pub(crate) created: bool,
    /// The largest transaction that created it, if ZooKeeper sends transactions.
    pub(crate) created_by: Option<Zxid>,
    /// The node was deleted.
    pub(crate) deleted: bool,
    /// The node's data was written.
    pub(crate) data_changed: bool,
    /// The largest transaction of the events, if ZooKeeper sends transactions.
    pub(crate) zxid: Option<Zxid>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.resync.is_empty() && self.events.is_empty()
    }
}

/// Collects the events of its subscriptions until they are read.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    unread: Mutex<Batch>,
    /// Number of events and resyncs that have arrived. Written under the lock.
    arrivals: AtomicU64,
    news: Notify,
}

impl Mailbox {
    /// Waits for news, and takes all of it. For one reader at a time.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready.
    pub(crate) async fn next(&self) -> Batch {
        loop {
            let batch = self.take();
            if !batch.is_empty() {
                return batch;
            }
            self.news.notified().await;
        }
    }

    /// Takes the news so far, which may be empty.
    pub(crate) fn take(&self) -> Batch {
        let mut unread = self.unread.lock();
        Batch { upto: self.arrivals(), ..std::mem::take(&mut *unread) }
    }

    /// The number of the last arrival.
    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Acquire)
    }

    fn arrived(&self) {
        self.arrivals.fetch_add(1, Ordering::Release);
    }

    /// Puts back a batch that could not be handed on.
    pub(super) fn put_back(&self, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        let mut unread = self.unread.lock();
        unread.resync.extend(batch.resync);
        for (path, seen) in batch.events {
            let merged = unread.events.entry(path).or_default();
            merged.created |= seen.created;
            merged.created_by = merged.created_by.max(seen.created_by);
            merged.deleted |= seen.deleted;
            merged.data_changed |= seen.data_changed;
            merged.zxid = merged.zxid.max(seen.zxid);
        }
        drop(unread);
        self.news.notify_one();
    }

    pub(super) fn resync(&self, path: &NodePath) {
        let mut unread = self.unread.lock();
        unread.resync.insert(path.clone());
        self.arrived();
        drop(unread);
        self.news.notify_one();
    }

    fn push(&self, watched: &NodePath, event: &Event) {
        let mut unread = self.unread.lock();
        self.arrived();
        if unread.resync.contains(watched) {
            // Everything is read again anyway.
            return;
        }
        if unread.events.len() >= MAILBOX_PATHS && !unread.events.contains_key(&event.path) {
            unread.resync.insert(watched.clone());
        } else {
            let seen = unread.events.entry(event.path.clone()).or_default();
            match event.kind {
                EventKind::Created => {
                    seen.created = true;
                    seen.created_by = seen.created_by.max(event.zxid);
                }
                EventKind::Deleted => seen.deleted = true,
                EventKind::DataChanged => seen.data_changed = true,
                EventKind::ChildrenChanged | EventKind::Other(_) => {}
            }
            seen.zxid = seen.zxid.max(event.zxid);
        }
        drop(unread);
        self.news.notify_one();
    }
}

/// The reason why the wait on a one-shot watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fired {
    /// An event: read again.
    Event(EventKind),
    /// The connection was lost, and the watch with it: read again on the next connection.
    ConnectionLost,
}

/// A one-shot watch, which resolves once. If it is dropped, it is forgotten here, and ZooKeeper sends one event in
/// vain.
pub(crate) type OneShot = oneshot::Receiver<Fired>;

/// The table of one session's watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    inner: Mutex<Inner>,
    changed: Notify,
    horizon: Horizon,
}

#[derive(Debug, Default)]
struct Inner {
    /// One-shot watches by path.
    once: HashMap<Arc<str>, Vec<oneshot::Sender<Fired>>>,
    /// Number of paths above which the watches that nobody waits for are swept out.
    sweep_above: usize,
    /// Recursive watches by the watched path: the mailboxes, each with the number of its subscription.
    recursive: HashMap<NodePath, Vec<(u64, Arc<Mailbox>)>>,
    /// The recursive watches that this connection has set.
    established: HashSet<NodePath>,
    /// The watches that are wanted, but neither set on this connection nor being set.
    missing: HashSet<NodePath>,
    /// The watches that are set, but that nobody wants.
    surplus: HashSet<NodePath>,
    /// The number of the present connection, if there is one.
    connection: Option<u64>,
    last_connection: u64,
    next_id: u64,
}

impl Watches {
    /// Registers a one-shot watch. Call this before the read that sets it is sent.
    pub(crate) fn once(&self, path: &str) -> OneShot {
        let (fire, watch) = oneshot::channel();
        let mut inner = self.inner.lock();
        if inner.once.len() > inner.sweep_above {
            // Paths that are never used again would stay for ever.
            inner.once.retain(|_, waiting| {
                waiting.retain(|waiter| !waiter.is_closed());
                !waiting.is_empty()
            });
            inner.sweep_above = 2 * inner.once.len() + UNSWEPT_WATCHES;
        }
        let waiting = inner.once.entry(path.into()).or_default();
        if waiting.len() == waiting.capacity() {
            // If the node does not change, no event ever removes the watches that nobody waits for.
            waiting.retain(|waiter| !waiter.is_closed());
            waiting.reserve(waiting.len());
        }
        waiting.push(fire);
        watch
    }

    /// Drops the one-shot watches of a path that nobody waits for any more.
    pub(crate) fn forget_closed(&self, path: &str) {
        let mut inner = self.inner.lock();
        if let Some(waiting) = inner.once.get_mut(path) {
            waiting.retain(|other| !other.is_closed());
            if waiting.is_empty() {
                inner.once.remove(path);
            }
        }
    }

    /// Adds a subscription, and returns its number. Its mailbox gets a resync as soon as the watch is set, which may be
    /// at once.
    pub(super) fn subscribe(&self, path: &NodePath, mailbox: &Arc<Mailbox>) -> u64 {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let subscribers = inner.recursive.entry(path.clone()).or_default();
        subscribers.push((id, mailbox.clone()));
        let is_first = subscribers.len() == 1;
        if inner.established.contains(path) {
            inner.surplus.remove(path);
            mailbox.resync(path);
        } else if is_first {
            inner.missing.insert(path.clone());
            self.changed.notify_one();
        }
        id
    }

    /// Removes a subscription.
    pub(super) fn unsubscribe(&self, path: &NodePath, id: u64) {
        let mut inner = self.inner.lock();
        let Some(subscribers) = inner.recursive.get_mut(path) else { return };
        subscribers.retain(|(other, _)| *other != id);
        if subscribers.is_empty() {
            inner.recursive.remove(path);
            inner.missing.remove(path);
            if inner.established.contains(path) {
                inner.surplus.insert(path.clone());
                self.changed.notify_one();
            }
        }
    }

    /// Waits until [`Watches::differences`] may have something to do.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes [`Watches::changed`] return once more.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Some of the recursive watches to set, and some of those to remove: at most this many of each. If there may be
    /// more, [`Watches::changed`] returns once more. From now on they count as being set, and as removed. The cost does
    /// not depend on the number of watches.
    pub(super) fn differences(&self, most: usize) -> (Vec<NodePath>, Vec<NodePath>) {
        let mut inner = self.inner.lock();
        let Inner { missing, surplus, established, .. } = &mut *inner;
        let missing: Vec<_> = missing.extract_if(|_| true).take(most).collect();
        let surplus: Vec<_> = surplus.extract_if(|_| true).take(most).collect();
        for path in &surplus {
            established.remove(path);
        }
        if missing.len() == most || surplus.len() == most {
            self.changed.notify_one();
        }
        (missing, surplus)
    }

    /// A watch was not set as intended, so it is missing again.
    pub(super) fn still_missing(&self, path: &NodePath) {
        let mut inner = self.inner.lock();
        if inner.recursive.contains_key(path) && !inner.established.contains(path) {
            inner.missing.insert(path.clone());
        }
    }

    /// A connection was made; returns its number, which is larger than that of any connection before, even of an
    /// earlier session.
    pub(super) fn connection_made(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.last_connection += 1;
        inner.connection = Some(inner.last_connection);
        self.horizon.begin(inner.last_connection);
        inner.last_connection
    }

    /// An answer was received that is behind this transaction; everything before it has been dispatched.
    pub(super) fn reached(&self, zxid: Zxid) {
        self.horizon.reach(zxid);
    }

    /// The present connection, and the transaction up to which all its events are in the mailboxes.
    pub(super) fn horizon(&self) -> Option<(u64, Zxid)> {
        self.horizon.get()
    }

    /// The connection that holds the recursive watch on a path, if one does.
    pub(super) fn established_on(&self, path: &NodePath) -> Option<u64> {
        let inner = self.inner.lock();
        inner.connection.filter(|_| inner.established.contains(path))
    }

    /// The watch on a path was set on this connection: all its subscriptions read everything. If the connection was
    /// lost meanwhile, so was the watch.
    pub(super) fn established(&self, path: &NodePath, connection: u64) {
        let mut inner = self.inner.lock();
        if inner.connection != Some(connection) {
            return;
        }
        inner.established.insert(path.clone());
        inner.missing.remove(path);
        if !inner.recursive.contains_key(path) {
            // The last subscriber has gone meanwhile.
            inner.surplus.insert(path.clone());
            self.changed.notify_one();
        }
        for (_, mailbox) in inner.recursive.get(path).into_iter().flatten() {
            mailbox.resync(path);
        }
    }

    /// Hands an event to all watches that it concerns.
    pub(super) fn dispatch(&self, event: &Event) {
        let mut inner = self.inner.lock();
        if let Some(waiting) = inner.once.remove(&event.path) {
            for waiter in waiting {
                // A caller that no longer waits needs no answer.
                let _ = waiter.send(Fired::Event(event.kind));
            }
        }
        if event.kind == EventKind::ChildrenChanged || inner.recursive.is_empty() {
            return;
        }
        for path in ancestors(&event.path) {
            if let Some((watched, subscribed)) = inner.recursive.get_key_value(path) {
                subscribed.iter().for_each(|(_, mailbox)| mailbox.push(watched, event));
            }
        }
    }

    /// One-shot watches end with their connection; persistent ones are set again by the task that keeps them.
    pub(super) fn connection_lost(&self) {
        let mut inner = self.inner.lock();
        self.horizon.end();
        inner.connection = None;
        inner.established.clear();
        inner.surplus.clear();
        inner.missing = inner.recursive.keys().cloned().collect();
        for (_, waiting) in inner.once.drain() {
            for waiter in waiting {
                let _ = waiter.send(Fired::ConnectionLost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, kind: EventKind) -> Event {
        Event { kind, path: path.into(), zxid: None }
    }

    #[tokio::test]
    async fn events_reach_every_ancestor_that_is_watched() {
        let watches = Watches::default();
        let (root, parent, other) = (Arc::default(), Arc::default(), Arc::default());
        watches.subscribe(&NodePath::trusted("/"), &root);
        watches.subscribe(&NodePath::trusted("/a"), &parent);
        watches.subscribe(&NodePath::trusted("/ab"), &other);
        watches.dispatch(&event("/a/b", EventKind::Created));
        assert!(root.next().await.events["/a/b"].created);
        assert!(parent.next().await.events["/a/b"].created);
        assert!(other.take().is_empty());
    }

    #[tokio::test]
    async fn a_mailbox_that_is_not_read_stays_bounded_and_asks_for_a_resync() {
        let watches = Watches::default();
        let mailbox = Arc::default();
        let path = NodePath::trusted("/a");
        watches.subscribe(&path, &mailbox);
        for index in 0..=MAILBOX_PATHS {
            watches.dispatch(&event(&format!("/a/{index}"), EventKind::Created));
        }
        let batch = mailbox.next().await;
        assert!(batch.resync.contains(&path));
        assert_eq!(batch.events.len(), MAILBOX_PATHS);
    }

    #[test]
    fn a_watch_whose_connection_is_gone_is_set_again() {
        let watches = Watches::default();
        let path = NodePath::trusted("/a");
        watches.subscribe(&path, &Arc::default());
        let first = watches.connection_made();
        watches.connection_lost();
        // The answer to the first connection's request is processed late.
        watches.established(&path, first);
        assert_eq!(watches.differences(9).0, std::slice::from_ref(&path));
        let second = watches.connection_made();
        watches.established(&path, second);
        assert_eq!(watches.established_on(&path), Some(second));
        assert!(watches.differences(9).0.is_empty());
    }

    #[tokio::test]
    async fn what_nobody_wants_goes_some_at_a_time_and_what_is_missing_is_told_with_each() {
        let watches = Watches::default();
        let connection = watches.connection_made();
        let paths: Vec<_> = (0..10).map(|number| NodePath::trusted(format!("/{number}"))).collect();
        for path in &paths {
            let id = watches.subscribe(path, &Arc::default());
            watches.established(path, connection);
            watches.unsubscribe(path, id);
        }
        let mut removed = Vec::new();
        for (round, most) in [4, 4, 2].into_iter().enumerate() {
            let late = NodePath::trusted(format!("/late/{round}"));
            watches.subscribe(&late, &Arc::default());
            watches.changed().await;
            let (missing, surplus) = watches.differences(4);
            assert_eq!((missing.contains(&late), surplus.len()), (true, most));
            removed.extend(surplus);
        }
        removed.sort_unstable();
        assert_eq!(removed, paths);
    }

    #[tokio::test]
    async fn watches_to_set_are_told_once_each_and_some_at_a_time() {
        let watches = Watches::default();
        let connection = watches.connection_made();
        let mut paths: Vec<_> = (0..10).map(|number| NodePath::trusted(format!("/{number}"))).collect();
        let ids: Vec<_> = paths.iter().map(|path| watches.subscribe(path, &Arc::default())).collect();
        let mut told = Vec::new();
        for count in [4, 4, 2] {
            watches.changed().await;
            let (missing, _) = watches.differences(4);
            assert_eq!(missing.len(), count);
            told.extend(missing);
        }
        told.sort_unstable();
        assert_eq!(told, paths);
        assert!(watches.differences(4).0.is_empty());
        // One could not be sent, and another was given up while it was being set.
        watches.still_missing(&paths[0]);
        assert_eq!(watches.differences(4).0, &paths[..1]);
        watches.unsubscribe(&paths[1], ids[1]);
        watches.still_missing(&paths[1]);
        for path in &paths {
            watches.established(path, connection);
        }
        assert_eq!(watches.differences(4), (Vec::new(), vec![paths.remove(1)]));
        watches.connection_lost();
        watches.connection_made();
        let mut again = watches.differences(100).0;
        again.sort_unstable();
        assert_eq!(again, paths);
    }

    #[test]
    fn watches_that_nobody_waits_for_are_dropped() {
        let watches = Watches::default();
        let kept = watches.once("/kept");
        for index in 0..10 * UNSWEPT_WATCHES {
            drop(watches.once(&format!("/{index}")));
        }
        assert!(watches.inner.lock().once.len() <= UNSWEPT_WATCHES + 4);
        assert!(watches.inner.lock().once.contains_key("/kept"));
        drop(kept);
    }

    #[test]
    fn watches_of_one_node_that_nobody_waits_for_are_dropped() {
        let watches = Watches::default();
        let kept: Vec<_> = (0..10).map(|_| watches.once("/same")).collect();
        for _ in 0..100_000 {
            drop(watches.once("/same"));
        }
        assert!(watches.inner.lock().once["/same"].capacity() <= 64);
        watches.dispatch(&event("/same", EventKind::Deleted));
        for mut watch in kept {
            assert_eq!(watch.try_recv().unwrap(), Fired::Event(EventKind::Deleted));
        }
    }

    #[tokio::test]
    async fn one_shot_watches_end_with_the_connection() {
        let watches = Watches::default();
        let (first, second) = (watches.once("/a"), watches.once("/b"));
        watches.dispatch(&event("/a", EventKind::Deleted));
        watches.connection_lost();
        assert_eq!(first.await.unwrap(), Fired::Event(EventKind::Deleted));
        assert_eq!(second.await.unwrap(), Fired::ConnectionLost);
    }
}
