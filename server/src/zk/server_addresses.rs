//! Resolves the names of ZooKeeper's servers to addresses.
//!
//! A name may have several addresses, and others tomorrow: a headless service of Kubernetes has those of all servers of
//! the ensemble. So names are looked up for each connect, and all addresses count alike.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use rand::seq::SliceRandom as _;

use super::reports::Reports;
use super::times::LOOKUP_TIMEOUT;

/// Maximum number of addresses that are tried in one round, which bounds the round's time. The next round tries others.
const ADDRESSES_PER_ROUND: usize = 16;

/// The attempt, as the log names it.
const LOOK_UP: &str = "to look up its name";

type Lookup = BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// Looks up the addresses of a `HOST:PORT`: the system's resolver, or a test's replacement.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<dyn Fn(&str) -> Lookup + Send + Sync>);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(|host: &str| {
            let host = host.to_owned();
            Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) })
        }))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Resolver").finish()
    }
}

#[cfg(test)]
impl Resolver {
    /// A resolver that calls `lookup`.
    pub(super) fn new(lookup: impl Fn(&str) -> Lookup + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }
}

/// The addresses of the servers that one session knows.
pub(super) struct ServerAddresses {
    resolver: Resolver,
    /// The last answer for each name.
    known: HashMap<String, Vec<SocketAddr>>,
    /// Lookups that were not answered in time. They are waited for again, not started again: each lookup of the system
    /// occupies a thread.
    under_way: HashMap<String, Lookup>,
}

impl ServerAddresses {
    pub(super) fn new(resolver: Resolver) -> Self {
        Self { resolver, known: HashMap::new(), under_way: HashMap::new() }
    }

    /// The addresses of all hosts, looked up again, in a random order; at most [`ADDRESSES_PER_ROUND`] of them. A name
    /// that can't be looked up in time counts with the addresses that it had before.
    pub(super) async fn addresses(&mut self, hosts: &[String], reports: &Reports) -> Vec<SocketAddr> {
        let lookups: Vec<_> = hosts
            .iter()
            .map(|host| {
                let mut lookup = self.under_way.remove(host).unwrap_or_else(|| (self.resolver.0)(host));
                async move {
                    let found = tokio::time::timeout(LOOKUP_TIMEOUT, &mut lookup).await;
                    (host, found, lookup)
                }
            })
            .collect();
        for (host, found, lookup) in join_all(lookups).await {
            match found {
                Ok(Ok(addresses)) if !addresses.is_empty() => drop(self.known.insert(host.clone(), addresses)),
                Ok(Ok(_)) => reports.failed(host, LOOK_UP, &"the name has no address"),
                Ok(Err(error)) => reports.failed(host, LOOK_UP, &error),
                Err(_) => {
                    reports.failed(host, LOOK_UP, &format_args!("no answer after {LOOKUP_TIMEOUT:?}"));
                    self.under_way.insert(host.clone(), lookup);
                }
            }
        }
        let mut addresses: Vec<_> = hosts.iter().filter_map(|host| self.known.get(host)).flatten().copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.shuffle(&mut rand::rng());
        addresses.truncate(ADDRESSES_PER_ROUND);
        addresses
    }

    /// An address for the log, with the name that it was found under.
    pub(super) fn named(&self, address: SocketAddr) -> String {
        let name = self.known.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(name, _)| name.as_str());
        match name {
            Some(name) if name != address.to_string() => format!("{name} ({address})"),
            _ => address.to_string(),
        }
    }

    /// A connection was made: the next connect starts new lookups.
    pub(super) fn connected(&mut self) {
        self.under_way.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use tokio::sync::Notify;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<u16> {
        addresses.sort_unstable();
        addresses.iter().map(SocketAddr::port).collect()
    }

    #[tokio::test]
    async fn all_addresses_of_all_names_count_and_are_looked_up_each_time() {
        let calls = Arc::new(AtomicU16::new(0));
        let counted = calls.clone();
        let mut names = ServerAddresses::new(Resolver::new(move |host| {
            let call = counted.fetch_add(1, Ordering::Relaxed);
            let found = if host == "one" { vec![address(1), address(2)] } else { vec![address(2), address(10 + call)] };
            Box::pin(async move { Ok(found) })
        }));
        let hosts = ["one".to_owned(), "two".to_owned()];
        assert_eq!(sorted(names.addresses(&hosts, &Reports::default()).await), [1, 2, 11]);
        assert_eq!(sorted(names.addresses(&hosts, &Reports::default()).await), [1, 2, 13]);
    }

    #[tokio::test]
    async fn a_name_with_many_addresses_is_tried_some_at_a_time_and_each_in_time() {
        let all: Vec<_> = (1..=64).map(address).collect();
        let mut names = ServerAddresses::new(Resolver::new(move |_| {
            let all = all.clone();
            Box::pin(async move { Ok(all) })
        }));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let some = names.addresses(&["many".to_owned()], &Reports::default()).await;
            assert_eq!(some.len(), ADDRESSES_PER_ROUND);
            seen.extend(some);
        }
        assert_eq!(seen.len(), 64);
    }

    #[tokio::test]
    async fn a_lookup_that_fails_or_hangs_leaves_what_was_known_and_is_not_begun_twice() {
        let calls = Arc::new(AtomicU16::new(0));
        let answer = Arc::new(Notify::new());
        let (counted, answered) = (calls.clone(), answer.clone());
        let mut names = ServerAddresses::new(Resolver::new(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Box::pin(async { Ok(vec![address(1)]) }),
            1 => Box::pin(async { Err(io::Error::other("no such name")) }),
            _ => {
                let answered = answered.clone();
                Box::pin(async move {
                    answered.notified().await;
                    Ok(vec![address(2)])
                })
            }
        }));
        let hosts = ["one".to_owned()];
        for _ in 0..4 {
            assert_eq!(sorted(names.addresses(&hosts, &Reports::default()).await), [1]);
        }
        answer.notify_one();
        assert_eq!(sorted(names.addresses(&hosts, &Reports::default()).await), [2]);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}
