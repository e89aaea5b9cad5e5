//! `rollcall put`.

use std::process::ExitCode;

use super::args::{Global, PutArgs};
use super::exit::Outcome;
use super::term::{parse_data, print};

pub(crate) async fn run(global: &Global, args: PutArgs) -> Outcome {
    let mut put = global.client()?.put(args.path);
    if !args.data.is_empty() {
        put = put.data(parse_data(&args.data)?);
    }
    if let Some(text) = args.text {
        put = put.value(text);
    }
    if let Some(version) = args.version {
        put = put.if_version(version);
    }
    if args.create {
        put = put.create_only();
    }
    let stat = put.await?;
    print(&format!("version {}", stat.version))?;
    Ok(ExitCode::SUCCESS)
}
