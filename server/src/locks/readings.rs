//! Readings of a lock that many calls share. One reading at a time is made; it serves all calls that came before it
//! began. Ten thousand calls about one lock cost ZooKeeper two readings, not ten thousand.
//!
//! A task of its own makes the reading, to its end, even if the call that began it is cancelled. So a cancelled call
//! costs the others nothing.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::timing::PATIENCE;
use crate::types::NodePath;
use crate::zk;

/// Maximum number of readings in flight. With a larger value more cancelled calls leave tasks behind.
const UNDER_WAY: usize = 1024;

/// The readings of all locks; nothing is kept for a lock without waiting calls.
#[derive(Debug)]
pub(super) struct Readings<T> {
    of_locks: Arc<OfLocks<T>>,
    tasks: Mutex<JoinSet<()>>,
    under_way: Arc<Semaphore>,
}

type OfLocks<T> = Mutex<HashMap<NodePath, Weak<Reading<T>>>>;

#[derive(Debug)]
struct Reading<T> {
    /// The right to read.
    turn: Arc<Semaphore>,
    /// The last reading, and when it began.
    last: Mutex<Option<(Instant, Arc<T>)>>,
}

/// A call that waits for a reading, or the task that makes it.
struct ReadingParty<T> {
    of_locks: Arc<OfLocks<T>>,
    path: NodePath,
    reading: Arc<Reading<T>>,
}

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self { of_locks: Arc::default(), tasks: Mutex::default(), under_way: Arc::new(Semaphore::new(UNDER_WAY)) }
    }
}

impl<T: Send + Sync + 'static> Readings<T> {
    /// A reading that began after this call: that of another call, or else `read`. A reading that takes longer than
    /// [`PATIENCE`] is given up.
    ///
    /// # Cancellation
    /// Safe: a reading that has begun is completed, for all other calls that wait for it.
    pub(super) async fn read<E, F>(&self, path: &NodePath, read: impl FnOnce() -> F) -> Result<Arc<T>, E>
    where
        E: From<zk::Error> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let asked = Instant::now();
        let caller = self.party(path);
        let reading = &caller.reading;
        // Neither is ever closed.
        let turn = reading.turn.clone().acquire_owned().await;
        if let Some((began, last)) = &*reading.last.lock()
            && *began > asked
        {
            return Ok(last.clone());
        }
        let place = self.under_way.clone().acquire_owned().await;
        let (reader, read, (reply, made)) = (self.party(path), read(), oneshot::channel());
        let task = async move {
            let began = Instant::now();
            let made = timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(zk::Error::NotSent.into())).map(Arc::new);
            if let Ok(made) = &made {
                *reader.reading.last.lock() = Some((began, made.clone()));
            }
            drop((turn, place, reader));
            drop(reply.send(made));
        };
        self.spawn(task);
        made.await.unwrap_or_else(|_| Err(zk::Error::NotSent.into()))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while let Some(done) = tasks.try_join_next() {
            if let Err(error) = done {
                tracing::error!(%error, "the reading of a lock failed");
            }
        }
        tasks.spawn(task);
    }
}

impl<T> Readings<T> {
    fn party(&self, path: &NodePath) -> ReadingParty<T> {
        let mut of_locks = self.of_locks.lock();
        let reading = of_locks.get(path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let reading = Arc::new(Reading { turn: Arc::new(Semaphore::new(1)), last: Mutex::default() });
            of_locks.insert(path.clone(), Arc::downgrade(&reading));
            reading
        });
        drop(of_locks);
        ReadingParty { of_locks: self.of_locks.clone(), path: path.clone(), reading }
    }
}

impl<T> Drop for ReadingParty<T> {
    fn drop(&mut self) {
        // While the table is locked no other party is made: exactly one is the last.
        let mut of_locks = self.of_locks.lock();
        if Arc::strong_count(&self.reading) == 1 {
            of_locks.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::{BoxFuture, FutureExt as _, join_all};
    use tokio::sync::Notify;

    use super::*;

    /// Readings of one lock that are numbered, each of which goes on when it is told to.
    #[derive(Default)]
    struct Test {
        readings: Readings<usize>,
        begun: Arc<AtomicUsize>,
        go_on: Arc<Notify>,
    }

    impl Test {
        fn read(&self) -> impl Future<Output = Result<Arc<usize>, zk::Error>> + '_ {
            let (begun, go_on) = (self.begun.clone(), self.go_on.clone());
            let read = move || async move {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                go_on.notified().await;
                Ok(number)
            };
            async move { self.readings.read(&NodePath::trusted("/a"), read).await }
        }

        /// Waits until so many readings have begun.
        async fn begun(&self, count: usize) {
            while self.begun.load(Ordering::Relaxed) < count {
                tokio::task::yield_now().await;
            }
        }

        async fn is_empty(&self) -> bool {
            while self.readings.tasks.lock().try_join_next().is_some() || !self.readings.tasks.lock().is_empty() {
                tokio::task::yield_now().await;
            }
            self.readings.of_locks.lock().is_empty()
        }
    }

    #[tokio::test]
    async fn all_who_ask_during_a_reading_share_the_next() {
        let test = Test::default();
        let mut first = Box::pin(test.read());
        assert!(first.as_mut().now_or_never().is_none());
        test.begun(1).await;
        let mut others = Box::pin(join_all((0..100).map(|_| test.read())));
        assert!(others.as_mut().now_or_never().is_none());
        test.go_on.notify_one();
        assert_eq!(*first.await.unwrap(), 0);
        assert!(others.as_mut().now_or_never().is_none(), "what began before they asked is not for them");
        test.begun(2).await;
        test.go_on.notify_one();
        assert!(others.await.iter().all(|reading| **reading.as_ref().unwrap() == 1));
        assert!(test.is_empty().await);
    }

    #[tokio::test]
    async fn a_reading_whose_caller_leaves_serves_all_others_who_asked_before_it_began() {
        let test = Test::default();
        let mut first: BoxFuture<'_, _> = Box::pin(test.read());
        assert!(first.as_mut().now_or_never().is_none());
        test.begun(1).await;
        let mut leaves: BoxFuture<'_, _> = Box::pin(test.read());
        let mut stays: BoxFuture<'_, _> = Box::pin(test.read());
        assert!(leaves.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
        drop(first);
        test.go_on.notify_one();
        while test.begun.load(Ordering::Relaxed) < 2 {
            assert!(leaves.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        drop(leaves);
        test.go_on.notify_one();
        assert_eq!(stays.await, Ok(Arc::new(1)));
        assert!(test.is_empty().await);
    }

    #[tokio::test]
    async fn a_reading_that_failed_is_made_by_the_next() {
        let (readings, path) = (Readings::<()>::default(), NodePath::trusted("/a"));
        let failed = readings.read(&path, || std::future::ready(Err(zk::Error::OutcomeUnknown)));
        assert_eq!(failed.await, Err(zk::Error::OutcomeUnknown));
        let made = readings.read(&path, || std::future::ready(Ok::<_, zk::Error>(())));
        assert_eq!(made.await, Ok(Arc::new(())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_is_given_up() {
        let (readings, path) = (Readings::<()>::default(), NodePath::trusted("/a"));
        let hanging = readings.read(&path, std::future::pending::<Result<(), zk::Error>>);
        assert_eq!(hanging.await, Err(zk::Error::NotSent));
    }
}
