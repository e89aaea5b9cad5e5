//! A hostile client in a process of its own: `flood FLOOD GRPC HTTP small|full MILLISECONDS`. See
//! [`rollcall_tests::hostile`].

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    rollcall_tests::hostile::child::run_process(&arguments);
}
