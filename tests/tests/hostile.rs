//! Hostile clients, each in a small size, beside a good citizen: its registration remains, its calls are answered, the
//! replica keeps its ZooKeeper sessions, its memory is bounded, and it ends when it is told to. `make bench` measures
//! the speed of all that.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_tests::arm::Arm;
use rollcall_tests::hostile::child::{FloodProcess, Order};
use rollcall_tests::hostile::citizen::{Act, Citizen, Patience};
use rollcall_tests::hostile::{Flood, Load, Size, Target, prepare};
use rollcall_tests::process::{Signal, beside};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually};
use rollcall_tests::zookeeper::{Options, Sandbox};
use rollcall_tests::zookeeper_witness::Witness;
use tokio::time::{Instant, sleep};

/// Maximum duration of a flood; a quarter of it where the flood repeats itself.
const TIME: Duration = Duration::from_secs(8);
/// Maximum duration of a flood during which a client has to die, and its registration to end.
const LONG: Duration = Duration::from_secs(60);
/// The citizen's time-outs: long enough for any answer, on a busy machine.
const PATIENCE: Patience = Patience { call: SOON, expiry: SOON };
/// Maximum memory of the server, in bytes: a bounded flood stays far below it, an unbounded one exceeds it.
const MEMORY: usize = 500_000_000;

macro_rules! floods {
    ($($name:ident: $flood:ident on $arm:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                beside_a_flood(Flood::$flood, Arm::$arm).await;
            }
        )*

        #[test]
        fn every_flood_is_tried() {
            let tried = [$(Flood::$flood),*];
            for flood in Flood::ALL {
                assert!(*flood == Flood::Spin || tried.contains(flood), "{flood}");
            }
        }
    };
}

floods! {
    unset: Unset on Embedded;
    long_paths: LongPaths on ZooKeeper;
    mass_registrations: MassRegistrations on Embedded;
    unread_answers: UnreadAnswers on Embedded;
    many_streams: ManyStreams on Embedded;
    puts: Puts on Embedded;
    deep_puts: DeepPuts on Embedded;
    big_structs: BigStructs on Embedded;
    recursive_deletes: RecursiveDeletes on Embedded;
    headers_only: HeadersOnly on Embedded;
    partial_bodies: PartialBodies on Embedded;
    health_streams: HealthStreams on Embedded;
    rapid_resets: RapidResets on Embedded;
    pages: Pages on Embedded;
    nested_pages: NestedPages on Embedded;
    closed_window: ClosedWindow on Embedded;
    latest_gets: LatestGets on Embedded;
    watch_churn: WatchChurn on Embedded;
    large_view: LargeView on Embedded;
    stopped_watcher: StoppedWatcher on Embedded;
    watched_paths: WatchedPaths on Embedded;
    cancelled_watches: CancelledWatches on Embedded;
    cancelled_gets: CancelledGets on Embedded;
    small_frames: SmallFrames on Embedded;
    control_frames: ControlFrames on Embedded;
    large_headers: LargeHeaders on Embedded;
    continuations: Continuations on Embedded;
    half_open: HalfOpen on Embedded;
    reconnects: Reconnects on Embedded;
    unknown_releases: UnknownReleases on Embedded;
    cancelled_locks: CancelledLocks on Embedded;
    described_queue: DescribedQueue on Embedded;
}

/// A server on its own backend, prepared for a flood.
async fn prepared(flood: Flood, sandbox: &Sandbox, options: &[&str]) -> (Server, Witness) {
    let zk = sandbox.zk().await;
    prepare(flood, Load::new(Size::Small, TIME), &zk).await;
    (Server::start_with(&sandbox.hosts, options).await, zk)
}

fn start(flood: Flood, server: &Server, time: Duration) -> FloodProcess {
    /// A low priority, since the flood shares the processors with the server, but not the lowest, since it shares them
    /// with other tests too.
    const NICE: u8 = 5;
    let target = Target { grpc: server.grpc(), http: server.http() };
    FloodProcess::spawn(&beside("flood"), &[], Order { flood, target, size: Size::Small, time }, NICE)
}

async fn beside_a_flood(flood: Flood, arm: Arm) {
    let own = arm.own(Options::default()).await;
    let sandbox = Sandbox::on(&own.address().to_string(), "hostile").await;
    let (mut server, zk) = prepared(flood, &sandbox, &["--drain", "2s"]).await;
    let citizen = Citizen::start(server.grpc(), zk.clone(), PATIENCE).await;
    let sessions = fences(&zk).await;
    let begin = Instant::now();
    let time = if flood == Flood::Unset { LONG } else { TIME };
    let mut flooding = std::pin::pin!(start(flood, &server, time).finish());
    let mut peak = 0;
    let done = loop {
        tokio::select! {
            done = &mut flooding => break done,
            () = sleep(Duration::from_millis(50)) => peak = peak.max(server.resident_bytes()),
        }
    };
    let end = Instant::now();
    citizen.answered(end).await;
    println!("{flood}: {done}; {} MB; answered {:?} later", peak / 1_000_000, end.elapsed());

    let failures = citizen.failures(begin, end);
    assert!(failures.is_empty(), "{} calls of the citizen failed, such as {:?}", failures.len(), failures.first());
    let missed = citizen.missed(begin, Instant::now());
    assert!(missed.is_empty(), "{} registrations were missed, such as {:?}", missed.len(), missed.first());
    let left = fences(&zk).await;
    assert!(sessions.is_subset(&left), "sessions were lost: {:?}", sessions.difference(&left));
    assert!(peak < MEMORY, "the server took {} MB", peak / 1_000_000);
    let expired = citizen.succeeded(Act::Expire, begin, end);
    assert!(flood != Flood::Unset || expired > 0, "no ttl has ended before the flood has");
    // This client is honest, however many streams it has.
    assert!(flood != Flood::ManyStreams || done.ends_with(" 0 connections closed"), "{done}");
    drop(citizen);
    server.process().signal(Signal::TERM);
    server.process().wait(2 * SOON).await;
}

/// The ZooKeeper sessions of the server.
async fn fences(zk: &Witness) -> BTreeSet<String> {
    zk.children("/.rollcall/fences").await.unwrap_or_default().into_iter().collect()
}

#[tokio::test]
async fn a_client_that_is_stopped_while_it_watches_is_let_go() {
    let sandbox = Arm::Embedded.sandbox("hostile").await;
    let flood = Flood::StoppedWatcher;
    let (server, _zk) = prepared(flood, &sandbox, &["--keepalive", "1s"]).await;
    let mut flooding = start(flood, &server, 6 * SOON);
    eventually("it watches", SOON, async || {
        let streams = server.streams().await?;
        check(streams >= 200, || format!("{streams} streams"))
    })
    .await;
    eventually("it has stopped", SOON, async || check(flooding.process().is_stopped(), || "it runs".to_owned())).await;
    eventually("its streams are over", SOON, async || {
        let streams = server.streams().await?;
        check(streams == 0, || format!("{streams} streams"))
    })
    .await;
    assert!(flooding.process().is_stopped(), "all that time it was stopped");
}
