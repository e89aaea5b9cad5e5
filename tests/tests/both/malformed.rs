//! Messages that no generated client sends: no protobuf, not UTF-8, too large, too deep, too many. Each is answered
//! with an error of the table, and affects nothing else on the same connection.

use bytes::Bytes;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_tests::any_bytes::call;
use rollcall_tests::client::{
    Client, Registration, delete, get, latest, put, reason, refused, set, shown, text, unset,
};
use rollcall_tests::follow::{Locking, Watching, lock};
use rollcall_tests::server::Server;
use serde_json::json;
use tonic::Code;
use tonic::client::GrpcService as _;
use tonic::transport::Channel;

use super::ARM;

const METHODS: [&str; 10] =
    ["Register", "Get", "Watch", "AcquireLock", "ReleaseLock", "DescribeLock", "Put", "Delete", "Evict", "Status"];
/// The largest message that the server accepts, in bytes.
const LIMIT: usize = 2 << 20;

/// A well-behaved client, on the same connection as the malformed messages.
struct Citizen {
    client: Client,
    registration: Registration,
    generation: i64,
    watching: Watching,
    count: usize,
}

impl Citizen {
    async fn begin(client: Client) -> Self {
        let mut registration = Registration::open(&client).await;
        let generation = registration.set("/citizen/here", text("0")).await.generation;
        let mut watching = Watching::start(&client, "/citizen").await;
        watching.until("its own registration", |known| known.names() == ["here"]).await;
        Self { client, registration, generation, watching, count: 0 }
    }

    /// Checks that it works as if there were no malformed messages.
    async fn goes_on(&mut self) {
        self.count += 1;
        let value = self.count.to_string();
        assert_eq!(self.registration.set("/citizen/here", text(&value)).await.generation, self.generation);
        let shown = json!({ "text": value });
        self.watching.until("its own change", |known| known.child("here") == shown).await;
        assert!(get(&self.client, "/citizen/here").await.exists);
    }
}

/// A field of a message: bytes, text or another message.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2];
    prost::encoding::encode_varint(u64::try_from(content.len()).unwrap(), &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// A message of a method with these bytes as its first string, a path or an id.
fn with_text(method: &str, content: &[u8]) -> Bytes {
    let message = field(1, content);
    if method == "Register" { field(3, &message).into() } else { message.into() }
}

fn struct_of(value: Value) -> Struct {
    Struct { fields: [(String::new(), value)].into() }
}

fn list_of(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn nested(levels: usize) -> Struct {
    (1..levels).fold(Struct::default(), |inner, _| struct_of(Value { kind: Some(Kind::StructValue(inner)) }))
}

/// Encoded `Struct`s that are refused, each with the reason.
fn bad_structs() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let lists = (0..40).fold(list_of(Vec::new()), |inner, _| list_of(vec![inner]));
    // Each level holds the next as the value of a field. It is built from bytes, since no recursion goes so deep.
    let thousand_levels = (0..1000).fold(Vec::new(), |inner, _| field(1, &field(2, &field(5, &inner))));
    let distinct = (0..300_000).map(|number| (number.to_string(), Value { kind: Some(Kind::BoolValue(true)) }));
    let distinct = Struct { fields: distinct.take(80_000).collect() };
    vec![
        ("40 levels", nested(40).encode_to_vec(), "PROTOCOL"),
        ("1,000 levels", thousand_levels, "PROTOCOL"),
        ("40 levels of lists", struct_of(lists).encode_to_vec(), "PROTOCOL"),
        ("a million empty entries", field(1, b"").repeat(1_000_000), "VALUE_TOO_LARGE"),
        ("80,000 entries", distinct.encode_to_vec(), "VALUE_TOO_LARGE"),
        (
            "a million empty values",
            struct_of(list_of(vec![Value::default(); 1_000_000])).encode_to_vec(),
            "VALUE_TOO_LARGE",
        ),
        (
            "a text that gets six times as long",
            struct_of(Value { kind: Some(Kind::StringValue("\0".repeat(200_000))) }).encode_to_vec(),
            "VALUE_TOO_LARGE",
        ),
        ("no Struct", field(1, b"\xff"), "PROTOCOL"),
        ("a key that is not UTF-8", field(1, &field(1, b"\xff")), "PROTOCOL"),
        ("groups that never end", vec![0x7b; 1000], "PROTOCOL"),
    ]
}

#[tokio::test]
async fn what_can_not_be_read_is_a_fault_of_the_caller_alone() {
    let s = ARM.setting("malformed").await;
    let channel = s.server.channel().await;
    let mut citizen = Citizen::begin(Client::new(channel.clone())).await;
    for method in METHODS {
        let cases = [
            ("no protobuf", Bytes::from_static(b"\xff\xff\xff"), "PROTOCOL"),
            ("a length past the end", Bytes::from_static(b"\x0a\x7f"), "PROTOCOL"),
            ("a number for a text", Bytes::from_static(b"\x08\x01"), "PROTOCOL"),
            ("a text that is not UTF-8", with_text(method, b"\xff"), "PROTOCOL"),
            ("groups that never end", vec![0x7b; 1000].into(), "PROTOCOL"),
            ("a million fields", field(1, b"").repeat(1_000_000).into(), "PROTOCOL"),
            ("a million fields that nobody knows", b"\x78\x01".repeat(1_000_000).into(), "PROTOCOL"),
            ("a message over the limit", with_text(method, &vec![b'x'; LIMIT]), "VALUE_TOO_LARGE"),
        ];
        // A request without fields has no invalid string.
        let of_text = ["a number for a text", "a text that is not UTF-8"];
        for (what, message, reason) in
            cases.into_iter().filter(|(what, ..)| method != "Status" || !of_text.contains(what))
        {
            println!("{method}: {what}");
            let answer = call(&channel, method, vec![message], 2).await;
            refused(answer, Code::InvalidArgument, reason);
            citizen.goes_on().await;
        }
        if method != "Register" {
            println!("{method}: no message");
            refused(call(&channel, method, Vec::new(), 1).await, Code::InvalidArgument, "PROTOCOL");
        }
    }
    let unknown = call(&channel, "Unknown", vec![Bytes::new()], 1).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    citizen.goes_on().await;
}

#[tokio::test]
async fn a_value_that_can_not_be_is_refused_for_its_path_alone() {
    let s = ARM.setting("malformed").await;
    let channel = s.server.channel().await;
    let mut citizen = Citizen::begin(Client::new(channel.clone())).await;
    let open = Request::Open(v1::OpenSession::default());
    for (what, data, expected) in bad_structs() {
        println!("{what}");
        let value = field(1, &data);
        let set = [field(1, b"/bad"), field(2, &value)].concat();
        let put = Bytes::from(set.clone());
        refused(call(&channel, "Put", vec![put], 1).await, Code::InvalidArgument, expected);
        let good = v1::RegisterRequest { request: Some(rollcall_tests::client::set("/good", text("x"))) };
        let messages = vec![
            v1::RegisterRequest { request: Some(open.clone()) }.encode_to_vec().into(),
            field(2, &set).into(),
            good.encode_to_vec().into(),
        ];
        let answers = call(&channel, "Register", messages, 3).await.unwrap();
        let mut answers = answers.into_iter().map(|answer| v1::RegisterResponse::decode(answer).unwrap().response);
        use v1::register_response::Response;
        assert!(matches!(answers.next(), Some(Some(Response::Opened(_)))));
        let Some(Some(Response::Rejected(rejected))) = answers.next() else { panic!("{what} is rejected") };
        assert_eq!((rejected.path.as_str(), Code::from(rejected.code)), ("/bad", Code::InvalidArgument));
        assert_eq!(rejected.reason, expected, "{}", rejected.message);
        assert!(rejected.message.len() <= 512, "{}", rejected.message);
        assert!(matches!(answers.next(), Some(Some(Response::Registered(_)))), "the stream goes on");
        citizen.goes_on().await;
    }
    assert!(!s.zk.exists("/bad").await);
}

#[tokio::test]
async fn the_deepest_value_and_the_deepest_path_are_taken_and_deeper_ones_are_not() {
    let s = ARM.setting("malformed").await;
    let deepest = v1::Value { kind: Some(v1::value::Kind::Data(nested(32))) };
    put(&s.client, "/deep", deepest).await.unwrap();
    let written = s.zk.get("/deep").await.unwrap().text().to_owned();
    assert!(written.ends_with(&format!("{}{}{}", r#"{"":"#.repeat(30), "{}", "}".repeat(31))), "{written}");
    // At over 16 levels it is shown as raw bytes.
    assert_eq!(shown(get(&s.client, "/deep").await.value.as_ref()), json!({ "raw": written.as_bytes().to_vec() }));

    let path = "/x".repeat(128);
    put(&s.client, &path, text("deep")).await.unwrap();
    assert_eq!(shown(get(&s.client, &path).await.value.as_ref()), json!({ "text": "deep" }));
    delete(&s.client, &path).await.unwrap();
    let mut stream = Registration::open(&s.client).await;
    stream.set(&path, text("deep")).await;
    stream.send(unset(&path)).await;
    stream.unregistered().await;
    drop(Locking::take(&s.client, &path, "me").await);

    let message = "path has 129 levels, over the limit of 128";
    let deeper = format!("{path}/x");
    let channel = s.server.channel().await;
    for method in METHODS.into_iter().filter(|method| !matches!(*method, "Register" | "ReleaseLock" | "Status")) {
        let answer = call(&channel, method, vec![with_text(method, deeper.as_bytes())], 1).await;
        let status = refused(answer, Code::InvalidArgument, "INVALID_PATH");
        assert!(status.message().starts_with(message), "{method}: {}", status.message());
    }
    for request in [set(&deeper, text("x")), unset(&deeper)] {
        stream.send(request).await;
        let rejected = stream.rejected().await;
        assert_eq!((rejected.reason.as_str(), rejected.path.as_str()), ("INVALID_PATH", deeper.as_str()));
        assert!(rejected.message.starts_with(message), "{}", rejected.message);
    }
    stream.set("/good", text("x")).await;
}

#[tokio::test]
async fn what_is_zookeepers_own_is_read_and_never_written() {
    let s = ARM.setting("malformed").await;
    // Below a chroot it is an ordinary name.
    put(&s.client, "/zookeeper/x", text("x")).await.unwrap();
    delete(&s.client, "/zookeeper/x").await.unwrap();
    delete(&s.client, "/zookeeper").await.unwrap();

    let server = Server::start(&s.sandbox.servers).await;
    let client = server.client().await;
    let answer = client.clone().get(latest("/zookeeper")).await.unwrap().into_inner();
    println!("{answer:?}");
    let mut stream = Registration::open(&client).await;
    for path in ["/zookeeper", "/zookeeper/quota/malformed", "/zookeeper/config"] {
        let invalid = Code::InvalidArgument;
        refused(put(&client, path, text("x")).await, invalid, "INVALID_PATH");
        refused(delete(&client, path).await, invalid, "INVALID_PATH");
        let locking = match Locking::start(&client, lock(path, "me")).await {
            Ok(mut locking) => locking.held().await.map(drop),
            Err(status) => Err(status),
        };
        let status = refused(locking, invalid, "INVALID_PATH");
        assert!(status.message().starts_with("/zookeeper is zookeeper's own"), "{}", status.message());
        stream.send(set(path, text("x"))).await;
        assert_eq!(stream.rejected().await.reason, "INVALID_PATH");
    }
}

/// A valid message of a method, to be damaged.
fn sound(method: &str, rng: &mut StdRng) -> Vec<u8> {
    let path = ["/a", "/a/b", "/citizens", "/zookeeper", "/.rollcall", "/"][rng.random_range(0..6)].to_owned();
    let value = Some(v1::Value {
        kind: Some(match rng.random_range(0..3) {
            0 => v1::value::Kind::Data(nested(rng.random_range(1..40))),
            1 => v1::value::Kind::Text("text".to_owned()),
            _ => v1::value::Kind::Raw(b"raw"[..].into()),
        }),
    });
    let span = Some(prost_types::Duration { seconds: rng.random_range(-2..3), nanos: rng.random_range(-5..5) });
    match method {
        "Register" => v1::RegisterRequest {
            request: Some(match rng.random_range(0..5) {
                0 => Request::Open(v1::OpenSession { ttl: span, ..Default::default() }),
                1 => Request::Unset(v1::UnsetRegistration { path }),
                2 => Request::KeepAlive(v1::KeepAlive {}),
                3 => Request::Close(v1::CloseSession {}),
                _ => Request::Set(v1::SetRegistration { path, value, generation: Some(5), exclusive: true }),
            }),
        }
        .encode_to_vec(),
        "Get" => {
            v1::GetRequest { path, page_size: 3, page_token: "1.a".to_owned(), ..Default::default() }.encode_to_vec()
        }
        "Watch" => v1::WatchRequest { path, since_revision: 7, heartbeat: span, ..Default::default() }.encode_to_vec(),
        "AcquireLock" => v1::AcquireLockRequest { ttl: span, wait: span, ..lock(&path, "me") }.encode_to_vec(),
        "ReleaseLock" => v1::ReleaseLockRequest { lock_id: "abcd".to_owned() }.encode_to_vec(),
        "DescribeLock" => v1::DescribeLockRequest { path }.encode_to_vec(),
        "Put" => v1::PutRequest { path, value, expected_version: Some(1), create_only: false }.encode_to_vec(),
        "Evict" => v1::EvictRequest { path, duration: span }.encode_to_vec(),
        "Status" => v1::StatusRequest {}.encode_to_vec(),
        _ => v1::DeleteRequest { path, expected_version: Some(1), recursive: false }.encode_to_vec(),
    }
}

#[tokio::test]
async fn whatever_the_bytes_are_the_answer_is_one_of_the_api() {
    let seed = rand::rng().next_u64();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let s = ARM.setting("malformed").await;
    let channel: Channel = s.server.channel().await;
    let mut citizen = Citizen::begin(Client::new(channel.clone())).await;
    for round in 0..600 {
        let method = METHODS[round % METHODS.len()];
        let mut message = sound(method, &mut rng);
        for _ in 0..rng.random_range(1..5) {
            match rng.random_range(0..4) {
                0 => message.truncate(rng.random_range(0..=message.len())),
                1 => message.extend((0..rng.random_range(0..20)).map(|_| rng.random::<u8>())),
                2 if !message.is_empty() => {
                    let at = rng.random_range(0..message.len());
                    message[at] = rng.random();
                }
                _ => message.extend_from_slice(&sound(method, &mut rng)),
            }
        }
        let shown = format!("{method} {message:?}");
        // These locks are never released, so a second answer of AcquireLock may never come: one has to do.
        let most = if method == "Register" { 2 } else { 1 };
        // Some messages get no answer, such as an `unset` in flight. So the answers within this time have to do.
        let answer = tokio::time::timeout(
            std::time::Duration::from_millis(500),
            call(&channel, method, vec![message.into()], most),
        );
        if let Ok(Err(status)) = answer.await {
            assert!(!matches!(status.code(), Code::Internal | Code::Unknown | Code::OutOfRange), "{shown}: {status:?}");
            assert!(!reason(&status).is_empty());
            refused(Err::<(), _>(status.clone()), status.code(), &reason(&status));
        }
        if round % 50 == 0 {
            citizen.goes_on().await;
        }
    }
    citizen.goes_on().await;
}

#[tokio::test]
async fn what_is_not_grpc_by_its_content_type_is_told_so_in_http() {
    let s = ARM.setting("malformed").await;
    let mut channel = s.server.channel().await;
    for (content_type, expected) in [
        (Some("application/json"), 415),
        (Some("application/grpc-web+proto"), 415),
        (None, 415),
        (Some("application/grpc+proto"), 200),
    ] {
        for path in ["/rollcall.v1.Registry/Get", "/no/such"] {
            let mut request = http::Request::post(format!("http://{}{path}", s.server.grpc()));
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
            let answer = channel.call(request.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status().as_u16(), expected, "{content_type:?} {path}");
        }
    }
}
