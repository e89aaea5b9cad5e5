//! Registers a service until Ctrl-C.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use rollcall::Client;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());

    let client = Client::connect(server).await?;
    let registration = client.register("/services/ssh/server1:22").data(json!({"foo": "bar"})).start().await?;
    println!("registered {}", registration.path());

    tokio::signal::ctrl_c().await?;
    registration.close().await?;
    println!("gone");
    Ok(())
}
