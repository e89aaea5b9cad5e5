//! The embedded server by itself: `cargo run -p rollcall-embedded --example serve -- 127.0.0.1:2181`.

#![allow(clippy::print_stdout, reason = "the one line that says where it listens")]

use std::net::SocketAddr;

use rollcall_embedded::{Config, Embedded};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:2181".to_owned()).parse()?;
    let embedded = Embedded::bind(address, Config::default()).await?;
    println!("listening zookeeper={}", embedded.local_addr());
    embedded.run(async { drop(tokio::signal::ctrl_c().await) }).await;
    Ok(())
}
