//! Floods of Register streams; and a comparison without any flood.

use std::io::Result;
use std::time::Duration;

use tokio::time::{interval, sleep};

use super::peer::{Batch, Peer};
use super::requests::{REGISTER, keep_alive, long_name, open, set, unset};
use super::wire::{FRAME, WINDOW};
use super::{Load, Tally, Target, over_connections, over_windows};

/// The parent of the floods' registrations.
const PLACE: &str = "/flood/lives";

/// Spins in two threads, one for each of two processors.
pub(super) async fn spin(_: Target, load: Load, tally: &Tally) {
    let threads = [0, 1].map(|_| {
        let tally = tally.clone();
        tokio::task::spawn_blocking(move || {
            while load.goes_on() {
                for _ in 0..10_000 {
                    std::hint::spin_loop();
                }
                tally.sent(1);
            }
        })
    });
    for thread in threads {
        drop(thread.await);
    }
}

/// Opens a Register stream.
async fn opened(peer: &Peer, ttl: Option<Duration>) -> Result<u32> {
    let (stream, mut batch) = (peer.stream(), Batch::default());
    batch.headers(stream, &peer.headers(REGISTER));
    batch.data(stream, &open(ttl), 0);
    peer.send(&mut batch).await?;
    Ok(stream)
}

/// Sends requests on a stream, with as many in a frame as fit.
async fn say(peer: &Peer, stream: u32, requests: impl Iterator<Item = Vec<u8>>, tally: &Tally) -> Result<()> {
    let (mut body, mut count) = (Vec::new(), 0);
    for request in requests {
        body.extend(request);
        count += 1;
        if body.len() >= FRAME {
            peer.send_body(stream, &body, false).await?;
            tally.sent(count);
            count = 0;
            body.clear();
        }
    }
    peer.send_body(stream, &body, false).await?;
    tally.sent(count);
    Ok(())
}

pub(super) async fn unsets(target: Target, load: Load, tally: &Tally) {
    over_connections(4, target, load, tally, move |peer, tally: Tally, number| async move {
        let stream = opened(&peer, None).await?;
        while load.goes_on() {
            let unsets = (0..10_000).map(|unset| unset_of(number, unset));
            say(&peer, stream, unsets, &tally).await?;
        }
        Ok(())
    })
    .await;
}

fn unset_of(connection: usize, number: usize) -> Vec<u8> {
    unset(format!("{PLACE}/{connection}-{number}"))
}

pub(super) async fn long_paths(target: Target, load: Load, tally: &Tally) {
    over_connections(1, target, load, tally, move |peer, tally: Tally, _| async move {
        let stream = opened(&peer, None).await?;
        let sets = (0..load.count(2_000, 10_000)).map(|number| set(format!("/flood/{}", long_name(number, 4_080))));
        say(&peer, stream, sets, &tally).await?;
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn mass_registrations(target: Target, load: Load, tally: &Tally) {
    let count = load.count(20_000, 260_000);
    over_connections(4, target, load, tally, move |peer, tally: Tally, connection| async move {
        let stream = opened(&peer, None).await?;
        let before = peer.heard().bytes;
        let sets = (0..count / 4).map(|number| set(format!("{PLACE}/{connection}-{number}")));
        say(&peer, stream, sets, &tally).await?;
        // Each answer is longer than this.
        peer.told(before + count / 4 * 80).await?;
        drop(peer);
        // The registrations are dropped once; the rest of the flood is their removal.
        load.rest().await;
        Ok(())
    })
    .await;
}

pub(super) async fn unread_answers(target: Target, load: Load, tally: &Tally) {
    let (streams, each) = (load.count(200, 200), load.count(1_000, 2_500));
    over_windows(1, 0, target, load, tally, move |peer, tally: Tally, _| async move {
        let mut opened_streams = Vec::new();
        for _ in 0..streams {
            opened_streams.push(opened(&peer, None).await?);
        }
        for number in 0..each {
            for stream in &opened_streams {
                let request = unset(format!("/flood/{}", long_name(number, 4_080)));
                peer.send_body(*stream, &request, false).await?;
                tally.sent(1);
            }
        }
        peer.hold(load).await
    })
    .await;
}

pub(super) async fn many_streams(target: Target, load: Load, tally: &Tally) {
    let (streams, sets) = (load.count(5_000, 20_000), load.count(10_000, 30_000));
    over_windows(2, WINDOW, target, load, tally, move |peer, tally: Tally, connection| async move {
        if connection == 0 {
            keep_alives(&peer, streams, load, &tally).await
        } else {
            pipeline(&peer, sets, load, &tally).await
        }
    })
    .await;
}

/// Keeps many streams alive, with all keep-alives at the same moments.
async fn keep_alives(peer: &Peer, streams: usize, load: Load, tally: &Tally) -> Result<()> {
    let (headers, mut batch, mut all) = (peer.headers(REGISTER), Batch::default(), Vec::new());
    for number in 0..streams {
        let stream = peer.stream();
        batch.headers(stream, &headers);
        batch.data(stream, &open(Some(Duration::from_secs(30))), 0);
        batch.data(stream, &set(format!("{PLACE}/stream-{number}")), 0);
        all.push(stream);
        // Like a client that opens them one after another.
        if batch.len() >= FRAME {
            peer.send(&mut batch).await?;
            sleep(Duration::from_millis(1)).await;
        }
    }
    let mut rounds = interval(Duration::from_secs(1));
    while load.goes_on() {
        rounds.tick().await;
        for stream in &all {
            batch.data(*stream, &keep_alive(), 0);
        }
        peer.send(&mut batch).await?;
        tally.sent(streams);
    }
    Ok(())
}

/// Sends many requests on one stream, each in its own frame, and reads the answers.
async fn pipeline(peer: &Peer, sets: usize, load: Load, tally: &Tally) -> Result<()> {
    let stream = opened(peer, None).await?;
    for number in 0..sets {
        peer.send_body(stream, &set(format!("{PLACE}/pipelined-{number}")), false).await?;
        tally.sent(1);
    }
    peer.hold(load).await
}
