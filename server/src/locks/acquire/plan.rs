//! The lock recipe, as a pure function from the knowledge of an attempt to its next step. `attempt` carries the steps
//! out.
//!
//! The recipe is ZooKeeper's ("Locks" on its page of recipes), in the form of kazoo's `Semaphore`:
//! 1. Create a contender: an ephemeral, sequential node in the lock's queue.
//! 2. The contender with the lowest digits is the first. Every other one watches the contender next ahead, and nothing
//!    else, and looks again when that is gone.
//! 3. The first, and no other, counts the leases. If the limit is reached, it watches the list of leases and counts
//!    again after a change.
//! 4. If there is room, it deletes its contender and creates its lease. kazoo creates the lease first and deletes the
//!    contender then; here one transaction does both, so that a client is never in both places, nor in neither.
//!
//! Rules that the recipe needs in practice:
//! - An answer may be lost. The name of each node is unique, so that a node whose create was not answered is looked for
//!   before anything else, and used.
//! - The lock node holds the limit. A client that asks for another limit is refused, so every read that shows another
//!   write of the lock node has its number read again.
//! - A later contender is never ordered before an earlier one. So an older reading of the same session is enough to
//!   know which contenders can be ahead; a few of them are read one by one. This does not hold for digits that come
//!   [late](Digits::Late).
//! - A lease that ends on this replica may be handed off: the first contender replaces it in the transaction of step 4,
//!   whatever the number of leases.
//! - A client that only tries waits for nothing, and a wait that is over ends where the next wait would begin.
//! - A kazoo of 2.1 or older takes a lease without being the first. So the leases are counted once more after the
//!   grant, and the latest one too many is given back before the client gets `held` ([`confirm`]).
//!
//! Every step may be repeated. After any trouble the attempt forgets the facts that may have changed, and asks for the
//! next step.

use tokio::time::Instant;

use crate::locks::outcome::Outcome;
use crate::locks::recipe::contenders::{Contender, Digits, NEAR, Queue};
use crate::locks::recipe::lease_observation::ObservedLock;
use crate::locks::recipe::limit::may_take;
use crate::locks::recipe::own_nodes::NodeState;
use crate::locks::request::Wait;
use crate::types::Zxid;
use crate::zk::ErrorCode;

/// The knowledge of an attempt when it decides.
#[derive(Debug, Clone)]
pub(super) struct Knowledge<'a> {
    /// Whether the client still wants the lock.
    pub(super) is_wanted: bool,
    pub(super) wait: Wait,
    /// Maximum number of holders.
    pub(super) limit: u32,
    pub(super) contender: &'a NodeState,
    pub(super) lease: &'a NodeState,
    /// Whether the lock may have neither holders nor contenders, as far as this replica knows. Only of a new attempt.
    pub(super) may_be_vacant: bool,
    pub(super) lock_node: LockNodeCheck,
    /// Whether the lock node was seen to have a durable child that is no lease.
    pub(super) has_strays: bool,
    pub(super) place: &'a QueuePlace,
    /// The last reading in this session, if it lists the contender.
    pub(super) recent: Option<RecentReading>,
    pub(super) leases: LeaseCount,
    /// Whether a lease was offered in a handoff.
    pub(super) is_offered: bool,
}

/// The knowledge of the lock node's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockNodeCheck {
    /// It was not read yet.
    Unread,
    /// It was the limit, as this transaction had written it.
    Fits(Zxid),
    /// It was the limit, and the lock node has been written or deleted since.
    Changed,
}

/// The knowledge of the contender's place in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum QueuePlace {
    Unknown,
    /// A list that was read after the contender was created does not have it.
    Missing,
    /// These were ahead in an older reading, the next one last; no others are.
    AtMostBehind(Vec<String>),
    /// This contender is next ahead.
    Behind {
        name: String,
        is_watched: bool,
    },
    First,
}

/// The last reading, for a contender that it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecentReading {
    /// Number of contenders ahead.
    pub(super) ahead: usize,
    /// The transaction that last wrote the lock node; `None`: it does not exist.
    pub(super) lock: Option<Zxid>,
    /// Number of leases; `None`: it has changed since.
    pub(super) leases: Option<usize>,
}

/// The knowledge of the first contender about the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseCount {
    Unknown,
    /// Not known, and no handoff came in the time in which one was likely.
    NotHandedOff,
    /// So many, and a watch fires when the number changes.
    Watched(usize),
}

/// The next step of an attempt.
#[derive(Debug, PartialEq)]
pub(super) enum LockStep {
    /// End the attempt.
    End(Outcome),
    /// Refuse: the path is no lock, because its node has durable children that are no leases.
    RefuseStrays,
    /// Find out whether the lease exists: the transaction that was to make it was not answered.
    FindLease,
    /// Find out whether the contender exists: its create was not answered.
    FindContender,
    /// Take the lock in one transaction if it is vacant.
    TakeIfVacant,
    /// Create the contender.
    Enqueue {
        /// Read the lock node's number at the same time.
        check_limit: bool,
        /// Let the next handoff create it, if one is near.
        may_join_handoff: bool,
    },
    /// Read the lock node's number, and create the node if it is missing.
    CheckLimit,
    /// Give the contender back and wait until the queue counts from zero: its digits are no place in the queue.
    AwaitNewDigits,
    /// Find the contender's place in the last reading, at no cost.
    UseRecentReading,
    /// Find the contender's place in a new reading.
    ReadQueue,
    /// Read these contenders, and find the last of them that exists.
    ReadAhead(Vec<String>),
    /// Find out how the contender ended.
    FindDeleter,
    /// Set a watch on the contender next ahead.
    WatchAhead(String),
    /// Wait until that watch fires.
    AwaitAhead(String),
    /// Wait for a handoff as long as one is likely.
    AwaitHandoff,
    /// Count the leases, and set a watch on them.
    WatchLeases,
    /// Wait until that watch fires, or a lease is offered.
    AwaitLease,
    /// Replace the contender by a lease; and with it the lease that was offered, if one was.
    TakeLease,
}

/// The next step.
pub(super) fn next_step(known: &Knowledge<'_>, now: Instant) -> LockStep {
    // Many attempts may be cancelled at once before they begin.
    if !known.is_wanted {
        return LockStep::End(Outcome::Stopped);
    }
    if *known.lease == NodeState::Unknown {
        return LockStep::FindLease;
    }
    let is_checked = matches!(known.lock_node, LockNodeCheck::Fits(_));
    let contender = match known.contender {
        NodeState::Unknown => return LockStep::FindContender,
        _ if known.may_be_vacant => return LockStep::TakeIfVacant,
        NodeState::Absent => {
            // A client that only tries is not kept waiting for a handoff.
            let may_join_handoff = is_checked && known.wait != Wait::Try;
            return LockStep::Enqueue { check_limit: !is_checked, may_join_handoff };
        }
        NodeState::Exists(name) => name,
    };
    if known.has_strays {
        return LockStep::RefuseStrays;
    }
    if !is_checked {
        return LockStep::CheckLimit;
    }
    let digits = Digits::of(contender);
    if digits == Digits::RunOut {
        return LockStep::AwaitNewDigits;
    }
    match known.place {
        QueuePlace::Unknown => match known.recent {
            Some(recent) if digits == Digits::Sure && recent.ahead <= NEAR => LockStep::UseRecentReading,
            _ => LockStep::ReadQueue,
        },
        QueuePlace::Missing => LockStep::FindDeleter,
        QueuePlace::AtMostBehind(names) => LockStep::ReadAhead(names.clone()),
        QueuePlace::Behind { name, is_watched: false } => LockStep::WatchAhead(name.clone()),
        QueuePlace::Behind { name, is_watched: true } => {
            wait_or_end(known.wait, now, || LockStep::AwaitAhead(name.clone()))
        }
        QueuePlace::First => step_of_first(known, now),
    }
}

/// The next step of the first contender.
fn step_of_first(known: &Knowledge<'_>, now: Instant) -> LockStep {
    if known.is_offered {
        return LockStep::TakeLease;
    }
    match known.leases {
        LeaseCount::Unknown if had_room(known) => LockStep::TakeLease,
        // Where several clients may hold the lock there may be room already; and a client that only tries does not
        // wait.
        LeaseCount::Unknown if known.limit == 1 && known.wait != Wait::Try => LockStep::AwaitHandoff,
        LeaseCount::Unknown | LeaseCount::NotHandedOff => LockStep::WatchLeases,
        LeaseCount::Watched(leases) if may_take(known.limit, leases) => LockStep::TakeLease,
        LeaseCount::Watched(_) => wait_or_end(known.wait, now, || LockStep::AwaitLease),
    }
}

/// Whether the last reading shows room for a lease, and the contender as the first: only the first takes a lease, so
/// that the room is still there.
fn had_room(known: &Knowledge<'_>) -> bool {
    known.recent.is_some_and(|recent| {
        let is_checked = recent.lock.is_some_and(|written| known.lock_node == LockNodeCheck::Fits(written));
        recent.ahead == 0 && is_checked && recent.leases.is_some_and(|leases| may_take(known.limit, leases))
    })
}

/// A wait, unless it would be over at once.
fn wait_or_end(wait: Wait, now: Instant, step: impl FnOnce() -> LockStep) -> LockStep {
    match wait {
        Wait::Try => LockStep::End(Outcome::Busy),
        Wait::Until(deadline) if now >= deadline => LockStep::End(Outcome::Busy),
        Wait::Until(_) | Wait::Forever => step(),
    }
}

/// The knowledge of the lock node's number after a read that shows `written` as its last write.
pub(super) fn lock_node_after_read(known: LockNodeCheck, written: Option<Zxid>) -> LockNodeCheck {
    let is_same = written.is_some_and(|written| known == LockNodeCheck::Fits(written));
    if is_same { known } else { LockNodeCheck::Changed }
}

/// The contender's place in a reading. `gone`: a contender that was seen to end. `is_older`: the reading may have begun
/// before the contender was created, or since when others have left.
pub(super) fn place_in(queue: &Queue, contender: &str, gone: Option<&str>, is_older: bool) -> QueuePlace {
    let Some(ahead) = queue.ahead_of(contender) else {
        return if is_older { QueuePlace::Unknown } else { QueuePlace::Missing };
    };
    if is_older {
        return match ahead {
            // The contender whose end was awaited is the last of them, and often the only one.
            [others @ .., last] if gone == Some(last.name.as_str()) => at_most_behind(others),
            all => at_most_behind(all),
        };
    }
    ahead.last().map_or(QueuePlace::First, |next| QueuePlace::Behind { name: next.name.clone(), is_watched: false })
}

fn at_most_behind(ahead: &[Contender]) -> QueuePlace {
    if ahead.is_empty() {
        return QueuePlace::First;
    }
    QueuePlace::AtMostBehind(ahead.iter().map(|contender| contender.name.clone()).collect())
}

/// The place after a wait, a failure or a step that has changed nothing. The first contender stays the
/// first as long as it exists, unless its digits come late.
pub(super) fn place_later(place: &QueuePlace, contender: &NodeState) -> QueuePlace {
    let is_sure = |name: &String| Digits::of(name) == Digits::Sure;
    match (place, contender) {
        (QueuePlace::First, NodeState::Exists(name)) if is_sure(name) => QueuePlace::First,
        _ => QueuePlace::Unknown,
    }
}

/// The meaning of a refusal of the transaction that was to make the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantRefusal {
    /// Nothing about this attempt: try again.
    TryAgain,
    /// The contender does not exist.
    NoContender,
    /// The lock node does not exist.
    NoLockNode,
    /// The node that holds the records of leases does not exist.
    NoRecords,
    /// Another refusal.
    Other(ErrorCode),
}

/// Interprets the refusal of the operation at `index` of the transaction [delete the offered lease, if `is_handoff`;
/// delete the contender; create the lease; create its record, if it has a ttl; create contenders that join the
/// handoff]. `own`: number of operations without the last kind.
pub(super) fn grant_refusal(index: usize, code: ErrorCode, is_handoff: bool, own: usize) -> GrantRefusal {
    let contender = usize::from(is_handoff);
    match code {
        // A contender that was to join: it is created alone now, and so is the lease.
        _ if index >= own => GrantRefusal::TryAgain,
        // Another program has deleted the offered lease.
        ErrorCode::NoNode if index < contender => GrantRefusal::TryAgain,
        ErrorCode::NoNode if index == contender => GrantRefusal::NoContender,
        ErrorCode::NoNode if index == contender + 1 => GrantRefusal::NoLockNode,
        ErrorCode::NoNode => GrantRefusal::NoRecords,
        code => GrantRefusal::Other(code),
    }
}

/// The conclusion from a look at a lease that exists, before the client is told that it holds the lock.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// Tell it.
    Hold,
    /// The lock node was written since its number was read: give the lease back and start again.
    LimitChanged,
    /// There are more leases than the limit: read when they were granted; the latest give way.
    CompareGrants,
}

/// Judges a lease that was granted and exists, by a look at the lock node since then.
pub(super) fn confirm(limit: u32, lock_node: LockNodeCheck, observed: ObservedLock) -> Confirmation {
    if observed.written.is_none_or(|written| lock_node != LockNodeCheck::Fits(written)) {
        return Confirmation::LimitChanged;
    }
    if observed.leases > 1 && !may_take(limit, observed.leases - 1) {
        return Confirmation::CompareGrants;
    }
    Confirmation::Hold
}
