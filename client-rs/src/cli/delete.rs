//! `rollcall delete`.

use std::process::ExitCode;

use super::args::{DeleteArgs, Global};
use super::exit::Outcome;

pub(crate) async fn run(global: &Global, args: DeleteArgs) -> Outcome {
    let mut delete = global.client()?.delete(args.path);
    if args.recursive {
        delete = delete.recursive();
    }
    if let Some(version) = args.version {
        delete = delete.if_version(version);
    }
    delete.await?;
    Ok(ExitCode::SUCCESS)
}
