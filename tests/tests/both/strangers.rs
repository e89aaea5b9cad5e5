//! Programs that delete in ZooKeeper what they do not own, while clients register: nothing of these is lost or refused.

use std::collections::{BTreeMap, HashSet};
use std::process::Command;

use rollcall_proto::v1::register_response::Response;
use rollcall_tests::arm::Setting;
use rollcall_tests::client::{Registration, put, set, text, unset};
use rollcall_tests::wait::{SOON, check, eventually, soon};

use super::ARM;
use crate::polyglot::{installed, succeed};

/// Number of registrations that are deleted.
const MANY: usize = 600;
/// How often they are.
const ROUNDS: usize = 4;

fn name(index: usize) -> String {
    format!("/r/N/{}/{index}", index % 20)
}

/// kazoo's `delete(path, recursive=True)`, as often as there are rounds.
async fn delete_with_kazoo(s: &Setting) {
    const SCRIPT: &str = "
import sys
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError, NotEmptyError
client = KazooClient(hosts=sys.argv[1])
client.start()
for _ in range(int(sys.argv[2])):
    try:
        client.delete('/r/N', recursive=True)
    except (NoNodeError, NotEmptyError):
        pass  # Some are back already.
client.stop()
";
    let mut command = Command::new(installed("judges/kazoo-2.6/bin/python", "judges"));
    command.args(["-c", SCRIPT, &s.sandbox.hosts, &ROUNDS.to_string()]);
    succeed("kazoo", &mut command, 3 * SOON).await;
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
    let (deleted, ()) = tokio::join!(
        async {
            delete_with_kazoo(&s).await;
            s.bare.create("/over", b"").await;
        },
        async {
            // Read as long as they are deleted, so that what is told is seen in its order.
            while !s.bare.exists("/over").await {
                while let Ok(next) = tokio::time::timeout(std::time::Duration::from_millis(100), stream.next()).await {
                    note(&mut generations, next.expect("the stream goes on").expect("the stream goes on"));
                }
            }
        }
    );
    let () = deleted;
    eventually("all are back, in the incarnations that were told", 2 * SOON, async || {
        while let Ok(next) = tokio::time::timeout(std::time::Duration::from_millis(100), stream.next()).await {
            note(&mut generations, next.expect("the stream goes on").expect("the stream goes on"));
        }
        for (path, generation) in &generations {
            let node = s.bare.get(path).await;
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
        for parent in parents {
            // Mostly there is a child, or it is gone already.
            drop(soon("ZooKeeper answers", s.bare.client().delete(parent, None)).await);
        }
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
                    // Deleted or not: the parents of a registration can't be.
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
            s.bare.delete(&path).await;
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
