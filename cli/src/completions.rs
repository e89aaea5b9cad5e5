//! `rollcall completions`.

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::args::{Cli, CompletionsArgs};
use super::exit::Outcome;
use super::term::print;

pub(crate) fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rollcall", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
