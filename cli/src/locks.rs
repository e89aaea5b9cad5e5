//! `rollcall locks`.

use std::future::IntoFuture as _;
use std::process::ExitCode;

use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use rollcall::{Client, Error, LockDescription, LockParty, Node, Reason};
use serde_json::{Value as Json, json};

use super::args::LocksArgs;
use super::escape::{escaped, json_page};
use super::exit::Outcome;
use super::format::{LOCK_QUEUE, join};
use super::term::{Row, Style, Tone, age, print, table, time};
use super::waiting::patiently;

/// Maximum number of locks that are described at the same time.
const AT_ONCE: usize = 16;

pub(crate) async fn run(client: &Client, style: Style, args: LocksArgs) -> Outcome {
    let is_json = args.output.is_json();
    let Some(path) = args.path else {
        let locks = patiently(client, "the list of locks", all(client)).await?;
        print(&match (is_json, locks.is_empty()) {
            (true, _) => json_page(&locks.iter().map(to_json).collect()),
            (false, true) => "nobody holds a lock, nobody waits for one".to_owned(),
            (false, false) => to_table(style, &locks),
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    let lock = patiently(client, &format!("the lock {path}"), client.describe_lock(&path)).await?;
    print(&match (is_json, is_idle(&lock)) {
        (true, _) => json_page(&to_json(&lock)),
        (false, true) => format!("{}: nobody holds it, nobody waits", escaped(&lock.path)),
        (false, false) => to_table(style, &[lock]),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// All locks with holders or waiters, by path.
async fn all(client: &Client) -> Result<Vec<LockDescription>, Error> {
    let everything = client.get("/").recursive().latest().into_future().await?;
    let describe = |path: String| async move {
        match client.describe_lock(path).await {
            Ok(lock) => Ok(Some(lock)),
            // The node has the name of a lock, but is none.
            Err(error) if error.reason() == Some(&Reason::NotALock) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let locks: Vec<_> = iter(used(&everything.node)).map(describe).buffered(AT_ONCE).try_collect().await?;
    Ok(locks.into_iter().flatten().filter(|lock| !is_idle(lock)).collect())
}

/// The paths of the locks that anybody has ever waited for, and that have a holder or a waiter in the list.
fn used(everything: &Node) -> Vec<String> {
    let nodes = &everything.children;
    let has_child = |path: &str| {
        let prefix = format!("{path}/");
        nodes.range(prefix.clone()..).next().is_some_and(|(path, _)| path.starts_with(&prefix))
    };
    let locks = nodes.keys().filter_map(|queue| queue.strip_suffix(LOCK_QUEUE).map(|lock| (lock, queue)));
    let used = locks.filter(|(lock, queue)| !lock.ends_with('/') && (has_child(lock) || has_child(queue)));
    used.map(|(lock, _)| join("/", lock)).collect()
}

fn is_idle(lock: &LockDescription) -> bool {
    lock.holders.is_empty() && lock.waiters.is_empty()
}

fn to_table(style: Style, locks: &[LockDescription]) -> String {
    let row = |lock: &LockDescription, state: String, party: &LockParty, tone: Tone| {
        let since = party.since.map_or_else(|| "-".to_owned(), time);
        let token = party.fencing_token.map_or_else(|| "-".to_owned(), |token| token.to_string());
        let ttl = party.ttl.map_or_else(|| "-".to_owned(), |ttl| format!("{ttl:?}"));
        let via = if party.foreign { "kazoo" } else { "rollcall" };
        let (path, name, via) = (lock.path.clone(), party.name.clone(), via.to_owned());
        let replica = party.replica.clone().unwrap_or_else(|| "-".to_owned());
        let age = party.since.map_or_else(|| "-".to_owned(), age);
        Row { tone, cells: vec![path, state, name, replica, age, since, token, ttl, via] }
    };
    let rows = locks.iter().flat_map(|lock| {
        let holders = lock.holders.iter().map(|party| row(lock, "holds".to_owned(), party, Tone::Good));
        let waiters = lock.waiters.iter().enumerate();
        holders.chain(waiters.map(|(index, party)| row(lock, format!("waits {}", index + 1), party, Tone::Changed)))
    });
    let head = ["LOCK", "STATE", "NAME", "REPLICA", "AGE", "SINCE", "TOKEN", "TTL", "VIA"];
    table(style, &head, &rows.collect::<Vec<_>>())
}

fn to_json(lock: &LockDescription) -> Json {
    let parties = |parties: &[LockParty]| parties.iter().map(party).collect::<Vec<_>>();
    let (holders, waiters) = (parties(&lock.holders), parties(&lock.waiters));
    json!({"path": lock.path, "simultaneous": lock.simultaneous, "holders": holders, "waiters": waiters})
}

fn party(party: &LockParty) -> Json {
    json!({
        "name": party.name,
        "replica": party.replica,
        "fencing_token": party.fencing_token,
        "since": party.since.map(time),
        "ttl_seconds": party.ttl.map(|ttl| ttl.as_secs_f64()),
        "foreign": party.foreign,
    })
}

#[cfg(test)]
mod tests {
    use rollcall::Child;

    use super::*;

    #[test]
    fn locks_that_nobody_uses_are_not_asked_for() {
        let nodes = [
            "a",
            "a/lease",
            "a-__lock__",
            "b",
            "b-__lock__",
            "b-__lock__/contender",
            "idle",
            "idle-__lock__",
            "idler/x",
            "x/-__lock__/y",
        ];
        let children = nodes.into_iter().map(|name| (name.to_owned(), Child::default())).collect();
        assert_eq!(used(&Node { children, ..Node::default() }), ["/a", "/b"]);
    }
}
