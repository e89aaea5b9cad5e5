//! Single writes: their answers, their effects, and refusals.

use bytes::Bytes;
use rollcall_wire::{Acl, CreateMode, ErrorCode, MAX_FRAME, Request, Response, permission};

use super::{
    Client, create, create_with, delete, exists, get, ground, list, names_of, old_ground, path_of, private, proof, set,
    stat_of,
};

#[tokio::test]
async fn a_create_is_answered_with_the_stat_of_the_node() {
    let ground = ground().await;
    let mut client = ground.client().await;
    for (path, mode, owner) in [("/durable", CreateMode::Persistent, 0), ("/mine", CreateMode::Ephemeral, client.id())]
    {
        let stat = client.create(path, mode).await;
        assert_eq!((stat.mzxid, stat.pzxid), (stat.czxid, stat.czxid));
        assert_eq!((stat.version, stat.cversion, stat.aversion), (0, 0, 0));
        assert_eq!((stat.ephemeral_owner, stat.data_length, stat.num_children), (owner, 4, 0));
        assert!(stat.ctime == stat.mtime && stat.ctime > 0);
        assert_eq!(client.stat(path).await, Some(stat));
    }
    let empty = Request::Create {
        path: "/empty".into(),
        data: Bytes::new(),
        acl: vec![Acl::open()],
        mode: CreateMode::Persistent,
    };
    client.done(empty).await;
    let (_, Response::Data { data, stat }) = client.done(get("/empty")).await else { panic!("no data") };
    assert!(data.is_empty() && stat.data_length == 0);
}

#[tokio::test]
async fn a_write_of_data_moves_its_version_and_its_transaction_alone() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let before = client.create("/a", CreateMode::Persistent).await;
    let (zxid, response) = client.done(set("/a", 0)).await;
    let after = stat_of(&response);
    assert!(zxid > before.czxid && after.mtime >= before.mtime);
    let expected = rollcall_wire::Stat { mzxid: zxid, mtime: after.mtime, version: 1, data_length: 5, ..before };
    assert_eq!(after, expected);
    assert_eq!(client.stat("/a").await, Some(after));
}

#[tokio::test]
async fn transactions_rise_and_every_incarnation_begins_at_version_zero() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let mut last = 0;
    for _ in 0..3 {
        let stat = client.create("/a", CreateMode::Ephemeral).await;
        assert!(stat.czxid > last && stat.version == 0);
        let (written, _) = client.done(set("/a", 0)).await;
        let (deleted, _) = client.done(delete("/a", 1)).await;
        assert!(stat.czxid < written && written < deleted);
        last = deleted;
    }
}

#[tokio::test]
async fn a_version_is_a_condition_and_minus_one_is_none() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a"]).await;
    client.done(set("/a", 0)).await;
    for wrong in [0, 2, 7] {
        assert_eq!(client.refused(set("/a", wrong)).await, ErrorCode::BadVersion);
        assert_eq!(client.refused(delete("/a", wrong)).await, ErrorCode::BadVersion);
    }
    assert_eq!(client.stat("/a").await.unwrap().version, 1);
    client.done(set("/a", 1)).await;
    client.done(set("/a", -1)).await;
    client.done(delete("/a", 3)).await;
    client.plant(&["/a"]).await;
    client.done(delete("/a", -1)).await;
}

#[tokio::test]
async fn what_can_not_be_is_refused_by_its_code_and_changes_nothing() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a", "/a/b"]).await;
    client.create("/mine", CreateMode::Ephemeral).await;
    let before = (client.stat("/a").await, client.stat("/a/b").await, client.stat("/mine").await);
    let cases = [
        (create("/a", CreateMode::Persistent), ErrorCode::NodeExists),
        (create("/mine", CreateMode::Ephemeral), ErrorCode::NodeExists),
        (create("/no/parent", CreateMode::Persistent), ErrorCode::NoNode),
        (create("/mine/child", CreateMode::Ephemeral), ErrorCode::NoChildrenForEphemerals),
        (create("/a/", CreateMode::Persistent), ErrorCode::BadArguments),
        (delete("/a", -1), ErrorCode::NotEmpty),
        // A wrong version is reported first.
        (delete("/a", 5), ErrorCode::BadVersion),
        (delete("/a/none", -1), ErrorCode::NoNode),
        (delete("/no/parent", -1), ErrorCode::NoNode),
        (set("/a/none", -1), ErrorCode::NoNode),
        (exists("/a/none"), ErrorCode::NoNode),
        (get("/a/none"), ErrorCode::NoNode),
        (list("/a/none"), ErrorCode::NoNode),
        (create_with("/c", CreateMode::Persistent, vec![]), ErrorCode::InvalidAcl),
        // The client has not authenticated yet.
        (create_with("/c", CreateMode::Persistent, private()), ErrorCode::InvalidAcl),
    ];
    for (request, code) in cases {
        assert_eq!(client.refused(request.clone()).await, code, "{request:?}");
    }
    assert_eq!((client.stat("/a").await, client.stat("/a/b").await, client.stat("/mine").await), before);
}

#[tokio::test]
async fn sequential_names_count_all_children_that_ever_were() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/q"]).await;
    let next = async |client: &mut Client, prefix: &str| {
        let (_, response) = client.done(create(prefix, CreateMode::EphemeralSequential)).await;
        assert_eq!(stat_of(&response).ephemeral_owner, client.id());
        path_of(&response).to_owned()
    };
    assert_eq!(next(&mut client, "/q/a__lock__").await, "/q/a__lock__0000000000");
    assert_eq!(next(&mut client, "/q/b__lock__").await, "/q/b__lock__0000000001");
    client.done(delete("/q/b__lock__0000000001", -1)).await;
    client.done(delete("/q/a__lock__0000000000", -1)).await;
    assert_eq!(next(&mut client, "/q/a__lock__").await, "/q/a__lock__0000000002", "what is gone has counted");
    client.create("/q/plain", CreateMode::Persistent).await;
    assert_eq!(next(&mut client, "/q/").await, "/q/0000000004", "so has what is not sequential");
    client.refused(create("/q/plain", CreateMode::Persistent)).await;
    let parts = vec![
        create("/q/x", CreateMode::EphemeralSequential),
        delete("/q/0000000004", -1),
        create("/q/x", CreateMode::EphemeralSequential),
    ];
    let (_, parts) = client.multi(parts).await;
    let paths: Vec<_> = parts.iter().filter(|part| !matches!(part, Ok(Response::Done))).collect();
    assert_eq!(paths.len(), 2);
    let (_, names) = client.done(list("/q")).await;
    assert_eq!(names_of(&names), ["a__lock__0000000002", "plain", "x0000000005", "x0000000006"]);
    for name in names_of(&names) {
        client.done(delete(&format!("/q/{name}"), -1)).await;
    }
    client.done(delete("/q", -1)).await;
    client.plant(&["/q"]).await;
    assert_eq!(next(&mut client, "/q/a").await, "/q/a0000000000", "another parent counts anew");
}

#[tokio::test]
async fn sequential_names_end_at_the_largest_number_and_a_new_parent_counts_anew() {
    let (_own, ground) = old_ground(&["/q"], i32::MAX - 2).await;
    let mut client = ground.client().await;
    let mut pzxid = 0;
    for (prefix, name, moves) in [
        ("/q/a", "/q/a2147483645", true),
        ("/q/a", "/q/a2147483646", true),
        ("/q/a", "/q/a2147483647", false),
        ("/q/b", "/q/b2147483647", false),
    ] {
        let (zxid, response) = client.done(create(prefix, CreateMode::EphemeralSequential)).await;
        assert_eq!(path_of(&response), name);
        pzxid = if moves { zxid } else { pzxid };
        assert_eq!(client.stat("/q").await.unwrap().pzxid, pzxid, "the parent's stat is not written any more");
    }
    assert_eq!(client.refused(create("/q/a", CreateMode::EphemeralSequential)).await, ErrorCode::NodeExists);
    let stat = client.stat("/q").await.unwrap();
    assert_eq!((stat.cversion, stat.num_children), (i32::MAX.wrapping_mul(2) - 4, 4));
    let next = |name: &str| create(&format!("/q/{name}"), CreateMode::EphemeralSequential);
    let (_, parts) = client.multi(vec![next("x"), next("y"), next("z")]).await;
    let names: Vec<_> = parts.iter().map(|part| path_of(part.as_ref().unwrap())).collect();
    assert_eq!(names, ["/q/x2147483647", "/q/y-2147483648", "/q/z-2147483647"], "within one transaction they run over");
    let (_, response) = client.done(next("c")).await;
    assert_eq!(path_of(&response), "/q/c2147483647", "and are the last again after it");
    let (deleted, _) = client.done(delete("/q/c2147483647", -1)).await;
    assert_eq!(client.stat("/q").await.unwrap().pzxid, deleted);
    let renewal = || vec![delete("/q", 0), create("/q", CreateMode::Persistent)];
    let (_, parts) = client.multi(renewal()).await;
    assert_eq!(parts[0], Err(ErrorCode::NotEmpty));
    let (_, names) = client.done(list("/q")).await;
    for name in names_of(&names) {
        client.done(delete(&format!("/q/{name}"), -1)).await;
    }
    client.multi(renewal()).await;
    let (_, response) = client.done(next("d")).await;
    assert_eq!(path_of(&response), "/q/d0000000000");
}

#[tokio::test]
async fn requests_are_carried_out_and_answered_in_their_order() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a"]).await;
    let mut sent = Vec::new();
    for number in 0..100 {
        sent.push(client.send(set("/a", number)).await);
        sent.push(client.send(get("/a")).await);
        sent.push(client.send(create("/a", CreateMode::Persistent)).await);
        sent.push(client.send(Request::Sync { path: "/a".into() }).await);
        sent.push(client.send(exists("/a")).await);
    }
    for (number, five) in sent.chunks(5).enumerate() {
        let mut results = Vec::new();
        for sent in five {
            results.push(client.answer(*sent).await.result);
        }
        let version = i32::try_from(number).unwrap() + 1;
        let seen = [0, 1, 4].map(|index: usize| stat_of(results[index].as_ref().unwrap()).version);
        assert_eq!(seen, [version; 3]);
        assert_eq!(results[2], Err(ErrorCode::NodeExists));
        assert_eq!(results[3], Ok(Response::Done));
    }
}

#[tokio::test]
async fn access_control_lists_close_a_node_and_its_place_among_the_children_apart() {
    let ground = ground().await;
    let (mut owner, mut other) = (ground.client().await, ground.client().await);
    owner.done(proof()).await;
    owner.plant(&["/open"]).await;
    owner.done(create_with("/open/private", CreateMode::Persistent, private())).await;
    owner.done(create("/open/private/child", CreateMode::Persistent)).await;
    for request in [
        // Since 3.9 the existence of the node is a secret too.
        exists("/open/private"),
        get("/open/private"),
        list("/open/private"),
        set("/open/private", -1),
        create("/open/private/another", CreateMode::Persistent),
        // The parent's ACL governs a delete; the child's own is open.
        delete("/open/private/child", -1),
    ] {
        assert_eq!(other.refused(request.clone()).await, ErrorCode::NoAuth, "{request:?}");
    }
    // A node below it is open to any client that knows its name.
    other.done(get("/open/private/child")).await;
    let (_, children) = other.done(list("/open")).await;
    assert_eq!(names_of(&children), ["private"]);
    owner.done(get("/open/private")).await;
    owner.done(delete("/open/private/child", -1)).await;
    other.done(delete("/open/private", -1)).await;
    let readable = vec![Acl { permissions: permission::READ, ..Acl::open() }];
    owner.done(create_with("/readable", CreateMode::Persistent, readable)).await;
    other.done(get("/readable")).await;
    for request in [set("/readable", -1), create("/readable/a", CreateMode::Ephemeral)] {
        assert_eq!(other.refused(request).await, ErrorCode::NoAuth);
    }
    other.done(proof()).await;
    other.done(delete("/readable", -1)).await;
}

#[tokio::test]
async fn a_frame_at_the_limit_is_taken_and_one_beyond_it_ends_the_connection() {
    let ground = ground().await;
    let mut client = ground.client().await;
    client.plant(&["/a"]).await;
    // The header takes eight bytes; the path, the data's length and the version take the rest.
    let overhead = 8 + 4 + client.outer("/a").len() + 4 + 4;
    let of_length =
        |frame: usize| Request::SetData { path: "/a".into(), data: vec![b'x'; frame - overhead].into(), version: -1 };
    let (_, response) = client.done(of_length(MAX_FRAME)).await;
    assert_eq!(usize::try_from(stat_of(&response).data_length).unwrap(), MAX_FRAME - overhead);
    let (_, Response::Data { data, .. }) = client.done(get("/a")).await else { panic!("no data") };
    assert_eq!(data.len(), MAX_FRAME - overhead);
    client.send(of_length(MAX_FRAME + 2)).await;
    client.hung_up_on().await;
    let mut again = ground.open(&rollcall_tests::raw::resumption(client.session())).await.unwrap();
    assert_eq!(again.stat("/a").await.unwrap().version, 1, "the session stands, and nothing was done");
}
