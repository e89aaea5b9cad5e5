//! The Rust client of Rollcall, a service registry and lock service: registrations, lookups, watches and locks.
//!
//! Start a server, `rollcall-server --embedded` for a try, and register:
//!
//! ```no_run
#![doc = include_str!("../examples/register.rs")]
//! ```
//!
//! For as long as the [`Registration`] is kept, the path stays registered. When the replica stops or dies, the client
//! goes on at another replica, and no reader notices. [`Client::connect`] takes several replicas:
//! `"a:7700,b:7700,c:7700"`.
//!
//! # Looking up services
//!
//! [`Client::get`] looks once. [`Client::watch`] follows a path, as a stream of [`Update`]s or as a [`View`] that
//! always shows the present state:
//!
//! ```no_run
#![doc = include_str!("../examples/watch.rs")]
//! ```
//!
//! # Calling a service
//!
//! [`Client::channel`] creates a channel that spreads calls over the registered servers, as they come and go:
//!
//! ```no_run
#![doc = include_str!("../examples/balanced_channel.rs")]
//! ```
//!
//! # Locks
//!
//! [`Client::lock`] queues for a lock. The [`LockGuard`] renews it, knows when it is lost, and then ends the work:
//!
//! ```no_run
#![doc = include_str!("../examples/lock.rs")]
//! ```
//!
//! # Failures
//!
//! | | the replica is restarted, or its connection breaks | no replica can be reached | the program is killed |
//! | --- | --- | --- | --- |
//! | a registration | goes on at another replica, unnoticed | lives for its ttl; then [`Pending`](RegistrationState::Pending), and registered again later | goes after its ttl |
//! | a registration without ttl | created again at another replica; on a restart that drains, unnoticed | goes at once; registered again later | goes at once |
//! | a watch, a view | goes on from the last revision | shows the last state, `stale` | |
//! | a lock | renewed at another replica, same fencing token | [`Lost`](LockState::Lost) after its ttl | released after its ttl |
//! | a lock without ttl | lost | lost | released at once |
//! | a place in a lock's queue | kept if only the connection broke; else a new place, at the end | retried for the client's time-out | given up |
//! | a lookup | asked again elsewhere | [`Error::Unreachable`], or the [cache file](Connect::cache_file), `stale` | |
//! | a write | tried again elsewhere if it was certainly not made, else [`Error::OutcomeUnknown`] | [`Error::Unreachable`] | |
//!
//! # Errors
//!
//! There is one enum, [`Error`]. A refusal of a replica has a stable [`Reason`] to decide by. [`Error::is_retryable`]
//! says whether the same call may well succeed later, [`Error::retry_after`] when.
//!
//! # Features
//!
//! `tls` (default): [`Tls`], with rustls.
//!
//! The name of the package is `rollcall-client`. The command `rollcall` is a package of its own, `rollcall-cli`.

mod background;
mod balance;
mod cache;
mod choice;
mod client;
mod contact;
mod endpoints;
mod error;
mod evict;
mod greeting;
mod link;
mod lock;
mod node;
mod read;
mod register;
mod replicas;
mod scout;
mod seen;
mod status;
mod value;
mod watch;
mod write;

pub use balance::{BalancedChannel, ServiceChannel};
pub use client::{Client, Connect};
pub use contact::Contact;
pub use endpoints::{Endpoints, Tls};
pub use error::{Error, LostReason, Reason, Refusal};
pub use evict::{Evict, Eviction};
pub use lock::{Lock, LockDescription, LockGuard, LockParty, LockState, Place};
pub use node::{Change, Child, Lookup, Node, Stat};
pub use read::Get;
pub use register::{Register, Registration, RegistrationState};
pub use status::{Backend, Counts, ReplicaSessions, ReplicaState, ReplicaStatus, Usage, ZooKeeperSession};
pub use value::Value;
pub use watch::{Update, Updates, View, Watch};
pub use write::{Delete, Put};

/// The generated messages and stubs, for calls that this crate does not cover. Nothing else in this crate exposes them.
pub use rollcall_proto as proto;
