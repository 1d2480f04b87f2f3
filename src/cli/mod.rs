//! From the command line to a running pipe. Nothing half-valid leaves this room: what [`crate::net`] gets is whole.

mod args;
mod demo;
mod key_file;
mod process;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use thiserror::Error;
use tracing::info;

use self::args::{Args, Command, PipeArgs};
use self::key_file::{KeyFileError, KeySource};
use crate::net::addr::Source;
use crate::net::dial::{Dialer, FamilyMismatch};
use crate::net::listen::{self, Bound, ListenError};
use crate::net::pipe::{ConnectionError, Pipe};
use crate::net::pump::PumpError;
use crate::net::serve::{Role, Server, Stopped};
use crate::net::stream::{Keepalive, Stream};
use crate::proto::cipher::{Cipher, Ciphers};

/// Why the command failed at run time; `main` prints it in one line and exits with 1.
#[derive(Debug, Error)]
pub enum Error {
    /// A key file cannot be used or made.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The source cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The connection of standard input and output failed.
    #[error(transparent)]
    Connection(ConnectionError),
    /// The demonstration showed that something is wrong.
    #[error("the demo failed: {0}")]
    Demo(String),
    /// The operating system refuses something that everything needs.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it says.
        error: io::Error,
    },
}

/// Runs the command line `arguments`, the program's name first, to its end.
///
/// Mistakes of use end the process from here, with one line on standard error and exit code 2; `--help` and `--version`
/// with 0.
///
/// # Errors
/// [`Error`], for everything that goes wrong later.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let args = Args::try_parse_from(arguments).unwrap_or_else(|error| refuse(&error));
    process::harden();
    match (args.command, args.pipe) {
        (Some(Command::Keygen { file: Some(file) }), _) => {
            let fingerprint = key_file::generate(&file)?;
            say(&format!("{}: a new key, fingerprint {fingerprint}", file.display()))
        }
        (Some(Command::Keygen { file: None }), _) => {
            key_file::generate_to_stdout()?;
            Ok(ExitCode::SUCCESS)
        }
        (Some(Command::Fingerprint { key, insecure_key_permissions }), _) => {
            let key = key_file::read(&key, insecure_key_permissions.into())?;
            say(&key.fingerprint().to_string())
        }
        (Some(Command::Demo { target }), _) => {
            demo::run(target).map(|()| ExitCode::SUCCESS).map_err(Error::Demo)
        }
        (None, Some(pipe)) => serve_or_connect(pipe),
        (None, None) => contradict("nothing to do; give -t TARGET and -k KEY, or a command such as keygen"),
    }
}

/// Prints a mistake of use in one line with a hint, and exits with clap's code, 2. For `--help` and `--version`, which come
/// here too, prints what was asked for.
fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
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
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let _ = writeln!(io::stderr(), "spipe: {message}; see 'spipe --help'");
    std::process::exit(error.exit_code())
}

/// For the mistakes of use that clap cannot see.
fn contradict(message: &str) -> ! {
    refuse(&Args::command().error(clap::error::ErrorKind::ArgumentConflict, message))
}

fn say(line: &str) -> Result<ExitCode, Error> {
    writeln!(io::stdout(), "{line}")
        .map_err(|error| Error::System { doing: "write to standard output", error })?;
    Ok(ExitCode::SUCCESS)
}

/// Where the plain end of the pipe is, or the sealed one for a responder.
enum Place {
    Listening(Role, Source),
    Stdio,
}

fn serve_or_connect(args: PipeArgs) -> Result<ExitCode, Error> {
    process::log_to_stderr(args.log_level());
    let place = match (args.role(), args.source.clone()) {
        (Some(role), Some(source)) => Place::Listening(role, source),
        // clap lets neither through without the other.
        _ => Place::Stdio,
    };
    if args.no_forward_secrecy {
        contradict(
            "-f: forward secrecy cannot be turned off, for without it a key that leaks one day opens all that was \
             ever recorded; leave -f out",
        );
    }
    if matches!((&place, &args.key), (Place::Stdio, KeySource::Stdin)) {
        contradict(
            "-k - reads the key from standard input, which without -e or -d is the data; give the key as a file",
        );
    }
    let keepalive = if args.no_keepalive { Keepalive::Off } else { Keepalive::On };
    let max_connections = if args.max_connections == 0 { usize::MAX } else { args.max_connections };
    let dialer = Dialer::new(args.target, args.bind, keepalive).unwrap_or_else(|error: FamilyMismatch| {
        refuse(&Args::command().error(clap::error::ErrorKind::ArgumentConflict, error))
    });
    let pipe = Arc::new(Pipe {
        keys: vec![key_file::read(&args.key, args.insecure_key_permissions.into())?],
        label: args.label.unwrap_or_default(),
        ciphers: args.cipher.ciphers(),
        dialer,
        timeout: Duration::from_secs(args.timeout),
    });
    match place {
        Place::Listening(role, source) => serve(role, &source, pipe, max_connections, keepalive),
        Place::Stdio => connect(&pipe),
    }
}

fn serve(
    role: Role,
    source: &Source,
    pipe: Arc<Pipe>,
    max_connections: usize,
    keepalive: Keepalive,
) -> Result<ExitCode, Error> {
    // The runtime has threads, so what is about the whole process comes before it.
    let bound = listen::listen(source, &mut listen::Passed::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::System { doing: "start the runtime", error })?;
    let stopped = runtime.block_on(async {
        // Before the log says that we listen: who has read that may send a signal, and it must stop us in an orderly way
        // and remove the socket file.
        let mut signals =
            process::StopSignals::new().map_err(|error| Error::System { doing: "receive signals", error })?;
        for bound in &bound {
            info!(
                version = env!("CARGO_PKG_VERSION"),
                role = %role,
                source = %bound.local(),
                target = %pipe.dialer.target(),
                key = %pipe.keys[0].fingerprint(),
                ciphers = %pipe.ciphers,
                "listening"
            );
        }
        let listeners = bound
            .into_iter()
            .map(Bound::into_listener)
            .collect::<io::Result<_>>()
            .map_err(|error| Error::System { doing: "accept connections", error })?;
        let running = Server { role, listeners, pipe, max_connections, keepalive }.start();
        signals.next().await;
        Ok::<_, Error>(running.drain(signals.next()).await)
    })?;
    runtime.shutdown_background();
    Ok(match stopped {
        Stopped::Drained => ExitCode::SUCCESS,
        Stopped::Cut(_) => ExitCode::FAILURE,
    })
}

/// Standard input and output are the local end.
fn connect(pipe: &Pipe) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::System { doing: "start the runtime", error })?;
    let local = Stream::Stdio(tokio::io::stdin(), tokio::io::stdout());
    let result = runtime.block_on(pipe.initiate(local, None));
    // A thread may still sit in read(2) on standard input, and nothing can wake it.
    runtime.shutdown_background();
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Who reads our output is gone, as ssh is when it has what it came for. Any filter ends without a word then.
        Err(ConnectionError::Pump(PumpError::Local(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(Error::Connection(error)),
    }
}

impl args::CipherChoice {
    fn ciphers(self) -> Ciphers {
        match self {
            Self::Auto => Ciphers::auto(process::has_aes_instructions()),
            Self::Aes256gcm => Ciphers::only(Cipher::Aes256Gcm),
            Self::Chacha20poly1305 => Ciphers::only(Cipher::ChaCha20Poly1305),
        }
    }
}
