//! Registers many paths in each system, and takes them down again.

use futures_util::future::try_join_all;
use rollcall_proto::v1::OpenSession;
use rollcall_proto::v1::register_request::Request;
use rollcall_tests::client::{Client, data, set, unset};
use rollcall_tests::zookeeper_witness::Witness;
use serde_json::{Value as Json, json};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use zookeeper_client::{Acls, CreateMode};

use super::stream::{Stream, close_all, open_all, together};
use super::{BATCH, STREAMS, WINDOW};
use crate::drive::pipelined;
use crate::systems::etcd;
use crate::usage::{Meter, Taken};

/// The data of a registration; 67 bytes in ZooKeeper.
pub(super) fn value() -> Json {
    json!({"host": "server17.example", "port": 8080, "weight": 100, "zone": "north"})
}

pub(super) async fn one_stream(client: &Client, name: impl Fn(usize) -> String, pids: &[u32]) -> anyhow::Result<Taken> {
    let value = data(value());
    let request = |number| set(&name(number), value.clone());
    let meter = Meter::start(pids)?;
    let mut stream = Stream::open(&mut client.clone(), (0..WINDOW).map(request)).await?;
    for number in WINDOW..BATCH {
        stream.registered().await?;
        stream.send(request(number)).await?;
    }
    for _ in 0..WINDOW {
        stream.registered().await?;
    }
    let taken = meter.stop(BATCH)?;
    stream.close(BATCH).await?;
    Ok(taken)
}

/// Opens streams that stay open, on the connections in turn.
pub(super) async fn standing(clients: &[Client]) -> anyhow::Result<Vec<Stream>> {
    let opening = (0..STREAMS).zip(clients.iter().cycle()).map(|(_, client)| async move {
        Stream::open(&mut client.clone(), [Request::Open(OpenSession::default())]).await
    });
    try_join_all(opening).await
}

pub(super) async fn many_streams(
    streams: &mut Vec<Stream>,
    name: impl Fn(usize) -> String,
    pids: &[u32],
) -> anyhow::Result<Taken> {
    let value = data(value());
    let sets: Vec<_> = (0..STREAMS).map(|number| set(&name(number), value.clone())).collect();
    let meter = Meter::start(pids)?;
    let registered = together(streams.drain(..).zip(sets), |(mut stream, set)| async move {
        stream.send(set).await?;
        let path = stream.registered().await?.path;
        Ok((stream, path))
    })
    .await?;
    let taken = meter.stop(STREAMS)?;
    *streams = together(registered, |(mut stream, path)| async move {
        stream.send(unset(&path)).await?;
        stream.unregistered().await?;
        Ok(stream)
    })
    .await?;
    Ok(taken)
}

pub(super) async fn new_streams(
    clients: &[Client],
    name: impl Fn(usize) -> String,
    pids: &[u32],
) -> anyhow::Result<Taken> {
    let value = data(value());
    let meter = Meter::start(pids)?;
    let streams = open_all(clients, (0..STREAMS).map(|number| [set(&name(number), value.clone())])).await?;
    let taken = meter.stop(STREAMS)?;
    close_all(streams.into_iter().map(|(stream, _)| stream)).await?;
    Ok(taken)
}

pub(super) async fn creates(
    zk: &Witness,
    window: usize,
    name: impl Fn(usize) -> String,
    pids: &[u32],
) -> anyhow::Result<Taken> {
    let (client, value) = (zk.client(), value().to_string());
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let meter = Meter::start(pids)?;
    pipelined(BATCH, window, async |number| {
        client.create(&name(number), value.as_bytes(), &ephemeral).await?;
        anyhow::Ok(())
    })
    .await?;
    let taken = meter.stop(BATCH)?;
    pipelined(BATCH, window, async |number| Ok(client.delete(&name(number), None).await?)).await?;
    Ok(taken)
}

pub(super) async fn leases(
    channels: &[Channel],
    window: usize,
    name: impl Fn(usize) -> String,
    pids: &[u32],
) -> anyhow::Result<Taken> {
    let (value, leases) = (value().to_string(), Mutex::new(Vec::with_capacity(STREAMS)));
    let channel = |number: usize| &channels[number % channels.len()];
    let meter = Meter::start(pids)?;
    pipelined(STREAMS, window, async |number| {
        let lease = etcd::register(channel(number), name(number), value.clone()).await?;
        leases.lock().await.push(lease);
        Ok(())
    })
    .await?;
    let taken = meter.stop(STREAMS)?;
    let leases = leases.into_inner();
    pipelined(leases.len(), window, async |number| etcd::revoke(channel(number), leases[number]).await).await?;
    Ok(taken)
}
