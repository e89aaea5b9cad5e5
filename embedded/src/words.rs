//! The four-letter words: what can be asked without a session.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::hub::Hub;

/// What clients that look at versions see: the line that is spoken, and who speaks it.
const VERSION: &str = concat!("3.9.5-rollcall-embedded-", env!("CARGO_PKG_VERSION"), ", built on 2026-01-01 00:00 UTC");

/// ZooKeeper's words. Those that this server has no answer to are answered as ZooKeeper answers what is not allowed.
const KNOWN: [&[u8; 4]; 18] = [
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"lead", b"mntr", b"ruok",
    b"srst", b"srvr", b"stat", b"wchc", b"wchp", b"wchs",
];

/// Whether these four bytes are a word, and not the length of a frame.
pub(crate) fn is_known(word: [u8; 4]) -> bool {
    KNOWN.contains(&&word)
}

/// The answer to a word.
pub(crate) fn answer(word: [u8; 4], hub: &Hub) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _: std::fmt::Result = match &word {
        b"ruok" => text.write_str("imok"),
        b"isro" => text.write_str("rw"),
        b"envi" => writeln!(text, "Environment:\nzookeeper.version={VERSION}"),
        b"srvr" | b"stat" => server(&mut text, hub),
        b"mntr" => monitor(&mut text, hub),
        b"wchs" => {
            let counts = hub.look(|state| state.watches.counts());
            writeln!(
                text,
                "{} connections watching {} paths\nTotal watches:{}",
                counts.connections, counts.paths, counts.watches
            )
        }
        word => {
            let word = String::from_utf8_lossy(word.as_slice());
            writeln!(text, "{word} is not executed because it is not in the whitelist.")
        }
    };
    text
}

fn server(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let (connections, zxid, nodes) =
        hub.look(|state| (state.connection_count(), state.last_zxid().0, state.tree.len() + 1));
    writeln!(text, "Zookeeper version: {VERSION}")?;
    // Everything is answered within the step that reads it.
    writeln!(text, "Latency min/avg/max: 0/0.0/0")?;
    writeln!(text, "Received: {}", hub.traffic.received.load(Ordering::Relaxed))?;
    writeln!(text, "Sent: {}", hub.traffic.sent.load(Ordering::Relaxed))?;
    writeln!(text, "Connections: {connections}")?;
    writeln!(text, "Outstanding: 0")?;
    writeln!(text, "Zxid: {zxid:#x}")?;
    writeln!(text, "Mode: standalone")?;
    // ZooKeeper counts the root twice.
    writeln!(text, "Node count: {nodes}")
}

fn monitor(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let figures = hub.look(|state| {
        [
            ("num_alive_connections", state.connection_count()),
            ("znode_count", state.tree.len() + 1),
            ("watch_count", state.watches.total()),
            ("ephemerals_count", state.tree.ephemeral_count()),
            ("approximate_data_size", state.tree.bytes()),
            ("global_sessions", state.sessions.len()),
        ]
    });
    writeln!(text, "zk_version\t{VERSION}")?;
    writeln!(text, "zk_server_state\tstandalone")?;
    writeln!(text, "zk_uptime\t{}", hub.started.elapsed().as_millis())?;
    writeln!(text, "zk_packets_received\t{}", hub.traffic.received.load(Ordering::Relaxed))?;
    writeln!(text, "zk_packets_sent\t{}", hub.traffic.sent.load(Ordering::Relaxed))?;
    writeln!(text, "zk_outstanding_requests\t0")?;
    figures.iter().try_for_each(|(name, figure)| writeln!(text, "zk_{name}\t{figure}"))
}
