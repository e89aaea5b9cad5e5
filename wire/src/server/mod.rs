//! The server's half: requests as a server reads them, replies as it writes them.
//!
//! It knows every operation of ZooKeeper 3.9's clients, and tells apart what the client half need not: null from empty
//! data, the older from the newer form of an operation.

mod request;
mod response;

pub use request::{CreateKind, Refused, Request, SetWatches, WatcherKind};
pub use response::{Part, Response};
