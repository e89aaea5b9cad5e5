//! Floods of paths that nobody else reads.

use super::peer::{Batch, Peer};
use super::requests::{GET, Read, WATCH, get, watch};
use super::wire::FRAME;
use super::{Load, Tally, Target, over_connections};

pub(super) async fn watched_paths(target: Target, load: Load, tally: &Tally) {
    let count = load.count(10_000, 10_000);
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, mut batch) = (peer.headers(WATCH), Batch::default());
        for number in 0..count {
            batch.call(peer.stream(), &headers, &watch(format!("/flood/absent-{number}"), false, 0));
            if batch.len() >= FRAME {
                peer.send(&mut batch).await?;
            }
            tally.sent(1);
        }
        peer.send(&mut batch).await?;
        peer.hold(load).await
    })
    .await;
}

/// Starts calls and cancels them in batches.
async fn cancelled(
    peer: &Peer,
    count: usize,
    method: &str,
    message: impl Fn(usize) -> Vec<u8>,
    load: Load,
    tally: &Tally,
) -> std::io::Result<()> {
    /// Number of calls started before they are cancelled: so many are in progress at once.
    const AT_ONCE: usize = 100;
    let (headers, mut batch) = (peer.headers(method), Batch::default());
    for first in (0..count).step_by(AT_ONCE) {
        let streams: Vec<_> = (0..AT_ONCE).map(|_| peer.stream()).collect();
        for (stream, number) in streams.iter().zip(first..) {
            batch.call(*stream, &headers, &message(number));
        }
        peer.send(&mut batch).await?;
        tokio::task::yield_now().await;
        for stream in streams {
            batch.cancel(stream);
        }
        peer.send(&mut batch).await?;
        tally.sent(AT_ONCE);
    }
    peer.hold(load).await
}

pub(super) async fn cancelled_watches(target: Target, load: Load, tally: &Tally) {
    let count = load.count(100_000, 400_000);
    over_connections(4, target, load, tally, move |peer, tally: Tally, connection| async move {
        let message = |number| watch(format!("/flood/fresh-{connection}-{number}"), false, 0);
        cancelled(&peer, count / 4, WATCH, message, load, &tally).await
    })
    .await;
}

pub(super) async fn cancelled_gets(target: Target, load: Load, tally: &Tally) {
    let count = load.count(40_000, 90_000);
    over_connections(40, target, load, tally, move |peer, tally: Tally, connection| async move {
        let message = |number| get(format!("/flood/read-{connection}-{number}"), Read::Cached);
        cancelled(&peer, count / 40, GET, message, load, &tally).await
    })
    .await;
}
