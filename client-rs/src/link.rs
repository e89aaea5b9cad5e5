//! A connection to a host name: made on first use, and made anew once it has ended.
//!
//! A name may have several addresses. They change, and any of them may belong to a server that hangs: a headless
//! service of Kubernetes, or `localhost` with an IPv6 and an IPv4 address. So each connection resolves the name anew
//! and tries all addresses in a random order. An address counts as connected only when its server has spoken HTTP/2 (or
//! has finished the TLS handshake). Until then no request is sent to it, so that a write never goes to a server that
//! never answers.

use std::fmt;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use rand::seq::SliceRandom as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tonic::ConnectError;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::greeting::Watched;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time that resolving a name may take, and then each address until its server has greeted.
const ANSWER: Duration = Duration::from_secs(3);
/// Time after which the next address is tried beside those that have not answered yet. If it is shorter, a server that
/// is merely far away gets several connections; if it is longer, each call that meets a hanging server takes longer.
const STAGGER: Duration = Duration::from_millis(250);

/// Time after which a host that could not be connected to is tried again in the background. If it is shorter, a host
/// that is away gets more connections than it is worth; if it is longer, a host that is back gets no calls for longer.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// A connection to the host of an endpoint. Clones share it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    resolve: Resolve,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Dialling>,
    /// Whether the attempt before the current one failed.
    has_failed: bool,
}

type Resolve = Box<dyn Fn() -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;
type Dialling = Shared<BoxFuture<'static, Result<Open, DialError>>>;

/// An open connection.
#[derive(Clone)]
struct Open {
    channel: Channel,
    /// Gone once the connection has ended.
    is_open: Weak<()>,
}

/// Why no address could be connected to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{cause}")]
struct DialError {
    cause: Arc<str>,
    at: Instant,
}

impl DialError {
    fn new(cause: impl fmt::Display) -> Self {
        Self { cause: cause.to_string().into(), at: Instant::now() }
    }
}

impl Link {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_encrypted(&endpoint) { 443 } else { 80 });
        let resolve = move || {
            let name = (host.clone(), port);
            async move { Ok(lookup_host(name).await?.collect()) }.boxed()
        };
        Self::resolved_by(endpoint, Box::new(resolve))
    }

    fn resolved_by(endpoint: Endpoint, resolve: Resolve) -> Self {
        Self(Arc::new(Inner { endpoint, resolve, state: Mutex::default() }))
    }

    /// The connection, ready for a call. An error means that nothing was sent.
    pub(crate) async fn channel(&self) -> Result<Channel, BoxError> {
        let Open { mut channel, .. } = self.dialling().await.map_err(|error| ConnectError(Box::new(error)))?;
        poll_fn(|context| channel.poll_ready(context)).await?;
        Ok(channel)
    }

    /// Whether calls had better go elsewhere: the last attempt to connect that has ended has failed. A while after that
    /// the next attempt begins in the background, so that no call waits for a host that may still hang.
    pub(crate) fn has_failed(&self) -> bool {
        let mut state = self.state();
        let failed_at = match state.current.as_ref().map(Shared::peek) {
            None | Some(Some(Ok(_))) => return false,
            Some(None) => return state.has_failed,
            Some(Some(Err(error))) => error.at,
        };
        if failed_at.elapsed() >= LEFT_ALONE {
            drop(self.dial_anew(&mut state));
        }
        true
    }

    /// The connection that is open or being made; a new one when that has ended or failed.
    fn dialling(&self) -> Dialling {
        let mut state = self.state();
        if let Some(dialling) = &state.current {
            match dialling.peek() {
                None => return dialling.clone(),
                Some(Ok(open)) if open.is_open.strong_count() > 0 => return dialling.clone(),
                Some(_) => {}
            }
        }
        self.dial_anew(&mut state)
    }

    /// Begins to connect, in a task of its own. A caller that leaves must not stop the attempt halfway, with its time
    /// running out for the next caller.
    fn dial_anew(&self, state: &mut State) -> Dialling {
        let dialling = dial(self.0.endpoint.clone(), (self.0.resolve)()).boxed().shared();
        state.has_failed = matches!(state.current.as_ref().and_then(Shared::peek), Some(Err(_)));
        state.current = Some(dialling.clone());
        tokio::spawn(dialling.clone().map(drop));
        dialling
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("uri", self.0.endpoint.uri()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let link = self.clone();
        async move { Ok(link.channel().await?.call(request).await?) }.boxed()
    }
}

fn is_encrypted(endpoint: &Endpoint) -> bool {
    endpoint.uri().scheme_str() == Some("https")
}

/// Connects to the address that answers first. The next address is tried when one has failed, or has not answered for a
/// while.
async fn dial(
    endpoint: Endpoint,
    resolving: BoxFuture<'static, io::Result<Vec<SocketAddr>>>,
) -> Result<Open, DialError> {
    let mut addresses = match timeout(ANSWER, resolving).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(DialError::new(error)),
        Err(_) => return Err(DialError::new("the host name is not resolved in time")),
    };
    addresses.shuffle(&mut rand::rng());
    let mut last = DialError::new("the host name has no address");
    let mut trying = FuturesUnordered::new();
    let mut waiting = addresses.into_iter();
    loop {
        match waiting.next() {
            Some(address) => trying.push(open(&endpoint, address)),
            None if trying.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(open) => return Ok(open),
                Err(error) => last = error,
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// Connects to one address, and waits until its server has greeted.
async fn open(endpoint: &Endpoint, address: SocketAddr) -> Result<Open, DialError> {
    let opening = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(endpoint.get_tcp_nodelay())?;
        let (alive, (greet, greeted)) = (Arc::new(()), oneshot::channel());
        let is_open = Arc::downgrade(&alive);
        let connector = Connector(Some(TokioIo::new(Watched::new(stream, greet, alive))));
        let channel = endpoint.connect_with_connector(connector).await?;
        // With TLS the first bytes say nothing, but the handshake has been answered.
        match is_encrypted(endpoint) || greeted.await.unwrap_or(false) {
            true => Ok::<_, BoxError>(Open { channel, is_open }),
            // A server that closes the connection instead of greeting may also be an HTTP/1 server.
            false => {
                Err("it does not speak gRPC; a replica does at --listen (7700), not at --http-listen (7701)".into())
            }
        }
    };
    let cause = match timeout(ANSWER, opening).await {
        Ok(Ok(open)) => return Ok(open),
        Ok(Err(error)) => with_hint(endpoint, innermost(&*error).to_string()),
        Err(_) => "the server does not answer".to_owned(),
    };
    Err(DialError::new(format_args!("{address}: {cause}")))
}

/// Adds a hint where the answer to a TLS handshake was probably not TLS.
fn with_hint(endpoint: &Endpoint, cause: String) -> String {
    // The messages for bytes that are no TLS record, and for a connection that was closed in the middle.
    let is_no_tls = ["corrupt message", "handshake eof", "reset by peer"].iter().any(|said| cause.contains(said));
    match is_encrypted(endpoint) && is_no_tls {
        true => format!(
            "{cause}: perhaps it does not speak TLS; name it without https:// and --tls if it is a plain rollcall-server"
        ),
        false => cause,
    }
}

/// The innermost cause: the outer ones are «transport error» and the like.
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

/// Hands out a connection that is open already, once. After its end the link makes a new one.
struct Connector(Option<TokioIo<Watched>>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Watched>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// How an unusable address behaves.
    #[derive(Clone, Copy)]
    enum Bad {
        Hangs,
        Closes,
        SpeaksHttp1,
        Refuses,
    }

    async fn bad(how: Bad) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let (false, Ok((mut stream, _))) = (matches!(how, Bad::Refuses), listener.accept().await) {
                match how {
                    Bad::Hangs => held.push(stream),
                    Bad::SpeaksHttp1 => {
                        // The client may have closed the connection.
                        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                        held.push(stream);
                    }
                    Bad::Closes | Bad::Refuses => drop(stream),
                }
            }
        });
        address
    }

    /// A server that answers.
    pub(crate) struct Good {
        pub(crate) address: SocketAddr,
        accepted: Arc<AtomicUsize>,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    }

    pub(crate) async fn good() -> Good {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, (stop, stopped)) = (Arc::new(AtomicUsize::new(0)), oneshot::channel());
        let count = accepted.clone();
        let incoming = TcpListenerStream::new(listener).inspect(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder().add_service(health);
        let task = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stopped.map(drop)));
        Good { address, accepted, stop, task }
    }

    /// A link to a name with these addresses.
    pub(crate) fn link(addresses: Vec<SocketAddr>) -> Link {
        link_to(&Arc::new(Mutex::new(addresses)))
    }

    /// A link to a name. Its addresses are those in the list at the time when it is resolved.
    fn link_to(addresses: &Arc<Mutex<Vec<SocketAddr>>>) -> Link {
        let addresses = addresses.clone();
        let resolve = move || ready(Ok(addresses.lock().clone())).boxed();
        Link::resolved_by(Endpoint::from_static("http://name:1"), Box::new(resolve))
    }

    async fn check(link: &Link) -> Result<(), tonic::Status> {
        let mut health = HealthClient::new(link.clone());
        timeout(SOON, health.check(HealthCheckRequest::default())).await.expect("it is answered in time").map(drop)
    }

    pub(crate) async fn each_bad() -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for how in [Bad::Hangs, Bad::Closes, Bad::SpeaksHttp1, Bad::Refuses] {
            addresses.push(bad(how).await);
        }
        addresses
    }

    #[tokio::test]
    async fn whatever_listens_at_the_other_addresses_the_good_one_is_found() {
        let mut addresses = each_bad().await;
        let good = good().await;
        addresses.push(good.address);
        // The order is random. Ten rounds catch a client that takes the first address that accepts: it is right by
        // chance in some of them only.
        for _ in 0..10 {
            let link = link(addresses.clone());
            for _ in 0..3 {
                check(&link).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_name_without_a_good_address_is_told_and_nothing_was_sent() {
        for addresses in [each_bad().await, Vec::new()] {
            let status = check(&link(addresses)).await.unwrap_err();
            assert!(matches!(crate::error::Failure::of(status), crate::error::Failure::NotSent(_)));
        }
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_made_anew_to_where_the_name_leads_now() {
        let (first, second) = (good().await, good().await);
        let addresses = Arc::new(Mutex::new(vec![first.address]));
        let link = link_to(&addresses);
        check(&link).await.unwrap();
        *addresses.lock() = vec![bad(Bad::Closes).await, second.address];
        first.stop.send(()).unwrap();
        timeout(SOON, first.task).await.expect("it has closed its connections").unwrap().unwrap();
        // The client may not have noticed yet.
        let found = async {
            while check(&link).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, found).await.expect("the new address is found");
        assert_eq!(second.accepted.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn callers_share_one_connection() {
        let good = good().await;
        let link = link(vec![good.address]);
        futures_util::future::try_join_all((0..50).map(|_| check(&link))).await.unwrap();
        assert_eq!(good.accepted.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_connection_is_made_to_its_end_though_its_caller_has_left() {
        let good = good().await;
        let link = link(vec![good.address]);
        assert!(link.channel().now_or_never().is_none());
        let made = async {
            while link.state().current.as_ref().and_then(Shared::peek).is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, made).await.expect("the connection is made");
        check(&link).await.unwrap();
        assert_eq!(good.accepted.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn calls_avoid_a_host_that_has_failed_until_it_is_connected_to() {
        let good = good().await;
        let addresses = Arc::new(Mutex::new(vec![bad(Bad::Hangs).await]));
        let link = link_to(&addresses);
        assert!(!link.has_failed(), "it was never tried");
        let fail = || {
            let error = DialError { at: Instant::now().checked_sub(LEFT_ALONE).unwrap(), ..DialError::new("away") };
            link.state().current = Some(ready(Err(error)).boxed().shared());
            // The outcome is known once the future has been polled.
            assert!(link.state().current.clone().unwrap().now_or_never().is_some());
        };
        fail();
        assert!(link.has_failed(), "it is tried in the background");
        assert!(
            link.has_failed() && link.state().current.as_ref().unwrap().peek().is_none(),
            "and is avoided meanwhile"
        );
        *addresses.lock() = vec![good.address];
        fail();
        let found = async {
            while link.has_failed() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, found).await.expect("the host is back");
        assert_eq!(good.accepted.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn servers_of_one_name_share_its_clients() {
        let (one, other) = (good().await, good().await);
        for _ in 0..40 {
            check(&link(vec![one.address, other.address])).await.unwrap();
        }
        for server in [one, other] {
            let accepted = server.accepted.load(Ordering::Relaxed);
            assert!((5..=35).contains(&accepted), "{accepted} of 40");
        }
    }
}
