//! The command line: what clap reads, and the texts of `--help`.

use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use super::key_file::KeySource;
use crate::net::addr::{Outgoing, Source, Target};
use crate::net::serve::Role;
use crate::proto::handshake::Label;

const EXAMPLES: &str = "\
Examples:
  Make a key, and copy it to the other host over a channel you trust:
      spipe keygen redis.key
  On the server's host, in front of Redis:
      spipe -d -s '[0.0.0.0]:6380' -t '[127.0.0.1]:6379' -k redis.key
  On the client's host; then redis-cli -p 8000:
      spipe -e -s '[127.0.0.1]:8000' -t '[server]:6380' -k redis.key
  SSH through a pipe whose far end leads to port 22:
      ssh -o ProxyCommand='spipe -t server:8022 -k ssh.key' server
  See it all work on this machine:
      spipe demo

Addresses:
  [1.2.3.4]:80  1.2.3.4:80  [::1]:80  host:80  /path/to.sock  @abstract
  To listen on every address: []:80 or *:80

Exit code: 0 when all went well, 1 when something failed, 2 for a mistake in the
command line. SIGTERM stops accepting and lets connections finish; a second one
ends them.";

/// The whole command line.
#[derive(Parser)]
#[command(
    name = "spipe",
    version,
    about = "A symmetric-key encrypted pipe: carries any TCP or Unix-socket service between two hosts with one shared key",
    after_help = EXAMPLES,
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    max_term_width = 80,
    override_usage = "spipe -e|-d -s SOURCE -t TARGET -k KEY [OPTIONS]\n       spipe -t TARGET -k KEY [OPTIONS]\n       spipe COMMAND",
    arg_required_else_help = false
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    #[command(flatten)]
    pub(super) pipe: Option<PipeArgs>,

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
        /// The key file, or - for standard input
        key: KeySource,
        /// Accept a key file that others can read
        #[arg(long)]
        insecure_key_permissions: bool,
    },
    /// Show a whole pipe at work on this machine
    Demo {
        /// A real service to show instead of the built-in one, such as 127.0.0.1:6379
        #[arg(long)]
        target: Option<Target>,
    },
}

/// What a pipe is made of.
#[expect(clippy::struct_excessive_bools, reason = "this is what clap reads; it goes no further than `cli`")]
#[derive(clap::Args)]
#[command(group = ArgGroup::new("mode").args(["encrypt", "decrypt"]).multiple(false))]
pub(super) struct PipeArgs {
    /// Encrypt: accept plain connections, and seal them to the target. With neither -e nor -d, standard input and output
    /// are sealed to the target
    #[arg(short, long, requires = "source")]
    encrypt: bool,

    /// Decrypt: accept sealed connections, and open them to the target
    #[arg(short, long, requires = "source")]
    decrypt: bool,

    /// Where to accept connections
    #[arg(short, long, requires = "mode")]
    pub(super) source: Option<Source>,

    /// Where to connect to
    #[arg(short, long)]
    pub(super) target: Target,

    /// The key file, the same on both ends: 32 bytes or more; - reads standard input
    #[arg(short, long)]
    pub(super) key: KeySource,

    /// The most connections at a time; 0 for no limit
    #[arg(short = 'n', long, value_name = "MAX", default_value_t = 100)]
    pub(super) max_connections: usize,

    /// How long connecting and the handshake may take together
    #[arg(short = 'o', long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,

    /// The address to connect from; the port is optional
    #[arg(short, long, value_name = "ADDR")]
    pub(super) bind: Option<Outgoing>,

    /// Do not probe idle connections with TCP keep-alive
    #[arg(short = 'j', long)]
    pub(super) no_keepalive: bool,

    /// A text that both ends must share besides the key; it tells apart pipes that share a key
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<Label>,

    /// The cipher for the data. auto takes AES where both ends have instructions for it
    #[arg(long, value_enum, default_value_t = CipherChoice::Auto, value_name = "CIPHER")]
    pub(super) cipher: CipherChoice,

    /// Accept a key file that others can read
    #[arg(long)]
    pub(super) insecure_key_permissions: bool,

    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Log more
    #[arg(long)]
    verbose: bool,

    /// Stay in the foreground, as spipe always does (accepted for spiped's sake)
    #[arg(short = 'F', long)]
    _foreground: bool,

    /// Require forward secrecy, as spipe always does (accepted for spiped's sake)
    #[arg(short = 'g', long)]
    _forward_secrecy: bool,

    /// Refused: spiped's faster handshake without forward secrecy
    #[arg(short = 'f', long, hide = true)]
    pub(super) no_forward_secrecy: bool,
}

impl PipeArgs {
    pub(super) fn role(&self) -> Option<Role> {
        match (self.encrypt, self.decrypt) {
            (true, _) => Some(Role::Initiator),
            (_, true) => Some(Role::Responder),
            (false, false) => None,
        }
    }

    pub(super) fn log_level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (_, true) => LevelFilter::DEBUG,
            // As a filter in a pipeline or under ssh, only what goes wrong is news.
            _ if self.role().is_none() => LevelFilter::ERROR,
            (true, _) => LevelFilter::WARN,
            (false, false) => LevelFilter::INFO,
        }
    }
}

/// `--cipher`.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CipherChoice {
    Auto,
    Aes256gcm,
    Chacha20poly1305,
}
