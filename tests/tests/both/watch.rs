//! Watch: a snapshot, then deltas that add up to ZooKeeper's state. `Watching` checks the rules of the stream at every
//! message: revisions rise, no child is added twice or removed unknown, parts are marked.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{self, BackendState, ChangeKind, WatchRequest};
use rollcall_tests::client::{Registration, data, latest, put, span, text};
use rollcall_tests::follow::Watching;
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::{Value as Json, json};

use super::ARM;

fn watch(path: &str) -> WatchRequest {
    WatchRequest { path: path.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_what_changes() {
    let s = ARM.setting("watch").await;
    s.zk.create("/services/a", b"1").await;
    let mut watching = Watching::start(&s.client, "/services").await;
    assert_eq!((watching.snapshots, watching.known.exists), (1, true));
    assert_eq!(watching.known.children, BTreeMap::from([("a".into(), json!({"text": "1"}))]));

    s.zk.create("/services/b", b"2").await;
    watching.until("b", |known| known.names() == ["a", "b"]).await;
    s.zk.set("/services/a", b"3").await;
    watching.until("a's new data", |known| known.child("a") == json!({"text": "3"})).await;
    s.zk.delete("/services/a").await;
    watching.until("a gone", |known| known.names() == ["b"]).await;
    s.zk.set("/services", b"data").await;
    watching.until("its own data", |known| known.value == json!({"text": "data"})).await;
    let expected = [
        (ChangeKind::Added, "b"),
        (ChangeKind::Updated, "a"),
        (ChangeKind::Removed, "a"),
        (ChangeKind::DataChanged, ""),
    ];
    assert_eq!(watching.changes, expected.map(|(kind, name)| (kind, name.to_owned())));
    assert_eq!(watching.snapshots, 1);
}

#[tokio::test]
async fn registrations_come_and_go() {
    let s = ARM.setting("watch").await;
    let other = s.another_server().await;
    let mut watching = Watching::start(&other.client().await, "/services/ssh").await;
    assert!(!watching.known.exists);
    let mut stream = Registration::open(&s.client).await;
    stream.set("/services/ssh/server1:22", data(json!({"foo": "bar"}))).await;
    watching.until("the registration", |known| known.child("server1:22") == json!({"foo": "bar"})).await;
    drop(stream);
    watching.until("it gone", |known| known.exists && known.children.is_empty()).await;
}

#[tokio::test]
async fn an_absent_path_is_watched_through_all_its_lives() {
    let s = ARM.setting("watch").await;
    let mut watching = Watching::start(&s.client, "/not/yet/there").await;
    assert!(!watching.known.exists && watching.revision > 0);
    for life in 0..3 {
        s.zk.create("/not/yet/there", life.to_string().as_bytes()).await;
        s.zk.create("/not/yet/there/child", b"").await;
        watching.until("its child", |known| known.names() == ["child"]).await;
        assert_eq!(watching.known.value, json!({"text": life.to_string()}));
        for path in ["/not/yet/there/child", "/not/yet/there", "/not/yet", "/not"] {
            s.zk.delete(path).await;
        }
        watching.until("it gone", |known| !known.exists).await;
    }
    assert_eq!(watching.snapshots, 1);
}

#[tokio::test]
async fn deleted_implies_all_children() {
    let s = ARM.setting("watch").await;
    s.zk.create("/gone/a", b"").await;
    s.zk.create("/gone/b", b"").await;
    let mut watching = Watching::start(&s.client, "/gone").await;
    let request = v1::DeleteRequest { path: "/gone".into(), recursive: true, ..Default::default() };
    s.client.clone().delete(request).await.unwrap();
    watching.until("it gone", |known| !known.exists).await;
    assert_eq!(watching.changes.last().unwrap().0, ChangeKind::Deleted);
    s.zk.create("/gone", b"again").await;
    watching.until("it back, without children", |known| known.value == json!({"text": "again"})).await;
    assert!(watching.known.children.is_empty());
}

#[tokio::test]
async fn recursive_shows_the_subtree_by_relative_paths() {
    let s = ARM.setting("watch").await;
    s.zk.create("/tree/a/b", b"1").await;
    let mut watching = Watching::start_with(&s.client, WatchRequest { recursive: true, ..watch("/tree") }).await;
    assert_eq!(watching.known.names(), ["a", "a/b"]);
    s.zk.create("/tree/a/b/c/d", b"2").await;
    watching.until("a/b/c/d", |known| known.names() == ["a", "a/b", "a/b/c", "a/b/c/d"]).await;
    s.zk.set("/tree/a/b", b"3").await;
    watching.until("a/b's data", |known| known.child("a/b") == json!({"text": "3"})).await;
    for path in ["/tree/a/b/c/d", "/tree/a/b/c"] {
        s.zk.delete(path).await;
    }
    watching.until("c gone", |known| known.names() == ["a", "a/b"]).await;
    assert_eq!(watching.known.child("a/b"), json!({"text": "3"}));
}

#[tokio::test]
async fn full_means_that_each_message_is_a_snapshot() {
    let s = ARM.setting("watch").await;
    let mut watching = Watching::start_with(&s.client, WatchRequest { full: true, ..watch("/full") }).await;
    for number in 0..5 {
        s.zk.create(&format!("/full/{number}"), b"x").await;
        watching.until("one more", |known| known.children.len() == number + 1).await;
    }
    assert!(watching.snapshots > 1 && watching.changes.is_empty());
}

#[tokio::test]
async fn a_takeover_with_the_same_data_makes_no_event() {
    let s = ARM.setting("watch").await;
    let value = || data(json!({"a": 1, "created": "2026-11-22 09:38:38"}));
    let mut first = Registration::open(&s.client).await;
    first.set("/quiet/one", value()).await;
    let mut watching = Watching::start(&s.client, "/quiet").await;
    let mut second = Registration::open(&s.client).await;
    second.set("/quiet/one", value()).await;
    first.lost().await;
    second.set("/quiet/two", value()).await;
    watching.until("what comes after the takeover", |known| known.names() == ["one", "two"]).await;
    assert_eq!(watching.changes, [(ChangeKind::Added, "two".to_owned())]);
}

#[tokio::test]
async fn a_put_back_makes_no_net_change() {
    let s = ARM.setting("watch").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/back/one", text("x")).await;
    let mut watching = Watching::start(&s.client, "/back").await;
    s.zk.delete("/back/one").await;
    assert!(stream.registered().await.restored);
    stream.set("/back/two", text("x")).await;
    watching.until("both", |known| known.names() == ["one", "two"]).await;
}

#[tokio::test]
async fn our_own_subtree_is_hidden_from_watches() {
    let s = ARM.setting("watch").await;
    let mut children = Watching::start(&s.client, "/").await;
    let mut subtree = Watching::start_with(&s.client, WatchRequest { recursive: true, ..watch("/") }).await;
    // A lock and registrations create nodes below `/.rollcall`.
    let mut stream = Registration::open(&s.client).await;
    stream.set("/seen", text("1")).await;
    stream.set("/seen", text("2")).await;
    children.until("the registration", |known| known.child("seen") == json!({"text": "2"})).await;
    subtree.until("the registration", |known| known.child("seen") == json!({"text": "2"})).await;
    assert!(s.zk.exists("/.rollcall").await, "there is something to hide");
    for known in [&children.known, &subtree.known] {
        assert_eq!(known.names(), ["seen"]);
    }
    assert!(subtree.changes.iter().all(|(_, name)| !name.starts_with(".rollcall")));
}

#[tokio::test]
async fn a_quiet_watch_sends_heartbeats() {
    let s = ARM.setting("watch").await;
    let request = WatchRequest { heartbeat: Some(span(Duration::from_secs(1))), ..watch("/quiet") };
    let mut watching = Watching::start_with(&s.client, request).await;
    let revision = watching.revision;
    for _ in 0..2 {
        let message = watching.step().await;
        assert!(matches!(message.event, Some(Event::Current(_))), "{message:?}");
        assert!(message.revision >= revision);
    }
}

#[tokio::test]
async fn a_watch_is_told_how_the_replica_stands_with_zookeeper() {
    let s = ARM.behind_a_proxy("watch", &["--session-timeout", "3s"]).await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/away/one", text("x")).await;
    let request = WatchRequest { heartbeat: Some(span(Duration::from_secs(1))), ..watch("/away") };
    let mut watching = Watching::start_with(&s.client, request).await;
    watching.until("the registration", |known| known.names() == ["one"]).await;
    let revision = watching.revision;
    s.cut_off().await;
    let mut states = Vec::new();
    // The next ZooKeeper session begins after the end of this one, which removes the registration.
    let mut is_over = false;
    while states.last() != Some(&BackendState::Connected) {
        let message = watching.step().await;
        match message.event.unwrap() {
            Event::Backend(backend) => {
                let is_away = backend.state() != BackendState::Connected;
                assert_eq!((message.stale, backend.as_of.is_some()), (is_away, is_away));
                states.push(backend.state());
            }
            Event::Current(_) if states.is_empty() => {}
            Event::Current(_) => {
                assert_eq!((message.stale, message.revision), (true, revision), "a heartbeat while it is away");
                if !is_over && !s.zk.exists("/away/one").await {
                    is_over = true;
                    s.proxy.accept().await;
                }
            }
            // The registration was removed, and made again.
            Event::Delta(_) => assert!(is_over),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(states, [BackendState::Suspended, BackendState::Lost, BackendState::Connected]);
    stream.registered().await;
    watching.until("the registration, again", |known| known.names() == ["one"]).await;
}

#[tokio::test]
async fn a_client_that_comes_back_is_never_refused_and_never_goes_back() {
    let s = ARM.setting("watch").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    put(&s.client, "/since", text("1")).await.unwrap();
    s.zk.create("/since/a", b"1").await;
    let watching = Watching::start(&s.client, "/since").await;
    let (since_revision, mut known) = (watching.revision, watching.known.clone());
    drop(watching);
    // Nothing has changed; something has changed; a revision that does not exist yet.
    for round in 0..3 {
        for client in [&s.client, &other_client] {
            let since_revision = if round == 2 { since_revision + 1_000_000 } else { since_revision };
            let request = WatchRequest { since_revision, ..watch("/since") };
            let mut stream = client.clone().watch(request).await.unwrap().into_inner();
            let message = stream.message().await.unwrap().unwrap();
            match message.event.unwrap() {
                Event::Current(_) => assert!(round != 1, "something has changed"),
                Event::Delta(delta) => {
                    assert_eq!(round, 1);
                    let changes: Vec<_> =
                        delta.changes.iter().map(|change| (change.kind(), change.name.as_str())).collect();
                    assert_eq!(changes, [(ChangeKind::Added, "b")]);
                }
                Event::Snapshot(snapshot) => {
                    let names: Vec<_> = snapshot.node.unwrap().children.into_keys().collect();
                    assert_eq!(names, known.names());
                }
                other => panic!("{other:?}"),
            }
            if round < 2 {
                assert!(message.revision >= since_revision);
            }
        }
        if round == 0 {
            s.zk.create("/since/b", b"2").await;
            known.children.insert("b".into(), json!({"text": "2"}));
            for client in [&s.client, &other_client] {
                client.clone().get(latest("/since")).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_large_state_comes_in_parts() {
    let s = ARM.setting("watch").await;
    let value = vec![b'x'; 250 * 1024];
    for number in 0..10 {
        s.zk.create(&format!("/large/{number}"), &value).await;
    }
    let mut stream = s.client.clone().watch(watch("/large")).await.unwrap().into_inner();
    let (mut parts, mut names) = (0, Vec::new());
    loop {
        let message = stream.message().await.unwrap().unwrap();
        let Some(Event::Snapshot(snapshot)) = message.event else { panic!("{message:?}") };
        parts += 1;
        names.extend(snapshot.node.unwrap().children.into_keys());
        assert_eq!(snapshot.more, message.revision == 0);
        if !snapshot.more {
            break;
        }
    }
    assert!(parts >= 3, "2.5 MB in parts of at most 1 MiB took {parts}");
    names.sort();
    assert_eq!(names, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_view_that_nobody_uses_is_dropped_and_one_that_is_watched_is_not() {
    let s = ARM.setting_with("watch", &["--view-idle", "1s"]).await;
    s.zk.create("/idle/one", b"1").await;
    s.zk.create("/watched/one", b"1").await;
    let mut watching = Watching::start(&s.client, "/watched").await;
    s.client.clone().get(latest("/idle")).await.unwrap();
    s.server.wait_for_metric("rollcall_views 2").await;
    s.server.wait_for_metric("rollcall_views 1").await;
    s.zk.create("/idle/two", b"2").await;
    s.zk.create("/watched/two", b"2").await;
    watching.until("the second", |known| known.names() == ["one", "two"]).await;
    assert_eq!(watching.snapshots, 1);
    let answer = s.client.clone().get(latest("/idle")).await.unwrap().into_inner();
    assert_eq!(answer.node.unwrap().children.len(), 2);
    drop(watching);
    s.server.wait_for_metric("rollcall_views 0").await;
}

#[tokio::test]
async fn fifty_thousand_children_fit_every_clients_limits() {
    const COUNT: usize = 50_000;
    let s = ARM.setting("watch").await;
    s.zk.create("/crowd", b"").await;
    for chunk in 0..COUNT / 500 {
        let names = (0..500).map(|number| format!("/crowd/server-{:05}.example.com:8080", chunk * 500 + number));
        s.zk.create_many(names, br#"{"host":"server","port":8080}"#).await;
    }
    // This client refuses messages over 2 MiB.
    let mut watching = Watching::start(&s.client, "/crowd").await;
    watching.until("all children", |known| known.children.len() == COUNT).await;
    assert_eq!(watching.snapshots, 1);
    let (mut names, mut token) = (0, String::new());
    loop {
        let request = v1::GetRequest { path: "/crowd".into(), page_token: token, ..Default::default() };
        let answer = s.client.clone().get(request).await.unwrap().into_inner();
        names += answer.node.unwrap().children.len();
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, COUNT);
    s.zk.create("/crowd/one more", b"1").await;
    watching.until("one more", |known| known.child("one more") == json!({"text": "1"})).await;
    assert_eq!((watching.snapshots, watching.changes.len()), (1, 1));
}

/// Creates, changes and deletes nodes at random below a path, and sometimes the path itself.
async fn churn(zk: &Witness, root: &str, steps: usize, random: &mut StdRng) {
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    for step in 0..steps {
        if !zk.exists(root).await {
            zk.create(root, b"").await;
        }
        let name = random.random_range(0..12).to_string();
        let path = format!("{root}/{name}");
        match (names.contains_key(&name), random.random_range(0..10)) {
            (_, 0) => {
                for name in std::mem::take(&mut names).into_keys() {
                    zk.delete(&format!("{root}/{name}")).await;
                }
                zk.delete(root).await;
            }
            (_, 1) => zk.set(root, format!("{step}").as_bytes()).await,
            (false, _) => {
                zk.create(&path, format!("{step}").as_bytes()).await;
                names.insert(name, 0);
            }
            (true, 2..6) => {
                zk.delete(&path).await;
                names.remove(&name);
            }
            (true, _) => zk.set(&path, format!("{step}").as_bytes()).await,
        }
    }
    // The last change, which shows that all earlier ones have arrived.
    if !zk.exists(root).await {
        zk.create(root, b"").await;
    }
    zk.create(&format!("{root}/end"), b"").await;
}

#[tokio::test]
async fn after_quiet_what_is_known_is_what_zookeeper_has() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let s = ARM.setting("watch").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let mut watchers = vec![
        Watching::start(&s.client, "/churn").await,
        Watching::start(&other_client, "/churn").await,
        Watching::start_with(&s.client, WatchRequest { recursive: true, ..watch("/churn") }).await,
        Watching::start_with(&s.client, WatchRequest { full: true, ..watch("/churn") }).await,
    ];
    churn(&s.zk, "/churn", 400, &mut random).await;
    // A late watcher sees the same.
    watchers.push(Watching::start(&s.client, "/churn").await);
    let mut truth = BTreeMap::new();
    for name in s.zk.children("/churn").await.unwrap() {
        let node = s.zk.get(&format!("/churn/{name}")).await.unwrap();
        truth.insert(name, if node.data.is_empty() { Json::Null } else { json!({ "text": node.text() }) });
    }
    for (number, watching) in watchers.iter_mut().enumerate() {
        watching.until("the end of the churn", |known| known.children.contains_key("end")).await;
        assert_eq!(watching.known.children, truth, "watcher {number}");
    }
}
