//! Into the background (`--daemon`), for systems whose service manager starts a service by running a command that returns.
//!
//! ```text
//!  spipe --daemon ──spawns──▶ the same command line, in a session of its own
//!      waits                      reads the configuration and keys, listens, …: errors go to standard error
//!      ◀────── one byte on what it has as standard output
//!  exits with 0                   leaves the terminal and the directory, and serves
//! ```
//!
//! Instead of fork(2), which only unsafe code can call since it copies a process in whatever state it is, the program is
//! started anew: that needs no more than the standard library, and is what posix_spawn(3) is for. The crates that wrap
//! fork are either left by their authors or much larger than this file.

use std::env;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use thiserror::Error;

/// Tells the process in the background that it is the one. In the environment, since `ps` shows arguments to everybody.
const MARK: &str = "SPIPE_IN_BACKGROUND";

/// What is said when it listens. Any byte would do.
const LISTENING: u8 = b'\n';

/// Why the process cannot go into the background.
#[derive(Debug, Error)]
#[error("cannot go into the background: cannot {doing}: {source}")]
pub struct DaemonError {
    doing: &'static str,
    source: io::Error,
}

fn cannot(doing: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |source| DaemonError { doing, source }
}

/// Which of the two this process is.
pub enum Side {
    /// The one that was called, with the exit code of it all.
    Foreground(ExitCode),
    /// The one that serves.
    Background(Background),
}

/// The process in the background, while the other one waits for it.
pub struct Background(());

/// Goes into the background. In the process that was called, returns when the other listens or has failed.
///
/// To be called first of all: keys that had been read by then would be in two processes.
///
/// # Errors
/// [`DaemonError`].
pub fn split() -> Result<Side, DaemonError> {
    if env::var_os(MARK).is_some() {
        // No terminal from here on, and so no SIGHUP when it is closed, which would have us reload.
        rustix::process::setsid().map_err(|error| cannot("start a session")(error.into()))?;
        // The kernel has called it by the last part of the path that it was started by. Nothing but its looks depends on this.
        let name = env::args_os().next().unwrap_or_default();
        if let Some(name) = Path::new(&name).file_name()
            && let Ok(name) = CString::new(name.as_bytes())
        {
            let _ = rustix::thread::set_name(&name);
        }
        return Ok(Side::Background(Background(())));
    }
    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Standard input and error are its own until it listens: a key may come in, and errors may go out.
    let mut child = command
        .args(arguments)
        .env(MARK, "1")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot("start the process in the background"))?;
    let mut told = Vec::new();
    child
        .stdout
        .take()
        .expect("it is piped")
        .read_to_end(&mut told)
        .map_err(cannot("wait for the process in the background"))?;
    if told == [LISTENING] {
        return Ok(Side::Foreground(ExitCode::SUCCESS));
    }
    // It has said why on the standard error that is ours, too.
    let status = child.wait().map_err(cannot("wait for the process in the background"))?;
    if let Some(signal) = status.signal() {
        let killed = io::Error::other(format!("it was ended by signal {signal}"));
        return Err(cannot("wait for the process in the background")(killed));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Ok(Side::Foreground(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

impl Background {
    /// Does what a process that is locked in cannot do any more. Relative paths lead elsewhere from here on.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn detach(self) -> Result<Leaving, DaemonError> {
        // Nothing that is mounted is kept busy.
        env::set_current_dir("/").map_err(cannot("change the directory to /"))?;
        let null =
            OpenOptions::new().read(true).write(true).open("/dev/null").map_err(cannot("open /dev/null"))?;
        Ok(Leaving { null })
    }
}

/// The process in the background, which can still tell its caller what is wrong.
pub struct Leaving {
    null: File,
}

impl Leaving {
    /// Closes everything that ties it to its caller, and tells the waiting process that all is well.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn leave(self) -> Result<(), DaemonError> {
        let null = self.null;
        rustix::stdio::dup2_stdin(&null).map_err(|error| cannot("leave standard input")(error.into()))?;
        // While standard error can still say that this failed.
        let mut stdout = io::stdout();
        let told = stdout.write_all(&[LISTENING]).and_then(|()| stdout.flush());
        told.map_err(cannot("tell the process in the foreground"))?;
        rustix::stdio::dup2_stderr(&null).map_err(|error| cannot("leave standard error")(error.into()))?;
        // The last one, for its end is what the other process waits for.
        rustix::stdio::dup2_stdout(&null).map_err(|error| cannot("leave standard output")(error.into()))
    }
}
