//! The cost of the client compared with the generated stubs that it is built on: lookups, registrations, memory.
//!
//! `cargo bench -p rollcall-client --bench overhead` against a server at `ROLLCALL_SERVER`, default localhost:7700. The
//! two sides of a pair take turns, several times, and the medians are shown, so that other load on the machine shows
//! in both. The CPU time is that of this program, which has one thread; the server's is not included.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement stops at the first surprise and shows what it saw"
)]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rollcall::proto::v1;
use rollcall::proto::v1::registry_client::RegistryClient;
use rollcall::{Client, Registration};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const ROUNDS: usize = 7;
const LOOKUPS: usize = 4_000;
const REGISTRATIONS: usize = 2_000;
const MANY: usize = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());
    let stub = RegistryClient::connect(format!("http://{server}")).await.unwrap();
    let client = Client::connect(server.as_str()).await.unwrap();

    let before = resident();
    let held = register_with_client(&client, "memory", MANY).await;
    let after = resident();
    let each = (after - before) * 1024 / MANY;
    println!("{MANY} registrations: {} MiB resident, {each} bytes each", (after - before) / 1024);
    take_down(held).await;

    let small = register_with_client(&client, "small", 10).await;
    // The replica's memory lags a moment behind. A `latest` lookup brings it up to date.
    client.get("/bench/small").latest().await.unwrap();
    for (name, children) in [("small", 10), ("small/server0:80", 0)] {
        for at_once in [1, 16, 128] {
            let (mut stubs, mut clients) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                stubs.push(lookups_with_stub(&stub, name, children, at_once).await);
                clients.push(lookups_with_client(&client, name, children, at_once).await);
            }
            show(&format!("get {children} children, {at_once} at once"), LOOKUPS, &stubs, &clients);
        }
    }
    take_down(small).await;

    let (mut stubs, mut clients) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        stubs.push(register_with_stub(&stub, &format!("stub{round}")).await);
        let begun = Begun::now();
        let held = register_with_client(&client, &format!("client{round}"), REGISTRATIONS).await;
        clients.push(begun.cost());
        take_down(held).await;
    }
    show("register, all at once", REGISTRATIONS, &stubs, &clients);
}

/// Wall-clock time and CPU time of some operations.
#[derive(Clone, Copy)]
struct Cost {
    time: Duration,
    processor: Duration,
}

/// The start of a measurement: wall-clock time and CPU time.
struct Begun(Instant, Duration);

impl Begun {
    fn now() -> Begun {
        Begun(Instant::now(), processor_time())
    }

    fn cost(&self) -> Cost {
        Cost { time: self.0.elapsed(), processor: processor_time() - self.1 }
    }
}

fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn show(what: &str, count: usize, stubs: &[Cost], clients: &[Cost]) {
    let each = |costs: &[Cost], part: fn(&Cost) -> Duration| {
        let mut times: Vec<_> = costs.iter().map(part).collect();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap())
    };
    let compare = |part: fn(&Cost) -> Duration| {
        let (stub, client) = (each(stubs, part), each(clients, part));
        format!("stub {stub:.1} µs, client {client:.1} µs ({:+.0} %)", (client / stub - 1.0) * 100.0)
    };
    println!("{what}, each: {}; on the processor {}", compare(|cost| cost.time), compare(|cost| cost.processor));
}

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn lookups_with_stub(stub: &RegistryClient<Channel>, name: &str, children: usize, at_once: usize) -> Cost {
    let begun = Begun::now();
    join_all((0..at_once).map(|_| async {
        let mut stub = stub.clone();
        for _ in 0..LOOKUPS / at_once {
            let request = v1::GetRequest { path: format!("/bench/{name}"), ..Default::default() };
            let answer = stub.get(request).await.unwrap().into_inner();
            assert_eq!(answer.node.unwrap().children.len(), children);
        }
    }))
    .await;
    begun.cost()
}

async fn lookups_with_client(client: &Client, name: &str, children: usize, at_once: usize) -> Cost {
    let begun = Begun::now();
    join_all((0..at_once).map(|_| async {
        for _ in 0..LOOKUPS / at_once {
            assert_eq!(client.get(format!("/bench/{name}")).await.unwrap().node.children.len(), children);
        }
    }))
    .await;
    begun.cost()
}

async fn register_with_client(client: &Client, name: &str, count: usize) -> Vec<Registration> {
    let starting = (0..count).map(|number| {
        let data = json!({"port": number, "zone": "a", "version": "1.2.3"});
        client.register(format!("/bench/{name}/server{number}:80")).data(data).start()
    });
    join_all(starting).await.into_iter().map(Result::unwrap).collect()
}

async fn take_down(held: Vec<Registration>) {
    for closed in join_all(held.into_iter().map(Registration::close)).await {
        closed.unwrap();
    }
}

/// Registers on one stream, as the client does.
async fn register_with_stub(stub: &RegistryClient<Channel>, name: &str) -> Cost {
    use v1::register_request::Request;
    use v1::register_response::Response;
    let begun = Begun::now();
    let (sender, receiver) = mpsc::channel(REGISTRATIONS + 2);
    let send = |request| sender.try_send(v1::RegisterRequest { request: Some(request) }).unwrap();
    send(Request::Open(v1::OpenSession::default()));
    for number in 0..REGISTRATIONS {
        let number_value = |number| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(number)) };
        let text =
            |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) };
        let port = number_value(f64::from(u32::try_from(number).unwrap()));
        let fields = [("port", port), ("zone", text("a")), ("version", text("1.2.3"))];
        let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let value = v1::Value { kind: Some(v1::value::Kind::Data(prost_types::Struct { fields })) };
        let path = format!("/bench/{name}/server{number}:80");
        send(Request::Set(v1::SetRegistration { path, value: Some(value), ..Default::default() }));
    }
    let mut answers = stub.clone().register(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut count = 0;
    while count < REGISTRATIONS {
        if let Some(Response::Registered(_)) = answers.message().await.unwrap().unwrap().response {
            count += 1;
        }
    }
    let cost = begun.cost();
    send(Request::Close(v1::CloseSession {}));
    while answers.message().await.unwrap().is_some() {}
    cost
}
