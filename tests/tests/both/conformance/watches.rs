//! Watches: which events are sent, when, and which are not.

use std::collections::BTreeMap;

use rollcall_tests::raw::resumption;
use rollcall_wire::EventKind::{ChildrenChanged, Created, DataChanged, Deleted};
use rollcall_wire::{CreateMode, Encoder, ErrorCode, OpCode, Request, Response, WatchMode};

use super::{Client, Ground, create, create_with, delete, exists, get, ground, private, proof, set, stat_of, told};

fn recursive(path: &str) -> Request {
    Request::AddWatch { path: path.into(), mode: WatchMode::PersistentRecursive }
}

/// A client that watches everything, and one that writes.
async fn watcher_and_writer(ground: &Ground) -> (Client, Client) {
    let (mut watcher, writer) = (ground.client().await, ground.client().await);
    watcher.done(recursive("/")).await;
    (watcher, writer)
}

#[tokio::test]
async fn a_recursive_watch_tells_each_change_once_with_its_transaction_in_order() {
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    let mut expected = Vec::new();
    let script = [
        (create("/a", CreateMode::Persistent), Created, "/a"),
        (create("/a/b", CreateMode::Persistent), Created, "/a/b"),
        (create("/a/b/c", CreateMode::Ephemeral), Created, "/a/b/c"),
        (set("/a/b/c", 0), DataChanged, "/a/b/c"),
        (set("/a", 0), DataChanged, "/a"),
        (set("/a", 1), DataChanged, "/a"),
        (delete("/a/b/c", -1), Deleted, "/a/b/c"),
        (delete("/a/b", -1), Deleted, "/a/b"),
        (set("/", -1), DataChanged, "/"),
        (delete("/a", -1), Deleted, "/a"),
        (create("/a", CreateMode::Persistent), Created, "/a"),
    ];
    for (request, kind, path) in script {
        expected.push((writer.done(request).await.0, kind, path));
    }
    writer.refused(set("/a", 5)).await;
    let events = watcher.events().await;
    let heard: Vec<_> = events.iter().map(|event| (event.zxid, event.kind, event.path.as_str())).collect();
    assert_eq!(heard, expected, "and no lists of children");
}

#[tokio::test]
async fn the_parts_of_a_multi_are_told_in_their_order() {
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    writer.plant(&["/a", "/b"]).await;
    watcher.events().await;
    let parts = vec![
        set("/b", 0),
        delete("/a", 0),
        create("/a", CreateMode::Ephemeral),
        set("/b", 1),
        create("/b/c", CreateMode::Persistent),
    ];
    let (zxid, _) = writer.multi(parts).await;
    let events = watcher.events().await;
    let expected = [(DataChanged, "/b"), (Deleted, "/a"), (Created, "/a"), (DataChanged, "/b"), (Created, "/b/c")];
    assert_eq!(told(&events), expected);
    assert!(events.iter().all(|event| event.zxid == zxid));
    let failed = vec![set("/b", 2), set("/b", 7)];
    assert!(writer.multi(failed).await.1[1].is_err());
    assert_eq!(watcher.events().await, []);
}

#[tokio::test]
async fn the_events_before_an_answer_are_exactly_those_of_what_it_shows() {
    const ROUNDS: i32 = 300;
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    writer.plant(&["/a"]).await;
    let writes = async {
        let mut sent = Vec::new();
        for version in 0..ROUNDS {
            sent.push(writer.send(set("/a", version)).await);
            if sent.len() == 10 {
                for sent in sent.drain(..) {
                    writer.answer(sent).await.result.unwrap();
                }
            }
        }
    };
    let reads = async {
        let (mut heard, mut shown) = (0, 0);
        while shown < ROUNDS {
            // Several requests in flight, as when a view is read.
            let sent = [
                watcher.send(Request::MultiRead(vec![get("/a")])).await,
                watcher.send(Request::MultiRead(vec![get("/a")])).await,
                watcher.send(Request::MultiRead(vec![get("/a")])).await,
            ];
            for sent in sent {
                let answer = watcher.answer(sent).await;
                heard += answer.events.iter().filter(|event| event.kind == DataChanged).count();
                let Ok(Response::Parts(parts)) = answer.result else { panic!("no parts") };
                shown = stat_of(parts[0].as_ref().unwrap()).version;
                assert_eq!(usize::try_from(shown).unwrap(), heard, "no event is late, and none is early");
            }
        }
    };
    tokio::join!(writes, reads);
}

#[tokio::test]
async fn who_writes_is_told_of_it_before_the_answer() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.done(recursive("/")).await;
    let answer = client.ask(create("/a", CreateMode::Ephemeral)).await;
    assert_eq!(told(&answer.events), [(Created, "/a")]);
    assert_eq!(answer.events[0].zxid, answer.zxid);
}

#[tokio::test]
async fn a_change_under_several_watches_of_a_session_is_told_once() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a", "/a/b"]).await;
    for path in ["/", "/a", "/a/b", "/a/b"] {
        client.done(recursive(path)).await;
    }
    assert_eq!(told(&client.ask(set("/a/b", 0)).await.events), [(DataChanged, "/a/b")]);
    assert_eq!(told(&client.ask(create("/a/b/c", CreateMode::Persistent)).await.events), [(Created, "/a/b/c")]);
    // The remaining watches still report the changes that they cover.
    client.done(Request::RemoveWatches { path: "/".into() }).await;
    client.done(Request::RemoveWatches { path: "/a/b".into() }).await;
    assert_eq!(told(&client.ask(set("/a/b", 1)).await.events), [(DataChanged, "/a/b")]);
    assert_eq!(client.ask(set("/", -1)).await.events, []);
    client.done(Request::RemoveWatches { path: "/a".into() }).await;
    assert_eq!(client.ask(set("/a/b", 2)).await.events, []);
    assert_eq!(client.refused(Request::RemoveWatches { path: "/a".into() }).await, ErrorCode::NoWatcher);
}

#[tokio::test]
async fn what_is_not_there_yet_can_be_watched() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.done(recursive("/a/b")).await;
    client.plant(&["/a"]).await;
    assert_eq!(told(&client.ask(create("/a/b", CreateMode::Persistent)).await.events), [(Created, "/a/b")]);
    assert_eq!(told(&client.ask(create("/a/b/c", CreateMode::Persistent)).await.events), [(Created, "/a/b/c")]);
    assert_eq!(client.ask(create("/a/bc", CreateMode::Persistent)).await.events, [], "a name alike is no child");
}

#[tokio::test]
async fn a_persistent_watch_that_is_not_recursive_covers_the_node_and_its_list() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a"]).await;
    client.done(Request::AddWatch { path: "/a".into(), mode: WatchMode::Persistent }).await;
    for _ in 0..2 {
        assert_eq!(told(&client.ask(create("/a/b", CreateMode::Persistent)).await.events), [(ChildrenChanged, "/a")]);
        assert_eq!(client.ask(set("/a/b", 0)).await.events, []);
        assert_eq!(told(&client.ask(set("/a", -1)).await.events), [(DataChanged, "/a")]);
        assert_eq!(told(&client.ask(delete("/a/b", -1)).await.events), [(ChildrenChanged, "/a")]);
    }
    assert_eq!(told(&client.ask(delete("/a", -1)).await.events), [(Deleted, "/a")]);
}

#[tokio::test]
async fn a_watch_that_a_read_of_data_sets_fires_once_at_a_write_or_the_end() {
    let ground = ground().await;
    let (mut watcher, mut writer) = (ground.client().await, ground.client().await);
    writer.plant(&["/a"]).await;
    let watch = || Request::GetData { path: "/a".into(), watch: true };
    watcher.done(watch()).await;
    watcher.done(watch()).await;
    writer.plant(&["/a/b"]).await;
    assert_eq!(watcher.events().await, [], "children are no concern of it");
    let (zxid, _) = writer.done(set("/a", 0)).await;
    writer.done(set("/a", 1)).await;
    let events = watcher.events().await;
    assert_eq!((told(&events), events[0].zxid), (vec![(DataChanged, "/a")], zxid));
    watcher.done(watch()).await;
    writer.done(delete("/a/b", -1)).await;
    writer.done(delete("/a", -1)).await;
    writer.plant(&["/a"]).await;
    assert_eq!(told(&watcher.events().await), [(Deleted, "/a")]);
    // A read of an absent node's data or children sets no watch, so nothing is left behind.
    assert_eq!(watcher.refused(Request::GetData { path: "/none".into(), watch: true }).await, ErrorCode::NoNode);
    assert_eq!(watcher.refused(Request::GetChildren { path: "/none".into(), watch: true }).await, ErrorCode::NoNode);
    writer.plant(&["/none"]).await;
    assert_eq!(watcher.events().await, []);
    // `exists` on an absent node sets one.
    assert_eq!(watcher.refused(Request::Exists { path: "/soon".into(), watch: true }).await, ErrorCode::NoNode);
    writer.plant(&["/soon"]).await;
    assert_eq!(told(&watcher.events().await), [(Created, "/soon")]);
}

#[tokio::test]
async fn a_watch_that_a_list_sets_fires_once_at_a_child_or_the_end() {
    let ground = ground().await;
    let (mut watcher, mut writer) = (ground.client().await, ground.client().await);
    writer.plant(&["/a", "/a/b"]).await;
    let watch = || Request::GetChildren { path: "/a".into(), watch: true };
    watcher.done(watch()).await;
    writer.done(set("/a", -1)).await;
    writer.done(set("/a/b", -1)).await;
    writer.plant(&["/a/b/c"]).await;
    assert_eq!(watcher.events().await, [], "neither data nor what is further below concerns it");
    let parts = vec![create("/a/x", CreateMode::Ephemeral), create("/a/y", CreateMode::Ephemeral)];
    let (zxid, _) = writer.multi(parts).await;
    let events = watcher.events().await;
    assert_eq!((told(&events), events[0].zxid), (vec![(ChildrenChanged, "/a")], zxid));
    watcher.done(watch()).await;
    writer.done(delete("/a/x", -1)).await;
    assert_eq!(told(&watcher.events().await), [(ChildrenChanged, "/a")]);
    watcher.done(watch()).await;
    let parts = vec![delete("/a/b/c", -1), set("/a/b", -1)];
    writer.multi(parts).await;
    assert_eq!(watcher.events().await, []);
    writer.done(delete("/a/b", -1)).await;
    watcher.events().await;
    writer.done(delete("/a/y", -1)).await;
    watcher.done(watch()).await;
    writer.done(delete("/a", -1)).await;
    assert_eq!(told(&watcher.events().await), [(Deleted, "/a")]);
}

#[tokio::test]
async fn who_may_not_read_a_node_is_not_told_of_it() {
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    writer.done(proof()).await;
    writer.done(create_with("/private", CreateMode::Persistent, private())).await;
    writer.done(set("/private", 0)).await;
    writer.done(create("/private/open", CreateMode::Persistent)).await;
    assert_eq!(told(&watcher.events().await), [(Created, "/private/open")]);
}

#[tokio::test]
async fn watches_end_with_their_connection_and_what_is_missed_is_not_told() {
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    writer.plant(&["/a"]).await;
    watcher.done(Request::Exists { path: "/a".into(), watch: true }).await;
    watcher.raw.hang_up().await;
    let mut again = ground.open(&resumption(watcher.session())).await.unwrap();
    writer.done(set("/a", 0)).await;
    assert_eq!(again.events().await, []);
    again.done(recursive("/")).await;
    writer.done(set("/a", 1)).await;
    assert_eq!(told(&again.events().await), [(DataChanged, "/a")]);
}

/// The five lists of `setWatches2`.
enum List {
    Data,
    Exist,
    Child,
    Persistent,
    Recursive,
}

#[tokio::test]
async fn who_sets_watches_again_is_told_what_one_shot_watches_have_missed() {
    let ground = ground().await;
    let (mut watcher, mut writer) = watcher_and_writer(&ground).await;
    writer.plant(&["/written", "/deleted", "/quiet", "/parent", "/parent/child", "/childless", "/kept"]).await;
    let (seen, _) = writer.done(set("/quiet", 0)).await;
    watcher.raw.hang_up().await;
    writer.done(set("/written", 0)).await;
    writer.done(delete("/deleted", -1)).await;
    writer.done(create("/created", CreateMode::Persistent)).await;
    writer.done(delete("/parent/child", -1)).await;
    writer.done(set("/kept", 0)).await;
    let mut again = ground.open(&resumption(watcher.session())).await.unwrap();
    let mut lists: [Vec<String>; 5] = Default::default();
    for (list, path) in [
        (List::Data, "/written"),
        (List::Data, "/deleted"),
        (List::Data, "/quiet"),
        (List::Exist, "/created"),
        (List::Exist, "/absent"),
        (List::Child, "/parent"),
        (List::Child, "/childless"),
        (List::Persistent, "/kept"),
        (List::Recursive, "/quiet"),
    ] {
        lists[list as usize].push(again.outer(path));
    }
    let mut encoder = Encoder::new();
    encoder.long(seen);
    for list in lists {
        encoder.count(list.len());
        list.iter().for_each(|path| encoder.string(path));
    }
    let xid = again.raw.send(OpCode::SetWatches2, &encoder.take()).await;
    let answer = again.answer(super::Sent { op_code: OpCode::SetWatches2, xid }).await;
    assert_eq!(answer.result, Ok(Response::Done));
    let heard: BTreeMap<_, _> = told(&answer.events).into_iter().map(|(kind, path)| (path, kind)).collect();
    let expected =
        [("/created", Created), ("/deleted", Deleted), ("/parent", ChildrenChanged), ("/written", DataChanged)];
    assert_eq!(heard, BTreeMap::from(expected));
    // The other watches are set.
    writer.plant(&["/absent", "/childless/child", "/quiet/below"]).await;
    writer.done(set("/kept", 1)).await;
    writer.done(set("/quiet", 1)).await;
    let expected = [
        (Created, "/absent"),
        (ChildrenChanged, "/childless"),
        (Created, "/quiet/below"),
        (DataChanged, "/kept"),
        (DataChanged, "/quiet"),
    ];
    assert_eq!(told(&again.events().await), expected);
    assert!(again.ask(exists("/written")).await.events.is_empty());
}
