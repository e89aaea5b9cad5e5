//! The gate of all services, those that are not ours included: no call is under way that its connection's account does not
//! cover. What is over a limit is refused at once, before anything is read of it, and never waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::call::Call;
use super::download::{AnswerCost, Download};
use super::upload::{RequestForm, Upload};
use super::write_coalescer::{self, Peer};
use super::{deadline, status};
use crate::budget::Account;
use crate::contact::Contact;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::standing::Standing;

/// The calls of ours, as metrics name them.
const METHODS: [(&str, &str); 10] = [
    (REGISTER, "Register"),
    (GET, "Get"),
    (WATCH, "Watch"),
    ("/rollcall.v1.Registry/AcquireLock", "AcquireLock"),
    ("/rollcall.v1.Registry/ReleaseLock", "ReleaseLock"),
    ("/rollcall.v1.Registry/DescribeLock", "DescribeLock"),
    ("/rollcall.v1.Registry/Put", "Put"),
    ("/rollcall.v1.Registry/Delete", "Delete"),
    ("/rollcall.v1.Registry/Evict", "Evict"),
    (STATUS, "Status"),
];
const REGISTER: &str = "/rollcall.v1.Registry/Register";
const DESCRIBE_LOCK: &str = "/rollcall.v1.Registry/DescribeLock";
const GET: &str = "/rollcall.v1.Registry/Get";
const WATCH: &str = "/rollcall.v1.Registry/Watch";
const STATUS: &str = "/rollcall.v1.Registry/Status";
const REFLECTION_PREFIX: &str = "/grpc.reflection.";
const HEALTH: &str = "/grpc.health.v1.Health/";
/// The most reflection streams of this replica. They are for people with grpcurl. Their server stops reading when its
/// answers are not read, so that each may keep as much unread as its connection's window allows.
const REPLICA_REFLECTIONS: usize = 64;

/// All services behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    routes: Routes,
    reflections: Arc<Semaphore>,
    metrics: Metrics,
    standing: Standing,
    width: GateWidth,
}

/// The calls that the gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GateWidth {
    /// Every call.
    Wide,
    /// Calls that ask how the replica stands. The others are told that it drains.
    Narrow,
}

/// A call that has its place.
struct Admitted {
    request: Request<Body>,
    call: Arc<Call>,
    answer: AnswerCost,
    deadline: Option<Instant>,
}

impl Gate {
    pub(crate) fn new(routes: Routes, metrics: Metrics, standing: Standing) -> Self {
        let reflections = Arc::new(Semaphore::new(REPLICA_REFLECTIONS));
        Self { routes, reflections, metrics, standing, width: GateWidth::Wide }
    }

    /// The gate of connections that are made while the replica drains: calls of health, reflection and Status alone.
    pub(crate) fn of_a_drain(self) -> Self {
        Self { width: GateWidth::Narrow, ..self }
    }

    fn admit(&self, request: Request<Body>) -> Result<Admitted, Error> {
        let (mut head, body) = request.into_parts();
        if self.width == GateWidth::Narrow && !asks_how_it_stands(head.uri.path()) {
            return Err(Error::Draining);
        }
        // Every connection that is accepted has one; see `WriteCoalescer`.
        let peer = head.extensions.get::<Peer>().cloned();
        let peer = peer.unwrap_or_else(|| Peer::new(Account::unlimited(), Contact::new(Duration::MAX)));
        let call = Call::begin(&peer.account, &head)?;
        let deadline = deadline::of(&head.headers);
        let (form, answer) = match head.uri.path() {
            REGISTER => {
                head.extensions.insert(call.clone());
                (RequestForm::Many, AnswerCost::Open)
            }
            DESCRIBE_LOCK | GET | WATCH => (RequestForm::Single, AnswerCost::Shared),
            path if path.starts_with(REFLECTION_PREFIX) => (self.reflection(&peer)?, AnswerCost::Own),
            _ => (RequestForm::Single, AnswerCost::Own),
        };
        let upload = Upload::new(body, form, call.clone(), peer.unread);
        Ok(Admitted { request: Request::from_parts(head, Body::new(upload)), call, answer, deadline })
    }

    fn reflection(&self, peer: &Peer) -> Result<RequestForm, Error> {
        let place = |places: &Arc<Semaphore>, what, most: usize| {
            let limit = most as u64;
            let full = |_| Error::LimitExceeded { reason: "TOO_MANY_STREAMS", what, limit };
            places.clone().try_acquire_owned().map_err(full)
        };
        let own = place(
            &peer.reflections,
            "the number of reflection streams of this connection",
            write_coalescer::CONNECTION_REFLECTIONS,
        )?;
        let common = place(&self.reflections, "the number of reflection streams of this replica", REPLICA_REFLECTIONS)?;
        Ok(RequestForm::Reflection { _places: [own, common] })
    }
}

fn asks_how_it_stands(path: &str) -> bool {
    path == STATUS || path.starts_with(HEALTH) || path.starts_with(REFLECTION_PREFIX)
}

/// Whether a request is of gRPC, by what it says that it carries.
fn is_grpc(request: &Request<Body>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // gRPC-Web, and what else begins like this, is framed in another way.
    let rest = content_type.and_then(|value| value.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// The answer to a request that is not gRPC, as gRPC's specification has it.
fn not_grpc(metrics: &Metrics, method: &'static str) -> Response<Download> {
    metrics.call(method, "CONTENT_TYPE");
    let mut response = Response::new(Download::default());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The error of a call that never came to its method, or was given up there.
fn refused(metrics: &Metrics, method: &'static str, error: &Error) -> Response<Download> {
    metrics.call(method, error.reason());
    status::status(error).into_http()
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Download>;
    type Error = Infallible;
    type Future =
        Either<Ready<Result<Self::Response, Infallible>>, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    /// A call whose deadline passes before its answer begins ends here. tonic would end it a moment later, as cancelled.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ours = METHODS.iter().find(|(path, _)| *path == request.uri().path());
        let method = ours.map_or("other", |(_, method)| method);
        if !is_grpc(&request) {
            return Either::Left(ready(Ok(not_grpc(&self.metrics, method))));
        }
        let Admitted { request, call, answer, deadline } = match self.admit(request) {
            Ok(admitted) => admitted,
            Err(error) => return Either::Left(ready(Ok(refused(&self.metrics, method, &error)))),
        };
        let (response, metrics) = (self.routes.call(request), self.metrics.clone());
        // Health and reflection ask nothing of ZooKeeper.
        let dormant = (ours.is_some() && !self.standing.is_active()).then(|| self.standing.clone());
        let response = async move {
            if let Some(standing) = dormant {
                Box::pin(standing.activate()).await;
            }
            response.await
        };
        Either::Right(Box::pin(async move {
            let response = match deadline {
                None => response.await?,
                Some(deadline) => match timeout_at(deadline, response).await {
                    Ok(response) => response?,
                    Err(_) => return Ok(refused(&metrics, method, &Error::DeadlineExceeded)),
                },
            };
            Ok(response.map(|body| Download::new(body, call, answer)))
        }))
    }
}
