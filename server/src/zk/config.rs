//! The settings to reach ZooKeeper.

use std::time::Duration;

use super::activation::Activation;
use super::reports::Reports;
use super::server_addresses::Resolver;

/// Number of bytes of the length that precedes a path on the wire.
pub(crate) const PATH_LENGTH: usize = 4;

/// The settings of the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `HOST:PORT` of each server, at least one.
    pub hosts: Vec<String>,
    /// The path that is prefixed to every path, without a trailing slash; empty for the root.
    pub chroot: String,
    /// The session time-out to ask for. ZooKeeper may grant another.
    pub session_timeout: Duration,
    /// Number of sessions that hold ephemerals and always exist.
    pub sessions: usize,
    /// Maximum number of sessions that hold ephemerals. Those above `sessions` are opened when registrations need them.
    pub max_sessions: usize,
    /// Time for which a session above `sessions` must have held nothing before it is given up.
    pub surplus_idle: Duration,
    /// The replica's name, which its fences show to the other replicas.
    pub name: String,
    /// Finds the addresses of the hosts.
    pub resolver: Resolver,
    /// The reports, in the log, of hosts that can't be reached.
    pub reports: Reports,
    /// When the sessions are opened.
    pub activation: Activation,
}

/// The reason why a text does not name an ensemble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not HOST:PORT[,HOST:PORT…][/chroot]: {why}")]
pub struct ConnectStringError {
    text: String,
    why: &'static str,
}

/// The hosts and the chroot of `HOST[:PORT],…[/chroot]`, as every ZooKeeper client reads it; port 2181 if none is
/// given.
///
/// # Errors
/// When there is no host, a port is not a number, or the chroot is not a path.
pub(crate) fn parse_connect_string(text: &str) -> Result<(Vec<String>, String), ConnectStringError> {
    let fail = |why| ConnectStringError { text: text.to_owned(), why };
    if text.contains("://") {
        return Err(fail("servers are named without a scheme"));
    }
    if text.contains(|c: char| c == ';' || c.is_whitespace()) {
        return Err(fail("servers are separated by commas alone"));
    }
    let (hosts, chroot) = match text.find('/') {
        Some(slash) => (&text[..slash], &text[slash..]),
        None => (text, ""),
    };
    let chroot = if chroot == "/" { "" } else { chroot };
    // A chroot may contain a comma or a colon, but nobody intends that: a server would be missing, and the registry
    // empty.
    if chroot.contains(',') {
        return Err(fail("the chroot comes once, after the last server"));
    }
    if chroot.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        return Err(fail("the port comes before the chroot"));
    }
    if !chroot.is_empty() && crate::types::NodePath::parse(chroot).is_err() {
        return Err(fail("the chroot is no valid path"));
    }
    let mut parsed = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (host, "2181"),
        };
        if name.is_empty() {
            return Err(fail("a host is empty"));
        }
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(fail("a port is no number from 1 to 65535"));
        }
        parsed.push(format!("{name}:{port}"));
    }
    Ok((parsed, chroot.to_owned()))
}

impl Config {
    /// One session with the server at this address.
    #[cfg(test)]
    pub(crate) fn of(server: std::net::SocketAddr) -> Self {
        Self {
            hosts: vec![server.to_string()],
            chroot: String::new(),
            session_timeout: Duration::from_secs(20),
            sessions: 1,
            max_sessions: 1,
            surplus_idle: Duration::from_secs(60),
            name: "test".to_owned(),
            resolver: Resolver::default(),
            reports: Reports::default(),
            activation: Activation::at_once(),
        }
    }

    /// Number of bytes of an ephemeral's path in the record that ZooKeeper writes when the session ends: with the
    /// chroot, which is not part of `path_bytes`, and the length before it.
    pub(super) fn path_cost(&self, path_bytes: usize) -> usize {
        self.chroot.len() + path_bytes + PATH_LENGTH
    }

    /// The path as the servers know it.
    pub(super) fn outer(&self, path: &str) -> String {
        match (self.chroot.is_empty(), path) {
            (true, path) => path.to_owned(),
            (false, "/") => self.chroot.clone(),
            (false, path) => format!("{}{path}", self.chroot),
        }
    }

    /// The path as this program knows it. A path outside of the chroot can't come back; it would stay as it is.
    pub(super) fn inner(&self, path: &str) -> String {
        match path.strip_prefix(self.chroot.as_str()) {
            Some("") => "/".to_owned(),
            Some(rest) => rest.to_owned(),
            None => path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_connect_string;

    #[test]
    fn connect_strings_are_read_as_other_clients_read_them() {
        let (hosts, chroot) = parse_connect_string("zk1:2181,zk2,[::1]:99/prod/a").unwrap();
        assert_eq!(hosts, ["zk1:2181", "zk2:2181", "[::1]:99"]);
        assert_eq!(chroot, "/prod/a");
        assert_eq!(parse_connect_string("zk/").unwrap().1, "");
        for bad in ["", "zk:x", ",zk", "zk,", "zk:70000", "zk:0", "zk/a//b"] {
            assert!(parse_connect_string(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_meant_as_something_else_is_refused_with_what_to_change() {
        for (bad, hint) in [
            ("zk1:2181/prod,zk2:2181/prod", "the chroot comes once"),
            ("zk1/prod,zk2", "the chroot comes once"),
            ("zk1/prod:2181", "the port comes before the chroot"),
            ("zk://zk1:2181/prod", "without a scheme"),
            ("zk1:2181;zk2:2181", "separated by commas"),
            ("zk1:2181, zk2:2181", "separated by commas"),
            ("zk1:2181 zk2:2181/prod", "separated by commas"),
        ] {
            let error = parse_connect_string(bad).unwrap_err().to_string();
            assert!(error.contains(hint) && error.contains(bad), "{error}");
        }
        assert_eq!(parse_connect_string("zk/a:b").unwrap().1, "/a:b");
    }
}
