//! The stream of one AcquireLock call, which takes the news of the lock's task message by message.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::event::LockEvent;
use super::state::AcquisitionState;
use crate::clock;
use crate::contact::Contact;
use crate::error::Error;
use crate::locks::recipe::lock_id::LockId;
use crate::locks::timing::until;

/// Time after which a stream tries again to send a message that was held back. A larger value delays that message.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The stream of a lock. Its drop is the end of the call: the task gives the place in the queue, or the lock, back. A
/// lock with a ttl whose client knows that it holds it is kept for that time.
#[derive(Debug)]
pub(crate) struct Acquisition {
    state: Arc<AcquisitionState>,
    stream: u64,
    news: watch::Receiver<()>,
    /// Time until which the task has to find the lease of a lock to which the client came back.
    deadline: Option<Instant>,
    is_over: bool,
}

impl Acquisition {
    /// A new stream for a lock, which supersedes the earlier ones. `None`: the lock is over. If the client came back to
    /// a lock that it held, and the task does not find the lease before the deadline, the stream ends and the lock is
    /// kept. `contact`: the connection of the call.
    pub(crate) fn attach(
        state: Arc<AcquisitionState>,
        deadline: Option<Instant>,
        contact: Option<Contact>,
    ) -> Option<Self> {
        let stream = state.attach(contact)?;
        Some(Self { stream, news: state.news(), state, deadline, is_over: false })
    }

    /// A stream that sends an error and nothing else.
    pub(crate) fn failed(id: LockId, error: Error) -> Self {
        let state = AcquisitionState::new(id, None);
        state.end(Err(error));
        Self { stream: 0, news: state.news(), state, deadline: None, is_over: false }
    }

    /// The next message. An error is the last item; `None` is the end, and without an error before it says that the
    /// lock was released elsewhere.
    ///
    /// # Cancellation
    /// Safe: nothing is taken before the future is ready. What the future returns counts as sent.
    pub(crate) async fn next(&mut self) -> Option<Result<LockEvent, Error>> {
        loop {
            if self.is_over {
                return None;
            }
            self.news.mark_unchanged();
            if let Some(item) = self.state.take(self.stream, clock::now()) {
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
                    if self.state.is_unverified(self.stream) {
                        self.is_over = true;
                        return Some(Err(Error::BackendUnavailable));
                    }
                }
            }
        }
    }

    /// Whether the stream may send nothing now: the client would take it for a sign that it holds the lock, for which
    /// this replica can't answer at the moment.
    pub(crate) fn is_held_back(&self) -> bool {
        !self.is_over && self.state.is_held_back(self.stream, clock::now())
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        self.state.detach(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::event::LostReason;
    use super::super::state::{Command, Vouched};
    use super::*;
    use crate::types::{FencingToken, NodePath};

    fn stream() -> (Arc<AcquisitionState>, Acquisition) {
        lasting_stream(None)
    }

    fn lasting_stream(ttl: Option<Duration>) -> (Arc<AcquisitionState>, Acquisition) {
        let state = AcquisitionState::new(LockId::fresh(&NodePath::trusted("/a")), ttl);
        let acquisition = Acquisition::attach(state.clone(), None, None).unwrap();
        (state, acquisition)
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
    async fn a_stream_that_came_since_is_not_ended_with_the_one_that_was_superseded() {
        let (state, mut first) = lasting_stream(Some(Duration::from_secs(600)));
        let mut second = Acquisition::attach(state.clone(), None, None).unwrap();
        assert!(!state.end_stream(1, Err(lost())));
        assert_eq!((all(&mut first), all(&mut second)), (vec!["error", "end"], vec![]));
        assert!(state.end_stream(2, Err(lost())));
        assert_eq!(all(&mut second), ["error", "end"]);
        assert!(state.end_stream(1, Err(lost())), "the lock is over for all streams");
    }

    #[tokio::test]
    async fn a_stream_that_came_since_and_has_gone_again_ends_with_the_one_that_was_superseded() {
        let (state, _first) = lasting_stream(Some(Duration::from_secs(600)));
        state.held(FencingToken(1));
        drop(Acquisition::attach(state.clone(), None, None).unwrap());
        assert!(matches!(*state.commands().borrow(), Command::Drop | Command::Keep(_)));
        assert!(state.end_stream(1, Err(lost())), "its client may be at the replica that has the lease now");
    }

    #[tokio::test]
    async fn queued_comes_before_held_and_only_the_latest_place_is_told() {
        let (state, mut acquisition) = stream();
        state.queued(2, Arc::default());
        state.queued(1, Arc::default());
        assert!(state.held(FencingToken(7)));
        let Some(Ok(LockEvent::Queued { position, .. })) = acquisition.next().await else { panic!("no place") };
        assert_eq!(position, 1);
        assert_eq!(all(&mut acquisition), ["held"]);
        state.queued(1, Arc::default());
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_doubt_that_passed_unread_is_not_told_and_held_always_precedes_one() {
        let (state, mut acquisition) = stream();
        assert!(state.held(FencingToken(7)));
        state.suspended(Instant::now() + Duration::from_secs(1));
        assert_eq!(all(&mut acquisition), ["queued", "held", "suspended"]);
        assert!(state.held(FencingToken(7)));
        state.suspended(Instant::now());
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["held"]);
        state.suspended(Instant::now());
        assert!(state.held(FencingToken(7)));
        assert!(all(&mut acquisition).is_empty());
    }

    #[tokio::test]
    async fn a_lock_that_was_lost_unread_is_never_told_as_held() {
        let (state, mut acquisition) = stream();
        assert!(state.held(FencingToken(7)));
        state.lost(LostReason::SessionLost, lost());
        state.end(Ok(()));
        assert_eq!(all(&mut acquisition), ["queued", "lost", "error", "end"]);
        assert_eq!(all(&mut acquisition), ["end"]);
    }

    #[tokio::test]
    async fn a_grant_after_the_end_of_the_call_is_not_wanted() {
        let (state, acquisition) = stream();
        drop(acquisition);
        assert!(!state.held(FencingToken(7)));
        assert_eq!(state.stopped().await, Command::Drop);
        state.give(Command::Release);
        assert_eq!(state.stopped().await, Command::Drop);
    }

    #[tokio::test]
    async fn waiting_that_is_over_ends_only_what_still_waits() {
        let (state, mut acquisition) = stream();
        assert!(state.held(FencingToken(7)));
        state.end_waiting(lost());
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        let (state, mut acquisition) = stream();
        state.end_waiting(lost());
        assert!(!state.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["error", "end"]);
        assert_eq!(state.stopped().await, Command::Drop);
    }

    #[tokio::test]
    async fn a_lock_with_a_ttl_is_kept_only_once_it_was_told_as_held() {
        let (state, mut acquisition) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        drop(acquisition);
        assert!(matches!(*state.commands().borrow(), Command::Keep(_)));
        let mut acquisition = Acquisition::attach(state.clone(), None, None).unwrap();
        assert_eq!(all(&mut acquisition), ["queued"], "told before it was verified");
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["held"]);
        let (state, acquisition) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(state.held(FencingToken(7)));
        drop(acquisition);
        assert_eq!(state.stopped().await, Command::Drop);
        assert!(Acquisition::attach(state, None, None).is_none());
    }

    #[tokio::test]
    async fn a_stream_that_comes_back_is_told_nothing_that_was_found_out_before() {
        let (state, mut first) = lasting_stream(Some(Duration::from_secs(9)));
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut first), ["queued", "held"]);
        let looked_at_for = state.stream();
        drop(first);
        let mut second = Acquisition::attach(state.clone(), None, None).unwrap();
        state.still_held(looked_at_for, FencingToken(7));
        state.still_suspended(looked_at_for, Instant::now());
        assert_eq!(all(&mut second), ["queued"]);
        state.still_suspended(state.stream(), Instant::now());
        assert_eq!(all(&mut second), ["held", "suspended"]);
        state.still_held(state.stream(), FencingToken(7));
        assert_eq!(all(&mut second), ["held"]);
    }

    #[tokio::test]
    async fn a_later_stream_supersedes_an_earlier_one_and_is_told_everything() {
        let (state, mut first) = stream();
        state.queued(1, Arc::default());
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut first), ["queued", "held"]);
        let mut second = Acquisition::attach(state.clone(), None, None).unwrap();
        assert_eq!(all(&mut first), ["error", "end"]);
        drop(first);
        assert_eq!(*state.commands().borrow(), Command::Go);
        assert_eq!(all(&mut second), ["queued", "held"]);
        drop(second);
        assert_eq!(state.stopped().await, Command::Drop);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_can_not_answer_for_is_held_back_until_it_can() {
        const SECOND: Duration = Duration::from_secs(1);
        let contact = Contact::new(10 * SECOND);
        let state = AcquisitionState::new(LockId::fresh(&NodePath::trusted("/a")), None);
        let mut acquisition = Acquisition::attach(state.clone(), None, Some(contact.clone())).unwrap();
        let vouch = || {
            state.vouch(Vouched { until: Instant::now() + SECOND, heard_within: 3 * SECOND, horizon: 2 * SECOND });
        };
        vouch();
        tokio::time::advance(2 * SECOND).await;
        assert!(state.held(FencingToken(7)));
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
        state.suspended(Instant::now() + SECOND);
        let mut second = Acquisition::attach(state.clone(), None, None).unwrap();
        assert!(matches!(second.next().await, Some(Ok(LockEvent::Queued { .. }))));
        let Some(Ok(LockEvent::Held { in_doubt, .. })) = second.next().await else { panic!("not held") };
        assert_eq!((in_doubt, all(&mut second)), (true, vec!["suspended"]));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_suspension_of_the_machine_nobody_is_told_that_a_lock_is_held() {
        const SECOND: Duration = Duration::from_secs(1);
        let contact = Contact::new(100 * SECOND);
        let state = AcquisitionState::new(LockId::fresh(&NodePath::trusted("/a")), Some(30 * SECOND));
        let mut acquisition = Acquisition::attach(state.clone(), None, Some(contact.clone())).unwrap();
        state.vouch(Vouched { until: clock::now() + SECOND, heard_within: 90 * SECOND, horizon: SECOND });
        assert!(state.held(FencingToken(7)));
        assert!(!acquisition.is_held_back());
        let _suspended = clock::InTest::suspend(60 * SECOND);
        assert!(acquisition.is_held_back());
        assert_eq!(all(&mut acquisition), ["queued"]);
        state.vouch(Vouched { until: clock::now(), heard_within: 60 * SECOND, horizon: SECOND });
        assert_eq!(all(&mut acquisition), ["held"]);
        let heard = contact.last_heard(clock::now());
        let _again = clock::InTest::suspend(SECOND);
        drop(acquisition);
        assert_eq!(*state.commands().borrow(), Command::Keep(heard), "the ttl counts from before it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ttl_counts_from_when_the_client_was_last_heard_and_not_from_the_end_of_its_stream() {
        let contact = Contact::new(Duration::from_secs(10));
        let state = AcquisitionState::new(LockId::fresh(&NodePath::trusted("/a")), Some(Duration::from_secs(30)));
        let mut acquisition = Acquisition::attach(state.clone(), None, Some(contact.clone())).unwrap();
        assert!(state.held(FencingToken(7)));
        assert_eq!(all(&mut acquisition), ["queued", "held"]);
        tokio::time::advance(Duration::from_secs(5)).await;
        let heard = Instant::now();
        contact.note(heard);
        tokio::time::advance(Duration::from_secs(20)).await;
        drop(acquisition);
        assert_eq!(*state.commands().borrow(), Command::Keep(heard));
    }
}
