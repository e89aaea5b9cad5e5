//! Floods of locks.

use std::time::Duration;

use tokio::time::sleep;

use super::peer::Batch;
use super::requests::{ACQUIRE, DESCRIBE, RELEASE, acquire, describe, long_name, release};
use super::{Load, Tally, Target, over_connections};

pub(super) async fn unknown_releases(target: Target, load: Load, tally: &Tally) {
    over_connections(2, target, load, tally, move |peer, tally: Tally, connection| async move {
        let (headers, mut batch, mut sent) = (peer.headers(RELEASE), Batch::default(), 0);
        while load.goes_on() {
            for number in sent..sent + 1_000 {
                // The id of a lock consists of a secret and the path, in base64url. The last three bytes of these ids
                // are a part of the secret, and `/f`.
                batch.call(peer.stream(), &headers, &release(format!("{connection}{number:0>19}QS9m")));
            }
            peer.send(&mut batch).await?;
            tally.sent(1_000);
            sent += 1_000;
            peer.ended(sent).await?;
        }
        Ok(())
    })
    .await;
}

pub(super) async fn cancelled_locks(target: Target, load: Load, tally: &Tally) {
    let count = load.count(3_000, 40_000);
    over_connections(2, target, load, tally, move |peer, tally: Tally, connection| async move {
        let (headers, mut batch) = (peer.headers(ACQUIRE), Batch::default());
        for number in 0..count / 2 {
            let stream = peer.stream();
            // Half of the calls are for the same lock.
            let lock = if number % 2 == 0 { 0 } else { number };
            batch.call(stream, &headers, &acquire(format!("/flood-lock-{connection}-{lock}"), "x".to_owned()));
            batch.cancel(stream);
            if number % 100 == 99 {
                peer.send(&mut batch).await?;
                tally.sent(100);
            }
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn described_queue(target: Target, load: Load, tally: &Tally) {
    let waiters = load.count(500, 5_000);
    over_connections(2, target, load, tally, move |peer, tally: Tally, connection| async move {
        let mut batch = Batch::default();
        if connection == 0 {
            for number in 0..waiters {
                let message = acquire("/flood-queue".to_owned(), long_name(number, 200));
                batch.call(peer.stream(), &peer.headers(ACQUIRE), &message);
            }
            peer.send(&mut batch).await?;
            return peer.hold(load).await;
        }
        // The queue grows meanwhile.
        sleep(Duration::from_millis(500)).await;
        let (headers, mut sent) = (peer.headers(DESCRIBE), 0);
        while load.goes_on() {
            for _ in 0..20 {
                batch.call(peer.stream(), &headers, &describe("/flood-queue".to_owned()));
            }
            peer.send(&mut batch).await?;
            tally.sent(20);
            sent += 20;
            peer.ended(sent).await?;
        }
        Ok(())
    })
    .await;
}
