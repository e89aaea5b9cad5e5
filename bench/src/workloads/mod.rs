//! The workloads: one file each. Each prepares its nodes and connections once, and then measures all systems in every
//! round.

mod get;
mod lock;
mod register;
mod watch;

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::report::Round;
use crate::setup::Setup;

/// How the systems were driven, for the reader of the report: by workload, or for all.
pub(crate) const NOTES: &[(&str, &str)] = &[
    (
        "all",
        "one ZooKeeper (its sample configuration) and one rollcall-server (its default options), both logging \
         warnings only, share this machine with their clients over loopback. `zookeeper` is the crate \
         zookeeper-client on one session, which leaves TCP_NODELAY off: one request at a time is slower through it \
         than ZooKeeper could answer; rollcall-server has ZooKeeper sessions of its own, 4 at first.",
    ),
    (
        register::NAME,
        "ephemeral nodes in batches that are taken down, unmeasured, before the next. `one stream` keeps 128 sets in \
         flight; `1,000 streams` opens as many over 10 connections that stand, one set each, and counts until the \
         last is answered. Rollcall adds a key to each value; ZooKeeper is given the same bytes as the client gives \
         Rollcall.",
    ),
    (
        get::NAME,
        "a path with 100 children and their values. Rollcall: one Get, CACHED, over one connection; the answer is \
         decoded into messages. zookeeper: the list, then 100 reads, pipelined; one multi: the list, then one multi \
         of 100 reads. These return bytes, and no one parses them.",
    ),
    (
        watch::NAME,
        "from just before a write, by zookeeper-client on a session of its own, until the event arrives at a Watch \
         stream, or at a persistent recursive watch of zookeeper-client. Rollcall's event carries the value; \
         ZooKeeper's is a path: `then read` reads the value too. The systems take turns, one write at a time, nothing \
         else under way.",
    ),
    (
        lock::NAME,
        "acquire and release, acknowledged, one after the other, nobody else there. Rollcall takes kazoo's Semaphore, \
         whose grant is a lease of its own; zookeeper is zookeeper-client's mutex with the names of kazoo's Lock, \
         which is three requests.",
    ),
];

/// The workloads' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Registrations per second.
    Register,
    /// Reads of a path with 100 children and their values, per second.
    Get,
    /// The time from a write to the event at one who watches.
    Watch,
    /// A lock, acquired and released, per second.
    Lock,
}

impl Name {
    /// All, in the order of the report.
    pub(crate) const ALL: [Name; 4] = [Name::Register, Name::Get, Name::Watch, Name::Lock];
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Name::Register => register::NAME,
            Name::Get => get::NAME,
            Name::Watch => watch::NAME,
            Name::Lock => lock::NAME,
        })
    }
}

/// A workload, prepared.
#[derive(Debug)]
pub(crate) enum Workload {
    /// See [`Name::Register`].
    Register(register::Register),
    /// See [`Name::Get`].
    Get(get::Get),
    /// See [`Name::Watch`].
    Watch(Box<watch::Watch>),
    /// See [`Name::Lock`].
    Lock(lock::Lock),
}

impl Workload {
    /// Makes the nodes and connections that it needs.
    pub(crate) async fn prepare(name: Name, setup: &Setup) -> anyhow::Result<Workload> {
        Ok(match name {
            Name::Register => Workload::Register(register::Register::prepare(setup).await?),
            Name::Get => Workload::Get(get::Get::prepare(setup).await?),
            Name::Watch => Workload::Watch(Box::new(watch::Watch::prepare(setup).await?)),
            Name::Lock => Workload::Lock(lock::Lock::prepare(setup).await?),
        })
    }

    /// Measures every system once, each for about `time`.
    pub(crate) async fn round(&mut self, round: u32, time: Duration, samples: &mut Round<'_>) -> anyhow::Result<()> {
        match self {
            Workload::Register(register) => register.round(round, time, samples).await,
            Workload::Get(get) => get.round(round, time, samples).await,
            Workload::Watch(watch) => watch.round(time, samples).await,
            Workload::Lock(lock) => lock.round(round, time, samples).await,
        }
    }
}

/// What is to be measured, in this round's order: each comes first in some round, and not always after the same other.
fn turn<T, const N: usize>(round: u32, mut all: [T; N]) -> [T; N] {
    let round = usize::try_from(round).unwrap_or_default();
    all.rotate_left(round % N);
    if round / N % 2 == 1 {
        all.reverse();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_comes_first_in_some_round() {
        let orders: Vec<[char; 3]> = (0..4).map(|round| turn(round, ['a', 'b', 'c'])).collect();
        assert_eq!(orders, [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'a', 'b'], ['c', 'b', 'a']]);
    }
}
