//! Prepares a session for its use: creates the znodes that are ours, and the session's fence.
//!
//! A node that exists is not created: an operator may have prepared it where Rollcall may create nothing. Whether it
//! can be used is tested with a transaction whose last part ZooKeeper always refuses, so that nothing is changed.

use bytes::Bytes;
use rollcall_wire::{CreateMode, ErrorCode, Request, Response, WatchMode};

use super::super::calls::{create, delete};
use super::super::fence_mark;
use super::super::layout::{self, EVICTED, FENCES, LEASES};
use super::super::pauses::Pauses;
use super::super::session::{Answer, Session};
use super::super::{Config, Error};
use crate::types::{RESERVED_ROOT, SessionId};
use crate::zk::times::{FIRST_PREPARE_PAUSE, LONGEST_PREPARE_PAUSE};

/// The reason why a session can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Zk(#[from] Error),
    #[error("zookeeper's access control list of {node} must give rollcall the permission {permission}")]
    Needs { node: String, permission: &'static str },
    #[error(
        "create {path} by hand, or have zookeeper's access control list of {parent} give rollcall the permission CREATE"
    )]
    MayNotCreate { path: String, parent: String },
}

/// Prepares a session; `None` if it expired meanwhile.
pub(super) async fn prepare(session: &Session, config: &Config) -> Option<SessionId> {
    let mut pauses = Pauses::new(FIRST_PREPARE_PAUSE, LONGEST_PREPARE_PAUSE);
    loop {
        if !session.connected().await {
            return None;
        }
        match try_prepare(session, config).await {
            Ok(()) => return Some(session.id()),
            Err(Trouble::Zk(Error::SessionExpired)) => return None,
            Err(trouble) => {
                if matches!(trouble, Trouble::Zk(error) if error.is_connection_lost()) {
                    pauses.reset();
                }
                let pause = pauses.next();
                tracing::warn!(error = %trouble, ?pause, "can't prepare a zookeeper session; it is tried again after a pause");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn try_prepare(session: &Session, config: &Config) -> Result<(), Trouble> {
    let mut chroot = String::new();
    for segment in config.chroot.split('/').skip(1) {
        chroot = format!("{chroot}/{segment}");
        ensure(session, &chroot).await?;
    }
    for path in [RESERVED_ROOT, FENCES, LEASES] {
        ensure(session, &config.outer(path)).await?;
    }
    // If an operator has prepared only the others, nobody can be evicted, and everything else works.
    match ensure(session, &config.outer(EVICTED)).await {
        Err(trouble @ Trouble::MayNotCreate { .. }) => tracing::warn!(%trouble, "registrations can't be evicted"),
        made => made?,
    }
    check_usable(session, config).await?;
    // The version check: without persistent watches (before 3.6) nothing that Rollcall promises can be kept.
    let probe = Request::AddWatch { path: LEASES.to_owned(), mode: WatchMode::Persistent };
    match session.submit(probe).await {
        Err(Error::Refused(ErrorCode::Unimplemented)) => {
            tracing::error!("this zookeeper has no persistent watches: rollcall needs zookeeper 3.6 or newer");
            return Err(Error::Refused(ErrorCode::Unimplemented).into());
        }
        answer => drop(answer?),
    }
    session.submit(Request::RemoveWatches { path: LEASES.to_owned() }).await?;
    let fence = layout::fence(session.id());
    match session.create(&fence, fence_mark::mark(&config.name), CreateMode::Ephemeral).await {
        // It exists already if the answer to an earlier attempt was lost.
        Ok(_) | Err(Error::Refused(ErrorCode::NodeExists)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Creates a node if it does not exist. The path is as the servers know it.
async fn ensure(session: &Session, path: &str) -> Result<(), Trouble> {
    let look = session.submit_outer(Request::Exists { path: path.to_owned(), watch: false });
    match look.await {
        // A node that may not be read may be usable all the same.
        Ok(_) | Err(Error::Refused(ErrorCode::NoAuth)) => return Ok(()),
        Err(Error::Refused(ErrorCode::NoNode)) => {}
        Err(error) => return Err(error.into()),
    }
    match session.submit_outer(create(path, Bytes::new(), CreateMode::Persistent)).await {
        Ok(_) | Err(Error::Refused(ErrorCode::NodeExists)) => Ok(()),
        Err(Error::Refused(ErrorCode::NoAuth)) => {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let parent = if parent.is_empty() { "/" } else { parent };
            Err(Trouble::MayNotCreate { path: path.to_owned(), parent: parent.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Tests whether every operation on the nodes that are ours is permitted.
async fn check_usable(session: &Session, config: &Config) -> Result<(), Trouble> {
    let name = format!("probe-{:016x}", session.id().0);
    let (fence, lease) = (format!("{FENCES}/{name}"), format!("{LEASES}/{name}"));
    let check = |path: &str, version| Request::Check { path: path.to_owned(), version };
    let needs = [
        (check(FENCES, -1), FENCES, "READ"),
        (check(LEASES, -1), LEASES, "READ"),
        (create(&fence, Bytes::new(), CreateMode::Persistent), FENCES, "CREATE"),
        (create(&lease, Bytes::new(), CreateMode::Persistent), LEASES, "CREATE"),
        (delete(&lease, -1), LEASES, "DELETE"),
    ];
    let mut parts: Vec<_> = needs.iter().map(|(part, ..)| part.clone()).collect();
    // A new node has not been written yet, so this check fails.
    parts.push(check(&fence, 1));
    let Answer { response: Response::Parts(results), .. } = session.submit(Request::Multi(parts)).await? else {
        return Err(Error::OutcomeUnknown.into());
    };
    let refused = results.iter().position(|result| *result == Err(ErrorCode::NoAuth));
    if let Some((_, node, permission)) = refused.and_then(|index| needs.get(index)) {
        return Err(Trouble::Needs { node: config.outer(node), permission });
    }
    match results.last() {
        Some(Err(ErrorCode::BadVersion)) => Ok(()),
        // Others have deleted a node that existed a moment ago.
        _ => Err(Error::NotSent.into()),
    }
}
