//! The task that owns all registrations: it feeds the pure state, and carries its effects out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::future::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::claiming::Requester;
use super::claims::Claimed;
use super::confirmations::Confirmations;
use super::effects::{Effect, Input, NodeRemoval, StreamId};
use super::inbox::{Departures, Message};
use super::operations::{FinishedOperation, Operations};
use super::outbox::Outbox;
use super::path_reservations::PathReservations;
use super::stalls::SessionStalls;
use super::state::State;
use super::times::{INPUT_TURN, POLL, TIME_SLICE};
use crate::clock;
use crate::contact::StallDetector;
use crate::evictions::{Evictions, Table};
use crate::spare;
use crate::types::{NodePath, SessionId};
use crate::zk::{Batch, EphemeralSessions, FenceEpoch, Mailbox, NodeEvents, Subscription, Zk};

struct Task {
    zk: Zk,
    stalls: SessionStalls,
    state: State,
    outboxes: HashMap<StreamId, Arc<Outbox>>,
    /// The reservation of a node that is gone with its ZooKeeper session stays in here until its path is claimed anew,
    /// or forgotten.
    reservations: PathReservations,
    subscriptions: HashMap<NodePath, Subscription>,
    mailbox: Arc<Mailbox>,
    /// Inputs that came many at once, in their order. While there are some, the mailbox is not read; it merges the
    /// events that arrive meanwhile.
    due: VecDeque<Input>,
    /// Streams that are over, and of which the state does not know yet.
    departed: VecDeque<StreamId>,
    /// The last known state of each session's fence.
    fence_epochs: HashMap<SessionId, FenceEpoch>,
    /// The sessions that were connected at the last check.
    connected: HashSet<SessionId>,
    confirmations: Confirmations,
    /// The caller that waits until nothing is left to be removed.
    settling: Option<oneshot::Sender<()>>,
    owners: watch::Receiver<EphemeralSessions>,
    /// Changes when a claim that found no room in a session may find some.
    room_news: watch::Receiver<()>,
    evictions: watch::Receiver<Option<Table>>,
    operations: Operations,
}

/// Runs until all handles are gone.
pub(super) async fn run(
    zk: Zk,
    evictions: Evictions,
    stall_detector: Arc<StallDetector>,
    mut inputs: mpsc::Receiver<Message>,
    departures: Arc<Departures>,
) {
    let (owners, room_news) = (zk.pool.owners(), zk.pool.room_news());
    let mut task = Task {
        operations: Operations::new(&zk, &evictions, &stall_detector),
        zk,
        stalls: SessionStalls::new(stall_detector),
        state: State::new(rand::random(), clock::now()),
        outboxes: HashMap::new(),
        reservations: PathReservations::default(),
        subscriptions: HashMap::new(),
        mailbox: Arc::default(),
        due: VecDeque::new(),
        departed: VecDeque::new(),
        fence_epochs: HashMap::new(),
        connected: HashSet::new(),
        confirmations: Confirmations::default(),
        settling: None,
        owners,
        room_news,
        evictions: evictions.table(),
    };
    let mailbox = task.mailbox.clone();
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running_since = Instant::now();
    loop {
        let tick_at = task.state.next_tick();
        let tick = async {
            match tick_at {
                Some(at) => clock::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let has_more =
            !task.due.is_empty() || !task.departed.is_empty() || task.state.has_chores() || task.operations.can_begin();
        tokio::select! {
            message = inputs.recv() => match message {
                Some(message) => task.messages(message, &mut inputs),
                None => return,
            },
            gone = departures.next() => task.departed.extend(gone),
            finished = task.operations.next() => task.all_finished(finished),
            batch = mailbox.next(), if task.due.is_empty() => task.news(batch),
            _ = task.owners.changed() => task.sessions(),
            // The handle of each claim keeps the sender.
            _ = task.evictions.changed() => task.evicted(),
            () = tick => task.step(Input::Tick),
            () = std::future::ready(()), if has_more => task.go_on(),
            _ = poll.tick() => {
                task.stalls.tick();
                task.poll();
                if task.settling.is_some()
                    && inputs.is_empty()
                    && departures.is_empty()
                    && task.due.is_empty()
                    && task.departed.is_empty()
                    && !task.state.is_leaving()
                {
                    drop(task.settling.take());
                }
            }
        }
        if running_since.elapsed() >= TIME_SLICE {
            tokio::task::yield_now().await;
            running_since = Instant::now();
        }
    }
}

impl Task {
    fn poll(&mut self) {
        let owners = self.owners.borrow().clone();
        let connected: HashSet<_> =
            owners.iter().filter(|owner| owner.session().is_up()).map(|owner| owner.id()).collect();
        let has_room = self.room_news.has_changed().unwrap_or(false);
        self.room_news.mark_unchanged();
        let is_news = has_room || !connected.is_subset(&self.connected);
        self.connected = connected;
        if is_news && self.state.is_waiting() {
            self.step(Input::BackendUp);
        }
        for owner in owners.iter() {
            let fence_epoch = owner.writer().fence_epoch();
            if self.fence_epochs.insert(owner.id(), fence_epoch).is_some_and(|before| before != fence_epoch) {
                self.confirmations.soon(owner.id(), clock::now());
            }
        }
        for session in self.confirmations.next(clock::now()) {
            self.step(Input::FenceMoved { session });
        }
    }

    /// Takes a message, and others that have arrived.
    fn messages(&mut self, first: Message, inputs: &mut mpsc::Receiver<Message>) {
        let begun = Instant::now();
        self.message(first);
        while begun.elapsed() < INPUT_TURN
            && let Ok(message) = inputs.try_recv()
        {
            self.message(message);
        }
    }

    /// Takes the result of an operation, and those of others that are over.
    fn all_finished(&mut self, first: FinishedOperation) {
        let begun = Instant::now();
        self.finished(first);
        while begun.elapsed() < INPUT_TURN
            && let Some(finished) = self.operations.next().now_or_never()
        {
            self.finished(finished);
        }
    }

    /// Goes on with work that is done in slices.
    fn go_on(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < INPUT_TURN && !(self.due.is_empty() && self.departed.is_empty()) {
            if let Some(input) = self.due.pop_front() {
                self.step(input);
            }
            if let Some(stream) = self.departed.pop_front() {
                self.outboxes.remove(&stream);
                self.step(Input::Gone { stream });
            }
        }
        spare::shrink_queue(&mut self.due);
        spare::shrink_queue(&mut self.departed);
        spare::shrink(&mut self.outboxes);
        if self.state.has_chores() {
            self.step(Input::GoOn);
        }
        self.operations.begin();
    }

    fn message(&mut self, message: Message) {
        match message {
            // The news that the stream is over may have overtaken its first message.
            Message::Open { outbox, .. } if outbox.is_abandoned() => {}
            Message::Open { input, stream, outbox } => {
                self.outboxes.insert(stream, outbox);
                self.step(input);
            }
            Message::Input(input) => self.step(input),
            Message::Settle(settled) => self.settling = Some(settled),
        }
    }

    fn sessions(&mut self) {
        let standing: HashSet<_> = self.owners.borrow_and_update().iter().map(|owner| owner.id()).collect();
        self.fence_epochs.retain(|session, _| standing.contains(session));
        self.confirmations.retain(&standing);
        let timeout = self.owners.borrow().first().map(|owner| owner.session().timeout());
        let expired_during_stall = self.stalls.sessions_changed(timeout);
        self.step(Input::Sessions { standing, expired_during_stall });
    }

    /// Removes registrations that are held and evicted. There are few evictions.
    fn evicted(&mut self) {
        let table = self.evictions.borrow_and_update().clone();
        for path in table.iter().flat_map(|table| table.keys()) {
            self.step(Input::Evicted { path: path.clone() });
        }
        // Tries claims that could not be made before the evictions were known.
        if self.state.is_waiting() {
            self.step(Input::BackendUp);
        }
    }

    fn finished(&mut self, finished: FinishedOperation) {
        // The state must know the session of a claim's node before it gets the claim's result.
        if self.owners.has_changed().unwrap_or(false) {
            self.sessions();
        }
        match finished {
            FinishedOperation::Claimed(path, outcome, reservation) => {
                self.reservations.claimed(&path, &outcome, reservation);
                if let Claimed::Held { held, .. } = &outcome
                    && self.fence_epochs.get(&held.session).is_some_and(|fence_epoch| *fence_epoch != held.fence_epoch)
                {
                    // The fence moved while the claim was under way.
                    self.confirmations.soon(held.session, clock::now());
                }
                let is_held = matches!(outcome, Claimed::Held { .. });
                self.step(Input::Claimed { path: path.clone(), outcome });
                // The path was evicted while its create was on its way.
                if is_held && self.evictions.borrow().as_ref().is_some_and(|table| table.contains_key(&path)) {
                    self.step(Input::Evicted { path });
                }
            }
            FinishedOperation::Removed(removals, refused) => {
                for NodeRemoval { path, .. } in removals {
                    if let Some((_, code)) = refused.iter().find(|(refused, _)| *refused == path) {
                        // The node exists, and keeps its room.
                        self.step(Input::RemovalRefused { path, code: *code });
                    } else {
                        self.reservations.removed(&path);
                        self.step(Input::Removed { path });
                    }
                }
            }
            FinishedOperation::Confirmed(session, read) => {
                self.confirmations.finished(session, read.is_some());
                if let Some((fence_epoch, standing)) = read {
                    self.step(Input::Confirmed { fence_epoch, standing });
                }
            }
            FinishedOperation::Verified(seen) => {
                // Events that came before the read are handed on first.
                let before = self.mailbox.take();
                self.news(before);
                self.due.extend(seen.into_iter().map(|(path, seen)| Input::Verified { path, seen }));
            }
        }
    }

    fn news(&mut self, batch: Batch) {
        self.due.extend(batch.resync.into_iter().map(|parent| Input::Resync { parent }));
        let changed = |(path, seen): (Arc<str>, NodeEvents)| Input::Changed { path: NodePath::trusted(path), seen };
        self.due.extend(batch.events.into_iter().map(changed));
    }

    fn step(&mut self, input: Input) {
        for effect in self.state.step(input, clock::now()) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Tell { stream, notice } => {
                if let Some(outbox) = self.outboxes.get(&stream) {
                    outbox.push(notice);
                }
            }
            Effect::Close { stream, end } => {
                if let Some(outbox) = self.outboxes.remove(&stream) {
                    outbox.close(end);
                }
            }
            Effect::Claim { path, by, claim, connection } => {
                let requester = match by.map(|by| self.outboxes.get(&by)) {
                    None => Requester::Replica,
                    Some(Some(outbox)) => Requester::Client(outbox.clone()),
                    Some(None) => Requester::Gone,
                };
                self.operations.claim(connection, path, claim, requester);
            }
            Effect::Remove { session, removal, connection } => self.operations.remove(connection, session, removal),
            Effect::Verify { path, connection } => self.operations.verify(connection, path),
            Effect::Confirm { session, nodes } => {
                let reads = self.operations.confirm(session, &nodes);
                self.confirmations.begun(session, reads, clock::now());
            }
            Effect::Release { path } => self.reservations.release(&path),
            Effect::Watch { parent } => {
                let subscription = self.zk.hub.subscribe(&parent, &self.mailbox);
                self.subscriptions.insert(parent, subscription);
            }
            Effect::Unwatch { parent } => {
                self.subscriptions.remove(&parent);
                spare::shrink(&mut self.subscriptions);
            }
        }
    }
}
