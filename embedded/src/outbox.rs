//! The bytes that a connection has still to write.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rollcall_wire::Encoder;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::state::Effect;

/// Time within which a connection that is closed must read its answers.
const FAREWELL: Duration = Duration::from_secs(5);

/// Replies and events of one connection, in order, as bytes. Bounded: a client that lets more pile up is cut off.
#[derive(Debug)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    /// Notified of every change: more to write, less to write, the end.
    changed: Notify,
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    waiting: Encoder,
    /// Bytes that the writer has taken and not yet written.
    in_flight: usize,
    end: End,
    /// Whether the client knows the flag `readOnly` at the end of the handshake.
    knows_read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    /// The connection ends once everything is written.
    Close,
    /// The connection ends at once.
    Cut,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        let inner = Inner { waiting: Encoder::new(), in_flight: 0, end: End::None, knows_read_only: false };
        Self { inner: Mutex::new(inner), changed: Notify::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The client sent the flag `readOnly`, and expects one.
    pub(crate) fn know_read_only(&self) {
        self.lock().knows_read_only = true;
    }

    /// Adds an effect to the bytes to be written. Effects after the end are dropped.
    pub(crate) fn push(&self, effect: &Effect) {
        let mut inner = self.lock();
        if inner.end != End::None {
            return;
        }
        if inner.unread() > self.limit {
            inner.end = End::Cut;
            tracing::warn!(unread = inner.unread(), "cut off a client that does not read");
        } else {
            inner.add(effect);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Ends the connection without writing the rest.
    pub(crate) fn cut(&self) {
        self.lock().end = End::Cut;
        self.changed.notify_waiters();
    }

    /// Whether the client should read before it gets more answers.
    pub(crate) fn is_congested(&self) -> bool {
        self.lock().unread() > self.limit / 2
    }

    /// Waits until the client has read enough.
    pub(crate) async fn relieved(&self) {
        self.until(|inner| (inner.unread() <= self.limit / 2).then_some(())).await;
    }

    /// Waits until the connection has to end though not everything is written.
    pub(crate) async fn overdue(&self) {
        let end = self.until(|inner| (inner.end != End::None).then_some(inner.end)).await;
        if end == End::Close {
            let cut = self.until(|inner| (inner.end == End::Cut).then_some(()));
            drop(tokio::time::timeout(FAREWELL, cut).await);
        }
    }

    /// Writes the bytes as they come, until the end.
    pub(crate) async fn write_to(
        &self,
        writer: &mut OwnedWriteHalf,
        delay: impl Fn() -> Duration,
    ) -> std::io::Result<()> {
        loop {
            let next = self.until(|inner| {
                if !inner.waiting.is_empty() {
                    inner.in_flight = inner.waiting.len();
                    return Some(Some(inner.waiting.take()));
                }
                (inner.end != End::None).then_some(None)
            });
            let Some(mut bytes): Option<Bytes> = next.await else { return writer.shutdown().await };
            let delay = delay();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            while !bytes.is_empty() {
                writer.write_buf(&mut bytes).await?;
                self.lock().in_flight = bytes.len();
                self.changed.notify_waiters();
            }
        }
    }

    async fn until<T>(&self, mut ready: impl FnMut(&mut Inner) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed between look and wait.
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.lock()) {
                return value;
            }
            changed.await;
        }
    }
}

impl Inner {
    fn unread(&self) -> usize {
        self.waiting.len() + self.in_flight
    }

    fn add(&mut self, effect: &Effect) {
        let knows_read_only = self.knows_read_only;
        match effect {
            Effect::Handshake(response) => self.waiting.frame(|encoder| {
                response.encode(encoder);
                if knows_read_only {
                    encoder.boolean(false);
                }
            }),
            Effect::Reply(header, body) => self.waiting.frame(|encoder| {
                header.encode(encoder);
                body.encode(encoder);
            }),
            Effect::Event(zxid, event) => self.waiting.frame(|encoder| {
                let header =
                    rollcall_wire::ReplyHeader { xid: rollcall_wire::xid::NOTIFICATION, zxid: zxid.0, error: 0 };
                header.encode(encoder);
                event.encode(encoder);
            }),
            Effect::Close => self.end = End::Close,
        }
    }
}
