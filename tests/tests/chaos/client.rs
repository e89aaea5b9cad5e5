//! The clients: some connect to the replicas directly, some through proxies of their own that fail, and some are
//! processes that are stopped.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use rand::rngs::StdRng;
use rollcall_tests::crowd::PLACE;
use rollcall_tests::process::Signal;
use rollcall_tests::proxy::{Proxy, Traffic};
use rollcall_tests::registrant::{Many, Registrant, RegistrantProcess, Terms, Told, generations};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::judge::{Harm, KEEPALIVE, Life, Trouble};
use super::milliseconds;

/// Age of the newest reports that a process may not have printed when it ends.
const UNPRINTED: Duration = Duration::from_millis(200);
/// The speed of a slow proxy, in bytes a second.
const SLOW: u32 = 20_000;

/// How a client reaches the replicas, which decides how it can be harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Direct,
    Proxied,
    Process,
}

impl Kind {
    /// Of ten clients, one is a process and two connect through proxies.
    fn of(index: usize) -> Kind {
        match index % 10 {
            0 => Kind::Process,
            1 | 2 => Kind::Proxied,
            _ => Kind::Direct,
        }
    }
}

/// One client of many. It lives several times under one name.
#[derive(Debug)]
pub(super) struct Client {
    index: usize,
    kind: Kind,
    replicas: Vec<SocketAddr>,
    /// One for each replica; none when it connects directly.
    proxies: Vec<Proxy>,
    rng: StdRng,
    end: Instant,
}

/// The result of a client.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The lives that have ended.
    pub(super) lives: Vec<Life>,
    pub(super) living: Option<Living>,
    /// Kept to the end, since the replicas may not have noticed a death behind them yet.
    pub(super) proxies: Vec<Proxy>,
}

/// A living client.
#[derive(Debug)]
pub(super) struct Living {
    body: Body,
    life: Life,
}

#[derive(Debug)]
enum Body {
    Inside(Registrant),
    Process(RegistrantProcess),
}

impl Body {
    fn history(&self) -> Vec<Told> {
        match self {
            Body::Inside(registrant) => registrant.history(),
            Body::Process(process) => process.history(),
        }
    }
}

impl Living {
    /// The path of its name.
    pub(super) fn path(&self) -> &str {
        &self.life.path
    }

    /// The generation of its registration, if it is registered as far as it knows.
    pub(super) fn generation(&self) -> Option<i64> {
        generations(self.body.history()).remove(&self.life.path)
    }

    /// Its life up to now.
    pub(super) fn end(self) -> Life {
        let until = SystemTime::now();
        Life { until, history: self.body.history(), ..self.life }
    }
}

impl Client {
    /// A client that comes and goes until `end`.
    pub(super) async fn new(index: usize, replicas: Vec<SocketAddr>, rng: StdRng, end: Instant) -> Client {
        let kind = Kind::of(index);
        let mut proxies = Vec::new();
        for replica in replicas.iter().filter(|_| kind == Kind::Proxied) {
            proxies.push(Proxy::start(*replica).await);
        }
        Client { index, kind, replicas, proxies, rng, end }
    }

    /// Lives one life after another until the end.
    pub(super) async fn come_and_go(mut self) -> Outcome {
        let mut lives = Vec::new();
        let mut pause = milliseconds(&mut self.rng, 0..5000);
        loop {
            sleep_until(self.end.min(Instant::now() + pause)).await;
            if Instant::now() >= self.end {
                return Outcome { lives, living: None, proxies: self.proxies };
            }
            let (mut body, mut life) = self.begin(lives.len()).await;
            let death = self.end.min(Instant::now() + milliseconds(&mut self.rng, 500..20_000));
            self.suffer(&mut body, &mut life, death).await;
            if Instant::now() >= self.end {
                return Outcome { lives, living: Some(Living { body, life }), proxies: self.proxies };
            }
            lives.push(self.die(body, life).await);
            pause = milliseconds(&mut self.rng, 0..5000);
        }
    }

    async fn begin(&mut self, number: usize) -> (Body, Life) {
        // Undoes the faults of its last death.
        self.cut();
        self.accept().await;
        let ttl = self.rng.random_bool(0.6).then(|| milliseconds(&mut self.rng, 3000..6000));
        let replicas = match self.kind {
            Kind::Proxied => self.proxies.iter().map(Proxy::address).collect(),
            Kind::Direct | Kind::Process => self.replicas.clone(),
        };
        let prefix = format!("{PLACE}/client-{}-", self.index);
        let path = format!("{prefix}0-0");
        let from = SystemTime::now();
        let body = if self.kind == Kind::Process {
            Body::Process(RegistrantProcess::spawn(&Many { replicas, ttl, clients: 1, each: 1, prefix }))
        } else {
            let data = json!({ "client": self.index, "life": number });
            Body::Inside(Registrant::start(Terms { replicas, ttl, paths: vec![path.clone()], data }))
        };
        (body, Life { path, ttl, from, until: from, history: Vec::new(), troubles: Vec::new() })
    }

    /// Lives until `death`. All harm is undone by then.
    async fn suffer(&mut self, body: &mut Body, life: &mut Life, death: Instant) {
        while self.kind != Kind::Direct {
            sleep_until(death.min(Instant::now() + milliseconds(&mut self.rng, 500..5000))).await;
            if Instant::now() >= death {
                return;
            }
            let (what, length) = self.next_harm(life.ttl);
            let from = SystemTime::now();
            self.harm(what, body).await;
            sleep_until(death.min(Instant::now() + length)).await;
            self.mend(body).await;
            life.troubles.push(Trouble { what, from, until: SystemTime::now() });
        }
        sleep_until(death).await;
    }

    fn next_harm(&mut self, ttl: Option<Duration>) -> (Harm, Duration) {
        if self.kind == Kind::Process {
            // Either too short for any replica to notice, or longer.
            let missed = ttl.map_or(2 * KEEPALIVE, |ttl| ttl + Duration::from_secs(1));
            let length = match self.rng.random_bool(0.5) {
                true => ttl.map_or(KEEPALIVE, |ttl| ttl * 2 / 3).mul_f64(self.rng.random_range(0.1..0.9)),
                false => missed + milliseconds(&mut self.rng, 0..4000),
            };
            return (Harm::Stop, length);
        }
        let harms = [Harm::Cut, Harm::Refuse, Harm::Stall, Harm::StallAnswers, Harm::Slow, Harm::HalfOpen];
        let harm = harms[self.rng.random_range(0..harms.len())];
        let length = match harm {
            Harm::Cut | Harm::HalfOpen => Duration::ZERO,
            _ => milliseconds(&mut self.rng, 300..7000),
        };
        (harm, length)
    }

    async fn harm(&self, harm: Harm, body: &mut Body) {
        match (harm, body) {
            (Harm::Stop, Body::Process(process)) => process.process().pause(),
            (Harm::Stop, Body::Inside(_)) => panic!("only processes are stopped"),
            (Harm::Cut, _) => self.cut(),
            (Harm::Refuse, _) => {
                self.refuse().await;
                self.cut();
            }
            (Harm::Stall, _) => self.set_traffic(Traffic::Stall),
            (Harm::StallAnswers, _) => self.set_traffic(Traffic::StallAnswers),
            (Harm::Slow, _) => self.set_traffic(Traffic::Slow(SLOW)),
            (Harm::HalfOpen, _) => self.proxies.iter().for_each(Proxy::half_open),
        }
    }

    async fn mend(&self, body: &mut Body) {
        if let Body::Process(process) = body {
            process.process().signal(Signal::CONT);
        }
        self.set_traffic(Traffic::Pass);
        self.accept().await;
    }

    /// Dies in one way or another.
    async fn die(&mut self, body: Body, life: Life) -> Life {
        let is_hard = self.rng.random_bool(0.5);
        let is_polite = self.rng.random_bool(0.3);
        // Taken first, so that no result of the death counts.
        let until = SystemTime::now();
        let (history, until) = match &body {
            Body::Inside(_) => (body.history(), until),
            Body::Process(_) => (body.history(), until - UNPRINTED),
        };
        match (body, self.kind) {
            // The process never runs again.
            (Body::Process(mut process), _) if is_hard => {
                process.process().pause();
                let stopped = milliseconds(&mut self.rng, 1000..9000);
                sleep_until(self.end.min(Instant::now() + stopped)).await;
            }
            // Like a machine that loses its power.
            (Body::Inside(registrant), Kind::Proxied) if is_hard => {
                self.proxies.iter().for_each(Proxy::half_open);
                self.refuse().await;
                drop(registrant);
            }
            // If no replica answers in time, it dies without a goodbye.
            (Body::Inside(registrant), _) if is_polite => drop(registrant.close(Duration::from_secs(2)).await),
            (body, _) => drop(body),
        }
        Life { until, history, ..life }
    }

    fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    fn set_traffic(&self, traffic: Traffic) {
        self.proxies.iter().for_each(|proxy| proxy.set_traffic(traffic));
    }

    async fn refuse(&self) {
        for proxy in &self.proxies {
            proxy.refuse().await;
        }
    }

    async fn accept(&self) {
        for proxy in &self.proxies {
            proxy.accept().await;
        }
    }
}
