//! The task that owns all registrations: it feeds the pure state, and carries its effects out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::claims::{Asker, Claimed, Claims, Observed};
use super::outbox::Outbox;
use super::pulse::Pulse;
use super::state::{Effect, Input, Limits, State, StreamId};
use super::{Departures, Message};
use crate::types::{Generation, NodePath, SessionId};
use crate::zk::{Batch, Mailbox, Moves, Owners, Room, Subscription, Zk};

/// How many nodes are read at once to see whether they still stand.
const VERIFY_BATCH: usize = 48;
/// How often it is looked whether ZooKeeper is back, while something waits for it, and whether a fence has moved.
const POLL: Duration = Duration::from_millis(50);
/// How long after one reading of what stands in a session the next may begin.
const BETWEEN_CONFIRMATIONS: Duration = Duration::from_secs(1);
/// How many inputs of one kind are taken before the others are looked at.
const BURST: usize = 64;

/// What became of an operation.
enum Finished {
    Claimed(NodePath, Claimed, Option<Room>),
    /// Whether it is gone; what ZooKeeper refuses to delete keeps its room.
    Removed(NodePath, bool),
    Verified(Vec<(NodePath, Option<Observed>)>),
    /// `None`: it could not be read.
    Confirmed(SessionId, Option<(Moves, Vec<(NodePath, Generation)>)>),
}

/// The reading anew of which paths stand in a session.
#[derive(Debug)]
struct Confirmation {
    is_due: bool,
    /// How many reads are under way.
    under_way: usize,
    not_before: Instant,
}

impl Confirmation {
    fn new() -> Self {
        Self { is_due: false, under_way: 0, not_before: Instant::now() }
    }
}

struct Task {
    zk: Zk,
    pulse: Arc<Pulse>,
    /// The time-out of the ZooKeeper sessions, once there was one.
    session_timeout: Option<Duration>,
    claims: Claims,
    state: State,
    outboxes: HashMap<StreamId, Arc<Outbox>>,
    /// The place of each path that is held, in the budget of its ZooKeeper session.
    rooms: HashMap<NodePath, Room>,
    subscriptions: HashMap<NodePath, Subscription>,
    mailbox: Arc<Mailbox>,
    /// What was last known of each session's fence.
    moves: HashMap<SessionId, Moves>,
    confirmations: HashMap<SessionId, Confirmation>,
    /// Who waits until nothing is to be taken down any more.
    settling: Option<oneshot::Sender<()>>,
    owners: watch::Receiver<Owners>,
    /// At most one for each path, and one for each batch of paths that is verified. They are run by this task itself:
    /// there are many of them, and each does little but wait.
    operations: FuturesUnordered<BoxFuture<'static, Finished>>,
}

/// Runs until all handles are gone.
pub(super) async fn run(zk: Zk, limits: Limits, mut inputs: mpsc::Receiver<Message>, departures: Arc<Departures>) {
    let owners = zk.pool.owners();
    let pulse = Arc::new(Pulse::new());
    let mut task = Task {
        claims: Claims::new(zk.clone(), pulse.clone()),
        zk,
        pulse,
        session_timeout: None,
        state: State::new(limits, rand::random()),
        outboxes: HashMap::new(),
        rooms: HashMap::new(),
        subscriptions: HashMap::new(),
        mailbox: Arc::default(),
        moves: HashMap::new(),
        confirmations: HashMap::new(),
        settling: None,
        owners,
        operations: FuturesUnordered::new(),
    };
    let mailbox = task.mailbox.clone();
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let tick_at = task.state.next_tick();
        let tick = async {
            match tick_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = inputs.recv() => match message {
                Some(message) => task.messages(message, &mut inputs),
                None => return,
            },
            gone = departures.next() => task.depart(gone),
            Some(finished) = task.operations.next() => task.all_finished(finished),
            batch = mailbox.next() => task.news(batch),
            _ = task.owners.changed() => task.sessions(),
            () = tick => {
                let has_unread = !inputs.is_empty();
                task.step(Input::Tick { has_unread });
            }
            _ = poll.tick() => {
                task.pulse.beat();
                task.poll();
                if task.settling.is_some()
                    && inputs.is_empty()
                    && departures.is_empty()
                    && !task.state.is_leaving()
                {
                    drop(task.settling.take());
                }
            }
        }
    }
}

impl Task {
    fn poll(&mut self) {
        if self.state.is_waiting() && self.zk.pool.any().is_ok() {
            self.step(Input::BackendUp);
        }
        let owners = self.owners.borrow().clone();
        for owner in owners.iter() {
            let moves = owner.writer().moves();
            if self.moves.insert(owner.id(), moves).is_some_and(|before| before != moves) {
                self.confirm_soon(owner.id());
            }
        }
        let now = Instant::now();
        let is_next = |confirmation: &Confirmation| {
            confirmation.is_due && confirmation.under_way == 0 && confirmation.not_before <= now
        };
        let next: Vec<_> =
            self.confirmations.iter().filter(|(_, one)| is_next(one)).map(|(session, _)| *session).collect();
        for session in next {
            let under_way = Confirmation { not_before: now + BETWEEN_CONFIRMATIONS, ..Confirmation::new() };
            self.confirmations.insert(session, under_way);
            self.step(Input::FenceMoved { session });
        }
    }

    fn confirm_soon(&mut self, session: SessionId) {
        self.confirmations.entry(session).or_insert_with(Confirmation::new).is_due = true;
    }

    /// Takes a message, and what else has arrived.
    fn messages(&mut self, first: Message, inputs: &mut mpsc::Receiver<Message>) {
        self.message(first);
        for _ in 0..BURST {
            let Ok(message) = inputs.try_recv() else { return };
            self.message(message);
        }
    }

    /// Takes what an operation has come to, and what others have.
    fn all_finished(&mut self, first: Finished) {
        self.finished(first);
        for _ in 0..BURST {
            let Some(Some(finished)) = self.operations.next().now_or_never() else { return };
            self.finished(finished);
        }
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

    fn depart(&mut self, gone: Vec<StreamId>) {
        for stream in gone {
            self.outboxes.remove(&stream);
            self.step(Input::Gone { stream });
        }
    }

    fn sessions(&mut self) {
        let standing: HashSet<_> = self.owners.borrow_and_update().iter().map(|owner| owner.id()).collect();
        self.moves.retain(|session, _| standing.contains(session));
        self.rooms.retain(|_, room| standing.contains(&room.owner().id()));
        self.confirmations.retain(|session, _| standing.contains(session));
        let overslept = self.session_timeout.is_some_and(|timeout| self.pulse.slept_through(timeout));
        self.session_timeout =
            self.owners.borrow().first().map(|owner| owner.session().timeout()).or(self.session_timeout);
        self.step(Input::Sessions { standing, overslept });
    }

    fn finished(&mut self, finished: Finished) {
        // What a claim holds is in a session that the state must know before.
        if self.owners.has_changed().unwrap_or(false) {
            self.sessions();
        }
        match finished {
            Finished::Claimed(path, outcome, room) => {
                if let Some(room) = room {
                    self.rooms.insert(path.clone(), room);
                }
                if let Claimed::Held { held, .. } = &outcome
                    && self.moves.get(&held.session).is_some_and(|moves| *moves != held.moves)
                {
                    // The fence moved while the claim was under way.
                    self.confirm_soon(held.session);
                }
                self.step(Input::Claimed { path, outcome });
            }
            Finished::Removed(path, is_gone) => {
                if is_gone {
                    self.rooms.remove(&path);
                }
                self.step(Input::Removed { path });
            }
            Finished::Confirmed(session, read) => {
                if let Some(confirmation) = self.confirmations.get_mut(&session) {
                    confirmation.under_way = confirmation.under_way.saturating_sub(1);
                    confirmation.is_due |= read.is_none();
                }
                if let Some((moves, standing)) = read {
                    self.step(Input::Confirmed { moves, standing });
                }
            }
            Finished::Verified(seen) => {
                // The events that came before what was read are known first.
                let before = self.mailbox.take();
                self.news(before);
                for (path, seen) in seen {
                    self.step(Input::Verified { path, seen });
                }
            }
        }
    }

    fn news(&mut self, batch: Batch) {
        for parent in batch.resync {
            self.step(Input::Resync { parent });
        }
        for (path, seen) in batch.events {
            self.step(Input::Changed { path: NodePath::trusted(path), seen });
        }
    }

    fn step(&mut self, input: Input) {
        for effect in self.state.step(input, Instant::now()) {
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
            Effect::Claim { path, by, claim } => {
                let claims = self.claims.clone();
                let asker = match by.map(|by| self.outboxes.get(&by)) {
                    None => Asker::Replica,
                    Some(Some(outbox)) => Asker::Client(outbox.clone()),
                    Some(None) => Asker::Gone,
                };
                self.operations.push(Box::pin(async move {
                    let (claimed, room) = claims.claim(&path, claim, &asker).await;
                    Finished::Claimed(path, claimed, room)
                }));
            }
            Effect::Remove { path, generation, session } => {
                let claims = self.claims.clone();
                self.operations.push(Box::pin(async move {
                    let is_gone = claims.remove(&path, generation, session).await;
                    Finished::Removed(path, is_gone)
                }));
            }
            Effect::Verify { parent, paths } => {
                for paths in paths.chunks(VERIFY_BATCH) {
                    let (claims, parent, paths) = (self.claims.clone(), parent.clone(), paths.to_vec());
                    self.operations.push(Box::pin(async move {
                        let seen = claims.observe(&parent, &paths).await;
                        let seen = seen.unwrap_or_else(|| paths.iter().map(|_| None).collect());
                        Finished::Verified(paths.into_iter().zip(seen).collect())
                    }));
                }
            }
            Effect::Confirm { session, paths } => {
                let confirmation = self.confirmations.entry(session).or_insert_with(Confirmation::new);
                for paths in paths.chunks(VERIFY_BATCH) {
                    confirmation.under_way += 1;
                    let (claims, paths) = (self.claims.clone(), paths.to_vec());
                    self.operations.push(Box::pin(async move {
                        Finished::Confirmed(session, claims.confirm(session, &paths).await)
                    }));
                }
            }
            Effect::Release { path } => drop(self.rooms.remove(&path)),
            Effect::Watch { parent } => {
                let subscription = self.zk.hub.subscribe(&parent, &self.mailbox);
                self.subscriptions.insert(parent, subscription);
            }
            Effect::Unwatch { parent } => drop(self.subscriptions.remove(&parent)),
        }
    }
}
