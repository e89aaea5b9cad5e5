//! Rollcall: a gRPC service registry and lock service in front of ZooKeeper.
//!
//! `ARCHITECTURE.md` says which module may import which, and why.

mod app;
mod budget;
mod cli;
mod clock;
mod compute;
mod config;
mod contact;
mod drain;
mod durable;
mod error;
mod evictions;
mod grpc;
mod listen;
mod lock_nodes;
mod locks;
mod metrics;
mod refusal;
mod sessions;
mod shared_bytes;
mod spare;
mod standing;
mod turns;
mod types;
mod value;
mod views;
mod zk;

pub use app::{App, Settings};
pub use cli::Args;
pub use config::{ConfigError, Options};
