//! The tests that cross a process or a network, one module for each subject.
//!
//! They are one program, so that they are linked once and share one ZooKeeper; `cargo test -p rollcall-tests locks::`
//! runs one subject. Each test has a chroot and a server of its own.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and shows what it saw, in its helpers too"
)]

mod durable;
mod embedded;
mod errors;
mod faults;
mod get;
mod lasting_locks;
mod lifetimes;
mod locks;
mod one_binary;
mod polyglot;
mod register;
mod replay;
mod snapshots;
mod streams;
mod takeover;
mod watch;

/// A file that no module names would never be compiled, and its tests never run.
#[test]
fn every_file_is_a_module() {
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(module == "main" || main.contains(&format!("\nmod {module};\n")), "main.rs does not name {name}");
    }
}
