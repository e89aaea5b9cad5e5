//! The read operations of each system.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::http2::{Connection, Side};

/// A gRPC call that is repeated.
pub(super) struct Unary {
    pub(super) address: SocketAddr,
    pub(super) method: &'static str,
    pub(super) request: Vec<u8>,
}

impl Unary {
    /// Returns the number of answered calls a second, over one connection with `at_once` calls in flight.
    ///
    /// # Errors
    /// When an answer differs from the first.
    pub(super) async fn rate(&self, at_once: usize, time: Duration) -> anyhow::Result<f64> {
        let mut connection = Connection::open(self.address).await?;
        let (_, size) = self.calls(&mut connection, 1, Duration::ZERO).await?;
        let begin = Instant::now();
        let (count, bytes) = self.calls(&mut connection, at_once, time).await?;
        let rate = count as f64 / begin.elapsed().as_secs_f64();
        ensure!(bytes == count * size, "{count} answers have {bytes} bytes, and the first had {size}");
        Ok(rate)
    }

    /// Returns the number of answered calls, and the bytes of their answers.
    async fn calls(
        &self,
        connection: &mut Connection,
        at_once: usize,
        time: Duration,
    ) -> anyhow::Result<(usize, usize)> {
        let end = Instant::now() + time;
        let (mut open, mut next, mut count, mut bytes) = (0, at_once, 0, 0);
        loop {
            for _ in 0..next {
                connection.call(self.method, &self.request, Side::Closed);
            }
            open += next;
            if open == 0 {
                return Ok((count, bytes));
            }
            connection.flush().await?;
            let heard = connection.hear().await?;
            count += heard.ended;
            bytes += heard.bytes;
            open -= heard.ended;
            next = if Instant::now() < end { heard.ended } else { 0 };
        }
    }
}

/// Reads with a ZooKeeper client, without a server between.
pub(super) mod bare {
    use std::iter::repeat_n;
    use std::time::Duration;

    use anyhow::ensure;
    use futures_util::future::try_join_all;
    use zookeeper_client::{Client, MultiReadResult};

    use super::super::path;
    use crate::drive::throughput;

    /// Returns the number of reads a second; each lists the path and then reads all children, pipelined.
    pub(in super::super) async fn reads(
        client: &Client,
        children: usize,
        at_once: usize,
        time: Duration,
    ) -> anyhow::Result<f64> {
        let client = client.clone();
        throughput(time, repeat_n(move || list_and_reads(client.clone(), children), at_once)).await
    }

    /// Returns the number of reads a second; each lists the path and then reads all children with one multi.
    pub(in super::super) async fn multis(
        client: &Client,
        children: usize,
        at_once: usize,
        time: Duration,
    ) -> anyhow::Result<f64> {
        let client = client.clone();
        throughput(time, repeat_n(move || list_and_multi(client.clone(), children), at_once)).await
    }

    async fn list_and_reads(client: Client, children: usize) -> anyhow::Result<()> {
        let path = path(children);
        let names = client.list_children(&path).await?;
        // Each request is sent when the future is created, not when it is awaited.
        let reads = names.iter().map(|name| client.get_data(&format!("{path}/{name}")));
        let values = try_join_all(reads).await?;
        complete(values.iter().filter(|(data, _)| !data.is_empty()).count(), children)
    }

    async fn list_and_multi(client: Client, children: usize) -> anyhow::Result<()> {
        let path = path(children);
        let names = client.list_children(&path).await?;
        let mut reads = client.new_multi_reader();
        for name in &names {
            reads.add_get_data(&format!("{path}/{name}"))?;
        }
        let values = reads.commit().await?;
        let is_value = |read: &&MultiReadResult| matches!(read, MultiReadResult::Data { data, .. } if !data.is_empty());
        complete(values.iter().filter(is_value).count(), children)
    }

    fn complete(values: usize, children: usize) -> anyhow::Result<()> {
        ensure!(values == children, "an answer has {values} values instead of {children}");
        Ok(())
    }
}
