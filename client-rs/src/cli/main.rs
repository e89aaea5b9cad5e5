//! The command `rollcall`: what an operator, a shell script or a cron job does with Rollcall. `docs/cli.md` describes it.

mod args;
mod check;
mod child;
mod completions;
mod deadline;
mod delete;
mod escape;
mod exit;
mod format;
mod get;
mod leash;
mod lock;
mod locks;
mod put;
mod register;
mod status;
mod term;
mod tree;
mod unlock;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command};
use self::exit::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // It has no use for a runtime, and must not depend on one.
    if let Command::Leash { group } = cli.command {
        return leash::watch(group);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::Failure::new(exit::FAILED, format!("no runtime: {error}")).report(),
    };
    let outcome = runtime.block_on(run(cli));
    // Whatever is given back in the background has a moment for it.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    match outcome {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    match command {
        Command::Get(args) => get::run(&global, args).await,
        Command::Tree(args) => tree::run(&global, args).await,
        Command::Watch(args) => watch::run(&global, args).await,
        Command::Register(args) => register::run(&global, args).await,
        Command::Lock(args) => lock::run(&global, args).await,
        Command::Unlock(args) => unlock::run(&global, args).await,
        Command::Locks(args) => locks::run(&global, args).await,
        Command::Put(args) => put::run(&global, args).await,
        Command::Delete(args) => delete::run(&global, args).await,
        Command::Status(args) => status::run(&global, &args).await,
        Command::Completions(args) => completions::run(&args),
        Command::Leash { group } => Ok(leash::watch(group)),
    }
}
