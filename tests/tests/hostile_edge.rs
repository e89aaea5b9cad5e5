//! Hostile or unlucky clients at the edge: connections that are never opened, calls that are never finished, endless
//! requests, answers that are not read. Each costs a bounded amount, and affects nobody else.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request as Ask;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::arm::{Arm, Setting};
use rollcall_tests::client::{Registration, get, put, reason, set, span, text};
use rollcall_tests::hand::{Hand, PREFACE};
use rollcall_tests::server::Server;
use rollcall_tests::wait::{SOON, check, eventually, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tonic::{Code, Status};

const REGISTER: &str = "/rollcall.v1.Registry/Register";
const GET: &str = "/rollcall.v1.Registry/Get";
const PUT: &str = "/rollcall.v1.Registry/Put";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/// One method of each kind: ours, those of other services, and an unknown one.
const METHODS: [&str; 6] =
    [GET, REGISTER, "/rollcall.v1.Registry/Watch", "/grpc.health.v1.Health/Watch", REFLECTION, "/no.such.Service/Call"];
const WIDE: u32 = 1 << 30;

/// A connection on which calls are started and not finished.
struct Caller {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

struct Call {
    answer: ResponseFuture,
    request: SendStream<Bytes>,
}

impl Caller {
    async fn connect(address: SocketAddr) -> Caller {
        let socket = TcpStream::connect(address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WIDE).initial_connection_window_size(WIDE).initial_max_send_streams(1_000_000);
        let (requests, connection) = soon("HTTP/2", builder.handshake(socket)).await.unwrap();
        Caller { requests, connection: tokio::spawn(connection) }
    }

    /// Starts a call by sending its headers alone.
    async fn begin(&mut self, method: &str) -> Call {
        self.begin_with(method, &[]).await
    }

    /// Starts a call with more headers.
    async fn begin_with(&mut self, method: &str, headers: &[(&str, &str)]) -> Call {
        let request = http::Request::post(format!("http://edge{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(()).unwrap();
        let mut requests = soon("a stream", self.requests.clone().ready()).await.unwrap();
        let (answer, request) = requests.send_request(request, false).unwrap();
        Call { answer, request }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Call {
    /// Announces a message of this length, and sends `sent` bytes of it.
    fn partly(&mut self, length: usize, sent: usize) {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        let data = [&[0][..], &prefix, &vec![0; sent]].concat();
        self.request.send_data(data.into(), false).unwrap();
    }

    /// Sends a message.
    fn message(&mut self, message: &impl Message, is_last: bool) {
        let message = message.encode_to_vec();
        let prefix = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.request.send_data([&[0][..], &prefix, &message].concat().into(), is_last).unwrap();
    }

    /// The status that the call ends with.
    async fn status(self) -> Status {
        let response = soon("an answer", self.answer).await.unwrap();
        if let Some(status) = Status::from_header_map(response.headers()) {
            return status;
        }
        let mut body: RecvStream = response.into_body();
        while let Some(data) = soon("the rest", body.data()).await {
            body.flow_control().release_capacity(data.unwrap().len()).unwrap();
        }
        let trailers = soon("trailers", body.trailers()).await.unwrap().expect("every call ends with them");
        Status::from_header_map(&trailers).unwrap()
    }

    async fn ends_refused(self, with: &str) {
        let status = self.status().await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, with), "{status:?}");
    }
}

async fn embedded(options: &[&str]) -> Setting {
    Arm::Embedded.setting_with("edge", options).await
}

/// A time-out for work that takes long in a debug build on a busy machine.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(6 * SOON, future).await.unwrap_or_else(|_| panic!("not within {:?}: {what}", 6 * SOON))
}

/// Checks that another client is served normally.
async fn is_served(server: &Server) {
    let client = server.client().await;
    assert!(!get(&client, "/nobody").await.exists);
}

/// Waits until the server holds nothing for clients except the connection of the setting's client.
async fn is_free_again(server: &Server) {
    /// Bytes of the answer of [`is_served`], which is kept for the next caller for as long as its view.
    const KEPT: usize = 1024;
    server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 0").await;
    eventually("no bytes in use", SOON, async || {
        let bytes = server.metric("rollcall_in_use{resource=\"bytes\"}").await;
        check(bytes <= KEPT, || format!("{bytes} bytes"))
    })
    .await;
    server.wait_for_metric("rollcall_connections{port=\"grpc\"} 1").await;
}

#[tokio::test]
async fn calls_of_every_service_are_counted_and_what_is_over_is_answered_at_once() {
    const MOST: usize = 600;
    let s = embedded(&["--max-streams-per-connection", &MOST.to_string()]).await;
    let mut caller = Caller::connect(s.server.grpc()).await;
    let mut under_way = Vec::new();
    for method in &METHODS[..METHODS.len() - 1] {
        for _ in 0..4 {
            under_way.push(caller.begin(method).await);
        }
        s.server.wait_for_metric(&format!("rollcall_in_use{{resource=\"streams\"}} {}", under_way.len())).await;
    }
    under_way.clear();
    // Their places are free again when the server has read the cancellations.
    s.server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 0").await;
    // Register does not end by itself.
    for _ in 0..MOST {
        under_way.push(caller.begin(REGISTER).await);
    }
    s.server.wait_for_metric(&format!("rollcall_in_use{{resource=\"streams\"}} {MOST}")).await;
    for method in METHODS {
        caller.begin(method).await.ends_refused("TOO_MANY_STREAMS").await;
    }
    is_served(&s.server).await;
    drop(under_way.pop());
    s.server.wait_for_metric(&format!("rollcall_in_use{{resource=\"streams\"}} {}", MOST - 1)).await;
    under_way.push(caller.begin(REGISTER).await);
    // Two calls of a connection may reach the gate in any order.
    s.server.wait_for_metric(&format!("rollcall_in_use{{resource=\"streams\"}} {MOST}")).await;
    caller.begin(GET).await.ends_refused("TOO_MANY_STREAMS").await;
    drop((under_way, caller));
    is_free_again(&s.server).await;
}

#[tokio::test]
async fn the_replica_has_a_limit_of_calls_too() {
    let s = embedded(&["--max-streams", "100"]).await;
    let mut callers = Vec::new();
    for _ in 0..2 {
        let mut caller = Caller::connect(s.server.grpc()).await;
        let mut under_way = Vec::new();
        for _ in 0..50 {
            under_way.push(caller.begin(REGISTER).await);
        }
        callers.push((caller, under_way));
    }
    s.server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 100").await;
    Caller::connect(s.server.grpc()).await.begin(GET).await.ends_refused("TOO_MANY_STREAMS").await;
}

#[tokio::test]
async fn reflection_streams_are_few_ask_little_and_leave_places_to_others() {
    const EACH: usize = 4;
    const ALL: usize = 64;
    let s = embedded(&[]).await;
    let (mut callers, mut under_way) = (Vec::new(), Vec::new());
    for number in 1..=ALL / EACH {
        let mut caller = Caller::connect(s.server.grpc()).await;
        for _ in 0..EACH {
            under_way.push(caller.begin(REFLECTION).await);
        }
        s.server.wait_for_metric(&format!("rollcall_in_use{{resource=\"streams\"}} {}", number * EACH)).await;
        caller.begin(REFLECTION).await.ends_refused("TOO_MANY_STREAMS").await;
        callers.push(caller);
    }
    let mut large = under_way.pop().unwrap();
    large.partly(1_000_000, 100_000);
    let end = large.status().await;
    assert_eq!(end.code(), Code::Ok, "its server says no more of what it can't read: {end:?}");
    // Streams without questions end by themselves.
    let end = under_way.swap_remove(0).status().await;
    assert_eq!(end.code(), Code::Ok, "{end:?}");
    s.server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 0").await;
    drop(callers[0].begin(REFLECTION).await);
}

#[tokio::test]
async fn a_call_whose_deadline_passes_says_so() {
    let s = embedded(&[]).await;
    let mut caller = Caller::connect(s.server.grpc()).await;
    let soon = [("grpc-timeout", "300m")];
    let mut waits = caller.begin_with(GET, &soon).await;
    let wait = Some(span(Duration::from_secs(600)));
    waits.message(&v1::GetRequest { path: "/never".to_owned(), wait, ..Default::default() }, true);
    let mut half = caller.begin_with(PUT, &soon).await;
    half.partly(1000, 10);
    let silent = caller.begin_with("/grpc.health.v1.Health/Check", &soon).await;
    for call in [waits, half, silent] {
        let status = call.status().await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    }
    s.server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 0").await;
}

#[tokio::test]
async fn a_request_that_is_not_finished_ends_in_time() {
    let s = embedded(&[]).await;
    let mut caller = Caller::connect(s.server.grpc()).await;
    let (headers, mut half) = (caller.begin(GET).await, caller.begin(PUT).await);
    half.partly(1000, 10);
    // A Register stream may be silent.
    let stream = caller.begin(REGISTER).await;
    for call in [headers, half] {
        let status = call.status().await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "REQUEST_UNFINISHED"));
    }
    s.server.wait_for_metric("rollcall_in_use{resource=\"streams\"} 1").await;
    drop(stream);
}

#[tokio::test]
async fn the_bytes_of_requests_are_bounded_whether_they_are_finished_or_not() {
    const MOST: usize = 16 << 20;
    const BODY: usize = 900_000;
    let s = embedded(&["--max-bytes-per-connection", &MOST.to_string()]).await;
    for method in [PUT, REGISTER] {
        let mut caller = Caller::connect(s.server.grpc()).await;
        let mut calls = Vec::new();
        for _ in 0..2 * MOST / BODY {
            let mut call = caller.begin(method).await;
            call.partly(BODY + 1, BODY);
            calls.push(call);
        }
        let mut ends: JoinSet<_> = calls.into_iter().map(Call::status).collect();
        // Calls within the limit stay for a while, or for ever. Register is not refused, but not read.
        if method == PUT {
            let first = soon("a refusal", ends.join_next()).await.unwrap().unwrap();
            let is = (first.code(), reason(&first));
            assert_eq!(is, (Code::ResourceExhausted, "TOO_MANY_BYTES".to_owned()), "{first:?}");
        }
        eventually("what is within the limit counts", SOON, async || {
            let used = s.server.metric("rollcall_in_use{resource=\"bytes\"}").await;
            // The limit, the reserve for open streams, and the last frame read.
            check((MOST / 2..=MOST + MOST / 8 + (64 << 10)).contains(&used), || used.to_string())
        })
        .await;
        is_served(&s.server).await;
        assert!(method == PUT || ends.try_join_next().is_none(), "no stream ends");
        drop(ends);
        drop(caller);
        is_free_again(&s.server).await;
    }
}

#[tokio::test]
async fn a_register_stream_that_is_not_read_for_want_of_room_goes_on_when_there_is_some() {
    const MOST: usize = 8 << 20;
    let s = embedded(&["--max-bytes-per-connection", &MOST.to_string()]).await;
    let mut caller = Caller::connect(s.server.grpc()).await;
    // Unfinished messages: more than the limit with its reserve.
    let mut large = Vec::new();
    let mut late = caller.begin(REGISTER).await;
    for _ in 0..12 {
        let mut call = caller.begin(REGISTER).await;
        call.partly(1_000_000, 900_000);
        large.push(call);
    }
    eventually("all that may be read is read", SOON, async || {
        let used = s.server.metric("rollcall_in_use{resource=\"bytes\"}").await;
        check(used > MOST + MOST / 8, || used.to_string())
    })
    .await;
    let path = "/edge/held-up".to_owned();
    late.message(&ask(Ask::Set(v1::SetRegistration { path, ..Default::default() })), false);
    for mut call in large {
        // A dropped stream would send its data before it is cancelled.
        call.request.send_reset(h2::Reason::CANCEL);
    }
    // The late message is read, whether or not its registration still meets the limit.
    let Call { answer, request: _open } = late;
    let mut body = soon("an answer", answer).await.unwrap().into_body();
    loop {
        let message = soon("an answer", body.data()).await.unwrap().unwrap();
        match v1::RegisterResponse::decode(&message[5..]).unwrap().response.unwrap() {
            Response::Registered(_) => return,
            Response::Rejected(rejected) => return assert_eq!(rejected.reason, "TOO_MANY_BYTES"),
            Response::Opened(_) | Response::Pending(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn calls_without_a_body_take_no_more_than_they_are_counted_with_and_give_it_back() {
    const CALLS: usize = 10_000;
    let s = embedded(&[]).await;
    is_served(&s.server).await;
    let before = s.server.resident_bytes();
    let mut hand = Hand::open(s.server.grpc(), WIDE).await;
    for number in 0..CALLS {
        hand.call(stream(number), GET);
    }
    // All calls end, since none is finished.
    let heard = in_time("their end", hand.converse(|heard| heard.ended.len() == CALLS)).await;
    assert_eq!(heard.goodbye, None);
    let taken = (s.server.peak_bytes() - before) / CALLS;
    // 4 KiB in the account, and the share of the connection and of the test's own requests.
    assert!(taken < 8 * 1024, "{taken} bytes a call");
    drop(hand);
    // Memory grew by 40 MB, which the system gets back.
    eventually("the memory is given back", 3 * SOON, async || {
        let more = s.server.resident_bytes().saturating_sub(before);
        check(more < 16 << 20, || format!("{more} bytes more than before"))
    })
    .await;
    is_free_again(&s.server).await;
}

#[tokio::test]
async fn answers_to_calls_without_end_that_nobody_reads_are_bounded() {
    // Far more than the calls that may be in progress, and than the sockets hold.
    const CALLS: usize = 600_000;
    let s = embedded(&["--max-streams-per-connection", "1000"]).await;
    let mut hand = Hand::open(s.server.grpc(), WIDE).await;
    let (said, mut saying) = watch::channel(0);
    let flood = tokio::spawn(async move {
        for number in 0..CALLS {
            hand.call(stream(number), "/no.such.Service/Call");
            if number % 500 == 0 {
                hand.flush().await.unwrap();
                said.send_replace(number);
            }
        }
    });
    // The refusals are not read, so the server stops reading.
    while tokio::time::timeout(Duration::from_secs(5), saying.changed()).await.is_ok() {
        assert!(!flood.is_finished(), "the server has read everything, and keeps the answers");
    }
    is_served(&s.server).await;
    flood.abort();
}

#[tokio::test]
async fn a_connection_that_is_not_opened_is_closed() {
    let s = embedded(&[]).await;
    let half = &PREFACE[..PREFACE.len() / 2];
    let mut closed = Vec::new();
    for sent in [&[][..], half, PREFACE] {
        let mut socket = TcpStream::connect(s.server.grpc()).await.unwrap();
        socket.write_all(sent).await.unwrap();
        closed
            .push(tokio::spawn(async move { while socket.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {} }));
    }
    for end in closed {
        soon("its end", end).await.unwrap();
    }
    s.server.wait_for_metric("rollcall_connections{port=\"grpc\"} 1").await;
    is_served(&s.server).await;
}

#[tokio::test]
async fn a_head_of_http_that_comes_slowly_is_not_waited_for() {
    let s = embedded(&[]).await;
    let mut slow = Vec::new();
    for sent in ["", "GET /metrics HTTP/1.1\r\nhost: x\r\n"] {
        let mut socket = TcpStream::connect(s.server.http()).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        slow.push(tokio::spawn(async move {
            let (mut reader, mut writer) = socket.split();
            let drip = async {
                while writer.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let read = async { while reader.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {} };
            tokio::select! { () = drip => {}, () = read => {} }
        }));
    }
    for end in slow {
        soon("its end", end).await.unwrap();
    }
    // The one connection asks for the metrics.
    s.server.wait_for_metric("rollcall_connections{port=\"http\"} 1").await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once_and_others_have_their_place() {
    const MOST: usize = 6;
    let s = embedded(&["--max-connections-per-address", &MOST.to_string()]).await;
    let mut open = Vec::new();
    // The setting's client has one of them.
    for _ in 1..MOST {
        open.push(Hand::open(s.server.grpc(), WIDE).await);
    }
    s.server.wait_for_metric(&format!("rollcall_connections{{port=\"grpc\"}} {MOST}")).await;
    let mut over = TcpStream::connect(s.server.grpc()).await.unwrap();
    let read = soon("its end", over.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    s.server.wait_for_metric("rollcall_connections_refused_total{port=\"grpc\"} 1").await;
    assert!(!get(&s.client, "/nobody").await.exists, "who is in stays");
    open.pop();
    s.server.wait_for_metric(&format!("rollcall_connections{{port=\"grpc\"}} {}", MOST - 1)).await;
    is_served(&s.server).await;
}

#[tokio::test]
async fn a_client_that_is_frozen_while_it_watches_loses_its_connection_though_its_socket_is_full() {
    let s = embedded(&["--keepalive", "1s"]).await;
    // More than the sockets between the two hold.
    let large = "x".repeat(250_000);
    for number in 0..100 {
        put(&s.client, &format!("/frozen/{number}"), text(&large)).await.unwrap();
    }
    let mut frozen = Hand::open(s.server.grpc(), WIDE).await;
    frozen.call(1, "/rollcall.v1.Registry/Watch");
    frozen.last_message(1, &v1::WatchRequest { path: "/frozen".to_owned(), ..Default::default() });
    soon("the request", frozen.flush()).await.unwrap();
    s.server.wait_for_streams(1).await;
    // From here on it does nothing, like a stopped process.
    s.server.wait_for_streams(0).await;
    s.server.wait_for_metric("rollcall_connections{port=\"grpc\"} 1").await;
    drop(frozen);
}

fn stream(number: usize) -> u32 {
    u32::try_from(2 * number + 1).unwrap()
}

fn ask(request: Ask) -> v1::RegisterRequest {
    v1::RegisterRequest { request: Some(request) }
}

fn keep_alive() -> v1::RegisterRequest {
    ask(Ask::KeepAlive(v1::KeepAlive {}))
}

#[tokio::test]
async fn thousands_of_streams_send_keep_alives_at_once_to_a_replica_that_was_stopped() {
    a_replica_that_was_stopped_is_sent_keep_alives(2_000, 40).await;
}

#[tokio::test]
async fn a_few_streams_send_very_many_keep_alives_at_once_to_a_replica_that_was_stopped() {
    a_replica_that_was_stopped_is_sent_keep_alives(8, 20_000).await;
}

/// Sends `each` keep-alives on each of `streams` streams to a stopped replica.
async fn a_replica_that_was_stopped_is_sent_keep_alives(streams: usize, each: usize) {
    let mut s = embedded(&[]).await;
    let mut hand = Hand::open(s.server.grpc(), WIDE).await;
    for number in 0..streams {
        hand.call(stream(number), REGISTER);
        let open = v1::OpenSession { ttl: Some(span(Duration::from_secs(600))), ..Default::default() };
        hand.message(stream(number), &ask(Ask::Open(open)));
    }
    let opened = in_time("all are opened", hand.converse(|heard| heard.data >= 30 * streams)).await;
    assert_eq!(opened.goodbye, None);
    s.server.wait_for_streams(streams).await;
    s.server.pause();
    for _ in 0..each {
        for number in 0..streams {
            hand.message(stream(number), &keep_alive());
        }
    }
    // Sends as much as the sockets hold.
    let early = tokio::time::timeout(Duration::from_secs(1), hand.converse(|_| false)).await;
    assert!(early.is_err(), "{early:?}");
    s.server.resume();
    // The last message is read after all others.
    let path = "/edge/after".to_owned();
    hand.message(stream(streams - 1), &ask(Ask::Set(v1::SetRegistration { path, ..Default::default() })));
    let (client, talking) = (s.client.clone(), hand.converse(|_| false));
    tokio::select! {
        heard = talking => panic!("the connection ended: {:?}", heard.goodbye),
        () = eventually("the registration", 6 * SOON, async || {
            check(get(&client, "/edge/after").await.exists, || "not there".to_owned())
        }) => {}
    }
    s.server.wait_for_streams(streams).await;
}

#[tokio::test]
async fn one_stream_asks_tens_of_thousands_of_times_without_a_pause() {
    const COUNT: usize = 30_000;
    let s = embedded(&[]).await;
    let mut hand = Hand::open(s.server.grpc(), WIDE).await;
    hand.call(1, REGISTER);
    for number in 0..COUNT {
        hand.message(1, &ask(Ask::Unset(v1::UnsetRegistration { path: format!("/e/{number}") })));
    }
    let heard = in_time("all answers", hand.converse(|heard| heard.data >= 13 * COUNT)).await;
    assert_eq!((heard.goodbye, heard.ended.len()), (None, 0));
    // Later requests are read as well.
    let mut other = Registration::open(&s.client).await;
    other.send(set("/e/other", text("x"))).await;
    other.registered().await;
}
