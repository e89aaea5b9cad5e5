//! Bounds the number of connections: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::metrics::Gauge;

/// Number of descriptors that are kept from clients: for ZooKeeper's connections, files, pipes.
const RESERVED_DESCRIPTORS: usize = 256;

/// Maximum number of connections of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// In all.
    pub(crate) in_all: usize,
    /// From one address; with IPv6, from one network of 64 bits, which is what one machine gets.
    pub(crate) per_address: usize,
}

impl Bounds {
    /// Divides the descriptors of the process: gRPC gets three quarters of those that may be used, HTTP the rest, and
    /// neither gets more than was asked for. If a port gets less than was asked for, one address gets a quarter of it
    /// at most.
    pub(crate) fn within(self, descriptors: usize) -> [Self; 2] {
        let free = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(8);
        [free - free / 4, free / 4].map(|most| {
            let share = if most < self.in_all { (most / 4).max(1) } else { self.per_address };
            Self { in_all: most.min(self.in_all), per_address: self.per_address.min(share) }
        })
    }
}

/// Raises the number of descriptors that this process may have to what the system allows, and returns that number.
pub(crate) fn descriptors() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // If this is refused, the old limit stays.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// The limit that a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{0} connections are open (limit: --max-connections, or the number of descriptors)")]
    InAll(usize),
    #[error("{0} connections from this address are open (limit: --max-connections-per-address)")]
    Address(usize),
}

/// Counts connections.
#[derive(Debug, Clone)]
pub(super) struct Places {
    bounds: Bounds,
    taken: Arc<Mutex<Taken>>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The place of one connection, given back on drop.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// `gauge` shows the number of connections.
    pub(super) fn new(bounds: Bounds, gauge: Gauge) -> Self {
        Self { bounds, taken: Arc::default(), gauge }
    }

    pub(super) fn take(&self, address: IpAddr) -> Result<ConnectionPlace, Full> {
        let address = network(address);
        let Bounds { in_all, per_address } = self.bounds;
        let mut taken = self.taken.lock();
        if taken.in_all >= in_all {
            return Err(Full::InAll(in_all));
        }
        let here = taken.by_address.entry(address).or_default();
        if *here >= per_address {
            return Err(Full::Address(per_address));
        }
        *here += 1;
        taken.in_all += 1;
        self.gauge.inc();
        Ok(ConnectionPlace { places: self.clone(), address })
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.in_all -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        self.places.gauge.dec();
    }
}

/// The network that counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_in_all_and_from_one_address() {
        let places = Places::new(Bounds { in_all: 3, per_address: 2 }, Gauge::default());
        let take = |address: &str| places.take(address.parse().unwrap());
        let first = take("10.0.0.1").unwrap();
        let _second = take("::ffff:10.0.0.1").unwrap();
        assert_eq!(take("10.0.0.1").unwrap_err(), Full::Address(2));
        let _third = take("2001:db8::1").unwrap();
        assert_eq!(take("10.0.0.2").unwrap_err(), Full::InAll(3));
        drop(first);
        let _again = take("2001:db8::ffff:0:0:1").unwrap();
        assert_eq!(places.gauge.get(), 3);
        drop(_again);
        drop(_third);
        assert_eq!(places.taken.lock().by_address.len(), 1, "an address that has gone is forgotten");
    }

    #[test]
    fn clients_never_get_the_last_descriptors() {
        let asked = Bounds { in_all: 20_000, per_address: 2_000 };
        let [grpc, http] = asked.within(1024);
        assert_eq!((grpc.in_all, http.in_all), (576, 192));
        assert_eq!((grpc.per_address, http.per_address), (144, 48), "one address leaves places to others");
        assert_eq!(asked.within(0).map(|bounds| (bounds.in_all, bounds.per_address)), [(6, 1), (2, 1)]);
        assert_eq!(asked.within(1_000_000), [asked, asked]);
    }
}
