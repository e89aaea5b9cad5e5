//! The server's half: requests as a server reads them, replies as it writes them.
//!
//! It knows every operation of ZooKeeper 3.9's clients, and makes distinctions that the client half does not need:
//! between null and empty data, and between the older and the newer form of an operation.

mod request;
mod response;

pub use request::{CreateKind, Refused, Request, SetWatches, WatcherKind};
pub use response::{Part, Response};
