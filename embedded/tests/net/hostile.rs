//! Bytes that are no request end at most their own connection, and cause no panic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_embedded::Config;
use rollcall_wire::{ConnectRequest, CreateMode, Encoder, Request, RequestHeader, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::{Client, create, get, set, start, watch_all};

#[tokio::test]
async fn a_frame_beyond_the_limit_ends_its_connection_alone() {
    let address = start(Config::default()).await;
    let mut other = Client::connect(address).await;
    for length in [0x10_0000, i32::MAX, -1, i32::MIN] {
        let mut client = Client::connect(address).await;
        client.stream.write_all(&length.to_be_bytes()).await.unwrap();
        assert!(client.hear().await.is_none());
    }
    other.ask(&create("/fits", vec![0; 0xf_ffff - 100].into(), CreateMode::Persistent)).await.unwrap();
}

/// Random bytes, and requests with random damage, for three seconds. A client that behaves is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_end_their_own_connection_at_most() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let panics = count_panics();
    let address = start(Config::default()).await;
    let mut good = Client::connect(address).await;
    good.ask(&create("/good", Bytes::from_static(b"kept"), CreateMode::Ephemeral)).await.unwrap();
    let mut attackers = tokio::task::JoinSet::new();
    let until = Instant::now() + Duration::from_secs(3);
    for number in 0..8 {
        attackers.spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed ^ number);
            let mut attacks = 0;
            while Instant::now() < until {
                attack(address, &mut rng).await;
                attacks += 1;
            }
            attacks
        });
    }
    while Instant::now() < until {
        good.ask(&get("/good")).await.expect("whoever behaves is served");
    }
    let mut attacks = 0;
    while let Some(ended) = attackers.join_next().await {
        attacks += ended.unwrap();
    }
    println!("{attacks} connections");
    let Ok(Response::Data { data, .. }) = good.ask(&get("/good")).await else { panic!("not served") };
    assert_eq!(data, Bytes::from_static(b"kept"));
    assert_eq!(panics.load(Ordering::Relaxed), 0, "seed {seed}");
}

/// Counts panics: a panic ends one task of the server and nothing else.
fn count_panics() -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let (before, counted) = (std::panic::take_hook(), count.clone());
    std::panic::set_hook(Box::new(move |info| {
        if info.location().is_some_and(|location| !location.file().contains("tests")) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        before(info);
    }));
    count
}

async fn attack(address: SocketAddr, rng: &mut StdRng) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = Vec::new();
    if rng.random_bool(0.9) {
        let request = ConnectRequest {
            last_zxid_seen: 0,
            timeout_ms: rng.random(),
            session_id: if rng.random_bool(0.9) { 0 } else { rng.random() },
            password: vec![0; rng.random_range(0..20)].into(),
        };
        let mut encoder = Encoder::new();
        encoder.frame(|encoder| request.encode(encoder));
        bytes.extend_from_slice(&encoder.take());
    }
    for _ in 0..rng.random_range(0..60) {
        let body = damaged(rng);
        bytes.extend_from_slice(&i32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&body);
    }
    if rng.random_bool(0.3) {
        let at = rng.random_range(0..=bytes.len());
        let garbage: Vec<u8> = (0..rng.random_range(1..40)).map(|_| rng.random()).collect();
        bytes.splice(at..at, garbage);
    }
    // It may have been cut off by now.
    drop(stream.write_all(&bytes).await);
    if rng.random_bool(0.5) {
        let mut answer = [0; 4096];
        drop(timeout(Duration::from_millis(5), stream.read(&mut answer)).await);
    }
}

/// A damaged request.
fn damaged(rng: &mut StdRng) -> Vec<u8> {
    let request = match rng.random_range(0..5) {
        0 => create("/x", Bytes::from_static(b"data"), CreateMode::Ephemeral),
        1 => set("/x", 3),
        2 => Request::Multi(vec![
            set("/x", 3),
            create("/x", Bytes::new(), CreateMode::EphemeralSequential),
            Request::Delete { path: "/x".into(), version: -1 },
        ]),
        3 => Request::MultiRead(vec![get("/"), get("/good")]),
        _ => watch_all(),
    };
    let mut encoder = Encoder::new();
    let op_code = if rng.random_bool(0.6) { request.op_code() as i32 } else { rng.random_range(-12..110) };
    RequestHeader { xid: rng.random(), op_code }.encode(&mut encoder);
    request.encode(&mut encoder);
    let mut bytes = encoder.take().to_vec();
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(8..bytes.len());
        bytes[at] = rng.random();
    }
    if rng.random_bool(0.3) {
        bytes.truncate(rng.random_range(0..=bytes.len()));
    }
    bytes
}
