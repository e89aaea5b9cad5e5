//! Turns at reading, for connections that send much.
//!
//! HTTP/2 begins calls as fast as it can read them, and each is a task. Beside some forty connections that send calls
//! as fast as they can, a client that asks for little would wait until all calls that these have just begun have had
//! their turn: some hundred milliseconds. So a connection that sends more than [`READ_WITHOUT_TURN`] bytes in
//! [`REFILL`] reads only when it has a turn. There are as many turns as processors. They are given in the order in
//! which they are asked for, and each is passed on behind the tasks that were begun in it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::times::REFILL;

/// Bytes that a connection reads without a turn in [`REFILL`]: some twenty calls.
const READ_WITHOUT_TURN: usize = 2048;
/// Bytes that are read in a turn: some fifty calls, of which a thousand take some ten milliseconds.
const BYTES_PER_TURN: usize = 4096;

/// The turns of all connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Turnstile(Arc<Semaphore>);

/// A connection at the turnstile.
pub(super) struct Visitor {
    turnstile: Turnstile,
    /// The turn, from its arrival until something is read in it.
    turn: Option<OwnedSemaphorePermit>,
    /// A turn that was asked for and has not come.
    coming: Option<Coming>,
    /// Bytes that may be read without a turn, until `since` is [`REFILL`] ago.
    free: usize,
    since: Instant,
}

type Coming = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send + Sync>>;

impl Turnstile {
    /// A turn for each processor.
    pub(crate) fn new() -> Self {
        Self::with(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    fn with(turns: usize) -> Self {
        Self(Arc::new(Semaphore::new(turns)))
    }

    /// A connection that has read nothing yet.
    pub(super) fn visitor(&self) -> Visitor {
        Visitor { turnstile: self.clone(), turn: None, coming: None, free: READ_WITHOUT_TURN, since: Instant::now() }
    }
}

impl Visitor {
    /// Waits until the connection may read; returns the number of bytes that it may read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        if self.since.elapsed() >= REFILL {
            (self.free, self.since) = (READ_WITHOUT_TURN, Instant::now());
        }
        if self.turn.is_some() {
            return Poll::Ready(BYTES_PER_TURN);
        }
        if self.free > 0 {
            self.coming = None;
            return Poll::Ready(self.free);
        }
        let Turnstile(turns) = &self.turnstile;
        let coming = self.coming.get_or_insert_with(|| {
            let turns = turns.clone();
            Box::pin(async move { turns.acquire_owned().await.ok() })
        });
        self.turn = ready!(coming.as_mut().poll(context));
        self.coming = None;
        Poll::Ready(BYTES_PER_TURN)
    }

    /// The connection does not read now. A turn that has come goes to the next connection. This one asks for another
    /// when it reads, for which its task is woken.
    pub(super) fn pass(&mut self, context: &mut Context<'_>) {
        let has_come = self.coming.as_mut().is_some_and(|coming| coming.as_mut().poll(context).is_ready());
        if has_come || self.turn.take().is_some() {
            self.coming = None;
            context.waker().wake_by_ref();
        }
    }

    /// The connection has read `bytes` bytes; zero means that there were none.
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.free = self.free.saturating_sub(bytes);
        let Some(turn) = self.turn.take() else { return };
        if bytes > 0 {
            // The tasks that the bytes begin are queued before this task ends.
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(turn);
            });
        }
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turnstile, turn, coming, free, since } = self;
        let mut shown = formatter.debug_struct("Visitor");
        shown.field("turnstile", turnstile).field("turn", turn).field("is_coming", &coming.is_some());
        shown.field("free", free).field("since", since).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;

    fn may_read(visitor: &mut Visitor) -> bool {
        visitor.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A connection that has just sent much.
    fn busy(turnstile: &Turnstile) -> Visitor {
        // Its allowance comes back in an hour.
        let since = Instant::now() + Duration::from_secs(3600);
        Visitor { free: 0, since, ..turnstile.visitor() }
    }

    async fn until(visitor: &mut Visitor) {
        while !may_read(visitor) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_says_much_waits_for_the_turns_of_others_and_who_says_little_for_nobody() {
        let turnstile = Turnstile::with(1);
        let (mut one, mut other) = (busy(&turnstile), busy(&turnstile));
        assert!(may_read(&mut one));
        assert!(!may_read(&mut other), "there is one turn");
        one.has_read(BYTES_PER_TURN);
        assert!(!may_read(&mut other), "the turn is passed on behind what was begun in it");
        assert!(!may_read(&mut one), "it is the other's turn first");
        until(&mut other).await;
        assert!(!may_read(&mut one));

        let mut quiet = turnstile.visitor();
        assert!(may_read(&mut quiet), "its first bytes are free");
        quiet.has_read(READ_WITHOUT_TURN - 1);
        assert!(may_read(&mut quiet));

        // The connection has found nothing to read, begins nothing, and passes the turn on at once.
        other.has_read(0);
        assert!(may_read(&mut one));
        drop(one);
        assert!(may_read(&mut other), "a connection that ends gives its turn back");
    }

    #[tokio::test]
    async fn who_does_not_come_to_read_passes_its_turn_on() {
        let turnstile = Turnstile::with(1);
        let (mut one, mut other) = (busy(&turnstile), busy(&turnstile));
        assert!(may_read(&mut one) && !may_read(&mut other));
        other.pass(&mut Context::from_waker(Waker::noop()));
        assert!(other.coming.is_some(), "it keeps its place while its turn has not come");
        one.has_read(BYTES_PER_TURN);
        while one.turnstile.0.available_permits() == 0 {
            tokio::task::yield_now().await;
            other.pass(&mut Context::from_waker(Waker::noop()));
        }
        assert!(may_read(&mut one));
        one.pass(&mut Context::from_waker(Waker::noop()));
        assert!(may_read(&mut other));
    }

    #[tokio::test]
    async fn a_connection_that_has_gone_is_not_waited_for() {
        let turnstile = Turnstile::with(1);
        let (mut one, mut gone, mut other) = (busy(&turnstile), busy(&turnstile), busy(&turnstile));
        assert!(may_read(&mut one));
        assert!(!may_read(&mut gone));
        assert!(!may_read(&mut other));
        drop(gone);
        one.has_read(BYTES_PER_TURN);
        until(&mut other).await;
    }

    #[test]
    fn what_is_free_comes_back() {
        let turnstile = Turnstile::with(0);
        let mut visitor = turnstile.visitor();
        visitor.has_read(READ_WITHOUT_TURN);
        visitor.since = Instant::now() - REFILL;
        assert!(may_read(&mut visitor));
        visitor.has_read(READ_WITHOUT_TURN);
        assert!(!may_read(&mut visitor));
    }
}
