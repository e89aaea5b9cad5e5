//! Long work for the processor, done on blocking threads: no step on a thread of the runtime may take longer than 10
//! ms. Only a bounded number of such threads work at once, whatever asks for them: the operating system would share the
//! processors among hundreds of threads as it likes, and the runtime's own threads would wait.

use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;

/// Threads for long work. A few more than there are processors work at once, so that a thread that waits for memory or
/// for a lock leaves no processor idle.
pub(crate) struct Threads(LazyLock<Arc<Semaphore>>);

/// Number of bytes of the worst JSON that take 1 ms to convert. More are converted on one of these threads.
pub(crate) const JSON_BYTES_PER_STEP: usize = 16 * 1024;

/// For requests of clients.
pub(crate) static FOR_CLIENTS: Threads = Threads::new();
/// For answers of ZooKeeper. Requests of clients do not delay them, or ZooKeeper would seem to be silent.
pub(crate) static FOR_ZOOKEEPER: Threads = Threads::new();

/// Maximum number of pieces of work that are computed at once.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 2
}

impl Threads {
    const fn new() -> Self {
        Self(LazyLock::new(|| Arc::new(Semaphore::new(at_once()))))
    }

    /// Does work on a blocking thread, when it is its turn. Work that has begun is finished even if nobody waits for it
    /// any more. Work that has not begun is then not done.
    ///
    /// # Panics
    /// When the work does.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let permit = self.0.clone().acquire_owned().await.expect("the semaphore is never closed");
        let work = move || {
            let done = work();
            drop(permit);
            done
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn no_more_threads_than_processors_and_a_few_work_at_once() {
        let (at_work, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..10 * at_once() {
            let (at_work, most) = (at_work.clone(), most.clone());
            tasks.spawn(FOR_CLIENTS.run(move || {
                most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                (0..1000).for_each(|_| std::thread::yield_now());
                at_work.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        tasks.join_all().await;
        let most = most.load(Ordering::SeqCst);
        assert!((1..=at_once()).contains(&most), "{most} at once");
    }

    #[tokio::test]
    async fn what_zookeeper_answers_waits_for_nothing_that_clients_ask_for() {
        let clients = FOR_CLIENTS.0.clone().acquire_many_owned(u32::try_from(at_once()).unwrap()).await.unwrap();
        assert_eq!(FOR_ZOOKEEPER.run(|| "answered").await, "answered");
        drop(clients);
    }
}
