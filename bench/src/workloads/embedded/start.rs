//! The time from exec to the first answer, and the memory of an empty server.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rollcall_proto::v1::GetRequest;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::zookeeper::free_address;
use tokio::time::sleep;
use tonic::transport::Endpoint;

use super::case;
use crate::report::{ROLLCALL, Round, Unit};
use crate::systems::Setup;
use crate::usage;

const STARTS: usize = 4;
/// Time from the first answer to the measurement of memory: work that only the start needs is done by then.
const SETTLED: Duration = Duration::from_millis(500);

pub(super) async fn measure(setup: &Setup, round: &mut Round<'_>) -> anyhow::Result<()> {
    for start in 0..STARTS {
        let directory = scratch("start");
        let (grpc, http) = (free_address(), free_address());
        let mut command = Command::new(setup.program());
        command.args(["--embedded", "--listen", &grpc.to_string(), "--http-listen", &http.to_string()]);
        let begin = Instant::now();
        let mut process = Process::spawn("rollcall-server", directory.path(), &mut command);
        let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?.tcp_nodelay(true);
        loop {
            match first_answer(&endpoint).await {
                Ok(()) => break,
                Err(error) if begin.elapsed() > Duration::from_secs(10) => return Err(error.context("no answer")),
                Err(_) => {}
            }
            if let Some(status) = process.exited() {
                bail!("rollcall-server ended at its start, {status}:\n{}", process.stderr());
            }
            sleep(Duration::from_millis(1)).await;
        }
        let time = begin.elapsed();
        round.add(&case("from exec to the first answer", Unit::Milliseconds), ROLLCALL, time.as_secs_f64() * 1e3);
        if start + 1 == STARTS {
            sleep(SETTLED).await;
            let memory = usage::memory(process.pid())?;
            round.add(&case("resident, nothing in it", Unit::Megabytes), ROLLCALL, memory.resident as f64 / 1e6);
            round.add(&case("of it anonymous", Unit::Megabytes), ROLLCALL, memory.anonymous as f64 / 1e6);
        }
    }
    Ok(())
}

async fn first_answer(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut client = RegistryClient::new(endpoint.connect().await?);
    let request = GetRequest { path: "/".to_owned(), ..Default::default() };
    client.get(request).await?.into_inner().node.context("no node")?;
    Ok(())
}
