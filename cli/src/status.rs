//! `rollcall status`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rollcall::{Error, ReplicaState, ReplicaStatus, Usage};
use serde_json::{Value as Json, json};

use super::args::{Global, StatusArgs};
use super::escape::json_page;
use super::exit::{Failure, NOT_WELL, Outcome, UNREACHABLE};
use super::format::session;
use super::term::{Row, Style, Tone, age, print, table, time};
use super::waiting::patiently;

/// The result of asking one replica.
struct Answer {
    /// Its name in `--server`.
    server: String,
    took: Duration,
    status: Result<ReplicaStatus, Error>,
}

impl Answer {
    fn state(&self) -> &'static str {
        match &self.status {
            Ok(status) => match status.state {
                ReplicaState::Serving => "serving",
                ReplicaState::NotServing { .. } => "not ready",
                ReplicaState::Draining { .. } => "draining",
                _ => "unknown",
            },
            Err(Error::Unreachable { .. }) => "unreachable",
            Err(_) => "refusing",
        }
    }

    fn is_well(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.state == ReplicaState::Serving && status.backend.is_connected)
    }

    /// The fault of the replica, in words.
    fn trouble(&self) -> Option<String> {
        let status = match &self.status {
            Ok(status) => status,
            Err(error) => return Some(error.to_string()),
        };
        let state = match &status.state {
            ReplicaState::NotServing { cause } => Some(format!("it is not ready: {cause}")),
            ReplicaState::Draining { remaining } => Some(format!("it drains, for {remaining:.0?} at most")),
            _ => None,
        };
        let backend = (!status.backend.is_connected).then(|| {
            let since = status.backend.since.map(|since| format!(" since {}", time(since))).unwrap_or_default();
            let cause = status.backend.last_error.as_deref().unwrap_or("no answer yet");
            format!("it does not reach zookeeper{since}: {cause}")
        });
        let trouble: Vec<_> = [state, backend].into_iter().flatten().collect();
        (!trouble.is_empty()).then(|| trouble.join("; "))
    }
}

pub(crate) async fn run(global: &Global, args: &StatusArgs) -> Outcome {
    let servers = global.server.split(',').map(str::trim).filter(|server| !server.is_empty());
    let answers = join_all(servers.map(|server| ask(global, server))).await;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    print(&if args.output.is_json() { to_json(&answers) } else { to_table(&answers, Style::of(global)) })?;
    if answers.iter().all(|answer| answer.status.is_err()) {
        return Err(Failure::new(UNREACHABLE, "no replica answers"));
    }
    Ok(if answers.iter().all(Answer::is_well) { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

/// Asks this replica, and no other.
async fn ask(global: &Global, server: &str) -> Result<Answer, Failure> {
    let client = global.client_of(server)?;
    let begun = Instant::now();
    let status = patiently(&client, &format!("the status of {server}"), client.status()).await;
    Ok(Answer { server: server.to_owned(), took: begun.elapsed(), status })
}

fn to_table(answers: &[Answer], style: Style) -> String {
    let rows: Vec<_> = answers.iter().map(row).collect();
    let head = [
        "SERVER",
        "NAME",
        "STATE",
        "ZOOKEEPER",
        "ANSWER",
        "VERSION",
        "UP",
        "CLIENTS",
        "STREAMS",
        "REGISTRATIONS",
        "LOCKS",
        "VIEWS",
        "MEMORY",
        "SESSIONS",
    ];
    let mut text = table(style, &head, &rows);
    for answer in answers {
        if let Some(trouble) = answer.trouble() {
            text.push_str(&style.paint(Tone::Bad, &format!("{}: {trouble}", answer.server)));
            text.push('\n');
        }
    }
    let others = others(answers);
    if !others.is_empty() {
        text.push_str(&format!("not asked, but in zookeeper: {}\n", others.join(", ")));
    }
    text
}

fn row(answer: &Answer) -> Row {
    let dash = || "-".to_owned();
    let tone = if answer.is_well() { Tone::Good } else { Tone::Bad };
    let mut cells = vec![answer.server.clone()];
    let Ok(status) = &answer.status else {
        cells.extend([dash(), answer.state().to_owned()]);
        cells.extend(std::iter::repeat_with(dash).take(11));
        return Row { tone, cells };
    };
    let counts = &status.counts;
    let zookeeper = match (status.backend.is_embedded, status.backend.is_connected) {
        (_, false) => "away",
        (true, true) => "embedded",
        (false, true) => "connected",
    };
    let holding = status.sessions.iter().filter(|session| session.path_bytes.is_some()).count();
    cells.extend([
        status.name.clone(),
        answer.state().to_owned(),
        zookeeper.to_owned(),
        format!("{} ms", answer.took.as_millis()),
        status.version.clone(),
        status.started.map_or_else(dash, age),
        counts.connections.to_string(),
        counts.streams().to_string(),
        counts.registrations.to_string(),
        counts.locks.to_string(),
        counts.views.to_string(),
        share(status.memory),
        holding.to_string(),
    ]);
    Row { tone, cells }
}

/// An amount, as a percentage of its limit.
fn share(usage: Usage) -> String {
    format!("{}%", usage.used.saturating_mul(100) / usage.limit.max(1))
}

/// The replicas that ZooKeeper shows, and that were not asked or did not answer. Each is listed once.
fn others(answers: &[Answer]) -> Vec<String> {
    let known = || answers.iter().filter_map(|answer| answer.status.as_ref().ok());
    let mut others: Vec<_> = known()
        .flat_map(|status| &status.replicas)
        .filter(|replica| !known().any(|status| status.name == replica.name))
        .map(|replica| match replica.name.as_str() {
            "" => format!("sessions {}", ids(&replica.sessions)),
            name => format!("{name} (sessions {})", ids(&replica.sessions)),
        })
        .collect();
    others.sort_unstable();
    others.dedup();
    others
}

fn ids(sessions: &[i64]) -> String {
    sessions.iter().map(|id| session(*id)).collect::<Vec<_>>().join(" ")
}

fn to_json(answers: &[Answer]) -> String {
    json_page(&answers.iter().map(answer_to_json).collect())
}

fn answer_to_json(answer: &Answer) -> Json {
    let mut json = json!({
        "server": answer.server,
        "state": answer.state(),
        "well": answer.is_well(),
        "answer_seconds": answer.status.is_ok().then_some(answer.took.as_secs_f64()),
        "trouble": answer.trouble(),
    });
    if let (Ok(status), Some(fields)) = (&answer.status, json.as_object_mut())
        && let Json::Object(more) = status_to_json(status)
    {
        fields.extend(more);
    }
    json
}

fn status_to_json(status: &ReplicaStatus) -> Json {
    let usage = |usage: &Usage| json!({"used": usage.used, "limit": usage.limit});
    let remaining = match &status.state {
        ReplicaState::Draining { remaining } => Some(remaining.as_secs_f64()),
        _ => None,
    };
    let sessions = status.sessions.iter().map(|one| {
        json!({
            "id": session(one.id),
            "connected": one.is_connected,
            "server": one.server,
            "watching": one.path_bytes.is_none(),
            "path_bytes": one.path_bytes.as_ref().map(usage),
        })
    });
    let replicas = status.replicas.iter().map(|replica| {
        let sessions: Vec<_> = replica.sessions.iter().map(|id| session(*id)).collect();
        json!({"name": replica.name, "sessions": sessions})
    });
    let counts = &status.counts;
    json!({
        "name": status.name,
        "version": status.version,
        "started": status.started.map(time),
        "drains_for_seconds": remaining,
        "backend": {
            "kind": if status.backend.is_embedded { "embedded" } else { "zookeeper" },
            "connected": status.backend.is_connected,
            "since": status.backend.since.map(time),
            "servers": status.backend.servers,
            "last_error": status.backend.last_error,
        },
        "connections": counts.connections,
        "calls": counts.calls,
        "streams": {
            "register": counts.register_streams,
            "watch": counts.watch_streams,
            "lock": counts.lock_streams,
        },
        "waiting_gets": counts.waiting_gets,
        "registrations": counts.registrations,
        "locks": counts.locks,
        "views": counts.views,
        "memory": usage(&status.memory),
        "view_memory": usage(&status.view_memory),
        "sessions": sessions.collect::<Vec<_>>(),
        "replicas": replicas.collect::<Vec<_>>(),
        "replicas_as_of": status.replicas_as_of.map(time),
    })
}
