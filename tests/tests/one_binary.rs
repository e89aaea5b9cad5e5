//! `rollcall-server --embedded`: everything in the memory of one process, and ZooKeeper's protocol for others.

use rollcall_tests::client::{Registration, data, get, plain};
use rollcall_tests::follow::Locking;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, eventually};
use rollcall_tests::zookeeper::free_address;
use serde_json::json;

#[tokio::test]
async fn two_replicas_share_the_memory_of_one_of_them() {
    let address = free_address();
    let first = Server::start_embedded(address).await;
    let second = Server::start(&address.to_string()).await;
    let (near, far) = (first.client().await, second.client().await);

    let mut stream = Registration::open(&near).await;
    stream.set("/services/a", data(json!({"port": 1}))).await;
    let node = get(&far, "/services").await;
    assert_eq!(node.children.keys().collect::<Vec<_>>(), ["a"]);

    let (holder, held) = Locking::take(&near, "/lock", "near").await;
    let (mut waiting, queued) = Locking::queue(&far, "/lock", "far").await;
    assert_eq!(queued.holders, ["near"]);
    drop(holder);
    assert!(waiting.held().await.unwrap().fencing_token > held.fencing_token);

    drop(stream);
    eventually("the registration goes with its stream", SOON, async || {
        let node = get(&far, "/services").await;
        if node.children.is_empty() { Ok(()) } else { Err(format!("{:?}", node.children.keys())) }
    })
    .await;
}

#[tokio::test]
async fn a_zookeeper_client_looks_inside() {
    let address = free_address();
    let server = Server::start_embedded(address).await;
    let mut stream = Registration::open(&server.client().await).await;
    stream.set("/services/a", data(json!({"port": 1}))).await;
    let bare = rollcall_tests::bare::Bare::connect(&address.to_string()).await;
    let node = bare.get("/services/a").await.unwrap();
    assert_eq!(plain(node.json()), json!({"port": 1}));
    assert_ne!(node.stat.ephemeral_owner, 0);
}
