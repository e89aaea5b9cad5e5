//! Standing in the queue: who is ahead, what the client is told, and when there is room.

use std::sync::Arc;

use super::attempt::Attempt;
use super::board::{Board, Snapshot};
use super::heir::Bequest;
use super::memory::Number;
use super::node::Renewal;
use super::queue::{self, Contender, Digits, NEAR, contender_name};
use super::seat::{self, Trace};
use super::slot::Slot;
use super::terms::{Wait, until};
use super::{Interrupt, Stop, node};
use crate::types::{NodePath, Zxid};
use crate::zk::{self, EventKind, Fired, OneShot};

/// Where the contender stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    First,
    Behind(String),
    /// It is not in the queue.
    Gone,
}

/// What the first of the queue finds.
#[derive(Debug)]
pub(super) enum Room {
    /// One more lease fits.
    Free,
    /// A lease may be replaced.
    Left(Bequest),
    /// Look again.
    Unclear,
}

/// What ended a wait.
#[derive(Debug)]
enum Waited {
    /// The watch, by this event.
    Fired(EventKind),
    /// A lease that may be replaced.
    Left(Bequest),
    /// Look again.
    Unclear,
}

impl Attempt {
    /// The contender was not found: unless it stands after all, says who has deleted it.
    pub(super) async fn look_for(&mut self, contender: &NodePath) -> Result<(), Interrupt> {
        let session = self.session();
        // A session that is over has lost its contenders to nobody. Its leader knows, and does not answer this.
        session.sync(self.seat.queue()).await?;
        let (stat, queue) =
            futures_util::future::join(session.exists(contender), session.exists(self.seat.queue())).await;
        if stat?.is_some() {
            return Ok(());
        }
        self.seat.contender = Trace::None;
        // Whoever releases through Rollcall writes the queue's node in the same transaction.
        let written = queue?.map(|stat| Zxid(stat.mzxid));
        let released = self.queue_written.is_some() && written != self.queue_written;
        Err(if released { Stop::Released } else { Stop::Removed }.into())
    }

    /// Who is the next ahead. Nobody ever comes in ahead of one who waits, so those that an older reading of the same
    /// session has ahead are all that can be.
    ///
    /// Of late digits that is not true: whoever comes when the numbers have run out may come in ahead, if it does not know
    /// that they are no place. So each look is a new one.
    pub(super) async fn turn(&mut self, contender: &str, digits: Digits) -> Result<Turn, Interrupt> {
        let recent = self.board().recent();
        if digits == Digits::Sure
            && let Some(ahead) = recent.queue.ahead_of(contender)
            && ahead.len() <= NEAR
        {
            self.queue_written = recent.queue_written;
            self.check_reading(&recent).await?;
            return self.look_ahead(ahead).await;
        }
        // Who only tries is told who holds the lock now.
        let joined = if self.terms.wait == Wait::Try { None } else { self.board().join(contender) };
        let reading = match joined {
            Some(joined) => joined,
            None => self.board().look().await?,
        };
        let Some(ahead) = reading.queue.ahead_of(contender) else { return Ok(Turn::Gone) };
        self.queue_written = reading.queue_written;
        self.check_reading(&reading).await?;
        Ok(ahead.last().map_or(Turn::First, |ahead| Turn::Behind(ahead.name.clone())))
    }

    /// The sequence numbers of the queue have run out: what ZooKeeper has given is no place. Gives it back, and waits until
    /// the places that there are have been served, or left, and the queue counts from zero again.
    pub(super) async fn wait_for_new_digits(&mut self) -> Result<(), Interrupt> {
        self.seat.leave_queue().await?;
        loop {
            let reading = self.board().look().await?;
            if !reading.worn_out {
                return Ok(());
            }
            if reading.queue.len() == 0 {
                match self.renew_queue().await? {
                    Renewal::Done => return Ok(()),
                    Renewal::Busy if !reading.queue_strays => {}
                    Renewal::Busy | Renewal::Protected => {
                        let cause = "the sequence numbers of its queue have run out, and the queue can't be replaced";
                        return Err(node::not_a_lock(&self.terms.path, cause));
                    }
                }
            }
            if self.terms.wait != Wait::Try {
                let position = u32::try_from(reading.queue.len().saturating_add(1)).unwrap_or(u32::MAX);
                self.slot.queued(position, reading.holders.clone());
            }
            let stopped = stopping(&self.slot, self.terms.wait);
            tokio::select! {
                biased;
                stop = stopped => return Err(stop.into()),
                () = seat::pause() => {}
            }
        }
    }

    /// Has the queue count from zero again, if nobody is in it. Whoever may not do that goes on as if somebody were.
    pub(super) async fn renew_queue(&self) -> Result<Renewal, Interrupt> {
        match node::renew_queue(self.seat.owner(), &self.terms.path).await {
            Err(zk::Error::Refused(code)) => {
                tracing::warn!(path = %self.terms.path, %code, "zookeeper refuses to replace a lock's queue");
                Ok(Renewal::Protected)
            }
            renewal => Ok(renewal?),
        }
    }

    async fn look_ahead(&self, ahead: &[Contender]) -> Result<Turn, Interrupt> {
        // The one whose end has woken us is the last of them, and often the only one.
        let ahead = match ahead {
            [others @ .., last] if self.gone.as_ref() == Some(&last.name) => others,
            all => all,
        };
        if ahead.is_empty() {
            return Ok(Turn::First);
        }
        let paths: Vec<_> = ahead.iter().map(|contender| self.seat.queue().join(&contender.name)).collect();
        let reads = self.session().get_many(paths.iter().map(NodePath::as_str)).await?;
        let next = reads.iter().rposition(|read| !matches!(read, Ok(None)));
        Ok(next.map_or(Turn::First, |index| Turn::Behind(ahead[index].name.clone())))
    }

    /// What a reading says of the lock node.
    async fn check_reading(&mut self, reading: &Snapshot) -> Result<(), Interrupt> {
        if reading.strays {
            return Err(node::not_a_lock(&self.terms.path, "it has durable children that are no leases"));
        }
        self.check_number(reading.lock).await
    }

    async fn check_number(&mut self, written: Option<Zxid>) -> Result<(), Interrupt> {
        if written.is_none() || written != self.checked {
            self.check_node().await?;
        }
        Ok(())
    }

    /// Makes sure that the lock node stands and has our number.
    pub(super) async fn check_node(&mut self) -> Result<Zxid, Interrupt> {
        let (path, limit) = (&self.terms.path, self.terms.limit);
        let records = !self.shared.idle.is_zero();
        let checked = node::check(self.seat.owner(), path, limit, records).await?;
        self.shared.numbers.set(path, Number { limit, written: checked });
        self.checked = Some(checked);
        Ok(checked)
    }

    /// The last reading, if the contender stood in it.
    fn reading(&self) -> Option<(Arc<Snapshot>, usize)> {
        let reading = self.board.as_ref()?.recent();
        let ahead = reading.queue.ahead_of(self.seat.contender_path()?.name())?.len();
        Some((reading, ahead))
    }

    /// Tells the client its place, as the last reading has it. Who only tries is told one place: that before the lock.
    pub(super) fn announce(&self) {
        if self.terms.wait != Wait::Try {
            self.tell_place();
        }
    }

    pub(super) fn tell_place(&self) {
        let Some((reading, ahead)) = self.reading() else { return };
        let ahead = if self.first { 0 } else { ahead };
        let position = u32::try_from(ahead.saturating_add(1)).unwrap_or(u32::MAX);
        self.slot.queued(position, reading.holders.clone());
    }

    /// Waits until the one that is next ahead is gone.
    pub(super) async fn wait_behind(&mut self, name: &str) -> Result<(), Interrupt> {
        let ahead = self.seat.queue().join(name);
        let (stat, watch) = self.session().watch_exists(&ahead).await?;
        if stat.is_none() {
            self.gone = Some(name.to_owned());
            return Ok(());
        }
        let waited = self.wait(watch).await;
        if waited.is_err() {
            self.session().watches().forget_closed(ahead.as_str());
        }
        if let Waited::Fired(EventKind::Deleted) = waited? {
            self.gone = Some(name.to_owned());
        }
        // Most likely we are the first now. To find out takes a while, in which the lock may be released already.
        self.expect_a_bequest();
        Ok(())
    }

    /// Waits, as the first of the queue, until a lease is free or left to us.
    pub(super) async fn wait_for_room(&mut self) -> Result<Room, Interrupt> {
        let path = self.terms.path.clone();
        if let Some((reading, 0)) = self.reading()
            && reading.lock.is_some()
            && reading.lock == self.checked
            && reading.leases.is_some_and(|leases| queue::may_take(self.terms.limit, leases))
        {
            // While we were the first there was room, and only the first takes any.
            return Ok(Room::Free);
        }
        self.announce();
        if let Some(bequest) = self.bequest_soon().await? {
            return Ok(Room::Left(bequest));
        }
        let (children, watch) = self.session().watch_children(&path).await?;
        let Some((names, stat)) = children else {
            self.checked = None;
            self.check_number(None).await?;
            return Ok(Room::Unclear);
        };
        self.check_number(Some(Zxid(stat.mzxid))).await?;
        if queue::may_take(self.terms.limit, names.len()) {
            drop(watch);
            self.session().watches().forget_closed(path.as_str());
            return Ok(Room::Free);
        }
        let waited = self.wait(watch).await;
        self.session().watches().forget_closed(path.as_str());
        Ok(match waited? {
            Waited::Left(bequest) => Room::Left(bequest),
            Waited::Fired(_) | Waited::Unclear => Room::Unclear,
        })
    }

    /// A lease that is left to us very soon, where the lock changes hands fast: that needs no watch. Where several may
    /// hold the lock there may be room as well, and who only tries does not wait.
    async fn bequest_soon(&mut self) -> Result<Option<Bequest>, Interrupt> {
        if self.terms.limit > 1 || self.terms.wait == Wait::Try {
            return Ok(None);
        }
        let next_until = self.shared.groups.next_until(&self.terms.path, self.session().id());
        let (Some(until), Some(heir)) = (next_until, &mut self.heir) else { return Ok(None) };
        let stopped = stopping(&self.slot, self.terms.wait);
        tokio::select! {
            biased;
            stop = stopped => Err(stop.into()),
            bequest = tokio::time::timeout_at(until, heir.bequest()) => Ok(bequest.ok()),
        }
    }

    /// Waits for a watch, or, as the first, for a lease that is left to us; tells the client what changes meanwhile.
    async fn wait(&mut self, mut watch: OneShot) -> Result<Waited, Interrupt> {
        enum Woken {
            Watch(Fired),
            Shown(Arc<Snapshot>),
            Left(Bequest),
        }
        self.board();
        loop {
            let woken = {
                let Some(board) = &mut self.board else { return Ok(Waited::Unclear) };
                let heir = &mut self.heir;
                let left = async {
                    match heir {
                        Some(heir) => heir.bequest().await,
                        None => std::future::pending().await,
                    }
                };
                let event = async {
                    tokio::select! {
                        biased;
                        fired = &mut watch => Woken::Watch(fired.unwrap_or(Fired::ConnectionLost)),
                        bequest = left => Woken::Left(bequest),
                        shown = board.changed() => Woken::Shown(shown),
                    }
                };
                let stopped = stopping(&self.slot, self.terms.wait);
                tokio::select! {
                    biased;
                    stop = stopped => return Err(stop.into()),
                    woken = event => woken,
                }
            };
            match woken {
                Woken::Watch(Fired::Event(kind)) => return Ok(Waited::Fired(kind)),
                Woken::Left(bequest) => return Ok(Waited::Left(bequest)),
                Woken::Watch(Fired::ConnectionLost) => return Err(zk::Error::NotSent.into()),
                Woken::Shown(shown) => {
                    let Some(contender) = self.seat.contender_path() else { return Ok(Waited::Unclear) };
                    if shown.queue.ahead_of(contender.name()).is_some() {
                        self.queue_written = shown.queue_written;
                        self.announce();
                    } else {
                        self.look_for(&contender).await?;
                    }
                }
            }
        }
    }

    /// Who keeps the lock from us: the holders last told, or else the first of the queue, who is about to take it.
    pub(super) async fn in_the_way(&self) -> Vec<String> {
        let Some(reading) = self.board.as_ref().map(Board::recent) else { return self.slot.holders() };
        let holders = reading.holders.to_vec();
        let Some(first) = reading.queue.names().next().filter(|_| holders.is_empty()) else { return holders };
        let first = self.seat.queue().join(first);
        match self.session().get(&first).await {
            Ok(Some(read)) => vec![contender_name(&read.data)],
            _ => holders,
        }
    }
}

async fn stopping(slot: &Slot, wait: Wait) -> Stop {
    let deadline = match wait {
        Wait::Forever => None,
        Wait::Until(deadline) => Some(deadline),
        Wait::Try => return Stop::Busy,
    };
    tokio::select! {
        biased;
        _ = slot.ordered() => Stop::Ordered,
        () = until(deadline) => Stop::Busy,
    }
}
