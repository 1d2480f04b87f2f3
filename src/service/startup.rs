//! The order in which a process becomes a service.
//!
//! ```text
//!  Started ─listen─▶ Listening ─write_pid_file─▶ Recorded ─become_user─▶ Unprivileged ─detach─▶ Detached ─confine─▶ Confined
//!     │                 │                          │                   │                    │                   │
//!  keys are read     ports below 1024        in /run, say          no way back        the directory       no other files,
//!                                                                  to root            is left             no programs
//!                                                                                                        │
//!                                                                           serve ◀── runtime, with threads
//! ```
//!
//! Each step needs what the next one gives up, and all of them are about the whole process, so they come before the first
//! thread. A step takes what the one before gave: another order does not compile, and none can be left out. A process that has
//! nothing to do at a step, such as one with a single connection over standard input and output, says so there.

use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;
use tokio::runtime::Runtime;

use super::activation::{self, ActivationError};
use super::daemon::{Background, DaemonError, Leaving};
use super::facts::Facts;
use super::log::writer;
use super::measures::Measures;
use super::pid_file::{PidFile, PidFileError};
use super::privileges::{Identity, PrivilegesError, UserName};
use super::process;
use super::runtime::{self, Threads};
use crate::listen::Passed;

/// Why the process cannot become a service.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartupError {
    /// A passed socket is of no use.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The pid file cannot be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The user of -u cannot be switched to.
    #[error(transparent)]
    Privileges(#[from] PrivilegesError),
    /// The process cannot go into the background.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The operating system refuses something that everything needs.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
}

fn cannot(doing: &'static str) -> impl Fn(io::Error) -> StartupError {
    move |source| StartupError::System { doing, source }
}

/// The signals that have a meaning of ours once the runtime runs.
const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Signals that wait until they are handled: from the moment that others can see our sockets and files, a signal must
/// not end the process before it can remove them.
pub struct HeldSignals(SigSet);

impl HeldSignals {
    fn hold() -> Result<Self, StartupError> {
        let signals = SigSet::from_iter(SIGNALS);
        signals.thread_block().map_err(|error| cannot("hold back signals")(error.into()))?;
        Ok(Self(signals))
    }

    /// Lets the signals through, also those that have come meanwhile. To be called when they are handled, by the thread that
    /// took the steps: the others were born with the signals held, and leave them to this one.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn release(self) -> Result<(), StartupError> {
        self.0.thread_unblock().map_err(|error| cannot("receive signals")(error.into()))
    }
}

/// Configuration and keys have been read.
pub struct Started(());

/// The sockets listen.
pub struct Listening<T> {
    sockets: T,
    signals: HeldSignals,
}

/// The pid file is written.
pub struct Recorded<T> {
    listening: Listening<T>,
    pid_file: Option<PidFile>,
}

/// The process has the user that it keeps.
pub struct Unprivileged<T>(Recorded<T>);

/// The process needs nothing any more of where it was started.
pub struct Detached<T> {
    recorded: Recorded<T>,
    leaving: Option<Leaving>,
}

/// The process can do no more than it needs.
pub struct Confined<T> {
    recorded: Recorded<T>,
    leaving: Option<Leaving>,
    /// How many processors there are for us, where that can be told.
    processors: Option<NonZero<usize>>,
    facts: Facts,
}

/// The runtime and what was prepared for it.
pub struct Service<T> {
    /// With its threads.
    pub runtime: Runtime,
    /// What [`Started::listen`] gave.
    pub sockets: T,
    /// To be released within the runtime.
    pub signals: HeldSignals,
    /// To be kept to the end.
    pub pid_file: Option<PidFile>,
    /// To be told that the process serves, if it is in the background.
    pub leaving: Option<Leaving>,
    /// What is known of the process.
    pub facts: Facts,
}

impl Started {
    /// The first step: the process has one thread, and has read what it needs.
    pub fn new() -> Self {
        Self(())
    }

    /// The first step of a process that has one connection and listens nowhere.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn without_sockets(self) -> Result<Listening<()>, StartupError> {
        Ok(Listening { sockets: (), signals: HeldSignals::hold()? })
    }

    /// Takes the sockets that were passed, and lets `listen` bind the rest.
    ///
    /// # Errors
    /// [`StartupError`], and those of `listen`.
    pub fn listen<T, E: From<StartupError>>(
        self,
        listen: impl FnOnce(&mut Passed) -> Result<T, E>,
    ) -> Result<Listening<T>, E> {
        let signals = HeldSignals::hold()?;
        let mut passed = activation::take().map_err(StartupError::from)?;
        let sockets = listen(&mut passed)?;
        for name in passed.names() {
            // Its connections would wait for ever: systemd keeps it open whatever we do.
            tracing::warn!(
                name,
                "no pipe uses this socket that systemd has passed; write -s systemd:NAME, or remove it from the .socket unit"
            );
        }
        Ok(Listening { sockets, signals })
    }
}

impl Default for Started {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Listening<T> {
    /// Writes the pid file, if there is to be one. The process that serves until we do may have handed over its `lock`.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn write_pid_file(
        self,
        path: Option<&Path>,
        lock: Option<OwnedFd>,
    ) -> Result<Recorded<T>, StartupError> {
        let pid_file = path.map(|path| PidFile::create(path, lock)).transpose()?.flatten();
        Ok(Recorded { listening: self, pid_file })
    }
}

impl<T> Recorded<T> {
    /// Switches to `user`, if one is named.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn become_user(self, user: Option<&UserName>) -> Result<Unprivileged<T>, StartupError> {
        user.map(|user| Identity::of(user)?.assume()).transpose()?;
        Ok(Unprivileged(self))
    }
}

impl<T> Unprivileged<T> {
    /// Prepares for the background, if that is wanted.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn detach(self, background: Option<Background>) -> Result<Detached<T>, StartupError> {
        let leaving = background.map(Background::detach).transpose()?;
        Ok(Detached { recorded: self.0, leaving })
    }
}

impl<T> Detached<T> {
    /// Lets `give_up` take every right that serving does not need, and say what it has taken.
    pub fn confine(self, give_up: impl FnOnce() -> String) -> Confined<T> {
        let (processors, measures) = (process::processors(), Measures::open());
        let facts = Facts::new(give_up(), measures);
        Confined { recorded: self.recorded, leaving: self.leaving, processors, facts }
    }
}

impl<T> Confined<T> {
    /// Starts the runtime, with a thread for each processor.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn start_runtime(self) -> Result<Service<T>, StartupError> {
        let threads = Threads::PerProcessor(self.processors);
        self.start(threads)
    }

    /// Starts the runtime on this thread alone.
    ///
    /// # Errors
    /// [`StartupError`].
    pub fn start_small_runtime(self) -> Result<Service<T>, StartupError> {
        self.start(Threads::One)
    }

    fn start(self, threads: Threads) -> Result<Service<T>, StartupError> {
        let Recorded { listening: Listening { sockets, signals }, pid_file } = self.recorded;
        // The first of the threads: from here on, none waits for the reader of the log.
        writer::start();
        let runtime = runtime::build(threads).map_err(cannot("start the runtime"))?;
        Ok(Service { runtime, sockets, signals, pid_file, leaving: self.leaving, facts: self.facts })
    }
}
