//! Clients that contend for locks, at random, through any replica. Their records say what each was told, and for how
//! long it believed that it held the lock.

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
use crate::wait::SOON;

/// Interval of a replica's heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Time without a message after which the replica may be stopped, and the lock another client's.
const PATIENCE: Duration = Duration::from_secs(3);
/// Interval between the writes of a long-time holder to the guarded resource.
const STEP: Duration = Duration::from_millis(200);
/// Time by which a lock with a ttl outlives its stream.
pub const TTL: Duration = Duration::from_secs(2);

/// A lock to contend for.
#[derive(Clone, Debug)]
pub struct Lock {
    /// Its path.
    pub path: String,
    /// Maximum number of holders.
    pub limit: u32,
    /// The resource that the lock guards, for a lock with one holder. It refuses a token older than the newest it has
    /// seen.
    pub guarded: Arc<Mutex<Guarded>>,
}

/// A resource that checks fencing tokens.
#[derive(Debug, Default)]
pub struct Guarded {
    /// The newest token of a write.
    pub newest: i64,
    writes: u64,
    /// The refused writes: the old token, and the time.
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

/// One call for a lock, and its results.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The name that its nodes carry in ZooKeeper.
    pub name: String,
    /// The lock.
    pub path: String,
    /// Whether the lock has a ttl.
    pub lasting: bool,
    /// The moment after which the client had nothing more to do with it.
    pub ended: SystemTime,
    /// The intervals in which the client believed that it held the lock.
    pub beliefs: Vec<Belief>,
    /// Whether the client received `lost`.
    pub was_told_of_a_loss: bool,
}

/// An interval in which a client believed that it held a lock.
#[derive(Clone, Debug)]
pub struct Belief {
    /// The fencing token.
    pub token: i64,
    /// The replica that sent `held`.
    pub replica: usize,
    /// From `held` until another message said otherwise, or the client gave the lock back.
    pub from: SystemTime,
    /// The end of the interval: see `from`.
    pub until: SystemTime,
}

/// A client that contends again and again.
#[derive(Debug)]
pub struct Contender {
    number: usize,
    /// How long it holds a lock, in milliseconds.
    holding: std::ops::Range<u64>,
    replicas: Vec<Channel>,
    /// The replica at which it takes locks; `None` means another each time.
    home: Option<usize>,
    rng: StdRng,
    attempts: Vec<Attempt>,
}

/// How a stream ended, or was left.
enum Outcome {
    /// The lock was never held, or is over.
    Over,
    /// The lock still has to be released, by its id.
    Left(String),
}

impl Contender {
    /// One of many contenders, with a random generator of its own. It holds a lock for a time from `holding`, in
    /// milliseconds, and takes it at the replica `home`, or at any.
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

    /// Takes one lock after another until `end`.
    pub async fn contend(mut self, locks: &[Lock], end: Instant) -> Vec<Attempt> {
        while Instant::now() < end {
            let lock = locks[self.rng.random_range(0..locks.len())].clone();
            self.attempt(&lock, end).await;
            sleep(self.milliseconds(if self.is_fast() { 0..20 } else { 0..200 })).await;
        }
        self.attempts
    }

    /// Whether it holds a lock for long, and ignores that its replica is silent: then only the token protects the
    /// guarded resource.
    fn is_tenacious(&self) -> bool {
        self.holding.end > 1000
    }

    /// Whether it gives a lock back as soon as it has it, and asks again.
    fn is_fast(&self) -> bool {
        self.holding.end == 1
    }

    fn milliseconds(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    async fn attempt(&mut self, lock: &Lock, end: Instant) {
        // A client that holds a lock for long has to know when it is lost.
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
        // A tenth of the clients give up early, mostly before they hold the lock.
        let patience = if self.rng.random_bool(0.1) { self.milliseconds(1..500) } else { Duration::from_secs(3600) };
        let deadline = end.min(Instant::now() + patience);
        let mut outcome = self.stream(lock, request.clone(), deadline).await;
        // A lock with a ttl is used without a stream, and then picked up elsewhere, released from anywhere, or
        // abandoned.
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

    /// Ends all beliefs in the lock at `at`, unless they ended before.
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
        // The end of a replica that has announced a drain.
        let mut goes = None;
        let mut heard = Instant::now();
        loop {
            let is_deaf = held.is_some() && self.is_tenacious();
            let end = deadline.min(goes.unwrap_or(deadline));
            // A deaf client goes on while its replica is silent, for longer than it wanted to: it waits for the next
            // message.
            let waits = is_deaf && heard.elapsed() > 2 * HEARTBEAT;
            assert!(heard.elapsed() < 3 * SOON, "replica {replica} says nothing on the stream of {}", lock.path);
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
                        // It waits for the outcome of the doubt.
                        deadline += PATIENCE;
                    }
                    Event::Lost(_) => {
                        self.note().was_told_of_a_loss = true;
                        self.doubt(SystemTime::now());
                    }
                    Event::Draining(draining) => {
                        // At that moment the client ends the stream, and so gives back a lock without a ttl.
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

    /// Writes to the guarded resource, as the holder of the lock.
    fn work(&mut self, lock: &Lock) {
        let now = SystemTime::now();
        if let Some(belief) = self.note().beliefs.last().filter(|belief| now < belief.until) {
            lock.guarded.lock().unwrap().write(belief.token);
        }
    }

    /// Hangs up. A lock without a ttl is released either by id or by the end of the stream.
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

    /// Releases by id, through any replica, until one confirms it.
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

/// The attempts by name.
pub fn by_name(attempts: &[Attempt]) -> BTreeMap<&str, &Attempt> {
    attempts.iter().map(|attempt| (attempt.name.as_str(), attempt)).collect()
}
