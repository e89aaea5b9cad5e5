//! The tests that cross a process or a network, one module for each subject.
//!
//! They are one program, so that they are linked once and share one ZooKeeper; `cargo test -p rollcall-tests locks::`
//! runs one subject. Each test has a chroot and a server of its own.
//!
//! What lies in `both/` runs twice, from one source: on real ZooKeeper as `zookeeper::…`, on the embedded server as
//! `embedded::…`.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and shows what it saw, in its helpers too"
)]
#![allow(clippy::duplicate_mod, reason = "one body, two arms")]

mod cli;
mod differential;
mod faults;
mod one_binary;
mod outages;
mod polyglot;
mod replicas;
mod rust_client;

#[path = "both"]
mod zookeeper {
    const ARM: rollcall_tests::arm::Arm = rollcall_tests::arm::Arm::ZooKeeper;

    mod cut_off;
    mod drain;
    mod durable;
    mod errors;
    mod get;
    mod lasting_locks;
    mod lifetimes;
    mod locks;
    mod register;
    mod snapshots;
    mod streams;
    mod takeover;
    mod watch;
}

#[path = "both"]
mod embedded {
    const ARM: rollcall_tests::arm::Arm = rollcall_tests::arm::Arm::Embedded;

    mod cut_off;
    mod drain;
    mod durable;
    mod errors;
    mod get;
    mod lasting_locks;
    mod lifetimes;
    mod locks;
    mod register;
    mod snapshots;
    mod streams;
    mod takeover;
    mod watch;
}

/// A file that no module names would never be compiled, and its tests never run.
#[test]
fn every_file_is_a_module_and_one_for_both_arms_is_two() {
    let main = include_str!("main.rs");
    let check = |folder: &str, indent: &str, count: usize| {
        for entry in std::fs::read_dir(format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") else { continue };
            let found = main.matches(&format!("\n{indent}mod {module};\n")).count();
            assert_eq!(found, count, "so often does main.rs name {folder}/{name}");
        }
    };
    check("tests", "", 1);
    check("tests/both", "    ", 2);
}
