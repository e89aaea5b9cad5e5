//! Pings besides those of HTTP/2's keep-alive, for parts of the server that need a sign of life sooner than the
//! keep-alive asks for one.
//!
//! A client of any language answers a ping by itself, as long as its process runs. The frames are inserted between
//! those of HTTP/2 on their way to the socket, because h2 sends pings only at times of its own. It ignores the answers,
//! with a warning that the server does not log (`main.rs`); only the arrival of bytes matters.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

use super::pace::Http2Frames;
use super::times::PING_CHECK_INTERVAL;
use crate::clock;
use crate::contact::Contact;

/// A PING frame. Its payload differs from those of HTTP/2's own pings.
const PING: [u8; 17] = *b"\x00\x00\x08\x06\x00\x00\x00\x00\x00rollcall";

/// The pings of one connection.
#[derive(Debug)]
pub(super) struct Pings {
    alarm: Option<Pin<Box<Sleep>>>,
    last: Option<Instant>,
    is_due: bool,
    /// Follows the frames that have been written.
    frames: Http2Frames,
    /// Whether anything was written: the first frame of a connection must be HTTP/2's.
    has_begun: bool,
    /// Whether a block of headers is being written, which no other frame may interrupt.
    is_in_headers: bool,
}

impl Pings {
    pub(super) fn new() -> Self {
        let frames = Http2Frames::without_preface();
        Self { alarm: None, last: None, is_due: false, frames, has_begun: false, is_in_headers: false }
    }

    /// Checks whether a ping is due, and wakes the task when the next one is.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, contact: &Contact) {
        let Some(interval) = contact.asked_every(context.waker()) else {
            (self.alarm, self.is_due) = (None, false);
            return;
        };
        loop {
            let now = clock::now();
            let heard = contact.last_heard(now);
            let due = self.last.map_or(heard, |last| last.max(heard)) + interval;
            if due <= now {
                (self.is_due, self.last) = (true, Some(now));
                continue;
            }
            // The runtime's timers do not count a suspension of the machine.
            let look_again = Instant::now() + (due - now).min(PING_CHECK_INTERVAL);
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(look_again)));
            // The alarm is set once an interval, not with each sign of life.
            if alarm.is_elapsed() || alarm.deadline() > look_again {
                alarm.as_mut().reset(look_again);
            }
            if alarm.as_mut().poll(context).is_pending() {
                return;
            }
        }
    }

    /// Notes bytes that HTTP/2 has written.
    pub(super) fn has_written(&mut self, bytes: &[u8]) {
        const HEADERS: u8 = 1;
        const CONTINUATION: u8 = 9;
        const END_HEADERS: u8 = 4;
        let is_in_headers = &mut self.is_in_headers;
        self.has_begun = true;
        self.frames.pass(bytes, |kind, flags, _| {
            if matches!(kind, HEADERS | CONTINUATION) {
                *is_in_headers = flags & END_HEADERS == 0;
            }
        });
    }

    /// The ping that is due, if one may be written now.
    pub(super) fn take(&mut self) -> Option<[u8; 17]> {
        let may = self.is_due && self.has_begun && !self.is_in_headers && self.frames.is_between_two();
        self.is_due &= !may;
        may.then_some(PING)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn look(pings: &mut Pings, contact: &Contact) -> bool {
        pings.poll(&mut Context::from_waker(Waker::noop()), contact);
        pings.take().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_asked_as_often_as_somebody_wants_and_no_other() {
        let (mut pings, contact) = (Pings::new(), Contact::new(10 * SECOND));
        pings.has_written(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        advance(60 * SECOND).await;
        assert!(!look(&mut pings, &contact), "nobody wants it");
        let asking = contact.ask_every(3 * SECOND);
        assert!(look(&mut pings, &contact) && !look(&mut pings, &contact));
        for _ in 0..3 {
            advance(3 * SECOND).await;
            assert!(look(&mut pings, &contact), "though it did not answer");
        }
        advance(2 * SECOND).await;
        contact.note(Instant::now());
        advance(2 * SECOND).await;
        assert!(!look(&mut pings, &contact));
        advance(SECOND).await;
        assert!(look(&mut pings, &contact));
        drop(asking);
        advance(60 * SECOND).await;
        assert!(!look(&mut pings, &contact));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_comes_between_two_frames_and_never_within_headers() {
        let (mut pings, contact) = (Pings::new(), Contact::new(10 * SECOND));
        let _asking = contact.ask_every(SECOND);
        advance(SECOND).await;
        assert!(!look(&mut pings, &contact), "the first frame is HTTP/2's");
        for part in [&[0, 0, 2, 0, 0][..], &[0, 0, 0, 1], &[7], &[7, 0, 0, 1, 1, 0, 0, 0, 0, 1, 9]] {
            pings.has_written(part);
            assert!(!look(&mut pings, &contact), "{part:?}");
        }
        pings.has_written(&[0, 0, 0, 9, 4, 0, 0, 0, 1]);
        assert!(look(&mut pings, &contact), "the headers have ended");
    }
}
