//! The four-letter words: requests without a session.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::hub::{Hub, now};
use crate::state::{Connection, State};
use crate::types::{ConnectionId, Now, SessionId};

/// The version that clients see: the line of ZooKeeper that is spoken, and the server that speaks it.
const VERSION: &str = concat!("3.9.5-rollcall-embedded-", env!("CARGO_PKG_VERSION"), ", built on 2026-01-01 00:00 UTC");

/// ZooKeeper's words. A word to which this server has no answer is answered as ZooKeeper answers a word that is not
/// allowed.
const KNOWN: [&[u8; 4]; 18] = [
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"lead", b"mntr", b"ruok",
    b"srst", b"srvr", b"stat", b"wchc", b"wchp", b"wchs",
];

/// Whether these four bytes are a word, and not the length of a frame.
pub(crate) fn is_known(word: [u8; 4]) -> bool {
    KNOWN.contains(&&word)
}

/// The answer to a word. It may be long, and take long: its data are copied while the server waits, and written after
/// that.
pub(crate) fn answer(word: [u8; 4], hub: &Hub) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _: std::fmt::Result = match &word {
        b"ruok" => text.write_str("imok"),
        b"isro" => text.write_str("rw"),
        b"envi" => writeln!(text, "Environment:\nzookeeper.version={VERSION}"),
        b"srvr" => server(&mut text, hub, false),
        b"stat" => server(&mut text, hub, true),
        b"mntr" => monitor(&mut text, hub),
        b"conf" => configuration(&mut text, hub),
        b"cons" => hub.look(|state| connections(&mut text, state)),
        b"dump" => dump(&mut text, hub),
        // Nothing is on a disk.
        b"dirs" => text.write_str("datadir_size: 0\nlogdir_size: 0\n"),
        b"wchs" => {
            let counts = hub.look(|state| state.watches.counts());
            writeln!(
                text,
                "{} connections watching {} paths\nTotal watches:{}",
                counts.connections, counts.paths, counts.watches
            )
        }
        b"wchc" => watches_by_session(&mut text, hub),
        b"wchp" => watches_by_path(&mut text, hub),
        b"crst" => {
            hub.step(|state, _, _| state.reset_figures());
            text.write_str("Connection stats reset.\n")
        }
        b"srst" => {
            hub.traffic.received.store(0, Ordering::Relaxed);
            hub.traffic.sent.store(0, Ordering::Relaxed);
            text.write_str("Server stats reset.\n")
        }
        word => {
            let word = String::from_utf8_lossy(word.as_slice());
            writeln!(text, "{word} is not executed because it is not in the whitelist.")
        }
    };
    text
}

fn server(text: &mut String, hub: &Hub, with_clients: bool) -> std::fmt::Result {
    writeln!(text, "Zookeeper version: {VERSION}")?;
    if with_clients {
        text.write_str("Clients:\n")?;
        hub.look(|state| state.connections.values().try_for_each(|connection| brief(text, connection, "")))?;
        text.write_str("\n")?;
    }
    let (connections, zxid, nodes) =
        hub.look(|state| (state.connection_count(), state.last_zxid().0, state.tree.len() + 1));
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

/// A connection, followed by `more`.
fn brief(text: &mut String, connection: &Connection, more: impl Display) -> std::fmt::Result {
    let Connection { peer, session, figures, .. } = connection;
    // A connection that asks a word is not read from any more.
    let reads = u8::from(session.is_some() || figures.received == 0);
    let (received, sent) = (figures.received, figures.sent);
    writeln!(text, " /{peer}[{reads}](queued=0,recved={received},sent={sent}{more})")
}

fn connections(text: &mut String, state: &State) -> std::fmt::Result {
    for connection in state.connections.values() {
        match connection.session.and_then(|session| Some((session, state.sessions.times(session)?.0))) {
            Some((session, timeout)) => brief(text, connection, details(connection, session, timeout))?,
            None => brief(text, connection, "")?,
        }
    }
    text.write_str("\n")
}

fn details(connection: &Connection, session: SessionId, timeout_ms: u64) -> String {
    let (established, last) = (connection.figures.established_ms, connection.figures.last);
    let xid = last.xid.map(|xid| format!(",lcxid={xid:#x}")).unwrap_or_default();
    let (operation, zxid, at) = (last.operation, last.zxid.0, last.at_ms);
    format!(
        ",sid={session},lop={operation},est={established},to={timeout_ms}{xid},lzxid={zxid:#x},lresp={at},\
         llat=0,minlat=0,avglat=0,maxlat=0"
    )
}

fn configuration(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let config = &hub.config;
    writeln!(text, "clientPort={}\nsecureClientPort=-1", hub.address.port())?;
    writeln!(text, "dataDir=\ndataDirSize=0\ndataLogDir=\ndataLogSize=0")?;
    writeln!(text, "tickTime={}\nmaxClientCnxns={}", config.tick_ms(), config.max_connections)?;
    writeln!(text, "minSessionTimeout={}", config.min_timeout_ms())?;
    writeln!(text, "maxSessionTimeout={}", config.max_timeout_ms())?;
    writeln!(text, "clientPortListenBacklog=-1\nserverId=0")
}

fn dump(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let now = now(hub.started);
    let (sessions, ephemerals, connections) = hub.look(|state| {
        let sessions = state.sessions.by_end();
        let sessions = sessions.map(|(end, sessions)| (end, sessions.iter().map(ToString::to_string).collect()));
        let ephemerals = state.tree.all_ephemerals();
        let ephemerals: Vec<_> =
            ephemerals.map(|(session, paths)| (session, Vec::from_iter(paths.iter().cloned()))).collect();
        let mut ends: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for connection in state.connections.values() {
            let end = connection.session.and_then(|session| state.sessions.times(session)).map(|(_, end)| end);
            let session = connection.session.map_or(0, |session| session.0);
            let line = format!("ip: /{} sessionId: {session:#x}", connection.peer);
            ends.entry(end.unwrap_or(now.elapsed_ms)).or_default().push(line);
        }
        (sessions.collect(), ephemerals, ends)
    });
    text.write_str("SessionTracker dump:\n")?;
    sets(text, "Session", sessions, now)?;
    writeln!(text, "ephemeral nodes dump:\nSessions with Ephemerals ({}):", ephemerals.len())?;
    for (session, paths) in ephemerals {
        writeln!(text, "{session}:")?;
        paths.iter().try_for_each(|path| writeln!(text, "\t{path}"))?;
    }
    text.write_str("Connections dump:\n")?;
    sets(text, "Connections", connections, now)
}

/// Sessions or connections, by the time at which they end unless they are heard before.
fn sets(text: &mut String, what: &str, ends: BTreeMap<u64, Vec<String>>, now: Now) -> std::fmt::Result {
    writeln!(text, "{what} Sets ({})/({}):", ends.len(), ends.values().map(Vec::len).sum::<usize>())?;
    for (end_ms, lines) in ends {
        let left = i64::try_from(end_ms.saturating_sub(now.elapsed_ms)).unwrap_or(i64::MAX);
        writeln!(text, "{} expire at {}:", lines.len(), date(now.wall_ms.saturating_add(left)))?;
        lines.iter().try_for_each(|line| writeln!(text, "\t{line}"))?;
    }
    Ok(())
}

fn watches_by_session(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let watches: Vec<(SessionId, Vec<Arc<str>>)> = hub.look(|state| {
        let watches = state.watches.by_connection();
        watches.map(|(connection, paths)| (session_of(state, connection), paths.iter().cloned().collect())).collect()
    });
    for (session, paths) in watches {
        writeln!(text, "{session}")?;
        paths.iter().try_for_each(|path| writeln!(text, "\t{path}"))?;
    }
    text.write_str("\n")
}

fn watches_by_path(text: &mut String, hub: &Hub) -> std::fmt::Result {
    let watches: Vec<(Arc<str>, Vec<SessionId>)> = hub.look(|state| {
        let session = |connection| session_of(state, connection);
        state.watches.by_path().map(|(path, watchers)| (path.clone(), watchers.map(session).collect())).collect()
    });
    for (path, sessions) in watches {
        writeln!(text, "{path}")?;
        sessions.iter().try_for_each(|session| writeln!(text, "\t{session}"))?;
    }
    text.write_str("\n")
}

fn session_of(state: &State, connection: ConnectionId) -> SessionId {
    state.connections.get(&connection).and_then(|connection| connection.session).unwrap_or(SessionId(0))
}

/// A time, in milliseconds since the epoch, as Java writes it, in UTC: `Tue Dec 01 10:22:22 UTC 2026`.
fn date(wall_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(wall_ms).unwrap_or_default();
    time.strftime("%a %b %d %H:%M:%S UTC %Y").to_string()
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

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn a_date_is_written_as_java_writes_it() {
        for (seconds, written) in [
            (0, "Thu Jan 01 00:00:00 UTC 1970"),
            (951_827_696, "Tue Feb 29 12:34:56 UTC 2000"),
            (1_798_761_599, "Thu Dec 31 23:59:59 UTC 2026"),
            (1_798_761_600, "Fri Jan 01 00:00:00 UTC 2027"),
            (4_107_542_400, "Mon Mar 01 00:00:00 UTC 2100"),
        ] {
            assert_eq!(date(seconds * 1000 + 999), written);
        }
    }
}
