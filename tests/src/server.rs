//! The program under test, `rollcall-server`, as a child process on free ports.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use rollcall_proto::v1::registry_client::RegistryClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::{Process, Signal, beside, scratch};
use crate::proxy::Proxy;
use crate::wait::{SOON, check, eventually, soon};

/// The service name of the server's health check.
pub const SERVICE: &str = "rollcall.v1.Registry";

const ANY_PORT: &str = "127.0.0.1:0";

/// A running `rollcall-server`. Dropping kills it, like a crash.
#[derive(Debug)]
pub struct Server {
    process: Process,
    grpc: SocketAddr,
    http: SocketAddr,
    _directory: TempDir,
}

impl Server {
    /// Starts a server on `host:port,…/chroot`, and waits until it has contacted ZooKeeper.
    pub async fn start(hosts: &str) -> Server {
        Server::start_with(hosts, &[]).await
    }

    /// Starts a server like [`Server::start`], with options.
    pub async fn start_with(hosts: &str, options: &[&str]) -> Server {
        let mut server = Server::launch(hosts, options).await;
        server.wait_until_serving().await;
        server
    }

    /// Starts a server and waits until it listens, whether or not there is a ZooKeeper.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn launch(hosts: &str, options: &[&str]) -> Server {
        Server::launch_on(&["--zookeeper", hosts], ANY_PORT, options).await
    }

    /// Starts a server that speaks gRPC at this address, and waits until it has contacted ZooKeeper.
    pub async fn start_at(address: SocketAddr, hosts: &str, options: &[&str]) -> Server {
        let mut server = Server::launch_on(&["--zookeeper", hosts], &address.to_string(), options).await;
        server.wait_until_serving().await;
        server
    }

    /// Starts a server on the embedded backend, which speaks ZooKeeper's protocol at this address.
    pub async fn start_embedded(address: SocketAddr) -> Server {
        Server::start_embedded_with(address, &[]).await
    }

    /// Starts a server like [`Server::start_embedded`], with options.
    pub async fn start_embedded_with(address: SocketAddr, options: &[&str]) -> Server {
        let backend = ["--embedded", "--embedded-listen", &address.to_string()];
        let mut server = Server::launch_on(&backend, ANY_PORT, options).await;
        server.wait_until_serving().await;
        server
    }

    async fn launch_on(backend: &[&str], listen: &str, options: &[&str]) -> Server {
        let directory = scratch("server");
        let mut command = Command::new(program());
        command.args(backend).args(["--listen", listen, "--http-listen", ANY_PORT]).args(options);
        let mut process = Process::spawn("rollcall-server", directory.path(), &mut command);
        let (grpc, http) = eventually("rollcall-server says where it listens", SOON, async || {
            if let Some(status) = process.exited() {
                panic!("rollcall-server ended at its start, {status}:\n{}", process.stderr());
            }
            let said = process.stdout();
            match said.split_once('\n') {
                Some((line, _)) => Ok(listening(line).unwrap_or_else(|| panic!("not a listening line: {line:?}"))),
                None => Err(format!("{said:?}")),
            }
        })
        .await;
        Server { process, grpc, http, _directory: directory }
    }

    /// The gRPC address.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The HTTP address, of metrics and health.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The peak of its resident memory, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).expect("it runs");
        let kilobytes = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        1024 * kilobytes.and_then(|number| number.parse::<usize>().ok()).expect("the kernel tells")
    }

    /// The ZooKeeper sessions that it has had so far, from its log.
    ///
    /// # Panics
    /// When the log can't be parsed.
    pub fn sessions(&self) -> BTreeSet<i64> {
        let log = self.process.stderr();
        let connects = log.lines().filter(|line| line.contains("connected to zookeeper"));
        let session = |line: &str| {
            let id = line.split_once("session=0x")?.1.split_whitespace().next()?;
            u64::from_str_radix(id, 16).ok().map(u64::cast_signed)
        };
        connects.map(|line| session(line).unwrap_or_else(|| panic!("no session in {line:?}"))).collect()
    }

    /// Its process: to signal it, to wait for its end, to read its output.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Freezes it: it keeps its connections and answers nothing.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Resumes a frozen server.
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Opens a new connection.
    ///
    /// # Panics
    /// When it can't connect.
    pub async fn channel(&self) -> Channel {
        connect(self.grpc).await
    }

    /// A client on its own connection, which closes when the last clone is dropped.
    pub async fn client(&self) -> RegistryClient<Channel> {
        client_of(self.channel().await)
    }

    /// A connection on which the server can send at most `window` bytes of a stream before they are read; with 0 it can
    /// send nothing. No stream takes the window of another.
    ///
    /// # Panics
    /// When it can't connect.
    pub async fn narrow_channel(&self, window: u32) -> Channel {
        const ALL_STREAMS: u32 = 1 << 30;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).expect("an address is a URI");
        let endpoint = endpoint.initial_stream_window_size(window).initial_connection_window_size(ALL_STREAMS);
        soon("a connection to rollcall-server", endpoint.connect()).await.expect("rollcall-server listens")
    }

    /// A client behind a proxy, so that a test can break its connection.
    pub async fn client_through_a_proxy(&self) -> (Proxy, RegistryClient<Channel>) {
        let proxy = Proxy::start(self.grpc).await;
        let client = client_of(connect(proxy.address()).await);
        (proxy, client)
    }

    /// Waits until the metrics report this number of open streams.
    pub async fn wait_for_streams(&self, count: usize) {
        self.wait_for_metric(&format!("rollcall_streams {count}")).await;
    }

    /// The number of open streams, from the metrics.
    ///
    /// # Errors
    /// When the metrics can't be read.
    pub async fn streams(&self) -> Result<usize, String> {
        let metrics = self.http_get("/metrics").await.map_err(|error| error.to_string())?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("rollcall_streams ")?.parse().ok());
        count.ok_or(metrics)
    }

    /// Waits until the metrics contain this line.
    pub async fn wait_for_metric(&self, line: &str) {
        eventually(line, SOON, async || {
            let metrics = self.http_get("/metrics").await.map_err(|error| error.to_string())?;
            check(metrics.lines().any(|found| found == line), || metrics)
        })
        .await;
    }

    /// The value of this metric.
    ///
    /// # Panics
    /// When it does not exist.
    pub async fn metric(&self, name: &str) -> usize {
        let metrics = soon("the metrics", self.http_get("/metrics")).await.expect("they are served");
        let number = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
    }

    /// The answer to a GET of an HTTP page, with the headers.
    ///
    /// # Errors
    /// When it can't connect.
    pub async fn http_get(&self, page: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.http).await?;
        let request = format!("GET {page} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The health of a service.
    ///
    /// # Errors
    /// The error of the health service for an unknown name.
    pub async fn health(&self, service: &str) -> Result<ServingStatus, tonic::Status> {
        let mut client = HealthClient::new(self.channel().await);
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = soon("an answer about health", client.check(request)).await?;
        Ok(answer.into_inner().status())
    }

    /// Waits until its health is SERVING.
    pub async fn wait_until_serving(&mut self) {
        eventually("rollcall-server is SERVING", 2 * SOON, async || match self.health(SERVICE).await {
            Ok(ServingStatus::Serving) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address is a URI");
    soon("a connection to rollcall-server", endpoint.connect()).await.expect("rollcall-server listens")
}

fn client_of(channel: Channel) -> RegistryClient<Channel> {
    // A message of the server is at most 2 MiB. A larger one is a bug that the default limit of 4 MiB would hide.
    RegistryClient::new(channel).max_decoding_message_size(2 << 20)
}

/// Parses `listening grpc=ADDR http=ADDR`.
fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (grpc, http) = line.strip_prefix("listening grpc=")?.split_once(" http=")?;
    Some((grpc.parse().ok()?, http.parse().ok()?))
}

/// The program: `ROLLCALL_SERVER_BIN`, or the one that `cargo build` has put beside this test program.
///
/// # Panics
/// When there is none.
pub fn program() -> PathBuf {
    let path = match std::env::var_os("ROLLCALL_SERVER_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside("rollcall-server"),
    };
    assert!(
        path.is_file(),
        "no {}: run cargo build -p rollcall-server, or say in ROLLCALL_SERVER_BIN where it is",
        path.display()
    );
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_names_both_addresses() {
        let (grpc, http) = listening("listening grpc=127.0.0.1:7700 http=127.0.0.1:7701").unwrap();
        assert_eq!((grpc.port(), http.port()), (7700, 7701));
        assert_eq!(listening("listening http=127.0.0.1:7701"), None);
    }
}
