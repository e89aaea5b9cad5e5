//! Reads: the contents of a multi read, the stats, and the transaction id of a read.

use rollcall_wire::{CreateMode, ErrorCode, Request, Response};

use super::{create, create_with, delete, exists, get, ground, list, names_of, private, proof, set, stat_of};

#[tokio::test]
async fn a_multi_read_answers_part_by_part() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.done(proof()).await;
    client.plant(&["/a", "/a/x", "/a/y"]).await;
    client.done(create_with("/private", CreateMode::Persistent, private())).await;
    let mut other = ground.client().await;
    let requests =
        vec![get("/none"), get("/a"), list("/a"), get("/private"), list("/private"), list("/none"), get("/a/x")];
    let parts = other.multi_read(requests).await;
    assert_eq!(parts.len(), 7);
    assert_eq!(parts[0], Err(ErrorCode::NoNode));
    assert_eq!(stat_of(parts[1].as_ref().unwrap()), other.stat("/a").await.unwrap());
    assert_eq!(names_of(parts[2].as_ref().unwrap()), ["x", "y"]);
    assert_eq!(parts[3..6], [Err(ErrorCode::NoAuth), Err(ErrorCode::NoAuth), Err(ErrorCode::NoNode)]);
    assert!(matches!(&parts[6], Ok(Response::Data { data, .. }) if data == "data"));
    assert!(other.multi_read(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_multi_read_is_of_one_moment() {
    const ROUNDS: i32 = 200;
    let ground = ground().await;
    let mut writer = ground.client().await;
    writer.multi(["/one", "/two"].map(|path| create(path, CreateMode::Persistent)).to_vec()).await;
    let writes = async {
        let mut sent = Vec::new();
        for version in 0..ROUNDS {
            sent.push(writer.send(Request::Multi(vec![set("/one", version), set("/two", version)])).await);
            // Waiting for the answers lets the reader run.
            if sent.len() == 10 {
                for sent in sent.drain(..) {
                    writer.answer(sent).await.result.unwrap();
                }
            }
        }
    };
    let mut reader = ground.client().await;
    let reads = async {
        let mut seen = 0;
        while seen < ROUNDS {
            let parts = reader.multi_read(vec![get("/one"), get("/two")]).await;
            let [one, two] = [0, 1].map(|index: usize| stat_of(parts[index].as_ref().unwrap()));
            assert_eq!((one.version, one.mzxid), (two.version, two.mzxid));
            assert!(one.version >= seen);
            seen = one.version;
        }
    };
    tokio::join!(writes, reads);
}

#[tokio::test]
async fn the_header_of_a_read_dates_all_that_it_shows() {
    let ground = ground().await;
    let (mut writer, mut reader) = (ground.client().await, ground.client().await);
    writer.plant(&["/a"]).await;
    let mut last = 0;
    for version in 0..20 {
        let (written, _) = writer.done(set("/a", version)).await;
        for request in [get("/a"), exists("/a"), list("/a"), Request::MultiRead(vec![get("/a")])] {
            let (zxid, response) = reader.done(request).await;
            assert!(zxid >= written && zxid >= last, "{zxid} shows {written}");
            last = zxid;
            let shown = match response {
                Response::Parts(mut parts) => parts.remove(0).unwrap(),
                response => response,
            };
            assert_eq!(stat_of(&shown).mzxid, written);
        }
        let refusal = reader.ask(get("/none")).await;
        assert!(refusal.zxid >= written);
    }
}

#[tokio::test]
async fn children_that_come_and_go_move_their_parent_and_nothing_else() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a"]).await;
    let a = client.create("/a/b", CreateMode::Persistent).await;
    let before = client.stat("/a").await.unwrap();
    assert_eq!((before.pzxid, before.num_children, before.cversion, before.version), (a.czxid, 1, 1, 0));
    // Neither the child's data nor its descendants change it.
    client.done(set("/a/b", 0)).await;
    client.plant(&["/a/b/c"]).await;
    assert_eq!(client.stat("/a").await, Some(before));
    client.done(delete("/a/b/c", -1)).await;
    let (deleted, _) = client.done(delete("/a/b", -1)).await;
    let after = client.stat("/a").await.unwrap();
    assert_eq!((after.pzxid, after.num_children, after.cversion), (deleted, 0, 2));
    assert_eq!((after.mzxid, after.czxid, after.version), (before.mzxid, before.czxid, 0));
    // Refused requests do not change it.
    client.refused(create("/a", CreateMode::Persistent)).await;
    client.refused(delete("/a/b", -1)).await;
    assert_eq!(client.stat("/a").await, Some(after));
    let (_, response) = client.done(list("/a")).await;
    assert_eq!((names_of(&response).len(), stat_of(&response)), (0, after));
}

#[tokio::test]
async fn after_a_sync_a_read_shows_all_that_was_acknowledged_to_others() {
    let ground = ground().await;
    let (mut writer, mut reader) = (ground.client().await, ground.client().await);
    writer.plant(&["/a"]).await;
    for version in 0..50 {
        writer.done(set("/a", version)).await;
        // The read is sent before the answer to the sync.
        let sync = reader.send(Request::Sync { path: "/a".into() }).await;
        let read = reader.send(get("/a")).await;
        assert_eq!(reader.answer(sync).await.result, Ok(Response::Done));
        assert_eq!(stat_of(&reader.answer(read).await.result.unwrap()).version, version + 1);
    }
    // The path of a sync need not exist.
    reader.done(Request::Sync { path: "/none".into() }).await;
}

#[tokio::test]
async fn an_answer_may_be_larger_than_any_request() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let long = "x".repeat(4000);
    for batch in 0..4 {
        let names = (0..100).map(|number| format!("/{long}{}", batch * 100 + number));
        client.multi(names.map(|path| create(&path, CreateMode::Persistent)).collect()).await;
    }
    let (_, response) = client.done(list("/")).await;
    let names = names_of(&response);
    assert_eq!(names.len(), 400);
    assert!(names.iter().map(|name| name.len()).sum::<usize>() > rollcall_wire::MAX_FRAME);
}
