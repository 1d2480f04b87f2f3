//! The process that systemd watches in the place of the one that serves, so that the latter can outlive a restart.
//!
//! systemd goes on to start a service anew when its main process has ended, and the process that serves is not to end before another
//! one does: it is the child of this one, which only passes signals on.
//!
//! ```text
//!  systemd ── spipe unit start ── spipe          serves
//!                 │ SIGWINCH                     a restart: the parent ends, and the child goes on
//!  systemd ──────────────────────── spipe        still serves
//!  systemd ── spipe unit start ──── spipe        takes over (--hand-over)
//! ```
//!
//! systemd has no other way: it takes another main process (`MAINPID=`) from a service that starts or runs, and not from one that
//! stops, and with `KillMode=none` it could not end a process that hangs.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use super::hand_over;
use super::runtime::{self, Threads};

/// Says that the child is to be left alone. Whoever does not know it ignores it.
const STEP_ASIDE: Signal = Signal::WINCH;

/// Why there is no such process, or no such child any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ParentError {
    /// The operating system says no.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// Somebody has killed it.
    #[error("the process that served was ended by signal {0}")]
    Killed(i32),
    /// The service manager has heard nothing of it for too long.
    #[error("the process that served gave no sign of life, or did not stop in time: it was killed")]
    Hung,
    /// It is for ExecStop= only.
    #[error("MAINPID is not a process; 'spipe unit stop' is for ExecStop= of a unit")]
    NoMainProcess,
}

fn cannot(doing: &'static str) -> impl Fn(io::Error) -> ParentError {
    move |source| ParentError::System { doing, source }
}

/// Runs this program with `arguments` as a child, and passes on what signals ask for, until the child ends or this process is to step
/// aside.
///
/// # Errors
/// [`ParentError`].
pub fn attend(arguments: Vec<OsString>) -> Result<ExitCode, ParentError> {
    let runtime = runtime::build(Threads::One).map_err(cannot("start a runtime"))?;
    runtime.block_on(async {
        let receive = |kind| signal(kind).map_err(cannot("receive signals"));
        // All before there is a child that could end, or be left behind.
        let mut ended = receive(SignalKind::child())?;
        let mut aside = receive(SignalKind::from_raw(STEP_ASIDE.as_raw()))?;
        let mut abort = receive(SignalKind::from_raw(Signal::ABORT.as_raw()))?;
        let mut terminate = receive(SignalKind::terminate())?;
        let mut interrupt = receive(SignalKind::interrupt())?;
        let mut hang_up = receive(SignalKind::hangup())?;
        let mut child = start(arguments)?;
        loop {
            tokio::select! {
                biased;
                // systemd ends this process right behind it.
                _ = aside.recv() => return Ok(ExitCode::SUCCESS),
                _ = ended.recv() => {
                    if let Some(status) = child.try_wait().map_err(cannot("wait for the child"))? {
                        return code(status);
                    }
                }
                _ = abort.recv() => {
                    tell(&child, Signal::KILL);
                    child.wait().map_err(cannot("wait for the child"))?;
                    return Err(ParentError::Hung);
                }
                _ = terminate.recv() => tell(&child, Signal::TERM),
                _ = interrupt.recv() => tell(&child, Signal::INT),
                _ = hang_up.recv() => tell(&child, Signal::HUP),
            }
        }
    })
}

fn start(arguments: Vec<OsString>) -> Result<Child, ParentError> {
    // By its real path, for the kernel calls the process by the last part.
    let mut command = Command::new(env::current_exe().map_err(cannot("find the program"))?);
    if let Some(name) = env::args_os().next() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command
        .args(arguments)
        // They name this process, and what they are about is for the child.
        .env_remove("LISTEN_PID")
        .env_remove("WATCHDOG_PID")
        .spawn()
        .map_err(cannot("start the process that serves"))
}

/// It may have ended meanwhile, which is noticed elsewhere.
fn tell(child: &Child, what: Signal) {
    let _ = kill_process(Pid::from_child(child), what);
}

fn code(status: ExitStatus) -> Result<ExitCode, ParentError> {
    if let Some(signal) = status.signal() {
        return Err(ParentError::Killed(signal));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What became of a wish to leave the child alone.
pub enum Aside {
    /// The parent ends, and the child serves until another process takes over.
    Stepped,
    /// `unit` is stopped and not restarted.
    NoRestart,
    /// Nobody could take over, and this is why.
    NobodyAnswers(Option<hand_over::HandOverError>),
}

/// Has the parent step aside that is the main process of `unit`, if the unit is being restarted and the process that serves at `path`
/// answers.
///
/// # Errors
/// [`ParentError`].
pub fn step_aside(unit: &str, path: &Path) -> Result<Aside, ParentError> {
    let jobs = Command::new("systemctl")
        .args(["list-jobs", "--plain", "--no-legend", "--", unit])
        .output()
        .map_err(cannot("run systemctl"))?;
    if !is_restarted(unit, &String::from_utf8_lossy(&jobs.stdout)) {
        return Ok(Aside::NoRestart);
    }
    match hand_over::answers(path) {
        Ok(true) => {}
        Ok(false) => return Ok(Aside::NobodyAnswers(None)),
        Err(error) => return Ok(Aside::NobodyAnswers(Some(error))),
    }
    let main = env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    let main = main.ok_or(ParentError::NoMainProcess)?;
    kill_process(main, STEP_ASIDE)
        .map_err(|error| cannot("have the main process step aside")(error.into()))?;
    Ok(Aside::Stepped)
}

/// Whether `jobs`, as systemctl lists them, has a restart of `unit`.
fn is_restarted(unit: &str, jobs: &str) -> bool {
    jobs.lines().any(|job| {
        let fields: Vec<_> = job.split_whitespace().collect();
        matches!(fields[..], [_, of, "restart", ..] if of == unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_found_among_the_jobs() {
        let jobs = "137 spipe@a.service restart running\n140 spipe@b.service stop    waiting\n";
        assert!(is_restarted("spipe@a.service", jobs));
        for unit in ["spipe@b.service", "spipe@c.service", "spipe@a", ""] {
            assert!(!is_restarted(unit, jobs), "{unit}");
        }
        assert!(!is_restarted("spipe@a.service", ""));
    }
}
