//! The tests that cross a process or a network, one module for each subject.
//!
//! They are one program, so that they are linked once and share one ZooKeeper; `cargo test -p rollcall-tests locks::`
//! runs one subject. Each test has a chroot and a server of its own.
//!
//! The tests in `both/` run twice, from one source: on real ZooKeeper as `zookeeper::…`, and on the embedded server as
//! `embedded::…`. Those that test Rollcall run a third time, on the oldest ZooKeeper, as `oldest::…`.
//!
//! The other tests have ZooKeeper servers of their own to kill, or drive other languages. `both/conformance` has a case
//! for every behaviour of ZooKeeper that the server relies on.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and shows what it saw, in its helpers too"
)]
#![allow(clippy::duplicate_mod, reason = "one body, several arms")]

mod behind;
mod chaos;
mod cli;
mod cli_ends;
mod cli_says;
mod clients;
mod contention;
mod differential;
mod faults;
mod go_client;
mod horizon;
mod hostile;
mod hostile_edge;
mod hostile_memory;
mod hostile_reads;
mod judges;
mod lock_costs;
mod lock_neighbours;
mod many_watchers;
mod networks;
mod one_binary;
mod outages;
mod packages;
mod pages;
mod polyglot;
mod replay;
mod replicas;
mod rust_client;
mod services;
mod stubs;
mod without_zookeeper;
mod zookeeper_limits;

#[path = "both"]
mod zookeeper {
    const ARM: rollcall_tests::arm::Arm = rollcall_tests::arm::Arm::ZooKeeper;

    mod conformance;
    mod cut_off;
    mod drain;
    mod durable;
    mod errors;
    mod evict;
    mod fell_back;
    mod floods;
    mod get;
    mod idle_locks;
    mod lasting_locks;
    mod lifetimes;
    mod lock_queue;
    mod locks;
    mod malformed;
    mod own_writes;
    mod prepared;
    mod register;
    mod silent_clients;
    mod slow_readers;
    mod snapshots;
    mod status;
    mod strangers;
    mod streams;
    mod takeover;
    mod watch;
    mod worn_queues;
    mod zookeeper_clients;
}

#[path = "both"]
mod embedded {
    const ARM: rollcall_tests::arm::Arm = rollcall_tests::arm::Arm::Embedded;

    mod conformance;
    mod cut_off;
    mod drain;
    mod durable;
    mod errors;
    mod evict;
    mod fell_back;
    mod floods;
    mod get;
    mod idle_locks;
    mod lasting_locks;
    mod lifetimes;
    mod lock_queue;
    mod locks;
    mod malformed;
    mod own_writes;
    mod prepared;
    mod register;
    mod silent_clients;
    mod slow_readers;
    mod snapshots;
    mod status;
    mod strangers;
    mod streams;
    mod takeover;
    mod watch;
    mod worn_queues;
    mod zookeeper_clients;
}

/// Without `conformance`, which describes ZooKeeper 3.9, and without other clients, which do not use Rollcall.
#[path = "both"]
mod oldest {
    const ARM: rollcall_tests::arm::Arm = rollcall_tests::arm::Arm::Oldest;

    mod cut_off;
    mod drain;
    mod durable;
    mod errors;
    mod evict;
    mod fell_back;
    mod floods;
    mod get;
    mod idle_locks;
    mod lasting_locks;
    mod lifetimes;
    mod locks;
    mod malformed;
    mod own_writes;
    mod prepared;
    mod register;
    mod silent_clients;
    mod slow_readers;
    mod snapshots;
    mod status;
    mod strangers;
    mod streams;
    mod takeover;
    mod watch;
    mod worn_queues;
}

/// A file that no module names would never be compiled, and its tests never run.
#[test]
fn every_file_is_a_module_and_one_for_all_arms_is_several() {
    every_file_is_named(include_str!("main.rs"), "tests", "\nmod ", &[1]);
    every_file_is_named(include_str!("main.rs"), "tests/both", "\n    mod ", &[2, 3]);
    every_file_is_named(include_str!("both/conformance/mod.rs"), "tests/both/conformance", "\nmod ", &[1]);
}

fn every_file_is_named(by: &str, folder: &str, declaration: &str, times: &[usize]) {
    for entry in std::fs::read_dir(format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let module = file.trim_end_matches(".rs");
        let is_one = !matches!((folder, module), ("tests", "main" | "both") | (_, "mod"));
        let named = by.matches(&format!("{declaration}{module};\n")).count();
        assert!(!is_one || times.contains(&named), "{folder}/{file} is named {named} times, not {times:?}");
    }
}
