//! Hostile readers: pages that nobody waits for, answers that are not read, very many paths. Beside each of them, a
//! well-behaved client is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rollcall_proto::v1::{DescribeLockRequest, GetRequest, GetResponse, WatchRequest};
use rollcall_tests::arm::{Arm, Setting};
use rollcall_tests::client::{Client, Registration, describe, latest, reason, text};
use rollcall_tests::follow::Locking;
use rollcall_tests::unread::Unread;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

/// Number of hostile connections.
const CONNECTIONS: usize = 8;
/// Number of reads of each kind by the good client meanwhile.
const ASKED: usize = 10;

/// A well-behaved client, which has registered and reads.
struct Citizen {
    client: Client,
    registration: Registration,
}

impl Citizen {
    async fn of(s: &Setting) -> Citizen {
        let client = s.server.client().await;
        let mut registration = Registration::open_with_ttl(&client, Duration::from_secs(600)).await;
        registration.set("/citizen/one", text("x")).await;
        Citizen { client, registration }
    }

    /// The answer to a Get, which must come in time.
    async fn answer(&self, what: &str, request: GetRequest) -> GetResponse {
        match soon(what, self.client.clone().get(request)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => panic!("{what}: {status}"),
        }
    }

    /// Reads a known path and paths that are new to the replica, and keeps its registration alive, [`ASKED`] times.
    async fn lives(&mut self, round: &str) {
        for number in 0..ASKED {
            let known = GetRequest { path: "/citizen".to_owned(), ..Default::default() };
            let answer = self.answer("what is known", known).await;
            assert_eq!(answer.node.unwrap().children.len(), 1);
            let fresh = latest(&format!("/fresh/{round}/{number}"));
            self.answer("a fresh path", fresh).await;
            self.registration.keep_alive().await;
        }
    }
}

/// A hostile action that repeats until it is stopped, with its count.
struct Harm {
    goes_on: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Harm {
    /// Calls `act` repeatedly on each of several connections, with a number that is never the same.
    async fn start<F: Future<Output = ()> + Send + 'static>(s: &Setting, act: fn(Client, usize) -> F) -> Harm {
        let (goes_on, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (client, goes_on, done) = (s.server.client().await, goes_on.clone(), done.clone());
            tasks.spawn(async move {
                while goes_on.load(Ordering::Relaxed) {
                    act(client.clone(), done.fetch_add(1, Ordering::Relaxed)).await;
                }
            });
        }
        Harm { goes_on, done, tasks }
    }

    /// Waits until it was done `times` times.
    async fn has_been_done(&self, times: usize) {
        eventually("much harm", 3 * SOON, async || {
            let done = self.done.load(Ordering::Relaxed);
            check(done >= times, || format!("{done} times"))
        })
        .await;
    }

    async fn stop(self) {
        self.goes_on.store(false, Ordering::Relaxed);
        soon("the end of the harm", self.tasks.join_all()).await;
    }
}

async fn large_path(s: &Setting, name: &str, children: usize, value: &str) {
    s.zk.create(name, b"").await;
    let names: Vec<_> = (0..children).map(|number| format!("{name}/{number}")).collect();
    for batch in names.chunks(50) {
        s.zk.create_many(batch.iter().cloned(), value.as_bytes()).await;
    }
}

fn object(bytes: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(bytes))
}

fn page(path: &str, page_size: usize) -> GetRequest {
    GetRequest { path: path.to_owned(), page_size: i32::try_from(page_size).unwrap(), ..Default::default() }
}

/// Sends a request, and cancels it before there can be an answer.
async fn ask_and_go(mut client: Client, request: GetRequest) {
    drop(timeout(Duration::from_millis(3), client.get(request)).await);
}

/// Watches a path that has never been watched, and cancels.
async fn watch_and_go(mut client: Client, number: usize) {
    let request = WatchRequest { path: format!("/never/{number}"), ..Default::default() };
    drop(timeout(Duration::from_micros(100), client.watch(request)).await);
    // Some thousands a second: a debug build of the server handles no more within the time of a test.
    tokio::time::sleep(Duration::from_millis(3)).await;
}

#[tokio::test]
async fn pages_that_nobody_waits_for_hold_up_nobody() {
    let s = Arm::Embedded.setting("pages").await;
    large_path(&s, "/large", 2000, &object(1000)).await;
    let mut citizen = Citizen::of(&s).await;
    let harm = Harm::start(&s, |client, number| ask_and_go(client, page("/large", 1 + number % 1999))).await;
    harm.has_been_done(300).await;
    citizen.lives("pages").await;
    harm.stop().await;
}

#[tokio::test]
async fn a_value_that_takes_long_to_convert_holds_up_nobody() {
    let s = Arm::Embedded.setting("nested").await;
    large_path(&s, "/nested", 2000, "x").await;
    // 180 KB of lists in lists.
    let value = format!("{{\"a\":[{}[]]}}", "[[[]]],".repeat(25_000));
    s.zk.set("/nested", value.as_bytes()).await;
    let mut citizen = Citizen::of(&s).await;
    let harm = Harm::start(&s, |client, number| ask_and_go(client, page("/nested", 1 + number % 1999))).await;
    harm.has_been_done(500).await;
    citizen.lives("nested").await;
    harm.stop().await;
}

#[tokio::test]
async fn pages_that_nobody_takes_count_for_their_connection_and_end_at_its_limit() {
    /// On each path there are this many different pages, of 0.75 to 1.5 MB.
    const PATHS: usize = 10;
    const PAGES: usize = 50;
    let s = Arm::Embedded.setting("unread-pages").await;
    for number in 0..PATHS {
        large_path(&s, &format!("/large{number}"), 2 * PAGES, &"x".repeat(15_000)).await;
    }
    let mut citizen = Citizen::of(&s).await;
    let before = s.server.resident_bytes();
    // Only headers reach this client.
    let channel = s.server.narrow_channel(0).await;
    let mut calls = JoinSet::new();
    for number in 0..PATHS * PAGES {
        let (mut client, path) = (Client::new(channel.clone()), format!("/large{}", number / PAGES));
        calls.spawn(async move { client.get(page(&path, PAGES + number % PAGES)).await.map(drop) });
    }
    let refused = timeout(3 * SOON, calls.join_next()).await.expect("a refusal").unwrap().unwrap().unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_BYTES"));
    citizen.lives("refused").await;
    let grown = s.server.resident_bytes().saturating_sub(before) >> 20;
    println!("{grown} MiB more");
    assert!(grown < 450, "{grown} MiB for what one connection does not take");
    calls.shutdown().await;
    let mut again = Client::new(channel);
    eventually("its memory is free again", SOON, async || {
        // There is an answer, which can't be sent.
        let answer = timeout(Duration::from_secs(1), again.get(page("/large0", 2 * PAGES))).await;
        check(answer.is_err(), || format!("{answer:?}"))
    })
    .await;
}

#[tokio::test]
async fn descriptions_of_a_lock_that_nobody_takes_are_shared() {
    const WAITERS: usize = 300;
    /// Unshared, each answer would take 300 KB.
    const CALLS: usize = 1500;
    let s = Arm::Embedded.setting("unread-descriptions").await;
    let name = "x".repeat(1000);
    let mut locked = vec![Locking::take(&s.client, "/described", &name).await.0];
    for _ in 0..WAITERS {
        locked.push(Locking::queue(&s.client, "/described", &name).await.0);
    }
    let before = s.server.resident_bytes();
    // Only headers reach this client.
    let channel = s.server.narrow_channel(0).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let mut client = Client::new(channel.clone());
        let request = DescribeLockRequest { path: "/described".to_owned() };
        calls.spawn(async move { client.describe_lock(request).await.map(drop) });
    }
    let answered = format!("rollcall_calls_total{{method=\"DescribeLock\",reason=\"\"}} {CALLS}");
    s.server.wait_for_metric(&answered).await;
    let grown = s.server.resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 150, "{grown} MiB for answers that are all the same");
    let described = describe(&s.client, "/described").await;
    assert_eq!((described.holders.len(), described.waiters.len()), (1, WAITERS));
}

#[tokio::test]
async fn a_connection_has_a_share_of_paths_and_others_have_theirs() {
    const SHARE: usize = 5000;
    const AT_ONCE: usize = 250;
    let s = Arm::Embedded.setting("paths").await;
    let mut citizen = Citizen::of(&s).await;
    let channel = s.server.channel().await;
    let watch = |number: usize| WatchRequest { path: format!("/absent/{number}"), ..Default::default() };
    let mut watches = Vec::with_capacity(SHARE);
    for first in (0..SHARE).step_by(AT_ONCE) {
        let mut opening = JoinSet::new();
        for number in first..first + AT_ONCE {
            let (channel, request) = (channel.clone(), watch(number));
            opening.spawn(async move { Unread::watch(&channel, request).await });
        }
        watches.extend(opening.join_all().await);
    }
    let mut client = Client::new(channel.clone());
    let refused = soon("a refusal", client.watch(watch(SHARE))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_PATHS"));
    let refused = soon("a refusal", client.get(latest("/another"))).await.unwrap_err();
    assert_eq!(reason(&refused), "TOO_MANY_PATHS");
    // A path that another connection reads costs nothing.
    soon("what another reads", client.get(latest("/citizen"))).await.unwrap_err();
    let mut others =
        s.server.client().await.watch(WatchRequest { path: "/citizen".into(), ..Default::default() }).await.unwrap();
    soon("a snapshot", others.get_mut().message()).await.unwrap().unwrap();
    soon("what another reads", client.get(latest("/citizen"))).await.unwrap();
    citizen.lives("paths").await;
    watches.clear();
    eventually("its share is free again", SOON, async || {
        client.get(latest("/another")).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_were_cancelled_leave_nothing_behind_and_hold_up_nobody() {
    const TIMES: usize = 10_000;
    // Some watches are answered before they are cancelled, and their views are kept for this time.
    let s = Arm::Embedded.setting_with("cancelled", &["--view-idle", "1s"]).await;
    let mut citizen = Citizen::of(&s).await;
    let before = s.server.resident_bytes();
    let harm = Harm::start(&s, watch_and_go).await;
    harm.has_been_done(TIMES / 2).await;
    citizen.lives("cancelled").await;
    harm.has_been_done(TIMES).await;
    harm.stop().await;
    eventually("what nobody waits for is gone", SOON, async || {
        let views = s.server.metric("rollcall_views ").await;
        // Some were loaded before their watch was cancelled, and are idle now.
        check(views < TIMES / 10, || format!("{views} views"))
    })
    .await;
    let grown = s.server.resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 200, "{grown} MiB more");
}
