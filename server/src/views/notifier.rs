//! Wakes all listeners that wait for news of a view.
//!
//! The listeners of one connection are woken one after the other: the connection's task runs after the first of them,
//! and sends the messages of all of them in one system call. In any other order it would need a system call for every
//! few.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

/// Identifies a connection: all its listeners have the same number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionKey(pub(crate) u64);

/// Maximum number of listeners that are woken without a pause.
const WAKES_AT_ONCE: usize = 1024;

/// Orders the listeners: those of one connection are next to each other.
type ListenerKey = (ConnectionKey, u64);

/// A notifier with many listeners.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    /// Number of notifications so far.
    notifications: AtomicU64,
    next: AtomicU64,
    listeners: Mutex<BTreeMap<ListenerKey, Arc<AtomicWaker>>>,
}

/// Waits for the notifications of a [`Notifier`]. Dropping it unregisters it.
#[derive(Debug)]
pub(super) struct ChangeListener {
    notifier: Arc<Notifier>,
    key: ListenerKey,
    waker: Arc<AtomicWaker>,
    /// Number of notifications up to the last one that it has heard.
    heard: u64,
}

impl Notifier {
    /// Wakes all listeners, in batches: very many at once would occupy a thread of the runtime, and hold the lock, for
    /// long.
    pub(super) async fn notify(&self) {
        self.notifications.fetch_add(1, Ordering::Release);
        let mut from = Bound::Unbounded;
        while let Some(last) = self.wake_some(from) {
            from = Bound::Excluded(last);
            tokio::task::yield_now().await;
        }
    }

    /// Wakes one batch; returns the last listener that was woken, if there may be more.
    fn wake_some(&self, from: Bound<ListenerKey>) -> Option<ListenerKey> {
        let listeners = self.lock();
        let mut woken = 0;
        for (key, waker) in listeners.range((from, Bound::Unbounded)) {
            waker.wake();
            woken += 1;
            if woken == WAKES_AT_ONCE {
                return Some(*key);
            }
        }
        None
    }

    /// Registers a listener, which hears notifications from now on.
    pub(super) fn listen(self: &Arc<Self>, connection: ConnectionKey) -> ChangeListener {
        let key = (connection, self.next.fetch_add(1, Ordering::Relaxed));
        let waker = Arc::new(AtomicWaker::new());
        self.lock().insert(key, waker.clone());
        ChangeListener { notifier: self.clone(), key, waker, heard: self.notifications.load(Ordering::Acquire) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ListenerKey, Arc<AtomicWaker>>> {
        self.listeners.lock()
    }
}

impl ChangeListener {
    /// Takes all notifications so far as heard.
    pub(super) fn catch_up(&mut self) {
        self.heard = self.notifier.notifications.load(Ordering::Acquire);
    }

    /// Waits for a notification, unless there was one since the last time.
    ///
    /// # Cancellation
    /// Safe: a notification that was not returned is heard by the next call.
    pub(super) async fn changed(&mut self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            let notifications = self.notifier.notifications.load(Ordering::Acquire);
            if notifications == self.heard {
                return Poll::Pending;
            }
            self.heard = notifications;
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for ChangeListener {
    fn drop(&mut self) {
        self.notifier.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use futures_util::FutureExt as _;

    use super::*;

    /// Records the order of the wakes.
    struct Named(u64, Arc<Mutex<Vec<u64>>>);

    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().push(self.0);
        }
    }

    #[tokio::test]
    async fn neighbours_are_woken_one_after_the_other_and_nobody_who_has_left() {
        let (notifier, woken) = (Arc::new(Notifier::default()), Arc::<Mutex<Vec<u64>>>::default());
        let mut listeners: Vec<_> =
            [1, 2, 3, 1, 2, 3].map(|number| (number, notifier.listen(ConnectionKey(number)))).into();
        for (number, listener) in &mut listeners {
            let waker = Waker::from(Arc::new(Named(*number, woken.clone())));
            let mut changed = pin!(listener.changed());
            assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        listeners.retain(|(number, _)| *number != 2);
        notifier.notify().await;
        assert_eq!(*woken.lock(), [1, 1, 3, 3]);
    }

    #[tokio::test]
    async fn a_ring_before_the_wait_is_heard_once() {
        let notifier = Arc::new(Notifier::default());
        let mut listener = notifier.listen(ConnectionKey::default());
        notifier.notify().await;
        notifier.notify().await;
        listener.changed().await;
        assert!(pin!(listener.changed()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        notifier.notify().await;
        listener.catch_up();
        assert!(pin!(listener.changed()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn very_many_are_woken_some_at_a_time_and_each_of_them_once() {
        let (notifier, woken) = (Arc::new(Notifier::default()), Arc::<Mutex<Vec<u64>>>::default());
        let count = 3 * WAKES_AT_ONCE + 7;
        let mut listeners: Vec<_> = (0..count).map(|_| notifier.listen(ConnectionKey(1))).collect();
        for listener in &mut listeners {
            let waker = Waker::from(Arc::new(Named(1, woken.clone())));
            assert!(pin!(listener.changed()).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let mut notify = Box::pin(notifier.notify());
        assert!((&mut notify).now_or_never().is_none());
        assert_eq!(woken.lock().len(), WAKES_AT_ONCE);
        notify.await;
        assert_eq!(woken.lock().len(), count);
    }
}
