//! Evict: a registration that is removed, and kept out.

use std::time::{Duration, SystemTime};

use rollcall_proto::v1;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::{ChangeKind, LostReason};
use rollcall_tests::client::{Client, Registration, data, put, refused, resume, set, span, text, violated_field, zero};
use rollcall_tests::follow::{Locking, Watching};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::json;
use tonic::{Code, Status};

use super::ARM;

const PATH: &str = "/services/web/bad:80";
const LONG: Duration = Duration::from_secs(600);

fn value() -> v1::Value {
    data(json!({"a": 1}))
}

async fn try_evict(
    client: &Client,
    path: &str,
    duration: Option<prost_types::Duration>,
) -> Result<v1::EvictResponse, Status> {
    let request = v1::EvictRequest { path: path.to_owned(), duration };
    Ok(soon("an answer to Evict", client.clone().evict(request)).await?.into_inner())
}

async fn evict(client: &Client) -> v1::EvictResponse {
    try_evict(client, PATH, None).await.unwrap()
}

async fn lift(client: &Client) {
    let lifted = try_evict(client, PATH, zero()).await.unwrap();
    assert_eq!((lifted.removed, lifted.until_time), (false, None));
}

/// Registers the path again, once every replica knows that this is allowed.
async fn registered_again(client: &Client) -> Registration {
    eventually("it can be registered again", SOON, async || {
        let mut stream = Registration::open(client).await;
        stream.send(set(PATH, value())).await;
        match stream.answer().await {
            Response::Registered(_) => Ok(stream),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn is_kept_out(client: &Client) {
    let mut stream = Registration::open(client).await;
    for request in [set(PATH, value()), resume(PATH, value(), 5)] {
        stream.send(request).await;
        let rejected = stream.rejected().await;
        let answer = (Code::from(rejected.code), rejected.reason.as_str());
        assert_eq!(answer, (Code::FailedPrecondition, "EVICTED"), "{rejected:?}");
        assert!(rejected.message.contains(PATH), "{rejected:?}");
    }
    // Only that path is at fault.
    stream.set("/services/web/good:80", value()).await;
}

async fn eventually_kept_out(client: &Client) {
    eventually("the replica has learned of it", SOON, async || {
        let mut stream = Registration::open(client).await;
        stream.send(set(PATH, value())).await;
        let answer = stream.answer().await;
        check(matches!(answer, Response::Rejected(_)), || format!("{answer:?}"))
    })
    .await;
    is_kept_out(client).await;
}

#[tokio::test]
async fn what_is_evicted_is_gone_and_stays_out_on_every_replica() {
    let s = ARM.setting("evict").await;
    let other_server = s.another_server().await;
    let other = other_server.client().await;
    for with_ttl in [false, true] {
        // Evicted by the replica that holds it, and by another.
        for by in [&s.client, &other] {
            let mut watching = Watching::start(&other, "/services/web").await;
            let mut holder = match with_ttl {
                true => Registration::open_with_ttl(&s.client, LONG).await,
                false => Registration::open(&s.client).await,
            };
            let generation = holder.set(PATH, value()).await.generation;
            holder.set("/services/web/good:80", value()).await;
            watching.until("both", |known| known.names() == ["bad:80", "good:80"]).await;
            let earlier = watching.changes.len();
            let before = SystemTime::now();
            let evicted = evict(by).await;
            assert!(evicted.removed);
            let until = SystemTime::try_from(evicted.until_time.unwrap()).unwrap();
            assert!(until >= before + LONG && until <= SystemTime::now() + LONG, "10 minutes by default: {until:?}");
            assert!(!s.zk.exists(PATH).await, "it is gone when the call is answered");
            let lost = holder.lost().await;
            assert_eq!((lost.path.as_str(), lost.generation, lost.reason()), (PATH, generation, LostReason::Evicted));
            is_kept_out(by).await;
            for client in [&s.client, &other] {
                eventually_kept_out(client).await;
            }
            watching.until("the other alone", |known| known.names() == ["good:80"]).await;
            assert_eq!(watching.changes[earlier..], [(ChangeKind::Removed, "bad:80".to_owned())]);
            lift(by).await;
            drop(holder);
            s.zk.wait_gone("/services/web/good:80").await;
            drop(registered_again(&s.client).await);
            s.zk.wait_gone(PATH).await;
        }
    }
}

#[tokio::test]
async fn an_eviction_ends_by_itself_and_nothing_is_left_of_it() {
    let s = ARM.setting("evict").await;
    let mut holder = Registration::open(&s.client).await;
    holder.set(PATH, value()).await;
    assert!(try_evict(&s.client, PATH, Some(span(Duration::from_secs(1)))).await.unwrap().removed);
    assert_eq!(holder.lost().await.reason(), LostReason::Evicted);
    let _registration = registered_again(&s.client).await;
    nothing_is_left(&s.zk).await;
}

async fn nothing_is_left(zk: &Witness) {
    eventually("no record is left", SOON, async || {
        let records = zk.children("/.rollcall/evicted").await.unwrap_or_default();
        check(records.is_empty(), || format!("{records:?}"))
    })
    .await;
}

#[tokio::test]
async fn an_eviction_outlives_the_replicas_and_can_be_made_anew() {
    let mut s = ARM.setting("evict").await;
    assert!(!evict(&s.client).await.removed, "nobody has registered it");
    let again = try_evict(&s.client, PATH, Some(span(LONG * 2))).await.unwrap();
    assert!(SystemTime::try_from(again.until_time.unwrap()).unwrap() > SystemTime::now() + LONG);
    assert_eq!(s.zk.children("/.rollcall/evicted").await.unwrap().len(), 1);
    s.server.process().kill();
    let next = Server::start(&s.sandbox.hosts).await;
    is_kept_out(&next.client().await).await;
    lift(&next.client().await).await;
    nothing_is_left(&s.zk).await;
    registered_again(&next.client().await).await;
}

#[tokio::test]
async fn a_registration_of_another_program_is_deleted() {
    let s = ARM.setting("evict").await;
    s.zk.create("/services", b"").await;
    s.zk.create("/services/web", b"").await;
    s.zk.create_ephemeral(PATH, b"{}").await;
    assert!(evict(&s.client).await.removed);
    assert!(!s.zk.exists(PATH).await);
    is_kept_out(&s.client).await;
    s.zk.create_ephemeral(PATH, b"{}").await;
    assert!(s.zk.exists(PATH).await, "its return can't be refused");
    assert!(evict(&s.client).await.removed, "but it can be evicted again");
}

#[tokio::test]
async fn what_is_no_registration_is_not_evicted() {
    let s = ARM.setting("evict").await;
    put(&s.client, "/durable", text("x")).await.unwrap();
    refused(try_evict(&s.client, "/durable", None).await, Code::FailedPrecondition, "NOT_EPHEMERAL");
    let (_holding, _) = Locking::take(&s.client, "/lock", "me").await;
    let (_waiting, _) = Locking::queue(&s.client, "/lock", "other").await;
    for folder in ["/lock", "/lock-__lock__"] {
        let names = s.zk.children(folder).await.unwrap();
        for name in names {
            let path = format!("{folder}/{name}");
            refused(try_evict(&s.client, &path, None).await, Code::FailedPrecondition, "HAS_REGISTRATIONS");
            assert!(s.zk.exists(&path).await);
        }
    }
    for seconds in [-1, 24 * 3600 + 1] {
        let duration = Some(prost_types::Duration { seconds, nanos: 0 });
        let status = refused(try_evict(&s.client, PATH, duration).await, Code::InvalidArgument, "PROTOCOL");
        assert_eq!(violated_field(&status), "duration");
    }
    nothing_is_left(&s.zk).await;
    let read_only = Server::start_with(&s.sandbox.hosts, &["--read-only"]).await;
    let answer = try_evict(&read_only.client().await, PATH, None).await;
    refused(answer, Code::PermissionDenied, "READ_ONLY");
}

#[tokio::test]
async fn a_replica_that_was_cut_off_meanwhile_puts_nothing_back() {
    let s = ARM.behind_a_proxy("evict", &[]).await;
    let other_server = Server::start(&s.sandbox.hosts).await;
    let other = other_server.client().await;
    let mut holder = Registration::open_with_ttl(&s.client, LONG).await;
    holder.set(PATH, value()).await;
    s.cut_off().await;
    assert!(evict(&other).await.removed);
    s.proxy.accept().await;
    assert_eq!(holder.lost().await.reason(), LostReason::Evicted);
    assert!(!s.zk.exists(PATH).await);
    eventually_kept_out(&s.client).await;
}

/// A foreign delete is undone at once. The eviction that comes with it, a moment before or after, is not.
#[tokio::test]
async fn an_eviction_and_a_put_back_at_the_same_time_leave_the_path_empty() {
    let s = ARM.setting("evict").await;
    let other_server = s.another_server().await;
    let other = other_server.client().await;
    for round in 0..15 {
        let mut holder = registered_again(&s.client).await;
        let evicting = evict(&other);
        let deleting = async {
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
            // The eviction may have been faster.
            let _ = s.zk.client().delete(PATH, None).await;
        };
        tokio::join!(evicting, deleting);
        loop {
            // It may have been put back before.
            match holder.answer().await {
                Response::Registered(registered) if registered.restored => {}
                Response::Lost(lost) => break assert_eq!(lost.reason(), LostReason::Evicted),
                other => panic!("{other:?}"),
            }
        }
        s.zk.wait_gone(PATH).await;
        is_kept_out(&s.client).await;
        assert!(!s.zk.exists(PATH).await);
        lift(&other).await;
    }
}
