//! Waits that belong to no lock in particular, and the time-out that several files share.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use crate::zk::Pool;

/// Time that a caller without a place in the queue waits for ZooKeeper to answer. A smaller value refuses callers while
/// a connection is replaced; a larger one delays the answer of a caller that only tries.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Sleeps until `deadline`; without one, for ever.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A short pause before a request that failed on a working connection is sent again.
pub(super) async fn pause() {
    let milliseconds = rand::rng().random_range(20..80);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Waits until a new attempt to get a session, or space in one, may succeed.
pub(super) async fn pool_change(pool: &Pool) {
    let (mut owners, mut room_news) = (pool.owners(), pool.room_news());
    let now = owners.borrow_and_update().clone();
    let any_connected = async {
        let waiting: Vec<_> = now.iter().map(|owner| Box::pin(owner.session().connected())).collect();
        if waiting.is_empty() {
            std::future::pending::<()>().await;
        }
        let was_up = now.iter().any(|owner| owner.session().is_up());
        if was_up || !futures_util::future::select_all(waiting).await.0 {
            // One of three: a session has just connected; all connected sessions are full and the pool is opening
            // another; a session has just expired and is about to leave the list.
            pause().await;
        }
    };
    tokio::select! {
        _ = owners.changed() => {}
        _ = room_news.changed() => {}
        () = any_connected => {}
    }
}
