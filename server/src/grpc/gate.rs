//! The gate of all services, those that are not ours included: no call is under way that its connection's account does not
//! cover. What is over a limit is refused at once, before anything is read of it, and never waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::call::{Call, Download, Form, Upload};
use super::gather::Peer;
use super::status;
use crate::budget::Account;
use crate::error::Error;
use crate::metrics::Metrics;

/// The calls of ours, as metrics name them.
const METHODS: [(&str, &str); 8] = [
    (REGISTER, "Register"),
    ("/rollcall.v1.Registry/Get", "Get"),
    ("/rollcall.v1.Registry/Watch", "Watch"),
    ("/rollcall.v1.Registry/AcquireLock", "AcquireLock"),
    ("/rollcall.v1.Registry/ReleaseLock", "ReleaseLock"),
    ("/rollcall.v1.Registry/DescribeLock", "DescribeLock"),
    ("/rollcall.v1.Registry/Put", "Put"),
    ("/rollcall.v1.Registry/Delete", "Delete"),
];
const REGISTER: &str = "/rollcall.v1.Registry/Register";
const REFLECTION: &str = "/grpc.reflection.";
/// The most reflection streams of this replica. They are for people with grpcurl. Their server stops reading when its
/// answers are not read, so that each may keep as much unread as its connection's window allows.
const REFLECTIONS: usize = 64;

/// All services behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    routes: Routes,
    reflections: Arc<Semaphore>,
    metrics: Metrics,
}

impl Gate {
    pub(crate) fn new(routes: Routes, metrics: Metrics) -> Self {
        Self { routes, reflections: Arc::new(Semaphore::new(REFLECTIONS)), metrics }
    }

    fn admit(&self, request: Request<Body>) -> Result<(Request<Body>, Arc<Call>), Error> {
        let (mut head, body) = request.into_parts();
        // Every connection that is accepted has one; see `Gathering`.
        let peer = head.extensions.get::<Peer>().cloned();
        let peer = peer.unwrap_or_else(|| Peer { account: Account::unlimited(), unread: Arc::default() });
        let call = Call::begin(&peer.account, &head)?;
        let form = match head.uri.path() {
            REGISTER => {
                head.extensions.insert(call.clone());
                Form::Many
            }
            path if path.starts_with(REFLECTION) => {
                let place = self.reflections.clone().try_acquire_owned();
                Form::Reflection { _place: place.map_err(|_| too_many_reflections())? }
            }
            _ => Form::Single,
        };
        Ok((Request::from_parts(head, Body::new(Upload::new(body, form, call.clone(), peer.unread))), call))
    }
}

fn too_many_reflections() -> Error {
    let what = "the number of reflection streams of this replica";
    Error::LimitExceeded { reason: "TOO_MANY_STREAMS", what, limit: REFLECTIONS as u64 }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Download>;
    type Error = Infallible;
    type Future =
        Either<Ready<Result<Self::Response, Infallible>>, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ours = METHODS.iter().find(|(path, _)| *path == request.uri().path());
        match self.admit(request) {
            Ok((request, call)) => {
                let answer = self.routes.call(request);
                Either::Right(Box::pin(async move { Ok(answer.await?.map(|body| Download::new(body, call))) }))
            }
            Err(error) => {
                self.metrics.call(ours.map_or("other", |(_, method)| method), error.reason());
                Either::Left(ready(Ok(status::status(&error).into_http())))
            }
        }
    }
}
