//! `rollcall tree`.

use std::future::IntoFuture as _;
use std::process::ExitCode;

use rollcall::Client;

use super::args::TreeArgs;
use super::exit::{Failure, NO_NODE, Outcome};
use super::format::{Branch, hide_inner};
use super::term::{Style, Tone, print, shown};
use super::waiting::patiently;

pub(crate) async fn run(client: &Client, style: Style, args: TreeArgs) -> Outcome {
    let what = format!("the nodes below {}", args.path);
    let mut lookup = patiently(client, &what, client.get(&args.path).recursive().into_future()).await?;
    if !lookup.node.exists {
        return Err(Failure::new(NO_NODE, format!("no node at {}", args.path)));
    }
    if !args.all {
        hide_inner(&mut lookup.node, &args.path);
    }
    let mut text = String::new();
    draw(&mut text, &args.path, "", &Branch::of(lookup.node), style, args.data);
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn draw(text: &mut String, name: &str, margin: &str, branch: &Branch, style: Style, shows_data: bool) {
    text.push_str(&style.paint(branch.tone(), name));
    let data = shown(branch.value.as_ref());
    if shows_data && !data.is_empty() {
        text.push_str("  ");
        text.push_str(&style.paint(Tone::Faint, &data));
    }
    text.push('\n');
    let last = branch.below.len().saturating_sub(1);
    for (index, (name, below)) in branch.below.iter().enumerate() {
        let (arm, gap) = if index == last { ("└── ", "    ") } else { ("├── ", "│   ") };
        text.push_str(margin);
        text.push_str(arm);
        draw(text, name, &format!("{margin}{gap}"), below, style, shows_data);
    }
}
