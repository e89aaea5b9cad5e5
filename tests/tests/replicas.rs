//! Replicas restarted, killed and stopped under registrations: observers see nothing of it, and the end of an older
//! incarnation never affects a newer one.

use std::time::{Duration, SystemTime};

use rollcall::{Client, Error, Lookup, Value};
use rollcall_tests::client::{Registration, text, unset};
use rollcall_tests::crowd::{Crowd, PLACE, Whose, older_sessions_are_over};
use rollcall_tests::fleet::{Fleet, Onlookers, Route};
use rollcall_tests::registrant::{News, Told};
use rollcall_tests::wait::soon;
use serde_json::json;
use tokio::sync::watch;

const SHORTEST: Duration = Duration::from_secs(1);
const SESSION: &[&str] = &["--session-timeout", "6s"];

#[tokio::test]
async fn a_rolling_restart_of_all_replicas_is_seen_by_nobody() {
    let mut fleet = Fleet::start(3, Route::Direct, SESSION).await;
    let crowd = Crowd::start(&fleet, 20, 50, Duration::from_secs(12)).await;
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    let first = crowd.generations();
    for index in 0..3 {
        fleet.restart_replica(index).await;
    }
    older_sessions_are_over(&fleet, 3).await;
    crowd.stands_undisturbed(&fleet, Whose::All).await;
    onlookers.sights(&fleet).await.are_empty();
    assert!(onlookers.rollcall.streams() > 1, "the watcher's replica was restarted as well");
    let last = crowd.generations();
    let stayed: Vec<_> = first.iter().filter(|(path, generation)| last[*path] <= **generation).collect();
    assert!(stayed.is_empty() && last.len() == 1100, "all of {} had to move: {stayed:?}", last.len());
}

#[tokio::test]
async fn what_a_killed_replica_held_is_back_before_its_zookeeper_sessions_end() {
    let mut fleet = Fleet::start(2, Route::Direct, SESSION).await;
    let crowd = Crowd::start(&fleet, 20, 50, Duration::from_secs(12)).await;
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    let killed = SystemTime::now();
    fleet.kill_replica(0);
    older_sessions_are_over(&fleet, 1).await;
    crowd.stands_undisturbed(&fleet, Whose::WithTtl).await;
    onlookers.sights(&fleet).await.are_empty();
    let is_back = |told: &Told| told.at > killed && matches!(told.news, News::Registered(_));
    let back: Vec<_> = crowd.history().into_iter().filter(is_back).collect();
    let last = back.iter().map(|told| told.at).max().expect("some were on the killed replica");
    let took = last.duration_since(killed).unwrap_or_default();
    println!("{} registrations of the killed replica were resumed within {took:?}", back.len());
}

#[tokio::test]
async fn a_replica_stopped_past_its_zookeeper_sessions_wakes_up_and_harms_nobody() {
    // Clients with a ttl notice after two thirds of it, the others after ten seconds: before the default sessions end.
    let mut fleet = Fleet::start(2, Route::Direct, &[]).await;
    let crowd = Crowd::start(&fleet, 20, 25, Duration::from_secs(3)).await;
    // This client does not check for answers, and so stays.
    let stays = fleet.replicas[0].server().client().await;
    let mut stays = Registration::open(&stays).await;
    let first = stays.set("/stays", text("x")).await;
    let onlookers = Onlookers::begin(&fleet, PLACE).await;
    fleet.replicas[0].server().pause();
    older_sessions_are_over(&fleet, 1).await;
    assert!(!fleet.zk.exists("/stays").await);
    crowd.stands(&fleet).await;

    fleet.replicas[0].server().resume();
    let back = stays.registered().await;
    assert!(back.restored && back.generation > first.generation, "{back:?}");
    // By the time the replica ends a later stream, it has finished with its older ones.
    let mut witness = Registration::open_with_ttl(&fleet.replicas[0].server().client().await, SHORTEST).await;
    witness.set("/witness", text("x")).await;
    fleet.zk.wait_gone("/witness").await;
    fleet.replicas[0].server().wait_for_streams(1).await;
    crowd.stands_undisturbed(&fleet, Whose::WithTtl).await;
    onlookers.sights(&fleet).await.are_empty();
}

#[tokio::test]
async fn a_replica_that_wakes_up_shows_nothing_again_that_has_ended_meanwhile() {
    let mut fleet = Fleet::start(2, Route::Direct, SESSION).await;
    let client = fleet.replicas[0].server().client().await;
    let mut dies = Registration::open_with_ttl(&client, SHORTEST).await;
    let paths: Vec<_> = (0..50).map(|number| format!("{PLACE}/{number}")).collect();
    for path in &paths {
        dies.set(path, text("x")).await;
    }
    let mut moves = Registration::open_with_ttl(&client, Duration::from_secs(600)).await;
    let first = moves.set("/moves", text("x")).await;
    fleet.replicas[0].server().pause();
    let mut moved = Registration::open(&fleet.replicas[1].server().client().await).await;
    moved.resume("/moves", text("x"), first.generation).await;
    moved.send(unset("/moves")).await;
    moved.unregistered().await;
    drop((dies, moves, client));
    older_sessions_are_over(&fleet, 1).await;

    fleet.replicas[0].server().resume();
    let mut witness = Registration::open_with_ttl(&fleet.replicas[0].server().client().await, SHORTEST).await;
    witness.set("/witness", text("x")).await;
    // When a later stream is over, the older ones are, too.
    fleet.zk.wait_gone("/witness").await;
    fleet.replicas[0].server().wait_for_streams(0).await;
    let journal = fleet.journal();
    let again: Vec<_> = paths.iter().filter(|path| journal.incarnations(path).len() != 1).collect();
    assert!(again.is_empty(), "{again:?} came up again");
    assert_eq!(journal.incarnations("/moves").len(), 2, "it came up again");
}

/// A program with a registration, a view and a lock, and without code for faults of replicas: an error of any call ends
/// it. `rounds` counts the completed rounds.
async fn serve(client: Client, rounds: watch::Sender<usize>, mut end: watch::Receiver<bool>) -> Result<(), Error> {
    let registration = client.register("/program/me:1").data(json!({"round": 0})).start().await?;
    let bound = client.register("/program/bound:1").without_ttl().start().await?;
    let mut view = client.watch("/program").view().await?;
    let guard = client.lock("/locks/whole").ttl(Duration::from_secs(10)).acquire().await?;
    let token = guard.fencing_token();
    let work = async {
        while !*end.borrow_and_update() {
            let round = *rounds.borrow() + 1;
            registration.update(json!({"round": round})).await?;
            let shown = |lookup: &Lookup| {
                let value = lookup.node.children.get("me:1").and_then(|child| child.value.as_ref());
                value.and_then(Value::as_data).is_some_and(|data| data["round"] == round)
            };
            assert_eq!(view.wait_for(shown).await?.node.children.len(), 2);
            assert!(shown(&client.get("/program").latest().await?));
            let stat = client.put("/config/round").data(json!({"round": round})).await?;
            client.put("/config/round").value("seen").if_version(stat.version).await?;
            assert_eq!(client.describe_lock("/locks/whole").await?.holders[0].fencing_token, Some(token));
            client.lock("/locks/round").acquire().await?.release().await?;
            rounds.send_replace(round);
        }
        Ok(())
    };
    guard.run(work).await??;
    guard.release().await?;
    bound.close().await?;
    registration.close().await
}

#[tokio::test]
async fn a_program_with_no_code_for_it_rides_over_a_rolling_restart() {
    let mut fleet = Fleet::start(3, Route::Direct, SESSION).await;
    let addresses: Vec<_> = fleet.addresses().iter().map(ToString::to_string).collect();
    let client = Client::connect(addresses).await.unwrap();
    let (rounds, mut done) = watch::channel(0);
    let (end, ending) = watch::channel(false);
    let mut program = tokio::spawn(serve(client, rounds, ending));
    for index in 0..=3 {
        let before = *done.borrow();
        tokio::select! {
            Ok(_) = soon("it works", done.wait_for(|rounds| *rounds > before)) => {}
            ended = &mut program => panic!("a call of the program failed: {ended:?}"),
        }
        if index < 3 {
            fleet.restart_replica(index).await;
        }
    }
    end.send_replace(true);
    soon("the program ends", program).await.unwrap().expect("no call fails");
    println!("{} rounds", *done.borrow());
    assert_eq!(fleet.zk.children("/program").await, Some(Vec::new()));
    assert_eq!(fleet.zk.children("/locks/whole").await, Some(Vec::new()));
}
