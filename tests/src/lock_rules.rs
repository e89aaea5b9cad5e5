//! The rules of a lock. They are checked against ZooKeeper's own order, read from its transaction logs, and compared
//! with the messages that clients received.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::contender::{Attempt, Belief, Lock, TTL, by_name};
use crate::journal::{Journal, Life};

/// An interval in which a replica was stopped for so long that a lock may have been lost: it can't report a loss then.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The replica.
    pub replica: usize,
    /// The begin of the stop.
    pub from: SystemTime,
    /// The end of the stop.
    pub until: SystemTime,
}

/// The nodes of one lock, in ZooKeeper's order.
#[derive(Debug)]
struct History {
    leases: Vec<Life>,
    contenders: Vec<Life>,
}

/// The result of a check, with counts of the checked events.
#[derive(Debug, Default)]
pub struct Findings {
    /// The violations of rules.
    pub broken: Vec<String>,
    /// If a rule was broken, ZooKeeper's log of the lock, line by line.
    pub story: Vec<String>,
    /// Leases created.
    pub grants: usize,
    /// Contenders of other programs.
    pub foreign: usize,
    /// Intervals in which a client believed that it held the lock.
    pub beliefs: usize,
    /// Attempts whose client received `lost`.
    pub told: usize,
    /// Beliefs that outlasted the lease because the replica was stopped.
    pub excused: usize,
    /// Contenders that were created by the transaction in which the lock changed hands.
    pub entered_with_a_change: usize,
    /// Writes that a guarded resource refused.
    pub refused: usize,
    /// The longest time for which a node outlived its client.
    pub outlived: Duration,
}

/// Checks a lock. `bound` is the time for which its nodes may outlive their clients, when everything has failed.
pub fn check(lock: &Lock, journal: &Journal, attempts: &[Attempt], stopped: &[Stopped], bound: Duration) -> Findings {
    let (leases, queue) = (format!("{}/", lock.path), format!("{}-__lock__/", lock.path));
    let history = History {
        leases: journal.lives(|path| path.starts_with(&leases)),
        contenders: journal.lives(|path| path.starts_with(&queue)),
    };
    let grants: BTreeSet<_> = history.leases.iter().map(|lease| lease.created).collect();
    // The contender of a client that takes a free lock at once is created and deleted in one transaction.
    let entered_with_a_change =
        |life: &&Life| grants.contains(&life.created) && life.ended.is_none_or(|(ended, _)| ended != life.created);
    let entered_with_a_change = history.contenders.iter().filter(entered_with_a_change).count();
    let mut findings = Findings { grants: history.leases.len(), entered_with_a_change, ..Findings::default() };
    never_too_many(lock, &history, &mut findings);
    only_the_first_is_served(&history, &mut findings);
    let of_this_lock: Vec<_> = attempts.iter().filter(|attempt| attempt.path == lock.path).cloned().collect();
    nothing_outlives_its_client(&history, &of_this_lock, bound, &mut findings);
    losses_are_told_in_time(&history, &of_this_lock, stopped, &mut findings);
    if lock.limit == 1 {
        holders_follow_each_other(&of_this_lock, stopped, &mut findings);
        late_writers_were_stopped(lock, &of_this_lock, stopped, &mut findings);
    }
    if !findings.broken.is_empty() {
        findings.story = story(&history);
    }
    findings
}

fn story(history: &History) -> Vec<String> {
    let mut lines = Vec::new();
    for life in history.contenders.iter().chain(&history.leases) {
        let what = match number(life) {
            Some(number) => format!("contender {number}"),
            None => format!("lease {}", life.path),
        };
        let who = format!("{what} of {} in session {:#x}", name(life), life.session);
        if let Some((ended, at)) = life.ended {
            lines.push((ended, format!("{at:?} {ended:#x} - {who}")));
        }
        lines.push((life.created, format!("{:?} {:#x} + {who}", life.from, life.created)));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

fn never_too_many(lock: &Lock, history: &History, findings: &mut Findings) {
    // The end of a lease that is replaced in one transaction sorts before the begin of the new one.
    let mut changes: Vec<(i64, i32)> = history.leases.iter().map(|life| (life.created, 1)).collect();
    changes.extend(history.leases.iter().filter_map(|life| Some((life.ended?.0, -1))));
    changes.sort_unstable();
    let mut held = 0;
    for (zxid, change) in changes {
        held += change;
        if held > i32::try_from(lock.limit).unwrap() {
            findings.broken.push(format!("{held} hold {} at {zxid:#x}, which {} may", lock.path, lock.limit));
        }
    }
}

/// A contender's number; `None` for a node that is no contender.
fn number(life: &Life) -> Option<i64> {
    let (_, digits) = life.path.rsplit_once("__lock__")?;
    digits.parse().ok()
}

fn only_the_first_is_served(history: &History, findings: &mut Findings) {
    for lease in &history.leases {
        let waits =
            |life: &&Life| life.created <= lease.created && life.ended.is_none_or(|(ended, _)| ended >= lease.created);
        let waiting = history.contenders.iter().filter(waits);
        let first = waiting.filter(|life| number(life).is_some()).min_by_key(|life| number(life));
        let is_it = |first: &Life| first.session == lease.session && name(first) == name(lease);
        if !first.is_some_and(is_it) {
            let holder = String::from_utf8_lossy(&lease.data);
            findings.broken.push(format!("{holder} was served at {:#x} before {first:?}", lease.created));
        }
    }
}

/// The name in the data of a contender or a lease. kazoo's contenders have it as a Python bytes literal.
fn name(life: &Life) -> String {
    String::from_utf8_lossy(&life.data).trim_start_matches("b'").trim_end_matches('\'').to_owned()
}

fn nothing_outlives_its_client(history: &History, attempts: &[Attempt], bound: Duration, findings: &mut Findings) {
    let attempts = by_name(attempts);
    for life in history.leases.iter().chain(&history.contenders) {
        let Some(attempt) = attempts.get(name(life).as_str()) else {
            findings.foreign += usize::from(life.path.contains("__lock__/"));
            continue;
        };
        let bound = if attempt.lasting { bound + TTL } else { bound };
        let outlived = life.ended.map(|(_, at)| at.duration_since(attempt.ended).unwrap_or_default());
        findings.outlived = findings.outlived.max(outlived.unwrap_or_default());
        if outlived.is_none_or(|outlived| outlived > bound) {
            findings.broken.push(format!("{} stood for {outlived:?} after its client left: {attempt:?}", life.path));
        }
    }
}

fn is_excused(belief: &Belief, stopped: &[Stopped]) -> bool {
    let overlaps = |stop: &&Stopped| stop.from <= belief.until && stop.until >= belief.from;
    stopped.iter().filter(|stop| stop.replica == belief.replica).find(overlaps).is_some()
}

fn losses_are_told_in_time(history: &History, attempts: &[Attempt], stopped: &[Stopped], findings: &mut Findings) {
    // ZooKeeper's times are cut to milliseconds, and come from the leader's clock when it proposed the transaction.
    const CLOCK: Duration = Duration::from_millis(1);
    let leases: BTreeMap<i64, &Life> = history.leases.iter().map(|life| (life.created, life)).collect();
    for attempt in attempts {
        findings.told += usize::from(attempt.was_told_of_a_loss);
        for belief in &attempt.beliefs {
            findings.beliefs += 1;
            let Some(lease) = leases.get(&belief.token).filter(|lease| name(lease) == attempt.name) else {
                findings.broken.push(format!("no lease has the token that was told: {belief:?} {attempt:?}"));
                continue;
            };
            let Some((_, ended)) = lease.ended.filter(|(_, at)| *at + CLOCK < belief.until) else { continue };
            if is_excused(belief, stopped) {
                findings.excused += 1;
            } else {
                let late = belief.until.duration_since(ended).unwrap_or_default();
                findings.broken.push(format!("the loss was told {late:?} late: {belief:?} {lease:?} {attempt:?}"));
            }
        }
    }
}

/// For a lock with one holder: no two clients believed that they held it at the same time.
fn holders_follow_each_other(attempts: &[Attempt], stopped: &[Stopped], findings: &mut Findings) {
    let mut beliefs: Vec<_> = attempts.iter().flat_map(|attempt| &attempt.beliefs).collect();
    beliefs.sort_by_key(|belief| belief.token);
    let mut latest: Option<&Belief> = None;
    for belief in beliefs {
        if let Some(before) = latest.filter(|before| before.token < belief.token && before.until > belief.from)
            && !is_excused(before, stopped)
        {
            findings.broken.push(format!("two took the lock for their own: {before:?} {belief:?}"));
        }
        latest = latest.filter(|before| before.until > belief.until).or(Some(belief));
    }
}

fn late_writers_were_stopped(lock: &Lock, attempts: &[Attempt], stopped: &[Stopped], findings: &mut Findings) {
    let beliefs: Vec<_> = attempts.iter().flat_map(|attempt| &attempt.beliefs).collect();
    for (token, at) in &lock.guarded.lock().unwrap().refused {
        findings.refused += 1;
        let writer = beliefs.iter().find(|belief| belief.token == *token && belief.from <= *at && *at <= belief.until);
        if !writer.is_some_and(|belief| is_excused(belief, stopped)) {
            findings.broken.push(format!("{} refused the token {token} of a holder: {writer:?}", lock.path));
        }
    }
}
