//! The Rust client against replicas that are stopped, killed, drained and cut off. The program that uses it has no code
//! for any of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rollcall::{Client, Error, LockState, LostReason, Reason, RegistrationState, Update, Value};
use rollcall_proto::v1::ChangeKind;
use rollcall_tests::arm::{Arm, Setting};
use rollcall_tests::client::plain;
use rollcall_tests::follow::Watching;
use rollcall_tests::process::{Signal, scratch};
use rollcall_tests::proxy::{Proxy, Traffic};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const SESSION: &[&str] = &["--session-timeout", "4s"];

/// One replica and a client of it.
async fn alone(name: &str) -> (Setting, Client) {
    let s = Arm::Embedded.setting_with(name, SESSION).await;
    let client = Client::connect(s.server.grpc().to_string()).await.unwrap();
    (s, client)
}

/// Two replicas and a client of both, which uses one of them.
struct Pair {
    setting: Setting,
    other: Server,
    client: Client,
}

async fn pair(name: &str) -> Pair {
    let setting = Arm::Embedded.setting_with(name, SESSION).await;
    let other = Server::start_with(&setting.sandbox.hosts, SESSION).await;
    let addresses = [setting.server.grpc().to_string(), other.grpc().to_string()];
    Pair { client: Client::connect(addresses).await.unwrap(), setting, other }
}

impl Pair {
    /// The replica with streams of the client, and the other one.
    async fn in_use(&mut self) -> (&mut Server, &mut Server) {
        let first = eventually("a replica has a stream", SOON, async || {
            for (first, server) in [(true, &self.setting.server), (false, &self.other)] {
                let Ok(metrics) = server.http_get("/metrics").await else { continue };
                if !metrics.lines().any(|line| line == "rollcall_streams 0") {
                    return Ok(first);
                }
            }
            Err("none has".to_owned())
        })
        .await;
        let (one, other) = (&mut self.setting.server, &mut self.other);
        if first { (one, other) } else { (other, one) }
    }
}

async fn generation(registration: &rollcall::Registration, newer_than: i64) -> i64 {
    let mut states = registration.states();
    let is_newer = |state: &RegistrationState| matches!(state, RegistrationState::Registered { generation } if *generation > newer_than);
    let state = soon("a later generation", states.wait_for(is_newer)).await.unwrap().clone();
    let RegistrationState::Registered { generation } = state else { panic!("not registered") };
    generation
}

fn data(lookup: &rollcall::Lookup, name: &str) -> serde_json::Value {
    plain(lookup.node.children[name].value.as_ref().expect("it holds something").to_json())
}

#[tokio::test]
async fn three_lines_register_and_one_looks_up() {
    let (s, client) = alone("client").await;
    let registration = client.register("/services/ssh/server1:22").data(json!({"port": 22})).start().await.unwrap();
    let ssh = client.get("/services/ssh").latest().await.unwrap();
    assert_eq!(data(&ssh, "server1:22"), json!({"port": 22}));
    assert!(ssh.node.exists && !ssh.stale && ssh.node.children["server1:22"].stat.unwrap().is_ephemeral());
    let below = client.get("/").latest().recursive().await.unwrap();
    assert!(below.node.children.contains_key("services/ssh/server1:22"), "{:?}", below.node.children.keys());

    registration.update(json!({"port": 2222})).await.unwrap();
    assert_eq!(plain(s.zk.get("/services/ssh/server1:22").await.unwrap().json()), json!({"port": 2222}));
    let error = registration.update_value("x".repeat(300_000)).await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::ValueTooLarge));
    assert!(registration.state().is_registered());

    let error = client.register("/services/ssh/server1:22").exclusive().start().await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::NameTaken), "by this very client");
    let other = Client::connect(s.server.grpc().to_string()).await.unwrap();
    let held = other.register("/services/ssh/server2:22").start().await.unwrap();
    let error = client.register("/services/ssh/server2:22").exclusive().start().await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::NameTaken));
    held.close().await.unwrap();
    assert!(!s.zk.exists("/services/ssh/server2:22").await);
    drop(client.register("/services/ssh/server3:22").start().await.unwrap());
    s.zk.wait_gone("/services/ssh/server3:22").await;
}

#[tokio::test]
async fn durable_nodes_are_compared_and_set() {
    let (_s, client) = alone("client").await;
    let stat = client.put("/config/limits").data(json!({"open": 10})).create_only().await.unwrap();
    assert_eq!(client.put("/config/limits").create_only().await.unwrap_err().reason(), Some(&Reason::NodeExists));
    client.put("/config/limits").value("20").if_version(stat.version).await.unwrap();
    let error = client.put("/config/limits").if_version(stat.version).await.unwrap_err();
    let Error::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.reason(), refusal.detail("actual_version")), (&Reason::VersionMismatch, Some("1")));
    let config = client.get("/config/limits").latest().await.unwrap();
    assert_eq!(config.node.value, Some(Value::Text("20".to_owned())));
    assert_eq!(client.delete("/config").await.unwrap_err().reason(), Some(&Reason::NotEmpty));
    client.delete("/config").recursive().await.unwrap();
    assert!(!client.get("/config").latest().await.unwrap().node.exists);
    assert_eq!(client.delete("/config").await.unwrap_err().reason(), Some(&Reason::NoNode));
}

#[tokio::test]
async fn long_lists_are_gathered_and_a_thousand_registrations_share_a_stream() {
    let (s, client) = alone("client").await;
    let text = "x".repeat(4000);
    let starting = (0..1000).map(|number| {
        client
            .register(format!("/many/{number:04}"))
            .data(json!({"number": number, "text": text}))
            .in_background()
            .unwrap()
    });
    let registrations: Vec<_> = starting.collect();
    for registration in &registrations {
        generation(registration, 0).await;
    }
    s.server.wait_for_streams(1).await;
    let many = client.get("/many").latest().await.unwrap();
    assert_eq!(many.node.children.len(), 1000);
    assert_eq!(data(&many, "0999")["number"], 999);
    let mut updates = client.watch("/many").stream();
    let Some(Ok(Update::Snapshot { node, .. })) = soon("a snapshot", updates.next()).await else {
        panic!("no snapshot")
    };
    assert_eq!(node, client.get("/many").await.unwrap().node);
}

#[tokio::test]
async fn a_lookup_waits_for_the_first_one() {
    let (s, client) = alone("client").await;
    let nobody = client.get("/services/late").wait(Duration::from_millis(50)).await.unwrap();
    assert!(!nobody.node.exists);
    let waiting = client.get("/services/late").wait(SOON);
    let waiting = tokio::spawn(async move { waiting.await });
    s.server.wait_for_streams(1).await;
    let _registration = client.register("/services/late/a:1").start().await.unwrap();
    assert_eq!(soon("the lookup", waiting).await.unwrap().unwrap().node.children.len(), 1);
}

#[tokio::test]
async fn no_replica_is_an_error_that_says_so() {
    let address = rollcall_tests::zookeeper::free_address().to_string();
    let patience = Duration::from_millis(300);
    let error = Client::connect(address.as_str()).timeout(patience).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
    let client = Client::connect(address.as_str()).timeout(patience).lazy().unwrap();
    for error in [
        client.register("/a").start().await.map(drop).unwrap_err(),
        client.lock("/a").acquire().await.map(drop).unwrap_err(),
        client.watch("/a").view().await.map(drop).unwrap_err(),
        client.put("/a").await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    assert!(matches!(Client::connect("nonsense").lazy(), Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn a_watch_is_not_stale_while_another_replica_serves() {
    let (s, _client) = alone("client").await;
    let nobody = rollcall_tests::zookeeper::free_address().to_string();
    let addresses = [s.server.grpc().to_string(), nobody];
    // Half of the clients try the absent replica first.
    for _ in 0..20 {
        let client = Client::connect(&addresses[..]).lazy().unwrap();
        let mut updates = client.watch("/").stream();
        let first = soon("the first update", updates.next()).await;
        assert!(matches!(first, Some(Ok(Update::Snapshot { .. }))), "{first:?}");
    }
}

#[tokio::test]
async fn a_registration_that_no_message_can_carry_is_refused_and_holds_up_no_other() {
    let (_s, client) = alone("client").await;
    let large = Value::from("x".repeat(3 << 20));
    let first = client.register("/services/a:1").start().await.unwrap();
    for error in [
        client.register("/services/b:1").value(large.clone()).start().await.map(drop).unwrap_err(),
        client.register("/services/b:1").value(large.clone()).in_background().map(drop).unwrap_err(),
        first.update_value(large.clone()).await.unwrap_err(),
        client.put("/a").value(large).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.reason(), Some(&Reason::ValueTooLarge), "{error}");
    }
    let second = client.register("/services/c:1").start().await.unwrap();
    for registration in [&first, &second] {
        assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{registration:?}");
    }
}

#[tokio::test]
async fn what_is_dropped_at_the_end_of_a_program_is_given_back_when_it_is_waited_for() {
    let (s, client) = alone("client").await;
    let lock = client.lock("/jobs/a").acquire().await.unwrap();
    let registration = client.register("/services/a:1").start().await.unwrap();
    drop((lock, registration));
    client.settled().await.unwrap();
    assert!(client.describe_lock("/jobs/a").await.unwrap().holders.is_empty());
    assert!(!s.zk.exists("/services/a:1").await);
    // Without anything left to release it returns at once, whether or not there is a replica.
    drop(s);
    client.settled().await.unwrap();
}

#[tokio::test]
async fn a_killed_replica_costs_a_registration_nothing() {
    let mut pair = pair("client").await;
    let registration = pair.client.register("/services/a").data(json!({"a": 1})).start().await.unwrap();
    let bound = pair.client.register("/services/b").data(json!({"b": 1})).without_ttl().start().await.unwrap();
    let first = [generation(&registration, 0).await, generation(&bound, 0).await];
    let (used, other) = pair.in_use().await;
    let mut watching = Watching::start(&other.client().await, "/services").await;
    used.process().kill();
    let second = [generation(&registration, first[0]).await, generation(&bound, first[1]).await];
    // The sessions of the older incarnations end, and no watcher sees anything of it.
    for (path, generation) in ["/services/a", "/services/b"].into_iter().zip(second) {
        assert_eq!(pair.setting.zk.get(path).await.unwrap().stat.czxid, generation);
    }
    pair.setting.zk.create("/services/marker", b"").await;
    watching.until("the marker", |known| known.names() == ["a", "b", "marker"]).await;
    assert_eq!(watching.changes, [(ChangeKind::Added, "marker".to_owned())]);
    registration.close().await.unwrap();
    pair.setting.zk.wait_gone("/services/a").await;
}

/// The client moves to another replica, whose answer never arrives. When it comes back, the registration has a later
/// generation than the client knows.
#[tokio::test]
async fn an_answer_that_is_lost_on_the_way_costs_a_registration_nothing() {
    let s = Arm::Embedded.setting_with("client", SESSION).await;
    let other = Server::start_with(&s.sandbox.hosts, SESSION).await;
    let proxies = [Proxy::start(s.server.grpc()).await, Proxy::start(other.grpc()).await];
    let client = Client::connect(proxies.each_ref().map(|proxy| proxy.address().to_string())).await.unwrap();
    let registration = client.register("/services/a").data(json!({"a": 1})).start().await.unwrap();
    registration.update(json!({"a": 2})).await.unwrap();
    let first = generation(&registration, 0).await;
    let [used, next] = if proxies[0].open() > 0 { [&proxies[0], &proxies[1]] } else { [&proxies[1], &proxies[0]] };
    next.stall_answers_after(b"/services/a");
    used.refuse().await;
    used.cut();
    next.stalled().await;
    let standing = async || s.zk.get("/services/a").await.unwrap().stat.czxid;
    eventually("it is taken over", SOON, async || {
        let standing = standing().await;
        check(standing > first, || format!("{standing} still stands"))
    })
    .await;
    used.accept().await;
    next.refuse().await;
    next.cut();
    let second = generation(&registration, first).await;
    assert_eq!(second, standing().await);
    assert_eq!(plain(s.zk.get("/services/a").await.unwrap().json()), json!({"a": 2}));
}

#[tokio::test]
async fn a_replica_that_drains_is_left_before_it_goes() {
    let mut pair = pair("client").await;
    let registration = pair.client.register("/services/a").data(json!({"a": 1})).start().await.unwrap();
    let bound = pair.client.register("/services/b").without_ttl().start().await.unwrap();
    let mut view = pair.client.watch("/services").view().await.unwrap();
    let guard = pair.client.lock("/lock").acquire().await.unwrap();
    let first = generation(&registration, 0).await;
    let holder = pair.client.clone();
    let waiting = tokio::spawn(async move { holder.lock("/lock").name("waits").acquire().await });
    let (zk, client) =
        (rollcall_tests::zookeeper_witness::Witness::connect(&pair.setting.sandbox.hosts).await, pair.client.clone());
    eventually("it waits", SOON, async || {
        let described = client.describe_lock("/lock").await.map_err(|error| error.to_string())?;
        check(described.waiters.len() == 1, || format!("{described:?}"))
    })
    .await;
    let (used, other) = pair.in_use().await;
    let mut watching = Watching::start(&other.client().await, "/services").await;
    used.process().signal(Signal::TERM);
    // Within the default drain of 10 s the replica ends as soon as all streams have moved.
    let status = used.process().wait(SOON).await;
    assert!(status.success(), "{status}");
    let later = generation(&registration, first).await;
    assert!(later > first && bound.state().is_registered());
    zk.create("/services/c", b"x").await;
    watching.until("what came later", |known| known.names() == ["a", "b", "c"]).await;
    assert_eq!(watching.changes, [(ChangeKind::Added, "c".to_owned())], "nobody has seen anything of it");
    let seen = soon("the view goes on", view.wait_for(|lookup| lookup.node.children.len() == 3)).await.unwrap();
    assert!(seen.node.children.contains_key("c"));
    assert!(matches!(guard.state(), LockState::Held { .. }), "{:?}", guard.state());
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let next = soon("the next one's turn", waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > token);
}

#[tokio::test]
async fn a_watch_survives_its_replica_and_never_repeats() {
    let mut pair = pair("client").await;
    let zk = rollcall_tests::zookeeper_witness::Witness::connect(&pair.setting.sandbox.hosts).await;
    zk.create("/w", b"").await;
    let mut updates = pair.client.watch("/w").stream();
    let Some(Ok(Update::Snapshot { .. })) = soon("a snapshot", updates.next()).await else { panic!("no snapshot") };
    let view = pair.client.watch("/w").view().await.unwrap();
    for round in 0..3 {
        zk.create(&format!("/w/{round}"), b"x").await;
        if round == 1 {
            pair.in_use().await.0.process().kill();
        }
    }
    let (mut added, mut revision) = (Vec::new(), 0);
    while added.len() < 3 {
        match soon("an update", updates.next()).await.unwrap().unwrap() {
            Update::Changes { changes, revision: next } => {
                assert!(next > revision);
                revision = next;
                for change in changes {
                    let rollcall::Change::Added { name, .. } = change else { panic!("{change:?}") };
                    added.push(name);
                }
            }
            Update::Snapshot { node, .. } => added = node.children.into_keys().collect(),
            Update::Stale { .. } | Update::Current => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(added, ["0", "1", "2"]);
    let mut view = view;
    soon("the view", view.wait_for(|lookup| lookup.node.children.len() == 3 && !lookup.stale)).await.unwrap();
}

#[tokio::test]
async fn what_is_known_last_is_told_when_nobody_is_there() {
    let (mut s, client) = alone("client").await;
    let directory = scratch("cache");
    let file = directory.path().join("known.json");
    let _registration = client.register("/services/ssh/a:22").data(json!({"a": 1})).start().await.unwrap();
    let connect = || Client::connect(s.server.grpc().to_string()).timeout(Duration::from_secs(2)).cache_file(&file);
    let cached = connect().lazy().unwrap();
    assert!(!cached.get("/services/ssh").latest().await.unwrap().stale);
    let again = connect().lazy().unwrap();
    s.server.process().kill();
    let known = again.get("/services/ssh").await.unwrap();
    assert!(known.stale && known.as_of.is_some());
    assert_eq!(data(&known, "a:22"), json!({"a": 1}));
    let view = again.watch("/services/ssh").view().await.unwrap();
    assert!(view.current().stale && view.current().node.children.contains_key("a:22"));
    assert!(matches!(again.get("/services/ssh").latest().await, Err(Error::Unreachable { .. })));
    assert!(matches!(again.get("/services/other").await, Err(Error::Unreachable { .. })));
}

#[tokio::test]
async fn locks_are_held_one_after_the_other() {
    let (_s, client) = alone("client").await;
    let first = client.lock("/lock").name("first").acquire().await.unwrap();
    let busy = client.lock("/lock").wait(Duration::ZERO).acquire().await.unwrap_err();
    let Error::Refused(refusal) = &busy else { panic!("{busy:?}") };
    assert_eq!((refusal.reason(), refusal.detail("holders")), (&Reason::LockBusy, Some("first")));
    let (sender, mut places) = tokio::sync::mpsc::unbounded_channel();
    let second = client.lock("/lock").on_queued(move |place| sender.send(place.clone()).unwrap());
    let second = tokio::spawn(second.acquire());
    let place = soon("a place", places.recv()).await.unwrap();
    assert_eq!((place.position, place.holders), (1, vec!["first".to_owned()]));
    let described = client.describe_lock("/lock").await.unwrap();
    assert_eq!((described.simultaneous, described.holders.len(), described.waiters.len()), (1, 1, 1));
    assert_eq!(described.holders[0].fencing_token, Some(first.fencing_token()));
    assert!(
        client.lock("/lock").simultaneous(2).acquire().await.unwrap_err().reason() == Some(&Reason::LockLimitDiffers)
    );
    assert_eq!(first.run(async { 7 }).await.unwrap(), 7);
    let token = first.fencing_token();
    first.release().await.unwrap();
    let second = soon("the second one's turn", second).await.unwrap().unwrap();
    assert!(second.fencing_token() > token);
    // Left, and released by id.
    let id = second.leave();
    assert!(client.lock("/lock").wait(Duration::ZERO).acquire().await.is_err());
    client.release_lock(&id).await.unwrap();
    assert_eq!(client.release_lock(&id).await.unwrap_err().reason(), Some(&Reason::LockLost));
    let third = client.lock("/lock").without_ttl().acquire().await.unwrap();
    drop(third);
    soon("a dropped lock is given back", client.lock("/lock").acquire()).await.unwrap();
}

#[tokio::test]
async fn who_stops_waiting_leaves_nothing() {
    let (s, client) = alone("client").await;
    let _held = client.lock("/lock").acquire().await.unwrap();
    let waiting = tokio::spawn(client.lock("/lock").acquire());
    eventually("it waits", SOON, async || {
        let waiters = client.describe_lock("/lock").await.unwrap().waiters.len();
        check(waiters == 1, || waiters.to_string())
    })
    .await;
    waiting.abort();
    eventually("its place is gone", SOON, async || {
        let left = s.zk.children("/lock-__lock__").await.unwrap_or_default();
        check(left.is_empty(), || format!("{left:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_lock_with_a_ttl_survives_its_replica() {
    let mut pair = pair("client").await;
    let guard = pair.client.lock("/lock").ttl(Duration::from_secs(8)).acquire().await.unwrap();
    let token = guard.fencing_token();
    let (used, other) = pair.in_use().await;
    used.process().kill();
    // Renewed at the other replica, which has to learn of it first.
    other.wait_for_streams(1).await;
    let busy = pair.client.lock("/lock").wait(Duration::ZERO).acquire().await.unwrap_err();
    assert_eq!(busy.reason(), Some(&Reason::LockBusy));
    let described = pair.client.describe_lock("/lock").await.unwrap();
    assert_eq!(described.holders[0].fencing_token, Some(token));
    assert!(matches!(guard.state(), LockState::Held { .. }), "{:?}", guard.state());
    guard.release().await.unwrap();
    pair.client.lock("/lock").acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_replica_that_drained_is_tried_again_while_the_others_are_down() {
    const OPTIONS: &[&str] = &["--session-timeout", "4s", "--drain", "1s"];
    const TTL: Duration = Duration::from_secs(12);
    let mut s = Arm::Embedded.setting_with("client", OPTIONS).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let address = s.server.grpc();
    let client = Client::connect([nobody.to_string(), address.to_string()]).await.unwrap();
    let guard = client.lock("/lock").ttl(TTL).acquire().await.unwrap();
    let waiting = tokio::spawn(client.lock("/lock").name("waits").ttl(TTL).acquire());
    let registration = client.register("/services/a").ttl(TTL).start().await.unwrap();
    let mut view = client.watch("/services").view().await.unwrap();
    let first = generation(&registration, 0).await;
    let parties = async || {
        let described = client.describe_lock("/lock").await.map_err(|error| error.to_string())?;
        check((described.holders.len(), described.waiters.len()) == (1, 1), || format!("{described:?}"))?;
        Ok(described.holders[0].fencing_token)
    };
    eventually("one holds it, one waits", SOON, parties).await;
    s.server.process().signal(Signal::TERM);
    s.server.process().wait(SOON).await;
    s.server = Server::start_at(address, &s.sandbox.hosts, OPTIONS).await;
    // The lock and the registration have both been resumed; the waiter has queued again.
    s.server.wait_for_streams(4).await;
    let token = eventually("one holds it, one waits", SOON, parties).await;
    assert_eq!(token, Some(guard.fencing_token()));
    assert!(matches!(guard.state(), LockState::Held { .. }), "{:?}", guard.state());
    generation(&registration, first - 1).await;
    s.zk.create("/services/b", b"x").await;
    soon("the view goes on", view.wait_for(|lookup| lookup.node.children.len() == 2)).await.unwrap();
    guard.release().await.unwrap();
    soon("the next one's turn", waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stopped_replica_loses_the_lock_and_the_work_ends() {
    let (mut s, client) = alone("client").await;
    let guard = client.lock("/lock").ttl(Duration::from_secs(2)).acquire().await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    struct Ends(Arc<AtomicBool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let work = Ends(ended.clone());
    let running = guard.run(async move {
        let _work = work;
        std::future::pending::<()>().await;
    });
    s.server.pause();
    let error = soon("the work ends", running).await.unwrap_err();
    assert!(matches!(error, Error::Lost { reason: LostReason::Expired, .. }), "{error:?}");
    assert!(ended.load(Ordering::Relaxed));
    s.server.resume();
    assert!(matches!(guard.release().await, Err(Error::Lost { .. })));
    soon("the next one's turn", client.lock("/lock").acquire()).await.unwrap();
}

#[tokio::test]
async fn a_lock_without_a_ttl_is_lost_with_its_connection() {
    let s = Arm::Embedded.setting("client").await;
    let proxy = Proxy::start(s.server.grpc()).await;
    let client = Client::connect(proxy.address().to_string()).await.unwrap();
    let guard = client.lock("/lock").without_ttl().acquire().await.unwrap();
    proxy.cut();
    assert_eq!(soon("it is lost", guard.lost()).await, LostReason::Disconnected);
    let guard = client.lock("/lock").without_ttl().acquire().await.unwrap();
    proxy.set_traffic(Traffic::Stall);
    assert_eq!(soon("it is lost", guard.lost()).await, LostReason::Expired);
}

#[tokio::test]
async fn a_cut_connection_costs_a_lock_with_a_ttl_nothing() {
    let s = Arm::Embedded.setting("client").await;
    let proxy = Proxy::start(s.server.grpc()).await;
    let client = Client::connect(proxy.address().to_string()).await.unwrap();
    let guard = client.lock("/lock").ttl(Duration::from_secs(6)).acquire().await.unwrap();
    let waiting = tokio::spawn(client.lock("/lock").acquire());
    for round in 1..4 {
        proxy.cut();
        eventually("both are back", SOON, async || {
            let described = client.describe_lock("/lock").await.map_err(|error| error.to_string())?;
            let expected = (1, 1) == (described.holders.len(), described.waiters.len());
            check(expected && proxy.accepted() > round, || format!("{described:?}"))
        })
        .await;
    }
    assert!(matches!(guard.state(), LockState::Held { .. }));
    guard.release().await.unwrap();
    soon("the next one's turn", waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_channel_follows_its_service() {
    let (_s, client) = alone("client").await;
    let channel = client.channel("/services/health").await.unwrap();
    let mut servers = tokio::task::JoinSet::new();
    let mut start = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().add_service(health);
        (address, servers.spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await }))
    };
    let call = async || {
        let request = HealthCheckRequest { service: String::new() };
        HealthClient::new(channel.clone()).check(request).await.map(drop)
    };
    let (first_address, first) = start().await;
    let calling = call();
    let registration = client.register(format!("/services/health/{first_address}")).start().await.unwrap();
    soon("the call that waited for somebody", calling).await.unwrap();
    let (second_address, _second) = start().await;
    let _second = client.register(format!("/services/health/{second_address}")).start().await.unwrap();
    registration.close().await.unwrap();
    first.abort();
    eventually("calls go to the second alone", SOON, async || {
        for _ in 0..20 {
            call().await.map_err(|status| status.to_string())?;
        }
        Ok(())
    })
    .await;
}
