//! The task that runs the tasks of all locks, so that each of them lives in one `JoinSet`.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The work of one task.
pub(super) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Spawner(mpsc::Sender<Job>);

impl Spawner {
    /// A spawner, and the future that runs its jobs; the future ends with the last clone of the spawner.
    /// `capacity`: number of jobs that may wait for that future.
    pub(super) fn new(capacity: usize) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, arriving) = mpsc::channel(capacity);
        (Self(jobs), run(arriving))
    }

    pub(super) fn spawn(&self, job: Job) {
        if self.0.try_send(job).is_err() {
            tracing::error!("the lock task is gone or its queue is full");
        }
    }
}

async fn run(mut arriving: mpsc::Receiver<Job>) {
    let mut jobs = JoinSet::new();
    loop {
        tokio::select! {
            job = arriving.recv() => match job {
                Some(job) => drop(jobs.spawn(job)),
                None => return,
            },
            Some(done) = jobs.join_next() => if let Err(error) = done {
                tracing::error!(%error, "the task of a lock failed");
            },
        }
    }
}
