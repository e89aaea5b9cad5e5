//! Rollcall's client.

mod balance;
mod cache;
mod choice;
mod client;
mod endpoints;
mod error;
mod lock;
mod node;
mod read;
mod register;
mod replicas;
mod value;
mod watch;
mod write;

pub use balance::BalancedChannel;
pub use client::{Client, Connect};
pub use endpoints::{Endpoints, Tls};
pub use error::{Error, LostReason, Reason, Refusal};
pub use lock::{Lock, LockDescription, LockGuard, LockParty, LockState, Place};
pub use node::{Change, Child, Node, Stat};
pub use read::{Get, Lookup};
pub use register::{Register, Registration, RegistrationState};
pub use value::Value;
pub use watch::{Update, Updates, View, Watch};
pub use write::{Delete, Put};

/// The generated messages and stubs, for what this crate does not cover. Nothing else of it names them.
pub use rollcall_proto as proto;
