//! Cached reads are never older than what the caller knows: by the replica's acknowledgements on its connection, or by
//! `min_revision`.
//!
//! A proxy holds back the answers to a replica's watching session for as long as a test needs. So a read that does not
//! wait misses a change, every time.

use std::future::IntoFuture as _;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::{DeleteRequest, GetRequest, GetResponse, WatchRequest};
use rollcall_tests::arm::{Arm, Cut};
use rollcall_tests::client::{
    Client, Registration, cached, data, put, refused, release, shown, span, text, unset, violated_field,
};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::proxy::Proxy;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper::Options;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::ARM;

/// Number of rounds of writes and reads. Without the promise, some hundreds were enough for a read that misses a
/// change.
const ROUNDS: usize = 1000;
/// Time for which answers are held back. A wrong answer would come at once.
const HELD: Duration = Duration::from_millis(300);
/// The path that is read.
const PATH: &str = "/own";

fn names(answer: &GetResponse) -> Vec<&str> {
    answer.node.as_ref().map(|node| node.children.keys().map(String::as_str).collect()).unwrap_or_default()
}

async fn read(client: &Client, request: GetRequest) -> Result<GetResponse, Status> {
    Ok(soon("an answer to Get", client.clone().get(request)).await?.into_inner())
}

fn at_least(revision: i64) -> GetRequest {
    GetRequest { path: PATH.to_owned(), min_revision: revision, ..Default::default() }
}

/// A server with a view of the path, whose watching session is held back on command, and another server that is not.
struct Held {
    cut: Cut,
    _other: Server,
    ahead: Client,
}

impl Held {
    async fn new() -> Held {
        let cut = ARM.behind_a_proxy("own", &[]).await;
        // AddWatch is request type 106 of ZooKeeper; then comes the path.
        let path = format!("{}{PATH}", cut.sandbox.chroot);
        let length = u32::try_from(path.len()).unwrap();
        cut.proxy.mark(&[&106_u32.to_be_bytes(), &length.to_be_bytes(), path.as_bytes()].concat());
        put(&cut.client, &format!("{PATH}/first"), text("x")).await.unwrap();
        let other = Server::start(&cut.sandbox.hosts).await;
        let ahead = other.client().await;
        let held = Held { cut, _other: other, ahead };
        assert_eq!(names(&held.read().await), ["first"]);
        held
    }

    async fn read(&self) -> GetResponse {
        cached(&self.cut.client, PATH).await.unwrap()
    }

    fn hold(&self, holds: bool) {
        self.cut.proxy.hold_marked(holds);
    }

    /// Checks that a read waits while the watching session is held back, and returns its result after that.
    async fn read_when_let_go<T>(&self, reading: impl Future<Output = T>) -> T {
        let mut reading = std::pin::pin!(reading);
        assert!(timeout(HELD, &mut reading).await.is_err(), "it is answered before it can be known");
        self.hold(false);
        reading.await
    }
}

#[tokio::test]
async fn whatever_was_acknowledged_on_a_connection_is_in_its_next_cached_read() {
    let s = ARM.setting("own").await;
    let mut stream = Registration::open(&s.client).await;
    for round in 0..ROUNDS {
        let name = format!("n{round}");
        let path = format!("{PATH}/{name}");
        stream.set(&path, data(json!({"round": round}))).await;
        assert_eq!(names(&cached(&s.client, PATH).await.unwrap()), [name.as_str()], "round {round}, registered");
        if round % 10 == 0 {
            let watching = Watching::start(&s.client, PATH).await;
            assert_eq!(watching.known.names(), [name.as_str()], "round {round}, watched");
        }
        stream.send(unset(&path)).await;
        assert_eq!(stream.unregistered().await, path);
        assert!(names(&cached(&s.client, PATH).await.unwrap()).is_empty(), "round {round}, unregistered");
        if round % 5 > 0 {
            continue;
        }
        let written = round.to_string();
        put(&s.client, "/config/own", text(&written)).await.unwrap();
        let answer = cached(&s.client, "/config/own").await.unwrap();
        assert_eq!(shown(answer.node.unwrap().value.as_ref()), json!({"text": written}), "round {round}, put");
        let delete = DeleteRequest { path: "/config/own".into(), ..Default::default() };
        s.client.clone().delete(delete).await.unwrap();
        assert!(!cached(&s.client, "/config/own").await.unwrap().node.unwrap().exists, "round {round}, deleted");
    }
}

#[tokio::test]
async fn a_read_waits_for_what_its_connection_was_told() {
    let held = Held::new().await;
    let client = &held.cut.client;
    let mut stream = Registration::open(client).await;

    held.hold(true);
    stream.set(&format!("{PATH}/one"), text("1")).await;
    assert_eq!(names(&held.read_when_let_go(held.read()).await), ["first", "one"]);

    held.hold(true);
    put(client, &format!("{PATH}/two"), text("2")).await.unwrap();
    assert_eq!(names(&held.read_when_let_go(held.read()).await), ["first", "one", "two"]);

    held.hold(true);
    stream.send(unset(&format!("{PATH}/one"))).await;
    stream.unregistered().await;
    assert_eq!(names(&held.read_when_let_go(held.read()).await), ["first", "two"]);

    held.hold(true);
    let delete = DeleteRequest { path: format!("{PATH}/two"), ..Default::default() };
    client.clone().delete(delete).await.unwrap();
    assert_eq!(names(&held.read_when_let_go(held.read()).await), ["first"]);
}

#[tokio::test]
async fn a_read_waits_for_locks_that_its_connection_was_given_and_has_given_back() {
    let held = Held::new().await;
    let client = &held.cut.client;
    let subtree = || GetRequest { path: PATH.to_owned(), recursive: true, ..Default::default() };
    let leases = |answer: &GetResponse| names(answer).iter().filter(|name| name.starts_with("lock/")).count();
    assert_eq!(leases(&read(client, subtree()).await.unwrap()), 0);
    held.hold(true);
    let (_locking, lock) = Locking::take(client, &format!("{PATH}/lock"), "me").await;
    assert_eq!(leases(&held.read_when_let_go(read(client, subtree())).await.unwrap()), 1);
    held.hold(true);
    release(client, &lock.lock_id).await.unwrap();
    assert_eq!(leases(&held.read_when_let_go(read(client, subtree())).await.unwrap()), 0);
}

#[tokio::test]
async fn what_stood_in_the_way_of_a_write_is_in_the_next_read() {
    let held = Held::new().await;
    let path = format!("{PATH}/first");
    held.hold(true);
    put(&held.ahead, &path, text("of another")).await.unwrap();
    let late = v1::PutRequest { path, expected_version: Some(0), ..Default::default() };
    refused(held.cut.client.clone().put(late).await, Code::Aborted, "VERSION_MISMATCH");
    let answer = held.read_when_let_go(held.read()).await;
    assert_eq!(shown(answer.node.unwrap().children["first"].value.as_ref()), json!({"text": "of another"}));
}

#[tokio::test]
async fn a_watch_begins_with_what_its_connection_was_told() {
    let held = Held::new().await;
    let client = &held.cut.client;
    held.hold(true);
    let mut stream = Registration::open(client).await;
    stream.set(&format!("{PATH}/one"), text("1")).await;
    let watching = held.read_when_let_go(Watching::start(client, PATH)).await;
    assert_eq!((watching.known.names(), watching.snapshots), (vec!["first", "one"], 1));

    // And with the changes that its client knows from elsewhere.
    held.hold(true);
    let stat = put(&held.ahead, &format!("{PATH}/two"), text("2")).await.unwrap();
    let request = WatchRequest { path: PATH.into(), min_revision: stat.mzxid, ..Default::default() };
    let watching = held.read_when_let_go(Watching::start_with(client, request)).await;
    assert_eq!((watching.known.names(), watching.snapshots), (vec!["first", "one", "two"], 1));
}

#[tokio::test]
async fn a_read_on_one_replica_waits_for_what_another_has_told() {
    let held = Held::new().await;
    let (behind, ahead) = (&held.cut.client, &held.ahead);
    held.hold(true);
    let mut stream = Registration::open(ahead).await;
    let one = stream.set(&format!("{PATH}/one"), text("1")).await;
    let answer = held.read().await;
    assert_eq!((names(&answer), answer.stale), (vec!["first"], false), "nobody has told it that there is more");
    let answer = held.read_when_let_go(read(behind, at_least(one.generation))).await.unwrap();
    assert_eq!((names(&answer), answer.stale), (vec!["first", "one"], false));

    // The state of another path or of a subtree has a revision too. A read that waits for children waits for that
    // revision first.
    held.hold(true);
    let two = put(ahead, "/elsewhere", text("x")).await.unwrap();
    let elsewhere = cached(ahead, "/elsewhere").await.unwrap();
    assert_eq!(elsewhere.revision, two.mzxid);
    let waits = GetRequest { wait: Some(span(SOON)), ..at_least(elsewhere.revision) };
    let answer = held.read_when_let_go(read(behind, waits)).await.unwrap();
    assert_eq!((names(&answer), answer.stale), (vec!["first", "one"], false));
    let recursive = GetRequest { recursive: true, ..at_least(elsewhere.revision) };
    assert_eq!(names(&read(behind, recursive).await.unwrap()), ["first", "one"]);
}

#[tokio::test]
async fn a_client_is_shown_what_it_was_told_by_whichever_replica_it_comes_to() {
    let held = Held::new().await;
    // At first it can connect to only one of the two.
    let way = Proxy::start(held.cut.server.grpc()).await;
    way.refuse().await;
    let first = Server::start(&held.cut.sandbox.hosts).await;
    let replicas = [first.grpc().to_string(), way.address().to_string()];
    let client = rollcall::Client::connect(replicas).await.unwrap();
    held.hold(true);
    client.put(format!("{PATH}/two")).value("2").await.unwrap();
    way.accept().await;
    drop(first);
    let lookup = held.read_when_let_go(client.get(PATH).into_future()).await.unwrap();
    assert_eq!(lookup.node.children.keys().collect::<Vec<_>>(), ["first", "two"]);

    held.hold(true);
    let three = put(&held.ahead, &format!("{PATH}/three"), text("3")).await.unwrap();
    assert!(client.put("/elsewhere").value("x").await.unwrap().mzxid > three.mzxid);
    let view = held.read_when_let_go(client.watch(PATH).view()).await.unwrap();
    assert_eq!(view.current().node.children.keys().collect::<Vec<_>>(), ["first", "three", "two"]);
}

#[tokio::test]
async fn what_happens_far_below_a_path_makes_no_read_of_it_stale() {
    let s = ARM.setting("own").await;
    put(&s.client, &format!("{PATH}/a"), text("a")).await.unwrap();
    assert_eq!(names(&cached(&s.client, PATH).await.unwrap()), ["a"]);
    for round in 0..100 {
        put(&s.client, &format!("{PATH}/a/b/deep"), text(&round.to_string())).await.unwrap();
        let answer = cached(&s.client, PATH).await.unwrap();
        assert_eq!((names(&answer), answer.stale), (vec!["a"], false), "round {round}");
    }
}

#[tokio::test]
async fn what_does_not_come_in_time_is_answered_as_stale() {
    let held = Held::new().await;
    let mut stream = Registration::open(&held.cut.client).await;
    held.hold(true);
    stream.set(&format!("{PATH}/one"), text("1")).await;
    let answer = held.read().await;
    assert_eq!((names(&answer), answer.stale, answer.reset), (vec!["first"], true, false));
    assert!(answer.as_of.is_some());
    // The watch begins without the missing change, which follows.
    let mut watching = Watching::start(&held.cut.client, PATH).await;
    held.hold(false);
    watching.until("what is registered", |known| known.names() == ["first", "one"]).await;
    let answer = held.read().await;
    assert_eq!((names(&answer), answer.stale), (vec!["first", "one"], false));
}

#[tokio::test]
async fn a_revision_that_nobody_has_is_answered_as_stale_and_means_nothing_to_others() {
    let s = ARM.setting("own").await;
    for name in ["a", "b", "c"] {
        put(&s.client, &format!("{PATH}/{name}"), text(name)).await.unwrap();
    }
    let known = cached(&s.client, PATH).await.unwrap();
    for min_revision in [known.revision + 1_000_000_000_000, i64::MAX] {
        let answer = read(&s.client, at_least(min_revision)).await.unwrap();
        assert_eq!((names(&answer), answer.stale, answer.reset), (vec!["a", "b", "c"], true, true));
        assert!(answer.as_of.is_some());
        let latest = GetRequest { consistency: v1::Consistency::Latest.into(), ..at_least(min_revision) };
        assert!(read(&s.client, latest).await.unwrap().reset);
        let watch = WatchRequest { path: PATH.into(), min_revision, ..Default::default() };
        let watching = Watching::start_with(&s.client, watch).await;
        assert_eq!((watching.known.names(), watching.was_reset), (vec!["a", "b", "c"], true));
    }
    let answer = read(&s.client, at_least(known.revision)).await.unwrap();
    assert_eq!((answer.stale, answer.reset), (false, false));

    // All pages are of one state, even if a later one is asked for.
    let first = read(&s.client, GetRequest { page_size: 2, ..at_least(known.revision) }).await.unwrap();
    put(&s.client, &format!("{PATH}/d"), text("d")).await.unwrap();
    let token = first.next_page_token.clone();
    let second = read(&s.client, GetRequest { page_size: 2, page_token: token, ..at_least(i64::MAX) }).await.unwrap();
    assert_eq!((names(&first), names(&second)), (vec!["a", "b"], vec!["c"]));
    assert_eq!((second.stale, second.reset, second.revision), (false, false, first.revision));

    let status = refused(read(&s.client, at_least(-1)).await, Code::InvalidArgument, "PROTOCOL");
    assert_eq!(violated_field(&status), "min_revision");
    let watch = WatchRequest { path: PATH.into(), min_revision: -1, ..Default::default() };
    let status = refused(s.client.clone().watch(watch).await, Code::InvalidArgument, "PROTOCOL");
    assert_eq!(violated_field(&status), "min_revision");
}

#[tokio::test]
async fn a_connection_forgets_what_zookeeper_has_lost() {
    let mut own = ARM.own(Options::default()).await;
    let server = Server::start_with(&own.address().to_string(), &["--session-timeout", "3s"]).await;
    let client = server.client().await;
    for number in 0..100 {
        put(&client, &format!("{PATH}/{number}"), text("x")).await.unwrap();
    }
    let known = cached(&client, PATH).await.unwrap();
    let watches = server.client().await;
    put(&watches, &format!("{PATH}/last"), text("x")).await.unwrap();
    own.lose_everything().await;
    eventually("what is there now is shown, and is not called stale", 3 * SOON, async || {
        let answer = cached(&client, PATH).await.map_err(|status| status.to_string())?;
        check(names(&answer).is_empty() && !answer.stale, || format!("stale: {}", answer.stale))
    })
    .await;
    let answer = read(&client, at_least(known.revision)).await.unwrap();
    let falls = ARM != Arm::Embedded;
    assert_eq!((answer.stale, answer.reset), (falls, falls));
    // A connection that only watches forgets too.
    for was_reset in [falls, false] {
        assert_eq!(Watching::start(&watches, PATH).await.was_reset, was_reset);
    }
}
