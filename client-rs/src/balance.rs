//! A channel to a service: calls are spread over those who are registered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use crate::client::Client;
use crate::error::Error;
use crate::watch::View;

/// How many changes may wait for the channel.
const CHANGES: usize = 64;

/// A channel to be made: from [`Client::channel`].
#[must_use = "nothing is connected before it is awaited"]
pub struct BalancedChannel {
    client: Client,
    path: String,
    configure: Configure,
}

type Configure = Box<dyn Fn(Endpoint) -> Endpoint + Send + Sync>;

impl Client {
    /// A gRPC channel to a service of yours: calls are spread over the `host:port`s that are registered under the path, as
    /// they come and go. Await it, and make a generated client of it.
    ///
    /// ```no_run
    /// # async fn example(client: rollcall::Client) -> Result<(), rollcall::Error> {
    /// let channel = client.channel("/services/greeter").await?;
    /// // let greeter = GreeterClient::new(channel);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// - While nobody has ever been registered, calls wait. When the last one goes, calls still go to where it was, and fail
    ///   at once if nobody is there: give a call a deadline if that is no answer to you.
    /// - A call to one that has just died fails; tonic does not try another by itself.
    /// - Names that are no `host:port` are left out.
    pub fn channel(&self, path: impl Into<String>) -> BalancedChannel {
        BalancedChannel { client: self.clone(), path: path.into(), configure: Box::new(|endpoint| endpoint) }
    }
}

impl BalancedChannel {
    /// Settings for each connection: time-outs, TLS, and what else tonic's [`Endpoint`] has.
    pub fn configure(mut self, configure: impl Fn(Endpoint) -> Endpoint + Send + Sync + 'static) -> Self {
        self.configure = Box::new(configure);
        self
    }

    async fn open(self) -> Result<Channel, Error> {
        let view = self.client.watch(self.path).view().await?;
        let (channel, changes) = Channel::balance_channel(CHANGES);
        tokio::spawn(follow(view, changes, self.configure));
        Ok(channel)
    }
}

impl IntoFuture for BalancedChannel {
    type Output = Result<Channel, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Errors
    /// As of [`Watch::view`](crate::Watch::view).
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl std::fmt::Debug for BalancedChannel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BalancedChannel").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Tells the channel who comes and goes, until its last clone is gone.
async fn follow(mut view: View, changes: Sender<Change<Arc<str>, Endpoint>>, configure: Configure) {
    let mut known: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        let now: BTreeMap<Arc<str>, Endpoint> = view
            .current()
            .node
            .children
            .keys()
            .filter_map(|name| Some((name.as_str().into(), configure(endpoint(name)?))))
            .collect();
        // An empty list is more often a fault than a wish, and calls would hang: the last known are kept.
        if !now.is_empty() {
            let gone = known.iter().filter(|name| !now.contains_key(*name)).cloned().map(Change::Remove);
            let come = now.iter().filter(|(name, _)| !known.contains(*name));
            let come = come.map(|(name, endpoint)| Change::Insert(name.clone(), endpoint.clone()));
            for change in come.chain(gone).collect::<Vec<_>>() {
                if changes.send(change).await.is_err() {
                    return;
                }
            }
            known = now.into_keys().collect();
        }
        tokio::select! {
            changed = view.changed() => if let Err(error) = changed {
                tracing::warn!(%error, "a balanced channel does not follow its service any more");
                return changes.closed().await;
            },
            () = changes.closed() => return,
        }
    }
}

/// The address that a name stands for.
fn endpoint(name: &str) -> Option<Endpoint> {
    let (host, port) = name.rsplit_once(':')?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return None;
    }
    Endpoint::from_shared(format!("http://{name}")).ok().map(|endpoint| endpoint.tcp_nodelay(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_addresses_are_left_out() {
        for name in ["server1:22", "10.0.0.1:80", "[::1]:80"] {
            assert!(endpoint(name).is_some(), "{name}");
        }
        for name in ["server1", "server1:ssh", ":22", "a b:22"] {
            assert!(endpoint(name).is_none(), "{name}");
        }
    }
}
