//! `rollcall-server`, as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_tests::client::{Client, latest};
use rollcall_tests::process::{Process, scratch};
use rollcall_tests::wait::eventually;
use tonic::transport::{Channel, Endpoint};

use super::{Directory, START};

/// A server with its default options. Dropping kills it.
#[derive(Debug)]
pub(crate) struct Rollcall {
    process: Process,
    grpc: SocketAddr,
    http: SocketAddr,
    _directory: Directory,
}

impl Rollcall {
    /// Starts a server and waits until it listens; `options` name at least its backend.
    pub(crate) async fn start(program: &Path, options: &[&str]) -> anyhow::Result<Rollcall> {
        let directory = scratch("rollcall");
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log", "warn"]).args(options);
        let mut process = Process::spawn("rollcall-server", directory.path(), &mut command);
        let addresses = eventually("rollcall-server says where it listens", START, async || {
            let said = process.stdout();
            match (listening(&said), process.exited()) {
                (Some(addresses), None) => Ok(Ok(addresses)),
                (_, Some(status)) => Ok(Err(status)),
                (None, None) => Err(said),
            }
        })
        .await;
        match addresses {
            Ok((grpc, http)) => Ok(Rollcall { process, grpc, http, _directory: Box::new(directory) }),
            Err(status) => bail!("rollcall-server ended at its start, {status}:\n{}", process.stderr()),
        }
    }

    /// Starts a server in front of a ZooKeeper, and waits until it has connected to it.
    pub(crate) async fn serving(program: &Path, hosts: &str) -> anyhow::Result<Rollcall> {
        let rollcall = Rollcall::start(program, &["--zookeeper", hosts]).await?;
        let client = rollcall.client().await?;
        eventually("rollcall-server has ZooKeeper", START, async || {
            // The path stays absent: a view of the root would be updated for a minute with every change below it.
            client.clone().get(latest("/ready")).await.map(|_| ()).map_err(|status| status.to_string())
        })
        .await;
        Ok(rollcall)
    }

    /// A client on a new connection.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(RegistryClient::new(self.channel().await?))
    }

    /// Opens a new connection.
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        endpoint(self.grpc)?.connect().await.context("can't connect to rollcall-server")
    }

    /// The gRPC address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.grpc
    }

    /// The address of metrics and health.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The endpoint for every gRPC peer.
pub(super) fn endpoint(address: SocketAddr) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true))
}

/// The server binary: `named`, or the one that was built beside this program.
pub(super) fn program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("rollcall-server"),
    };
    ensure!(
        program.is_file(),
        "no {}: run cargo build --release -p rollcall-server, or say --server FILE",
        program.display()
    );
    Ok(program)
}

/// Parses `listening grpc=ADDR http=ADDR`, once the line is complete.
fn listening(said: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (line, _) = said.split_once('\n')?;
    let (grpc, http) = line.strip_prefix("listening grpc=")?.split_once(" http=")?;
    Some((grpc.parse().ok()?, http.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_says_nothing_yet() {
        assert_eq!(listening("listening grpc=127.0.0.1:7700 http=127.0"), None);
        let (grpc, http) = listening("listening grpc=127.0.0.1:7700 http=127.0.0.1:7701\n").unwrap();
        assert_eq!((grpc.port(), http.port()), (7700, 7701));
    }
}
