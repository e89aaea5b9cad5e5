//! `rollcall unlock`.

use std::process::ExitCode;

use rollcall::Client;

use super::args::UnlockArgs;
use super::exit::Outcome;
use super::waiting::patiently;

pub(crate) async fn run(client: &Client, args: UnlockArgs) -> Outcome {
    patiently(client, "the lock's release", client.release_lock(args.id)).await?;
    Ok(ExitCode::SUCCESS)
}
