//! A replica dies, and its clients resume on another.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use rollcall_proto::v1::Registered;
use rollcall_tests::client::{Client, data, resume, set};

use super::stream::{Stream, close_all, open_all, open_with_ttl, together};
use super::{Workload, value};
use crate::report::{Case, ROLLCALL, Round, Unit};
use crate::stats::Latencies;
use crate::systems::Setup;
use crate::workloads::Rounds;

const STREAMS: usize = 10_000;
const CONNECTIONS: usize = 100;
const TTL: Duration = Duration::from_secs(60);

/// The workload. It prepares nothing: each round is complete in itself.
#[derive(Debug)]
pub(crate) struct Resume;

impl Workload for Resume {
    const NAME: &str = "resume";
    const NOTE: &str = "two servers; one has 10,000 Register streams over 100 connections, with a ttl and one registration each, and is \
         killed with SIGKILL. Each client opens a stream on the other as soon as its own has broken, and resumes its \
         registration by its generation, over 100 new connections. From the kill until so many have their answer, which \
         has to say that the node was never missing.";
    const ROUNDS: Rounds = Rounds::Cold(3);

    async fn prepare(_setup: &Setup) -> anyhow::Result<Resume> {
        Ok(Resume)
    }

    async fn round(&mut self, setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let (mut dying, other) = (setup.another().await?, setup.another().await?);
        let value = data(value());
        let clients = try_join_all((0..CONNECTIONS).map(|_| dying.client())).await?;
        let requests = (0..STREAMS)
            .map(|number| [open_with_ttl(TTL), set(&format!("/resume/server{number}.example:8080"), value.clone())]);
        let streams = open_all(&clients, requests).await?;
        drop(clients);

        let others = try_join_all((0..CONNECTIONS).map(|_| other.client())).await?;
        let coming = streams.into_iter().zip(others.iter().cycle().cloned());
        let coming =
            together(coming, |((stream, registered), client)| come_back(stream, registered, client, value.clone()));
        let kill = async {
            let begin = Instant::now();
            dying.process().kill();
            begin
        };
        let (back, begin) = tokio::join!(coming, kill);
        let back = back?;
        let mut times = Latencies::default();
        back.iter().for_each(|(_, at)| times.push(*at - begin));
        close_all(back.into_iter().map(|(stream, _)| stream)).await?;
        for (name, percent) in [("half of 10,000 resumed", 50), ("all 10,000 resumed", 100)] {
            let case = Case { workload: Resume::NAME, name: name.to_owned(), unit: Unit::Milliseconds };
            let time = times.percentile(percent).context("nobody came back")?;
            round.add(&case, ROLLCALL, time.as_secs_f64() * 1e3);
        }
        Ok(())
    }
}

/// Waits until the stream breaks, resumes on the other server, and returns when that was answered.
async fn come_back(
    mut stream: Stream,
    before: Registered,
    mut client: Client,
    value: rollcall_proto::v1::Value,
) -> anyhow::Result<(Stream, Instant)> {
    let broken = stream.registered().await;
    ensure!(broken.is_err(), "registered once more: {broken:?}");
    let again = [open_with_ttl(TTL), resume(&before.path, value, before.generation)];
    let mut stream = Stream::open(&mut client, again).await?;
    let registered = stream.registered().await?;
    let at = Instant::now();
    ensure!(registered.adopted, "{} was missing", before.path);
    Ok((stream, at))
}
