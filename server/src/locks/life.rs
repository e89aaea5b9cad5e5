//! One lock's task: from the request until nothing of it is left.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{self, Attempt};
use super::id::Mark;
use super::lasting::Lasting;
use super::memory::Vacancy;
use super::record::Record;
use super::seat::{Cleared, Seat, Trace};
use super::slot::{Order, Slot};
use super::terms::{Grant, PATIENCE, Terms, Wait, until};
use super::{Interrupt, LostReason, Shared, Stop, TaskPlace, hold, lock, release, seat};
use crate::error::Error;
use crate::refusal;
use crate::zk::{self, EphemeralSession};

/// How long an end is held back so that no node is left when it is told.
const TIDY: Duration = Duration::from_secs(1);

/// What the task of a lock has.
pub(super) struct Life {
    pub(super) shared: Arc<Shared>,
    pub(super) slot: Arc<Slot>,
    pub(super) mark: Mark,
    /// Its share of the limit.
    pub(super) _place: TaskPlace,
}

impl Life {
    pub(super) async fn queue_up(self, terms: Terms) {
        let deadline = match terms.wait {
            Wait::Forever => None,
            // A connection that hangs under way must not hold back the end.
            Wait::Try => Some(Instant::now() + PATIENCE + TIDY),
            Wait::Until(deadline) => deadline.checked_add(TIDY),
        };
        let mut attempts = pin!(self.attempts(&terms));
        tokio::select! {
            () = &mut attempts => return,
            () = until(deadline) => {}
        }
        self.slot.end_waiting(if self.slot.was_queued() {
            Error::LockBusy { path: terms.path.clone(), holders: self.slot.holders() }
        } else {
            Error::BackendUnavailable
        });
        attempts.await;
    }

    async fn attempts(&self, terms: &Terms) {
        loop {
            let mut attempt = match attempt::start(&self.shared, terms, &self.slot).await {
                Ok(attempt) => attempt,
                Err(Stop::Again) => continue,
                Err(stop) => return self.tell(stop, self.slot.holders()),
            };
            let stop = match attempt.take().await {
                Ok((grant, watch)) => match terms.ttl {
                    None => hold::hold(&attempt, grant, watch).await,
                    Some(ttl) => return self.keep(self.granted(attempt, grant, ttl)).await,
                },
                Err(stop) => stop,
            };
            let holders = if matches!(stop, Stop::Busy) { attempt.in_the_way().await } else { Vec::new() };
            let (mut seat, vacancy) = attempt.leave();
            match stop {
                Stop::Again => {
                    seat.clear().await;
                    continue;
                }
                // What is lost must be told at once, and without ZooKeeper there is nothing to wait for.
                Stop::Removed | Stop::SessionLost | Stop::Failed(Error::BackendUnavailable) => {
                    self.tell(stop, holders);
                    seat.clear().await;
                    return;
                }
                _ => {}
            }
            let mut clearing = pin!(self.give_back(&mut seat, vacancy));
            let cleared = tokio::time::timeout(TIDY, &mut clearing).await.is_ok();
            self.tell(stop, holders);
            if !cleared {
                clearing.await;
            }
            return;
        }
    }

    /// Removes what an attempt may have left. Its lease passes to the next in line at once, if that waits here.
    async fn give_back(&self, seat: &mut Seat, vacancy: Option<Vacancy>) {
        let path = self.slot.id().path();
        if let Some(lease) = seat.stream_lease() {
            if self.shared.heirs.pass_on(path, lease).await {
                seat.lease = Trace::None;
            } else {
                self.shared.groups.paused(path);
            }
        }
        if seat.clear().await == Cleared::Gone
            && let Some(vacancy) = vacancy
            && !self.shared.is_waited_for(path)
        {
            self.shared.vacancies.set(path, vacancy);
        }
    }

    fn granted(&self, attempt: Attempt, grant: Grant, ttl: Duration) -> Lasting {
        let (seat, _) = attempt.leave();
        let record = Record { path: self.slot.id().path().clone(), ttl, owner: seat.owner().id() };
        Lasting::granted(&self.shared, &self.slot, seat.lease_name(), record, grant.token, seat.owner())
    }

    /// Keeps a lock with a ttl to its end.
    async fn keep(&self, mut lasting: Lasting) {
        loop {
            let mut stop = lasting.keep().await;
            if matches!(stop, Stop::Again) {
                stop = match self.find(Instant::now().checked_add(PATIENCE)).await {
                    Ok(found) => {
                        lasting = found;
                        continue;
                    }
                    Err(stop) => stop,
                };
            }
            let lost = matches!(stop, Stop::Removed | Stop::SessionLost);
            // What is lost must be told at once; what may be left of it must not be in the way of others.
            self.tell(stop, Vec::new());
            if lost {
                lasting.end().await;
            }
            return;
        }
    }

    /// Comes back to a lock with a ttl that another replica keeps, or has kept.
    pub(super) async fn pick_up(self, deadline: Option<Instant>) {
        match self.find(deadline).await {
            Ok(lasting) => self.keep(lasting).await,
            Err(stop) => self.tell(stop, Vec::new()),
        }
    }

    async fn find(&self, deadline: Option<Instant>) -> Result<Lasting, Stop> {
        let mut orders = self.slot.orders();
        loop {
            let tried = match self.shared.pool.any() {
                Ok(owner) => self.try_pick_up(&owner, deadline).await,
                Err(error) => Err(error.into()),
            };
            match tried {
                Ok(lasting) => return Ok(lasting),
                Err(Interrupt::Stop(stop)) => return Err(stop),
                Err(Interrupt::Zk(zk::Error::Refused(code))) => {
                    return Err(Stop::Failed(refusal::refused(self.slot.id().path(), code)));
                }
                Err(Interrupt::Zk(_)) => {}
            }
            let gone = async { drop(orders.wait_for(|order| *order != Order::Go).await) };
            tokio::select! {
                () = gone => {
                    if *self.slot.orders().borrow() != Order::Release {
                        // The stream has ended. A try whose answer was lost may have picked the lock up.
                        return Err(Stop::Failed(Error::BackendUnavailable));
                    }
                    let released = release::release(&self.shared, self.slot.id()).await;
                    return Err(released.map_or_else(Stop::Failed, |_| Stop::Released));
                }
                () = until(deadline) => return Err(Stop::Failed(Error::BackendUnavailable)),
                () = seat::pause() => {}
            }
        }
    }

    /// One try, seen to its end: only the client is told in time if the connection hangs. If the lock was picked up
    /// then all the same, it is nobody's, and the reaper ends it.
    async fn try_pick_up(&self, owner: &EphemeralSession, deadline: Option<Instant>) -> Result<Lasting, Interrupt> {
        let mut picking_up = pin!(Lasting::pick_up(&self.shared, &self.slot, owner));
        tokio::select! {
            picked_up = &mut picking_up => return picked_up,
            () = until(deadline) => {}
        }
        self.slot.end(Err(Error::BackendUnavailable));
        drop(picking_up.await);
        Err(Stop::Failed(Error::BackendUnavailable).into())
    }

    fn tell(&self, stop: Stop, holders: Vec<String>) {
        let path = self.slot.id().path().clone();
        match stop {
            Stop::Again | Stop::Ordered | Stop::Released | Stop::Left => self.slot.end(Ok(())),
            // Whoever came back meanwhile came too late.
            Stop::Expired => self.slot.end(Err(Error::UnknownLock)),
            Stop::Silent => {
                let cause = "its client was silent for its ttl";
                self.slot.lost(LostReason::Expired, Error::LockLost { path, cause });
            }
            Stop::Superseded => self.slot.end(Err(Error::Superseded { path })),
            Stop::Busy => self.slot.end(Err(Error::LockBusy { path, holders })),
            Stop::Failed(error) => self.slot.end(Err(error)),
            Stop::Removed => {
                let cause = "its node in zookeeper was deleted by another";
                self.slot.lost(LostReason::Removed, Error::LockLost { path, cause });
            }
            Stop::SessionLost => {
                let cause = "the zookeeper session that carried it is over, or may be";
                self.slot.lost(LostReason::SessionLost, Error::LockLost { path, cause });
            }
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut running = lock(&self.shared.running);
        if running.get(&self.mark).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot)) {
            running.remove(&self.mark);
        }
        drop(running);
        if self.slot.may_leave_a_lease() {
            self.shared.orphaned.notify_one();
        }
        // Only a task that failed has not told an end.
        let path = self.slot.id().path().clone();
        self.slot.end(Err(Error::Internal { path, cause: "the task of this lock failed".to_owned() }));
    }
}
