//! A lock that nobody else wants, acquired and released, one time after the other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, ReleaseLockRequest};
use rollcall_tests::client::Client;
use zookeeper_client::{Acls, Client as ZooKeeper, LockPrefix};

use super::Workload;
use crate::report::{Case, ROLLCALL, Round, Unit, ZOOKEEPER};
use crate::stats::Latencies;
use crate::systems::Setup;

const OURS: &str = "/lock/rollcall";
const THEIRS: &str = "/lock/zookeeper";

/// Which lock is taken: Rollcall's is kazoo's Semaphore.
#[derive(Clone, Copy)]
enum Way {
    Semaphore,
    Mutex,
}

/// The workload, prepared.
#[derive(Debug)]
pub(crate) struct Lock {
    rollcall: Client,
    zookeeper: ZooKeeper,
}

impl Workload for Lock {
    const NAME: &str = "lock";
    const NOTE: &str = "acquire and release, acknowledged, one after the other, nobody else there. Rollcall takes kazoo's Semaphore, \
         whose grant is a lease of its own; zookeeper is zookeeper-client's mutex with the names of kazoo's Lock, \
         which is three requests.";

    async fn prepare(setup: &Setup) -> anyhow::Result<Lock> {
        let bare = setup.bare().await;
        bare.create(THEIRS, b"").await;
        Ok(Lock { rollcall: setup.client().await?, zookeeper: bare.client().clone() })
    }

    async fn round(&mut self, _setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
        let case = |name: &str, unit| Case { workload: Lock::NAME, name: name.to_owned(), unit };
        for way in round.turn([Way::Semaphore, Way::Mutex]) {
            let mut latencies = Latencies::default();
            let end = Instant::now() + round.time;
            while Instant::now() < end {
                latencies.push(match way {
                    Way::Semaphore => acquire_and_release(&mut self.rollcall).await?,
                    Way::Mutex => lock_and_delete(&self.zookeeper).await?,
                });
            }
            let system = match way {
                Way::Semaphore => ROLLCALL,
                Way::Mutex => ZOOKEEPER,
            };
            let rate = latencies.per_second().context("nothing was measured")?;
            round.add(&case("acquire + release", Unit::PerSecond), system, rate);
            let p99 = latencies.percentile(99).context("nothing was measured")?;
            round.add(&case("acquire + release, p99", Unit::Microseconds), system, p99.as_secs_f64() * 1e6);
        }
        Ok(())
    }
}

async fn acquire_and_release(client: &mut Client) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let request = AcquireLockRequest { path: OURS.to_owned(), name: "bench".to_owned(), ..Default::default() };
    let mut stream = client.acquire_lock(request).await?.into_inner();
    let held = loop {
        match stream.message().await?.context("the stream ended before the lock was held")?.event {
            Some(Event::Held(held)) => break held,
            Some(Event::Queued(_) | Event::Heartbeat(_)) => {}
            other => bail!("neither queued nor held: {other:?}"),
        }
    };
    client.release_lock(ReleaseLockRequest { lock_id: held.lock_id }).await?;
    let taken = begin.elapsed();
    while stream.message().await?.is_some() {}
    Ok(taken)
}

async fn lock_and_delete(client: &ZooKeeper) -> anyhow::Result<Duration> {
    // Kazoo has a fresh uuid in each name, which costs nothing that is measured here; nobody else uses this session.
    let prefix = LockPrefix::new_custom(format!("{THEIRS}/5f0a__lock__"), "__lock__")?;
    let begin = Instant::now();
    let lock = client.lock(prefix, b"bench", Acls::anyone_all()).await?;
    client.delete(lock.lock_path(), None).await?;
    let taken = begin.elapsed();
    // Its Drop would delete once more, and nobody would wait for that.
    std::mem::forget(lock);
    Ok(taken)
}
