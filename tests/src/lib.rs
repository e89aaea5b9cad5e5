//! The foundation of the tests that cross a process or a network: a real ZooKeeper and an embedded one, a real
//! `rollcall-server`, an independent client of ZooKeeper, its protocol by hand, and a network that fails on command.
//!
//! Nothing here outlives the test program, however it ends: see [`process`].
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and says why on standard error"
)]

pub mod any_bytes;
pub mod arm;
pub mod client;
pub mod console;
pub mod contender;
pub mod crowd;
pub mod embedded;
pub mod fleet;
pub mod follow;
pub mod hand;
pub mod hostile;
pub mod journal;
pub mod kazoo;
pub mod lock_rules;
pub mod machine_lag;
pub mod notification_filter;
pub mod observe;
pub mod page;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod raw_client;
pub mod registrant;
pub mod server;
pub mod shell;
pub mod unread;
pub mod wait;
pub mod zookeeper;
pub mod zookeeper_witness;
