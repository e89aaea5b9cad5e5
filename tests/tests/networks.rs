//! The network between clients and replicas, and between replicas and ZooKeeper: cut, stalled, half-open, slow under
//! registrations with a ttl. Each fault has clients of its own; what ZooKeeper, a Rollcall watcher and a kazoo watcher see of
//! these is what follows from the fault, and of the others nothing.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rollcall_tests::canary::Canary;
use rollcall_tests::crowd::{Crowd, PLACE};
use rollcall_tests::fleet::{Fleet, Onlookers, Route, Sights, name_of, once_each};
use rollcall_tests::proxy::{Proxy, Traffic, gather};
use rollcall_tests::registrant::Many;
use rollcall_tests::wait::{SOON, check, eventually};
use tokio::time::{Instant, sleep_until};

/// Clients leave a replica that is silent for two thirds of it.
const TTL: Duration = Duration::from_secs(12);
const SESSION: Duration = Duration::from_secs(6);
/// How late a ttl, or by ZooKeeper's ticks a session, may end.
const LATE: Duration = Duration::from_secs(2);
/// How long after a fault everything is back: a client tries a replica that has failed again after 5 s at most, and gives
/// it 4 s to answer.
const BACK: Duration = Duration::from_secs(10);
/// Bytes a second: what a client or a session begins with takes about two seconds.
const SLOW: u32 = 3_000;
const CLIENTS: usize = 4;
const EACH: usize = 8;
const PATHS: usize = CLIENTS * EACH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// What stands ends; new connections are welcome.
    Cut,
    /// What stands ends; new connections are refused.
    Refuse,
    /// What stands is dead, and nobody is told; new connections are welcome.
    HalfOpen,
    /// Nothing passes, and arrives later.
    Stall,
    /// What stands ends; everything begins anew on a slow line.
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// On all ways.
    All,
    /// On one, which all of them go; there are others.
    One,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nobody sees anything.
    Unseen,
    /// All of it goes, once, between these times after the beginning, and is back after the end.
    Gone { earliest: Duration, latest: Duration },
}

/// A fault, how far it goes, how long it lasts, what comes of it.
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

    /// What its paths begin with.
    fn prefix(self) -> String {
        format!("{PLACE}/{:?}-{:?}-{:?}-", self.fault, self.extent, self.length)
    }

    fn clients(self, replicas: Vec<SocketAddr>) -> Many {
        Many { replicas, ttl: Some(TTL), clients: CLIENTS, each: EACH, prefix: self.prefix() }
    }

    /// The ways that are struck.
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
                // Dead connections stay dead.
                Fault::None | Fault::Cut | Fault::HalfOpen => {}
                Fault::Refuse => way.accept().await,
                Fault::Stall | Fault::Slow => way.set_traffic(Traffic::Pass),
            }
        }
    }

    /// Whether something passes while it lasts.
    fn passes_meanwhile(self) -> bool {
        self.extent == Extent::One || !matches!(self.fault, Fault::Refuse | Fault::Stall)
    }

    /// Holds what was seen of its clients against what had to be. `mended` is when the fault was over.
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

/// Where the faults are.
enum Side {
    /// Before the replicas: for each case, on ways of its own to each of them.
    Clients(Vec<Vec<Proxy>>),
    /// Behind them: for each case, on the ways of one replica to each ZooKeeper server.
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

    /// How many connections go the ways of a case.
    fn connections(&self) -> usize {
        match self {
            Side::Clients(_) => CLIENTS,
            // Four sessions own, two watch.
            Side::ZooKeeper => 6,
        }
    }

    /// Has all of it happen at once, each to its own clients, and holds it against what had to come of it.
    async fn suffers(&self, mut fleet: Fleet, cases: &[Case]) {
        let indices = 0..cases.len();
        let kinds: Vec<_> = indices.clone().map(|index| cases[index].clients(self.replicas(&fleet, index))).collect();
        let crowd = Crowd::of(&kinds).await;
        for index in indices.clone().filter(|index| cases[*index].extent == Extent::One) {
            gather(self.ways(&fleet, index), 0, self.connections()).await;
        }
        crowd.stands(&fleet).await;
        let before = crowd.generations();
        // Nothing happens to the first replica.
        let onlookers = Onlookers::begin_through(&fleet, &fleet.addresses()[..1], PLACE).await;
        let canary = Canary::start_writing(&fleet.sandbox.hosts);

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

        // Older streams have had their end everywhere, and have touched nothing.
        eventually("only the streams of those who live are left", 3 * SOON, async || {
            let mut streams = 0;
            for replica in &mut fleet.replicas {
                streams += replica.server().streams().await?;
            }
            // The Rollcall watcher has one.
            check(streams == cases.len() * CLIENTS + 1, || format!("{streams} streams"))
        })
        .await;
        crowd.stands(&fleet).await;
        onlookers.know_exactly(&before.keys().map(|path| name_of(path)).collect()).await;
        let sights = onlookers.sights(&fleet).await;
        let machine = canary.worst_since(first);
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
        // A client may resume at another replica, with another generation; sessions that stand keep what they own.
        assert_eq!(again.is_some(), matches!(self, Side::Clients(_)), "{again:?} was made again");
    }
}

/// A fault that is over within the ttl, or that leaves a client a way to a replica, is seen by nobody. After one that is
/// longer, and leaves none, a client is gone, as its ttl says, and comes back.
#[tokio::test]
async fn what_the_network_does_to_clients_is_seen_only_when_it_outlasts_the_ttl() {
    const SOME: Duration = Duration::from_secs(3);
    const OVERDUE: Duration = Duration::from_secs(16);
    // The last message before the fault was heard up to a third of the ttl before it.
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

/// A fault that is over within the ZooKeeper sessions, or that leaves a replica a way to ZooKeeper, is seen by nobody, and
/// nothing is made again. After one that is longer, and leaves none, everything goes with its session, and comes back.
#[tokio::test]
async fn what_the_network_does_to_a_replica_is_seen_only_when_it_outlasts_the_zookeeper_sessions() {
    const SHORT: Duration = Duration::from_millis(1500);
    const OVERDUE: Duration = Duration::from_secs(12);
    // A session is written in every eighth of its time-out at least.
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
