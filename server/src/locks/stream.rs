//! What a lock's stream tells its client.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::id::LockId;
use super::slot::Slot;
use super::terms::until;
use crate::clock;
use crate::contact::Contact;
use crate::error::Error;
use crate::types::FencingToken;

/// Time after which it is looked again whether something may be told that was held back.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a lock's stream tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LockEvent {
    /// The place in the queue; always before `Held`, and again when it has changed, merged and about a second late.
    Queued {
        /// What to release the lock by.
        lock_id: String,
        /// Counted from 1.
        position: u32,
        /// The names of those who hold the lock, the earliest grant first; of very many, the first hundred.
        holders: Vec<String>,
    },
    /// The lock is held, or still held after a `Suspended`.
    Held {
        /// The same as in `Queued`.
        lock_id: String,
        /// The transaction of the grant.
        fencing_token: FencingToken,
        /// How long the lock outlives its stream.
        ttl: Option<Duration>,
        /// How long the client may hear nothing from this replica before another may hold the lock.
        horizon: Option<Duration>,
        /// A `Suspended` follows at once.
        in_doubt: bool,
    },
    /// The lock is held, but there is no fresh evidence of it.
    Suspended {
        /// For how long it is certain still.
        remaining: Duration,
    },
    /// The lock is no longer held; an error follows.
    Lost {
        /// Why.
        reason: LostReason,
    },
}

/// Why a lock is no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostReason {
    /// The ZooKeeper session that carried it is over, or may be.
    SessionLost,
    /// Somebody deleted it in ZooKeeper.
    Removed,
    /// Its client was silent for its ttl.
    Expired,
}

/// A lock's stream. Its drop is the end of the call: the place in the queue, or the lock, is given back in the
/// background; a lock with a ttl that was told as held is kept for as long as that.
#[derive(Debug)]
pub(crate) struct Acquisition {
    slot: Arc<Slot>,
    stream: u64,
    news: watch::Receiver<()>,
    /// Until when the lock that it came back to has to be found to stand.
    deadline: Option<Instant>,
    is_over: bool,
}

impl Acquisition {
    /// A new stream for a lock, which takes over from the one before; `None` when the lock is over. If it was held, and
    /// is not found to stand still before the deadline, the stream ends, and the lock is kept.
    /// `contact`: the connection over which it comes.
    pub(super) fn attach(slot: Arc<Slot>, deadline: Option<Instant>, contact: Option<Contact>) -> Option<Self> {
        let stream = slot.attach(contact)?;
        Some(Self { stream, news: slot.news(), slot, deadline, is_over: false })
    }

    /// A stream that only tells an error.
    pub(super) fn failed(id: LockId, error: Error) -> Self {
        let slot = Slot::new(id, None);
        slot.end(Err(error));
        Self { stream: 0, news: slot.news(), slot, deadline: None, is_over: false }
    }

    /// The next thing to tell. An error is the last item; `None` is the end, and without an error before it says that
    /// the lock was released elsewhere.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready. What it gives counts as told.
    pub(crate) async fn next(&mut self) -> Option<Result<LockEvent, Error>> {
        loop {
            if self.is_over {
                return None;
            }
            self.news.mark_unchanged();
            if let Some(item) = self.slot.take(self.stream, clock::now()) {
                self.is_over = matches!(item, Some(Err(Error::Superseded { .. })));
                return item;
            }
            let look_again = self.is_held_back().then(|| Instant::now() + LOOK_AGAIN);
            tokio::select! {
                biased;
                changed = self.news.changed() => changed.ok()?,
                () = until(look_again) => {}
                () = until(self.deadline) => {
                    self.deadline = None;
                    if self.slot.is_unverified(self.stream) {
                        self.is_over = true;
                        return Some(Err(Error::BackendUnavailable));
                    }
                }
            }
        }
    }
}

impl Acquisition {
    /// Whether nothing may be said now: the client would take it for a sign that the lock is held, for which this replica
    /// can't answer at the moment.
    pub(crate) fn is_held_back(&self) -> bool {
        !self.is_over && self.slot.is_held_back(self.stream, clock::now())
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        self.slot.detach(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::slot::{Order, Vouched};
    use super::*;
    use crate::types::NodePath;

    fn stream() -> (Arc<Slot>, Acquisition) {
        lasting_stream(None)
    }

    fn lasting_stream(ttl: Option<Duration>) -> (Arc<Slot>, Acquisition) {
        let slot = Slot::new(LockId::fresh(&NodePath::trusted("/a")), ttl);
        let acquisition = Acquisition::attach(slot.clone(), None, None).unwrap();
        (slot, acquisition)
    }

    fn lost() -> Error {
        Error::LockLost { path: NodePath::trusted("/a"), cause: "test" }
    }

    fn all(acquisition: &mut Acquisition) -> Vec<&'static str> {
        let mut seen = Vec::new();
        while let Some(item) = acquisition.next().now_or_never() {
            seen.push(match item {
                Some(Ok(LockEvent::Queued { .. })) => "queued",
                Some(Ok(LockEvent::Held { .. })) => "held",
                Some(Ok(LockEvent::Suspended { .. })) => "suspended",
                Some(Ok(LockEvent::Lost { .. })) => "lost",
                Some(Err(_)) => "error",
                None => "end",
            });
            if item.is_none() {
                break;
            }
        }
        seen
    }

    #[tokio::test]
    async fn queued_comes_before_held_and_only_the_latest_place_is_told() {
        let (slot, mut acquisition) = stream();
        slot.queued(2, Arc::default());
        slot.queued(1, Arc::default());
        assert!(slot.held(FencingToken(7)));
        let Some(Ok(LockEvent::Queued { position, .. })) = acquisition.next().await else { panic!("no place") };
        assert_eq!(position, 1);
        assert_eq!(all(&mut acquisition), ["held"]);
        slot.queued(1, Arc::default());
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_doubt_that_passed_unread_is_not_told_and_held_always_precedes_one() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.suspended(Instant::now() + Duration::from_secs(1));
        assert_eq!(all(&mut acquisition), ["queued", "held", "suspended"]);
        assert!(slot.held(FencingToken(7)));
        slot.suspended(Instant::now());
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["held"]);
        slot.suspended(Instant::now());
        assert!(slot.held(FencingToken(7)));
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_lock_that_was_lost_unread_is_never_told_as_held() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.lost(LostReason::SessionLost, lost());
        slot.end(Ok(()));
        assert_eq!(all(&mut acquisition), ["queued", "lost", "error", "end"]);
        assert_eq!(all(&mut acquisition), ["end"]);
    }

    #[tokio::test]
    async fn a_grant_after_the_end_of_the_call_is_not_wanted() {
        let (slot, acquisition) = stream();
        drop(acquisition);
        assert!(!slot.held(FencingToken(7)));
        assert_eq!(slot.ordered().await, Order::Drop);
        slot.give(Order::Release);
        assert_eq!(slot.ordered().await, Order::Drop);
    }

    #[tokio::test]
    async fn waiting_that_is_over_ends_only_what_still_waits() {
        let (slot, mut acquisition) = stream();
        assert!(slot.held(FencingToken(7)));
        slot.end_waiting(lost());
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        let (slot, mut acquisition) = stream();
        slot.end_waiting(lost());
        assert!(!slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["error", "end"]);
        assert_eq!(slot.ordered().await, Order::Drop);
    }

    #[tokio::test]
    async fn a_lock_with_a_ttl_is_kept_only_once_it_was_told_as_held() {
        let (slot, mut acquisition) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        drop(acquisition);
        assert!(matches!(*slot.orders().borrow(), Order::Keep(_)));
        let mut acquisition = Acquisition::attach(slot.clone(), None, None).unwrap();
        assert_eq!(all(&mut acquisition), ["queued"], "told before it was verified");
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["held"]);
        let (slot, acquisition) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(slot.held(FencingToken(7)));
        drop(acquisition);
        assert_eq!(slot.ordered().await, Order::Drop);
        assert!(Acquisition::attach(slot, None, None).is_none());
    }

    #[tokio::test]
    async fn a_stream_that_comes_back_is_told_nothing_that_was_found_out_before() {
        let (slot, mut first) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut first), ["queued", "held"]);
        let looked_at_for = slot.stream();
        drop(first);
        let mut second = Acquisition::attach(slot.clone(), None, None).unwrap();
        slot.still_held(looked_at_for, FencingToken(7));
        slot.still_suspended(looked_at_for, Instant::now());
        assert_eq!(all(&mut second), ["queued"]);
        slot.still_suspended(slot.stream(), Instant::now());
        assert_eq!(all(&mut second), ["held", "suspended"]);
        slot.still_held(slot.stream(), FencingToken(7));
        assert_eq!(all(&mut second), ["held"]);
    }

    #[tokio::test]
    async fn a_later_stream_supersedes_an_earlier_one_and_is_told_everything() {
        let (slot, mut first) = stream();
        slot.queued(1, Arc::default());
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut first), ["queued", "held"]);
        let mut second = Acquisition::attach(slot.clone(), None, None).unwrap();
        assert_eq!(all(&mut first), ["error", "end"]);
        drop(first);
        assert_eq!(*slot.orders().borrow(), Order::Go);
        assert_eq!(all(&mut second), ["queued", "held"]);
        drop(second);
        assert_eq!(slot.ordered().await, Order::Drop);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_can_not_answer_for_is_held_back_until_it_can() {
        const SECOND: Duration = Duration::from_secs(1);
        let contact = Contact::new(10 * SECOND);
        let slot = Slot::new(LockId::fresh(&NodePath::trusted("/a")), None);
        let mut acquisition = Acquisition::attach(slot.clone(), None, Some(contact.clone())).unwrap();
        let vouch = || {
            slot.vouch(Vouched { until: Instant::now() + SECOND, heard_within: 3 * SECOND, horizon: 2 * SECOND });
        };
        vouch();
        tokio::time::advance(2 * SECOND).await;
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["queued"], "the evidence has grown old");
        assert!(acquisition.is_held_back());
        vouch();
        tokio::time::advance(LOOK_AGAIN).await;
        let Some(Ok(LockEvent::Held { horizon, .. })) = acquisition.next().await else { panic!("not held") };
        assert_eq!((horizon, acquisition.is_held_back()), (Some(2 * SECOND), false));
        tokio::time::advance(4 * SECOND).await;
        vouch();
        assert!(acquisition.is_held_back(), "the client is silent");
        contact.note(Instant::now());
        assert!(!acquisition.is_held_back());
        // A doubt is told at once, and what is told with it is certain for no longer.
        slot.suspended(Instant::now() + SECOND);
        let mut second = Acquisition::attach(slot.clone(), None, None).unwrap();
        assert!(matches!(second.next().await, Some(Ok(LockEvent::Queued { .. }))));
        let Some(Ok(LockEvent::Held { in_doubt, .. })) = second.next().await else { panic!("not held") };
        assert_eq!((in_doubt, all(&mut second)), (true, vec!["suspended"]));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_suspension_of_the_machine_nobody_is_told_that_a_lock_is_held() {
        const SECOND: Duration = Duration::from_secs(1);
        let contact = Contact::new(100 * SECOND);
        let slot = Slot::new(LockId::fresh(&NodePath::trusted("/a")), Some(30 * SECOND));
        let mut acquisition = Acquisition::attach(slot.clone(), None, Some(contact.clone())).unwrap();
        slot.vouch(Vouched { until: clock::now() + SECOND, heard_within: 90 * SECOND, horizon: SECOND });
        assert!(slot.held(FencingToken(7)));
        assert!(!acquisition.is_held_back());
        let _suspended = clock::InTest::suspend(60 * SECOND);
        assert!(acquisition.is_held_back());
        assert_eq!(all(&mut acquisition), ["queued"]);
        slot.vouch(Vouched { until: clock::now(), heard_within: 60 * SECOND, horizon: SECOND });
        assert_eq!(all(&mut acquisition), ["held"]);
        let heard = contact.last_heard(clock::now());
        let _again = clock::InTest::suspend(SECOND);
        drop(acquisition);
        assert_eq!(*slot.orders().borrow(), Order::Keep(heard), "the ttl counts from before it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ttl_counts_from_when_the_client_was_last_heard_and_not_from_the_end_of_its_stream() {
        let contact = Contact::new(Duration::from_secs(10));
        let slot = Slot::new(LockId::fresh(&NodePath::trusted("/a")), Some(Duration::from_secs(30)));
        let mut acquisition = Acquisition::attach(slot.clone(), None, Some(contact.clone())).unwrap();
        assert!(slot.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        tokio::time::advance(Duration::from_secs(5)).await;
        let heard = Instant::now();
        contact.note(heard);
        tokio::time::advance(Duration::from_secs(20)).await;
        drop(acquisition);
        assert_eq!(*slot.orders().borrow(), Order::Keep(heard));
    }
}
