//! The inputs that the pure state of registrations takes, and the effects that it returns.

use std::collections::HashSet;
use std::time::Duration;

use super::claims::{Claim, Claimed, Observed};
use super::outbox::Notice;
use crate::budget::{Account, Share};
use crate::contact::Heard;
use crate::error::Error;
use crate::types::{Generation, NodePath, SessionId};
use crate::value::EncodedValue;
use crate::zk::{ErrorCode, FenceEpoch, NodeEvents};

/// One Register stream of this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);

/// An event.
#[derive(Debug)]
pub(super) enum Input {
    /// A stream's first message.
    Open {
        stream: StreamId,
        session_id: String,
        ttl: Option<Duration>,
        pid: Option<u32>,
        account: Account,
        heard: Heard,
    },
    /// A client wants to hold a path.
    Set {
        stream: StreamId,
        path: NodePath,
        value: EncodedValue,
        generation: Option<Generation>,
        exclusive: bool,
        created: String,
        /// The request's share of its connection's account.
        memory: Share,
    },
    /// A client gives a path back.
    Unset { stream: StreamId, path: NodePath },
    /// A client is alive.
    KeepAlive { stream: StreamId },
    /// A request was refused before it got here.
    Reject { stream: StreamId, path: String, error: Error },
    /// A client says goodbye.
    Close { stream: StreamId },
    /// A client broke a rule of the protocol. The stream ends, and its registrations go, or stay for its ttl, as when a
    /// stream breaks.
    Fail { stream: StreamId, error: Error },
    /// The RPC is over, without a goodbye.
    Gone { stream: StreamId },
    /// Time has passed.
    Tick,
    /// There is time to go on with work that is done in slices: see `State::has_chores`.
    GoOn,
    /// An [`Effect::Claim`] is over.
    Claimed { path: NodePath, outcome: Claimed },
    /// An [`Effect::Remove`] is over: the session's node at the path is gone.
    Removed { path: NodePath },
    /// ZooKeeper refuses an [`Effect::Remove`]: the node exists until its session ends, or another try succeeds.
    RemovalRefused { path: NodePath, code: ErrorCode },
    /// A path of an [`Effect::Verify`] was read; `None` if that failed.
    Verified { path: NodePath, seen: Option<Observed> },
    /// These ZooKeeper sessions live; the ephemerals of all others are gone. `expired_during_stall`: the
    /// sessions that are over now ended because this replica was stalled.
    Sessions { standing: HashSet<SessionId>, expired_during_stall: bool },
    /// A ZooKeeper session has become usable: waiting claims are tried again.
    BackendUp,
    /// Another replica has written this session's fence: the state of it that is known is old.
    FenceMoved { session: SessionId },
    /// An [`Effect::Confirm`] is over: these incarnations exist in the session.
    Confirmed { fence_epoch: FenceEpoch, standing: Vec<(NodePath, Generation)> },
    /// An operator has evicted a path.
    Evicted { path: NodePath },
    /// Something happened to a watched node.
    Changed { path: NodePath, seen: NodeEvents },
    /// Everything below this parent has to be read again.
    Resync { parent: NodePath },
}

/// An action for the task.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Tell a client.
    Tell { stream: StreamId, notice: Notice },
    /// End a stream.
    Close { stream: StreamId, end: Result<(), Error> },
    /// Make the path ours, for a client's request (`by`) or unasked: [`Input::Claimed`] follows. `connection` is the
    /// connection whose turn it takes.
    Claim { path: NodePath, by: Option<StreamId>, claim: Claim, connection: u64 },
    /// Remove a node: [`Input::Removed`] follows.
    Remove { session: SessionId, removal: NodeRemoval, connection: u64 },
    /// Read the node at a path: [`Input::Verified`] follows. If several reads of one path are asked for, only the last
    /// is answered. `connection` is the connection whose turn it takes.
    Verify { path: NodePath, connection: u64 },
    /// Read which of these nodes exist in this session: [`Input::Confirmed`] follows. Each comes with the length of its
    /// data.
    Confirm { session: SessionId, nodes: Vec<(NodePath, usize)> },
    /// Nothing is held of the path any more.
    Release { path: NodePath },
    /// From now on report changes below this parent, beginning with [`Input::Resync`].
    Watch { parent: NodePath },
    /// Stop reporting them.
    Unwatch { parent: NodePath },
}

/// A node of ours that is to be removed.
#[derive(Debug, PartialEq)]
pub(super) struct NodeRemoval {
    pub(super) path: NodePath,
    /// The incarnation that is removed; no other is.
    pub(super) generation: Generation,
    /// The length of its data.
    pub(super) bytes: usize,
}
