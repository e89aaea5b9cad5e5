//! The tasks that keep the pool's sessions: they open sessions, write the heartbeat, and give up sessions that are not
//! needed.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::fence_mark;
use super::super::session::Session;
use super::super::watches::Watches;
use super::super::writer::{CommitError, Guard, Unit, Writer};
use super::super::{Error, layout};
use super::ephemeral::{EphemeralSession, Inner, Shared};
use super::prepare::prepare;
use crate::types::SessionId;
use crate::zk::times::{FIRST_SURPLUS_PAUSE, LONGEST_SURPLUS_PAUSE, SURPLUS_OPENING_TIMEOUT};

/// Runs for ever, unless the task of a session panics.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let always = shared.config.sessions;
    for slot in 0..always {
        tasks.spawn(keep(shared.clone(), slot));
    }
    let mut surplus = BTreeSet::new();
    loop {
        tokio::select! {
            () = shared.wanted.notified() => {
                // Calls that come while the new session is being opened ask for one session together, not for one each.
                if shared.may_grow() && let Some(slot) = (always..).find(|slot| !surplus.contains(slot)) {
                    tracing::info!(sessions = tasks.len() + 1, "opening another zookeeper session");
                    surplus.insert(slot);
                    shared.growth().slots += 1;
                    tasks.spawn(keep_surplus(shared.clone(), slot));
                }
            }
            Some(ended) = tasks.join_next() => match ended {
                Ok(slot) => {
                    surplus.remove(&slot);
                    shared.growth().slots -= 1;
                }
                Err(_) => return,
            }
        }
    }
}

/// Keeps one session after the other in the list, for ever.
async fn keep(shared: Arc<Shared>, slot: usize) -> usize {
    loop {
        let (session, life) = Session::start(shared.config.clone(), Arc::new(Watches::default()));
        let serve = async {
            if let Some(id) = prepare(&session, &shared.config).await {
                own(session.clone(), id, slot, &shared).await;
            }
            // The session has ended, and so will its life.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = life => {}
            () = serve => {}
        }
        leave(&shared, session.id());
    }
}

/// Keeps one session in the list, until it expires, has been empty for long, or could not be opened.
async fn keep_surplus(shared: Arc<Shared>, slot: usize) -> usize {
    let (session, life) = Session::start(shared.config.clone(), Arc::new(Watches::default()));
    let mut life = pin!(life);
    let serve = async {
        match tokio::time::timeout(SURPLUS_OPENING_TIMEOUT, prepare(&session, &shared.config)).await {
            Ok(Some(id)) => {
                shared.growth().pause = FIRST_SURPLUS_PAUSE;
                own(session.clone(), id, slot, &shared).await;
            }
            Ok(None) => {}
            Err(_) => refused(&shared),
        }
    };
    let is_over = tokio::select! {
        () = &mut life => true,
        () = serve => false,
    };
    leave(&shared, session.id());
    drop(session);
    if !is_over {
        // If the session was given up, requests that leave nothing may still be under way. The connection ends with the
        // last of them, and without a connection the session times out.
        life.await;
    }
    shared.room_is_free();
    slot
}

/// ZooKeeper did not take another session in time.
fn refused(shared: &Shared) {
    if !shared.owners.borrow().iter().any(|owner| owner.session().is_up()) {
        // It takes no session at all now.
        return;
    }
    let mut growth = shared.growth();
    let pause = growth.pause;
    growth.not_before = Instant::now() + pause;
    growth.pause = (pause * 2).min(LONGEST_SURPLUS_PAUSE);
    drop(growth);
    tracing::warn!(?pause, "zookeeper accepts no more sessions (see its maxClientCnxns); trying again after a pause");
}

/// Takes a session off the list.
fn leave(shared: &Shared, id: SessionId) {
    shared.owners.send_modify(|owners| Arc::make_mut(owners).retain(|owner| owner.id() != id));
}

/// Puts the session into the list, and keeps its writer and its heartbeat running until the session has ended. For a
/// surplus session this also ends when it is given up and its requests that are under way have ended.
async fn own(session: Session, id: SessionId, slot: usize, shared: &Arc<Shared>) {
    let fence = layout::fence(id);
    let fence_bytes = shared.config.path_cost(fence.len());
    let (writer, writing) = Writer::start(session.clone(), fence, fence_mark::mark(&shared.config.name));
    let path_bytes = AtomicUsize::new(fence_bytes);
    let owner = EphemeralSession(Arc::new(Inner {
        id,
        session,
        writer,
        slot,
        path_bytes,
        fence_bytes,
        shared: shared.clone(),
    }));
    let mut writing = pin!(writing);
    shared.owners.send_modify(|owners| Arc::make_mut(owners).push(owner.clone()));
    tokio::select! {
        () = &mut writing => return,
        () = heartbeat(&owner) => return,
        () = tell_of_connections(&owner) => return,
        () = given_up(&owner) => leave(shared, id),
    }
    tracing::info!(session = format_args!("{:#x}", id.0), "an unused zookeeper session is left to expire");
    drop(owner);
    writing.await;
}

/// Writes to the fence: an interval after the last answer, and at once after every connect.
async fn heartbeat(owner: &EphemeralSession) {
    let mut link = owner.session().link();
    while owner.session().connected().await {
        link.mark_unchanged();
        let fence_epoch = owner.writer().fence_epoch();
        match owner.writer().commit(Unit { guard: Guard::Own(fence_epoch), ops: Vec::new() }).await {
            Ok(_) => tokio::select! {
                () = tokio::time::sleep(owner.heartbeat_interval()) => {}
                _ = link.changed() => {}
            },
            Err(CommitError::Zk(Error::SessionExpired)) => return,
            // The fence or the connection has changed: tries again once the writer knows more.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Makes callers that wait for room ask again when the session is in the list, and whenever it has connected again.
async fn tell_of_connections(owner: &EphemeralSession) {
    let mut link = owner.session().link();
    loop {
        owner.0.shared.room_is_free();
        if link.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until a surplus session has held nothing for long and nothing will be placed in it any more.
async fn given_up(owner: &EphemeralSession) {
    if !owner.is_surplus() {
        std::future::pending::<()>().await;
    }
    let idle = owner.0.shared.config.surplus_idle;
    let mut interval = tokio::time::interval(idle / 8);
    let mut empty_since = None;
    loop {
        interval.tick().await;
        empty_since = owner.is_empty().then(|| empty_since.unwrap_or_else(Instant::now));
        if empty_since.is_some_and(|since| since.elapsed() >= idle) && owner.give_up_if_empty() {
            return;
        }
    }
}
