//! HTTP/1 over a listener, for metrics and health.

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;

use super::Listener;
use super::times::HEAD_TIMEOUT;

/// Serves for ever.
pub(crate) async fn serve(mut listener: Listener, routes: axum::Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            socket = listener.accept() => {
                let served = server.serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes.clone()));
                connections.spawn(async move {
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "an http connection failed");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
