//! Clients that die, stop, or lose their machine: their registrations end in time, and never early.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rollcall_proto::v1::ChangeKind;
use rollcall_tests::crowd::{Crowd, PLACE, Whose};
use rollcall_tests::fleet::{Fleet, Onlookers, Route};
use rollcall_tests::machine_lag::MachineLag;
use rollcall_tests::process::Signal;
use rollcall_tests::proxy::Proxy;
use rollcall_tests::raw_client::RawClientProcess;
use rollcall_tests::registrant::{Many, News, RegistrantProcess};
use rollcall_tests::wait::{SOON, check, eventually};

const TTL: Duration = Duration::from_secs(3);
/// Time for which a silent connection is tolerated, and then time for the answer to a ping.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Maximum delay of the end of a registration with a ttl, as promised.
const LATE: Duration = Duration::from_secs(2);
/// Maximum delay of an end that is to be immediate.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Number of registrations of each victim.
const EACH: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    /// Its machine is gone, and the replica is not told.
    HalfOpen,
}

/// A client that a fault will hit.
struct Victim {
    fault: Fault,
    ttl: Option<Duration>,
    prefix: String,
    process: RawClientProcess,
    proxy: Proxy,
}

impl Victim {
    async fn start(fleet: &Fleet, fault: Fault, ttl: Option<Duration>) -> Victim {
        let proxy = Proxy::start(fleet.replicas[0].address()).await;
        let prefix = format!("{PLACE}/{fault:?}-{}-", ttl.map_or("without", |_| "with-ttl"));
        let many = Many { replicas: vec![proxy.address()], ttl, clients: 1, each: EACH, prefix: prefix.clone() };
        let process = RawClientProcess::start(&many).await;
        Victim { fault, ttl, prefix, process, proxy }
    }

    /// Causes the fault, just after a keep-alive. Returns the earliest and the latest time at which its registrations
    /// may end, by ZooKeeper's clock, on a machine without lag.
    async fn strike(&mut self) -> (SystemTime, SystemTime) {
        self.process.next_heard().await;
        match self.fault {
            Fault::Killed => self.process.process().kill(),
            Fault::Stopped => self.process.process().pause(),
            Fault::HalfOpen => {
                self.proxy.half_open();
                self.proxy.refuse().await;
            }
        }
        let struck = SystemTime::now();
        let heard = self.process.heard_after().expect("one was answered");
        match (self.ttl, self.fault) {
            (Some(ttl), _) => (heard + ttl, struck + ttl + LATE),
            (None, Fault::Killed) => (heard, struck + AT_ONCE),
            (None, Fault::Stopped | Fault::HalfOpen) => (heard + KEEPALIVE, struck + 2 * KEEPALIVE + AT_ONCE),
        }
    }

    fn has(&self, path: &str) -> bool {
        path.starts_with(&self.prefix)
    }
}

#[tokio::test]
async fn what_a_silent_or_dead_client_held_is_gone_in_time_and_never_before() {
    let fleet = Fleet::start(2, Route::Direct, &["--keepalive", "2s"]).await;
    // These clients share the replicas with the victims, and must not be affected.
    let crowd = Crowd::start(&fleet, 10, 5, TTL).await;
    let mut victims = Vec::new();
    for fault in [Fault::Killed, Fault::Stopped, Fault::HalfOpen] {
        for ttl in [Some(TTL), None] {
            victims.push(Victim::start(&fleet, fault, ttl).await);
        }
    }
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    let (machine_lag, begun) = (MachineLag::start_writing(&fleet.sandbox.hosts), SystemTime::now());
    let mut bounds = Vec::new();
    for victim in &mut victims {
        bounds.push(victim.strike().await);
    }
    eventually("the victims' registrations are gone", 3 * SOON, async || {
        let names = fleet.zk.children(PLACE).await.unwrap_or_default();
        let left: Vec<_> =
            names.iter().filter(|name| victims.iter().any(|victim| victim.has(&format!("{PLACE}/{name}")))).collect();
        check(left.is_empty(), || format!("{left:?}"))
    })
    .await;
    let machine = machine_lag.worst_since(begun);
    let sights = onlookers.sights(&fleet).await;
    assert_eq!(sights.absences.len(), EACH * victims.len(), "what they held, and nothing else: {:?}", sights.absences);
    for (victim, (earliest, latest)) in victims.iter().zip(bounds) {
        let gone = sights.absences.iter().filter(|absence| victim.has(&absence.path)).map(|absence| absence.from);
        let (first, last) = (gone.clone().min().unwrap(), gone.clone().max().unwrap());
        let what = format!("{:?}, ttl {:?}", victim.fault, victim.ttl);
        // ZooKeeper's times are in milliseconds.
        assert!(first + Duration::from_millis(1) >= earliest, "{what}: gone at {first:?}, before {earliest:?}");
        let [first, last, latest_at] = [first, last, latest].map(|at| at.duration_since(earliest).unwrap_or_default());
        println!(
            "{what}: gone {first:?} to {last:?} after the first moment, of {latest_at:?}; machine {machine:?} late"
        );
        assert!(last <= latest_at + machine, "{what}: gone {last:?} after {earliest:?}: {:?} late", last - latest_at);
        for seen in sights.rollcall.iter().chain(&sights.kazoo) {
            let is_early = victim.has(&format!("{PLACE}/{}", seen.name)) && seen.at < earliest;
            assert!(!is_early, "{seen:?} before {earliest:?}");
        }
    }
    for seen in [&sights.rollcall, &sights.kazoo] {
        assert!(seen.iter().all(|seen| seen.kind == ChangeKind::Removed), "{seen:?}");
        assert_eq!(seen.len(), EACH * victims.len(), "{seen:?}");
    }
    drop(victims);
    crowd.stands_undisturbed(&fleet, Whose::All).await;
}

/// There is no other sign of the death: no ttl, and no ping for ten minutes.
#[tokio::test]
async fn the_end_of_its_connection_alone_tells_that_a_client_is_dead() {
    let fleet = Fleet::start(1, Route::Direct, &["--keepalive", "600s"]).await;
    let mut victim = Victim::start(&fleet, Fault::Killed, None).await;
    victim.strike().await;
    eventually("what it held is gone", SOON, async || {
        let names = fleet.zk.children(PLACE).await.unwrap_or_default();
        check(names.is_empty(), || format!("{names:?}"))
    })
    .await;
}

/// Like a laptop that slept, or a process in a debugger: its registrations end, and come back when it does.
#[tokio::test]
async fn programs_that_were_stopped_past_their_ttl_register_again_by_themselves() {
    let fleet = Fleet::start(2, Route::Direct, &["--keepalive", "2s"]).await;
    let with =
        Many { replicas: fleet.addresses(), ttl: Some(TTL), clients: 4, each: EACH, prefix: format!("{PLACE}/with-") };
    let without = Many { ttl: None, prefix: format!("{PLACE}/without-"), ..with.clone() };
    let mut programs = [with, without].map(|many| RegistrantProcess::spawn(&many));
    for program in &programs {
        program.registered().await;
    }
    let before = programs.each_ref().map(registered);
    for program in &mut programs {
        program.process().pause();
    }
    eventually("what they held is gone", 3 * SOON, async || {
        let left = fleet.zk.children(PLACE).await.unwrap_or_default();
        check(left.is_empty(), || format!("{left:?}"))
    })
    .await;
    for (program, before) in programs.iter_mut().zip(before) {
        program.process().signal(Signal::CONT);
        eventually("it is back", 2 * SOON, async || {
            for (path, generation) in registered(program) {
                check(generation > before[&path], || format!("{path} is still {generation}"))?;
                let standing = fleet.zk.get(&path).await.map(|node| node.stat.czxid);
                check(standing == Some(generation), || format!("{path} is {standing:?}"))?;
            }
            Ok(())
        })
        .await;
    }
}

/// The last generation of each path that was reported to a program.
fn registered(program: &RegistrantProcess) -> BTreeMap<String, i64> {
    let registered = |news| match news {
        News::Registered(generation) => Some(generation),
        News::Pending | News::Over(_) => None,
    };
    program.history().into_iter().filter_map(|told| Some((told.path, registered(told.news)?))).collect()
}
