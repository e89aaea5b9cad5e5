//! Faults on command, for tests. Without the feature `faults` nothing can turn them on.

#[cfg(feature = "faults")]
pub(crate) mod handle;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use rollcall_wire::ErrorCode;

/// The faults that are on.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    refusing: AtomicBool,
    delay_ms: AtomicU64,
    lost_replies: AtomicU64,
    refused_writes: AtomicU64,
    refusal: AtomicI32,
}

impl Switches {
    /// Whether new connections are refused.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Time for which replies and events are held back.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))
    }

    /// Whether the reply to the write that is being carried out gets lost.
    pub(crate) fn take_lost_reply(&self) -> bool {
        take_one(&self.lost_replies)
    }

    /// The error with which the next write is answered instead of being carried out, if there is one.
    pub(crate) fn take_refusal(&self) -> Option<ErrorCode> {
        if take_one(&self.refused_writes) { ErrorCode::from_wire(self.refusal.load(Ordering::Relaxed)) } else { None }
    }
}

fn take_one(left: &AtomicU64) -> bool {
    left.load(Ordering::Relaxed) > 0
        && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
