//! The command line: settings as they were typed.

use clap::Parser;

use crate::config::Options;

/// Rollcall: a service registry and lock service in front of ZooKeeper.
///
/// Programs speak gRPC to it (package rollcall.v1). It keeps registrations, locks and values in ZooKeeper, in the
/// znodes and with the lock recipe that kazoo and nd_service_registry use.
#[derive(Debug, Clone, Parser)]
#[command(name = "rollcall-server", version, about, after_help = EXAMPLES)]
pub struct Args {
    /// What the server is to do.
    #[command(flatten)]
    pub options: Options,

    /// Level of the log on stderr: error, warn, info, debug, or a level per module, as in rollcall_server::zk=debug
    #[arg(long, value_name = "FILTER", default_value = "info", env = "ROLLCALL_LOG")]
    pub log: String,
}

const EXAMPLES: &str = "\
Examples:
  rollcall-server --embedded
  rollcall-server --zookeeper zk1:2181,zk2:2181,zk3:2181/prod
  rollcall-server --zookeeper localhost:2181 --listen 0.0.0.0:7700 --session-timeout 10s

Then, from anywhere:
  grpcurl -plaintext -d '{\"path\":\"/services\"}' localhost:7700 rollcall.v1.Registry/Get";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Args;

    #[test]
    fn help_has_no_markup() {
        let help = Args::command().render_long_help().to_string();
        assert!(help.contains("ZooKeeper") && !help.contains('`'), "{help}");
    }
}
