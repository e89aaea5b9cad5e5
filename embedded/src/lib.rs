//! A ZooKeeper-protocol server in memory, in one process: for one machine, for development and for fast tests.
//!
//! It speaks what ZooKeeper 3.9's clients speak, on a loopback address, and answers as ZooKeeper answers: the same
//! replies, errors, [stats](rollcall_wire::Stat), transaction ids and events, in the same order. What it holds is gone when
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
//! - Children come sorted by name, and a session's ephemerals are deleted in the order of their names; ZooKeeper has no order.
//! - Who takes a session up without its password does not cut off whoever has it.
//! - Transaction ids start from the wall clock, so that they do not fall over a restart.
//! - A create with a time to live that is negative, and a mode that has none, is refused; ZooKeeper 3.9 does not survive it.
//! - A client that does not read is cut off at a bound, and a multi read whose answer would pass it is refused.
//!
//! The rules live in pure code (`state` and below): it is handed the time, and does no I/O.

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
pub use faults::Faults;
pub use server::{BindError, Embedded};
