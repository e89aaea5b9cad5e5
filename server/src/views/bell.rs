//! Wakes all listeners that wait for news of a view.
//!
//! The listeners of one connection are woken one after the other: the connection's task runs after the first of them,
//! and sends the messages of all of them in one system call. In any other order it would need a system call for every
//! few.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use futures_util::task::AtomicWaker;

use crate::mutex::lock;

/// Identifies a connection: all its listeners have the same number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbourhood(pub(crate) u64);

/// Maximum number of listeners that are woken without a pause.
const AT_ONCE: usize = 1024;

type Seat = (Neighbourhood, u64);

/// A notifier with many listeners.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// Number of times that it was rung.
    rung: AtomicU64,
    next: AtomicU64,
    listeners: Mutex<BTreeMap<Seat, Arc<AtomicWaker>>>,
}

/// Hears the rings of a bell. Dropping it unregisters it.
#[derive(Debug)]
pub(super) struct Listener {
    bell: Arc<Bell>,
    seat: Seat,
    waker: Arc<AtomicWaker>,
    /// Number of rings up to the last one that it has heard.
    heard: u64,
}

impl Bell {
    /// Wakes all listeners, in batches: very many at once would occupy a thread of the runtime, and hold the lock, for
    /// long.
    pub(super) async fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Release);
        let mut from = Bound::Unbounded;
        while let Some(last) = self.wake_some(from) {
            from = Bound::Excluded(last);
            tokio::task::yield_now().await;
        }
    }

    /// Wakes one batch; returns the last listener that was woken, if there may be more.
    fn wake_some(&self, from: Bound<Seat>) -> Option<Seat> {
        let listeners = self.lock();
        let mut woken = 0;
        for (seat, waker) in listeners.range((from, Bound::Unbounded)) {
            waker.wake();
            woken += 1;
            if woken == AT_ONCE {
                return Some(*seat);
            }
        }
        None
    }

    /// Registers a listener, which hears the rings from now on.
    pub(super) fn listen(self: &Arc<Self>, where_: Neighbourhood) -> Listener {
        let seat = (where_, self.next.fetch_add(1, Ordering::Relaxed));
        let waker = Arc::new(AtomicWaker::new());
        self.lock().insert(seat, waker.clone());
        Listener { bell: self.clone(), seat, waker, heard: self.rung.load(Ordering::Acquire) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seat, Arc<AtomicWaker>>> {
        lock(&self.listeners)
    }
}

impl Listener {
    /// Takes all rings so far as heard.
    pub(super) fn catch_up(&mut self) {
        self.heard = self.bell.rung.load(Ordering::Acquire);
    }

    /// Waits until the bell rings, or has rung since the last time.
    ///
    /// # Cancellation
    /// Safe: a ring that was not returned is heard by the next call.
    pub(super) async fn changed(&mut self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            let rung = self.bell.rung.load(Ordering::Acquire);
            if rung == self.heard {
                return Poll::Pending;
            }
            self.heard = rung;
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.bell.lock().remove(&self.seat);
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
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[tokio::test]
    async fn neighbours_are_woken_one_after_the_other_and_nobody_who_has_left() {
        let (bell, woken) = (Arc::new(Bell::default()), Arc::<Mutex<Vec<u64>>>::default());
        let mut listeners: Vec<_> =
            [1, 2, 3, 1, 2, 3].map(|number| (number, bell.listen(Neighbourhood(number)))).into();
        for (number, listener) in &mut listeners {
            let waker = Waker::from(Arc::new(Named(*number, woken.clone())));
            let mut changed = pin!(listener.changed());
            assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        listeners.retain(|(number, _)| *number != 2);
        bell.ring().await;
        assert_eq!(*woken.lock().unwrap(), [1, 1, 3, 3]);
    }

    #[tokio::test]
    async fn a_ring_before_the_wait_is_heard_once() {
        let bell = Arc::new(Bell::default());
        let mut listener = bell.listen(Neighbourhood::default());
        bell.ring().await;
        bell.ring().await;
        listener.changed().await;
        assert!(pin!(listener.changed()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        bell.ring().await;
        listener.catch_up();
        assert!(pin!(listener.changed()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn very_many_are_woken_some_at_a_time_and_each_of_them_once() {
        let (bell, woken) = (Arc::new(Bell::default()), Arc::<Mutex<Vec<u64>>>::default());
        let count = 3 * AT_ONCE + 7;
        let mut listeners: Vec<_> = (0..count).map(|_| bell.listen(Neighbourhood(1))).collect();
        for listener in &mut listeners {
            let waker = Waker::from(Arc::new(Named(1, woken.clone())));
            assert!(pin!(listener.changed()).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let mut ring = Box::pin(bell.ring());
        assert!((&mut ring).now_or_never().is_none());
        assert_eq!(woken.lock().unwrap().len(), AT_ONCE);
        ring.await;
        assert_eq!(woken.lock().unwrap().len(), count);
    }
}
