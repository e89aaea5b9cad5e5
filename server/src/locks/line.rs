//! Standing in the queue: who is ahead, what the client is told, and when there is room.

use std::sync::Arc;

use super::attempt::Attempt;
use super::board::Snapshot;
use super::heir::Bequest;
use super::queue::{self, Contender, NEAR, contender_name};
use super::seat::Trace;
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

impl Attempt {
    /// Has us told when the contender is deleted by others.
    pub(super) async fn watch_place(&mut self, contender: &NodePath) -> Result<(), Interrupt> {
        if self.place.is_none() {
            let (stat, watch) = self.session().watch_exists(contender).await?;
            if stat.is_none() {
                self.seat.contender = Trace::None;
                return Err(Stop::Removed.into());
            }
            self.place = Some(watch);
        }
        Ok(())
    }

    /// The contender was found gone; a watch on it says by whom.
    pub(super) async fn place_gone(&mut self, contender: &NodePath) -> Result<(), Interrupt> {
        match self.place.take().map(|mut watch| watch.try_recv()) {
            Some(Ok(fired)) => self.place_fired(fired).await,
            _ => self.watch_place(contender).await,
        }
    }

    /// What the watch on the contender means when it has fired.
    async fn place_fired(&mut self, fired: Fired) -> Result<(), Interrupt> {
        self.place = None;
        let Some(contender) = self.seat.contender_path() else { return Ok(()) };
        match fired {
            Fired::ConnectionLost => Err(zk::Error::NotSent.into()),
            Fired::Event(kind) => {
                // Whoever releases through Rollcall writes it before deleting it.
                let (stat, watch) = self.session().watch_exists(&contender).await?;
                if stat.is_some() {
                    self.place = Some(watch);
                    return Ok(());
                }
                self.seat.contender = Trace::None;
                Err(if kind == EventKind::DataChanged { Stop::Released } else { Stop::Removed }.into())
            }
        }
    }

    /// Who is the next ahead. Nobody ever comes in ahead of one who waits, so those that an older reading of the same
    /// session has ahead are all that can be.
    pub(super) async fn turn(&mut self, contender: &str) -> Result<Turn, Interrupt> {
        let recent = self.board().recent();
        let known = if recent.queue.ahead_of(contender).is_some() { Some(recent) } else { self.reading.clone() };
        if let Some(known) = known
            && let Some(ahead) = known.queue.ahead_of(contender)
            && ahead.len() <= NEAR
        {
            self.check_reading(&known).await?;
            self.reading = Some(known.clone());
            return self.look_ahead(ahead).await;
        }
        let reading = self.board().look().await?;
        self.check_reading(&reading).await?;
        let turn = match reading.queue.ahead_of(contender) {
            None => Turn::Gone,
            Some([]) => Turn::First,
            Some([.., ahead]) => Turn::Behind(ahead.name.clone()),
        };
        self.reading = Some(reading);
        Ok(turn)
    }

    async fn look_ahead(&self, ahead: &[Contender]) -> Result<Turn, Interrupt> {
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
            self.checked = Some(node::check(&self.session(), &self.terms.path, self.terms.limit).await?);
        }
        Ok(())
    }

    /// Tells the client its place, as the last reading has it. Who only tries is told one place: that before the lock.
    pub(super) fn announce(&self) {
        if self.terms.wait != Wait::Try {
            self.tell_place();
        }
    }

    pub(super) fn tell_place(&self) {
        let (Some(contender), Some(reading)) = (self.seat.contender_path(), &self.reading) else { return };
        if let Some(ahead) = reading.queue.ahead_of(contender.name()) {
            let ahead = if self.first { 0 } else { ahead.len() };
            let position = u32::try_from(ahead.saturating_add(1)).unwrap_or(u32::MAX);
            self.slot.queued(position, reading.holders.clone());
        }
    }

    /// Waits until the one that is next ahead is gone.
    pub(super) async fn wait_behind(&mut self, ahead: &str) -> Result<(), Interrupt> {
        let ahead = self.seat.queue().join(ahead);
        let (stat, watch) = self.session().watch_exists(&ahead).await?;
        if stat.is_none() {
            return Ok(());
        }
        let waited = self.wait(watch).await;
        if waited.is_err() {
            self.session().watches().forget_closed(ahead.as_str());
        }
        waited?;
        // Most likely we are the first now. To find out takes a while, in which the lock may be released already.
        self.expect_a_bequest();
        Ok(())
    }

    /// Waits, as the first of the queue, until a lease is free or left to us.
    pub(super) async fn wait_for_room(&mut self, contender: &NodePath) -> Result<Room, Interrupt> {
        let path = self.terms.path.clone();
        if let Some(reading) = &self.reading
            && reading.lock.is_some()
            && reading.lock == self.checked
            && reading.queue.names().next() == Some(contender.name())
            && queue::may_take(self.terms.limit, reading.leases)
        {
            // While we were the first there was room, and only the first takes any.
            return Ok(Room::Free);
        }
        self.watch_place(contender).await?;
        self.announce();
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
        Ok(waited?.map_or(Room::Unclear, Room::Left))
    }

    /// Waits for a watch, or, as the first, for a lease that is left to us; tells the client what changes meanwhile.
    async fn wait(&mut self, mut watch: OneShot) -> Result<Option<Bequest>, Interrupt> {
        enum Woken {
            Watch(Fired),
            Place(Fired),
            Shown(Arc<Snapshot>),
            Left(Bequest),
        }
        self.board();
        loop {
            let woken = {
                let (Some(place), Some(board)) = (&mut self.place, &mut self.board) else { return Ok(None) };
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
                        fired = place => Woken::Place(fired.unwrap_or(Fired::ConnectionLost)),
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
                Woken::Watch(Fired::Event(_)) => return Ok(None),
                Woken::Left(bequest) => return Ok(Some(bequest)),
                Woken::Watch(Fired::ConnectionLost) => return Err(zk::Error::NotSent.into()),
                Woken::Place(fired) => self.place_fired(fired).await?,
                Woken::Shown(shown) => {
                    let here = |contender: NodePath| shown.queue.ahead_of(contender.name()).is_some();
                    if self.seat.contender_path().is_some_and(here) {
                        self.reading = Some(shown);
                        self.announce();
                    }
                }
            }
        }
    }

    /// Who keeps the lock from us: the holders last told, or else the first of the queue, who is about to take it.
    pub(super) async fn in_the_way(&self) -> Vec<String> {
        let Some(reading) = &self.reading else { return self.slot.holders() };
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
