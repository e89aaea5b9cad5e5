//! `rollcall delete`.

use std::future::IntoFuture as _;
use std::process::ExitCode;

use rollcall::Client;

use super::args::DeleteArgs;
use super::exit::Outcome;
use super::waiting::patiently;

pub(crate) async fn run(client: &Client, args: DeleteArgs) -> Outcome {
    let what = format!("the deletion of {}", args.path);
    let mut delete = client.delete(args.path);
    if args.recursive {
        delete = delete.recursive();
    }
    if let Some(version) = args.version {
        delete = delete.if_version(version);
    }
    patiently(client, &what, delete.into_future()).await?;
    Ok(ExitCode::SUCCESS)
}
