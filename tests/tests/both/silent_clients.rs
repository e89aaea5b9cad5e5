//! A lock with a ttl whose client is stopped, or vanishes silently, while its stream is open.

use std::time::Duration;

use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, LostReason};
use rollcall_tests::client::{describe, refused, span, zero};
use rollcall_tests::follow::{Locking, lock};
use rollcall_tests::proxy::Traffic;
use rollcall_tests::wait::soon;
use tonic::Code;

use super::ARM;

/// With this, HTTP/2's own keep-alive finds no silent client within a test.
const KEEPALIVE: &[&str] = &["--keepalive", "600s"];
/// The shortest possible ttl, and one that is shorter than a test waits.
const SHORT: Duration = Duration::from_secs(1);
const LONGER: Duration = Duration::from_secs(6);

/// A lock with a ttl, on a stream without heartbeats.
fn quiet(path: &str, ttl: Duration) -> AcquireLockRequest {
    AcquireLockRequest { ttl: Some(span(ttl)), heartbeat: zero(), ..lock(path, "me") }
}

#[tokio::test]
async fn a_client_that_is_silent_for_its_ttl_has_lost_its_lock_though_its_connection_stands() {
    let s = ARM.setting_with("silent", KEEPALIVE).await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut stream = Locking::start(&client, quiet("/silent", SHORT)).await.unwrap();
    let held = stream.held().await.unwrap();
    let (mut waiter, _) = Locking::queue(&s.client, "/silent", "waiter").await;
    proxy.set_traffic(Traffic::Stall);
    let next = waiter.held().await.expect("the next has it when the ttl is over");
    assert!(next.fencing_token > held.fencing_token);
    assert!(s.zk.children("/.rollcall/leases").await.unwrap_or_default().is_empty(), "nothing is left");
    // A client that comes back is told.
    proxy.set_traffic(Traffic::Pass);
    let Some(Event::Lost(lost)) = stream.next().await.unwrap() else { panic!("not lost") };
    assert_eq!(lost.reason(), LostReason::Expired);
    refused(stream.next().await, Code::Aborted, "LOCK_LOST");
}

#[tokio::test]
async fn a_client_that_says_nothing_and_answers_pings_keeps_its_lock() {
    let s = ARM.setting_with("silent", KEEPALIVE).await;
    let mut stream = Locking::start(&s.client, quiet("/answers", SHORT)).await.unwrap();
    let held = stream.held().await.unwrap();
    assert_eq!(held.ttl, Some(span(SHORT)));
    let other = s.server.client().await;
    tokio::time::sleep(6 * SHORT).await;
    let holders = describe(&other, "/answers").await.holders;
    assert_eq!(holders.iter().map(|holder| holder.fencing_token).collect::<Vec<_>>(), [held.fencing_token]);
}

#[tokio::test]
async fn a_client_that_is_heard_again_in_time_keeps_its_lock() {
    let s = ARM.setting_with("silent", KEEPALIVE).await;
    let (proxy, client) = s.server.client_through_a_proxy().await;
    let mut stream = Locking::start(&client, quiet("/again", LONGER)).await.unwrap();
    let held = stream.held().await.unwrap();
    proxy.set_traffic(Traffic::Stall);
    tokio::time::sleep(LONGER / 2).await;
    proxy.set_traffic(Traffic::Pass);
    tokio::time::sleep(LONGER).await;
    let holders = describe(&s.client, "/again").await.holders;
    assert_eq!(holders.iter().map(|holder| holder.fencing_token).collect::<Vec<_>>(), [held.fencing_token]);
}

#[tokio::test]
async fn a_replica_that_was_stopped_does_not_take_that_for_its_clients_silence() {
    let mut s = ARM.setting_with("silent", KEEPALIVE).await;
    let mut stream = Locking::start(&s.client, quiet("/stopped", SHORT)).await.unwrap();
    let held = stream.held().await.unwrap();
    for _ in 0..3 {
        s.server.pause();
        tokio::time::sleep(3 * SHORT).await;
        s.server.resume();
        tokio::time::sleep(2 * SHORT).await;
        let holders = soon("the replica answers", describe(&s.client, "/stopped")).await.holders;
        assert_eq!(holders.iter().map(|holder| holder.fencing_token).collect::<Vec<_>>(), [held.fencing_token]);
    }
}
