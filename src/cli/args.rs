//! The command line: what clap reads, and the texts of `--help`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::addr::{Source, Target};
use crate::config::key_file::KeySource;
use crate::config::options::{PingOptions, PipeOptions, ServiceOptions};

/// The first of three parts that follow the options in `--help`. The manual page has the first two in sections of their own.
pub(super) const EXAMPLES: &str = "\
Examples:
  Make a key, and copy it to the other host over a channel you trust:
      spipe keygen redis.key
  On the server's host, in front of Redis:
      spipe -d -s '[0.0.0.0]:6380' -t '[127.0.0.1]:6379' -k redis.key
  On the client's host; then redis-cli -p 8000:
      spipe -e -s '[127.0.0.1]:8000' -t '[server]:6380' -k redis.key
  SSH through a pipe whose far end leads to port 22:
      ssh -o ProxyCommand='spipe -t server:8022 -k ssh.key' server
  Many pipes in one process, from a file:
      spipe run pipes.toml
  See it all work on this machine:
      spipe demo";

/// The addresses that options take.
pub(super) const ADDRESSES: &str = "\
Addresses:
  [1.2.3.4]:80  1.2.3.4:80  [::1]:80  host:80  /path/to.sock  @abstract
  A port may be the name of a service that the system knows, as in host:http
  To listen on every address: []:80 or *:80
  To listen on the sockets that systemd has passed: systemd or systemd:NAME";

const ENDING: &str = "\
Exit code: 0 when all went well, 1 when something failed, 2 for a mistake in the
command line; 'spipe ping --help' has more, for its steps. SIGTERM stops
accepting and lets connections finish, for the time of --drain-timeout; a second
one ends them, and the log says how many. SIGHUP reads keys and configuration
again, for new connections.";

const PING: &str = "\
Examples:
  Does the other end answer, and does it reach its service?
      spipe ping -t '[server]:6380' -k redis.key --through
  How long does a round trip take?
      spipe ping -t '[server]:6380' -k redis.key -c 20 -i 0.2

Without --through, the target of the other end is not connected to.

Exit code, by the step that failed:
  0  all went well
  1  anything else, such as a key file that cannot be read
  2  a mistake in the command line
  3  the name does not resolve
  4  no connection: nothing listens there, or it cannot be reached
  5  the handshake failed: another key or label, too busy, or not spipe
  6  the other end: no place left, key not accepted, stopped, or too old
  7  the other end cannot reach its target (--through)";

/// The whole command line.
#[derive(Parser)]
#[command(
    name = "spipe",
    version,
    about = "A symmetric-key encrypted pipe: carries any TCP or Unix-socket service between two hosts with one shared key",
    after_help = format!("{EXAMPLES}\n\n{ADDRESSES}\n\n{ENDING}"),
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 80,
    override_usage = "spipe -e|-d -s SOURCE -t TARGET -k KEY [OPTIONS]\n       spipe -t TARGET -k KEY [OPTIONS]\n       spipe run FILE\n       spipe COMMAND",
    arg_required_else_help = false
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) pipe: Option<PipeOptions>,

    #[command(flatten)]
    pub(super) service: ServiceOptions,

    /// Print the version
    #[arg(short = 'V', visible_short_alias = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// What `spipe` does besides carrying bytes.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a new key: 32 random bytes, readable by you alone
    Keygen {
        /// Where to write it; an existing file is never overwritten. Without it the key goes to standard output
        file: Option<PathBuf>,
    },
    /// Print a key's short fingerprint, to compare two ends by telephone
    Fingerprint {
        /// The key file, a directory of *.key files, or - for standard input
        key: KeySource,
        /// Accept a key file that others can read or own, and a directory of keys that others can write to
        #[arg(long)]
        insecure_key_permissions: bool,
        /// Say when each key was last used, as a process has noted in its --state-directory
        #[arg(long, value_name = "DIR")]
        state_directory: Option<PathBuf>,
    },
    /// Serve all pipes of a configuration file
    Run {
        /// TOML, with a [[pipe]] table for each pipe; SIGHUP reads it again
        #[allow(rustdoc::broken_intra_doc_links, reason = "--help shows these brackets")]
        file: PathBuf,
        #[command(flatten)]
        service: Box<ServiceOptions>,
    },
    /// Read a configuration file and its keys, and say what is wrong with them
    Check {
        /// The same as for run
        file: PathBuf,
    },
    /// Try the way to the other end step by step, and say where it fails: name, TCP, key and label, the other end, its target
    #[command(after_help = PING)]
    Ping(Box<PingOptions>),
    /// Show what a service would see: prints each connection and what it says, and sends that back
    Echo {
        /// Where to accept connections
        #[arg(short, long)]
        source: Source,
        /// Read a PROXY header first, from anybody
        #[arg(long)]
        accept_proxy: bool,
    },
    /// Show a whole pipe at work on this machine
    Demo {
        /// A real service to show instead of the built-in one, such as 127.0.0.1:6379
        #[arg(long)]
        target: Option<Target>,
    },
    #[command(flatten)]
    Administer(Administration),
    /// Make what a package of spipe has besides the command
    #[command(subcommand, hide = true)]
    Generate(Generated),
    /// What units of systemd run
    #[command(subcommand, hide = true)]
    Unit(Unit),
}

/// How a unit starts and stops a process that outlives a restart.
#[derive(Subcommand)]
pub(super) enum Unit {
    /// ExecStart=: run spipe with these arguments as a child, and pass signals on
    Start {
        /// Those of spipe, with --hand-over
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// ExecStop=, as root: if the unit is being restarted, leave the child to the process that takes over
    Stop {
        /// The name of the unit: %n
        #[arg(long)]
        unit: String,
        /// That of the child
        #[arg(long, value_name = "PATH")]
        hand_over: PathBuf,
    },
}

/// What is made from the definitions in this file.
#[derive(Subcommand)]
pub(super) enum Generated {
    /// Write the manual pages spipe.1, spipe.toml.5 and spiped.1
    Man {
        /// The directory to write them to; it has to exist, and pages that are there already are replaced
        directory: PathBuf,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// The shells whose completions are tested.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Fish,
    Zsh,
}

/// What an administrator asks of a running process.
#[derive(Subcommand)]
pub(super) enum Administration {
    /// Say how a running process is: its pipes, keys and targets, and what failed
    Status {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        form: StatusForm,
    },
    /// Watch a running process: its pipes, keys, targets and connections, each second
    #[command(after_help = "\
On a terminal: q quits, s sorts the connections by something else, arrows, Page
Up and Down scroll. Elsewhere it prints plain text.")]
    Top {
        #[command(flatten)]
        control: Control,
        /// How long to wait between two looks
        #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: u32,
        /// How often to look [default: until q on a terminal, elsewhere once]
        #[arg(short = 'n', long, value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
    },
    /// Have a running process read its keys and configuration again, and say what came of it
    Reload {
        #[command(flatten)]
        control: Control,
    },
    /// End running connections: one, or all of a key
    Close {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        what: Closing,
    },
    /// Take a target away from new connections; those that run go on
    Drain {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        destination: DestinationArgs,
        /// Wait until no connection has the target any more
        #[arg(long)]
        wait: bool,
    },
    /// Give a target to new connections again, after drain
    Resume {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        destination: DestinationArgs,
    },
}

/// Which process is asked.
#[derive(clap::Args)]
pub(super) struct Control {
    /// The control socket of the process: the path that it was started with
    #[arg(long = "control", value_name = "PATH")]
    path: PathBuf,
}

/// How `status` says it.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct StatusForm {
    /// Print JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
    /// Say only whether new connections are served, and if not, why; the exit code is 0 or 1
    #[arg(long)]
    pub(super) ready: bool,
}

/// What `close` ends.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Closing {
    /// The connection with this id, which the log and top show
    pub(super) id: Option<String>,
    /// All connections that have the key with this fingerprint
    #[arg(long, value_name = "FINGERPRINT")]
    pub(super) key: Option<String>,
}

/// Which target `drain` and `resume` are about.
#[derive(clap::Args)]
pub(super) struct DestinationArgs {
    /// The target, as the configuration has it
    pub(super) target: String,
    /// That of this pipe only, if several pipes have it
    #[arg(long, value_name = "NAME")]
    pub(super) pipe: Option<String>,
}

impl Administration {
    /// The control socket.
    pub(super) fn socket(&self) -> &Path {
        match self {
            Self::Status { control, .. }
            | Self::Top { control, .. }
            | Self::Reload { control }
            | Self::Close { control, .. }
            | Self::Drain { control, .. }
            | Self::Resume { control, .. } => &control.path,
        }
    }
}
