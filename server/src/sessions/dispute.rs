//! Registrations whose data another program has overwritten. The holder's data are written again after
//! [`FIRST_REWRITE_PAUSE`], and after a pause that doubles each time that they are overwritten again. So a program that
//! writes its own data back whenever it sees others writes a handful of times, and the data of a program that has died
//! are replaced.
//!
//! Every such write has the guard of all our writes: the session's own fence, and the version that was read before. A
//! later incarnation ends the dispute. A missing node is put back instead. A refusal is tried again. A `set` goes
//! first.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::times::{FIRST_REWRITE_PAUSE, LONGEST_REWRITE_PAUSE};

/// The known writes of other programs into one registration.
#[derive(Debug)]
pub(super) struct Dispute {
    /// When the data are put right; `None` while they are the holder's.
    due: Option<Instant>,
    /// The pause before the last put-right.
    pause: Duration,
    /// When the data were last put right, or found to be right again.
    ended_at: Option<Instant>,
    /// The hash of the data of which the holder was told last.
    told: u64,
}

impl Dispute {
    pub(super) fn new() -> Self {
        Self { due: None, pause: Duration::ZERO, ended_at: None, told: 0 }
    }

    /// These data, which are not the holder's, were read. Returns when they are put right, if that was not known before,
    /// and whether the holder is told of them.
    pub(super) fn overwritten(&mut self, data: &Bytes, now: Instant) -> (Option<Instant>, bool) {
        let hash = hash(data);
        let is_told = self.due.is_some() && self.told == hash;
        self.told = hash;
        if self.due.is_some() {
            return (None, !is_told);
        }
        let is_quiet = self.ended_at.is_none_or(|ended| now >= ended + LONGEST_REWRITE_PAUSE);
        self.pause = if is_quiet { FIRST_REWRITE_PAUSE } else { (self.pause * 2).min(LONGEST_REWRITE_PAUSE) };
        self.due = Some(now + self.pause);
        (self.due, true)
    }

    /// Whether the pause is still the first one.
    pub(super) fn is_young(&self) -> bool {
        self.pause <= FIRST_REWRITE_PAUSE
    }

    /// The data could not be put right. They are tried again after a pause, a longer one if ZooKeeper refused. Returns
    /// the end of the pause.
    pub(super) fn again(&mut self, is_refused: bool, now: Instant) -> Instant {
        if is_refused {
            self.pause = (self.pause * 2).min(LONGEST_REWRITE_PAUSE);
        }
        let due = now + self.pause;
        self.due = Some(due);
        due
    }

    /// The data are the holder's again.
    pub(super) fn end(&mut self, now: Instant) {
        if self.due.take().is_some() {
            self.ended_at = Some(now);
        }
    }

    /// When the data are put right; `None` while they are the holder's.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

fn hash(data: &Bytes) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(data)
}
