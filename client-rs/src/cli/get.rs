//! `rollcall get`.

use std::process::ExitCode;

use super::args::{Format, GetArgs, Global};
use super::escape::json_page;
use super::exit::{Failure, NO_NODE, Outcome};
use super::format::{Branch, Show, to_table, to_yaml};
use super::term::{print, say, time};

pub(crate) async fn run(global: &Global, args: GetArgs) -> Outcome {
    let mut get = global.client()?.get(&args.path);
    if args.recursive {
        get = get.recursive();
    }
    if args.latest {
        get = get.latest();
    }
    if let Some(wait) = args.wait {
        get = get.wait(wait);
    }
    let lookup = get.await?;
    if lookup.stale {
        let as_of = lookup.as_of.map(|as_of| format!(", as of {}", time(as_of))).unwrap_or_default();
        say(&format!("zookeeper can't be reached: what follows may be out of date{as_of}"));
    }
    if !lookup.node.exists {
        return Err(Failure::new(NO_NODE, format!("no node at {}", args.path)));
    }
    let show = Show::data(args.data);
    print(&match args.output {
        Format::Table => to_table(&lookup.node, show),
        Format::Dir => Branch::of(lookup.node).to_dir(&args.path),
        Format::Yaml => to_yaml(&Branch::of(lookup.node).to_json(&args.path, show)),
        Format::Json => json_page(&Branch::of(lookup.node).to_json(&args.path, show)),
    })?;
    Ok(ExitCode::SUCCESS)
}
