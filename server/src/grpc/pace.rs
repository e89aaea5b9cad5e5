//! Limits how far a connection reads ahead of its own calls.
//!
//! HTTP/2 bounds unread data in bytes, and small messages take far more memory than their bytes. So h2 has a budget for
//! DATA frames that no call has read yet: half of the connection's window, of which a small frame takes 256 bytes. It
//! ends a connection that is over the budget (ENHANCE_YOUR_CALM, "too_many_data_frames"), however honest the client: a
//! client with 20,000 streams sends as many keep-alives at once, and a replica that was stopped finds several of each.
//! h2 never waits for the calls. This module does: with [`MAX_UNREAD`] frames unread the connection is not read until
//! its calls have caught up.
//!
//! The count sets a pace and is not exact. Frames of calls that have ended meanwhile are never read, and nothing
//! reports them. So when the calls have read nothing at [`EQUAL_LOOKS`] looks in a row, the unread frames no longer
//! count: the connection never stops for good. Calls that do not read at all, such as reflection's while its answers
//! are not read, run into h2's budget.

use std::pin::Pin;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep};

use super::times::LOOK_INTERVAL;

/// Maximum number of frames that are read ahead; a quarter of what h2 allows with the window of this server.
const MAX_UNREAD: isize = 4096;
/// Number of unread frames at which reading goes on.
const RESUME_AT: isize = MAX_UNREAD / 2;
/// Number of looks in a row that must find the same count.
const EQUAL_LOOKS: usize = 5;

/// The frames of a connection that have arrived and that no call has read. Shared by the two sides.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    frames: AtomicIsize,
    /// Number of bytes that the calls have read in total; it wraps.
    bytes: AtomicUsize,
    reader: AtomicWaker,
}

impl Unread {
    /// A call has read a frame of `bytes` bytes.
    pub(super) fn is_read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.frames.fetch_sub(1, Ordering::AcqRel) == RESUME_AT + 1 {
            self.reader.wake();
        }
    }

    /// Number of bytes that the calls of the connection have read in total; it wraps.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self) -> isize {
        self.frames.load(Ordering::Acquire)
    }
}

/// The connection's side: the frames that have arrived, and whether more may be read.
#[derive(Debug, Default)]
pub(super) struct ReadPacer {
    frames: Http2Frames,
    pause: Option<Pause>,
}

#[derive(Debug)]
struct Pause {
    alarm: Pin<Box<Sleep>>,
    /// Number of unread frames at the last look, and number of looks that have found the same.
    unread: isize,
    same: usize,
}

impl ReadPacer {
    /// Notes bytes that were read from the socket.
    pub(super) fn has_read(&mut self, bytes: &[u8], unread: &Unread) {
        let mut count = 0;
        // Empty frames are not handed on to calls.
        self.frames.pass(bytes, |kind, _, length| count += isize::from(kind == Http2Frames::DATA && length > 0));
        if count > 0 && unread.frames.fetch_add(count, Ordering::AcqRel) < 0 {
            // Calls have read frames that no longer counted.
            unread.frames.store(count, Ordering::Release);
        }
    }

    /// Waits while too much is unread.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, unread: &Unread) -> Poll<()> {
        let limit = if self.pause.is_some() { RESUME_AT } else { MAX_UNREAD };
        if unread.count() <= limit {
            self.pause = None;
            return Poll::Ready(());
        }
        unread.reader.register(context.waker());
        let now = unread.count();
        let pause =
            self.pause.get_or_insert_with(|| Pause { alarm: Box::pin(sleep(LOOK_INTERVAL)), unread: now, same: 0 });
        while unread.count() > RESUME_AT {
            ready!(pause.alarm.as_mut().poll(context));
            let now = unread.count();
            pause.same = if now == pause.unread { pause.same + 1 } else { 0 };
            pause.unread = now;
            if pause.same == EQUAL_LOOKS {
                unread.frames.store(0, Ordering::Release);
                break;
            }
            pause.alarm.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
        self.pause = None;
        Poll::Ready(())
    }
}

/// Follows the frames of HTTP/2 on a connection. It looks at lengths, types and flags only.
#[derive(Debug)]
pub(super) struct Http2Frames {
    /// Bytes that are still to come of the preface, or of the current frame.
    left: usize,
    header: [u8; Self::HEADER],
    known: usize,
}

impl Http2Frames {
    /// Length of a frame's header: a length of three bytes, a type, flags and a stream.
    const HEADER: usize = 9;
    const PREFACE: usize = 24;
    const DATA: u8 = 0;

    /// For the frames that a server sends; those of a client come after a preface.
    pub(super) fn without_preface() -> Self {
        Self { left: 0, ..Self::default() }
    }

    /// Whether the last byte ended a frame.
    pub(super) fn is_between_two(&self) -> bool {
        self.left == 0 && self.known == 0
    }

    /// Takes the next bytes. Calls `each` with the type, the flags and the length of each frame that begins in them.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u8, usize)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = bytes.len().min(self.left);
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = bytes.len().min(Self::HEADER - self.known);
            self.header[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == Self::HEADER {
                let [high, middle, low, kind, flags, ..] = self.header;
                self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.known = 0;
                each(kind, flags, self.left);
            }
        }
    }
}

impl Default for Http2Frames {
    fn default() -> Self {
        Self { left: Self::PREFACE, header: [0; Self::HEADER], known: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 0, 0, 0, 0, 1][..], &vec![0; usize::from(length)]].concat()
    }

    #[test]
    fn data_frames_are_counted_however_they_come() {
        let bytes = [vec![9; 24], frame(4, 12), frame(1, 70), frame(0, 7), frame(0, 0), frame(0, 200), frame(3, 4)];
        let bytes = bytes.concat();
        for piece in [1, 2, 9, 10, 64, 1000] {
            let (mut pace, unread) = (ReadPacer::default(), Unread::default());
            bytes.chunks(piece).for_each(|piece| pace.has_read(piece, &unread));
            assert_eq!(unread.count(), 2, "by {piece}");
        }
    }

    struct Test {
        unread: Arc<Unread>,
        pace: ReadPacer,
    }

    impl Test {
        fn after(frames: isize) -> Self {
            let mut test = Self { unread: Arc::default(), pace: ReadPacer::default() };
            test.pace.frames.left = 0;
            test.comes(frames);
            test
        }

        fn comes(&mut self, frames: isize) {
            for _ in 0..frames {
                self.pace.has_read(&frame(0, 7), &self.unread);
            }
        }

        async fn may_read(&mut self) {
            poll_fn(|context| self.pace.poll(context, &self.unread)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_its_calls_as_long_as_they_read() {
        let mut test = Test::after(MAX_UNREAD);
        timeout(Duration::ZERO, test.may_read()).await.expect("as much as that may be unread");
        test.comes(1);
        let unread = test.unread.clone();
        let calls = tokio::spawn(async move {
            for _ in 0..=MAX_UNREAD - RESUME_AT {
                sleep(3 * LOOK_INTERVAL).await;
                unread.is_read(7);
            }
        });
        test.may_read().await;
        assert_eq!(test.unread.count(), RESUME_AT);
        calls.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_does_not_wait_for_calls_that_have_ended() {
        let mut test = Test::after(MAX_UNREAD + 1);
        let began = Instant::now();
        test.may_read().await;
        assert_eq!(began.elapsed().as_millis(), 50);
        // Nor does the connection read further ahead if those frames are read after all.
        test.unread.is_read(7);
        test.comes(MAX_UNREAD);
        assert_eq!(test.unread.count(), MAX_UNREAD);
    }
}
