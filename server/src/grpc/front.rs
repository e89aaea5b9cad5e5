//! The service as tonic makes it. Each answer is checked before it leaves.

use std::task::{Context, Poll};

use futures_util::future::{MapOk, TryFutureExt as _};
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use super::{faults, frames};

/// A service whose errors all carry a reason (`faults`), and whose answers may be handed over as bytes (`frames`).
#[derive(Debug, Clone)]
pub(crate) struct Front<S>(pub(super) S);

impl<S: NamedService> NamedService for Front<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, R> Service<R> for Front<S>
where
    S: Service<R, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(S::Response) -> S::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.0.call(request).map_ok(|response| frames::take_over(faults::explained(response)))
    }
}
