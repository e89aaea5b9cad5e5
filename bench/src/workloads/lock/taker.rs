//! Takes each system's lock and gives it back, once.

use anyhow::{Context as _, bail};
use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::{AcquireLockRequest, AcquireLockResponse, Held, ReleaseLockRequest};
use rollcall_tests::client::Client;
use tonic::Streaming;
use tonic::transport::Channel;
use zookeeper_client::{Acls, Client as ZooKeeper, LockPrefix};

use crate::systems::etcd;

/// A call of AcquireLock. Dropping it gives the lock back.
#[derive(Debug)]
pub(super) struct Stream(Streaming<AcquireLockResponse>);

impl Stream {
    /// Asks for a lock.
    pub(super) async fn open(client: &mut Client, path: &str) -> anyhow::Result<Stream> {
        let request = AcquireLockRequest { path: path.to_owned(), name: "bench".to_owned(), ..Default::default() };
        Ok(Stream(client.acquire_lock(request).await?.into_inner()))
    }

    /// Waits until it is queued.
    pub(super) async fn queued(&mut self) -> anyhow::Result<()> {
        match self.0.message().await?.context("the stream ended before the lock was queued for")?.event {
            Some(Event::Queued(_)) => Ok(()),
            other => bail!("not queued: {other:?}"),
        }
    }

    /// Waits until the lock is held.
    pub(super) async fn held(&mut self) -> anyhow::Result<Held> {
        loop {
            match self.0.message().await?.context("the stream ended before the lock was held")?.event {
                Some(Event::Held(held)) => return Ok(held),
                Some(Event::Queued(_) | Event::Heartbeat(_)) => {}
                other => bail!("neither queued nor held: {other:?}"),
            }
        }
    }

    /// Reads to the end.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        while self.0.message().await?.is_some() {}
        Ok(())
    }
}

/// Gives a lock back.
pub(super) async fn release(client: &mut Client, held: Held) -> anyhow::Result<()> {
    client.release_lock(ReleaseLockRequest { lock_id: held.lock_id }).await?;
    Ok(())
}

/// One client with the lock that it takes.
#[derive(Clone, Debug)]
pub(super) enum Taker {
    Rollcall {
        client: Client,
        path: String,
    },
    /// zookeeper-client's mutex.
    Mutex {
        session: ZooKeeper,
        /// The prefix of the contenders' names. kazoo has a fresh uuid in each, which costs nothing that is measured
        /// here.
        prefix: String,
    },
    /// etcd's lock, which lives no longer than the lease.
    Etcd {
        channel: Channel,
        /// `None`: a lease is granted for each lock.
        lease: Option<i64>,
        name: String,
    },
}

impl Taker {
    /// A mutex whose contenders are children of `path`.
    pub(super) fn mutex(session: &ZooKeeper, path: &str) -> Taker {
        Taker::Mutex { session: session.clone(), prefix: format!("{path}/5f0a__lock__") }
    }

    /// Takes the lock and gives it back.
    pub(super) async fn once(self) -> anyhow::Result<()> {
        match self {
            Taker::Rollcall { mut client, path } => {
                let mut stream = Stream::open(&mut client, &path).await?;
                let held = stream.held().await?;
                release(&mut client, held).await?;
                stream.end().await
            }
            Taker::Mutex { session, prefix } => {
                let prefix = LockPrefix::new_custom(prefix, "__lock__")?;
                let lock = session.lock(prefix, b"bench", Acls::anyone_all()).await?;
                session.delete(lock.lock_path(), None).await?;
                // Dropping the lock would send a second delete that nothing waits for.
                std::mem::forget(lock);
                Ok(())
            }
            Taker::Etcd { channel, lease: Some(lease), name } => {
                let key = etcd::lock(&channel, name, lease).await?;
                etcd::unlock(&channel, key).await
            }
            Taker::Etcd { channel, lease: None, name } => {
                let lease = etcd::grant(&channel).await?;
                etcd::lock(&channel, name, lease).await?;
                etcd::revoke(&channel, lease).await
            }
        }
    }
}
