//! The data that all tasks share: the state, the connections' outboxes, and the clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use rollcall_wire::ConnectRequest;
use rollcall_wire::server::{Refused, Request};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Config;
use crate::occasional::Occasional;
use crate::outbox::Outbox;
use crate::state::{Effect, Effects, State};
use crate::switches::Switches;
use crate::types::{ConnectionId, Now};

/// A request, as it was read from its frame.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) xid: i32,
    pub(crate) request: Result<Request, Refused>,
}

/// Shared by all tasks. One lock, held for one step at a time: a step's effects are in the outboxes before the next
/// step begins, so that their order is the same for everybody.
#[derive(Debug)]
pub(crate) struct Hub {
    core: Mutex<Core>,
    pub(crate) started: Instant,
    /// The address to which clients connect.
    pub(crate) address: SocketAddr,
    pub(crate) config: Config,
    pub(crate) traffic: Traffic,
    pub(crate) switches: Switches,
    /// The permit for making the answer to a four-letter word, which may be long.
    pub(crate) words: Semaphore,
}

#[derive(Debug)]
struct Core {
    state: State,
    outboxes: HashMap<ConnectionId, Arc<Outbox>>,
    effects: Effects,
    /// Connections that were refused because there were too many.
    refusals: Occasional,
}

/// The numbers of frames, for `srvr` and `mntr`.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
}

impl Hub {
    pub(crate) fn new(config: Config, address: SocketAddr) -> Self {
        let started = Instant::now();
        let state = State::new(config.clone(), now(started), rand::random());
        Self {
            core: Mutex::new(Core {
                state,
                outboxes: HashMap::new(),
                effects: Vec::new(),
                refusals: Occasional::default(),
            }),
            started,
            address,
            config,
            traffic: Traffic::default(),
            switches: Switches::default(),
            words: Semaphore::new(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Looks at the state.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Registers a connection. A connection over the limit is refused, now and then with the number of those that were,
    /// for the log.
    pub(crate) fn accept(&self, peer: SocketAddr) -> Result<(ConnectionId, Arc<Outbox>), Option<u64>> {
        let mut core = self.lock();
        if core.outboxes.len() >= self.config.max_connections {
            return Err(core.refusals.note(now(self.started).elapsed_ms));
        }
        let id = core.state.accept(peer, now(self.started));
        let outbox = Arc::new(Outbox::new(self.config.max_unread));
        core.outboxes.insert(id, outbox.clone());
        Ok((id, outbox))
    }

    /// Forgets a connection.
    pub(crate) fn disconnect(&self, id: ConnectionId) {
        let mut core = self.lock();
        core.outboxes.remove(&id);
        core.state.disconnect(id);
    }

    /// A connection's first frame.
    pub(crate) fn connect(&self, id: ConnectionId, request: &ConnectRequest) {
        self.traffic.received.fetch_add(1, Ordering::Relaxed);
        self.step(|state, now, effects| {
            state.count_received(id);
            state.connect(id, request, now, effects);
        });
    }

    /// A connection's next request.
    pub(crate) fn request(&self, id: ConnectionId, received: Received) {
        let Received { xid, request } = received;
        let is_write = request.as_ref().is_ok_and(is_write);
        if let Ok(request) = &request
            && is_write
            && let Some(code) = self.switches.take_refusal()
        {
            self.step(|state, _, effects| {
                state.count_received(id);
                state.refuse_write(id, xid, request, code, effects);
            });
            return;
        }
        let is_lost = is_write && self.switches.take_lost_reply();
        self.step(|state, now, effects| {
            state.count_received(id);
            state.request(id, xid, request, now, effects);
            if is_lost {
                effects.retain(|(other, effect)| *other != id || !matches!(effect, Effect::Reply(..)));
            }
        });
        if is_lost {
            self.cut(id);
        }
    }

    /// Ends a connection at once.
    pub(crate) fn cut(&self, id: ConnectionId) {
        if let Some(outbox) = self.lock().outboxes.get(&id) {
            outbox.cut();
        }
    }

    /// Carries a step out, and hands its effects to the outboxes.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut State, Now, &mut Effects) -> T) -> T {
        let mut core = self.lock();
        let Core { state, outboxes, effects, .. } = &mut *core;
        let result = step(state, now(self.started), effects);
        let mut sent = 0;
        for (id, effect) in effects.drain(..) {
            if effect != Effect::Close {
                state.count_sent(id);
                sent += 1;
            }
            if let Some(outbox) = outboxes.get(&id) {
                outbox.push(&effect);
            }
        }
        self.traffic.sent.fetch_add(sent, Ordering::Relaxed);
        result
    }

    /// Ends all connections at once.
    #[cfg(feature = "faults")]
    pub(crate) fn cut_all(&self) {
        self.lock().outboxes.values().for_each(|outbox| outbox.cut());
    }
}

fn is_write(request: &Request) -> bool {
    matches!(
        request,
        Request::Create { .. }
            | Request::Delete { .. }
            | Request::SetData { .. }
            | Request::SetAcl { .. }
            | Request::Multi(_)
    )
}

/// The time in the form that the state uses.
pub(crate) fn now(started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Now {
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        wall_ms: i64::try_from(wall).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_are_too_many_are_told_in_one_line() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let hub = Hub::new(Config { max_connections: 1, ..Config::default() }, address);
        let accept = || hub.accept(address);
        let (id, _) = accept().unwrap();
        let lines: Vec<_> = (0..1000).filter_map(|_| accept().unwrap_err()).collect();
        assert_eq!(lines, [1]);
        hub.disconnect(id);
        assert!(accept().is_ok());
    }
}
