//! `rollcall-server --embedded`: everything in the memory of one process, which also speaks ZooKeeper's protocol.

use rollcall_tests::client::{Registration, data, get, plain};
use rollcall_tests::follow::Locking;
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, eventually};
use rollcall_tests::zookeeper::{four_letter_word, free_address};
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::json;
use zookeeper_client::CreateMode;

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
    let zk = Witness::connect(&address.to_string()).await;
    let node = zk.get("/services/a").await.unwrap();
    assert_eq!(plain(node.json()), json!({"port": 1}));
    assert_ne!(node.stat.ephemeral_owner, 0);
}

#[tokio::test]
async fn its_zookeeper_is_told_the_tick_the_sweep_and_the_super_user() {
    const SUPER: &str = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";
    let address = free_address();
    let options = ["--embedded-tick", "500ms", "--embedded-sweep", "50ms", "--embedded-super", SUPER];
    let _server = Server::start_embedded_with(address, &options).await;
    let conf = four_letter_word(address, "conf").await.unwrap();
    assert!(conf.contains("tickTime=500\n") && conf.contains("maxSessionTimeout=10000\n"), "{conf}");

    let owner = Witness::connect_as(&address.to_string(), "ann:secret").await;
    owner.create_private("/private", b"x").await;
    let all_may = Witness::connect_as(&address.to_string(), "super:test").await;
    assert_eq!(all_may.get("/private").await.unwrap().text(), "x");

    let open = CreateMode::Container.with_acls(zookeeper_client::Acls::anyone_all());
    all_may.create_with("/container", b"", &open).await;
    all_may.create("/container/child", b"").await;
    all_may.delete("/container/child").await;
    // The default interval of a minute would be too long.
    eventually("the container is swept", SOON, async || {
        if all_may.exists("/container").await { Err("it stands".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn before_the_first_call_its_zookeeper_is_empty() {
    let address = free_address();
    let server = Server::start_embedded(address).await;
    let zk = Witness::connect(&address.to_string()).await;
    assert_eq!(zk.children("/").await.unwrap(), ["zookeeper"]);
    let sessions = four_letter_word(address, "dump").await.unwrap();
    assert!(sessions.contains("Sessions with Ephemerals (0)"), "{sessions}");
    // The session that has just begun was the first transaction. Health was asked before.
    zk.create("/first", b"").await;
    // The high bits are the time at which the server was started.
    assert_eq!(zk.get("/first").await.unwrap().stat.czxid & 0xfff, 2);

    // The first call finds all that it needs.
    let client = server.client().await;
    let mut stream = Registration::open(&client).await;
    stream.set("/services/a", data(json!({"port": 1}))).await;
    let mut children = zk.children("/").await.unwrap();
    children.sort();
    assert_eq!(children, [".rollcall", "first", "services", "zookeeper"]);
}
