//! Two replicas, one of which has lost ZooKeeper. Its clients move to the other one, and stay while neither has
//! ZooKeeper.

use std::time::Duration;

use rollcall::{Client, Lookup, Reason, Registration, RegistrationState, Update};
use rollcall_tests::arm::{Arm, Cut};
use rollcall_tests::client::put_eventually;
use rollcall_tests::proxy::Proxy;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};

/// A replica that will lose ZooKeeper, and a second one that can't be reached yet.
struct Beside {
    cut: Cut,
    other: Server,
    /// The proxy in front of the second replica.
    door: Proxy,
    client: Client,
}

impl Beside {
    async fn start(name: &str) -> Beside {
        Self::start_with(name, &[]).await
    }

    /// `options` are for the second replica.
    async fn start_with(name: &str, options: &[&str]) -> Beside {
        let cut = Arm::Embedded.behind_a_proxy(name, &[]).await;
        let other = Server::start_with(&cut.sandbox.hosts, options).await;
        let door = Proxy::start(other.grpc()).await;
        door.refuse().await;
        let addresses = [cut.server.grpc().to_string(), door.address().to_string()];
        let client = Client::connect(addresses).await.unwrap();
        Beside { cut, other, door, client }
    }

    /// Registers at the replica that will lose ZooKeeper.
    async fn register(&self, path: &str) -> Registration {
        self.client.register(path).start().await.unwrap()
    }
}

async fn is_registered(registration: &Registration) {
    let mut states = registration.states();
    soon("it is registered", states.wait_for(RegistrationState::is_registered)).await.unwrap();
}

/// Waits until a replica reports that the registration waits for ZooKeeper.
async fn waits_for_zookeeper(registration: &Registration) {
    let waits =
        |state: &RegistrationState| *state == RegistrationState::Pending { reason: Some(Reason::BackendUnavailable) };
    soon("it waits", registration.states().wait_for(waits)).await.unwrap();
}

#[tokio::test]
async fn registrations_go_to_a_replica_that_has_zookeeper_and_those_that_stand_are_not_missed() {
    let s = Beside::start("registrations-move").await;
    let stands = s.register("/services/stands:1").await;
    let bound = s.client.register("/services/bound:1").without_ttl().start().await.unwrap();
    let onlooker = Client::connect(s.other.grpc().to_string()).await.unwrap();
    let mut updates = onlooker.watch("/services").stream();
    let first = soon("a snapshot", updates.next()).await.unwrap().unwrap();
    assert!(matches!(first, Update::Snapshot { ref node, .. } if node.children.len() == 2), "{first:?}");

    s.cut.cut_off().await;
    let waits = s.client.register("/services/waits:1").in_background().unwrap();
    let bound_waits = s.client.register("/services/bound-waits:1").without_ttl().in_background().unwrap();
    waits_for_zookeeper(&waits).await;
    waits_for_zookeeper(&bound_waits).await;
    s.door.accept().await;
    is_registered(&waits).await;
    is_registered(&bound_waits).await;
    s.cut.server.wait_for_streams(0).await;
    assert!(stands.state().is_registered() && bound.state().is_registered());

    // When the first replica is back, it removes nothing.
    s.cut.proxy.accept().await;
    put_eventually(&s.cut.client, "/back", "x").await;
    let mut names = std::collections::BTreeSet::from(["stands:1".to_owned(), "bound:1".to_owned()]);
    while names.len() < 4 {
        let Update::Changes { changes, .. } = soon("a change", updates.next()).await.unwrap().unwrap() else {
            continue;
        };
        for change in changes {
            let rollcall::Change::Added { name, .. } = change else { panic!("{change:?}") };
            names.insert(name);
        }
    }
    for registration in [stands, bound, waits, bound_waits] {
        assert!(registration.state().is_registered(), "{registration:?}");
    }
}

#[tokio::test]
async fn a_client_stays_while_no_replica_has_zookeeper_and_goes_to_the_first_that_has() {
    let cut = Arm::Embedded.behind_a_proxy("neither", &[]).await;
    let route = Proxy::start(cut.sandbox.servers.parse().unwrap()).await;
    let other = Server::start_with(&format!("{}{}", route.address(), cut.sandbox.chroot), &[]).await;
    let client = Client::connect([cut.server.grpc().to_string(), other.grpc().to_string()]).await.unwrap();
    let stands = client.register("/services/stands:1").start().await.unwrap();
    let is_here = eventually("a replica has the stream", SOON, async || {
        match (cut.server.streams().await?, other.streams().await?) {
            (1, 0) => Ok(true),
            (0, 1) => Ok(false),
            streams => Err(format!("{streams:?}")),
        }
    })
    .await;
    cut.cut_off().await;
    route.refuse().await;
    route.cut();
    let waits = client.register("/services/waits:1").in_background().unwrap();
    waits_for_zookeeper(&waits).await;
    // Nothing should happen; a client that moves would have done so more than once in this time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (home, away, way) = if is_here { (&cut.server, &other, &route) } else { (&other, &cut.server, &cut.proxy) };
    assert_eq!((home.streams().await.unwrap(), away.streams().await.unwrap()), (1, 0), "it has moved");
    assert!(stands.state().is_registered(), "{stands:?}");

    way.accept().await;
    is_registered(&waits).await;
    home.wait_for_streams(0).await;
    away.wait_for_streams(1).await;
    assert!(stands.state().is_registered(), "{stands:?}");
}

fn names(lookup: &Lookup) -> Vec<&str> {
    lookup.node.children.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn watches_and_lookups_go_to_a_replica_that_has_zookeeper() {
    let s = Beside::start("watches-move").await;
    s.register("/known/a:1").await.close().await.unwrap();
    let mut view = s.client.watch("/known").view().await.unwrap();
    s.cut.cut_off().await;
    soon("it is stale", view.wait_for(|lookup| lookup.stale)).await.unwrap();
    assert!(s.client.get("/known").await.unwrap().stale, "there is no other");
    let mut unknown = s.client.watch("/unknown").stream();
    assert!(matches!(soon("it has nothing", unknown.next()).await, Some(Ok(Update::Stale { .. }))));

    let elsewhere = Client::connect(s.other.grpc().to_string()).await.unwrap();
    let _b = elsewhere.register("/known/b:1").start().await.unwrap();
    s.door.accept().await;
    let is_news = |lookup: &Lookup| !lookup.stale && lookup.node.children.contains_key("b:1");
    soon("the view is current", view.wait_for(is_news)).await.unwrap();
    let mut told = Vec::new();
    while !matches!(told.last(), Some(Update::Snapshot { .. })) {
        told.push(soon("a snapshot", unknown.next()).await.unwrap().unwrap());
    }
    assert!(matches!(told[..], [Update::Current, Update::Snapshot { .. }]), "{told:?}");
    let found = s.client.get("/known").await.unwrap();
    assert!(!found.stale && names(&found) == ["b:1"], "{found:?}");
    s.cut.server.wait_for_streams(0).await;
}

#[tokio::test]
async fn a_lookup_that_would_be_out_of_date_is_made_at_a_replica_that_has_zookeeper() {
    let s = Beside::start("lookups-move").await;
    let _a = s.register("/known/a:1").await;
    eventually("it is known", SOON, async || {
        let found = s.client.get("/known").await.unwrap();
        check(names(&found) == ["a:1"], || format!("{found:?}"))
    })
    .await;
    s.cut.cut_off().await;
    let elsewhere = Client::connect(s.other.grpc().to_string()).await.unwrap();
    let _b = elsewhere.register("/known/b:1").start().await.unwrap();
    s.door.accept().await;
    eventually("it is current", SOON, async || {
        let found = s.client.get("/known").await.unwrap();
        check(!found.stale && names(&found) == ["a:1", "b:1"], || format!("{found:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_lock_is_waited_for_at_a_replica_that_has_zookeeper() {
    let s = Beside::start("locks-move").await;
    s.cut.cut_off().await;
    let waiting = s.client.lock("/jobs/a").wait(3 * SOON);
    let waiting = tokio::spawn(async move { waiting.acquire().await });
    s.cut.server.wait_for_streams(1).await;
    s.door.accept().await;
    let guard = soon("the lock", waiting).await.unwrap().unwrap();
    // Nothing is left of the request that waited at the other replica.
    s.cut.proxy.accept().await;
    guard.release().await.unwrap();
    let again = soon("the lock", s.client.lock("/jobs/a").acquire()).await.unwrap();
    again.release().await.unwrap();
    s.cut.server.wait_for_streams(0).await;
}

#[tokio::test]
async fn what_another_replica_has_no_room_for_goes_back_and_waits_where_it_was() {
    let s = Beside::start_with("no-room", &["--max-bytes-per-connection=8388608"]).await;
    let value = "x".repeat(250_000);
    let register = |name: String| s.client.register(format!("/services/{name}")).value(value.as_str());
    let mut all = Vec::new();
    for index in 0..40 {
        all.push(register(format!("stands:{index}")).start().await.unwrap());
    }
    s.cut.cut_off().await;
    let waits = register("waits:1".to_owned()).in_background().unwrap();
    waits_for_zookeeper(&waits).await;
    s.door.accept().await;
    s.other.wait_for_streams(1).await;
    s.cut.proxy.accept().await;
    all.push(waits);
    for registration in &all {
        is_registered(registration).await;
    }
    s.other.wait_for_streams(0).await;
    s.cut.server.wait_for_streams(1).await;
    for registration in all {
        assert!(registration.state().is_registered(), "{registration:?}");
        registration.close().await.unwrap();
    }
}
