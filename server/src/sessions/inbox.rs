//! The inbox of the task: messages of streams, and the streams that are over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::effects::{Input, StreamId};
use super::outbox::Outbox;

/// A message to the task.
#[derive(Debug)]
pub(super) enum Message {
    /// A stream's first message, with the outbox for its client.
    Open {
        input: Input,
        stream: StreamId,
        outbox: Arc<Outbox>,
    },
    Input(Input),
    /// Dropped when nothing is left to be removed.
    Settle(oneshot::Sender<()>),
}

/// Streams that are over. They are reported without waiting, so that it can be done on drop. Bounded by the number of
/// streams.
#[derive(Debug, Default)]
pub(super) struct Departures {
    gone: Mutex<Vec<StreamId>>,
    news: Notify,
    /// Whether the replica goes down: the registrations of a stream then stay, whatever becomes of the stream.
    ignored: AtomicBool,
}

impl Departures {
    /// From now on the end of a stream is not reported.
    pub(super) fn ignore(&self) {
        self.ignored.store(true, Ordering::Release);
    }

    /// Abandons the outbox of a stream that is over, and reports the stream, unless that is ignored.
    pub(super) fn add(&self, stream: StreamId, outbox: &Outbox) {
        if self.ignored.load(Ordering::Acquire) {
            return;
        }
        // In this order, so that the task ignores a first message that it reads later.
        outbox.abandon();
        self.gone.lock().push(stream);
        self.news.notify_one();
    }

    /// Waits until streams are over, and takes them.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready.
    pub(super) async fn next(&self) -> Vec<StreamId> {
        loop {
            let gone = std::mem::take(&mut *self.gone.lock());
            if !gone.is_empty() {
                return gone;
            }
            self.news.notified().await;
        }
    }

    /// Whether all streams that are over have been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.gone.lock().is_empty()
    }
}
