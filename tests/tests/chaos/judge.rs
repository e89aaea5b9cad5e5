//! Checks that each fault of a client's name has a cause in its own history: a trouble of the client, of its
//! connections, or of the replica whose ZooKeeper session owned the name. A trouble elsewhere is no excuse. Pure.
//!
//! The bounds are those of the configuration and of the client `rollcall`. The lag of the machine is added.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rollcall_tests::journal::Absence;
use rollcall_tests::registrant::{News, Told};

/// The time-out of the replicas' ZooKeeper sessions.
pub(super) const SESSION: Duration = Duration::from_secs(6);
/// Time for which a replica tolerates a silent connection, and then time for the answer to its ping.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(2);
/// ZooKeeper's unit of time: sessions end on its boundaries.
const TICK: Duration = Duration::from_secs(1);
/// Time of silence after which a client without a ttl leaves a replica: two of its keep-alives.
const SILENCE: Duration = Duration::from_secs(10);
/// Time for which a client waits for a replica to open a stream.
const OPENING: Duration = Duration::from_secs(4);
/// Maximum time for which an unhindered client may be without its name: it tries two replicas in vain, which were
/// stopped one after the other, and pauses.
const BACK: Duration = Duration::from_secs(10);
/// Maximum time in which a replica registers again what ended with its ZooKeeper sessions: it leaves a connection that
/// is silent for a third of the time-out, connects within a second, and reads for a moment what has arrived.
const RESTORE: Duration = Duration::from_millis(2000 + 1000 + 200);
/// Time for some round trips of messages, without the lag of the machine.
const PROMPT: Duration = Duration::from_millis(500);

/// A trouble of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// Its connections are closed.
    Cut,
    /// Its connections are closed, and no new ones are accepted.
    Refuse,
    /// No bytes pass.
    Stall,
    /// No answers pass.
    StallAnswers,
    /// All bytes pass slowly.
    Slow,
    /// Its open connections become silent, and neither side learns of the other's end. New ones are accepted.
    HalfOpen,
    /// Its process is stopped.
    Stop,
}

/// A trouble of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    Kill,
    Restart,
    Stop,
    StopPastItsSessions,
}

/// One of the servers that run one after another as a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) replica: usize,
    /// Number of servers that ran there before.
    pub(super) nth: usize,
}

/// A fault that lasts for a while.
#[derive(Clone, Debug)]
pub(super) struct Trouble<What> {
    pub(super) what: What,
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl<What> Trouble<What> {
    /// Whether it overlaps with this interval.
    fn touches(&self, from: SystemTime, until: SystemTime) -> bool {
        self.from <= until && from <= self.until
    }
}

/// One client from its start to its death.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) path: String,
    pub(super) ttl: Option<Duration>,
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
    pub(super) history: Vec<Told>,
    pub(super) troubles: Vec<Trouble<Harm>>,
}

/// The time at which an action that is due at `due` can be done: after all troubles that are then active.
fn over<'a, What: 'a>(
    troubles: impl Iterator<Item = &'a Trouble<What>>,
    due: SystemTime,
    late: Duration,
) -> SystemTime {
    let is_on = |trouble: &&Trouble<What>| trouble.touches(due, due + late + PROMPT);
    troubles.filter(is_on).map(|trouble| trouble.until).fold(due, SystemTime::max)
}

/// Time of silence after which a client leaves a replica.
fn silence(ttl: Option<Duration>) -> Duration {
    ttl.map_or(SILENCE, |ttl| ttl * 2 / 3)
}

impl Life {
    /// The intervals in which the name had to exist: while the client reported that it is registered. Without a ttl,
    /// that ends when its connection breaks; with one, when no replica has answered for the ttl.
    fn held(&self) -> Vec<(SystemTime, SystemTime)> {
        let mut spans = Vec::new();
        let mut since = None;
        for told in self.history.iter().filter(|told| told.at <= self.until) {
            match told.news {
                News::Registered(_) => since = since.or(Some(told.at)),
                News::Pending | News::Over(_) => spans.extend(since.take().map(|since| (since, told.at))),
            }
        }
        spans.extend(since.map(|since| (since, self.until)));
        spans
    }

    /// The earliest and the latest time at which this trouble may delete a registration, and the time until which the
    /// client may then have believed in it.
    fn deletion(&self, trouble: &Trouble<Harm>, gone: SystemTime) -> Option<[SystemTime; 3]> {
        let Trouble { what, from, until } = trouble;
        Some(match (what, self.ttl) {
            (Harm::Slow, _) => return None,
            // The replica last heard from it at most a third of the ttl earlier.
            (Harm::Stop, Some(ttl)) => [*from + ttl * 2 / 3, *until + ttl, gone.max(*until)],
            (_, Some(ttl)) => [*from + ttl * 2 / 3, *until + ttl, gone],
            (Harm::Stop, None) => [*from + KEEPALIVE, *until, gone.max(*until)],
            (Harm::Cut | Harm::Refuse, None) => [*from, *until, gone],
            (Harm::Stall | Harm::StallAnswers | Harm::HalfOpen, None) => {
                [*from + KEEPALIVE, (*from + 2 * KEEPALIVE).max(*until), gone.max(*from + SILENCE)]
            }
        })
    }

    /// The time at which it can act on news of the time `then`: not while it is stopped.
    fn awake(&self, then: SystemTime, late: Duration) -> SystemTime {
        let is_on =
            |trouble: &&Trouble<Harm>| trouble.what == Harm::Stop && trouble.touches(then, then + late + PROMPT);
        self.troubles.iter().filter(is_on).map(|trouble| trouble.until).fold(then, SystemTime::max)
    }

    /// The time until which this trouble keeps it from noticing anything.
    fn deaf_until(&self, trouble: &Trouble<Harm>) -> SystemTime {
        match trouble.what {
            Harm::Stop => trouble.until,
            Harm::Stall | Harm::StallAnswers | Harm::HalfOpen => trouble.from + silence(self.ttl),
            Harm::Cut | Harm::Refuse | Harm::Slow => trouble.from,
        }
    }
}

/// The troubles of replicas and ZooKeeper, and facts about the run.
pub(super) struct World<'a> {
    pub(super) replicas: Vec<Trouble<(Server, Blow)>>,
    pub(super) zookeeper: Vec<Trouble<usize>>,
    /// The server that each ZooKeeper session belonged to.
    pub(super) sessions: BTreeMap<i64, Server>,
    /// The worst lag of the machine between two moments.
    pub(super) late: &'a dyn Fn(SystemTime, SystemTime) -> Duration,
}

impl World<'_> {
    /// The longest time for which the name was absent while it had to exist.
    ///
    /// # Errors
    /// When no trouble of the client or its replica explains the absence, or its length.
    pub(super) fn explain(&self, life: &Life, absence: &Absence) -> Result<Duration, String> {
        // ZooKeeper's times are cut to milliseconds.
        let gone = absence.from + Duration::from_millis(1);
        let mut longest = Duration::ZERO;
        for (since, until) in life.held() {
            let end = absence.until.unwrap_or(until).min(until);
            let overlap = end.duration_since(gone.max(since)).unwrap_or_default();
            if overlap.is_zero() {
                continue;
            }
            let late = (self.late)(gone - SESSION, end);
            let explained = match absence.with_session {
                true => self.session_ended(life, since, absence.session, gone, late),
                false => self.deleted(life, absence.session, gone, late),
            };
            let described = || format!("{} was gone for {overlap:?}, the machine was {late:?} late", absence.path);
            let believed = life.awake(explained.map_err(|error| format!("{}: {error}", described()))?, late);
            if end > believed + late + PROMPT {
                let longer = end.duration_since(believed).unwrap_or_default();
                return Err(format!("{}: {longer:?} longer than is explained", described()));
            }
            longest = longest.max(overlap);
        }
        Ok(longest)
    }

    /// The time until which a client may have believed in a registration that its replica or a stranger deleted.
    fn deleted(&self, life: &Life, session: i64, gone: SystemTime, late: Duration) -> Result<SystemTime, String> {
        let own = life.troubles.iter().filter_map(|trouble| life.deletion(trouble, gone));
        // A replica that was stopped, and whose client could not move, ends the ttl when it runs again.
        let of_replica = self
            .of_server(session)
            .filter_map(|trouble| Some([trouble.from + life.ttl? * 2 / 3, trouble.until + life.ttl?, gone]));
        let explained = own.chain(of_replica).filter(|[earliest, latest, _]| {
            // A stopped replica deletes nothing, and afterwards reads once more what has arrived. Nor does a replica
            // without ZooKeeper.
            let stopped = self.of_server(session).filter(|trouble| trouble.touches(*earliest, *latest));
            let listened = stopped.map(|trouble| trouble.until + 2 * KEEPALIVE).fold(*latest, SystemTime::max);
            let latest = over(self.zookeeper.iter(), listened, late);
            gone + late >= *earliest && gone <= latest + late + PROMPT
        });
        let believed = explained.map(|[.., believed]| believed).max();
        believed.ok_or_else(|| "deleted, and nothing had silenced its client".to_owned())
    }

    /// The time until which a client, which was sure from `since` on, may have believed in a registration that ended with a
    /// replica's ZooKeeper session.
    fn session_ended(
        &self,
        life: &Life,
        since: SystemTime,
        session: i64,
        gone: SystemTime,
        late: Duration,
    ) -> Result<SystemTime, String> {
        let ends = |trouble: &&Trouble<(Server, Blow)>| match trouble.what.1 {
            // A new leader of ZooKeeper restarts the time-outs.
            Blow::Kill | Blow::Restart => trouble.from <= gone && gone <= trouble.until + 2 * SESSION + late,
            Blow::Stop | Blow::StopPastItsSessions => {
                // The last heartbeat was sent at most an eighth of the time-out earlier.
                gone + late + TICK >= trouble.from + SESSION * 7 / 8 && gone <= trouble.until + 2 * TICK + late
            }
        };
        if !self.sessions.contains_key(&session) {
            return Err(format!("{session:#x}, a ZooKeeper session of no replica, ended"));
        }
        let Some(cause) = self.of_server(session).filter(ends).last() else {
            return Err(format!("{session:#x} ended, and nothing had happened to its replica"));
        };
        let (server, blow) = cause.what;
        let (noticed, asked_last) = match blow {
            Blow::Kill => (cause.from, cause.from),
            Blow::Restart => (cause.until, cause.until),
            Blow::Stop | Blow::StopPastItsSessions => (cause.from + silence(life.ttl), cause.from),
        };
        // A half-open connection remains half-open after the trouble.
        let hinders = |trouble: &&Trouble<Harm>| {
            trouble.from <= gone && cause.from <= trouble.until.max(life.deaf_until(trouble))
        };
        let own = || life.troubles.iter().filter(hinders);
        let is_hindered = own().next().is_some()
            || self.zookeeper.iter().any(|trouble| trouble.touches(cause.from, gone))
            || self.replicas.iter().any(|other| {
                // A stream that it tries to open there in vain delays it.
                other.what.0.replica != server.replica && other.touches(cause.from - OPENING, gone)
            });
        // A client comes to a replica that was killed only as to its successor, which has other sessions.
        let is_stop = matches!(blow, Blow::Stop | Blow::StopPastItsSessions);
        let came_since = is_stop && cause.until <= since && since <= gone;
        if !is_hindered && !came_since && gone > noticed + late + PROMPT {
            return Err(format!("{session:#x} ended after {cause:?}, and nothing had kept its client from leaving"));
        }
        let mut believed = life.ttl.map_or(noticed, |ttl| asked_last + ttl);
        if is_stop && (cause.until <= noticed + late || came_since) {
            // The replica is back before the client leaves it, or the client has come to it since. ZooKeeper's leader may end
            // a session that has just written through a follower, of which the follower has not told it yet.
            believed = believed.max(cause.until + RESTORE).max(gone + RESTORE);
        }
        Ok(own().map(|trouble| life.deaf_until(trouble)).fold(believed, SystemTime::max))
    }

    /// The troubles of the server that owned this ZooKeeper session.
    fn of_server(&self, session: i64) -> impl Iterator<Item = &Trouble<(Server, Blow)>> {
        let server = self.sessions.get(&session).copied();
        self.replicas.iter().filter(move |trouble| Some(trouble.what.0) == server)
    }

    /// The longest time for which a client lived without its name, while neither itself nor ZooKeeper was hindered.
    /// `present` has the times at which a node existed at its path.
    ///
    /// # Errors
    /// When that is longer than its attempts may take.
    pub(super) fn without_name(&self, life: &Life, present: &[(SystemTime, SystemTime)]) -> Result<Duration, String> {
        let own = life.troubles.iter().map(|trouble| (trouble.from, trouble.until.max(life.deaf_until(trouble))));
        let zookeeper = self.zookeeper.iter().map(|trouble| (trouble.from, trouble.until));
        let mut excused: Vec<_> = own.chain(zookeeper).chain(present.iter().copied()).collect();
        excused.push((life.until, life.until));
        excused.sort();
        let (mut at, mut longest) = (life.from, Duration::ZERO);
        for (from, until) in excused {
            let from = from.min(life.until);
            let without = from.duration_since(at).unwrap_or_default();
            if without > BACK && without > BACK + (self.late)(at, from) {
                return Err(format!("{} was missing for {without:?} from {at:?} on, and nobody knows why", life.path));
            }
            longest = longest.max(without);
            at = at.max(until);
        }
        Ok(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TTL: Duration = Duration::from_secs(3);
    const OURS: i64 = 7;
    const OTHERS: i64 = 8;
    const FIRST: Server = Server { replica: 0, nth: 0 };
    const OTHER: Server = Server { replica: 1, nth: 0 };

    /// This many seconds after the beginning.
    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_secs_f64(seconds)
    }

    fn trouble<What>(what: What, from: f64, until: f64) -> Trouble<What> {
        Trouble { what, from: at(from), until: at(until) }
    }

    /// A client that was certain of its name from second 0 to `sure_until`.
    fn life(ttl: Option<Duration>, sure_until: f64, troubles: Vec<Trouble<Harm>>) -> Life {
        let path = "/a".to_owned();
        let told = |seconds, news| Told { at: at(seconds), path: "/a".to_owned(), news };
        let history = vec![told(0.0, News::Registered(1)), told(sure_until, News::Pending)];
        Life { path, ttl, from: at(0.0), until: at(100.0), history, troubles }
    }

    fn world(replicas: Vec<Trouble<(Server, Blow)>>, zookeeper: Vec<Trouble<usize>>) -> World<'static> {
        World { replicas, zookeeper, sessions: [(OURS, FIRST), (OTHERS, OTHER)].into(), late: &|_, _| 10 * MS }
    }

    fn absence(from: f64, until: f64, with_session: bool) -> Absence {
        Absence { path: "/a".to_owned(), from: at(from), until: Some(at(until)), session: OURS, with_session }
    }

    #[test]
    fn a_name_that_is_deleted_was_silenced_itself_and_for_long_enough() {
        let quiet = world(vec![], vec![]);
        let with = |ttl, sure_until, troubles, from, until| {
            quiet.explain(&life(ttl, sure_until, troubles), &absence(from, until, false))
        };
        with(Some(TTL), 90.0, vec![], 20.0, 20.1).unwrap_err();
        with(Some(TTL), 90.0, vec![trouble(Harm::Cut, 20.0, 20.0)], 20.0, 20.1).unwrap_err();
        with(Some(TTL), 24.0, vec![trouble(Harm::Stop, 20.0, 24.0)], 23.0, 25.0).unwrap();
        with(Some(TTL), 90.0, vec![trouble(Harm::Stop, 20.0, 24.0)], 23.0, 25.0).unwrap_err();
        with(Some(TTL), 90.0, vec![trouble(Harm::Stop, 20.0, 21.0)], 21.0, 21.1).unwrap_err();
        let twice = vec![trouble(Harm::Stop, 20.0, 21.0), trouble(Harm::Stop, 22.0, 24.0)];
        with(Some(TTL), 24.0, twice, 23.0, 25.0).unwrap();
        with(None, 20.1, vec![trouble(Harm::Cut, 20.0, 20.0)], 20.0, 20.4).unwrap();
        with(None, 90.0, vec![trouble(Harm::Cut, 20.0, 20.0)], 20.0, 22.0).unwrap_err();
        with(None, 30.0, vec![trouble(Harm::HalfOpen, 20.0, 20.0)], 24.0, 31.0).unwrap();
        with(None, 30.0, vec![trouble(Harm::HalfOpen, 20.0, 20.0)], 21.0, 31.0).unwrap_err();
        with(None, 30.0, vec![trouble(Harm::HalfOpen, 20.0, 20.0)], 26.0, 31.0).unwrap_err();
        let stopped = world(vec![trouble((FIRST, Blow::Stop), 22.0, 26.0)], vec![]);
        let half_open = life(None, 30.0, vec![trouble(Harm::HalfOpen, 20.0, 20.0)]);
        stopped.explain(&half_open, &absence(26.0, 31.0, false)).unwrap();
        // The client knew before the name was gone.
        assert_eq!(with(Some(TTL), 20.0, vec![], 20.5, 30.0), Ok(Duration::ZERO));
    }

    #[test]
    fn a_session_that_ends_is_explained_by_its_own_replica_alone() {
        let stop = |server, from, until| trouble((server, Blow::StopPastItsSessions), from, until);
        let explained = |replicas, zookeeper, ttl, sure_until| {
            world(replicas, zookeeper).explain(&life(ttl, sure_until, vec![]), &absence(16.0, 20.0, true))
        };
        explained(vec![], vec![], None, 20.0).unwrap_err();
        explained(vec![], vec![trouble(1, 10.0, 16.0)], None, 20.0).unwrap_err();
        explained(vec![stop(OTHER, 10.0, 17.0)], vec![], None, 20.0).unwrap_err();
        explained(vec![stop(FIRST, 10.0, 17.0)], vec![], None, 20.0).unwrap();
        explained(vec![stop(FIRST, 10.0, 17.0)], vec![], None, 21.0).unwrap();
        explained(vec![stop(FIRST, 13.0, 17.0)], vec![], None, 20.0).unwrap_err();
        let restored = |at| {
            world(vec![stop(FIRST, 10.0, 19.0)], vec![]).explain(&life(None, 90.0, vec![]), &absence(16.0, at, true))
        };
        restored(22.0).unwrap();
        restored(23.0).unwrap_err();
        explained(vec![trouble((Server { nth: 1, ..FIRST }, Blow::Kill), 10.0, 12.0)], vec![], None, 20.0).unwrap_err();
    }

    #[test]
    fn a_session_that_ends_right_after_its_replica_was_woken_takes_what_came_meanwhile() {
        let since = |seconds| {
            let mut life = life(Some(TTL), 90.0, vec![]);
            life.history[0].at = at(seconds);
            life
        };
        let woken = world(vec![trouble((FIRST, Blow::StopPastItsSessions), 10.0, 17.0)], vec![]);
        let explained = |since, until| woken.explain(&since, &absence(17.9, until, true));
        assert_eq!(explained(since(17.5), 18.1), Ok(199 * MS));
        explained(since(16.5), 18.1).unwrap_err();
        explained(since(17.5), 22.0).unwrap_err();
        // It was told so when nothing was there any more.
        woken.explain(&since(18.5), &absence(17.9, 20.0, true)).unwrap_err();
        let killed = world(vec![trouble((FIRST, Blow::Kill), 10.0, 12.0)], vec![]);
        killed.explain(&since(13.0), &absence(15.6, 15.9, true)).unwrap_err();
    }

    #[test]
    fn who_could_have_gone_elsewhere_in_time_has_no_excuse() {
        let killed = || vec![trouble((FIRST, Blow::Kill), 10.0, 12.0)];
        let ttl = Some(2 * TTL);
        let sure = || life(ttl, 16.4, vec![]);
        let gone = absence(15.9, 20.0, true);
        world(killed(), vec![]).explain(&sure(), &gone).unwrap_err();
        world(killed(), vec![trouble(1, 11.0, 15.0)]).explain(&sure(), &gone).unwrap();
        let both = || [killed(), vec![trouble((OTHER, Blow::Stop), 13.0, 15.0)]].concat();
        world(both(), vec![]).explain(&sure(), &gone).unwrap();
        let stalled = vec![trouble(Harm::Stall, 9.0, 15.0)];
        world(killed(), vec![]).explain(&life(ttl, 16.4, stalled), &gone).unwrap();
        // It can't learn of the end of its replica.
        let half_open = vec![trouble(Harm::HalfOpen, 8.0, 8.0)];
        world(killed(), vec![]).explain(&life(None, 18.0, half_open), &gone).unwrap();
        // Nothing was answered after the kill, so it can't have been certain for longer than the ttl.
        world(both(), vec![]).explain(&life(ttl, 18.0, vec![]), &gone).unwrap_err();
    }

    #[test]
    fn a_client_that_nothing_hinders_has_its_name_soon() {
        let troubles = || vec![trouble(Harm::Refuse, 30.0, 50.0)];
        let without = |present: &[(f64, f64)]| {
            let present: Vec<_> = present.iter().map(|(from, until)| (at(*from), at(*until))).collect();
            world(vec![], vec![trouble(0, 50.0, 52.0)]).without_name(&life(None, 90.0, troubles()), &present)
        };
        assert_eq!(without(&[(1.0, 30.0), (55.0, 200.0)]), Ok(3000 * MS));
        without(&[(11.0, 30.0), (55.0, 200.0)]).unwrap_err();
        without(&[(1.0, 30.0), (63.0, 200.0)]).unwrap_err();
        without(&[(1.0, 200.0)]).unwrap();
        without(&[(1.0, 80.0)]).unwrap_err();
    }
}
