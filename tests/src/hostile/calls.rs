//! Floods of calls of any method.

use super::peer::Batch;
use super::requests::{GET, HEALTH, PUT, REFLECTION, Read, get};
use super::wire::{FRAME, prefixed};
use super::{Load, Tally, Target, over_connections};

/// Size in bytes at which a batch is sent.
const BATCH: usize = 2 * FRAME;

pub(super) async fn headers_only(target: Target, load: Load, tally: &Tally) {
    let count = load.count(150_000, 500_000);
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, mut batch) = (peer.headers(GET), Batch::default());
        for _ in 0..count {
            batch.headers(peer.stream(), &headers);
            if batch.len() >= BATCH {
                peer.send(&mut batch).await?;
            }
            tally.sent(1);
        }
        peer.send(&mut batch).await?;
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn partial_bodies(target: Target, load: Load, tally: &Tally) {
    let (connections, each) = (load.count(1, 10), load.count(800, 100));
    over_connections(connections, target, load, tally, move |peer, tally: Tally, _| async move {
        // The prefix announces one million bytes.
        let mut body = prefixed(&vec![0; 1_000_000]);
        body.truncate(900_000);
        for _ in 0..each {
            let (stream, mut batch) = (peer.stream(), Batch::default());
            batch.headers(stream, &peer.headers(PUT));
            peer.send(&mut batch).await?;
            peer.send_body(stream, &body, false).await?;
            tally.sent(1);
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn health_streams(target: Target, load: Load, tally: &Tally) {
    let count = load.count(5_000, 40_000);
    over_connections(2, target, load, tally, move |peer, tally: Tally, connection| async move {
        let headers = peer.headers(if connection == 0 { HEALTH } else { REFLECTION });
        // The service "", and the list of all services: `list_services`.
        let message: &[u8] = if connection == 0 { &[] } else { &[0x3a, 0x00] };
        let mut batch = Batch::default();
        for _ in 0..count {
            let stream = peer.stream();
            batch.headers(stream, &headers);
            batch.data(stream, &prefixed(message), 0);
            if batch.len() >= BATCH {
                peer.send(&mut batch).await?;
            }
            tally.sent(1);
        }
        peer.send(&mut batch).await?;
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn rapid_resets(target: Target, load: Load, tally: &Tally) {
    over_connections(2, target, load, tally, move |peer, tally: Tally, _| async move {
        let (headers, message, mut batch) =
            (peer.headers(GET), get("/flood/reset".to_owned(), Read::Cached), Batch::default());
        while load.goes_on() {
            let stream = peer.stream();
            batch.call(stream, &headers, &message);
            batch.cancel(stream);
            if batch.len() >= BATCH {
                peer.send(&mut batch).await?;
            }
            tally.sent(1);
        }
        Ok(())
    })
    .await;
}
