//! A handwritten client in a process of its own: `raw_client REPLICA TTL-IN-MS 1 EACH PREFIX`. See
//! [`rollcall_tests::raw_client`].

use rollcall_tests::raw_client::run_process;
use rollcall_tests::registrant::Many;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    run_process(&Many::parse(&arguments)).await;
}
