//! Floods of Get and Watch on paths with many or large nodes.

use std::io::Result;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::time::sleep;

use super::citizen::HOME;
use super::peer::{Batch, Peer};
use super::requests::{GET, Read, WATCH, get, watch};
use super::setup::{NESTED, TREE, WIDE};
use super::{Load, Tally, Target, over_connections, over_windows};

/// The largest page size.
const PAGE: i32 = 100_000;
/// Time after which a page is cancelled: the server is working on it.
const CANCELLED_AFTER: Duration = Duration::from_millis(3);

/// Sends the same request `times` times at once, and cancels all calls shortly after.
async fn ask_and_cancel(peer: &Peer, times: usize, headers: &[u8], message: &[u8]) -> Result<()> {
    let (mut batch, streams) = (Batch::default(), (0..times).map(|_| peer.stream()).collect::<Vec<_>>());
    streams.iter().for_each(|stream| batch.call(*stream, headers, message));
    peer.send(&mut batch).await?;
    sleep(CANCELLED_AFTER).await;
    streams.iter().for_each(|stream| batch.cancel(*stream));
    peer.send(&mut batch).await
}

pub(super) async fn pages(target: Target, load: Load, tally: &Tally) {
    over_connections(8, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, message) = (peer.headers(GET), get(WIDE.to_owned(), Read::Pages(PAGE)));
        while load.goes_on() {
            ask_and_cancel(&peer, 1, &headers, &message).await?;
            tally.sent(1);
        }
        Ok(())
    })
    .await;
}

pub(super) async fn nested_pages(target: Target, load: Load, tally: &Tally) {
    let count = load.count(300, 2_000);
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, message) = (peer.headers(GET), get(NESTED.to_owned(), Read::Pages(PAGE)));
        ask_and_cancel(&peer, count, &headers, &message).await?;
        tally.sent(count);
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn closed_window(target: Target, load: Load, tally: &Tally) {
    let count = load.count(700, 1_000);
    over_windows(1, 0, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, message) = (peer.headers(GET), get(WIDE.to_owned(), Read::Pages(PAGE)));
        let mut batch = Batch::default();
        for _ in 0..count {
            batch.call(peer.stream(), &headers, &message);
        }
        peer.send(&mut batch).await?;
        tally.sent(count);
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn latest_gets(target: Target, load: Load, tally: &Tally) {
    let count = load.count(1_000, 5_000);
    over_connections(2, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, mut batch, mut sent) = (peer.headers(GET), Batch::default(), 0);
        while load.goes_on() {
            for number in 0..count {
                let message = get(format!("/flood/latest-{}", number % 100), Read::Latest);
                batch.call(peer.stream(), &headers, &message);
            }
            peer.send(&mut batch).await?;
            tally.sent(count);
            sent += count;
            peer.ended(sent).await?;
        }
        Ok(())
    })
    .await;
}

pub(super) async fn watch_churn(target: Target, load: Load, tally: &Tally) {
    over_connections(2, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, message) = (peer.headers(WATCH), watch(WIDE.to_owned(), false, 1));
        while load.goes_on() {
            ask_and_cancel(&peer, 50, &headers, &message).await?;
            tally.sent(50);
        }
        Ok(())
    })
    .await;
}

pub(super) async fn large_view(target: Target, load: Load, tally: &Tally) {
    // Get refuses a tree of this size. So it is watched, and only the first part of the answer is read.
    over_windows(4, 64 * 1024, target, load, tally, move |peer, tally: Tally, connection| async move {
        let mut batch = Batch::default();
        let message = watch(TREE.to_owned(), true, 0);
        batch.call(peer.stream(), &peer.headers(WATCH), &message);
        if connection > 0 {
            batch.call(peer.stream(), &peer.headers(GET), &get(TREE.to_owned(), Read::Recursive));
        }
        peer.send(&mut batch).await?;
        tally.sent(1);
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn stopped_watcher(target: Target, load: Load, tally: &Tally) {
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, mut batch) = (peer.headers(WATCH), Batch::default());
        for path in [WIDE, HOME].into_iter().cycle().take(200) {
            batch.call(peer.stream(), &headers, &watch(path.to_owned(), false, 0));
        }
        peer.send(&mut batch).await?;
        tally.sent(200);
        // The first states are on their way.
        peer.told(1).await?;
        // Stops this whole process; its parent kills it.
        kill_process(getpid(), Signal::STOP)?;
        peer.hold(load).await
    })
    .await;
}
