//! The content and the policy of a claim, its result, and the decision about the node that exists. Pure; `claiming`
//! carries it out.

use std::cmp;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::uncertain_creates::UncertainCreates;
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId, Stat, Zxid};
use crate::value::{EncodedValue, Stamp, own};
use crate::zk::{FenceEpoch, Read};

/// The data that a registration is to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Data that a client has just set. Shared, because a claim is kept until its result is known.
    Fresh(Arc<Fresh>),
    /// The bytes that the node had.
    Exact(Bytes),
}

/// A value, and the keys that the server adds to it.
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

    /// The approximate number of bytes.
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

    /// Whether these bytes are this very value, `created` included. A later incarnation that has them is ours as well.
    pub(super) fn is_identical(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Fresh(fresh) => fresh.value.is_identical(bytes),
            Self::Exact(exact) => exact == bytes,
        }
    }
}

/// The right of a claim over a node that exists.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Policy {
    /// Any ephemeral is taken over.
    TakeOver,
    /// Nothing is taken over.
    Exclusive,
    /// This incarnation, or a later one with the same value, is ours; nothing later is taken over.
    Resume(Generation),
    /// Our own registration gets new data.
    Update(Generation),
    /// This incarnation is ours, and most likely gone with its session. Nothing later is taken over, whatever it holds.
    Restore(Generation),
    /// This incarnation is ours, and another program has written into it. It gets the bytes of its holder again, if it
    /// exists as it was made.
    PutRight(Generation),
    /// Like [`Policy::Restore`], for a node that a foreign program deleted while its session lives.
    PutBack {
        /// The incarnation that was deleted.
        generation: Generation,
        /// The session that held the node, and is to hold it again.
        session: SessionId,
        /// The state of the session's fence that was known when the node was made; `None` if the watch has shown that
        /// nobody took the node over.
        fence_epoch: Option<FenceEpoch>,
    },
}

impl Policy {
    /// The incarnation that is known, if there is one.
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

/// A claim to hold a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Claim {
    pub(super) content: Content,
    pub(super) policy: Policy,
    /// The sessions in which a create was sent whose outcome is not known.
    pub(super) uncertain_creates: UncertainCreates,
    /// The live session in which the path has its node, or had it until it was deleted: there it has room.
    pub(super) home: Option<SessionId>,
    /// The bytes that the same holder had written before, if they are known: the node may have been overwritten.
    pub(super) first: Option<Bytes>,
    /// Whether the client knows that the claim takes longer.
    pub(super) told_pending: bool,
    abandoned: Abandoned,
}

/// Whether nobody wants a claim any more; shared by all copies of the claim.
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
            uncertain_creates: UncertainCreates::default(),
            home: None,
            first: None,
            told_pending: false,
            abandoned: Abandoned::default(),
        }
    }

    /// Whether there is most likely no node: the create replaces the first look.
    pub(super) fn creates_first(&self) -> bool {
        let is_new = match self.policy {
            Policy::TakeOver | Policy::Exclusive => self.home.is_none(),
            Policy::Restore(_) | Policy::PutBack { .. } => true,
            Policy::Resume(_) | Policy::Update(_) | Policy::PutRight(_) => false,
        };
        is_new && self.uncertain_creates.is_empty()
    }

    /// The bytes for a node that does not exist.
    pub(super) fn bytes(&self) -> Bytes {
        self.first.as_ref().map_or_else(|| self.content.bytes(), |first| self.bytes_after(first))
    }

    /// The bytes for the same holder as before, who had `first` written; `first` itself if it is the same data.
    fn bytes_after(&self, first: &Bytes) -> Bytes {
        if self.content.is_same(first) { own(first) } else { self.content.bytes_keeping(first) }
    }

    /// Whether it puts right data that another program has written.
    pub(super) fn is_put_right(&self) -> bool {
        matches!(self.policy, Policy::PutRight(_))
    }

    /// Whether a node that it has made may exist, if these ZooKeeper sessions live.
    pub(super) fn may_exist(&self, standing: &HashSet<SessionId>) -> bool {
        self.uncertain_creates.latest_first().any(|session| standing.contains(&session))
    }

    /// Nobody wants the claim any more. If it has not begun yet, it is not carried out.
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
    /// The last write that this replica knows of: events up to it are no news.
    pub(super) written: Zxid,
    /// The state of the session's fence that was known before the node was made or adopted.
    pub(super) fence_epoch: FenceEpoch,
}

impl Held {
    /// Number of bytes of its data.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The result of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The path is ours.
    Held { held: Held, stat: Stat, adopted: bool },
    /// A later incarnation exists.
    TakenOver,
    /// The path can't be had.
    Refused(Error),
    /// ZooKeeper can't be reached. A create was sent in this session, by this try or an earlier one.
    Unavailable { uncertain_create: Option<SessionId> },
}

/// The node at a path.
#[derive(Debug)]
pub(super) enum Observed {
    Absent,
    /// No node, but a record of an eviction, written by this transaction.
    Evicted {
        written: Zxid,
    },
    Standing {
        read: Read,
    },
}

/// The next step of a claim, after a look at the node. Pure.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
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
    /// Do nothing before it is known what has happened.
    Leave,
    /// A later incarnation exists.
    TakenOver,
    Refuse(Error),
}

/// Decides about the node that exists. `on_our_session`: the node belongs to a live session of this replica.
/// `is_current`: the read is not older than the claim.
pub(super) fn decide(
    claim: &Claim,
    path: &NodePath,
    read: Option<&Read>,
    on_our_session: bool,
    is_current: bool,
) -> ClaimStep {
    let Some(read) = read else { return if claim.is_put_right() { ClaimStep::Leave } else { ClaimStep::Create } };
    let standing = Generation(read.stat.czxid);
    if let Policy::PutRight(generation) = claim.policy {
        // The node's deletion, or the end of its session, is not known yet.
        return match standing.cmp(&generation) {
            cmp::Ordering::Greater => ClaimStep::TakenOver,
            cmp::Ordering::Equal if on_our_session && claim.content.is_same(&read.data) => ClaimStep::Keep,
            cmp::Ordering::Equal if on_our_session => ClaimStep::Write(claim.content.bytes()),
            cmp::Ordering::Equal | cmp::Ordering::Less => ClaimStep::Leave,
        };
    }
    if !read.stat.is_ephemeral() {
        return match claim.policy {
            // No client asks: this is like any other later node in its place.
            Policy::Restore(before) | Policy::PutBack { generation: before, .. } if standing > before => {
                ClaimStep::TakenOver
            }
            _ => ClaimStep::Refuse(Error::NotEphemeral { path: path.clone() }),
        };
    }
    let owner = SessionId(read.stat.ephemeral_owner);
    let was_our_create = on_our_session && claim.uncertain_creates.has(owner) && claim.content.is_same(&read.data);
    let resumed = match (claim.policy.known(), &claim.policy) {
        _ if was_our_create => return ClaimStep::Keep,
        (_, Policy::Exclusive) => return ClaimStep::Refuse(Error::NameTaken { path: path.clone() }),
        (None, _) => return ClaimStep::Replace { bytes: claim.content.bytes(), adopted: false },
        (Some(generation), _) => generation,
    };
    let first = claim.first.as_ref().filter(|_| standing == resumed).unwrap_or(&read.data);
    let bytes = claim.bytes_after(first);
    let is_later_ours = || match claim.policy {
        Policy::TakeOver | Policy::Exclusive | Policy::Resume(_) | Policy::Update(_) => {
            claim.content.is_identical(&read.data)
        }
        // No client asks: it may have gone to another replica, and have resumed there with the very same bytes.
        Policy::Restore(_) | Policy::PutBack { .. } | Policy::PutRight(_) => claim.uncertain_creates.has(owner),
    };
    match standing.cmp(&resumed) {
        cmp::Ordering::Less if !is_current => ClaimStep::Behind,
        cmp::Ordering::Greater if !is_later_ours() => ClaimStep::TakenOver,
        // An older incarnation than ours exists only if ZooKeeper has lost later transactions.
        _ if on_our_session && bytes == read.data => ClaimStep::Keep,
        _ if on_our_session => ClaimStep::Write(bytes),
        _ => ClaimStep::Replace { bytes, adopted: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Bytes = Bytes::from_static(b"x");

    fn decided(policy: Policy, sessions: &[i64], czxid: i64, owner: i64) -> ClaimStep {
        let path = NodePath::parse("/a/b").unwrap();
        let stat = Stat { czxid, mzxid: czxid, ephemeral_owner: owner, ..Stat::default() };
        let mut claim = Claim::new(Content::Exact(BYTES), policy);
        sessions.iter().for_each(|session| claim.uncertain_creates.add(SessionId(*session)));
        decide(&claim, &path, Some(&Read { data: BYTES, stat }), false, true)
    }

    fn replaced() -> ClaimStep {
        ClaimStep::Replace { bytes: BYTES, adopted: true }
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
        assert_eq!(decided(5, 1, "theirs", true), ClaimStep::Write(BYTES));
        assert_eq!(decided(5, 1, "x", true), ClaimStep::Keep);
        assert_eq!(decided(5, 1, "theirs", false), ClaimStep::Leave, "its session is ending");
        assert_eq!(decided(4, 1, "theirs", true), ClaimStep::Leave, "the server that was read is behind");
        assert_eq!(decided(6, 1, "theirs", true), ClaimStep::TakenOver);
        assert_eq!(decided(6, 0, "theirs", false), ClaimStep::TakenOver, "by a durable node");
        let claim = Claim::new(Content::Exact(BYTES), Policy::PutRight(Generation(5)));
        assert_eq!(
            decide(&claim, &path, None, false, true),
            ClaimStep::Leave,
            "what is deleted is put back, not put right"
        );
    }

    /// For an overwritten node, the data that the client had written before decide what is the same, not those of the
    /// node.
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
        assert_eq!(decided(br#"{"a":1}"#, Some(ours), ours), ClaimStep::Keep);
        assert_eq!(decided(br#"{"a":1}"#, Some(ours), theirs), ClaimStep::Write(ours.into()));
        let other = r#"{"pid":1,"created":"then","a":2}"#;
        assert_eq!(decided(br#"{"a":2}"#, Some(ours), theirs), ClaimStep::Write(other.into()));
        assert_eq!(decided(br#"{"a":1}"#, None, theirs), ClaimStep::Keep, "another replica knows no other");
    }

    #[test]
    fn a_replica_that_registers_again_takes_nothing_over_that_is_later() {
        let put_back = Policy::PutBack { generation: Generation(5), session: SessionId(3), fence_epoch: None };
        for policy in [Policy::Restore(Generation(5)), put_back] {
            assert_eq!(decided(policy.clone(), &[], 6, 1), ClaimStep::TakenOver, "the client has resumed elsewhere");
            assert_eq!(decided(policy.clone(), &[2], 6, 1), ClaimStep::TakenOver);
            assert_eq!(decided(policy.clone(), &[1], 6, 1), replaced(), "an answer was lost");
            assert_eq!(decided(policy.clone(), &[1, 2], 6, 1), replaced(), "and another, in another session");
            assert_eq!(decided(policy, &[], 5, 1), replaced(), "seen where its session's end has not arrived");
        }
    }
}
