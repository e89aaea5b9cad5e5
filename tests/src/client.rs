//! The generated client with shorthands for the tests: streams one answer at a time, values as JSON, errors by their
//! reason.

use std::time::Duration;

use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{self, Consistency, value::Kind};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::wait::{SOON, eventually, soon};

/// The generated client.
pub type Client = RegistryClient<Channel>;

// --- values

/// A JSON object as a value.
pub fn data(object: Json) -> v1::Value {
    let Json::Object(fields) = object else { panic!("not an object: {object}") };
    v1::Value { kind: Some(Kind::Data(to_struct(fields))) }
}

/// Text as a value.
pub fn text(text: &str) -> v1::Value {
    v1::Value { kind: Some(Kind::Text(text.to_owned())) }
}

/// Bytes as a value.
pub fn raw(bytes: &'static [u8]) -> v1::Value {
    v1::Value { kind: Some(Kind::Raw(bytes.into())) }
}

fn to_struct(fields: serde_json::Map<String, Json>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.into_iter().map(|(key, value)| (key, to_proto(value))).collect() }
}

fn to_proto(json: Json) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().expect("a number of a test is a double")),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_proto).collect() })
        }
        Json::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A value as JSON, for comparisons: data as an object, text as `{"text": …}`, bytes as `{"raw": [..]}`, none as null.
pub fn shown(value: Option<&v1::Value>) -> Json {
    match value.and_then(|value| value.kind.as_ref()) {
        None => Json::Null,
        Some(Kind::Data(data)) => from_struct(data),
        Some(Kind::Text(text)) => json!({ "text": text }),
        Some(Kind::Raw(raw)) => json!({ "raw": raw.to_vec() }),
    }
}

/// A shown value without the keys that the server adds.
pub fn plain(mut shown: Json) -> Json {
    if let Json::Object(fields) = &mut shown {
        fields.remove("created");
        fields.remove("pid");
    }
    shown
}

fn from_struct(data: &prost_types::Struct) -> Json {
    Json::Object(data.fields.iter().map(|(key, value)| (key.clone(), from_proto(value))).collect())
}

fn from_proto(value: &prost_types::Value) -> Json {
    use prost_types::value::Kind;
    match value.kind.as_ref().expect("every google.protobuf.Value has a kind") {
        Kind::NullValue(_) => Json::Null,
        Kind::BoolValue(value) => json!(value),
        // `{}` writes whole doubles without a fraction, so that 10733 compares equal to 10733.
        Kind::NumberValue(number) => serde_json::from_str(&format!("{number}")).expect("a finite double is JSON"),
        Kind::StringValue(value) => json!(value),
        Kind::ListValue(list) => list.values.iter().map(from_proto).collect(),
        Kind::StructValue(data) => from_struct(data),
    }
}

/// A duration as the protos have it.
pub fn span(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).expect("a duration of a test is small")
}

/// A duration of zero.
pub fn zero() -> Option<prost_types::Duration> {
    Some(span(Duration::ZERO))
}

// --- unary calls

/// A Get request for the latest state.
pub fn latest(path: &str) -> v1::GetRequest {
    v1::GetRequest { path: path.to_owned(), consistency: Consistency::Latest.into(), ..Default::default() }
}

/// Reads a node with a LATEST Get.
pub async fn get(client: &Client, path: &str) -> v1::Node {
    let answer = soon("an answer to Get", client.clone().get(latest(path))).await.expect("Get succeeds");
    answer.into_inner().node.expect("GetResponse has a node")
}

/// Reads a node from the replica's view.
///
/// # Errors
/// The server's error.
pub async fn cached(client: &Client, path: &str) -> Result<v1::GetResponse, Status> {
    let request = v1::GetRequest { path: path.to_owned(), ..Default::default() };
    Ok(soon("an answer to Get", client.clone().get(request)).await?.into_inner())
}

/// Writes a durable node, whatever its version.
///
/// # Errors
/// The server's error.
pub async fn put(client: &Client, path: &str, value: v1::Value) -> Result<v1::Stat, Status> {
    let request = v1::PutRequest { path: path.to_owned(), value: Some(value), ..Default::default() };
    let answer = soon("an answer to Put", client.clone().put(request)).await?;
    Ok(answer.into_inner().stat.expect("PutResponse has a stat"))
}

/// Puts until it succeeds: the answer may be UNAVAILABLE or UNKNOWN for as long as ZooKeeper is not back.
pub async fn put_eventually(client: &Client, path: &str, value: &str) {
    eventually("a Put succeeds", 3 * SOON, async || {
        put(client, path, text(value)).await.map(|_| ()).map_err(|status| format!("{status:?}"))
    })
    .await;
}

/// Deletes a durable node without children, whatever its version.
///
/// # Errors
/// The server's error.
pub async fn delete(client: &Client, path: &str) -> Result<(), Status> {
    let request = v1::DeleteRequest { path: path.to_owned(), ..Default::default() };
    soon("an answer to Delete", client.clone().delete(request)).await.map(|_| ())
}

/// The holders and waiters of a lock.
pub async fn describe(client: &Client, path: &str) -> v1::DescribeLockResponse {
    let request = v1::DescribeLockRequest { path: path.to_owned() };
    let answer = soon("an answer to DescribeLock", client.clone().describe_lock(request)).await;
    answer.expect("DescribeLock succeeds").into_inner()
}

/// Releases a lock by its id.
///
/// # Errors
/// The server's error.
pub async fn release(client: &Client, lock_id: &str) -> Result<bool, Status> {
    let request = v1::ReleaseLockRequest { lock_id: lock_id.to_owned() };
    Ok(soon("an answer to ReleaseLock", client.clone().release_lock(request)).await?.into_inner().released)
}

// --- errors

/// Checks that an answer is the expected error: its code, the reason in its ErrorInfo, and the limits on its size.
/// Returns the error for further checks.
///
/// # Panics
/// When it is no error, or another one.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = answer.expect_err("the call is refused");
    assert_eq!((status.code(), self::reason(&status).as_str()), (code, reason), "{status:?}");
    assert!(status.message().len() <= 512, "a long message: {status:?}");
    assert!(!status.message().is_empty(), "a message names the object and the cause");
    assert!(status.details().len() <= 4096, "long details: {status:?}");
    status
}

/// The reason in an error's ErrorInfo, whose domain is `rollcall`.
///
/// # Panics
/// When there is none.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("an error without ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "rollcall");
    info.reason
}

/// The field named by an error's BadRequest.
///
/// # Panics
/// When there is none.
pub fn violated_field(status: &Status) -> String {
    let request = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    request.field_violations.first().expect("a BadRequest names a field").field.clone()
}

/// The delay in an error's RetryInfo.
///
/// # Panics
/// When there is none.
pub fn retry_delay(status: &Status) -> Duration {
    let retry = status.get_details_retry_info().unwrap_or_else(|| panic!("no RetryInfo: {status:?}"));
    retry.retry_delay.expect("a RetryInfo has a delay")
}

/// Reads a stream's next message.
///
/// # Panics
/// When no message comes in time.
pub async fn next<T>(what: &str, stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    soon(what, stream.message()).await
}

// --- Register

/// One Register stream. Dropping it cancels the call.
#[derive(Debug)]
pub struct Registration {
    requests: Option<mpsc::Sender<v1::RegisterRequest>>,
    responses: Streaming<v1::RegisterResponse>,
    /// The `opened` message.
    pub opened: v1::Opened,
}

impl Registration {
    /// Opens a stream with default options, and reads `opened`.
    pub async fn open(client: &Client) -> Registration {
        let open = Request::Open(v1::OpenSession::default());
        Registration::open_with(client, [open]).await.expect("the stream opens")
    }

    /// Opens a stream whose registrations outlive it by `ttl`, and reads `opened`.
    pub async fn open_with_ttl(client: &Client, ttl: Duration) -> Registration {
        let open = Request::Open(v1::OpenSession { ttl: Some(span(ttl)), ..Default::default() });
        Registration::open_with(client, [open]).await.expect("the stream opens")
    }

    /// Opens a stream, sends `requests`, which must be at least one, and reads `opened`. The server can't answer before
    /// it has the first request, since `opened` repeats the options of `open`.
    ///
    /// # Errors
    /// The status that the stream ends with instead.
    pub async fn open_with<const N: usize>(client: &Client, requests: [Request; N]) -> Result<Registration, Status> {
        let (sender, receiver) = mpsc::channel(N + 16);
        for request in requests {
            sender.try_send(v1::RegisterRequest { request: Some(request) }).expect("there is room");
        }
        let call = client.clone();
        let mut call = call.max_decoding_message_size(2 << 20);
        let answer = soon("headers of Register", call.register(ReceiverStream::new(receiver))).await?;
        let mut stream =
            Registration { requests: Some(sender), responses: answer.into_inner(), opened: v1::Opened::default() };
        match stream.next().await? {
            Some(Response::Opened(opened)) => stream.opened = opened,
            other => panic!("opened comes first, not {other:?}"),
        }
        Ok(stream)
    }

    /// Sends a request.
    pub async fn send(&self, request: Request) {
        self.send_message(v1::RegisterRequest { request: Some(request) }).await;
    }

    /// Sends a message, which may be an empty one.
    pub async fn send_message(&self, message: v1::RegisterRequest) {
        let requests = self.requests.as_ref().expect("the stream is not half-closed");
        soon("the server reads requests", requests.send(message)).await.expect("the stream stands");
    }

    /// The request side, for another task.
    ///
    /// # Panics
    /// When it has ended.
    pub fn sender(&self) -> mpsc::Sender<v1::RegisterRequest> {
        self.requests.clone().expect("the stream is not half-closed")
    }

    /// Ends the request side.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next answer other than a heartbeat; `None` at the end.
    ///
    /// # Errors
    /// The status that the stream ends with.
    pub async fn next(&mut self) -> Result<Option<Response>, Status> {
        loop {
            match next("an answer of Register", &mut self.responses).await? {
                None => return Ok(None),
                Some(message) => match message.response.expect("an answer is not empty") {
                    Response::KeptAlive(_) => {}
                    response => return Ok(Some(response)),
                },
            }
        }
    }

    /// The next answer that is no `pending`.
    pub async fn answer(&mut self) -> Response {
        loop {
            match self.next().await.expect("the stream stands") {
                None => panic!("the stream ended"),
                Some(Response::Pending(_)) => {}
                Some(response) => return response,
            }
        }
    }

    /// Registers, like a service at its start, and returns the answer.
    pub async fn set(&mut self, path: &str, value: v1::Value) -> v1::Registered {
        self.send(set(path, value)).await;
        self.registered().await
    }

    /// Resumes a registration, like a service that reconnects, and returns the answer.
    pub async fn resume(&mut self, path: &str, value: v1::Value, generation: i64) -> v1::Registered {
        self.send(resume(path, value, generation)).await;
        self.registered().await
    }

    /// Sends a keep-alive, and waits for its answer. Any other answer before it is a panic.
    pub async fn keep_alive(&mut self) {
        self.send(Request::KeepAlive(v1::KeepAlive {})).await;
        let answer = next("an answer of Register", &mut self.responses).await.expect("the stream stands");
        let answer = answer.and_then(|message| message.response);
        assert!(matches!(answer, Some(Response::KeptAlive(_))), "{answer:?}");
    }

    /// Reads to the end of the stream.
    ///
    /// # Errors
    /// The status that it ends with, unless that is OK.
    pub async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// The next answer, which must be `registered`.
    pub async fn registered(&mut self) -> v1::Registered {
        match self.answer().await {
            Response::Registered(registered) => registered,
            other => panic!("not registered: {other:?}"),
        }
    }

    /// The next answer, which must be `unregistered`. Returns the path.
    pub async fn unregistered(&mut self) -> String {
        match self.answer().await {
            Response::Unregistered(unregistered) => unregistered.path,
            other => panic!("not unregistered: {other:?}"),
        }
    }

    /// The next answer, which must be `lost`.
    pub async fn lost(&mut self) -> v1::Lost {
        match self.answer().await {
            Response::Lost(lost) => lost,
            other => panic!("not lost: {other:?}"),
        }
    }

    /// The next answer, which must be `rejected`.
    pub async fn rejected(&mut self) -> v1::Rejected {
        match self.answer().await {
            Response::Rejected(rejected) => rejected,
            other => panic!("not rejected: {other:?}"),
        }
    }
}

/// The `set` of a service that starts.
pub fn set(path: &str, value: v1::Value) -> Request {
    Request::Set(v1::SetRegistration { path: path.to_owned(), value: Some(value), ..Default::default() })
}

/// The `set` of a service that reconnects, with the last generation that it was given.
pub fn resume(path: &str, value: v1::Value, generation: i64) -> Request {
    Request::Set(v1::SetRegistration {
        path: path.to_owned(),
        value: Some(value),
        generation: Some(generation),
        ..Default::default()
    })
}

/// An `unset`.
pub fn unset(path: &str) -> Request {
    Request::Unset(v1::UnsetRegistration { path: path.to_owned() })
}
