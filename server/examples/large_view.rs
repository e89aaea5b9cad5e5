//! Measures the longest step on the runtime's threads while large views are loaded, told, changed and dropped:
//! `large_view [NODES] [PER-PARENT]`.
//!
//! A replica runs on one runtime thread, beside a task that ticks every millisecond: a step of anybody else is a gap
//! between two ticks. Told are the longest gap by the clock, to which a busy machine adds, and by the processor's time of that
//! thread, to which only steps add that follow each other. ZooKeeper's place is taken by the embedded server, on threads of
//! its own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program to be looked at")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser as _;
use rollcall_embedded::{Config, Embedded};
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::watch_response::Event;
use rollcall_proto::v1::{GetRequest, WatchRequest};
use rollcall_server::{App, Args};
use rollcall_wire::{Acl, ConnectRequest, CreateMode, Encoder, Request, RequestHeader};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

/// A session of ZooKeeper's protocol that writes only.
struct Writer(TcpStream);

impl Writer {
    async fn connect(address: SocketAddr) -> Self {
        let mut writer = Self(TcpStream::connect(address).await.unwrap());
        let request = ConnectRequest {
            last_zxid_seen: 0,
            timeout_ms: 40_000,
            session_id: 0,
            password: Bytes::from_static(&[0; 16]),
        };
        writer.exchange(|encoder| request.encode(encoder)).await;
        writer
    }

    async fn exchange(&mut self, body: impl FnOnce(&mut Encoder)) {
        let mut encoder = Encoder::new();
        encoder.frame(body);
        self.0.write_all(&encoder.take()).await.unwrap();
        let length = self.0.read_i32().await.unwrap();
        let mut answer = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut answer).await.unwrap();
    }

    async fn write(&mut self, requests: Vec<Request>) {
        let request = Request::Multi(requests);
        self.exchange(|encoder| {
            RequestHeader { xid: 1, op_code: request.op_code() as i32 }.encode(encoder);
            request.encode(encoder);
        })
        .await;
    }
}

fn create(path: String) -> Request {
    Request::Create {
        path,
        data: Bytes::from_static(b"{\"a\":1}"),
        acl: vec![Acl::open()],
        mode: CreateMode::Persistent,
    }
}

fn paths(nodes: usize, each: usize) -> impl Iterator<Item = String> {
    (0..nodes).map(move |number| match number % (each + 1) {
        0 => format!("/tree/{}", number / (each + 1)),
        child => format!("/tree/{}/{child}", number / (each + 1)),
    })
}

async fn in_batches(writer: &mut Writer, requests: impl Iterator<Item = Request>) {
    let mut batch = Vec::new();
    for request in requests {
        batch.push(request);
        if batch.len() == 500 {
            writer.write(std::mem::take(&mut batch)).await;
        }
    }
    if !batch.is_empty() {
        writer.write(batch).await;
    }
}

async fn watch(client: &mut RegistryClient<Channel>) -> tonic::Streaming<rollcall_proto::v1::WatchResponse> {
    let request = WatchRequest { path: "/tree".to_owned(), recursive: true, ..Default::default() };
    client.watch(request).await.unwrap().into_inner()
}

/// Reads a stream until a snapshot or a delta is complete; gives how many nodes or changes it had.
async fn read(stream: &mut tonic::Streaming<rollcall_proto::v1::WatchResponse>) -> usize {
    let mut count = 0;
    loop {
        let message = stream.message().await.unwrap().unwrap();
        let more = match message.event {
            Some(Event::Snapshot(snapshot)) => {
                count += snapshot.node.map_or(0, |node| node.children.len());
                snapshot.more
            }
            Some(Event::Delta(delta)) => {
                count += delta.changes.len();
                delta.more
            }
            _ => continue,
        };
        if !more {
            return count;
        }
    }
}

/// The longest gaps since the last report, in microseconds: by the clock, and of the thread's time.
#[derive(Default)]
struct Gaps([AtomicU64; 2]);

impl Gaps {
    fn report(&self, phase: &str, begun: Instant, count: usize) {
        let [clock, thread] =
            [0, 1].map(|kind| Duration::from_micros(self.0[kind].swap(0, Ordering::Relaxed)).as_secs_f64() * 1e3);
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{phase:<24} {seconds:>7.2} s {count:>8} nodes, longest {clock:>8.1} ms, {thread:>8.1} ms of the thread"
        );
    }
}

fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

async fn tick(gaps: Arc<Gaps>) {
    let (mut last, mut last_of_thread) = (Instant::now(), thread_time());
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let gap = [last.elapsed(), thread_time() - last_of_thread];
        for (longest, gap) in gaps.0.iter().zip(gap) {
            longest.fetch_max(u64::try_from(gap.as_micros()).unwrap(), Ordering::Relaxed);
        }
        (last, last_of_thread) = (Instant::now(), thread_time());
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().unwrap());
    let (nodes, each) = (arguments.next().unwrap_or(1_000_000), arguments.next().unwrap_or(1000));
    let (zookeeper, replica, clients) = (runtime(2), runtime(1), runtime(2));
    let embedded = zookeeper.block_on(Embedded::bind("127.0.0.1:0".parse().unwrap(), Config::default())).unwrap();
    let address = embedded.local_addr();
    zookeeper.spawn(embedded.run(std::future::pending()));
    let hosts = address.to_string();
    let args = ["rollcall-server", "--zookeeper", &hosts, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let options = Args::parse_from(args.iter().chain(&["--view-idle", "2s"])).options;
    let app = replica.block_on(App::bind(options.check().unwrap())).unwrap();
    let grpc = app.addresses().unwrap().0;
    replica.spawn(app.run(std::future::pending(), std::future::pending()));
    let gaps = Arc::new(Gaps::default());
    replica.spawn(tick(gaps.clone()));
    clients.block_on(async {
        let mut writer = Writer::connect(address).await;
        let mut client =
            RegistryClient::connect(format!("http://{grpc}")).await.unwrap().max_decoding_message_size(4 << 20);
        let begun = Instant::now();
        writer.write(vec![create("/tree".to_owned())]).await;
        in_batches(&mut writer, paths(nodes, each).map(create)).await;
        println!("{nodes} nodes made in {:.1} s", begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        gaps.report("making them", begun, nodes);
        tokio::time::sleep(Duration::from_secs(2)).await;
        gaps.report("nothing", begun, 0);
        let begun = Instant::now();
        let mut stream = watch(&mut client).await;
        let count = read(&mut stream).await;
        gaps.report("load and snapshot", begun, count);
        let begun = Instant::now();
        let count = read(&mut watch(&mut client).await).await;
        gaps.report("another snapshot", begun, count);
        let begun = Instant::now();
        let get = GetRequest { path: "/tree".to_owned(), recursive: true, page_size: 5000, ..Default::default() };
        client.get(get).await.unwrap();
        gaps.report("a page of 5,000", begun, 5000);
        let begun = Instant::now();
        // Its session has ended meanwhile.
        let mut writer = Writer::connect(address).await;
        let write = |path| Request::SetData { path, data: Bytes::from_static(b"{\"a\":2}"), version: -1 };
        let writing = in_batches(&mut writer, paths(nodes, each).take(60_000).map(write));
        let mut count = 0;
        let reading = async {
            while count < nodes.min(60_000) {
                count += read(&mut stream).await;
            }
        };
        tokio::join!(writing, reading);
        gaps.report("60,000 changes", begun, count);
        let begun = Instant::now();
        drop(stream);
        tokio::time::sleep(Duration::from_secs(6)).await;
        gaps.report("idle, and dropped", begun, 0);
    });
    for runtime in [zookeeper, replica, clients] {
        runtime.shutdown_background();
    }
}
