//! `rollcall watch`.

use std::process::{ExitCode, Stdio};
use std::time::SystemTime;

use rollcall::{Change, Client, Node, Reason, Update, Value};
use rustix::process::Pid;
use serde_json::{Map, Value as Json, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::args::{WatchArgs, WatchFormat};
use super::escape::json_line;
use super::exit::Outcome;
use super::orphans;
use super::term::{Style, Tone, print, say, shown, time};
use super::waiting::Waiting;

pub(crate) async fn run(client: &Client, style: Style, args: WatchArgs) -> Outcome {
    let mut watch = client.watch(&args.path);
    if args.recursive {
        watch = watch.recursive();
    }
    let mut updates = watch.stream();
    let mut waiting = Waiting::new(client, &format!("changes of {}", args.path));
    // The state that `--exec` gets beside the changes.
    let mut node = Node::default();
    let mut has_shown = false;
    // Set if the next update to be shown is out of date.
    let mut stale = None;
    loop {
        let update = tokio::select! {
            biased;
            update = updates.next() => update,
            never = waiting.tell() => match never {},
        };
        let Some(update) = update.transpose()? else { return Ok(ExitCode::SUCCESS) };
        if !has_shown && !matches!(update, Update::Snapshot { .. } | Update::Changes { .. }) {
            // Nothing was shown that could be out of date. The reason for showing nothing is printed.
            stale = Some(update).filter(|update| matches!(update, Update::Stale { .. }));
            match stale {
                Some(_) => waiting.set_pending(Some(Reason::BackendUnavailable)),
                None => waiting.set_done(),
            }
            continue;
        }
        if !std::mem::replace(&mut has_shown, true) {
            waiting.set_done();
        }
        match (&args.exec, args.output) {
            (None, format) => {
                for update in std::iter::once(update).chain(stale.take()) {
                    print(&match format {
                        WatchFormat::Json => json_line(&line(&args.path, &update)),
                        WatchFormat::Text => text(&update, style),
                    })?;
                }
            }
            (Some(command), _) => {
                let event = line(&args.path, &update);
                match update {
                    Update::Snapshot { node: new, .. } => node = new,
                    Update::Changes { changes, .. } => changes.into_iter().for_each(|change| node.apply(change)),
                    _ => continue,
                }
                exec(command, &with_state(event, &node)).await;
            }
        }
    }
}

/// An update as a JSON object.
fn line(path: &str, update: &Update) -> Json {
    match update {
        Update::Snapshot { node, revision, reset } => {
            let event = json!({"event": "snapshot", "path": path, "revision": revision, "reset": reset});
            with_state(event, node)
        }
        Update::Changes { changes, revision } => {
            let changes: Vec<_> = changes.iter().map(change).collect();
            json!({"event": "changes", "path": path, "revision": revision, "changes": changes})
        }
        Update::Stale { as_of } => json!({"event": "stale", "path": path, "as_of": as_of.map(time)}),
        Update::Current => json!({"event": "current", "path": path}),
        _ => json!({"event": "unknown", "path": path}),
    }
}

fn with_state(event: Json, node: &Node) -> Json {
    let Json::Object(mut event) = event else { return event };
    let children: Map<_, _> =
        node.children.iter().map(|(name, child)| (name.clone(), data(child.value.as_ref()))).collect();
    event.insert("exists".to_owned(), node.exists.into());
    event.insert("data".to_owned(), data(node.value.as_ref()));
    event.insert("children".to_owned(), children.into());
    event.into()
}

fn change(change: &Change) -> Json {
    match change {
        Change::Added { name, child } => json!({"kind": "added", "name": name, "data": data(child.value.as_ref())}),
        Change::Updated { name, child } => json!({"kind": "updated", "name": name, "data": data(child.value.as_ref())}),
        Change::Removed { name } => json!({"kind": "removed", "name": name}),
        Change::Created(own) => json!({"kind": "created", "data": data(own.value.as_ref())}),
        Change::DataChanged(own) => json!({"kind": "data_changed", "data": data(own.value.as_ref())}),
        Change::Deleted => json!({"kind": "deleted"}),
        _ => json!({"kind": "unknown"}),
    }
}

fn data(value: Option<&Value>) -> Json {
    value.map_or(Json::Null, Value::to_json)
}

/// An update as lines for people.
fn text(update: &Update, style: Style) -> String {
    let now = style.paint(Tone::Faint, &time(SystemTime::now()));
    let line =
        |tone, sign: &str, what: String| format!("{now} {}\n", style.paint(tone, format!("{sign} {what}").trim_end()));
    match update {
        Update::Snapshot { node, .. } if !node.exists => line(Tone::Faint, "=", "no node".to_owned()),
        Update::Snapshot { node, .. } => {
            let count = match node.children.len() {
                1 => "1 child".to_owned(),
                count => format!("{count} children"),
            };
            let children = node.children.iter();
            let children =
                children.map(|(name, child)| line(Tone::Good, "+", format!("{name} {}", shown(child.value.as_ref()))));
            std::iter::once(line(Tone::Faint, "=", count)).chain(children).collect()
        }
        Update::Changes { changes, .. } => changes
            .iter()
            .map(|change| match change {
                Change::Added { name, child } => {
                    line(Tone::Good, "+", format!("{name} {}", shown(child.value.as_ref())))
                }
                Change::Updated { name, child } => {
                    line(Tone::Changed, "~", format!("{name} {}", shown(child.value.as_ref())))
                }
                Change::Removed { name } => line(Tone::Bad, "-", name.clone()),
                Change::Created(own) => line(Tone::Good, "+", format!(". {}", shown(own.value.as_ref()))),
                Change::DataChanged(own) => line(Tone::Changed, "~", format!(". {}", shown(own.value.as_ref()))),
                Change::Deleted => line(Tone::Bad, "-", ". and everything below".to_owned()),
                _ => line(Tone::Faint, "?", "a change of a kind that this version does not know".to_owned()),
            })
            .collect(),
        Update::Stale { .. } => line(Tone::Bad, "!", "may be out of date from now on".to_owned()),
        Update::Current => line(Tone::Good, "!", "is current again".to_owned()),
        _ => String::new(),
    }
}

/// Runs a command to its end, with an object on its standard input. A failure is only reported.
async fn exec(command: &str, input: &Json) {
    let run = async {
        let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let _ours = id.map(orphans::Ours::new);
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read its input does not need it.
            let _ = stdin.write_all(format!("{}\n", json_line(input)).as_bytes()).await;
        }
        child.wait().await
    };
    match run.await {
        Ok(status) if status.success() => {}
        Ok(status) => say(&format!("--exec: {status}")),
        Err(error) => say(&format!("--exec: can't run sh: {error}")),
    }
}
