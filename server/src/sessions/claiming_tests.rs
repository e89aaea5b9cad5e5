//! Claims and removals on the embedded server, through a proxy that spoils its answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rollcall_embedded::Embedded;
use tokio::task::JoinSet;

use super::claiming::{Claims, Requester};
use super::claims::{Claim, Claimed, Content, Held, Policy};
use super::effects::NodeRemoval;
use super::path_reservations::PathReservations;
use super::stepped::path;
use super::upkeep::Upkeep;
use crate::budget::Resource;
use crate::contact::StallDetector;
use crate::error::Error;
use crate::evictions::Evictions;
use crate::types::{Generation, NodePath, SessionId};
use crate::zk::proxy::{OpCode, Proxy};
use crate::zk::{self, Config, NoRoom, PathReservation, Zk};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A server, a proxy before it, and the sessions that use them.
struct Fixture {
    tasks: JoinSet<()>,
    proxy: Proxy,
    /// Another replica's sessions, which see the server as it is.
    stranger: Zk,
}

impl Fixture {
    async fn new() -> Self {
        let mut tasks = JoinSet::new();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let embedded = Embedded::bind(any_port, rollcall_embedded::Config::default()).await.unwrap();
        let server = embedded.local_addr();
        tasks.spawn(async move { embedded.run(std::future::pending()).await });
        let proxy = Proxy::start(server, &mut tasks).await;
        let stranger = connect(server, 1, &mut tasks).await;
        // This creates the parents.
        drop(hold(&stranger, &path(), None).await);
        delete(&stranger, &path()).await;
        Self { tasks, proxy, stranger }
    }

    /// A replica's sessions, behind the proxy.
    async fn spoiled(&mut self, sessions: usize) -> Zk {
        connect(self.proxy.address(), sessions, &mut self.tasks).await
    }
}

async fn connect(address: SocketAddr, sessions: usize, tasks: &mut JoinSet<()>) -> Zk {
    let config = Config { sessions, max_sessions: sessions, ..Config::of(address) };
    let zk = Zk::start(config, tasks);
    let mut owners = zk.pool.owners();
    let there = owners.wait_for(|owners| owners.len() == sessions);
    drop(tokio::time::timeout(LONG, there).await.expect("the sessions soon").unwrap());
    zk
}

fn claim(policy: Policy) -> Claim {
    Claim::new(Content::Exact(Bytes::from_static(b"data")), policy)
}

/// A claim of a path that has room in this session.
fn claim_at(home: Option<SessionId>, policy: Policy) -> Claim {
    let mut claim = claim(policy);
    claim.home = home;
    claim
}

async fn carry_out(zk: &Zk, path: &NodePath, claim: Claim) -> (Claimed, Option<PathReservation>) {
    let claims = Claims::new(zk.clone(), Evictions::none(zk.clone()), Arc::new(StallDetector::default()));
    let claimed = claims.claim(path, claim, &Requester::Replica);
    tokio::time::timeout(LONG, claimed).await.expect("claimed, or not, soon")
}

async fn hold(zk: &Zk, path: &NodePath, home: Option<SessionId>) -> (Held, PathReservation) {
    match carry_out(zk, path, claim_at(home, Policy::TakeOver)).await {
        (Claimed::Held { held, .. }, Some(reservation)) => (held, reservation),
        (other, _) => panic!("{other:?}"),
    }
}

/// Waits until requests are answered again.
async fn connected(zk: &Zk) {
    let is_answered = async {
        loop {
            if let Ok(owner) = zk.pool.any()
                && owner.session().sync(&path()).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, is_answered).await.expect("it is connected soon");
}

async fn delete(zk: &Zk, path: &NodePath) {
    let owner = zk.pool.any().unwrap();
    owner.session().submit(zk::delete(path.as_str(), -1)).await.unwrap();
}

/// Takes all the room for paths of this length.
async fn fill(zk: &Zk, path: &NodePath) -> Vec<PathReservation> {
    connected(zk).await;
    let mut reservations = Vec::new();
    loop {
        match zk.pool.reserve(path.as_str().len()) {
            Ok(reservation) => reservations.push(reservation),
            Err(why) => {
                assert_eq!(why, NoRoom::Full);
                return reservations;
            }
        }
    }
}

#[tokio::test]
async fn a_node_that_may_have_been_made_keeps_its_room_until_that_is_known() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(1).await;
    for creates in [true, false] {
        // The node is created, or replaces another's.
        fixture.proxy.faults().lost = if creates {
            vec![OpCode::Create, OpCode::Create2]
        } else {
            drop(hold(&fixture.stranger, &path(), None).await);
            vec![OpCode::Multi]
        };
        let (outcome, reservation) = carry_out(&zk, &path(), claim(Policy::TakeOver)).await;
        assert!(matches!(outcome, Claimed::Unavailable { uncertain_create: Some(_) }), "{outcome:?}");
        let mut reservations = PathReservations::default();
        reservations.claimed(&path(), &outcome, Some(reservation.expect("the room of what was made")));
        let count = fill(&zk, &path()).await.len();
        // Now it is known that nothing was made.
        reservations.claimed(&path(), &Claimed::TakenOver, None);
        assert_eq!(fill(&zk, &path()).await.len(), count + 1);
        delete(&fixture.stranger, &path()).await;
    }
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_goes_on_in_its_session_though_all_is_full() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(1).await;
    fixture.proxy.faults().lost = vec![OpCode::Create, OpCode::Create2, OpCode::Multi];
    let mut unsure = claim(Policy::TakeOver);
    let (outcome, _reservation) = carry_out(&zk, &path(), unsure.clone()).await;
    let Claimed::Unavailable { uncertain_create: Some(session) } = outcome else { panic!("{outcome:?}") };
    unsure.uncertain_creates.add(session);
    let _full = fill(&zk, &path()).await;
    delete(&fixture.stranger, &path()).await;
    assert!(matches!(carry_out(&zk, &path(), unsure).await.0, Claimed::Held { .. }));
}

#[tokio::test]
async fn what_is_replaced_on_one_replica_stays_in_its_session() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(2).await;
    let paths: Vec<_> = (0..16).map(|index| NodePath::trusted(format!("/services/{index}"))).collect();
    let mut reservations = Vec::new();
    for path in &paths {
        let (first, first_reservation) = hold(&zk, path, None).await;
        let (second, reservation) = hold(&zk, path, None).await;
        assert!(second.generation > first.generation);
        assert_eq!(second.session, first.session);
        drop(first_reservation);
        reservations.push((second.session, reservation));
    }
    let fences: Vec<_> = zk.pool.owners().borrow().iter().map(|owner| zk::layout::fence(owner.id())).collect();
    for fence in fences {
        let owner = zk.pool.any().unwrap();
        let read = owner.session().get(&NodePath::trusted(fence)).await.unwrap().unwrap();
        assert!(!read.data.starts_with(b"/"), "another of our sessions has written it");
    }
    // The same if all sessions are full: nothing more is taken.
    let _full = fill(&zk, &paths[0]).await;
    let (third, _reservation) = hold(&zk, &paths[0], Some(reservations[0].0)).await;
    let exclusive = carry_out(&zk, &NodePath::trusted("/services/x"), claim(Policy::Exclusive)).await.0;
    let is_full = |error: &Error| *error == Resource::PathBytes.exceeded(zk.pool.capacity());
    assert!(matches!(&exclusive, Claimed::Refused(error) if is_full(error)), "{exclusive:?}");
    // A stranger deletes it before it gets new data, or is resumed.
    for policy in [Policy::Update(third.generation), Policy::Resume(third.generation), Policy::TakeOver] {
        delete(&fixture.stranger, &paths[0]).await;
        let again = claim_at(Some(third.session), policy);
        let outcome = carry_out(&zk, &paths[0], again).await.0;
        assert!(matches!(&outcome, Claimed::Held { held, .. } if held.session == third.session), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_see_what_exists_is_brought_up_to_date() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(2).await;
    let (_, _reservation) = hold(&fixture.stranger, &path(), None).await;
    fixture.proxy.faults().unseen = Some(path());
    let outcome = carry_out(&zk, &path(), claim(Policy::Exclusive)).await.0;
    let expected = Error::NameTaken { path: path() };
    assert!(matches!(&outcome, Claimed::Refused(error) if *error == expected), "{outcome:?}");
}

#[tokio::test]
async fn a_claim_that_nobody_wants_any_more_is_not_carried_out() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(1).await;
    let policies = [
        (Policy::Restore(Generation(1)), Requester::Replica),
        (Policy::Resume(Generation(1)), Requester::Gone),
        (Policy::Update(Generation(1)), Requester::Gone),
        (Policy::TakeOver, Requester::Gone),
    ];
    for (policy, requester) in policies {
        let claim = claim(policy);
        if matches!(requester, Requester::Replica) {
            claim.abandon();
        }
        let claims = Claims::new(zk.clone(), Evictions::none(zk.clone()), Arc::new(StallDetector::default()));
        let (outcome, _) = claims.claim(&path(), claim, &requester).await;
        assert!(matches!(outcome, Claimed::Unavailable { uncertain_create: None }), "{outcome:?}");
    }
    assert!(zk.pool.any().unwrap().session().exists(&path()).await.unwrap().is_none());
}

async fn overwrite(zk: &Zk, path: &NodePath) {
    let op = zk::set_data(path.as_str(), Bytes::from_static(b"theirs"), -1);
    zk.pool.any().unwrap().session().submit(op).await.unwrap();
}

#[tokio::test]
async fn data_are_put_right_in_the_very_node_that_was_overwritten_and_in_no_other() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(1).await;
    let (held, _reservation) = hold(&zk, &path(), None).await;
    let put_right = || claim_at(Some(held.session), Policy::PutRight(held.generation));
    let stands = async || fixture.stranger.pool.any().unwrap().session().get(&path()).await.unwrap().unwrap();
    overwrite(&fixture.stranger, &path()).await;
    let outcome = carry_out(&zk, &path(), put_right()).await.0;
    let Claimed::Held { held: right, stat, adopted: false } = outcome else { panic!("{outcome:?}") };
    assert_eq!((right.generation, right.bytes, stat.version), (held.generation, Bytes::from_static(b"data"), 2));
    assert_eq!(stands().await.data, b"data".as_slice());
    // Nothing is written if the data are right already.
    let outcome = carry_out(&zk, &path(), put_right()).await.0;
    assert!(matches!(outcome, Claimed::Held { .. }) && stands().await.stat.version == 2, "{outcome:?}");
    // The node is another replica's now.
    let (theirs, _theirs) = hold(&fixture.stranger, &path(), None).await;
    overwrite(&fixture.stranger, &path()).await;
    let outcome = carry_out(&zk, &path(), put_right()).await.0;
    assert!(matches!(outcome, Claimed::TakenOver), "{outcome:?}");
    let node = stands().await;
    assert_eq!((node.stat.czxid, node.data), (theirs.generation.0, Bytes::from_static(b"theirs")));
    delete(&fixture.stranger, &path()).await;
    let outcome = carry_out(&zk, &path(), put_right()).await.0;
    assert!(matches!(outcome, Claimed::Unavailable { uncertain_create: None }), "{outcome:?}");
    assert!(zk.pool.any().unwrap().session().exists(&path()).await.unwrap().is_none());
}

/// If anything is wrong that concerns all of them, each is tried by itself.
#[tokio::test]
async fn registrations_that_can_not_be_removed_together_are_removed_one_by_one() {
    let mut fixture = Fixture::new().await;
    let zk = fixture.spoiled(1).await;
    let mut removals = Vec::new();
    for index in 0..3 {
        let path = NodePath::trusted(format!("/services/{index}"));
        let (held, _reservation) = hold(&zk, &path, None).await;
        removals.push((held.session, NodeRemoval { path, generation: held.generation, bytes: held.bytes.len() }));
    }
    const BAD_ARGUMENTS: i32 = -8;
    fixture.proxy.faults().refused.insert(OpCode::MultiRead, BAD_ARGUMENTS);
    let session = removals[0].0;
    let removals: Vec<_> = removals.into_iter().map(|(_, removal)| removal).collect();
    let upkeep = Upkeep::new(zk.clone(), Evictions::none(zk.clone()));
    let removed = upkeep.remove(session, &removals);
    let refused = tokio::time::timeout(LONG, removed).await.expect("they go");
    assert!(refused.is_empty());
    for NodeRemoval { path, .. } in &removals {
        assert!(zk.pool.any().unwrap().session().exists(path).await.unwrap().is_none());
    }
}
