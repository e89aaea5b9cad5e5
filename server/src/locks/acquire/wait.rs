//! The waits of an attempt. A final command, or the end of the time to wait, cuts each of them short.

use std::sync::Arc;

use tokio::time::Instant;

use super::handoff::{HandoffOffer, HandoffRecipient};
use super::position;
use crate::budget::Resource;
use crate::locks::outcome::{Outcome, StepError};
use crate::locks::recipe::lock_node::{self, Renewal};
use crate::locks::recipe::own_nodes::OwnNodes;
use crate::locks::recipe::queue_reader::{QueueReader, QueueSnapshot};
use crate::locks::recipe::queue_readers::QueueReaders;
use crate::locks::request::{Terms, Wait};
use crate::locks::stream::state::AcquisitionState;
use crate::locks::timing::{PATIENCE, pause, pool_change, until};
use crate::types::NodePath;
use crate::zk::{self, EventKind, Fired, NoRoom, OneShot, PathReservation, Pool, Session};

/// A watch on a node, or on its children, which the session forgets when this is dropped.
#[derive(Debug)]
pub(super) struct NodeWatch {
    watch: Option<OneShot>,
    session: Session,
    path: NodePath,
}

impl NodeWatch {
    pub(super) fn new(watch: OneShot, session: Session, path: NodePath) -> Self {
        Self { watch: Some(watch), session, path }
    }

    async fn fired(&mut self) -> Fired {
        match &mut self.watch {
            Some(watch) => watch.await.unwrap_or(Fired::ConnectionLost),
            None => Fired::ConnectionLost,
        }
    }
}

impl Drop for NodeWatch {
    fn drop(&mut self) {
        self.watch = None;
        self.session.watches().forget_closed(self.path.as_str());
    }
}

/// Waits until a session has space for an attempt.
pub(super) async fn for_reservation(
    pool: &Pool,
    readers: &QueueReaders,
    terms: &Terms,
    state: &AcquisitionState,
) -> Result<PathReservation, Outcome> {
    let patience = match terms.wait {
        Wait::Forever if state.was_queued() => None,
        Wait::Forever => Instant::now().checked_add(PATIENCE),
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => Some(Instant::now()),
    };
    loop {
        match readers.reserve(&terms.path) {
            Ok(reservation) => return Ok(reservation),
            // A client that had a place before waits for another one.
            Err(NoRoom::Full) if !state.was_queued() => {
                return Err(Outcome::Failed(Resource::PathBytes.exceeded(pool.capacity())));
            }
            Err(_) => {}
        }
        tokio::select! {
            biased;
            _ = state.stopped() => return Err(Outcome::Stopped),
            () = until(patience) => return Err(terms.out_of_time(state.was_queued())),
            () = pool_change(pool) => {}
        }
    }
}

/// The end of a wait for a watch.
#[derive(Debug)]
pub(super) enum Waited {
    /// The watch fired, by this event.
    Fired(EventKind),
    /// A lease was offered.
    Offered(HandoffOffer),
    /// There is a new reading, whose place in the queue the client has to be told.
    Shown(Arc<QueueSnapshot>),
}

/// Waits for a watch, for an offer to `recipient`, and for a new reading.
pub(super) async fn for_event(
    state: &AcquisitionState,
    wait: Wait,
    watch: &mut NodeWatch,
    recipient: Option<&mut HandoffRecipient>,
    reader: &mut QueueReader,
) -> Result<Waited, StepError> {
    let offered = async {
        match recipient {
            Some(recipient) => recipient.take().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        outcome = stopping(state, wait) => Err(outcome.into()),
        fired = watch.fired() => match fired {
            Fired::Event(kind) => Ok(Waited::Fired(kind)),
            Fired::ConnectionLost => Err(zk::Error::NotSent.into()),
        },
        offer = offered => Ok(Waited::Offered(offer)),
        shown = reader.changed() => Ok(Waited::Shown(shown)),
    }
}

/// Waits for an offer to `recipient` until `deadline`.
pub(super) async fn for_handoff(
    state: &AcquisitionState,
    wait: Wait,
    recipient: &mut HandoffRecipient,
    deadline: Instant,
) -> Result<Option<HandoffOffer>, Outcome> {
    tokio::select! {
        biased;
        outcome = stopping(state, wait) => Err(outcome),
        offer = tokio::time::timeout_at(deadline, recipient.take()) => Ok(offer.ok()),
    }
}

/// Waits for ZooKeeper, unless the attempt, which began at `begun`, has to stop first.
pub(super) async fn unless_stopped<T>(
    terms: &Terms,
    state: &AcquisitionState,
    begun: Instant,
    event: impl Future<Output = T>,
) -> Result<T, Outcome> {
    let deadline = match terms.wait {
        Wait::Until(deadline) => Some(deadline),
        Wait::Forever if state.was_queued() => None,
        Wait::Forever | Wait::Try => Some(begun + PATIENCE),
    };
    tokio::select! {
        biased;
        _ = state.stopped() => Err(Outcome::Stopped),
        value = event => Ok(value),
        () = until(deadline) => Err(terms.out_of_time(state.was_queued())),
    }
}

/// Gives back a contender whose digits are no place in the queue, and waits until all other contenders have been
/// served, or have left, and the queue counts from zero again.
///
/// ZooKeeper's sequence numbers end at 2147483647: every later contender gets that number again, and a negative one if
/// another create of the queue is in flight at the same instant. kazoo compares the digits as texts: to kazoo 2.11 each
/// of several equal contenders is the first, and to 2.6 their order is that in which a server happens to list them. So
/// no order of ours would be theirs.
pub(super) async fn for_new_digits(
    nodes: &mut OwnNodes,
    reader: &QueueReader,
    terms: &Terms,
    state: &AcquisitionState,
) -> Result<(), StepError> {
    nodes.leave_queue().await?;
    loop {
        let reading = reader.look().await?;
        if !reading.worn_out {
            return Ok(());
        }
        if reading.queue.len() == 0 {
            match lock_node::renew_queue(nodes.owner(), &terms.path).await? {
                Renewal::Done => return Ok(()),
                Renewal::Busy if !reading.queue_strays => {}
                Renewal::Busy | Renewal::Protected => {
                    let cause = "the sequence numbers of its queue have run out, and the queue can't be replaced";
                    return Err(lock_node::not_a_lock(&terms.path, cause));
                }
            }
        }
        if terms.wait != Wait::Try {
            position::tell_behind(state, &reading, reading.queue.len());
        }
        tokio::select! {
            biased;
            outcome = stopping(state, terms.wait) => return Err(outcome.into()),
            () = pause() => {}
        }
    }
}

/// Waits until an attempt that waits for other clients has to stop.
async fn stopping(state: &AcquisitionState, wait: Wait) -> Outcome {
    let deadline = match wait {
        Wait::Forever => None,
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => return Outcome::Busy,
    };
    tokio::select! {
        biased;
        _ = state.stopped() => Outcome::Stopped,
        () = until(deadline) => Outcome::Busy,
    }
}
