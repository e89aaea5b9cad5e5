//! A channel to a service: calls are spread over its registered servers.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use rand::seq::SliceRandom as _;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tower_service::Service;

use crate::client::Client;
use crate::endpoints::{Tls, with_tls};
use crate::error::Error;
use crate::link::{BoxError, Link};
use crate::watch::View;

/// A builder of a channel: from [`Client::channel`].
#[must_use = "nothing is connected before it is awaited"]
pub struct BalancedChannel {
    client: Client,
    path: String,
    tls: Option<Tls>,
    configure: Configure,
}

type Configure = Box<dyn Fn(Endpoint) -> Endpoint + Send + Sync>;
type Connect = Arc<dyn Fn(&str) -> Result<Option<Endpoint>, Error> + Send + Sync>;

impl Client {
    /// A gRPC channel to one of your services. Calls are spread over the `host:port`s that are registered under the
    /// path, as they come and go. Await it, and create a generated client on it.
    ///
    /// ```no_run
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let channel = client.channel("/services/greeter").await?;
    /// // let greeter = GreeterClient::new(channel);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// - Until the first registration appears, calls wait. After the last one is gone, calls still go to its address,
    ///   and fail at once if no server is there. Where that does not suit you, give the call a deadline.
    /// - A host with several addresses is resolved anew for each connection, and each address is tried. If none of them
    ///   can be connected to, the call goes to another registered name.
    /// - A call whose connection breaks fails. It is not tried again elsewhere, since it may have been carried out.
    /// - Names that are not `host:port` are left out.
    pub fn channel(&self, path: impl Into<String>) -> BalancedChannel {
        let configure = Box::new(|endpoint| endpoint);
        BalancedChannel { client: self.clone(), path: path.into(), tls: None, configure }
    }
}

impl BalancedChannel {
    /// Sets the options of each connection: time-outs, windows, pings, and the rest of tonic's [`Endpoint`], except for
    /// its address and the options of TCP alone. For TLS see [`tls`](BalancedChannel::tls).
    pub fn configure(mut self, configure: impl Fn(Endpoint) -> Endpoint + Send + Sync + 'static) -> Self {
        self.configure = Box::new(configure);
        self
    }

    /// Encrypts each connection. A server must present a certificate for the host that it is registered under. Needs
    /// the feature `tls`.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    async fn open(self) -> Result<ServiceChannel, Error> {
        let Self { client, path, tls, configure } = self;
        let connect: Connect = Arc::new(move |name| Ok(endpoint(name, tls.as_ref())?.map(&configure)));
        // Wrong settings are an error of this call, not of a later one.
        connect("localhost:1")?;
        let view = client.watch(path).view().await?;
        let (links, receiver) = watch::channel(Vec::new());
        tokio::spawn(follow(view, links, connect));
        Ok(ServiceChannel(receiver))
    }
}

impl IntoFuture for BalancedChannel {
    type Output = Result<ServiceChannel, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// Those of [`Watch::view`](crate::Watch::view), and [`Error::Invalid`] when TLS can't be set up like this.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl fmt::Debug for BalancedChannel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BalancedChannel").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A channel to all servers that are registered under a path: from [`Client::channel`]. Generated clients take it in
/// place of tonic's channel. Clones share its connections.
#[derive(Clone)]
pub struct ServiceChannel(watch::Receiver<Vec<Link>>);

impl fmt::Debug for ServiceChannel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ServiceChannel").field("links", &self.0.borrow().len()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for ServiceChannel {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut links = self.0.clone();
        async move {
            let mut links = links.wait_for(|links| !links.is_empty()).await?.clone();
            links.shuffle(&mut rand::rng());
            links.sort_by_cached_key(Link::has_failed);
            let mut last = None;
            for link in links {
                match link.channel().await {
                    Ok(mut channel) => return Ok(channel.call(request).await?),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| "no endpoint is registered".into()))
        }
        .boxed()
    }
}

/// Keeps the list of connections current, until the last clone of the channel is gone.
async fn follow(mut view: View, links: watch::Sender<Vec<Link>>, connect: Connect) {
    let mut known: BTreeMap<Arc<str>, Link> = BTreeMap::new();
    loop {
        let names: Vec<Arc<str>> = view.current().node.children.keys().map(|name| name.as_str().into()).collect();
        let (before, connect) = (known.clone(), connect.clone());
        let renew = move || names.into_iter().filter_map(|name| renewed(name, &before, &connect)).collect();
        // With TLS, each new name reads the system's certificates.
        let Ok(now) = tokio::task::spawn_blocking(renew).await else { return };
        let now: BTreeMap<Arc<str>, Link> = now;
        // An empty list is more often a fault than intended, and calls would hang on it, so the last known connections
        // are kept.
        if !now.is_empty() {
            links.send_replace(now.values().cloned().collect());
            known = now;
        }
        tokio::select! {
            changed = view.changed() => if let Err(error) = changed {
                tracing::warn!(%error, "a balanced channel no longer follows its service");
                return links.closed().await;
            },
            () = links.closed() => return,
        }
    }
}

/// The connection for a name: the existing one, or a new one.
fn renewed(name: Arc<str>, before: &BTreeMap<Arc<str>, Link>, connect: &Connect) -> Option<(Arc<str>, Link)> {
    let link = match before.get(&name) {
        Some(link) => link.clone(),
        None => Link::new(connect(&name).ok()??),
    };
    Some((name, link))
}

/// The endpoint of a registered name; `None` when the name is not an address.
fn endpoint(name: &str, tls: Option<&Tls>) -> Result<Option<Endpoint>, Error> {
    let is_address = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
    if !name.rsplit_once(':').is_some_and(is_address) {
        return Ok(None);
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let Ok(endpoint) = Endpoint::from_shared(format!("{scheme}://{name}")) else { return Ok(None) };
    match tls {
        Some(tls) => with_tls(endpoint, Some(tls)).map(Some),
        None => Ok(Some(endpoint)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::link::tests::{each_bad, good, link};

    #[test]
    fn names_that_are_no_addresses_are_left_out() {
        for name in ["server1:22", "10.0.0.1:80", "[::1]:80"] {
            assert!(endpoint(name, None).unwrap().is_some(), "{name}");
        }
        for name in ["server1", "server1:ssh", ":22", "a b:22"] {
            assert!(endpoint(name, None).unwrap().is_none(), "{name}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn with_tls_connections_are_encrypted() {
        let endpoint = endpoint("server1:22", Some(&Tls::system())).unwrap().unwrap();
        assert_eq!(endpoint.uri().scheme_str(), Some("https"));
    }

    #[tokio::test]
    async fn calls_go_to_a_name_that_can_be_connected_to() {
        let server = good().await;
        let bad = each_bad().await;
        let names = [link(bad.clone()), link([bad, vec![server.address]].concat()), link(Vec::new())];
        let (links, receiver) = watch::channel(names.to_vec());
        let mut health = HealthClient::new(ServiceChannel(receiver));
        for _ in 0..20 {
            let answer = timeout(Duration::from_secs(20), health.check(HealthCheckRequest::default())).await;
            answer.expect("it is answered in time").unwrap();
        }
        drop(links);
    }
}
