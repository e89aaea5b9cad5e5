//! The command line, as clap parses it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;
use rollcall::{Client, Tls};

use super::exit::Failure;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused, or failed
  2    wrong arguments
  3    there is no such node
  69   no replica, or no ZooKeeper, could be reached
  75   lock: not acquired in the time that was given
  76   lock: lost; COMMAND was ended
  77   register: another program has registered the path since, or it was evicted
  78   status: a replica can't be reached, is not ready, drains, or does not reach zookeeper
  126  COMMAND can't be run
  127  COMMAND was not found
  Otherwise COMMAND's own; 128 + N when signal N ended it.";

/// Rollcall from the shell: registrations, lookups, watches, locks.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, after_help = EXIT_CODES, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The replicas, separated by commas; with https:// in front, the connection uses TLS
    #[arg(
        long,
        short,
        global = true,
        env = "ROLLCALL_SERVER",
        default_value = "localhost:7700",
        value_name = "HOST:PORT[,…]"
    )]
    pub(crate) server: String,

    /// Maximum time of a call, over all replicas that the command tries; the time of --wait comes on top
    #[arg(long, global = true, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// Token to send to the replicas; set it in the environment, where other users of the machine do not see it
    #[arg(long, global = true, env = "ROLLCALL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,

    /// Connect with TLS
    #[arg(long, global = true)]
    pub(crate) tls: bool,

    /// Trust only this certificate authority (PEM); implies --tls
    #[arg(long, global = true, env = "ROLLCALL_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Present this client certificate (PEM); implies --tls
    #[arg(long, global = true, env = "ROLLCALL_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,

    /// The private key of the client certificate (PEM)
    #[arg(long, global = true, env = "ROLLCALL_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,

    /// When to colour the output for people: yaml, dir, tables, trees, watches
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(crate) color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Global {
    /// Creates a client; nothing is connected yet.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.client_of(&self.server)
    }

    /// Creates a client of these replicas.
    pub(crate) fn client_of(&self, server: &str) -> Result<Client, Failure> {
        let mut connect = Client::connect(server).timeout(self.timeout);
        if let Some(token) = &self.token {
            connect = connect.token(token);
        }
        if self.tls || self.ca.is_some() || self.cert.is_some() {
            let mut tls = Tls::system();
            if let Some(file) = &self.ca {
                tls = tls.ca_certificate(read(file)?);
            }
            if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
                tls = tls.identity(read(cert)?, read(key)?);
            }
            connect = connect.tls(tls);
        }
        connect.lazy().map_err(Failure::usage)
    }
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a node and its children
    #[command(
        after_help = "Examples:\n  rollcall get /services/ssh\n  rollcall get -r --data -o json /services | jq .\n  \
        rollcall get /services/ssh --wait 30s     # until somebody is registered"
    )]
    Get(GetArgs),
    /// Show everything below a node as a tree
    #[command(after_help = "Example:\n  rollcall tree /services --data")]
    Tree(TreeArgs),
    /// Follow a node as it changes
    #[command(
        after_help = "Examples:\n  rollcall watch /services/ssh\n  rollcall watch /services/ssh -o json | while read -r line; do …; done\n  \
        rollcall watch /services/web --exec 'render-haproxy && systemctl reload haproxy'"
    )]
    Watch(WatchArgs),
    /// Register a path: until Ctrl-C, while COMMAND runs, or while a check passes
    #[command(after_help = "Examples:\n  rollcall register /services/ssh/$(hostname):22 --data port=22\n  \
        rollcall register /services/web/$(hostname):80 --check 'curl -fsS localhost/health' --every 5s\n  \
        rollcall register /services/web/$(hostname):80 -- gunicorn app:app")]
    Register(RegisterArgs),
    /// Take a lock: until Ctrl-C, or while COMMAND runs
    #[command(
        after_help = "Examples:\n  rollcall lock /jobs/nightly -- /usr/local/bin/nightly       # now, or not at all\n  \
        rollcall lock /deploy --wait -- ./deploy.sh                # wait for the turn\n  \
        rollcall lock /jobs/import -n 3 --wait 10m -- ./import.sh  # three at once\n\n\
        COMMAND finds the fencing token in ROLLCALL_FENCING_TOKEN and the path in ROLLCALL_LOCK. It leads a process group of\n\
        its own; when the lock is about to run out, or is lost, the group gets SIGTERM, and SIGKILL before anybody else can\n\
        hold the lock."
    )]
    Lock(LockArgs),
    /// Give back a lock by the id that «lock --leave» printed
    #[command(
        after_help = "Example:\n  id=$(rollcall lock /deploy --ttl 10m --leave) && ./step1 && ./step2; rollcall unlock \"$id\""
    )]
    Unlock(UnlockArgs),
    /// Show who holds locks and who waits for them
    #[command(after_help = "Examples:\n  rollcall locks\n  rollcall locks /jobs/nightly")]
    Locks(LocksArgs),
    /// Write a durable node
    #[command(
        after_help = "Examples:\n  rollcall put /config/limits --data open=10\n  rollcall put /config/limits --data @limits.json --version 3\n  \
        rollcall put /config/motd --text 'hello'\n  rollcall put /config/limits < limits.json\n\n\
        Without --data, --text and --empty, standard input is written: a JSON object as that, other text as text."
    )]
    Put(PutArgs),
    /// Delete a durable node
    #[command(after_help = "Example:\n  rollcall delete /config/old -r")]
    Delete(DeleteArgs),
    /// Remove a registration, and keep its path from being registered for a time
    #[command(after_help = "Examples:\n  rollcall evict /services/web/host7:80              # for 10 minutes\n  \
        rollcall evict /services/web/host7:80 --for 2h\n  rollcall evict /services/web/host7:80 --lift\n\n\
        The holder's client learns of it, and does not register again by itself. A program that uses kazoo or\n\
        nd_service_registry registers past Rollcall: its node is deleted, but the program may create it again.")]
    Evict(EvictArgs),
    /// Show the state of each replica
    #[command(after_help = "Example:\n  rollcall status --server a:7700,b:7700,c:7700")]
    Status(StatusArgs),
    /// Print a completion script
    #[command(after_help = "Example:\n  rollcall completions bash > /etc/bash_completion.d/rollcall")]
    Completions(CompletionsArgs),
    /// Ends a process group when the deadlines on standard input pass
    #[command(name = "__leash", hide = true)]
    Leash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// As nd_service_registry's ndsr prints it
    Yaml,
    /// The same as JSON
    Json,
    /// One path a line
    Dir,
    /// One line a child
    Table,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The node
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Show everything below, not only the children
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// Show the data of the nodes
    #[arg(long, short)]
    pub(crate) data: bool,
    /// Show ZooKeeper's own nodes and the inner nodes of locks too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// How to print it
    #[arg(long, short, default_value = "yaml", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// See every write that was acknowledged before the call; without it, the replica's copy may be a little older
    #[arg(long)]
    pub(crate) latest: bool,
    /// Wait for a child, for at most this time; without a time, for ever. Default: do not wait
    #[arg(long, short, value_name = "DURATION", num_args = 0..=1, value_parser = wait)]
    pub(crate) wait: Option<Option<Duration>>,
}

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// The node
    #[arg(default_value = "/")]
    pub(crate) path: String,
    /// Show the data of the nodes
    #[arg(long, short)]
    pub(crate) data: bool,
    /// Show ZooKeeper's own nodes and the inner nodes of locks too
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// One line for each
    Table,
    /// The same as JSON
    Json,
}

/// How `locks` and `status` print.
#[derive(Debug, Args)]
pub(crate) struct TableOutput {
    /// How to print it
    #[arg(long, short, default_value = "table", value_name = "FORMAT")]
    output: TableFormat,
    /// As --output json
    #[arg(long, hide = true, conflicts_with = "output")]
    json: bool,
}

impl TableOutput {
    pub(crate) fn is_json(&self) -> bool {
        self.json || self.output == TableFormat::Json
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WatchFormat {
    /// A line for each change
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The node; it need not exist
    pub(crate) path: String,
    /// Watch everything below, not only the children
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// How to print it
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: WatchFormat,
    /// Run this shell command for each update, the first included, with the state and the changes as JSON on its
    /// standard input. The next run gets all changes that came during a run
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    /// The path to register; the last part is usually HOST:PORT
    pub(crate) path: String,
    /// Data of the node: KEY=VALUE, a JSON object, or @FILE with a JSON object; may be given several times. A VALUE
    /// that is JSON is taken as JSON
    #[arg(long, short, value_name = "KEY=VALUE|{…}|@FILE")]
    pub(crate) data: Vec<String>,
    /// Time for which the registration outlives this command if it is killed, or loses every replica, 1s to 10m; 0s:
    /// not at all
    #[arg(long, default_value = "15s", value_name = "DURATION", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// Do not take over an existing registration
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// Register only while this shell command succeeds
    #[arg(long, value_name = "CMD")]
    pub(crate) check: Option<String>,
    /// Interval between two checks, and maximum time of a check
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration, requires = "check")]
    pub(crate) every: Duration,
    /// Number of successes in a row after which to register, at least 1
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "check")]
    pub(crate) rise: u32,
    /// Number of failures in a row after which to take the registration down, at least 1
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "check")]
    pub(crate) fall: u32,
    /// Register while this command runs; signals are passed on to it
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    /// The path of the lock
    pub(crate) path: String,
    /// Maximum number of holders at once, at least 1; every user of the lock must give the same number
    #[arg(short = 'n', long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) simultaneous: u32,
    /// Wait for the lock, for at most this time; without a time, for ever. Default: only try
    #[arg(long, short, value_name = "DURATION", num_args = 0..=1, value_parser = wait)]
    pub(crate) wait: Option<Option<Duration>>,
    /// Time for which the lock outlives this command if it is killed, or loses every replica, 1s to 10m
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// Name of the holder, which others see. Default: host name and process id
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Time between SIGTERM and SIGKILL for COMMAND, at most a third of the ttl. Default: a sixth of the ttl, at most
    /// 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) grace: Option<Duration>,
    /// Print the lock's id and leave it held for its ttl: «unlock» gives it back
    #[arg(long, conflicts_with = "command")]
    pub(crate) leave: bool,
    /// Do not show the place in the queue
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Hold the lock while this command runs; signals are passed on to it
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UnlockArgs {
    /// The id that «lock --leave» printed; it may begin with a hyphen
    #[arg(allow_hyphen_values = true)]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct LocksArgs {
    /// The path of the lock. Default: all locks that are held or waited for
    pub(crate) path: Option<String>,
    #[command(flatten)]
    pub(crate) output: TableOutput,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The node to write; it and its parents are created where they are missing
    pub(crate) path: String,
    /// Data to write: KEY=VALUE, a JSON object, or @FILE with a JSON object; may be given several times. A VALUE that
    /// is JSON is taken as JSON
    #[arg(long, short, value_name = "KEY=VALUE|{…}|@FILE", conflicts_with = "text")]
    pub(crate) data: Vec<String>,
    /// Text to write
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// Write an empty node
    #[arg(long, conflicts_with_all = ["data", "text"])]
    pub(crate) empty: bool,
    /// Write only if the node has this version
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<i32>,
    /// Write only if the node does not exist
    #[arg(long, conflicts_with = "version")]
    pub(crate) create: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The node to delete
    pub(crate) path: String,
    /// Delete everything below it too
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// Delete only if the node has this version
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<i32>,
}

#[derive(Debug, Args)]
pub(crate) struct EvictArgs {
    /// The registration
    pub(crate) path: String,
    /// Time for which the path can't be registered, 1s to 24h
    #[arg(long = "for", default_value = "10m", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Lift the eviction instead: the path can be registered again
    #[arg(long, conflicts_with = "duration")]
    pub(crate) lift: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) output: TableOutput,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    pub(crate) shell: clap_complete::Shell,
}

/// Parses a duration such as `20s`, `500ms`, `2m` or `1h`.
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

/// Parses the value of `--wait`. The option may also have none.
fn wait(text: &str) -> Result<Duration, String> {
    duration(text).map_err(|error| format!("{error}; put any other argument before --wait"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_lock_is_tried_or_waited_for() {
        let wait =
            |line: &[&str]| match Cli::try_parse_from([&["rollcall", "lock", "/a"], line].concat()).unwrap().command {
                Command::Lock(args) => (args.wait, args.command),
                other => panic!("{other:?}"),
            };
        assert_eq!(wait(&[]), (None, vec![]));
        assert_eq!(wait(&["--wait", "--", "ls", "-l"]), (Some(None), vec!["ls".to_owned(), "-l".to_owned()]));
        for line in [&["--wait=2m"][..], &["--wait", "2m"], &["-w", "2m", "--", "ls"]] {
            assert_eq!(wait(line).0, Some(Some(Duration::from_secs(120))), "{line:?}");
        }
    }

    #[test]
    fn options_mean_the_same_in_all_subcommands() {
        let command = Cli::command();
        let subcommands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        let mut by_short = std::collections::BTreeMap::new();
        for option in subcommands.iter().flat_map(|command| command.get_arguments()) {
            let (long, values) = (option.get_long(), option.get_num_args().map(|range| range.min_values()));
            if let Some(short) = option.get_short() {
                assert_eq!(*by_short.entry(short).or_insert(long), long, "-{short}");
            }
            assert!(!option.is_require_equals_set(), "{long:?}");
            if long == Some("wait") {
                assert_eq!(values, Some(0));
            }
        }
        for name in ["get", "watch", "locks", "status"] {
            let command = command.find_subcommand(name).unwrap();
            assert!(command.get_arguments().any(|option| option.get_short() == Some('o')), "{name}");
        }
    }

    #[test]
    fn help_keeps_global_options_apart_and_has_no_markup() {
        let mut command = Cli::command();
        command.build();
        for command in command.get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(!help.contains('`'), "{help}");
            if let Some((own, global)) = help.split_once("Global options:") {
                assert!(global.contains("--server") && !own.contains("--server"), "{help}");
            } else {
                assert!(command.is_hide_set() || command.get_name() == "help", "{help}");
            }
        }
    }

    #[test]
    fn the_id_of_a_lock_may_begin_with_a_hyphen() {
        let parsed = Cli::try_parse_from(["rollcall", "unlock", "-Z5we8zRh", "--server", "a:1"]).unwrap();
        let Command::Unlock(args) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(args.id, "-Z5we8zRh");
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["5", "s", "-5s", "5 s", "1h30m", "1.5h", "5s ago", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
