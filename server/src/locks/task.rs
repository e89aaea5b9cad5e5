//! The task of one lock: from the request until none of its nodes is left.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::acquire::attempt::{AcquireContext, Attempt};
use super::acquire::hints::VacancyHint;
use super::hold::stream_lease::{self, StreamLease};
use super::hold::ttl_lease::{Keeper, TtlLease};
use super::outcome::{Outcome, StepError};
use super::recipe::lease_record::Record;
use super::recipe::own_nodes::{Cleared, NodeState, OwnNodes};
use super::release::Releaser;
use super::request::{Terms, Wait};
use super::stream::event::LostReason;
use super::stream::state::{AcquisitionState, Command};
use super::timing::{PATIENCE, pause, until};
use crate::budget::Share;
use crate::error::Error;
use crate::refusal;
use crate::types::{FencingToken, NodePath};
use crate::zk::{self, EphemeralSession, OneShot};

/// Time for which the client's end of a lock is held back, so that no node is left when it is told. A larger value
/// delays the answer while ZooKeeper hangs.
const TIDY: Duration = Duration::from_secs(1);

/// The parts of the replica that the tasks of all locks share.
#[derive(Debug)]
pub(super) struct TaskContext {
    pub(super) acquire: Arc<AcquireContext>,
    pub(super) keeper: Keeper,
    pub(super) releaser: Arc<Releaser>,
}

/// The shares of the limits that a task holds until its end.
#[derive(Debug)]
pub(super) struct TaskPlace {
    pub(super) _lock: Share,
    pub(super) _path: Share,
    pub(super) _task: OwnedSemaphorePermit,
}

/// The task of a lock.
pub(super) struct LockTask {
    pub(super) context: Arc<TaskContext>,
    pub(super) state: Arc<AcquisitionState>,
    pub(super) _place: TaskPlace,
}

impl LockTask {
    /// Takes a new lock, holds it until it ends, and tells the client how.
    pub(super) async fn queue_up(self, terms: Terms) {
        let deadline = match terms.wait {
            Wait::Forever => None,
            // A connection that hangs must not hold back the end.
            Wait::Try => Some(Instant::now() + PATIENCE + TIDY),
            Wait::Until(deadline) => deadline.checked_add(TIDY),
        };
        let mut attempts = pin!(self.attempts(&terms));
        tokio::select! {
            () = &mut attempts => return,
            () = until(deadline) => {}
        }
        self.state.end_waiting(if self.state.was_queued() {
            Error::LockBusy { path: terms.path.clone(), holders: self.state.holders() }
        } else {
            Error::BackendUnavailable
        });
        attempts.await;
    }

    async fn attempts(&self, terms: &Terms) {
        loop {
            let mut attempt = match Attempt::start(&self.context.acquire, terms, &self.state).await {
                Ok(attempt) => attempt,
                Err(Outcome::Retry) => continue,
                Err(outcome) => return self.tell(outcome, self.state.holders()),
            };
            let outcome = match attempt.take().await {
                Ok((token, watch)) => match terms.ttl {
                    None => self.hold(&attempt, token, watch).await,
                    Some(ttl) => {
                        let lease = self.granted(&attempt, token, ttl);
                        // The lease is durable: the path that is reserved in the session is free again.
                        drop(attempt);
                        return self.keep(lease).await;
                    }
                },
                Err(outcome) => outcome,
            };
            let holders = if outcome == Outcome::Busy { attempt.in_the_way().await } else { Vec::new() };
            let (mut nodes, vacancy) = attempt.leave();
            match outcome {
                Outcome::Retry => {
                    nodes.clear().await;
                    continue;
                }
                // A loss must be told at once, and without ZooKeeper there is nothing to wait for.
                Outcome::Removed | Outcome::SessionLost | Outcome::Failed(Error::BackendUnavailable) => {
                    self.tell(outcome, holders);
                    nodes.clear().await;
                    return;
                }
                _ => {}
            }
            let mut clearing = pin!(self.give_back(&mut nodes, vacancy));
            let cleared = tokio::time::timeout(TIDY, &mut clearing).await.is_ok();
            self.tell(outcome, holders);
            if !cleared {
                clearing.await;
            }
            return;
        }
    }

    fn path(&self) -> &NodePath {
        self.state.id().path()
    }

    async fn hold(&self, attempt: &Attempt, token: FencingToken, watch: OneShot) -> Outcome {
        let nodes = attempt.nodes();
        let (path, node, owner) = (self.path().clone(), nodes.lease_path(), nodes.owner().clone());
        stream_lease::hold(&self.state, &StreamLease { path, node, token, owner }, watch).await
    }

    /// Removes the nodes that an attempt may have left. A lease is handed off if the next contender is on this replica.
    async fn give_back(&self, nodes: &mut OwnNodes, vacancy: Option<VacancyHint>) {
        let (context, path) = (&self.context.acquire, self.path());
        if let Some(lease) = nodes.stream_lease() {
            if context.handoffs.offer(path, lease).await {
                nodes.lease = NodeState::Absent;
            } else {
                context.batcher.paused(path);
            }
        }
        if nodes.clear().await == Cleared::Gone
            && let Some(vacancy) = vacancy
            && !context.readers.is_waited_for(path)
        {
            context.hints.set_vacancy(path, vacancy);
        }
    }

    fn granted(&self, attempt: &Attempt, token: FencingToken, ttl: Duration) -> TtlLease {
        let nodes = attempt.nodes();
        let record = Record { path: self.path().clone(), ttl, owner: nodes.owner().id() };
        TtlLease::granted(&self.context.keeper, &self.state, nodes.lease_name(), record, token, nodes.owner())
    }

    /// Keeps a lock with a ttl to its end.
    async fn keep(&self, mut lease: TtlLease) {
        loop {
            let mut outcome = lease.keep().await;
            if outcome == Outcome::Retry {
                outcome = match self.find(Instant::now().checked_add(PATIENCE)).await {
                    Ok(found) => {
                        lease = found;
                        continue;
                    }
                    Err(outcome) => outcome,
                };
            }
            let lost = matches!(outcome, Outcome::Removed | Outcome::SessionLost);
            // A loss must be told at once; then nodes that may be left must not be in the way of other clients.
            self.tell(outcome, Vec::new());
            if lost {
                lease.end().await;
            }
            return;
        }
    }

    /// Comes back to a lock with a ttl that another replica keeps, or has kept.
    pub(super) async fn pick_up(self, deadline: Option<Instant>) {
        match self.find(deadline).await {
            Ok(lease) => self.keep(lease).await,
            Err(outcome) => self.tell(outcome, Vec::new()),
        }
    }

    async fn find(&self, deadline: Option<Instant>) -> Result<TtlLease, Outcome> {
        let mut commands = self.state.commands();
        loop {
            let tried = match self.context.acquire.pool.any() {
                Ok(owner) => self.try_pick_up(&owner, deadline).await,
                Err(error) => Err(error.into()),
            };
            match tried {
                Ok(lease) => return Ok(lease),
                Err(StepError::End(outcome)) => return Err(outcome),
                Err(StepError::Zk(zk::Error::Refused(code))) => {
                    return Err(Outcome::Failed(refusal::refused(self.path(), code)));
                }
                Err(StepError::Zk(_)) => {}
            }
            let gone = async { drop(commands.wait_for(|command| *command != Command::Go).await) };
            tokio::select! {
                () = gone => {
                    if *self.state.commands().borrow() != Command::Release {
                        // The stream has ended. A try whose answer was lost may have picked the lock up.
                        return Err(Outcome::Failed(Error::BackendUnavailable));
                    }
                    let released = self.context.releaser.release(self.state.id()).await;
                    return Err(released.map_or_else(Outcome::Failed, |_| Outcome::Released));
                }
                () = until(deadline) => return Err(Outcome::Failed(Error::BackendUnavailable)),
                () = pause() => {}
            }
        }
    }

    /// One try, carried out to its end: if the connection hangs, only the client is told in time. If ZooKeeper picks
    /// the lock up afterwards, no task has it, and the reaper ends it.
    async fn try_pick_up(&self, owner: &EphemeralSession, deadline: Option<Instant>) -> Result<TtlLease, StepError> {
        let mut picking_up = pin!(TtlLease::pick_up(&self.context.keeper, &self.state, owner));
        tokio::select! {
            picked_up = &mut picking_up => return picked_up,
            () = until(deadline) => {}
        }
        self.state.end(Err(Error::BackendUnavailable));
        drop(picking_up.await);
        Err(Outcome::Failed(Error::BackendUnavailable).into())
    }

    /// Tells the client how its lock ended.
    fn tell(&self, outcome: Outcome, holders: Vec<String>) {
        let (state, path) = (&self.state, self.path().clone());
        match outcome {
            Outcome::Retry | Outcome::Stopped | Outcome::Released | Outcome::Left => state.end(Ok(())),
            // A stream that came back meanwhile came too late.
            Outcome::Expired => state.end(Err(Error::UnknownLock)),
            Outcome::Silent => {
                let cause = "its client was silent for its ttl";
                state.lost(LostReason::Expired, Error::LockLost { path, cause });
            }
            Outcome::Superseded => state.end(Err(Error::Superseded { path })),
            Outcome::Busy => state.end(Err(Error::LockBusy { path, holders })),
            Outcome::Failed(error) => state.end(Err(error)),
            Outcome::Removed => {
                let cause = "another program has deleted its node in zookeeper";
                state.lost(LostReason::Removed, Error::LockLost { path, cause });
            }
            Outcome::SessionLost => {
                let cause = "the zookeeper session that held it has ended, or may have";
                state.lost(LostReason::SessionLost, Error::LockLost { path, cause });
            }
        }
    }
}

impl Drop for LockTask {
    fn drop(&mut self) {
        self.context.keeper.running.remove(&self.state);
        // A task that has not told an end has failed.
        let path = self.path().clone();
        self.state.end(Err(Error::Internal { path, cause: "the task of this lock failed".to_owned() }));
    }
}
