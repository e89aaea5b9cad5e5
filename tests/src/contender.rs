//! Clients that contend for locks, at random, through whichever replica; and their notes: what each was told, and for how
//! long it took the lock for its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use rand::rngs::StdRng;
use rollcall_proto::v1::acquire_lock_response::Event;
use rollcall_proto::v1::registry_client::RegistryClient;
use rollcall_proto::v1::{AcquireLockRequest, AcquireLockResponse, ReleaseLockRequest};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::client::span;

/// How often a replica says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A replica that is silent for longer may be stopped, and the lock another's.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often who holds a lock for long writes to what that guards.
const STEP: Duration = Duration::from_millis(200);
/// How long a lock with a ttl outlives its stream.
pub const TTL: Duration = Duration::from_secs(2);

/// A lock that is contended for.
#[derive(Clone, Debug)]
pub struct Lock {
    /// Its path.
    pub path: String,
    /// How many may hold it.
    pub limit: u32,
    /// What it guards, if one may hold it: refuses an older token than it has seen.
    pub guarded: Arc<Mutex<Guarded>>,
}

/// Something that checks fencing tokens.
#[derive(Debug, Default)]
pub struct Guarded {
    newest: i64,
    writes: u64,
    /// When it refused whom: the token that came too late.
    pub refused: Vec<(i64, SystemTime)>,
}

impl Guarded {
    fn write(&mut self, token: i64) {
        if token < self.newest {
            self.refused.push((token, SystemTime::now()));
        } else {
            self.newest = token;
            self.writes += 1;
        }
    }
}

/// One call for a lock, and what came of it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The name under which its nodes are found in ZooKeeper.
    pub name: String,
    /// The lock.
    pub path: String,
    /// Whether the lock was to outlive its stream.
    pub lasting: bool,
    /// When its client had no more to do with it.
    pub ended: SystemTime,
    /// When it took the lock for its own.
    pub beliefs: Vec<Belief>,
    /// Whether it was told that it has lost the lock.
    pub was_told_of_a_loss: bool,
}

/// A time in which a client took a lock for its own.
#[derive(Clone, Debug)]
pub struct Belief {
    /// The fencing token.
    pub token: i64,
    /// The replica that said so.
    pub replica: usize,
    /// From when it was told, until it was told otherwise or gave the lock back.
    pub from: SystemTime,
    /// See there.
    pub until: SystemTime,
}

/// One that contends, again and again.
#[derive(Debug)]
pub struct Contender {
    number: usize,
    /// For how many milliseconds it holds a lock.
    holding: std::ops::Range<u64>,
    replicas: Vec<Channel>,
    /// The replica at which it takes locks; each time another without one.
    home: Option<usize>,
    rng: StdRng,
    attempts: Vec<Attempt>,
}

/// How a stream ended, or was left.
enum Outcome {
    /// The lock was never held, or is over.
    Over,
    /// It is still to be given back, by its id.
    Left(String),
}

impl Contender {
    /// A contender among many, with a random generator of its own. It holds a lock for so many milliseconds, and takes it
    /// at the replica `home`, or at any.
    pub fn new(
        number: usize,
        holding: std::ops::Range<u64>,
        replicas: &[SocketAddr],
        home: Option<usize>,
        rng: StdRng,
    ) -> Contender {
        let channel = |address| Endpoint::from_shared(format!("http://{address}")).expect("an address is a URI");
        let channel = |address| channel(address).connect_timeout(PATIENCE).connect_lazy();
        let replicas = replicas.iter().map(channel).collect();
        Contender { number, holding, replicas, home, rng, attempts: Vec::new() }
    }

    /// Takes one lock after the other until it is time to end.
    pub async fn contend(mut self, locks: &[Lock], end: Instant) -> Vec<Attempt> {
        while Instant::now() < end {
            let lock = locks[self.rng.random_range(0..locks.len())].clone();
            self.attempt(&lock, end).await;
            sleep(self.milliseconds(if self.is_fast() { 0..20 } else { 0..200 })).await;
        }
        self.attempts
    }

    /// Whether it holds a lock for long, and does not mind that its replica is silent: then only the token protects what
    /// the lock guards.
    fn is_tenacious(&self) -> bool {
        self.holding.end > 1000
    }

    /// Whether it gives a lock back as soon as it has it, and comes again.
    fn is_fast(&self) -> bool {
        self.holding.end == 1
    }

    fn milliseconds(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    async fn attempt(&mut self, lock: &Lock, end: Instant) {
        // Who holds a lock for long is to know when it is lost.
        let lasting = !self.is_tenacious() && !self.is_fast() && self.rng.random_bool(0.25);
        let wait = match self.rng.random_range(0..10) {
            0 => Some(Duration::ZERO),
            1..4 => Some(self.milliseconds(1..3000)),
            _ => None,
        };
        let name = format!("c{}-{}", self.number, self.attempts.len());
        let request = AcquireLockRequest {
            path: lock.path.clone(),
            simultaneous: lock.limit,
            name: name.clone(),
            wait: wait.map(span),
            ttl: lasting.then(|| span(TTL)),
            heartbeat: Some(span(HEARTBEAT)),
            ..Default::default()
        };
        let now = SystemTime::now();
        let path = lock.path.clone();
        let beliefs = Vec::new();
        self.attempts.push(Attempt { name, path, lasting, ended: now, beliefs, was_told_of_a_loss: false });
        // Some give up before they are served.
        let patience = if self.rng.random_bool(0.1) { self.milliseconds(1..500) } else { Duration::from_secs(3600) };
        let deadline = end.min(Instant::now() + patience);
        let mut outcome = self.stream(lock, request.clone(), deadline).await;
        // Of a lock with a ttl: it is worked on without a stream, picked up elsewhere, released from anywhere, or left.
        while let Outcome::Left(lock_id) = outcome {
            outcome = match self.rng.random_range(0..8) {
                0..3 => {
                    let back = AcquireLockRequest { lock_id, wait: None, ..request.clone() };
                    self.stream(lock, back, Instant::now() + PATIENCE).await
                }
                3 => Outcome::Over,
                _ => {
                    self.release(lock_id).await;
                    Outcome::Over
                }
            };
        }
        self.note().ended = SystemTime::now();
    }

    fn note(&mut self) -> &mut Attempt {
        self.attempts.last_mut().expect("an attempt is under way")
    }

    /// Ends what is taken for true of the lock: at this time, if it did not end before.
    fn doubt(&mut self, at: SystemTime) {
        for belief in &mut self.note().beliefs {
            belief.until = belief.until.min(at);
        }
    }

    async fn stream(&mut self, lock: &Lock, request: AcquireLockRequest, deadline: Instant) -> Outcome {
        let replica = self.home.unwrap_or_else(|| self.rng.random_range(0..self.replicas.len()));
        let mut client = RegistryClient::new(self.replicas[replica].clone());
        let Ok(Ok(answer)) = timeout(PATIENCE, client.acquire_lock(request)).await else { return Outcome::Over };
        let mut stream = answer.into_inner();
        let mut deadline = deadline;
        let mut held = None;
        // When the replica goes, if it has said so.
        let mut goes = None;
        let mut heard = Instant::now();
        loop {
            let is_deaf = held.is_some() && self.is_tenacious();
            let end = deadline.min(goes.unwrap_or(deadline));
            // A deaf one goes on while its replica is silent, for longer than it wanted to: it waits to be told.
            let waits = is_deaf && heard.elapsed() > 2 * HEARTBEAT;
            let silence = Instant::now() + if is_deaf { STEP } else { PATIENCE };
            let next = timeout_at(if waits { silence } else { end.min(silence) }, stream.message()).await;
            if matches!(next, Ok(Ok(Some(_)))) {
                heard = Instant::now();
            }
            match next {
                Err(_) if is_deaf && (waits || Instant::now() < end) => {}
                Ok(Ok(Some(AcquireLockResponse { event: Some(event) }))) => match event {
                    Event::Held(now_held) => {
                        let token = now_held.fencing_token;
                        let from = SystemTime::now();
                        let until = from + Duration::from_secs(3600);
                        self.note().beliefs.push(Belief { token, replica, from, until });
                        if held.replace((token, now_held.lock_id)).is_none() {
                            deadline = Instant::now() + self.milliseconds(self.holding.clone());
                        }
                    }
                    Event::Suspended(suspended) => {
                        self.doubt(SystemTime::now() + span_of(suspended.remaining));
                        // It is worth to wait for what comes of it.
                        deadline += PATIENCE;
                    }
                    Event::Lost(_) => {
                        self.note().was_told_of_a_loss = true;
                        self.doubt(SystemTime::now());
                    }
                    Event::Draining(draining) => {
                        // Then a lock without a ttl is given back, at the moment in which the stream ends.
                        goes = Some(Instant::now() + span_of(draining.remaining) / 2);
                    }
                    Event::Queued(_) | Event::Heartbeat(_) => {}
                },
                Ok(Ok(Some(AcquireLockResponse { event: None }))) => panic!("an empty message"),
                Ok(Ok(None)) | Ok(Err(_)) => {
                    self.doubt(SystemTime::now());
                    return Outcome::Over;
                }
                Err(_) => {
                    self.work(lock);
                    return self.leave(stream, held).await;
                }
            }
            self.work(lock);
        }
    }

    /// Writes to what the lock guards, as its holder.
    fn work(&mut self, lock: &Lock) {
        let now = SystemTime::now();
        if let Some(belief) = self.note().beliefs.last().filter(|belief| now < belief.until) {
            lock.guarded.lock().unwrap().write(belief.token);
        }
    }

    /// Hangs up: gives back a lock without a ttl, one way or the other.
    async fn leave(&mut self, stream: Streaming<AcquireLockResponse>, held: Option<(i64, String)>) -> Outcome {
        let Some((_, lock_id)) = held else { return Outcome::Over };
        if self.note().lasting {
            self.doubt(SystemTime::now() + TTL);
            drop(stream);
            sleep(self.milliseconds(0..500)).await;
            return Outcome::Left(lock_id);
        }
        self.doubt(SystemTime::now());
        if self.rng.random_bool(0.5) {
            self.release(lock_id).await;
        }
        drop(stream);
        Outcome::Over
    }

    /// Releases by id, through any replica, until that is sure.
    async fn release(&mut self, lock_id: String) {
        self.doubt(SystemTime::now());
        for _ in 0..5 {
            let replica = self.rng.random_range(0..self.replicas.len());
            let mut client = RegistryClient::new(self.replicas[replica].clone());
            let request = ReleaseLockRequest { lock_id: lock_id.clone() };
            match timeout(PATIENCE, client.release_lock(request)).await {
                Ok(Ok(_)) => return,
                Ok(Err(status)) if status.code() == Code::NotFound => return,
                _ => sleep(self.milliseconds(50..300)).await,
            }
        }
    }
}

fn span_of(span: Option<prost_types::Duration>) -> Duration {
    span.and_then(|span| span.try_into().ok()).unwrap_or_default()
}

/// Attempts by their names.
pub fn by_name(attempts: &[Attempt]) -> BTreeMap<&str, &Attempt> {
    attempts.iter().map(|attempt| (attempt.name.as_str(), attempt)).collect()
}
