//! The settings of a server.

use std::time::Duration;

/// The settings of an [`crate::Embedded`]; the defaults are ZooKeeper's.
#[derive(Debug, Clone)]
pub struct Config {
    /// ZooKeeper's unit of time: sessions expire on its boundaries.
    pub tick: Duration,
    /// Minimum session time-out that is granted; `None` means two ticks.
    pub min_session_timeout: Option<Duration>,
    /// Maximum session time-out that is granted; `None` means twenty ticks.
    pub max_session_timeout: Option<Duration>,
    /// Maximum size of a frame, in bytes (`jute.maxbuffer`). A longer frame closes its connection.
    pub max_frame: usize,
    /// Maximum number of connections; one more is closed at once.
    pub max_connections: usize,
    /// Maximum number of bytes that wait for a connection's reader before the connection is cut off. At half of it, no
    /// more requests are read.
    pub max_unread: usize,
    /// Interval at which containers and nodes with a time to live are checked.
    pub sweep_interval: Duration,
    /// Whether nodes may have a time to live (`extendedTypesEnabled`, which ZooKeeper leaves off).
    pub ttl_nodes: bool,
    /// The user who may do everything, whatever access control lists say: `user:` and the hash of `user:password`, in
    /// ZooKeeper's form (`zookeeper.DigestAuthenticationProvider.superDigest`).
    pub super_digest: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(2),
            min_session_timeout: None,
            max_session_timeout: None,
            max_frame: 0xf_ffff,
            max_connections: 4096,
            max_unread: 32 * 1024 * 1024,
            sweep_interval: Duration::from_secs(60),
            ttl_nodes: true,
            super_digest: None,
        }
    }
}

impl Config {
    pub(crate) fn tick_ms(&self) -> u64 {
        millis(self.tick).max(1)
    }

    /// The time-out that is granted to a client that asks for this one.
    pub(crate) fn granted_timeout_ms(&self, asked: i32) -> u64 {
        u64::try_from(asked).unwrap_or(0).max(self.min_timeout_ms()).min(self.max_timeout_ms())
    }

    pub(crate) fn min_timeout_ms(&self) -> u64 {
        self.min_session_timeout.map_or(self.tick_ms() * 2, millis)
    }

    pub(crate) fn max_timeout_ms(&self) -> u64 {
        self.max_session_timeout.map_or(self.tick_ms() * 20, millis).clamp(1, i32::MAX as u64)
    }
}

fn millis(duration: Duration) -> u64 {
    // Far beyond any clock, and far from any overflow.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(u64::from(u32::MAX) * 1000)
}
