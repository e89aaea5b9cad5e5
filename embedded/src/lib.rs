//! A ZooKeeper-protocol server in memory, in one process: for one machine, for development and for fast tests.
//!
//! It speaks the protocol of ZooKeeper 3.9's clients on a loopback address, and answers as ZooKeeper answers: the same
//! replies, errors, [stats](rollcall_wire::Stat), transaction ids and events, in the same order. Its data are gone when
//! it stops.
//!
//! # What it does not do
//! - More than one server: no ensemble, no observers, no read-only mode. `reconfig` is answered with ReconfigDisabled.
//! - SASL: a step of a login is answered with a null token. TLS, `x509`.
//! - An operation that it does not know is answered with Unimplemented, and its connection closed.
//! - Quotas: nodes below `/zookeeper/quota` are plain nodes.
//! - Anything on disk.
//!
//! # Where it differs from ZooKeeper on purpose
//! - Children come sorted by name, and a session's ephemerals are deleted in the order of their names; ZooKeeper has no
//!   order.
//! - A client that takes a session up without its password does not cut off the connection that has it.
//! - Transaction ids start from the wall clock, so that they do not fall over a restart.
//! - A create with a negative time to live and a mode that has none is refused; ZooKeeper 3.9 does not survive it.
//! - A client that does not read is cut off at a limit, and a multi read whose answer would exceed the limit is
//!   refused.
//!
//! The rules are pure code (`state` and the modules that it uses): it gets the time as an argument, and does no I/O.

mod acl;
mod config;
mod connection;
mod faults;
mod figures;
mod hub;
mod occasional;
mod outbox;
mod path;
mod reads;
mod server;
mod sessions;
mod state;
#[cfg(test)]
mod state_tests;
mod transaction;
mod tree;
mod types;
mod watches;
mod words;

pub use config::Config;
#[cfg(feature = "faults")]
pub use faults::handle::Faults;
pub use server::{BindError, Embedded};
