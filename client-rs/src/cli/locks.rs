//! `rollcall locks`.

use std::process::ExitCode;

use rollcall::LockParty;
use serde_json::{Value as Json, json};

use super::args::{Global, LocksArgs};
use super::escape::{escaped, json_page};
use super::exit::Outcome;
use super::term::{print, table, time};

pub(crate) async fn run(global: &Global, args: LocksArgs) -> Outcome {
    let lock = global.client()?.describe_lock(args.path).await?;
    if args.json {
        let parties = |parties: &[LockParty]| parties.iter().map(party).collect::<Vec<_>>();
        let (holders, waiters) = (parties(&lock.holders), parties(&lock.waiters));
        let lock = json!({
            "path": lock.path, "simultaneous": lock.simultaneous, "holders": holders, "waiters": waiters,
        });
        print(&json_page(&lock))?;
        return Ok(ExitCode::SUCCESS);
    }
    if lock.holders.is_empty() && lock.waiters.is_empty() {
        print(&format!("{}: nobody holds it, nobody waits", escaped(&lock.path)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |state: String, party: &LockParty| {
        let since = party.since.map_or_else(|| "-".to_owned(), time);
        let token = party.fencing_token.map_or_else(|| "-".to_owned(), |token| token.to_string());
        let ttl = party.ttl.map_or_else(|| "-".to_owned(), |ttl| format!("{ttl:?}"));
        let via = if party.foreign { "kazoo" } else { "rollcall" };
        vec![state, party.name.clone(), since, token, ttl, via.to_owned()]
    };
    let holders = lock.holders.iter().map(|party| row("holds".to_owned(), party));
    let waiters = lock.waiters.iter().enumerate().map(|(index, party)| row(format!("waits {}", index + 1), party));
    let rows: Vec<_> = holders.chain(waiters).collect();
    print(&table(&["STATE", "NAME", "SINCE", "TOKEN", "TTL", "VIA"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

fn party(party: &LockParty) -> Json {
    json!({
        "name": party.name,
        "fencing_token": party.fencing_token,
        "since": party.since.map(time),
        "ttl_seconds": party.ttl.map(|ttl| ttl.as_secs_f64()),
        "foreign": party.foreign,
    })
}
