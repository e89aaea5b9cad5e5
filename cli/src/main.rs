//! The command `rollcall`, for operators, shell scripts and cron jobs. `docs/cli.md` describes it.

mod args;
mod check;
mod child;
mod completions;
mod deadline;
mod delete;
mod escape;
mod evict;
mod exit;
mod format;
mod get;
mod group;
mod leash;
mod lock;
mod locks;
mod orphans;
mod put;
mod register;
mod status;
mod term;
mod tree;
mod unlock;
mod waiting;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command};
use self::exit::Outcome;
use self::term::{Style, say};
use self::waiting::patiently;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // These need no runtime, and the leash must not depend on one.
    match &cli.command {
        Command::Leash => return leash::watch(),
        Command::Completions(args) => return finish(completions::run(args)),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::Failure::new(exit::FAILED, format!("no runtime: {error}")).report(),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(cli) => outcome,
            never = orphans::reap() => match never {},
        }
    });
    // A host name may still be in resolution.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    finish(outcome)
}

fn finish(outcome: Outcome) -> ExitCode {
    outcome.unwrap_or_else(|failure| failure.report())
}

async fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    let (client, style) = (&global.client()?, Style::of(&global));
    let outcome = match command {
        Command::Get(args) => get::run(client, style, args).await,
        Command::Tree(args) => tree::run(client, style, args).await,
        Command::Watch(args) => watch::run(client, style, args).await,
        Command::Register(args) => register::run(client, args).await,
        Command::Lock(args) => lock::run(client, args).await,
        Command::Unlock(args) => unlock::run(client, args).await,
        Command::Locks(args) => locks::run(client, style, args).await,
        Command::Put(args) => put::run(client, args).await,
        Command::Delete(args) => delete::run(client, args).await,
        Command::Evict(args) => evict::run(client, args).await,
        Command::Status(args) => status::run(&global, &args).await,
        Command::Completions(args) => completions::run(&args),
        Command::Leash => Ok(leash::watch()),
    };
    // Everything that was dropped on the way is given back: a lock of which its holder never heard, a place in a queue.
    if let Err(error) = patiently(client, "the release of locks and registrations", client.settled()).await {
        say(&format!("a lock or a registration could not be given back, and stays until its ttl runs out: {error}"));
    }
    outcome
}
