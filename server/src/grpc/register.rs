//! Register.
//!
//! A task of its own reads the request side, so that a client that does not read its answers is still heard. The end of
//! the request side means nothing: a half-close and a broken connection look the same. The drop of the response stream
//! is the sign that the RPC is over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use rollcall_proto::server::v1;
use rollcall_proto::server::v1::register_request::Request as Kind;
use rollcall_proto::server::v1::register_response::Response;
use tonic::{Request, Streaming};

use super::acknowledged::Acknowledged;
use super::admission::{CallKind, CallPlace, RequestReader, account, acknowledged};
use super::call::Call;
use super::heartbeat::{self, Heartbeat};
use super::{Responses, Service, Settings, admission, convert, status};
use crate::clock;
use crate::compute;
use crate::contact::{self, Contact};
use crate::error::Error;
use crate::sessions::{self, Notice, Outbox, Requests, Rpc};
use crate::types::{Generation, NodePath};
use crate::value::EncodedValue;
use crate::views::Views;

/// State that lives as long as the RPC.
struct OpenRegister {
    rpc: Rpc,
    acknowledged: Acknowledged,
    views: Views,
    /// Whether the first response was sent. No heartbeat comes before `opened`.
    has_begun: bool,
    heartbeat: Option<Heartbeat>,
    /// Time for which the ZooKeeper sessions outlive the replica's last message.
    horizon: Duration,
    contact: Option<Contact>,
    _reader: RequestReader,
    _place: CallPlace,
}

impl Service {
    pub(super) fn do_register(
        &self,
        request: Request<Streaming<v1::RegisterRequest>>,
    ) -> Result<Responses<v1::RegisterResponse>, Error> {
        self.check_writable()?;
        let place = self.admit(CallKind::Register)?;
        let contact = admission::contact(&request);
        let (requests, rpc) = self.sessions.stream(account(&request));
        let call: Option<Arc<Call>> = request.extensions().get().cloned();
        if let Some(call) = &call {
            call.is_heard_by(requests.heard().clone());
        }
        let (acknowledged, views) = (acknowledged(&request), self.views.clone());
        let reading = read(self.settings.clone(), request.into_inner(), call, requests, rpc.outbox().clone());
        let open = OpenRegister {
            rpc,
            acknowledged,
            views,
            has_begun: false,
            heartbeat: Heartbeat::every(self.settings.heartbeat),
            horizon: self.sessions.horizon(),
            contact,
            _reader: RequestReader::spawn(reading),
            _place: place,
        };
        Ok(Box::pin(stream::unfold(open, next_response)))
    }
}

impl OpenRegister {
    /// Silence after which the client's registrations may be gone: with a ZooKeeper session, with its
    /// connection, or after its ttl.
    fn horizon_with(&self, ttl: Option<Duration>) -> Duration {
        let of_client = match (ttl, &self.contact) {
            (Some(ttl), _) => ttl - ttl / 3,
            (None, Some(contact)) => contact.horizon(),
            (None, None) => Duration::MAX,
        };
        self.horizon.saturating_sub(contact::GRACE).min(of_client)
    }
}

async fn next_response(mut open: OpenRegister) -> Option<(Result<v1::RegisterResponse, tonic::Status>, OpenRegister)> {
    let next = open.rpc.outbox().next();
    let notice = if open.has_begun {
        heartbeat::or_due(&mut open.heartbeat, next).await.unwrap_or(Some(Ok(Notice::KeptAlive)))?
    } else {
        next.await?
    };
    open.has_begun = true;
    let horizon = if let Ok(Notice::Opened { ttl, .. }) = &notice { Some(open.horizon_with(*ttl)) } else { None };
    let mut response = match notice {
        Ok(notice) => {
            open.acknowledged.note_notice(&notice, &open.views);
            Ok(to_response(notice).await)
        }
        Err(error) => Err(error),
    };
    if let Ok(v1::RegisterResponse { response: Some(Response::Opened(opened)) }) = &mut response {
        opened.horizon = horizon.map(convert::duration_to_proto);
    }
    Some((response.map_err(|error| status::status(&error)), open))
}

/// A notice as a message. A value so large that it takes long to convert is converted on another thread.
async fn to_response(notice: Notice) -> v1::RegisterResponse {
    match &notice {
        Notice::Overwritten { data, .. } if data.len() > compute::JSON_BYTES_PER_STEP => {
            compute::FOR_CLIENTS.run(move || convert::notice_to_proto(notice)).await
        }
        _ => convert::notice_to_proto(notice),
    }
}

async fn read(
    settings: Arc<Settings>,
    mut messages: Streaming<v1::RegisterRequest>,
    call: Option<Arc<Call>>,
    requests: Requests,
    outbox: Arc<Outbox>,
) {
    let mut is_open = false;
    loop {
        let kind = match messages.message().await {
            Ok(Some(message)) => Ok(message.request),
            Ok(None) => {
                if !is_open {
                    requests.open(outbox, None, None).await;
                }
                return;
            }
            // A message that can't be read, or is over a limit. If the connection broke, nobody gets the error.
            Err(error) => {
                let refusal = call.as_ref().and_then(|call| call.refusal());
                let fault = || status::fault(&error).unwrap_or_else(|| protocol("request", error.message()));
                Err(refusal.unwrap_or_else(fault))
            }
        };
        if !is_open {
            let open = match &kind {
                Ok(Some(Kind::Open(open))) => {
                    convert::ttl(open.ttl).map(|ttl| (ttl, (open.pid != 0).then_some(open.pid)))
                }
                _ => Ok((None, None)),
            };
            match open {
                Ok((ttl, pid)) => {
                    if requests.open(outbox.clone(), ttl, pid).await.is_none() {
                        return;
                    }
                }
                Err(error) => return Requests::refuse(&outbox, error),
            }
        }
        let request = match kind {
            Ok(Some(Kind::Open(_))) if !is_open => None,
            Ok(Some(Kind::Open(_))) => Some(fail("open", "it must be the first message, and come once")),
            Ok(Some(other)) => Some(settings.registration_request(other)),
            Ok(None) => Some(fail("request", "it is empty, or of a later version of the API")),
            Err(error) => Some(sessions::Request::Fail { error }),
        };
        is_open = true;
        if let Some(request) = request {
            let is_last = matches!(request, sessions::Request::Fail { .. });
            if requests.send(request).await.is_none() || is_last {
                return;
            }
        }
    }
}

fn fail(field: &'static str, cause: &str) -> sessions::Request {
    sessions::Request::Fail { error: protocol(field, cause) }
}

fn protocol(field: &'static str, cause: &str) -> Error {
    Error::Protocol { field, cause: crate::error::short(cause).into_owned() }
}

/// The path of a refused request as it was sent, so that the client knows which request was refused. A path so long
/// that none was meant is cut.
fn bounded(mut path: String) -> String {
    const LONGEST_PATH_ECHOED: usize = 16 * 1024;
    path.truncate(path.floor_char_boundary(LONGEST_PATH_ECHOED));
    path.shrink_to_fit();
    path
}

impl Settings {
    fn registration_request(&self, request: Kind) -> sessions::Request {
        let (path, converted) = match request {
            Kind::Set(set) => (set.path.clone(), self.set_request(set)),
            Kind::Unset(unset) => {
                let path = self.path_to_write(&unset.path);
                (unset.path, path.map(|path| sessions::Request::Unset { path }))
            }
            Kind::KeepAlive(_) => return sessions::Request::KeepAlive,
            Kind::Close(_) => return sessions::Request::Close,
            // The reader has taken it.
            Kind::Open(_) => return sessions::Request::KeepAlive,
        };
        converted.unwrap_or_else(|error| sessions::Request::Reject { path: bounded(path), error })
    }

    fn set_request(&self, set: v1::SetRegistration) -> Result<sessions::Request, Error> {
        let path: NodePath = self.path_to_write(&set.path)?;
        let value = convert::value(&path, set.value, self.max_value_bytes)?;
        let value = value.unwrap_or_else(EncodedValue::empty_object);
        Ok(sessions::Request::Set {
            path,
            bytes: value.len(),
            value,
            generation: set.generation.map(Generation),
            exclusive: set.exclusive,
            created: clock::created_now(),
        })
    }
}
