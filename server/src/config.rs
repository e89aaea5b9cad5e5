//! The options as they were typed, and the settings that are made of them once they have been checked.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use data_encoding::BASE64;
use jiff::SignedDuration;

use crate::app::Settings;
use crate::budget::Limits;
use crate::listen::Bounds;
use crate::{grpc, zk};

/// Time for which a ZooKeeper session above `--sessions` must have held nothing before it is given up.
const SURPLUS_IDLE: Duration = Duration::from_secs(180);
/// Minimum memory that may be allowed, in bytes: a few calls with messages of the maximum size.
const LEAST_BYTES: usize = 8 * 1024 * 1024;

/// What the server is to do, unchecked.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("backend").args(["zookeeper", "embedded"]).required(true)))]
pub struct Options {
    /// ZooKeeper's servers, and optionally the path below which Rollcall keeps everything:
    /// HOST:PORT[,HOST:PORT…][/chroot]. Without a port: 2181
    #[arg(long, value_name = "HOSTS[/CHROOT]", env = "ROLLCALL_ZOOKEEPER")]
    pub zookeeper: Option<String>,

    /// Keep everything in the memory of this process, instead of in ZooKeeper. For one machine and for development
    #[arg(long)]
    pub embedded: bool,

    /// Loopback address on which the embedded backend serves ZooKeeper's protocol; port 0 takes a free one
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "127.0.0.1:0", conflicts_with = "zookeeper")]
    pub embedded_listen: SocketAddr,

    /// ZooKeeper's tickTime, 100ms to 1m. A session's time-out is 2 to 20 ticks, and a session expires at the first
    /// tick after it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration, conflicts_with = "zookeeper")]
    pub embedded_tick: Duration,

    /// Interval at which the embedded backend looks for containers and TTL nodes to remove, 10ms to 1h
    /// (znode.container.checkIntervalMs)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, conflicts_with = "zookeeper")]
    pub embedded_sweep: Duration,

    /// Superuser, to which access control lists do not apply: USER:BASE64, the base64 of the SHA-1 of USER:PASSWORD
    /// (zookeeper.DigestAuthenticationProvider.superDigest). Default: none
    #[arg(long, value_name = "DIGEST", value_parser = super_digest, conflicts_with = "zookeeper")]
    pub embedded_super: Option<String>,

    /// Address on which the server serves gRPC; port 0 takes a free one
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "127.0.0.1:7700", env = "ROLLCALL_LISTEN")]
    pub listen: SocketAddr,

    /// Address on which the server serves metrics and health over HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "127.0.0.1:7701", env = "ROLLCALL_HTTP_LISTEN")]
    pub http_listen: SocketAddr,

    /// Name of this replica, at most 256 bytes; rollcall status shows it, on the other replicas too. Default: the host
    /// name and the port of --listen
    #[arg(long, value_name = "NAME", env = "ROLLCALL_NAME", value_parser = name)]
    pub name: Option<String>,

    /// ZooKeeper session time-out to ask for, 2s to 10m. When a replica dies, its registrations and locks stay for that
    /// long
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    pub session_timeout: Duration,

    /// Number of ZooKeeper sessions that hold ephemerals, 1 to 64; the server opens more when registrations need them
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub sessions: usize,

    /// Maximum number of ZooKeeper sessions that hold ephemerals, from --sessions to 1000. This number plus 2, times
    /// the number of replicas behind one address, must stay below ZooKeeper's maxClientCnxns (60 by default). Each
    /// session has room for 512 KiB of paths; a request beyond the room of all is refused with RESOURCE_EXHAUSTED
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub max_sessions: usize,

    /// Maximum size of a value in bytes, 1 to 1000000
    #[arg(long, value_name = "BYTES", default_value_t = 256 * 1024)]
    pub max_value_bytes: usize,

    /// Time without a message after which the server sends a heartbeat on a stream, 1s to 10m; a request may ask for
    /// another time
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    pub heartbeat: Duration,

    /// Time of silence after which the server pings a connection, 1s to 10m. It closes the connection when no answer
    /// comes for the same time
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub keepalive: Duration,

    /// Time that clients have after SIGTERM to move to other replicas, 0s to 10m. The server ends at once when no
    /// stream is left. SIGINT, or a second SIGTERM, ends it without a drain
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub drain: Duration,

    /// Maximum number of client connections on each of the two ports, 1 to 1000000; the server closes further ones at
    /// once. It is lower where the system allows the process too few descriptors
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub max_connections: usize,

    /// Maximum number of client connections from one address, or from one IPv6 network of 64 bits, 1 to 1000000. It is
    /// at most a quarter of a port's connections where the system allows too few descriptors for --max-connections
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub max_connections_per_address: usize,

    /// Maximum number of calls in flight on one connection, 1 to 1000000; a further call is refused with
    /// RESOURCE_EXHAUSTED
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    pub max_streams_per_connection: usize,

    /// Maximum number of calls in flight on this replica, 1 to 10000000; a further call is refused with
    /// RESOURCE_EXHAUSTED
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    pub max_streams: usize,

    /// Maximum memory in bytes that one connection may make this replica hold, at least 8388608. A request that needs
    /// more is refused with RESOURCE_EXHAUSTED. The messages and unread answers of open streams may take an eighth of
    /// it more
    #[arg(long, value_name = "BYTES", default_value_t = Limits::CONNECTION.bytes)]
    pub max_bytes_per_connection: usize,

    /// The same for all connections together
    #[arg(long, value_name = "BYTES", default_value_t = Limits::REPLICA.bytes)]
    pub max_bytes: usize,

    /// Time for which the server keeps its view of a path up to date after the last reader of the path has gone, 1s to
    /// 1h
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = duration)]
    pub view_idle: Duration,

    /// Time after which the server removes the nodes of an unused lock from ZooKeeper, 1s to 10000h; 0s: never. A lock
    /// is unused when it has no holder and no waiter. Give a time only where no program keeps a kazoo lock object for
    /// longer: such an object fails for good once the nodes are removed
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub lock_idle: Duration,

    /// Directory in which this replica keeps the last known state of each path that clients read or watch. After a
    /// restart without ZooKeeper it serves that state, marked as stale. The files hold values, and only their owner may
    /// read them. Each replica needs its own directory. Default: none
    #[arg(long, value_name = "DIR", env = "ROLLCALL_SNAPSHOT_DIR", conflicts_with = "embedded")]
    pub snapshot_dir: Option<PathBuf>,

    /// Refuse every write, lock and registration
    #[arg(long)]
    pub read_only: bool,
}

/// A setting that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `--zookeeper` names no ensemble.
    #[error("--zookeeper: {0}")]
    ZooKeeper(#[from] zk::ConnectStringError),
    /// A number is out of bounds.
    #[error("--{name} must be between {least} and {most}")]
    OutOfBounds {
        /// The setting.
        name: &'static str,
        /// Its minimum.
        least: String,
        /// Its maximum.
        most: String,
    },
}

fn within<T: PartialOrd + std::fmt::Debug + Copy>(
    name: &'static str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (format!("{:?}", bounds.start()), format!("{:?}", bounds.end()));
    Err(ConfigError::OutOfBounds { name, least, most })
}

/// Parses an address to listen on. A host name is refused: it may have several addresses, and they may change.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "give an IP address and a port, as in 127.0.0.1:7700 or 0.0.0.0:7700, not a host name".to_owned())
}

impl Options {
    /// Checks every option.
    ///
    /// # Errors
    /// The first option that is not valid, by name.
    pub fn check(self) -> Result<Settings, ConfigError> {
        const SECOND: Duration = Duration::from_secs(1);
        const TEN_MINUTES: Duration = Duration::from_secs(600);
        // The address of the embedded backend is known once it is bound.
        let (hosts, chroot) = match &self.zookeeper {
            Some(zookeeper) => zk::parse_connect_string(zookeeper)?,
            None => (Vec::new(), String::new()),
        };
        let max_sessions = within("max-sessions", self.max_sessions, self.sessions..=1000)?;
        // An eighth is held back: for fences, for space that long paths leave in a session, and for paths that are
        // registered again.
        let path_bytes = max_sessions * zk::SESSION_PATH_BYTES / 8 * 7;
        let embedded = rollcall_embedded::Config {
            tick: within("embedded-tick", self.embedded_tick, SECOND / 10..=60 * SECOND)?,
            sweep_interval: within("embedded-sweep", self.embedded_sweep, SECOND / 100..=3600 * SECOND)?,
            super_digest: self.embedded_super,
            ..rollcall_embedded::Config::default()
        };
        Ok(Settings {
            embedded: self.embedded.then_some((self.embedded_listen, embedded)),
            zookeeper: zk::Config {
                hosts,
                chroot: chroot.clone(),
                session_timeout: within("session-timeout", self.session_timeout, 2 * SECOND..=TEN_MINUTES)?,
                sessions: within("sessions", self.sessions, 1..=64)?,
                max_sessions,
                surplus_idle: SURPLUS_IDLE,
                // The name is known once the port is.
                name: String::new(),
                resolver: zk::Resolver::default(),
                reports: zk::Reports::default(),
                activation: zk::Activation::at_once(),
            },
            name: self.name,
            listen: self.listen,
            http_listen: self.http_listen,
            keepalive: within("keepalive", self.keepalive, SECOND..=TEN_MINUTES)?,
            drain: within("drain", self.drain, Duration::ZERO..=TEN_MINUTES)?,
            connections: Bounds {
                in_all: within("max-connections", self.max_connections, 1..=1_000_000)?,
                per_address: within("max-connections-per-address", self.max_connections_per_address, 1..=1_000_000)?,
            },
            per_connection: Limits {
                streams: within("max-streams-per-connection", self.max_streams_per_connection, 1..=1_000_000)?,
                path_bytes: path_bytes / 4,
                bytes: within("max-bytes-per-connection", self.max_bytes_per_connection, LEAST_BYTES..=usize::MAX)?,
                ..Limits::CONNECTION
            },
            in_all: Limits {
                streams: within("max-streams", self.max_streams, 1..=10_000_000)?,
                path_bytes,
                bytes: within("max-bytes", self.max_bytes, LEAST_BYTES..=usize::MAX)?,
                ..Limits::REPLICA
            },
            api: grpc::Settings {
                max_value_bytes: within("max-value-bytes", self.max_value_bytes, 1..=1_000_000)?,
                read_only: self.read_only,
                has_chroot: !chroot.is_empty(),
                heartbeat: within("heartbeat", self.heartbeat, SECOND..=TEN_MINUTES)?,
            },
            view_idle: within("view-idle", self.view_idle, SECOND..=3600 * SECOND)?,
            // A read-only replica removes nothing.
            lock_idle: if self.lock_idle.is_zero() || self.read_only {
                Duration::ZERO
            } else {
                within("lock-idle", self.lock_idle, SECOND..=10_000 * 3600 * SECOND)?
            },
            snapshot_dir: self.snapshot_dir,
        })
    }
}

/// Parses a name that can be shown anywhere.
fn name(text: &str) -> Result<String, String> {
    let longest = zk::LONGEST_NAME;
    match text {
        "" => Err("a name can't be empty".to_owned()),
        _ if text.len() > longest => Err(format!("a name has at most {longest} bytes")),
        _ if text.contains(char::is_control) => Err("a name has no control characters".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// Parses a duration such as `20s`, `500ms`, `2m` or `24h`.
fn duration(text: &str) -> Result<Duration, String> {
    if !text.starts_with(|character: char| character.is_ascii_digit()) {
        return Err(format!("{text:?} does not start with a whole number"));
    }
    if !matches!(text.trim_start_matches(|character: char| character.is_ascii_digit()), "ms" | "s" | "m" | "h") {
        return Err(format!("{text:?} needs a unit: ms, s, m or h"));
    }
    let parsed = text.parse::<SignedDuration>().ok().and_then(|parsed| Duration::try_from(parsed).ok());
    parsed.ok_or_else(|| format!("{text:?} is too long"))
}

/// Parses a user name and a hash of 20 bytes in base64. Anything else would match no user.
fn super_digest(text: &str) -> Result<String, String> {
    /// Number of bytes of a SHA-1.
    const SHA1_BYTES: usize = 20;
    let is_base64 = |hash: &str| BASE64.decode(hash.as_bytes()).is_ok_and(|hash| hash.len() == SHA1_BYTES);
    match text.split_once(':') {
        Some((user, hash)) if !user.is_empty() && is_base64(hash) => Ok(text.to_owned()),
        _ => Err("give USER:BASE64, with the base64 of a SHA-1 (20 bytes)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn settings(options: &[&str]) -> Result<Settings, ConfigError> {
        let line = ["rollcall-server", "--zookeeper", "localhost"].iter().chain(options);
        Line::try_parse_from(line).unwrap().options.check()
    }

    #[test]
    fn defaults_are_valid() {
        assert!(settings(&[]).is_ok());
    }

    #[test]
    fn zookeepers_default_has_room_for_all_sessions_and_these_have_room_for_all_paths() {
        const MAX_CLIENT_CNXNS: usize = 60;
        let defaults = settings(&[]).unwrap();
        let sessions = defaults.zookeeper.max_sessions;
        assert!(sessions + zk::WATCHING_SESSIONS < MAX_CLIENT_CNXNS * 3 / 4);
        for sessions in ["4", "40", "1000"] {
            let settings = settings(&["--max-sessions", sessions]).unwrap();
            let room = settings.zookeeper.max_sessions * zk::SESSION_PATH_BYTES;
            assert!(settings.in_all.path_bytes < room * 9 / 10);
            assert_eq!(settings.per_connection.path_bytes, settings.in_all.path_bytes / 4);
        }
    }

    #[test]
    fn idle_locks_are_removed_only_where_that_is_asked_for() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let idle = |options: &[&str]| settings(options).unwrap().lock_idle;
        assert_eq!((idle(&[]), idle(&["--lock-idle", "48h"])), (Duration::ZERO, 2 * DAY));
        assert_eq!(idle(&["--read-only", "--lock-idle", "48h"]), Duration::ZERO);
    }

    #[test]
    fn the_backend_is_named_once() {
        let parse = |line: &[&str]| Line::try_parse_from([&["rollcall-server"], line].concat());
        assert!(parse(&["--embedded"]).is_ok());
        for wrong in
            [&[][..], &["--embedded", "--zookeeper", "zk"], &["--zookeeper", "zk", "--embedded-listen", "[::1]:1"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for option in
            ["--embedded-tick=1s", "--embedded-sweep=1s", "--embedded-super=super:D/InIHSb7yEEbrWz8b9l71RjZJU="]
        {
            assert!(parse(&["--embedded", option]).unwrap().options.check().is_ok(), "{option}");
            assert!(parse(&["--zookeeper", "zk", option]).is_err(), "{option}");
        }
        for wrong in ["super", "super:test", ":D/InIHSb7yEEbrWz8b9l71RjZJU=", "super:D/InIHSb7yEEbrWz8b9l71RjZJU-"] {
            assert!(parse(&["--embedded", "--embedded-super", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_can_be_shown_anywhere() {
        let parse = |name: &str| Line::try_parse_from(["rollcall-server", "--embedded", "--name", name]);
        assert_eq!(parse("web-1 (a)").unwrap().options.name.as_deref(), Some("web-1 (a)"));
        for wrong in ["", "a\u{1b}[31m", &"x".repeat(zk::LONGEST_NAME + 1)] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let error = settings(&["--session-timeout", "500ms"]).unwrap_err();
        assert_eq!(error.to_string(), "--session-timeout must be between 2s and 600s");
        let error = settings(&["--lock-idle", "999ms"]).unwrap_err();
        assert_eq!(error.to_string(), "--lock-idle must be between 1s and 36000000s");
        let error = settings(&["--sessions", "41"]).unwrap_err();
        assert_eq!(error.to_string(), "--max-sessions must be between 41 and 1000");
    }
}
