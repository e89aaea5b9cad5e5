//! `rollcall evict`.

use std::future::IntoFuture as _;
use std::process::ExitCode;

use rollcall::Client;

use super::args::EvictArgs;
use super::escape::escaped;
use super::exit::Outcome;
use super::term::{print, time};
use super::waiting::patiently;

pub(crate) async fn run(client: &Client, args: EvictArgs) -> Outcome {
    let evict = client.evict(&args.path);
    let evict = if args.lift { evict.lift() } else { evict.lasting(args.duration) };
    let eviction = patiently(client, &format!("the eviction of {}", args.path), evict.into_future()).await?;
    let path = escaped(&args.path);
    print(&match (eviction.until, eviction.removed) {
        (None, _) => format!("{path}: can be registered again"),
        (Some(until), true) => format!("{path}: evicted until {}", time(until)),
        (Some(until), false) => format!("{path}: it was not registered; it can't be registered until {}", time(until)),
    })?;
    Ok(ExitCode::SUCCESS)
}
