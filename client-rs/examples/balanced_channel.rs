//! Spreads calls over all registered servers. The service of this example is gRPC's health check, served twice.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollcall::Client;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("ROLLCALL_SERVER").unwrap_or("localhost:7700".to_owned());
    let client = Client::connect(server).await?;

    // Two servers. Each counts its calls and registers the address on which it listens.
    let (mut counts, mut registrations) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(count.clone());
        let counting = tonic::service::InterceptorLayer::new(move |request| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(request)
        });
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder().layer(counting).add_service(health);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        registrations.push(client.register(format!("/services/health/{address}")).start().await?);
    }

    // A channel to both.
    let channel = client.channel("/services/health").await?;
    let mut health = HealthClient::new(channel);
    while counts.iter().any(|count| count.load(Ordering::Relaxed) == 0) {
        health.check(HealthCheckRequest::default()).await?;
    }
    println!("both have answered");

    for registration in registrations {
        registration.close().await?;
    }
    Ok(())
}
