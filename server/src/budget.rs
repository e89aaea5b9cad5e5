//! Limits on what one connection may make this replica hold, and on what all connections may together.
//!
//! Everything that a client can make grow is taken from the [`Account`] of its connection before it grows, and is given
//! back when the [`Share`] is dropped. A share outlives its connection if the object that it is for does: a
//! registration with a ttl counts until it is gone. Nothing here waits: a request over a limit is refused at once.
//!
//! New calls, registrations and values stop at the limit. An open stream needs a little more to go on: its messages and
//! its unread answers may use a reserve above the limit, so that a full account refuses new things and ends no stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::Error;

/// The resources that are counted. The doc of each says what one unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A call under way, unary or a stream, of any service.
    Streams,
    /// A registration that is held or asked for.
    Registrations,
    /// A byte of memory for what a client sent or has not read: values, requests that wait, unread answers.
    Bytes,
    /// A byte of the path of an ephemeral node, as ZooKeeper writes it. Each share is for one path: callers ask for the
    /// path's length, and [`Budget::with_path_overhead`] is added to it.
    PathBytes,
    /// A path that is read or watched, and that no other connection reads.
    Paths,
    /// A lock that is held or waited for.
    Locks,
    /// A byte of memory for a path that is read or watched, and for everything below it. One of the connections that
    /// use the path pays.
    ViewBytes,
}

/// Number of [`Resource`]s.
const RESOURCES: usize = 7;

impl Resource {
    /// All resources, with the names under which metrics show them.
    pub(crate) const ALL: [(Self, &'static str); RESOURCES] = [
        (Self::Streams, "streams"),
        (Self::Registrations, "registrations"),
        (Self::Bytes, "bytes"),
        (Self::PathBytes, "path_bytes"),
        (Self::Paths, "paths"),
        (Self::Locks, "locks"),
        (Self::ViewBytes, "view_bytes"),
    ];

    fn index(self) -> usize {
        self as usize
    }

    /// The error when all connections together are at this limit.
    pub(crate) fn exceeded(self, limit: usize) -> Error {
        self.refused(Whose::Replica, limit)
    }

    fn refused(self, whose: Whose, limit: usize) -> Error {
        let (reason, [connection, replica]) = self.names();
        let what = match whose {
            Whose::Connection => connection,
            Whose::Replica => replica,
        };
        Error::LimitExceeded { reason, what, limit: u64::try_from(limit).unwrap_or(u64::MAX) }
    }

    /// The reason of the error at a limit, and the names of the limit for a connection and for the replica.
    fn names(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Streams => (
                "TOO_MANY_STREAMS",
                ["the number of calls under way of this connection", "the number of calls under way of this replica"],
            ),
            Self::Registrations => (
                "TOO_MANY_REGISTRATIONS",
                ["the number of registrations of this connection", "the number of registrations of this replica"],
            ),
            Self::Bytes => (
                "TOO_MANY_BYTES",
                ["the memory for this connection, in bytes,", "the memory for all connections, in bytes,"],
            ),
            Self::PathBytes => (
                "TOO_MANY_PATH_BYTES",
                [
                    "the size of all registered paths and locks of this connection, in bytes,",
                    "the size of all registered paths and locks of this replica, in bytes,",
                ],
            ),
            Self::Paths => (
                "TOO_MANY_PATHS",
                [
                    "the number of paths that this connection reads and watches",
                    "the number of paths that this replica reads and watches",
                ],
            ),
            Self::Locks => (
                "TOO_MANY_LOCKS",
                [
                    "the number of locks that this connection holds and waits for",
                    "the number of locks that this replica holds and waits for",
                ],
            ),
            Self::ViewBytes => (
                "TOO_MANY_VIEW_BYTES",
                [
                    "the size of all paths that this connection alone reads and watches, in bytes,",
                    "the size of all paths that this replica reads and watches, in bytes,",
                ],
            ),
        }
    }
}

/// The owner of a limit.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Connection,
    Replica,
}

/// How far an amount may grow.
#[derive(Debug, Clone, Copy)]
enum Ceiling {
    /// Up to the limit.
    Limit,
    /// Above the limit by the reserve for open streams.
    Reserve,
    /// Without a bound: the amount is in memory already.
    None,
}

/// The reserve for open streams is a limit divided by this number. A smaller number lets clients hold that much more
/// than the documented limit; with a larger one, streams with large messages are held up more often while the account
/// is full.
const RESERVE_DIVISOR: usize = 8;
/// A connection that holds at most its limit divided by this number is never exhausted, whatever all others hold.
const MODEST: usize = 256;

/// Maximum amount of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// See [`Resource::Streams`].
    pub(crate) streams: usize,
    /// See [`Resource::Registrations`].
    pub(crate) registrations: usize,
    /// See [`Resource::Bytes`].
    pub(crate) bytes: usize,
    /// See [`Resource::PathBytes`].
    pub(crate) path_bytes: usize,
    /// See [`Resource::Paths`].
    pub(crate) paths: usize,
    /// See [`Resource::Locks`].
    pub(crate) locks: usize,
    /// See [`Resource::ViewBytes`].
    pub(crate) view_bytes: usize,
}

impl Limits {
    /// Limits of one connection, unless the operator sets others.
    pub(crate) const CONNECTION: Self = Self {
        streams: 50_000,
        registrations: 100_000,
        bytes: 256 * 1024 * 1024,
        path_bytes: 5 * 1024 * 1024,
        paths: 5_000,
        locks: 10_000,
        view_bytes: 256 * 1024 * 1024,
    };

    /// Limits of all connections together, unless the operator sets others.
    pub(crate) const REPLICA: Self = Self {
        streams: 500_000,
        registrations: 2_000_000,
        bytes: 4 * 1024 * 1024 * 1024,
        path_bytes: 20 * 1024 * 1024,
        paths: 50_000,
        locks: 100_000,
        view_bytes: 1024 * 1024 * 1024,
    };

    /// No limits: for the replica's own work, and for tests.
    pub(crate) const NONE: Self = Self {
        streams: usize::MAX,
        registrations: usize::MAX,
        bytes: usize::MAX,
        path_bytes: usize::MAX,
        paths: usize::MAX,
        locks: usize::MAX,
        view_bytes: usize::MAX,
    };

    fn of(&self, resource: Resource) -> usize {
        match resource {
            Resource::Streams => self.streams,
            Resource::Registrations => self.registrations,
            Resource::Bytes => self.bytes,
            Resource::PathBytes => self.path_bytes,
            Resource::Paths => self.paths,
            Resource::Locks => self.locks,
            Resource::ViewBytes => self.view_bytes,
        }
    }
}

/// Amounts in use, each below its limit.
#[derive(Debug)]
struct Ledger {
    limits: Limits,
    used: [AtomicUsize; RESOURCES],
}

impl Ledger {
    fn new(limits: Limits) -> Self {
        Self { limits, used: Default::default() }
    }

    fn used(&self, resource: Resource) -> usize {
        self.used[resource.index()].load(Ordering::Relaxed)
    }

    /// Adds an amount. Fails with the limit if it does not fit.
    fn add(&self, resource: Resource, amount: usize, ceiling: Ceiling) -> Result<(), usize> {
        let most = self.most(resource, ceiling);
        let fits = |used: usize| used.checked_add(amount).filter(|sum| *sum <= most);
        let added = self.used[resource.index()].fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        added.map(drop).map_err(|_| self.limits.of(resource))
    }

    fn most(&self, resource: Resource, ceiling: Ceiling) -> usize {
        let limit = self.limits.of(resource);
        match ceiling {
            Ceiling::Limit => limit,
            Ceiling::Reserve => limit.saturating_add(limit / RESERVE_DIVISOR),
            Ceiling::None => usize::MAX,
        }
    }

    /// Whether the reserve is used up too.
    fn is_exhausted(&self, resource: Resource) -> bool {
        self.used(resource) > self.most(resource, Ceiling::Reserve)
    }

    fn subtract(&self, resource: Resource, amount: usize) {
        self.used[resource.index()].fetch_sub(amount, Ordering::Relaxed);
    }
}

/// The resources that this replica may hold. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    replica: Arc<Ledger>,
    connection: Limits,
    path_overhead: usize,
    next_id: Arc<AtomicU64>,
}

/// The resources that one connection may hold, and those that it holds. Clones are the same account.
#[derive(Debug, Clone)]
pub(crate) struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    own: Arc<Ledger>,
    replica: Arc<Ledger>,
    path_overhead: usize,
}

/// An amount that was taken from an account, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    account: Account,
    resource: Resource,
    amount: usize,
}

impl Budget {
    /// `connection` limits each connection, `replica` all of them together.
    pub(crate) fn new(connection: Limits, replica: Limits) -> Self {
        Self { replica: Arc::new(Ledger::new(replica)), connection, path_overhead: 0, next_id: Arc::default() }
    }

    /// Counts `bytes` more for each path of [`Resource::PathBytes`]: the chroot, and the length before it.
    pub(crate) fn with_path_overhead(self, bytes: usize) -> Self {
        Self { path_overhead: bytes, ..self }
    }

    /// An account for a new connection.
    pub(crate) fn account(&self) -> Account {
        self.account_within(self.connection)
    }

    /// An account for data that connections share: only the replica's limits apply.
    pub(crate) fn common_account(&self) -> Account {
        self.account_within(Limits::NONE)
    }

    fn account_within(&self, limits: Limits) -> Account {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (own, replica) = (Arc::new(Ledger::new(limits)), self.replica.clone());
        Account(Arc::new(Inner { id, own, replica, path_overhead: self.path_overhead }))
    }

    /// Maximum amount of a resource that all connections may hold together.
    pub(crate) fn limit(&self, resource: Resource) -> usize {
        self.replica.limits.of(resource)
    }

    /// Amount of a resource that all connections hold together.
    pub(crate) fn used(&self, resource: Resource) -> usize {
        self.replica.used(resource)
    }
}

impl Account {
    /// An account without limits.
    pub(crate) fn unlimited() -> Self {
        Budget::new(Limits::NONE, Limits::NONE).account()
    }

    /// Takes an amount.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when this connection, or the replica, would be over its limit. Nothing is taken then.
    pub(crate) fn take(&self, resource: Resource, amount: usize) -> Result<Share, Error> {
        let amount = self.charged(resource, amount);
        self.add(resource, amount, Ceiling::Limit)?;
        Ok(Share { account: self.clone(), resource, amount })
    }

    /// A share of nothing, to be resized.
    pub(crate) fn share(&self, resource: Resource) -> Share {
        Share { account: self.clone(), resource, amount: 0 }
    }

    /// The number of the connection: unique in this process.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// The same connection's account, for amounts that a [`Budget::common_account`] has taken from the replica already:
    /// only the connection's limits apply.
    pub(crate) fn of_connection(&self) -> Self {
        let Inner { id, own, path_overhead, .. } = &*self.0;
        let replica = Arc::new(Ledger::new(Limits::NONE));
        Self(Arc::new(Inner { id: *id, own: own.clone(), replica, path_overhead: *path_overhead }))
    }

    /// Whether the limit and the reserve are used up: this connection's, or the replica's, unless this connection holds
    /// next to nothing. No open stream is read then.
    pub(crate) fn is_exhausted(&self, resource: Resource) -> bool {
        let Inner { own, replica, .. } = &*self.0;
        let is_modest = || own.used(resource) <= own.limits.of(resource) / MODEST;
        own.is_exhausted(resource) || replica.is_exhausted(resource) && !is_modest()
    }

    #[cfg(test)]
    /// Amount of a resource that this connection holds.
    pub(crate) fn used(&self, resource: Resource) -> usize {
        self.0.own.used(resource)
    }

    /// Whether this connection may take `amount` more.
    pub(crate) fn has_room(&self, resource: Resource, amount: usize) -> bool {
        let own = &self.0.own;
        own.used(resource).checked_add(amount).is_some_and(|sum| sum <= own.limits.of(resource))
    }

    fn charged(&self, resource: Resource, amount: usize) -> usize {
        let overhead = if resource == Resource::PathBytes { self.0.path_overhead } else { 0 };
        amount.saturating_add(overhead)
    }

    fn add(&self, resource: Resource, amount: usize, ceiling: Ceiling) -> Result<(), Error> {
        self.add_to_own(resource, amount, ceiling)?;
        self.0.replica.add(resource, amount, ceiling).map_err(|limit| {
            self.0.own.subtract(resource, amount);
            resource.refused(Whose::Replica, limit)
        })
    }

    fn add_to_own(&self, resource: Resource, amount: usize, ceiling: Ceiling) -> Result<(), Error> {
        self.0.own.add(resource, amount, ceiling).map_err(|limit| resource.refused(Whose::Connection, limit))
    }

    fn subtract(&self, resource: Resource, amount: usize) {
        self.0.own.subtract(resource, amount);
        self.0.replica.subtract(resource, amount);
    }
}

impl Share {
    /// Changes the amount.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the new amount is larger and does not fit; the old one then stays.
    pub(crate) fn resize(&mut self, amount: usize) -> Result<(), Error> {
        self.resize_within(amount, Ceiling::Limit)
    }

    /// The same for an open stream: it may use the reserve.
    ///
    /// # Errors
    /// Those of [`resize`](Self::resize).
    pub(crate) fn resize_open(&mut self, amount: usize) -> Result<(), Error> {
        self.resize_within(amount, Ceiling::Reserve)
    }

    /// Sets the amount to one that is in memory already, whether or not it fits.
    pub(crate) fn set(&mut self, amount: usize) {
        // No amount of memory overflows.
        drop(self.resize_within(amount, Ceiling::None));
    }

    fn resize_within(&mut self, amount: usize, ceiling: Ceiling) -> Result<(), Error> {
        let amount = self.account.charged(self.resource, amount);
        if amount > self.amount {
            self.account.add(self.resource, amount - self.amount, ceiling)?;
        } else {
            self.account.subtract(self.resource, self.amount - amount);
        }
        self.amount = amount;
        Ok(())
    }

    /// Like [`resize`](Self::resize), but the replica may be over its limit afterwards; the connection's limit applies.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the new amount is larger and the connection has no room for it.
    pub(crate) fn resize_beyond_replica(&mut self, amount: usize) -> Result<(), Error> {
        let amount = self.account.charged(self.resource, amount);
        if amount > self.amount {
            let more = amount - self.amount;
            self.account.add_to_own(self.resource, more, Ceiling::Limit)?;
            self.account.0.replica.used[self.resource.index()].fetch_add(more, Ordering::Relaxed);
        } else {
            self.account.subtract(self.resource, self.amount - amount);
        }
        self.amount = amount;
        Ok(())
    }

    /// Moves the share to another connection.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when that connection has no room; this one then keeps the share.
    pub(crate) fn move_to(&mut self, account: &Account) -> Result<(), Error> {
        if Arc::ptr_eq(&account.0.replica, &self.account.0.replica) {
            account.add_to_own(self.resource, self.amount, Ceiling::Limit)?;
            self.account.0.own.subtract(self.resource, self.amount);
        } else {
            account.add(self.resource, self.amount, Ceiling::Limit)?;
            self.account.subtract(self.resource, self.amount);
        }
        self.account = account.clone();
        Ok(())
    }

    /// The number of the connection that holds it.
    pub(crate) fn account_id(&self) -> u64 {
        self.account.id()
    }

    /// The amount that is held.
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.subtract(self.resource, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget::new(Limits { streams: 2, bytes: 10, ..Limits::NONE }, Limits { streams: 3, ..Limits::NONE })
    }

    #[test]
    fn a_connection_and_the_replica_have_limits_of_their_own() {
        let budget = budget();
        let (one, other) = (budget.account(), budget.account());
        let shares = [one.take(Resource::Streams, 1).unwrap(), one.take(Resource::Streams, 1).unwrap()];
        let refused = one.take(Resource::Streams, 1).unwrap_err();
        assert_eq!(refused.reason(), "TOO_MANY_STREAMS");
        assert_eq!(refused.to_string(), "the number of calls under way of this connection is at its limit of 2");
        let third = other.take(Resource::Streams, 1).unwrap();
        let refused = other.take(Resource::Streams, 1).unwrap_err();
        assert_eq!(refused.to_string(), "the number of calls under way of this replica is at its limit of 3");
        drop(shares);
        assert!(other.take(Resource::Streams, 1).is_ok(), "what was refused left nothing behind");
        drop(third);
        assert_eq!((budget.used(Resource::Streams), one.used(Resource::Streams)), (0, 0));
    }

    #[test]
    fn a_path_counts_as_zookeeper_writes_it() {
        let budget = Budget::new(Limits { path_bytes: 100, ..Limits::NONE }, Limits::NONE).with_path_overhead(40);
        let account = budget.account();
        let mut share = account.take(Resource::PathBytes, 10).unwrap();
        assert_eq!((share.amount(), account.used(Resource::PathBytes)), (50, 50));
        assert!(account.take(Resource::PathBytes, 11).is_err());
        share.resize(60).unwrap();
        assert_eq!(account.used(Resource::PathBytes), 100);
        drop(share);
        assert_eq!(account.used(Resource::PathBytes), 0);
    }

    #[test]
    fn what_connections_share_counts_once_for_the_replica_and_for_each_of_them() {
        let budget = budget();
        let (one, other) = (budget.account(), budget.account());
        let _shared = budget.common_account().take(Resource::Streams, 2).unwrap();
        let ones = one.of_connection().take(Resource::Streams, 2).unwrap();
        let _others = other.of_connection().take(Resource::Streams, 2).unwrap();
        assert_eq!((budget.used(Resource::Streams), one.used(Resource::Streams)), (2, 2));
        assert!(one.take(Resource::Streams, 1).is_err(), "the connection is at its limit");
        drop(ones);
        assert!(one.take(Resource::Streams, 1).is_ok());
    }

    #[test]
    fn a_share_grows_only_as_far_as_it_fits_and_gives_everything_back() {
        let account = budget().account();
        let mut share = account.take(Resource::Bytes, 4).unwrap();
        share.resize(10).unwrap();
        assert!(share.resize(11).is_err());
        assert!(share.resize(usize::MAX).is_err());
        assert_eq!((share.amount(), account.used(Resource::Bytes)), (10, 10));
        share.resize(1).unwrap();
        assert_eq!(account.used(Resource::Bytes), 1);
        drop(share);
        assert_eq!(account.used(Resource::Bytes), 0);
    }

    #[test]
    fn open_streams_have_a_reserve_and_what_is_in_memory_always_counts() {
        let budget = Budget::new(Limits { bytes: 8_000, ..Limits::NONE }, Limits { bytes: 16_000, ..Limits::NONE });
        let account = budget.account();
        let _full = account.take(Resource::Bytes, 8_000).unwrap();
        let mut share = account.share(Resource::Bytes);
        assert!(share.resize(1).is_err() && share.resize_open(1_001).is_err());
        share.resize_open(1_000).unwrap();
        assert!(!account.is_exhausted(Resource::Bytes));
        share.set(1_001);
        assert!(account.is_exhausted(Resource::Bytes));
        assert_eq!(budget.used(Resource::Bytes), 9_001);
        // Other connections go on until the replica's reserve is used up, and after that if they hold next to nothing.
        let (other, modest) = (budget.account(), budget.account());
        let mut others = other.take(Resource::Bytes, 100).unwrap();
        assert!(!other.is_exhausted(Resource::Bytes));
        share.set(11_000);
        assert!(other.is_exhausted(Resource::Bytes) && !modest.is_exhausted(Resource::Bytes));
        assert!(others.resize_open(101).is_err());
        drop(share);
        assert!(!other.is_exhausted(Resource::Bytes));
    }
}
