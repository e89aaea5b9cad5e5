//! Orphans: processes whose parent has ended, and which the kernel has made children of this command. That happens when
//! this command is process 1 of a container, or has replaced a shell that had started other processes. No other process
//! can reap them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// The children that this command has started. The owner of each waits for it.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    OURS.lock()
}

/// Leaves a child to its owner for as long as this value is kept. Create it before the runtime can run anything else.
#[derive(Debug)]
pub(crate) struct Ours(Pid);

impl Ours {
    pub(crate) fn new(id: Pid) -> Self {
        ours().insert(id.as_raw_nonzero().get());
        Self(id)
    }

    pub(crate) fn id(&self) -> Pid {
        self.0
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        ours().remove(&self.0.as_raw_nonzero().get());
    }
}

/// Reaps orphans as they end. Never returns.
///
/// # Cancellation
/// Safe.
pub(crate) async fn reap() -> Infallible {
    let Ok(mut ended) = signal(SignalKind::child()) else { return pending().await };
    loop {
        children().into_iter().filter(|id| !ours().contains(id)).filter_map(Pid::from_raw).for_each(|id| {
            // A child that still runs is left alone.
            let _ = waitpid(Some(id), WaitOptions::NOHANG);
        });
        if ended.recv().await.is_none() {
            return pending().await;
        }
    }
}

/// All children of this process; empty when the system does not list them.
fn children() -> Vec<i32> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}
