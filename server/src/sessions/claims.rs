//! What a registration is to be, and what is to be done about the node that exists. Pure; `claiming` carries it out.

use std::cmp;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::attempted::Attempted;
use super::outbox::Outbox;
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::{EncodedValue, Stamp, own};
use crate::zk::{Moves, Read};

/// What a registration is to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// What a client has just set: shared, since a claim is kept until it is known what became of it.
    Fresh(Arc<Fresh>),
    /// The bytes that stood.
    Exact(Bytes),
}

/// A value, and what the server adds to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fresh {
    pub(super) value: EncodedValue,
    pub(super) stamp: Stamp,
}

impl Content {
    pub(super) fn bytes(&self) -> Bytes {
        match self {
            Self::Fresh(fresh) => fresh.value.to_stamped_bytes(&fresh.stamp),
            Self::Exact(bytes) => bytes.clone(),
        }
    }

    /// The bytes for the same holder as before: the server's keys keep their first value.
    pub(super) fn bytes_keeping(&self, first: &Bytes) -> Bytes {
        match self {
            Self::Fresh(fresh) => fresh.value.to_bytes_keeping(first, &fresh.stamp),
            Self::Exact(bytes) => bytes.clone(),
        }
    }

    /// How many bytes it has, about.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fresh(fresh) => fresh.value.len(),
            Self::Exact(bytes) => bytes.len(),
        }
    }

    pub(super) fn is_same(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Fresh(fresh) => fresh.value.is_same_data(bytes),
            Self::Exact(exact) => exact == bytes,
        }
    }

    /// Whether these bytes are this very value, `created` included: then a later incarnation is ours as well.
    pub(super) fn is_identical(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Fresh(fresh) => fresh.value.is_identical(bytes),
            Self::Exact(exact) => exact == bytes,
        }
    }
}

/// What may be done about a node that stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Policy {
    /// Any ephemeral is taken over.
    TakeOver,
    /// Nothing is.
    Exclusive,
    /// This incarnation, or a later one with the same value, is ours; nothing later is taken over.
    Resume(Generation),
    /// Our own registration gets new data.
    Update(Generation),
    /// This incarnation is ours, and most likely gone with its session; nothing later is taken over, whatever it holds.
    Restore(Generation),
    /// This incarnation is ours, and another has written into it: it gets the bytes of its holder again, if it exists as it
    /// was made.
    PutRight(Generation),
    /// As [`Policy::Restore`], where the node was deleted by a foreign hand and its session stands.
    PutBack {
        /// The incarnation that was deleted.
        generation: Generation,
        /// The session that held it, and is to hold it again.
        session: SessionId,
        /// What was known of its fence when it was made; `None` when the watch has shown that nobody took it over.
        moves: Option<Moves>,
    },
}

impl Policy {
    /// The incarnation that is known, where there is one.
    pub(super) fn known(&self) -> Option<Generation> {
        match self {
            Self::TakeOver | Self::Exclusive => None,
            Self::Resume(generation)
            | Self::Update(generation)
            | Self::Restore(generation)
            | Self::PutRight(generation)
            | Self::PutBack { generation, .. } => Some(*generation),
        }
    }
}

/// On whose behalf a claim is made.
#[derive(Debug, Clone)]
pub(super) enum Asker {
    /// The replica's own: it registers again.
    Replica,
    /// A client's, whose RPC this outbox belongs to.
    Client(Arc<Outbox>),
    /// A client's whose RPC is over.
    Gone,
}

impl Asker {
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Replica => false,
            Self::Client(outbox) => outbox.is_abandoned(),
            Self::Gone => true,
        }
    }
}

/// A wish to hold a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) content: Content,
    pub(super) policy: Policy,
    /// The sessions in which a create was sent whose outcome is not known.
    pub(super) attempted: Attempted,
    /// The session that stands and in which the path has its node, or had until it was deleted: there it has room.
    pub(super) home: Option<SessionId>,
    /// The bytes that the same holder has had written before, where they are known: what exists may have been overwritten.
    pub(super) first: Option<Bytes>,
    /// Whether the client knows that it takes longer.
    pub(super) told_pending: bool,
    abandoned: Abandoned,
}

/// Whether nobody wants a claim any more: shared by all copies of one claim.
#[derive(Debug, Clone, Default)]
struct Abandoned(Arc<AtomicBool>);

impl PartialEq for Abandoned {
    fn eq(&self, other: &Self) -> bool {
        self.0.load(Ordering::Relaxed) == other.0.load(Ordering::Relaxed)
    }
}

impl Claim {
    pub(super) fn new(content: Content, policy: Policy) -> Self {
        Self {
            content,
            policy,
            attempted: Attempted::default(),
            home: None,
            first: None,
            told_pending: false,
            abandoned: Abandoned::default(),
        }
    }

    /// The bytes for a node that does not exist.
    pub(super) fn bytes(&self) -> Bytes {
        self.first.as_ref().map_or_else(|| self.content.bytes(), |first| self.bytes_after(first))
    }

    /// The bytes for the same holder as before, who has had `first` written; these themselves where they are the same data.
    fn bytes_after(&self, first: &Bytes) -> Bytes {
        if self.content.is_same(first) { own(first) } else { self.content.bytes_keeping(first) }
    }

    /// Whether it puts right what another has written.
    pub(super) fn is_put_right(&self) -> bool {
        matches!(self.policy, Policy::PutRight(_))
    }

    /// Whether a node that it has made may exist, if these are the ZooKeeper sessions that stand.
    pub(super) fn may_exist(&self, standing: &HashSet<SessionId>) -> bool {
        self.attempted.latest_first().any(|session| standing.contains(&session))
    }

    /// Nobody wants it any more: if it has not begun yet, it is not carried out.
    pub(super) fn abandon(&self) {
        self.abandoned.0.store(true, Ordering::Release);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.0.load(Ordering::Acquire)
    }
}

/// A node of ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) generation: Generation,
    pub(super) session: SessionId,
    pub(super) bytes: Bytes,
    /// The last write that we know of: events up to it are no news.
    pub(super) written: Zxid,
    /// What was known of the session's fence before the node was made or adopted.
    pub(super) moves: Moves,
}

impl Held {
    /// How many bytes of data it has.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// What became of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The path is ours.
    Held { held: Held, stat: Stat, adopted: bool },
    /// A later incarnation stands.
    TakenOver,
    /// It can't be had.
    Refused(Error),
    /// ZooKeeper can't be reached; a create was sent in this session, by this try or an earlier one.
    Unavailable { attempted: Option<SessionId> },
}

/// What stands at a path.
#[derive(Debug)]
pub(super) enum Observed {
    Absent,
    /// Nothing, and there is a record of an eviction, written by this transaction.
    Evicted {
        written: Zxid,
    },
    Standing {
        read: Read,
    },
}

/// What the next step of a claim is, after a look at what stands. Pure.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Create the node.
    Create,
    /// The node is ours as it is.
    Keep,
    /// The node is ours, and gets these bytes.
    Write(Bytes),
    /// Replace the node by one of ours with these bytes.
    Replace {
        bytes: Bytes,
        adopted: bool,
    },
    /// The server that was read is behind: look again.
    Behind,
    /// Nothing, before it is known what has happened.
    Leave,
    /// A later incarnation stands.
    TakenOver,
    Refuse(Error),
}

/// Decides about the node that stands. `on_our_session`: it belongs to a session of this replica that stands.
/// `is_current`: what was read is not older than the claim.
pub(super) fn decide(
    claim: &Claim,
    path: &NodePath,
    read: Option<&Read>,
    on_our_session: bool,
    is_current: bool,
) -> Step {
    let Some(read) = read else { return if claim.is_put_right() { Step::Leave } else { Step::Create } };
    let standing = Generation(read.stat.czxid);
    if let Policy::PutRight(generation) = claim.policy {
        // Its deletion, or the end of its session, is not known yet.
        return match standing.cmp(&generation) {
            cmp::Ordering::Greater => Step::TakenOver,
            cmp::Ordering::Equal if on_our_session && claim.content.is_same(&read.data) => Step::Keep,
            cmp::Ordering::Equal if on_our_session => Step::Write(claim.content.bytes()),
            cmp::Ordering::Equal | cmp::Ordering::Less => Step::Leave,
        };
    }
    if !read.stat.is_ephemeral() {
        return match claim.policy {
            // Nobody asks: as with any other later node in its place.
            Policy::Restore(before) | Policy::PutBack { generation: before, .. } if standing > before => {
                Step::TakenOver
            }
            _ => Step::Refuse(Error::NotEphemeral { path: path.clone() }),
        };
    }
    let owner = SessionId(read.stat.ephemeral_owner);
    let was_our_create = on_our_session && claim.attempted.has(owner) && claim.content.is_same(&read.data);
    let resumed = match (claim.policy.known(), &claim.policy) {
        _ if was_our_create => return Step::Keep,
        (_, Policy::Exclusive) => return Step::Refuse(Error::NameTaken { path: path.clone() }),
        (None, _) => return Step::Replace { bytes: claim.content.bytes(), adopted: false },
        (Some(generation), _) => generation,
    };
    let first = claim.first.as_ref().filter(|_| standing == resumed).unwrap_or(&read.data);
    let bytes = claim.bytes_after(first);
    let is_later_ours = || match claim.policy {
        Policy::TakeOver | Policy::Exclusive | Policy::Resume(_) | Policy::Update(_) => {
            claim.content.is_identical(&read.data)
        }
        // Nobody asks: the client may have gone to another replica, and have resumed there with the very same bytes.
        Policy::Restore(_) | Policy::PutBack { .. } | Policy::PutRight(_) => claim.attempted.has(owner),
    };
    match standing.cmp(&resumed) {
        cmp::Ordering::Less if !is_current => Step::Behind,
        cmp::Ordering::Greater if !is_later_ours() => Step::TakenOver,
        // An older incarnation than ours stands only when ZooKeeper has lost what came after.
        _ if on_our_session && bytes == read.data => Step::Keep,
        _ if on_our_session => Step::Write(bytes),
        _ => Step::Replace { bytes, adopted: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Bytes = Bytes::from_static(b"x");

    fn decided(policy: Policy, sessions: &[i64], czxid: i64, owner: i64) -> Step {
        let path = NodePath::parse("/a/b").unwrap();
        let stat = Stat { czxid, mzxid: czxid, ephemeral_owner: owner, ..Stat::default() };
        let mut claim = Claim::new(Content::Exact(BYTES), policy);
        sessions.iter().for_each(|session| claim.attempted.add(SessionId(*session)));
        decide(&claim, &path, Some(&Read { data: BYTES, stat }), false, true)
    }

    fn replaced() -> Step {
        Step::Replace { bytes: BYTES, adopted: true }
    }

    #[test]
    fn the_client_that_comes_back_owns_a_later_incarnation_with_the_same_bytes() {
        assert_eq!(decided(Policy::Resume(Generation(5)), &[], 6, 1), replaced());
    }

    #[test]
    fn only_the_very_node_that_was_overwritten_is_put_right() {
        let path = NodePath::parse("/a/b").unwrap();
        let decided = |czxid, owner, data: &'static str, on_our_session| {
            let stat = Stat { czxid, ephemeral_owner: owner, ..Stat::default() };
            let claim = Claim::new(Content::Exact(BYTES), Policy::PutRight(Generation(5)));
            decide(&claim, &path, Some(&Read { data: data.into(), stat }), on_our_session, true)
        };
        assert_eq!(decided(5, 1, "theirs", true), Step::Write(BYTES));
        assert_eq!(decided(5, 1, "x", true), Step::Keep);
        assert_eq!(decided(5, 1, "theirs", false), Step::Leave, "its session is ending");
        assert_eq!(decided(4, 1, "theirs", true), Step::Leave, "the server that was read is behind");
        assert_eq!(decided(6, 1, "theirs", true), Step::TakenOver);
        assert_eq!(decided(6, 0, "theirs", false), Step::TakenOver, "by a durable node");
        let claim = Claim::new(Content::Exact(BYTES), Policy::PutRight(Generation(5)));
        assert_eq!(decide(&claim, &path, None, false, true), Step::Leave, "what is deleted is put back, not put right");
    }

    /// An overwritten node: what the client has had written before says what is the same, and not what stands.
    #[test]
    fn a_client_that_sets_the_same_data_again_has_its_own_keys_and_not_those_of_a_stranger() {
        let path = NodePath::parse("/a/b").unwrap();
        let decided = |json: &[u8], first: Option<&'static str>, data: &'static str| {
            let stamp = Stamp { pid: Some(1), created: "now".to_owned() };
            let value = EncodedValue::object(json, false, false);
            let content = Content::Fresh(Arc::new(Fresh { value, stamp }));
            let mut claim = Claim::new(content, Policy::Update(Generation(5)));
            claim.first = first.map(Into::into);
            let stat = Stat { czxid: 5, ephemeral_owner: 1, ..Stat::default() };
            decide(&claim, &path, Some(&Read { data: data.into(), stat }), true, true)
        };
        let (ours, theirs) = (r#"{"pid":1,"created":"then","a":1}"#, r#"{"pid":9,"created":"later","a":1}"#);
        assert_eq!(decided(br#"{"a":1}"#, Some(ours), ours), Step::Keep);
        assert_eq!(decided(br#"{"a":1}"#, Some(ours), theirs), Step::Write(ours.into()));
        let other = r#"{"pid":1,"created":"then","a":2}"#;
        assert_eq!(decided(br#"{"a":2}"#, Some(ours), theirs), Step::Write(other.into()));
        assert_eq!(decided(br#"{"a":1}"#, None, theirs), Step::Keep, "another replica knows no other");
    }

    #[test]
    fn a_replica_that_registers_again_takes_nothing_over_that_is_later() {
        let put_back = Policy::PutBack { generation: Generation(5), session: SessionId(3), moves: None };
        for policy in [Policy::Restore(Generation(5)), put_back] {
            assert_eq!(decided(policy.clone(), &[], 6, 1), Step::TakenOver, "the client has resumed elsewhere");
            assert_eq!(decided(policy.clone(), &[2], 6, 1), Step::TakenOver);
            assert_eq!(decided(policy.clone(), &[1], 6, 1), replaced(), "an answer was lost");
            assert_eq!(decided(policy.clone(), &[1, 2], 6, 1), replaced(), "and another, in another session");
            assert_eq!(decided(policy, &[], 5, 1), replaced(), "seen where its session's end has not arrived");
        }
    }
}
