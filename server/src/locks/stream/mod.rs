//! The news for the client of a lock: the messages, the state that the lock's task and the stream share, and the
//! stream.

pub(super) mod acquisition;
pub(super) mod event;
pub(super) mod state;
