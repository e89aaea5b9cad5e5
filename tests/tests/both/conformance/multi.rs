//! Multis: all or nothing, in one transaction.

use rollcall_wire::{CreateMode, ErrorCode, Request, Response, WatchMode};

use super::{Client, Ground, check, create, create_with, delete, get, ground, private, proof, set, stat_of, told};
use rollcall_wire::EventKind;

fn codes(parts: &[Result<Response, ErrorCode>]) -> Vec<Option<ErrorCode>> {
    parts.iter().map(|part| part.as_ref().err().copied()).collect()
}

#[tokio::test]
async fn all_parts_are_one_transaction_and_its_number_is_in_the_header() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a", "/gone"]).await;
    let (zxid, parts) = client
        .multi(vec![
            set("/a", 0),
            create("/a/durable", CreateMode::Persistent),
            delete("/gone", 0),
            create("/mine", CreateMode::Ephemeral),
            check("/a", 1),
        ])
        .await;
    assert_eq!(codes(&parts), [None; 5]);
    assert_eq!(stat_of(parts[0].as_ref().unwrap()).version, 1);
    let mine = client.stat("/mine").await.unwrap();
    assert_eq!((mine.czxid, mine.ephemeral_owner), (zxid, client.id()));
    assert_eq!(client.stat("/a/durable").await.unwrap().czxid, zxid);
    let a = client.stat("/a").await.unwrap();
    assert_eq!((a.mzxid, a.pzxid), (zxid, zxid));
    assert!(client.stat("/gone").await.is_none());
    assert_eq!(client.stat("/").await.unwrap().pzxid, zxid);
}

#[tokio::test]
async fn the_part_that_fails_is_named_and_nothing_is_done() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.done(proof()).await;
    client.plant(&["/a", "/a/b"]).await;
    client.create("/mine", CreateMode::Ephemeral).await;
    client.done(create_with("/private", CreateMode::Persistent, private())).await;
    let mut other = ground.client().await;
    let before = other.stat("/").await.unwrap();
    let failures = [
        (create("/a", CreateMode::Persistent), ErrorCode::NodeExists),
        (create("/no/parent", CreateMode::Ephemeral), ErrorCode::NoNode),
        (create("/mine/child", CreateMode::Ephemeral), ErrorCode::NoChildrenForEphemerals),
        (create("/private/child", CreateMode::Ephemeral), ErrorCode::NoAuth),
        (delete("/a", -1), ErrorCode::NotEmpty),
        (delete("/none", -1), ErrorCode::NoNode),
        (set("/a", 7), ErrorCode::BadVersion),
        (set("/private", -1), ErrorCode::NoAuth),
        (check("/a", 3), ErrorCode::BadVersion),
        (check("/none", -1), ErrorCode::NoNode),
    ];
    for (failure, code) in failures {
        for index in [0, 2, 4] {
            let mut parts =
                vec![set("/a", 0), create("/new", CreateMode::Ephemeral), set("/mine", 0), delete("/a/b", 0)];
            parts.insert(index, failure.clone());
            // Without its only child `/a` could be deleted.
            if index == 4 && code == ErrorCode::NotEmpty {
                parts.remove(3);
                parts.insert(0, check("/a", 0));
            }
            let (_, results) = other.multi(parts).await;
            let expected: Vec<_> = (0..5)
                .map(|part: usize| match part.cmp(&index) {
                    std::cmp::Ordering::Less => None,
                    std::cmp::Ordering::Equal => Some(code),
                    std::cmp::Ordering::Greater => Some(ErrorCode::RuntimeInconsistency),
                })
                .collect();
            assert_eq!(codes(&results), expected, "{failure:?} at {index}");
        }
    }
    assert_eq!(other.stat("/").await, Some(before));
    let versions = [other.stat("/a").await.unwrap().version, other.stat("/mine").await.unwrap().version];
    assert_eq!((versions, other.stat("/a/b").await.is_some()), ([0, 0], true));
    assert!(other.events().await.is_empty());
}

#[tokio::test]
async fn a_part_sees_what_the_parts_before_it_have_done() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let before = client.create("/a", CreateMode::Persistent).await;
    let (zxid, parts) = client
        .multi(vec![
            create("/p", CreateMode::Persistent),
            create("/p/c", CreateMode::Ephemeral),
            set("/p", 0),
            set("/p", 1),
            check("/p", 2),
            delete("/p/c", 0),
            delete("/p", 2),
            // A new incarnation.
            delete("/a", 0),
            create("/a", CreateMode::Ephemeral),
            check("/a", 0),
        ])
        .await;
    assert_eq!(codes(&parts), [None; 10]);
    assert!(client.stat("/p").await.is_none());
    let after = client.stat("/a").await.unwrap();
    assert!(after.czxid == zxid && zxid > before.czxid && after.ephemeral_owner == client.id());
    let (_, parts) = client.multi(vec![delete("/a", 0), set("/a", 0)]).await;
    assert_eq!(codes(&parts), [None, Some(ErrorCode::NoNode)]);
}

/// A session with a fence, and with a node if one is given.
async fn owner(ground: &Ground, fence: &str, node: Option<&str>) -> Client {
    let mut client = ground.client_for(std::time::Duration::from_secs(2)).await;
    client.create(fence, CreateMode::Ephemeral).await;
    if let Some(node) = node {
        client.create(node, CreateMode::Ephemeral).await;
    }
    client
}

fn takeover(fence: &str, version: i32, node: &str) -> Vec<Request> {
    vec![set(fence, version), delete(node, 0), create(node, CreateMode::Ephemeral)]
}

#[tokio::test]
async fn a_takeover_replaces_a_node_without_a_moment_and_outlives_who_had_it() {
    let ground = ground().await;
    let mut old = owner(&ground, "/old", Some("/node")).await;
    let mut new = ground.client().await;
    let mut watcher = ground.client().await;
    watcher.done(Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive }).await;
    let (zxid, parts) = new.multi(takeover("/old", 0, "/node")).await;
    assert_eq!(codes(&parts), [None; 3]);
    let events = watcher.events().await;
    let expected = [(EventKind::DataChanged, "/old"), (EventKind::Deleted, "/node"), (EventKind::Created, "/node")];
    assert_eq!(told(&events), expected);
    assert!(events.iter().all(|event| event.zxid == zxid), "{events:?}");
    // The old owner finds its fence moved when it deletes by it, although the node has the same version as before.
    let (_, parts) = old.multi(vec![set("/old", 0), delete("/node", 0)]).await;
    assert_eq!(codes(&parts), [Some(ErrorCode::BadVersion), Some(ErrorCode::RuntimeInconsistency)]);
    old.done(Request::CloseSession).await;
    assert_eq!(told(&watcher.events().await), [(EventKind::Deleted, "/old")]);
    let node = watcher.stat("/node").await.unwrap();
    assert_eq!((node.czxid, node.version, node.ephemeral_owner), (zxid, 0, new.id()));
}

#[tokio::test]
async fn of_all_who_write_one_fence_at_one_version_one_succeeds() {
    let ground = ground().await;
    let mut old = owner(&ground, "/old", Some("/node")).await;
    let mut rivals = Vec::new();
    for _ in 0..4 {
        rivals.push(ground.client().await);
    }
    for version in 0..20 {
        let mut sent = Vec::new();
        for rival in &mut rivals {
            sent.push(rival.send(Request::Multi(takeover("/old", version, "/node"))).await);
        }
        let mut winners = Vec::new();
        for (rival, sent) in rivals.iter_mut().zip(sent) {
            let Ok(Response::Parts(parts)) = rival.answer(sent).await.result else { panic!("no parts") };
            match codes(&parts)[0] {
                None => winners.push(rival.id()),
                code => assert_eq!(code, Some(ErrorCode::BadVersion)),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(old.stat("/node").await.unwrap().ephemeral_owner, winners[0]);
    }
}

#[tokio::test]
async fn a_fence_that_is_gone_fails_the_multi_at_its_part() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/node"]).await;
    let (_, parts) = client.multi(takeover("/none", 0, "/node")).await;
    assert_eq!(
        codes(&parts),
        [ErrorCode::NoNode, ErrorCode::RuntimeInconsistency, ErrorCode::RuntimeInconsistency].map(Some)
    );
}

#[tokio::test]
async fn a_batch_of_hundreds_is_one_transaction() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let nodes: Vec<_> = (0..500).map(|number| format!("/{number}")).collect();
    let creates = nodes.iter().map(|path| create(path, CreateMode::Ephemeral)).collect();
    let (zxid, parts) = client.multi(creates).await;
    assert_eq!(codes(&parts), [None; 500]);
    for read in client.multi_read(nodes.iter().map(|path| get(path)).collect()).await {
        let stat = stat_of(&read.unwrap());
        assert_eq!((stat.czxid, stat.ephemeral_owner), (zxid, client.id()));
    }
    let mut deletes: Vec<_> = nodes.iter().map(|path| delete(path, 0)).collect();
    deletes.push(delete("/none", 0));
    let (_, parts) = client.multi(deletes).await;
    assert_eq!(parts[500], Err(ErrorCode::NoNode));
    assert_eq!(client.stat("/").await.unwrap().num_children, 500);
}

#[tokio::test]
async fn a_multi_without_parts_is_done() {
    let ground = ground().await;
    let (_, parts) = ground.client().await.multi(Vec::new()).await;
    assert_eq!(parts, []);
}
