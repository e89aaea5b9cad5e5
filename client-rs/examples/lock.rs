//! Runs work that must not run twice at the same time.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use rollcall::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());

    let client = Client::connect(server).await?;
    let lock = client.lock("/jobs/nightly").wait(Duration::from_secs(60));
    let guard = lock.on_queued(|place| println!("place {}", place.position)).acquire().await?;

    let token = guard.fencing_token();
    guard.run(async { println!("working with token {token}") }).await?;

    guard.release().await?;
    println!("released");
    Ok(())
}
