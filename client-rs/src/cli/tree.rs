//! `rollcall tree`.

use std::process::ExitCode;

use super::args::{Global, TreeArgs};
use super::escape::escaped;
use super::exit::{Failure, NO_NODE, Outcome};
use super::format::{Branch, Show};
use super::term::{Style, Tone, print, shown};

pub(crate) async fn run(global: &Global, args: TreeArgs) -> Outcome {
    let lookup = global.client()?.get(&args.path).recursive().await?;
    if !lookup.node.exists {
        return Err(Failure::new(NO_NODE, format!("no node at {}", args.path)));
    }
    let (style, show) = (Style::of(global), Show::data(args.data));
    let mut text = String::new();
    draw(&mut text, &args.path, "", &Branch::of(lookup.node), style, show);
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn draw(text: &mut String, name: &str, margin: &str, branch: &Branch, style: Style, show: Show) {
    let is_registration = branch.stat.is_some_and(|stat| stat.is_ephemeral());
    text.push_str(&if is_registration { style.paint(Tone::Good, name) } else { escaped(name).into_owned() });
    let data = shown(branch.value.as_ref());
    if show == Show::Data && !data.is_empty() {
        text.push_str("  ");
        text.push_str(&style.paint(Tone::Faint, &data));
    }
    text.push('\n');
    let last = branch.below.len().saturating_sub(1);
    for (index, (name, below)) in branch.below.iter().enumerate() {
        let (arm, gap) = if index == last { ("└── ", "    ") } else { ("├── ", "│   ") };
        text.push_str(margin);
        text.push_str(arm);
        draw(text, name, &format!("{margin}{gap}"), below, style, show);
    }
}
