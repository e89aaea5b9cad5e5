//! Containers, and nodes with a time to live. The server does not use them; other programs that share the tree do. Each
//! case has its own backend, which sweeps them continuously.

use std::time::Duration;

use rollcall_tests::arm::Own;
use rollcall_tests::raw::newcomer;
use rollcall_tests::wait::{SOON, eventually};
use rollcall_tests::zookeeper::Options;
use rollcall_wire::{Acl, CreateMode, Encoder, ErrorCode, EventKind, OpCode, Request, Response, WatchMode};

use super::{ARM, Client, Ground, Sent, create, delete, path_of, set, stat_of, told};

const CONTAINER: i32 = 4;
const WITH_TTL: i32 = 5;
const SEQUENTIAL_WITH_TTL: i32 = 6;
const HOUR: i64 = 3_600_000;

async fn server(sweep: Option<Duration>) -> (Own, Client) {
    let own = ARM.own(Options { sweep, ..Options::default() }).await;
    let ground = Ground { address: own.address(), root: String::new() };
    let client = ground.open(&newcomer(super::LIFETIME)).await.unwrap();
    (own, client)
}

async fn swept() -> (Own, Client) {
    server(Some(Duration::from_millis(200))).await
}

/// Creates a node that the codec's client half can't express.
async fn create_mortal(client: &mut Client, path: &str, mode: i32, ttl: Option<i64>) -> Result<Response, ErrorCode> {
    let mut encoder = Encoder::new();
    encoder.string(path);
    encoder.bytes(b"data");
    encoder.count(1);
    Acl::open().encode(&mut encoder);
    encoder.int(mode);
    ttl.iter().for_each(|ttl| encoder.long(*ttl));
    let op_code = if ttl.is_some() { OpCode::CreateTtl } else { OpCode::CreateContainer };
    let xid = client.raw.send(op_code, &encoder.take()).await;
    // All three requests have the same answer.
    client.answer(Sent { op_code: OpCode::Create2, xid }).await.result
}

async fn until_gone(client: &mut Client, path: &str) {
    eventually(&format!("{path} is gone"), SOON, async || match client.stat(path).await {
        None => Ok(()),
        Some(stat) => Err(format!("{stat:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_container_goes_after_its_last_child_and_not_before_its_first() {
    let (_own, mut client) = swept().await;
    create_mortal(&mut client, "/never-used", CONTAINER, None).await.unwrap();
    let response = create_mortal(&mut client, "/used", CONTAINER, None).await.unwrap();
    assert_eq!(stat_of(&response).ephemeral_owner, 0, "it is nobody's");
    create_mortal(&mut client, "/used/inner", CONTAINER, None).await.unwrap();
    client.create("/used/inner/child", CreateMode::Ephemeral).await;
    client.done(Request::AddWatch { path: "/".into(), mode: WatchMode::PersistentRecursive }).await;
    client.done(delete("/used/inner/child", -1)).await;
    let mut events = Vec::new();
    eventually("both are gone", SOON, async || {
        events.append(&mut client.events().await);
        if events.len() == 2 { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    // A swept child counts as deleted.
    assert_eq!(told(&events), [(EventKind::Deleted, "/used/inner"), (EventKind::Deleted, "/used")]);
    assert!(events[0].zxid < events[1].zxid);
    assert_eq!(client.stat("/").await.unwrap().pzxid, events[1].zxid);
    assert!(client.stat("/never-used").await.is_some());
}

#[tokio::test]
async fn a_node_with_a_time_to_live_goes_when_it_was_neither_written_nor_a_parent_for_so_long() {
    let (_own, mut client) = swept().await;
    let response = create_mortal(&mut client, "/brief", WITH_TTL, Some(300)).await.unwrap();
    assert_eq!(stat_of(&response).ephemeral_owner, 0, "it is nobody's");
    create_mortal(&mut client, "/parent", WITH_TTL, Some(300)).await.unwrap();
    client.create("/parent/child", CreateMode::Ephemeral).await;
    create_mortal(&mut client, "/long", WITH_TTL, Some(HOUR)).await.unwrap();
    let named = create_mortal(&mut client, "/n-", SEQUENTIAL_WITH_TTL, Some(300)).await.unwrap();
    assert_eq!(path_of(&named), "/n-0000000003");
    until_gone(&mut client, "/brief").await;
    until_gone(&mut client, "/n-0000000003").await;
    assert!(client.stat("/parent").await.is_some() && client.stat("/long").await.is_some());
    client.done(delete("/parent/child", -1)).await;
    until_gone(&mut client, "/parent").await;
}

#[tokio::test]
async fn a_write_gives_a_node_its_time_again() {
    let (_own, mut client) = swept().await;
    for path in ["/written", "/left"] {
        create_mortal(&mut client, path, WITH_TTL, Some(2_000)).await.unwrap();
    }
    eventually("the one that is left alone is gone", SOON, async || {
        client.done(set("/written", -1)).await;
        if client.stat("/left").await.is_none() { Ok(()) } else { Err("it stands".to_owned()) }
    })
    .await;
    assert!(client.stat("/written").await.is_some());
    until_gone(&mut client, "/written").await;
}

#[tokio::test]
async fn a_time_to_live_must_be_possible_and_allowed() {
    let (_own, mut client) = swept().await;
    let longest = (1 << 40) - 1;
    create_mortal(&mut client, "/longest", WITH_TTL, Some(longest)).await.unwrap();
    for (mode, ttl) in [(WITH_TTL, 0), (WITH_TTL, -1), (WITH_TTL, longest + 1), (0, 1), (CONTAINER, 1), (7, 1)] {
        let refused = create_mortal(&mut client, "/none", mode, Some(ttl)).await;
        assert_eq!(refused, Err(ErrorCode::BadArguments), "mode {mode}, {ttl} ms");
    }
    let (_own, mut client) = server(None).await;
    let refused = create_mortal(&mut client, "/none", WITH_TTL, Some(HOUR)).await;
    assert_eq!(refused, Err(ErrorCode::Unimplemented), "unless it is told to, ZooKeeper has none");
    client.done(create("/none", CreateMode::Persistent)).await;
    create_mortal(&mut client, "/container", CONTAINER, None).await.unwrap();
}
