//! Prints the registered servers, whenever they change.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use rollcall::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());

    let client = Client::connect(server).await?;
    let mut ssh = client.watch("/services/ssh").view().await?;
    loop {
        let lookup = ssh.current();
        let names: Vec<_> = lookup.node.children.keys().collect();
        println!("{names:?}{}", if lookup.stale { " (stale)" } else { "" });
        ssh.changed().await?;
    }
}
