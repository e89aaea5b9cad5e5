//! `rollcall unlock`.

use std::process::ExitCode;

use super::args::{Global, UnlockArgs};
use super::exit::Outcome;

pub(crate) async fn run(global: &Global, args: UnlockArgs) -> Outcome {
    global.client()?.release_lock(args.id).await?;
    Ok(ExitCode::SUCCESS)
}
