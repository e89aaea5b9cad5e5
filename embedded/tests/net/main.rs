//! The server over real sockets.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and shows its seed"
)]

mod client;
#[cfg(feature = "faults")]
mod faults;
mod hostile;
mod order;
