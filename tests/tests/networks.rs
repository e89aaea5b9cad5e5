//! Faults of the network between clients and replicas, and between replicas and ZooKeeper: cut, stalled, half-open or
//! slow connections, under registrations with a ttl. Each fault has clients of its own. ZooKeeper's log, a Rollcall
//! watcher and a kazoo watcher may show only the effects of the fault on its own clients, and nothing of the others.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rollcall_tests::crowd::{Crowd, PLACE};
use rollcall_tests::fleet::{Fleet, Onlookers, Route, Sights, name_of, once_each};
use rollcall_tests::machine_lag::MachineLag;
use rollcall_tests::proxy::{Proxy, Traffic, gather};
use rollcall_tests::registrant::Many;
use rollcall_tests::wait::{SOON, check, eventually};
use tokio::time::{Instant, sleep_until};

/// Clients leave a replica that is silent for two thirds of this.
const TTL: Duration = Duration::from_secs(12);
const SESSION: Duration = Duration::from_secs(6);
/// Maximum delay of the end of a ttl, or by ZooKeeper's ticks of a session.
const LATE: Duration = Duration::from_secs(2);
/// Maximum time from a fault until everything is back: a client tries a failed replica again after 5 s at most, and
/// gives it 4 s to answer.
const BACK: Duration = Duration::from_secs(10);
/// Bytes a second: the first messages of a client or a session take about two seconds.
const SLOW: u32 = 3_000;
const CLIENTS: usize = 4;
const EACH: usize = 8;
const PATHS: usize = CLIENTS * EACH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Open connections end; new ones are accepted.
    Cut,
    /// Open connections end; new ones are refused.
    Refuse,
    /// Open connections are dead, and neither side is told; new ones are accepted.
    HalfOpen,
    /// No bytes pass; they arrive later.
    Stall,
    /// Open connections end; new ones are slow.
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// On all routes.
    All,
    /// On one route, which all connections take; there are others.
    One,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nobody sees a change.
    Unseen,
    /// All registrations go once, between these times after the begin of the fault, and are back after its end.
    Gone { earliest: Duration, latest: Duration },
}

/// A fault, its extent, its duration and its expected outcome.
#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    extent: Extent,
    length: Duration,
    outcome: Outcome,
}

impl Case {
    fn new(fault: Fault, extent: Extent, length: Duration, outcome: Outcome) -> Case {
        Case { fault, extent, length, outcome }
    }

    /// The prefix of its paths.
    fn prefix(self) -> String {
        format!("{PLACE}/{:?}-{:?}-{:?}-", self.fault, self.extent, self.length)
    }

    fn clients(self, replicas: Vec<SocketAddr>) -> Many {
        Many { replicas, ttl: Some(TTL), clients: CLIENTS, each: EACH, prefix: self.prefix() }
    }

    /// The proxies with the fault.
    fn hit(self, ways: &[Proxy]) -> &[Proxy] {
        match self.extent {
            Extent::All => ways,
            Extent::One => &ways[..1],
        }
    }

    async fn strike(self, ways: &[Proxy]) {
        for way in self.hit(ways) {
            match self.fault {
                Fault::None => {}
                Fault::Cut => way.cut(),
                Fault::Refuse => {
                    way.refuse().await;
                    way.cut();
                }
                Fault::HalfOpen => way.half_open(),
                Fault::Stall => way.set_traffic(Traffic::Stall),
                Fault::Slow => {
                    way.set_traffic(Traffic::Slow(SLOW));
                    way.cut();
                }
            }
        }
    }

    async fn mend(self, ways: &[Proxy]) {
        for way in self.hit(ways) {
            match self.fault {
                // Dead connections remain dead.
                Fault::None | Fault::Cut | Fault::HalfOpen => {}
                Fault::Refuse => way.accept().await,
                Fault::Stall | Fault::Slow => way.set_traffic(Traffic::Pass),
            }
        }
    }

    /// Whether bytes can pass during the fault.
    fn passes_meanwhile(self) -> bool {
        self.extent == Extent::One || !matches!(self.fault, Fault::Refuse | Fault::Stall)
    }

    /// Compares the observations of its clients with the expected outcome. `mended` is the end of the fault.
    #[track_caller]
    fn check(self, seen: &Sights, struck: SystemTime, mended: SystemTime, machine: Duration) {
        println!("{self:?}");
        let Outcome::Gone { earliest, latest } = self.outcome else { return seen.are_empty() };
        assert_eq!(seen.absences.len(), PATHS, "each was absent once: {:?}", seen.absences);
        for absence in &seen.absences {
            let until = absence.until.expect("all are back");
            assert!(absence.from + machine >= struck + earliest, "{absence:?}, struck at {struck:?}");
            assert!(absence.from <= struck + latest + machine, "{absence:?}, struck at {struck:?}");
            assert!(mended <= until && until <= mended + BACK + machine, "{absence:?}, mended at {mended:?}");
        }
        once_each(&seen.kazoo, PATHS);
        once_each(&seen.rollcall, PATHS);
    }
}

/// The place of the faults.
enum Side {
    /// Between clients and replicas: each case has its own proxies to each replica.
    Clients(Vec<Vec<Proxy>>),
    /// Between replicas and ZooKeeper: each case has the proxies of one replica to each ZooKeeper server.
    ZooKeeper,
}

impl Side {
    fn ways<'a>(&'a self, fleet: &'a Fleet, case: usize) -> &'a [Proxy] {
        match self {
            Side::Clients(ways) => &ways[case],
            Side::ZooKeeper => fleet.ways_of(case),
        }
    }

    fn replicas(&self, fleet: &Fleet, case: usize) -> Vec<SocketAddr> {
        match self {
            Side::Clients(ways) => ways[case].iter().map(Proxy::address).collect(),
            Side::ZooKeeper => vec![fleet.replicas[case].address()],
        }
    }

    /// The number of connections through the proxies of a case.
    fn connections(&self) -> usize {
        match self {
            Side::Clients(_) => CLIENTS,
            // Four sessions hold ephemerals, two watch.
            Side::ZooKeeper => 6,
        }
    }

    /// Causes all faults at once, each for its own clients, and checks the outcomes.
    async fn suffers(&self, mut fleet: Fleet, cases: &[Case]) {
        let indices = 0..cases.len();
        let kinds: Vec<_> = indices.clone().map(|index| cases[index].clients(self.replicas(&fleet, index))).collect();
        let crowd = Crowd::of(&kinds).await;
        for index in indices.clone().filter(|index| cases[*index].extent == Extent::One) {
            gather(self.ways(&fleet, index), 0, self.connections()).await;
        }
        crowd.stands(&fleet).await;
        let before = crowd.generations();
        // The first replica has no fault.
        let onlookers = Onlookers::begin_through(&fleet, &fleet.addresses()[..1], PLACE).await;
        let machine_lag = MachineLag::start_writing(&fleet.sandbox.hosts);

        let (begun, first) = (Instant::now(), SystemTime::now());
        let mut struck = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            struck.push(SystemTime::now());
            case.strike(self.ways(&fleet, index)).await;
        }
        let mut mended = struck.clone();
        let mut by_length: Vec<_> = indices.clone().collect();
        by_length.sort_by_key(|index| cases[*index].length);
        for index in by_length {
            let case = cases[index];
            sleep_until(begun + case.length).await;
            if case.passes_meanwhile() {
                fleet.register_anew(index % fleet.replicas.len(), &format!("meanwhile-{index}")).await;
            }
            mended[index] = SystemTime::now();
            case.mend(self.ways(&fleet, index)).await;
        }
        for replica in 0..fleet.replicas.len() {
            fleet.register_anew(replica, "afterwards").await;
        }

        // By now the older streams have ended everywhere, and have removed nothing.
        eventually("only the streams of those who live are left", 3 * SOON, async || {
            let mut streams = 0;
            for replica in &mut fleet.replicas {
                streams += replica.server().streams().await?;
            }
            // The Rollcall watcher has one stream.
            check(streams == cases.len() * CLIENTS + 1, || format!("{streams} streams"))
        })
        .await;
        crowd.stands(&fleet).await;
        onlookers.know_exactly(&before.keys().map(|path| name_of(path)).collect()).await;
        let sights = onlookers.sights(&fleet).await;
        let machine = machine_lag.worst_since(first);
        println!("the machine was late by {machine:?} at worst");
        for (index, case) in cases.iter().enumerate() {
            case.check(&sights.of(&case.prefix()), struck[index], mended[index], machine);
        }
        let is_unseen =
            |path: &str| cases.iter().any(|case| case.outcome == Outcome::Unseen && path.starts_with(&case.prefix()));
        crowd.was_undisturbed(is_unseen);
        let after = crowd.generations();
        let made_again = |path: &&String| is_unseen(path) && after[*path] != before[*path];
        let again = before.keys().find(made_again);
        // A client may resume at another replica, with a new generation. A ZooKeeper session that lives keeps its
        // nodes.
        assert_eq!(again.is_some(), matches!(self, Side::Clients(_)), "{again:?} was made again");
    }
}

/// Nobody sees a fault that ends within the ttl, or that leaves a client a route to a replica. After a longer one that
/// leaves none, a client's registrations end by their ttl, and come back.
#[tokio::test]
async fn what_the_network_does_to_clients_is_seen_only_when_it_outlasts_the_ttl() {
    const SOME: Duration = Duration::from_secs(3);
    const OVERDUE: Duration = Duration::from_secs(16);
    // The replica heard the last message before the fault at most a third of the ttl earlier.
    let gone = Outcome::Gone { earliest: TTL * 2 / 3, latest: TTL + LATE };
    let cases = [
        Case::new(Fault::None, Extent::All, Duration::ZERO, Outcome::Unseen),
        Case::new(Fault::Cut, Extent::All, Duration::ZERO, Outcome::Unseen),
        Case::new(Fault::Refuse, Extent::All, SOME, Outcome::Unseen),
        Case::new(Fault::HalfOpen, Extent::All, OVERDUE, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::All, SOME, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::One, OVERDUE, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::All, OVERDUE, gone),
        Case::new(Fault::Slow, Extent::All, OVERDUE, Outcome::Unseen),
    ];
    let fleet = Fleet::start(2, Route::Direct, &["--keepalive", "2s"]).await;
    let mut ways = Vec::new();
    for _ in cases {
        let mut to_each = Vec::new();
        for address in fleet.addresses() {
            to_each.push(Proxy::start(address).await);
        }
        ways.push(to_each);
    }
    Side::Clients(ways).suffers(fleet, &cases).await;
}

/// Nobody sees a fault that ends within the ZooKeeper sessions, or that leaves a replica a route to ZooKeeper, and
/// nothing is made again. After a longer one that leaves none, all registrations end with their session, and come back.
#[tokio::test]
async fn what_the_network_does_to_a_replica_is_seen_only_when_it_outlasts_the_zookeeper_sessions() {
    const SHORT: Duration = Duration::from_millis(1500);
    const OVERDUE: Duration = Duration::from_secs(12);
    // Each session writes at least every eighth of its time-out.
    let gone = Outcome::Gone { earliest: SESSION * 7 / 8, latest: SESSION + LATE };
    let cases = [
        Case::new(Fault::None, Extent::All, Duration::ZERO, Outcome::Unseen),
        Case::new(Fault::Cut, Extent::All, Duration::ZERO, Outcome::Unseen),
        Case::new(Fault::Refuse, Extent::All, SESSION / 2, Outcome::Unseen),
        Case::new(Fault::HalfOpen, Extent::All, OVERDUE, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::All, SHORT, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::One, OVERDUE, Outcome::Unseen),
        Case::new(Fault::Stall, Extent::All, OVERDUE, gone),
        Case::new(Fault::Slow, Extent::All, OVERDUE, Outcome::Unseen),
    ];
    let fleet = Fleet::start(cases.len(), Route::Proxied, &["--session-timeout", "6s"]).await;
    Side::ZooKeeper.suffers(fleet, &cases).await;
}
