//! ZooKeeper's wire protocol: the records of a session and their frames, without any I/O.
//!
//! A frame is a 4-byte big-endian length and that many bytes of jute records. A client opens with a [`ConnectRequest`];
//! every later frame starts with a header: [`RequestHeader`] one way, [`ReplyHeader`] the other. Replies come in the
//! order of the requests; notifications ([`xid::NOTIFICATION`]) and ping replies come between them.
//!
//! A client writes a [`Request`] and reads a [`Response`]; [`server`] is the other side of the same frames.
//!
//! Decoding never panics and never allocates more than the frame holds, whatever the bytes are.
//!
//! Source of the shapes: ZooKeeper's `zookeeper-jute/src/main/resources/zookeeper.jute` (3.9).

mod error_code;
mod jute;
mod records;
mod request;
mod response;
pub mod server;

pub use error_code::ErrorCode;
pub use jute::{Decoder, Encoder, Malformed};
pub use records::{
    Acl, ConnectRequest, ConnectResponse, EventKind, ReplyHeader, RequestHeader, Stat, WatcherEvent, permission,
};
pub use request::{CreateMode, OpCode, Request, WatchMode};
pub use response::Response;

/// Maximum size of a frame that a stock ZooKeeper server accepts, in bytes (`jute.maxbuffer`, 0xfffff, exclusive of
/// one).
pub const MAX_FRAME: usize = 0xf_ffff - 1;

/// Reserved transaction ids of request headers.
pub mod xid {
    /// A watch notification.
    pub const NOTIFICATION: i32 = -1;
    /// A ping and its reply.
    pub const PING: i32 = -2;
    /// An auth packet and its reply.
    pub const AUTH: i32 = -4;
}
