//! A stopped replica can't report that its ZooKeeper sessions end. Its clients know for how long they may rely on its
//! last message.

use std::time::Duration;

use rollcall::{Client, LockState};
use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, Held};
use rollcall_tests::arm::Arm;
use rollcall_tests::client::{Registration, span, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, eventually, soon};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Shorter than the ten seconds of silence that clients waited for before there was a horizon.
const SESSION: &[&str] = &["--session-timeout", "6s"];
/// So many that each session of the replica has some.
const LOCKS: usize = 12;

#[tokio::test]
async fn no_two_take_a_lock_for_their_own_when_a_replica_is_stopped() {
    let mut s = Arm::ZooKeeper.setting_with("horizon", SESSION).await;
    let other = Server::start_with(&s.sandbox.hosts, SESSION).await;
    let first = Client::connect(s.server.grpc().to_string()).await.unwrap();
    let second = Client::connect(other.grpc().to_string()).await.unwrap();
    let (mut losses, mut grants, mut ends) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for number in 0..LOCKS {
        let path = format!("/lock-{number}");
        let guard = soon("the lock is granted", first.lock(&path).without_ttl().acquire()).await.unwrap();
        assert!(matches!(guard.state(), LockState::Held { .. }));
        let leases = s.zk.children(&path).await.unwrap();
        let ending = s.zk.ending(&format!("{path}/{}", leases[0])).await;
        ends.spawn(async move { (number, ending.at().await) });
        losses.spawn(async move {
            let reason = guard.lost().await;
            let at = Instant::now();
            (number, at, reason, guard)
        });
        let client = second.clone();
        grants.spawn(async move {
            let guard = client.lock(&path).without_ttl().acquire().await.unwrap();
            (number, Instant::now(), guard)
        });
    }
    eventually("all wait at the other replica", SOON, async || {
        for number in 0..LOCKS {
            let queue = s.zk.children(&format!("/lock-{number}-__lock__")).await.unwrap_or_default();
            if queue.len() != 1 {
                return Err(format!("{number}: {queue:?}"));
            }
        }
        Ok(())
    })
    .await;
    s.server.pause();
    let mut lost = [None; LOCKS];
    while let Some(loss) = soon("it is lost", losses.join_next()).await {
        let (number, at, reason, guard) = loss.unwrap();
        println!("{number} is lost: {reason:?}");
        lost[number] = Some(at);
        drop(guard);
    }
    let all = |mut ends: JoinSet<(usize, Instant)>| async move {
        let mut at = [None; LOCKS];
        while let Some(ended) = soon("it ends", ends.join_next()).await {
            let (number, when) = ended.unwrap();
            at[number] = Some(when);
        }
        at
    };
    let ended = all(ends).await;
    let mut granted = [None; LOCKS];
    while let Some(grant) = soon("it is granted", grants.join_next()).await {
        let (number, at, _guard) = grant.unwrap();
        granted[number] = Some(at);
    }
    for number in 0..LOCKS {
        let [lost, ended, granted] = [lost, ended, granted].map(|at| at[number].expect("it has come"));
        assert!(lost <= ended, "{number}: the lease went {:?} before its holder knew", lost - ended);
        assert!(lost <= granted, "{number}: two held it for {:?}", lost - granted);
    }
}

async fn held(s: &Server, request: AcquireLockRequest) -> (Locking, Held, Duration) {
    let mut stream = Locking::start(&s.client().await, request).await.unwrap();
    let held = stream.held().await.unwrap();
    let horizon = Duration::try_from(held.horizon.expect("it is told")).unwrap();
    (stream, held, horizon)
}

#[tokio::test]
async fn a_replica_tells_how_long_its_last_word_can_be_relied_on() {
    let s = Arm::Embedded.setting_with("horizon", SESSION).await;
    let session = Duration::from_secs(6);
    let (_stream, _, horizon) = held(&s.server, lock("/a", "me")).await;
    assert!(horizon > session / 4 && horizon < session / 2, "{horizon:?}");
    // For a lock with a ttl, nobody takes the lock before the ttl is over.
    let ttl = Duration::from_secs(30);
    let lasting = AcquireLockRequest { ttl: Some(span(ttl)), ..lock("/b", "me") };
    let (_stream, _, horizon) = held(&s.server, lasting).await;
    assert!(horizon >= ttl / 2 && horizon < ttl, "{horizon:?}");
    // A connection is given up after the keep-alive time.
    let hasty = Server::start_with(&s.sandbox.hosts, &["--keepalive", "2s"]).await;
    let (_stream, _, horizon) = held(&hasty, lock("/c", "me")).await;
    assert!(horizon < Duration::from_secs(2), "{horizon:?}");
    for ttl in [None, Some(Duration::from_secs(3))] {
        let client = s.server.client().await;
        let registration = match ttl {
            Some(ttl) => Registration::open_with_ttl(&client, ttl).await,
            None => Registration::open(&client).await,
        };
        let horizon = Duration::try_from(registration.opened.horizon.expect("it is told")).unwrap();
        assert!(horizon > Duration::from_secs(1) && horizon < session / 2, "{horizon:?}");
    }
}

#[tokio::test]
async fn a_holder_hears_something_well_within_the_horizon_unless_it_wants_nothing() {
    let s = Arm::Embedded.setting_with("horizon", SESSION).await;
    let (mut stream, _, horizon) = held(&s.server, lock("/a", "me")).await;
    // By default a quiet stream gets a heartbeat every 20 s.
    for _ in 0..4 {
        let said = timeout(2 * horizon, stream.said()).await.expect("something is said in time");
        assert!(matches!(said.unwrap(), Some(Event::Heartbeat(_))));
    }
    let none = AcquireLockRequest { heartbeat: zero(), ..lock("/b", "me") };
    let (mut stream, _, horizon) = held(&s.server, none).await;
    assert!(timeout(2 * horizon, stream.said()).await.is_err());
}
