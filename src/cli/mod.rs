//! From the command line to a running pipe. Nothing half-valid leaves this room.

mod args;
mod called;
mod control;
mod demo;
mod echo;
mod generate;
mod ping;
pub mod progress;
mod serve;
mod spiped;
mod text;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use thiserror::Error;

use self::args::{Args, Command, Unit};
pub use self::called::Called;
pub use self::control::{ControlError, Fault};
use crate::config::key_file::{self, KeyFileError, KeySource, Owners, Permissions, WeakKeys};
use crate::config::options::{PipeOptions, ServiceOptions};
use crate::config::plan::{PlanError, Planner};
use crate::config::{ConfigError, Configuration, Origin};
use crate::connection::{ConnectionError, PingError};
use crate::listen::ListenError;
use crate::names::ResolveError;
use crate::proto::key::Fingerprint;
use crate::service::daemon::DaemonError;
use crate::service::hand_over::HandOverError;
use crate::service::log::one_line;
use crate::service::parent::{self, Aside, ParentError};
use crate::service::privileges::Identity;
use crate::service::startup::StartupError;
use crate::service::state::{Ago, StateDirectory, StateError};
use crate::status;

/// Why the command failed at run time; `main` prints it in one line and exits with [its code](Self::exit_code).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A key file cannot be used or made.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// There is no valid configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process cannot become a service.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// It cannot be the parent of one that serves, or that one has failed.
    #[error(transparent)]
    Parent(#[from] ParentError),
    /// It cannot go into the background.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The status cannot be served as it is asked for.
    #[error(transparent)]
    Status(#[from] status::PlanError),
    /// The source cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A name that is needed at the start does not resolve.
    #[error(transparent)]
    Name(#[from] ResolveError),
    /// The process that serves was not taken over from.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// The connection of standard input and output failed.
    #[error(transparent)]
    Connection(ConnectionError),
    /// A ping ended before its last step.
    #[error(transparent)]
    Ping(#[from] PingError),
    /// A running process was not asked, or did not do what it was asked for.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The demonstration showed that something is wrong.
    #[error("the demo failed: {0}")]
    Demo(String),
    /// A file that was asked for cannot be written.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refuses something that everything needs.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
}

impl Error {
    /// What the process is to end with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Ping(error) => ping::exit_code(error),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs the command line `arguments`, the program's name first, to its end, as the program that was `called`.
///
/// Mistakes of use of our own command line end the process from here, with one line on standard error and exit code 2; `--help` and `--version`
/// with 0.
///
/// # Errors
/// [`enum@Error`], for everything that goes wrong later.
pub fn run(called: Called, arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    match called {
        Called::Spipe => run_own(arguments),
        Called::Spiped => spiped::run(arguments),
        Called::SpipedsSpipe => spiped::run_client(arguments),
    }
}

fn run_own(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let args = Args::try_parse_from(arguments).unwrap_or_else(|error| refuse(&error));
    crate::service::process::harden();
    match (args.command, args.pipe) {
        (Some(Command::Keygen { file: Some(file) }), _) => {
            let fingerprint = key_file::generate(&file)?;
            say(&format!("{}: a new key, fingerprint {fingerprint}", file.display()))
        }
        (Some(Command::Keygen { file: None }), _) => {
            key_file::generate_to_stdout()?;
            Ok(ExitCode::SUCCESS)
        }
        (Some(Command::Fingerprint { key, insecure_key_permissions, state_directory }), _) => {
            let permissions = Permissions::new(insecure_key_permissions, Owners::new(None));
            fingerprint(&key, permissions, state_directory.as_deref())
        }
        (Some(Command::Echo { source, accept_proxy }), _) => {
            echo::serve(&source, accept_proxy).map(|()| ExitCode::SUCCESS)
        }
        (Some(Command::Ping(options)), _) => ping::run(*options).or_else(contradict_or_fail),
        (Some(Command::Demo { target }), _) => {
            demo::run(target).map(|()| ExitCode::SUCCESS).map_err(Error::Demo)
        }
        (Some(Command::Run { file, service }), _) => serve::serve(Origin::File(absolute(&file)?), *service),
        (Some(Command::Check { file }), _) => check(&file),
        (Some(Command::Administer(command)), _) => control::run(command),
        (Some(Command::Unit(what)), _) => unit(what),
        (Some(Command::Generate(what)), _) => generate::run(what).map(|()| ExitCode::SUCCESS),
        (None, Some(pipe)) => serve_or_connect(pipe, args.service),
        (None, None) => contradict("nothing to do; give -t TARGET and -k KEY, or a command such as keygen"),
    }
}

/// Prints a mistake of use in one line with a hint, and exits with clap's code, 2. For `--help` and `--version`, which come
/// here too, prints what was asked for.
fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
    let _ = writeln!(io::stderr(), "spipe: {}; see 'spipe --help'", one_line(&describe(error)));
    std::process::exit(error.exit_code())
}

/// What clap says is wrong, in one line.
fn describe(error: &clap::Error) -> String {
    let rendered = error.to_string();
    // clap writes paragraphs: what is wrong (a list may follow on lines of its own), perhaps a tip, how to use it, where to
    // find more.
    let message: Vec<_> = rendered
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|paragraph| {
            !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information")
        })
        .collect();
    let message = message.join("; ");
    message.strip_prefix("error: ").unwrap_or(&message).to_owned()
}

/// For the mistakes of use that clap cannot see.
fn contradict(message: &str) -> ! {
    refuse(&Args::command().error(clap::error::ErrorKind::ArgumentConflict, message))
}

fn say(line: &str) -> Result<ExitCode, Error> {
    writeln!(io::stdout(), "{line}")
        .map_err(|source| Error::System { doing: "write to standard output", source })?;
    Ok(ExitCode::SUCCESS)
}

/// The fingerprint of a key; of a directory, one a line with the file's name. With a state directory, when the key was last used.
fn fingerprint(
    source: &KeySource,
    permissions: Permissions,
    state: Option<&Path>,
) -> Result<ExitCode, Error> {
    let read = |path: &Path| {
        let last_used = StateDirectory::find(Some(path))?.map(|state| state.last_used()).transpose();
        last_used.map_err(|source| Error::System { doing: "read when keys were last used", source })
    };
    let last_used = state.map(read).transpose()?.flatten();
    let used = |key: Fingerprint| match last_used.as_ref().map(|last_used| last_used.get(&key)) {
        None => String::new(),
        Some(None) => "  no use known".to_owned(),
        Some(Some(time)) => format!("  last used {time}, {} ago", Ago::since(*time)),
    };
    match source {
        KeySource::File(path) if path.is_dir() => {
            let keys = key_file::read_all(path, permissions, WeakKeys::Refused)?;
            let lines = keys.iter().map(|(file, key)| {
                let name = file.file_name().unwrap_or(file.as_os_str()).display();
                format!("{}  {name}{}", key.fingerprint(), used(key.fingerprint()))
            });
            say(&lines.collect::<Vec<_>>().join("\n"))
        }
        _ => {
            let key = key_file::read(source, permissions, WeakKeys::Refused)?.fingerprint();
            say(&format!("{key}{}", used(key)))
        }
    }
}

fn serve_or_connect(options: PipeOptions, service: ServiceOptions) -> Result<ExitCode, Error> {
    if options.mode().is_none() {
        if options.key.contains(&KeySource::Stdin) {
            contradict(
                "-k - reads the key from standard input, which without -e or -d is the data; give the key as a file",
            );
        }
        return serve::connect(options, &service).or_else(contradict_or_fail);
    }
    // Where the working directory is gone, absolute paths work all the same, and a relative one is an error of its own.
    let directory = std::env::current_dir().unwrap_or_default();
    serve::serve(Origin::CommandLine(Box::new(options), directory), service).or_else(contradict_or_fail)
}

/// Mistakes of use end the process here.
fn contradict_or_fail<T>(error: Error) -> Result<T, Error> {
    match error {
        Error::Config(ConfigError::CommandLine(PlanError::Contradiction { message, .. })) => {
            contradict(&message)
        }
        error => Err(error),
    }
}

/// `spipe unit`
fn unit(what: Unit) -> Result<ExitCode, Error> {
    match what {
        Unit::Start { arguments } => Ok(parent::attend(arguments)?),
        Unit::Stop { unit, hand_over } => {
            match parent::step_aside(&unit, &hand_over)? {
                Aside::Stepped => {
                    say("restart: the process that serves goes on until the next one takes over")?
                }
                Aside::NoRestart => ExitCode::SUCCESS,
                Aside::NobodyAnswers(why) => {
                    let why = why.map_or_else(
                        || format!("nobody serves at {}", hand_over.display()),
                        |error| error.to_string(),
                    );
                    say(&format!(
                        "restart: the process that serves is stopped first, since the next one cannot take over: {why}"
                    ))?
                }
            };
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `spipe check`
fn check(file: &Path) -> Result<ExitCode, Error> {
    let parsed = Origin::File(absolute(file)?).parse()?;
    parsed.service.status()?;
    let user = parsed.service.user.as_ref().map(Identity::of).transpose().map_err(StartupError::from)?;
    let owners = Owners::new(user.and_then(|user| user.uid()));
    let Configuration { specs, .. } = parsed.plan(&mut Planner::new(owners))?;
    let mut said = String::new();
    for spec in specs.iter() {
        let keys: Vec<_> = spec.role.keys().iter().map(|key| key.fingerprint().to_string()).collect();
        let _ = writeln!(said, "{spec}, key {}", keys.join(", "));
    }
    say(&format!("{said}{} is valid", file.display()))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::System { doing: "find the working directory", source })
}
