//! Programs that delete nodes of others in ZooKeeper, while clients register: no registration is lost or refused.

use std::collections::{BTreeMap, HashSet};

use rollcall_proto::v1::register_response::Response;
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{Registration, put, set, text, unset};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use zookeeper_client::{Acl, AuthId, Permission};

use super::ARM;

/// Number of registrations that are deleted.
const MANY: usize = 600;
/// Number of times that they are deleted.
const ROUNDS: usize = 4;
/// Number of times that their parents are deleted after that, when put-backs have created them again.
const EMPTIED: usize = 100;

fn name(index: usize) -> String {
    format!("/r/N/{}/{index}", index % 4)
}

/// The parents of the registrations.
const PARENTS: [&str; 6] = ["/r/N/0", "/r/N/1", "/r/N/2", "/r/N/3", "/r/N", "/r"];

/// Deletes all registrations and their parents, one right after the other, and then for a while all parents that are
/// empty.
async fn delete_recursively(s: &Setting) {
    let names: Vec<_> = (0..MANY).map(name).collect();
    for _ in 0..ROUNDS {
        delete_all(s, names.iter().map(String::as_str).chain(PARENTS)).await;
        for _ in 0..EMPTIED {
            delete_all(s, PARENTS).await;
        }
    }
}

/// Sends deletes of all these paths at once. Nodes with children remain.
async fn delete_all<'a>(s: &Setting, paths: impl IntoIterator<Item = &'a str>) {
    let client = s.zk.client();
    // The requests are sent here, in this order.
    let deletes: Vec<_> = paths.into_iter().map(|path| client.delete(path, None)).collect();
    for delete in deletes {
        drop(soon("ZooKeeper answers", delete).await);
    }
}

#[tokio::test]
async fn what_a_stranger_deletes_with_its_parents_is_put_back_and_never_lost() {
    let s = ARM.setting("strangers").await;
    let mut stream = Registration::open(&s.client).await;
    let mut generations: BTreeMap<String, i64> = BTreeMap::new();
    for index in 0..MANY {
        stream.send(set(&name(index), text("here"))).await;
        let answer = stream.registered().await;
        generations.insert(answer.path, answer.generation);
    }
    tokio::join!(
        async {
            delete_recursively(&s).await;
            s.zk.create("/over", b"").await;
        },
        async {
            // Answers are read while nodes are deleted, so that they are seen in order.
            while !s.zk.exists("/over").await {
                while let Ok(next) = tokio::time::timeout(std::time::Duration::from_millis(100), stream.next()).await {
                    note(&mut generations, next.expect("the stream goes on").expect("the stream goes on"));
                }
            }
        }
    );
    eventually("all are back, in the incarnations that were told", 2 * SOON, async || {
        while let Ok(next) = tokio::time::timeout(std::time::Duration::from_millis(100), stream.next()).await {
            note(&mut generations, next.expect("the stream goes on").expect("the stream goes on"));
        }
        for (path, generation) in &generations {
            let node = s.zk.get(path).await;
            let found = node.as_ref().map(|node| node.stat.czxid);
            check(found == Some(*generation), || format!("{path}: {found:?} instead of {generation}"))?;
        }
        Ok(())
    })
    .await;
}

fn note(generations: &mut BTreeMap<String, i64>, answer: Response) {
    match answer {
        Response::Registered(answer) => {
            assert!(answer.restored, "{answer:?}");
            generations.insert(answer.path, answer.generation);
        }
        other => panic!("nobody has taken anything over: {other:?}"),
    }
}

/// Deletes empty parents as fast as it can, until it is dropped.
async fn delete_parents(s: &Setting, parents: &[&str]) -> ! {
    loop {
        delete_all(s, parents.iter().copied()).await;
    }
}

#[tokio::test]
async fn a_set_that_races_with_the_removal_of_its_parents_succeeds() {
    let s = ARM.setting("strangers").await;
    let mut stream = Registration::open(&s.client).await;
    let register = async {
        for index in 0..400 {
            let path = format!("/empty/parents/{index}");
            stream.send(set(&path, text("x"))).await;
            stream.send(unset(&path)).await;
            loop {
                match stream.answer().await {
                    Response::Unregistered(answer) => break assert_eq!(answer.path, path),
                    // Registered, whether or not the parents were deleted: those of a registration can't be.
                    Response::Registered(answer) => assert_eq!(answer.path, path),
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    tokio::select! {
        () = register => {}
        never = delete_parents(&s, &["/empty/parents", "/empty"]) => never,
    }
}

#[tokio::test]
async fn a_put_that_races_with_the_removal_of_its_parents_succeeds() {
    let s = ARM.setting("strangers").await;
    let write = async {
        for index in 0..400 {
            let path = format!("/bare/parents/{index}");
            put(&s.client, &path, text("x")).await.unwrap();
            s.zk.delete(&path).await;
        }
    };
    tokio::select! {
        () = write => {}
        never = delete_parents(&s, &["/bare/parents", "/bare"]) => never,
    }
}

#[tokio::test]
async fn the_parents_of_the_deepest_path_are_made_by_several_who_ask_at_once() {
    let s = ARM.setting("strangers").await;
    let deep = "/d".repeat(100);
    let mut streams = Vec::new();
    for index in 0..8 {
        let stream = Registration::open(&s.client).await;
        stream.send(set(&format!("{deep}/{index}"), text("x"))).await;
        streams.push(stream);
    }
    let mut paths = HashSet::new();
    for stream in &mut streams {
        paths.insert(stream.registered().await.path);
    }
    assert_eq!(paths.len(), 8);
    for index in 0..8 {
        put(&s.client, &format!("{deep}/put/{index}/{}", "e".repeat(20)), text("x")).await.unwrap();
    }
}

/// The parent's ACL allows to create its children, and not to delete them.
#[tokio::test]
async fn what_the_replica_may_not_delete_is_given_back_and_goes_once_it_may() {
    let s = ARM.setting("strangers").await;
    let rule = async |permission| {
        let acl = [Acl::new(permission, AuthId::anyone())];
        soon("ZooKeeper answers", s.zk.client().set_acl("/guarded", &acl, None)).await.unwrap();
    };
    let mut stream = Registration::open(&s.client).await;
    stream.set("/guarded/node", text("x")).await;
    rule(Permission::CREATE | Permission::READ | Permission::ADMIN).await;
    stream.send(unset("/guarded/node")).await;
    assert_eq!(stream.unregistered().await, "/guarded/node");
    assert!(s.zk.exists("/guarded/node").await);
    // Meanwhile it can be resumed by its generation, and is held then.
    let generation = s.zk.get("/guarded/node").await.unwrap().stat.czxid;
    assert_eq!(stream.resume("/guarded/node", text("x"), generation).await.generation, generation);
    stream.send(unset("/guarded/node")).await;
    assert_eq!(stream.unregistered().await, "/guarded/node");
    rule(Permission::ALL).await;
    eventually("it is deleted", SOON, async || check(!s.zk.exists("/guarded/node").await, || "it exists".to_owned()))
        .await;
}
