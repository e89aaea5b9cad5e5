//! Order, bounds, sessions, four-letter words.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rollcall_embedded::{Config, Embedded};
use rollcall_wire::{ConnectResponse, CreateMode, Encoder, EventKind, OpCode, Request, Response, WatchMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::{Client, Heard, SOON, create, get, set, start, watch_all};

#[tokio::test]
async fn an_event_comes_before_any_read_that_shows_its_change() {
    let address = start(Config::default()).await;
    let (mut writer, mut reader) = (Client::connect(address).await, Client::connect(address).await);
    writer.ask(&create("/n", Bytes::new(), CreateMode::Persistent)).await.unwrap();
    reader.ask(&Request::AddWatch { path: "/n".into(), mode: WatchMode::Persistent }).await.unwrap();
    let mut encoder = Encoder::new();
    for _ in 0..500 {
        writer.frame(&set("/n", 1), &mut encoder);
    }
    writer.stream.write_all(&encoder.take()).await.unwrap();
    let (mut told, mut version) = (None, 0);
    while version < 500 {
        reader.send(&get("/n")).await;
        loop {
            match reader.hear().await.unwrap() {
                Heard::Event(zxid, event) => {
                    assert!(told < Some(zxid) && event.kind == EventKind::DataChanged);
                    told = Some(zxid);
                }
                Heard::Reply(_, mut decoder) => {
                    let Ok(Response::Data { stat, .. }) = Response::decode(OpCode::GetData, &mut decoder) else {
                        panic!("not a read's answer")
                    };
                    assert!(stat.version == 0 || told == Some(stat.mzxid), "{stat:?} was not announced");
                    version = stat.version;
                    break;
                }
            }
        }
    }
    for expected in 2..=501 {
        let Heard::Reply(header, _) = writer.hear().await.unwrap() else { panic!("no reply") };
        assert_eq!((header.xid, header.error), (expected, 0), "replies come in the order of the requests");
    }
}

#[tokio::test]
async fn a_session_outlives_its_connection_and_is_taken_up() {
    let address = start(Config::default()).await;
    let mut first = Client::connect(address).await;
    first.ask(&create("/e", Bytes::new(), CreateMode::Ephemeral)).await.unwrap();
    let ConnectResponse { session_id, password, .. } = first.session.clone();
    drop(first);
    let mut again = Client::resume(address, session_id, password.clone()).await.expect("the session lives");
    let mut mover = Client::resume(address, session_id, password.clone()).await.expect("the session moves");
    assert!(again.hear().await.is_none(), "who had it is cut off");
    mover.ask(&get("/e")).await.unwrap();
    mover.ask(&Request::CloseSession).await.unwrap();
    assert!(mover.hear().await.is_none());
    assert!(Client::resume(address, session_id, password).await.is_none());
    assert_eq!(Client::connect(address).await.ask(&get("/e")).await, Err(-101));
}

#[tokio::test]
async fn a_session_that_is_silent_expires_and_its_connection_closes() {
    let longest = Duration::from_millis(200);
    let config = Config { tick: Duration::from_millis(50), max_session_timeout: Some(longest), ..Config::default() };
    let address = start(config).await;
    let mut silent = Client::connect(address).await;
    assert_eq!(silent.session.timeout_ms, 200);
    silent.ask(&create("/e", Bytes::new(), CreateMode::Ephemeral)).await.unwrap();
    let since = Instant::now();
    assert!(silent.hear().await.is_none());
    // The session was last heard of a little before this clock began.
    assert!(since.elapsed() >= longest - Duration::from_millis(50), "{:?}", since.elapsed());
    assert_eq!(Client::connect(address).await.ask(&get("/e")).await, Err(-101));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off_and_slows_nobody() {
    let address = start(Config { max_unread: 256 * 1024, ..Config::default() }).await;
    let (mut writer, mut watcher) = (Client::connect(address).await, Client::connect(address).await);
    let name = format!("/{}", "n".repeat(60_000));
    watcher.ask(&watch_all()).await.unwrap();
    writer.ask(&create(&name, Bytes::new(), CreateMode::Persistent)).await.unwrap();
    // More than the kernel's buffers on both sides hold.
    const WRITES: usize = 400;
    for _ in 0..WRITES {
        writer.ask(&set(&name, 0)).await.unwrap();
    }
    let mut events = 0;
    while watcher.hear().await.is_some() {
        events += 1;
    }
    assert!(events < WRITES, "{events} events were kept for who did not read");
}

#[tokio::test]
async fn replies_that_are_not_read_wait_and_are_never_lost() {
    let address = start(Config { max_unread: 256 * 1024, ..Config::default() }).await;
    let mut client = Client::connect(address).await;
    client.ask(&create("/big", vec![7; 500_000].into(), CreateMode::Persistent)).await.unwrap();
    let mut encoder = Encoder::new();
    for _ in 0..100 {
        client.frame(&get("/big"), &mut encoder);
    }
    client.stream.write_all(&encoder.take()).await.unwrap();
    for _ in 0..100 {
        let Heard::Reply(header, _) = client.hear().await.expect("not cut off") else { panic!("no reply") };
        assert_eq!(header.error, 0);
    }
}

#[tokio::test]
async fn one_connection_too_many_is_closed() {
    let address = start(Config { max_connections: 2, ..Config::default() }).await;
    let (mut one, _two) = (Client::connect(address).await, Client::connect(address).await);
    assert!(Client::resume(address, 0, Bytes::new()).await.is_none());
    one.ask(&create("/a", Bytes::new(), CreateMode::Persistent)).await.unwrap();
}

#[tokio::test]
async fn four_letter_words_are_answered() {
    let address = start(Config::default()).await;
    let mut client = Client::connect(address).await;
    client.ask(&Request::Exists { path: "/watched".into(), watch: true }).await.unwrap_err();
    for (word, expected) in [
        ("ruok", "imok"),
        ("srvr", "Mode: standalone"),
        ("mntr", "zk_watch_count\t1\n"),
        ("wchs", "1 connections watching 1 paths\nTotal watches:1\n"),
        ("dump", "Sessions with Ephemerals (0):"),
        ("gtmk", "gtmk is not executed because it is not in the whitelist."),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains(expected), "{word}: {answer}");
    }
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    let error = Embedded::bind(SocketAddr::from(([0, 0, 0, 0], 0)), Config::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "0.0.0.0:0 is not a loopback address: the embedded server is for one machine");
}
