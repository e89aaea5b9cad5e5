//! `rollcall get`.

use std::future::IntoFuture as _;
use std::process::ExitCode;
use std::time::Duration;

use rollcall::{Client, Node};

use super::args::{Format, GetArgs};
use super::escape::json_page;
use super::exit::{Failure, NO_NODE, Outcome};
use super::format::{Branch, Replicas, Show, hide_inner, to_table, to_yaml};
use super::term::{Style, print, say, time};
use super::waiting::patiently;

/// The wait of `--wait` without a time.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) async fn run(client: &Client, style: Style, args: GetArgs) -> Outcome {
    let what = format!("{}{}", if args.wait.is_some() { "a child of " } else { "" }, args.path);
    let mut get = client.get(&args.path);
    if args.recursive {
        get = get.recursive();
    }
    if args.latest {
        get = get.latest();
    }
    if let Some(wait) = args.wait {
        get = get.wait(wait.unwrap_or(FOREVER));
    }
    let mut lookup = patiently(client, &what, get.into_future()).await?;
    if lookup.stale {
        let as_of = lookup.as_of.map(|as_of| format!(", as of {}", time(as_of))).unwrap_or_default();
        say(&format!("zookeeper can't be reached: the output may be out of date{as_of}"));
    }
    if !lookup.node.exists {
        return Err(Failure::new(NO_NODE, format!("no node at {}", args.path)));
    }
    if !args.all {
        hide_inner(&mut lookup.node, &args.path);
    }
    let show = Show { data: args.data, stat: args.output == Format::Json };
    print(&match args.output {
        Format::Table => to_table(&lookup.node, &replicas_of(client, &lookup.node).await, show, style),
        Format::Dir => Branch::of(lookup.node).to_dir(&args.path, style),
        Format::Yaml => to_yaml(&Branch::of(lookup.node).to_json(&args.path, show), style),
        Format::Json => json_page(&Branch::of(lookup.node).to_json(&args.path, show)),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The replicas whose sessions hold registrations; empty when the replica that is asked does not give them.
async fn replicas_of(client: &Client, node: &Node) -> Replicas {
    if !node.children.values().any(|child| child.stat.is_some_and(|stat| stat.is_ephemeral())) {
        return Replicas::new();
    }
    let replicas = client.status().await.map(|status| status.replicas).unwrap_or_default();
    let named = replicas.iter().filter(|replica| !replica.name.is_empty());
    named.flat_map(|replica| replica.sessions.iter().map(|session| (*session, replica.name.clone()))).collect()
}
