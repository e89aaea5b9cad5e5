//! The binary `rollcall-server`.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use rollcall_server::{App, Args};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Gives memory back to the system. After a flood, the C library's allocator keeps its peak for good.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run(Args::parse()).await else { return ExitCode::SUCCESS };
    // One line with all causes, and without a backtrace, whatever RUST_BACKTRACE says: a port that is in use is no
    // defect. If standard error is closed, nobody reads the line.
    let _ = writeln!(std::io::stderr(), "rollcall-server: {}", format!("{error:#}").replace('\n', " "));
    ExitCode::FAILURE
}

async fn run(args: Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log: {:?} is no filter", args.log))?;
    // h2 warns of each answer to a ping of `grpc/pings.rs`.
    let filter = filter.add_directive("h2::proto::ping_pong=error".parse()?);
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr).init();
    let app = App::bind(args.options.check()?).await?;
    let (grpc, http) = app.addresses()?;
    writeln!(std::io::stdout(), "listening grpc={grpc} http={http}")?;
    if let Some(address) = app.embedded_address() {
        show_banner(address, grpc)?;
    }
    let (drain, stop) = signals()?;
    app.run(drain, stop).await
}

/// Two futures: one is ready at the first SIGTERM, the other at SIGINT or a second SIGTERM.
fn signals() -> anyhow::Result<(impl Future<Output = ()> + Send, impl Future<Output = ()> + Send)> {
    let listen = |kind, name| signal(kind).with_context(|| format!("can't listen for {name}"));
    let (mut first, mut terminate) =
        (listen(SignalKind::terminate(), "SIGTERM")?, listen(SignalKind::terminate(), "SIGTERM")?);
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    let drain = async move {
        first.recv().await;
    };
    let twice = async move {
        terminate.recv().await;
        terminate.recv().await;
    };
    let stop = async move {
        tokio::select! {
            () = twice => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok((drain, stop))
}

/// Writes on stderr what a user who tries the server out has to know.
fn show_banner(address: SocketAddr, grpc: SocketAddr) -> std::io::Result<()> {
    write!(
        std::io::stderr(),
        "\
Everything is kept in the memory of this process, for one machine: whoever needs more starts rollcall-server with --zookeeper.
The memory is served on {address}, in ZooKeeper's protocol: to kazoo, to zkCli, to another replica with --zookeeper {address}.
Try, in other terminals:

  grpcurl -plaintext -d '{{\"set\":{{\"path\":\"/services/ssh/server1:22\",\"value\":{{\"data\":{{\"foo\":\"bar\"}}}}}}}}' {grpc} rollcall.v1.Registry/Register
  grpcurl -plaintext -d '{{\"path\":\"/services/ssh\"}}' {grpc} rollcall.v1.Registry/Watch
  grpcurl -plaintext -d '{{\"path\":\"/jobs/nightly\"}}' {grpc} rollcall.v1.Registry/AcquireLock

"
    )
}
