//! Readings of a lock that many may ask for at once: one at a time is made, and serves all who have asked before it began.
//! Ten thousand calls about one lock cost ZooKeeper two readings, not ten thousand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::lock;
use crate::types::NodePath;

/// The readings of all locks; of a lock for which nobody waits nothing is kept.
#[derive(Debug)]
pub(super) struct Readings<T>(Mutex<HashMap<NodePath, Weak<Reading<T>>>>);

#[derive(Debug)]
struct Reading<T> {
    /// Whose turn it is to read.
    turn: Semaphore,
    /// The last one, and when it began.
    last: Mutex<Option<(Instant, Arc<T>)>>,
}

/// One who waits for a reading.
struct Caller<'a, T> {
    readings: &'a Readings<T>,
    path: &'a NodePath,
    reading: Arc<Reading<T>>,
}

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Readings<T> {
    /// A reading that begins after this call: this one, which is made if nobody else has made one meanwhile.
    ///
    /// # Cancellation
    /// Safe: another caller makes it.
    pub(super) async fn read<E>(&self, path: &NodePath, read: impl Future<Output = Result<T, E>>) -> Result<Arc<T>, E> {
        let asked = Instant::now();
        let caller = self.caller(path);
        let reading = &caller.reading;
        // It is never closed.
        let _turn = reading.turn.acquire().await;
        if let Some((began, last)) = &*lock(&reading.last)
            && *began > asked
        {
            return Ok(last.clone());
        }
        let began = Instant::now();
        let made = Arc::new(read.await?);
        *lock(&reading.last) = Some((began, made.clone()));
        Ok(made)
    }

    fn caller<'a>(&'a self, path: &'a NodePath) -> Caller<'a, T> {
        let mut readings = lock(&self.0);
        let reading = readings.get(path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let reading = Arc::new(Reading { turn: Semaphore::new(1), last: Mutex::default() });
            readings.insert(path.clone(), Arc::downgrade(&reading));
            reading
        });
        Caller { readings: self, path, reading }
    }
}

impl<T> Drop for Caller<'_, T> {
    fn drop(&mut self) {
        // Under the lock nobody new comes: this one, and no other, is the last.
        let mut readings = lock(&self.readings.0);
        if Arc::strong_count(&self.reading) == 1 {
            readings.remove(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::{FutureExt as _, join_all};
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_during_a_reading_share_the_next() {
        let (readings, path) = (Readings::default(), NodePath::trusted("/a"));
        let (count, go_on) = (AtomicUsize::new(0), Notify::new());
        let read = || async {
            let number = count.fetch_add(1, Ordering::Relaxed);
            go_on.notified().await;
            Ok::<_, Infallible>(number)
        };
        let mut first = Box::pin(readings.read(&path, read()));
        assert!(first.as_mut().now_or_never().is_none());
        let mut others = Box::pin(join_all((0..100).map(|_| readings.read(&path, read()))));
        assert!(others.as_mut().now_or_never().is_none());
        go_on.notify_one();
        assert_eq!(*first.await.unwrap(), 0);
        assert!(others.as_mut().now_or_never().is_none(), "what began before they asked is not for them");
        go_on.notify_one();
        assert!(others.await.iter().all(|reading| **reading.as_ref().unwrap() == 1));
        assert!(lock(&readings.0).is_empty());
    }

    #[tokio::test]
    async fn a_reading_whose_caller_has_gone_or_that_failed_is_made_by_the_next() {
        let (readings, path) = (Readings::<()>::default(), NodePath::trusted("/a"));
        let mut first = Box::pin(readings.read(&path, std::future::pending::<Result<_, ()>>()));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(readings.read(&path, std::future::ready(Err(()))));
        let mut third = Box::pin(readings.read(&path, std::future::ready(Ok::<_, ()>(()))));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        assert_eq!(second.await, Err(()));
        assert_eq!(third.await, Ok(Arc::new(())));
        assert!(lock(&readings.0).is_empty());
    }
}
