//! Authentication of clients, and requests that only members of an ensemble may send. The server does not use them;
//! other programs that share the tree do.

use rollcall_tests::arm::Own;
use rollcall_tests::raw::{Frame, newcomer};
use rollcall_tests::zookeeper::Options;
use rollcall_wire::{Acl, CreateMode, Encoder, ErrorCode, OpCode, Request, Response, permission};

use super::{ARM, Client, Ground, create_with, delete, get, ground, private, proof, set};

/// The digest of `super:test`.
const DIGEST: &str = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";

async fn with_a_super_user() -> (Own, Ground) {
    let own = ARM.own(Options { super_digest: Some(DIGEST), ..Options::default() }).await;
    let ground = Ground { address: own.address(), root: String::new() };
    (own, ground)
}

async fn log_in(client: &mut Client, proof: &'static [u8]) {
    client.done(Request::Auth { scheme: "digest".into(), auth: proof.into() }).await;
}

#[tokio::test]
async fn the_super_user_may_do_everything_and_nobody_else_is_it() {
    let (_own, ground) = with_a_super_user().await;
    let mut owner = ground.client().await;
    owner.done(proof()).await;
    owner.done(create_with("/private", CreateMode::Persistent, private())).await;
    let nobody = vec![Acl { permissions: permission::READ, scheme: "digest".into(), id: "no:body".into() }];
    owner.done(create_with("/private/locked", CreateMode::Persistent, nobody)).await;
    let mut other = ground.client().await;
    log_in(&mut other, b"super:guess").await;
    for request in [get("/private"), set("/private/locked", -1), delete("/private/locked", -1)] {
        assert_eq!(other.refused(request).await, ErrorCode::NoAuth);
    }
    let mut all_may = ground.client().await;
    log_in(&mut all_may, b"super:test").await;
    all_may.done(get("/private/locked")).await;
    all_may.done(set("/private/locked", 0)).await;
    // The ACL is shown with the hashes, which only users who may change it see.
    let Response::Acl { acl, .. } = all_may.done(Request::GetAcl { path: "/private".into() }).await.1 else { panic!() };
    assert!(acl.iter().all(|entry| !entry.id.ends_with(":x")), "{acl:?}");
    // A node that only its creator may use belongs to the digest: without a super user, the digest identifies its
    // owner.
    all_may.done(create_with("/its", CreateMode::Persistent, private())).await;
    let Response::Acl { acl, .. } = all_may.done(Request::GetAcl { path: "/its".into() }).await.1 else { panic!() };
    assert_eq!(acl.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), [DIGEST]);
    all_may.done(delete("/private/locked", 1)).await;
}

#[tokio::test]
async fn without_a_digest_for_it_nobody_is_the_super_user() {
    let ground = ground().await;
    let mut owner = ground.client().await;
    owner.done(proof()).await;
    owner.done(create_with("/private", CreateMode::Persistent, private())).await;
    let mut other = ground.client().await;
    log_in(&mut other, b"super:test").await;
    assert_eq!(other.refused(get("/private")).await, ErrorCode::NoAuth);
}

#[tokio::test]
async fn a_step_of_a_login_with_sasl_is_answered_with_a_null_token() {
    let ground = ground().await;
    for token in [&b""[..], b"token"] {
        let mut client = ground.client().await;
        let mut encoder = Encoder::new();
        encoder.bytes(token);
        let xid = client.raw.send(OpCode::Sasl, &encoder.take()).await;
        let Frame { header, mut body } = client.raw.next().await.unwrap();
        assert_eq!((header.xid, header.zxid, header.error), (xid, 0, 0));
        assert!(body.optional_bytes().unwrap().is_none() && body.is_empty());
        assert!(client.stat("/").await.is_some(), "it goes on as nobody");
    }
}

#[tokio::test]
async fn what_proves_nothing_because_it_can_not_be_read_ends_the_connection() {
    let ground = ground().await;
    for op_code in [OpCode::Auth, OpCode::Sasl] {
        for body in [&b""[..], b"\0\0", b"\0\0\0\x40di", b"\xff\xff\xff\xff"] {
            let mut client = ground.client().await;
            client.raw.send(op_code, body).await;
            client.hung_up_on().await;
            assert!(ground.open(&rollcall_tests::raw::resumption(client.session())).await.is_some());
        }
    }
}

#[tokio::test]
async fn members_are_not_changed_by_default() {
    let ground = ground().await;
    let mut client = ground.client().await;
    let before = client.ask(get("/")).await.zxid;
    let mut encoder = Encoder::new();
    encoder.string("server.5=localhost:1111:2222:participant;3333");
    encoder.optional_bytes(None);
    encoder.optional_bytes(None);
    encoder.long(-1);
    let xid = client.raw.send(OpCode::Reconfig, &encoder.take()).await;
    let Frame { header, body } = client.raw.next().await.unwrap();
    assert_eq!((header.xid, header.error), (xid, ErrorCode::ReconfigDisabled.to_wire()));
    assert!(body.is_empty() && header.zxid > before);
    assert!(ground.open(&newcomer(super::LIFETIME)).await.is_some());
}
