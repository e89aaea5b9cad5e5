//! Floods of connections.

use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::peer::Batch;
use super::requests::{GET, Read, get};
use super::wire::PREFACE;
use super::{Load, Tally, Target, over_connections};

/// Time-out of opening a connection: a server that rightly accepts no more leaves it in the kernel's queue.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn half_open(target: Target, load: Load, tally: &Tally) {
    let head: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nx: ";
    let kinds: [(SocketAddr, &[u8]); 5] = [
        (target.grpc, &[]),
        (target.grpc, &PREFACE[..12]),
        (target.grpc, head),
        (target.http, &[]),
        (target.http, head),
    ];
    let (each, mut held) = (load.count(200, 2_400), Vec::new());
    for number in 0..each * kinds.len() {
        let (address, beginning) = kinds[number % kinds.len()];
        match timeout(PATIENCE, begin(address, beginning)).await {
            Ok(Ok(stream)) => {
                tally.sent(1);
                held.push(stream);
            }
            _ => tally.closed(),
        }
    }
    // The HTTP/1 heads continue, slowly.
    while load.goes_on() {
        sleep(Duration::from_millis(500)).await;
        for stream in held.iter().skip(2).step_by(kinds.len()).chain(held.iter().skip(4).step_by(kinds.len())) {
            drop(stream.try_write(b"x"));
        }
    }
}

async fn begin(address: SocketAddr, beginning: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(beginning).await?;
    Ok(stream)
}

pub(super) async fn reconnects(target: Target, load: Load, tally: &Tally) {
    over_connections(4, target, load, tally, move |peer, tally: Tally, _| async move {
        let mut batch = Batch::default();
        batch.call(peer.stream(), &peer.headers(GET), &get("/flood/reconnect".to_owned(), Read::Cached));
        peer.send(&mut batch).await?;
        peer.ended(1).await?;
        tally.sent(1);
        Ok(())
    })
    .await;
}
