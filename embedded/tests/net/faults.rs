//! Faults on command do what they say.

use std::time::Duration;

use bytes::Bytes;
use rollcall_embedded::{Config, Embedded, Faults};
use rollcall_wire::CreateMode;
use tokio::time::Instant;

use crate::client::{Client, FREE_PORT, create, get};

async fn start() -> (std::net::SocketAddr, Faults) {
    let embedded = Embedded::bind(FREE_PORT, Config::default()).await.unwrap();
    let (address, faults) = (embedded.local_addr(), embedded.faults());
    tokio::spawn(embedded.run(std::future::pending()));
    (address, faults)
}

#[tokio::test]
async fn a_cut_ends_the_connection_and_not_the_session() {
    let (address, faults) = start().await;
    let (mut one, mut two) = (Client::connect(address).await, Client::connect(address).await);
    assert!(faults.cut(one.session.session_id));
    assert!(one.hear().await.is_none());
    two.ask(&get("/")).await.unwrap();
    faults.cut_all();
    assert!(two.hear().await.is_none());
    assert_eq!(faults.sessions().len(), 2);
    for session in [one.session, two.session] {
        Client::resume(address, session.session_id, session.password).await.expect("the session lives");
    }
}

#[tokio::test]
async fn an_expired_session_is_over_with_its_ephemerals() {
    let (address, faults) = start().await;
    let mut client = Client::connect(address).await;
    client.ask(&create("/e", Bytes::new(), CreateMode::Ephemeral)).await.unwrap();
    assert!(faults.expire(client.session.session_id));
    assert!(!faults.expire(client.session.session_id));
    assert!(client.hear().await.is_none());
    assert!(Client::resume(address, client.session.session_id, client.session.password).await.is_none());
    assert_eq!(Client::connect(address).await.ask(&get("/e")).await, Err(-101));
}

#[tokio::test]
async fn a_lost_reply_is_to_a_write_that_was_done() {
    let (address, faults) = start().await;
    let mut client = Client::connect(address).await;
    faults.lose_replies(1);
    client.ask(&get("/")).await.expect("reads are not meant");
    assert!(client.try_ask(&create("/done", Bytes::new(), CreateMode::Persistent)).await.is_none());
    let mut other = Client::connect(address).await;
    other.ask(&get("/done")).await.unwrap();
    other.ask(&create("/next", Bytes::new(), CreateMode::Persistent)).await.expect("one was told, one is lost");
}

#[tokio::test]
async fn who_is_refused_can_come_back_later() {
    let (address, faults) = start().await;
    let mut standing = Client::connect(address).await;
    faults.refuse(true);
    assert!(Client::resume(address, 0, Bytes::new()).await.is_none());
    standing.ask(&get("/")).await.unwrap();
    faults.refuse(false);
    Client::connect(address).await;
}

#[tokio::test]
async fn a_delay_holds_replies_back() {
    let (address, faults) = start().await;
    let mut client = Client::connect(address).await;
    let delay = Duration::from_millis(100);
    faults.delay(delay);
    let since = Instant::now();
    client.ask(&get("/")).await.unwrap();
    assert!(since.elapsed() >= delay);
}
