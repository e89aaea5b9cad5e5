//! The program of docs/tour.md; the README shows a part of it.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use rollcall::{Client, Error};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());
    let client = Client::connect(server).await?;

    let registration = client.register("/services/ssh/server1:22").data(json!({"foo": "bar"})).start().await?;
    let ssh = client.watch("/services/ssh").view().await?;
    println!("{:?}", ssh.current().node.children.keys().collect::<Vec<_>>());

    let guard = client.lock("/jobs/nightly").acquire().await?;
    guard.run(async { println!("working") }).await?;
    guard.release().await?;
    registration.close().await
}
