//! Rollcall: a gRPC service registry and lock service in front of ZooKeeper.
//!
//! `ARCHITECTURE.md` says which module may import which, and why.

mod error;
mod grpc;
mod locks;
mod sessions;
mod types;
mod value;
mod views;
mod zk;

pub use zk::{Config as ZooKeeperConfig, parse_connect_string};
