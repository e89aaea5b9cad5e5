//! Clients in a process of their own: `registrant REPLICA,… TTL-IN-MS CLIENTS EACH PREFIX`. See
//! [`rollcall_tests::registrant`].

use rollcall_tests::registrant::{Many, run_process};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    run_process(&Many::parse(&arguments)).await;
}
