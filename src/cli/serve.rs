//! From a configuration to a process that serves it: start-up, reload, drain.

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};

use super::Error;
use super::process::{Signal, Signals};
use crate::config::options::ServiceOptions;
use crate::config::plan::Planner;
use crate::config::{Configuration, Origin};
use crate::pipe::{self as pipes, Listening, Pipes, Plan};
use crate::proto::key::Fingerprint;
use crate::service::daemon::{self, Side};
use crate::service::log::{self, Destination};
use crate::service::notify::Manager;
use crate::service::sandbox::{self, Needs};
use crate::service::startup::{Service, Started};
use crate::stats::Usage;
use crate::upstream::Dialer;

/// Serves what `origin` says until a signal ends it. `flags` come from the command line, and go before a file's.
///
/// # Errors
/// [`enum@Error`], for all that keeps it from starting.
pub(super) fn serve(origin: Origin, flags: ServiceOptions) -> Result<ExitCode, Error> {
    let options = flags.clone().or(origin.service()?);
    let background = match options.daemon.then(daemon::split).transpose()? {
        Some(Side::Foreground(code)) => return Ok(code),
        Some(Side::Background(background)) => Some(background),
        None => None,
    };
    start_log(&options, LevelFilter::INFO);
    let mut planner = Planner::default();
    let configuration = Configuration::read(&origin, &mut planner)?;
    let needs = needs(&origin, &configuration, &options);
    let Configuration { pipes, .. } = configuration;
    let status = Status::new(&pipes, &planner);
    let manager = Manager::from_env()?;
    let Service { runtime, sockets, signals, pid_file } = Started::new()
        .listen(|passed| pipes::listen(pipes, passed).map_err(Error::from))?
        .write_pid_file(options.pid_file.as_deref())?
        .become_user(options.user.as_ref())?
        .detach(background)?
        .confine(|| confine(&options, &needs))
        .start_runtime()?;
    let stopped = runtime.block_on(async {
        // Before the log says that we listen: who has read that may send a signal, and it must stop us in an orderly way
        // and remove the socket file.
        let received = Signals::new().map_err(|error| Error::System { doing: "receive signals", error })?;
        signals.release()?;
        let pipes = sockets.start()?;
        let heartbeat = Arc::clone(pipes.heartbeat());
        let (origin, planner) = (Arc::new(origin), Arc::new(Mutex::new(planner)));
        let supervisor =
            Supervisor { pipes, origin, planner, flags, options, manager: &manager, status: &status };
        tokio::select! {
            stopped = supervisor.supervise(received) => Ok(stopped),
            () = manager.attend(&heartbeat, || status.to_string()) => unreachable!("it goes on for ever"),
        }
    });
    runtime.shutdown_background();
    drop(pid_file);
    // A stop was asked for. The log says how many connections were cut.
    stopped.map(|()| ExitCode::SUCCESS)
}

/// What the process has to reach later.
fn needs(origin: &Origin, configuration: &Configuration, options: &ServiceOptions) -> Needs {
    let mut needs = Needs::new();
    if let Origin::File(path) = origin {
        needs.configuration(path);
    }
    for path in &configuration.key_files {
        needs.key(path);
    }
    for Plan { sources, pipe, .. } in &configuration.pipes {
        for source in sources {
            needs.listen_at(source);
        }
        dialing(&pipe.dialer, &mut needs);
    }
    if let Some(path) = &options.pid_file {
        needs.pid_file(path);
    }
    needs.log_to(log_destination(options));
    needs
}

/// What each connection has to reach.
pub(super) fn dialing(dialer: &Dialer, needs: &mut Needs) {
    needs.connect_to(dialer.target());
    if let Some(from) = dialer.from() {
        needs.connect_from(from);
    }
}

/// Locks the process in, unless that is not wanted.
pub(super) fn confine(options: &ServiceOptions, needs: &Needs) {
    if options.no_sandbox {
        warn!("not locked in, as --no-sandbox says: use it for debugging only");
    } else {
        sandbox::confine(needs);
    }
}

/// Where the log goes.
pub(super) fn log_destination(options: &ServiceOptions) -> Destination {
    // In the background there is no standard error.
    if options.syslog || options.daemon { Destination::Syslog } else { Destination::stderr() }
}

/// Starts the log; without wishes, it has what `level` lets through.
pub(super) fn start_log(options: &ServiceOptions, level: LevelFilter) {
    let destination = log_destination(options);
    log::start(options.log_level(level), options.log_format.unwrap_or_default(), destination);
    if destination == Destination::Syslog && !log::has_syslog_daemon() {
        // The log is the one place where this would not be read.
        let _ = writeln!(
            std::io::stderr(),
            "spipe: nobody listens at /dev/log: log lines are lost until a log daemon is there"
        );
    }
}

/// What a reload has read.
struct Again {
    listening: Listening,
    count: usize,
    /// The keys that new connections may have.
    accepted: Vec<Fingerprint>,
    service: ServiceOptions,
}

/// The process at work.
struct Supervisor<'p> {
    pipes: Pipes,
    origin: Arc<Origin>,
    planner: Arc<Mutex<Planner>>,
    flags: ServiceOptions,
    options: ServiceOptions,
    manager: &'p Manager,
    status: &'p Status,
}

impl Supervisor<'_> {
    /// Obeys signals until all connections have ended, or may go on no longer.
    async fn supervise(mut self, mut signals: Signals) {
        self.manager.ready(&self.status.to_string());
        while let Signal::Reload = signals.next().await {
            self.manager.reloading();
            let reading = tokio::select! {
                read = self.read_again() => read,
                // It may hang: at a name that is looked up, or at a pipe in the place of a key.
                () = signals.stop() => break,
            };
            let replaced = match reading {
                Ok(read) => self.replace(read).await,
                Err(error) => Err(error),
            };
            match replaced {
                Ok(()) => self.status.set_note(""),
                Err(error) => {
                    let hint = if error.is_denied() && !self.options.no_sandbox {
                        "; a directory that is new since the start is out of reach (sandbox): restart to let it in"
                    } else {
                        ""
                    };
                    error!(
                        reason = format!("{error}{hint}"),
                        "not reloaded: what was in force stays in force"
                    );
                    self.status.set_note("the last reload failed, see the log; ");
                }
            }
            self.manager.ready(&self.status.to_string());
        }
        self.status.set_note("stopping; ");
        let patience = self.options.drain_timeout();
        let cut = async {
            tokio::select! {
                () = sleep(patience) => {}
                () = signals.stop() => {}
            }
        };
        let status = self.status.to_string();
        tokio::select! {
            // The manager first: it may end us as soon as we drain.
            biased;
            () = self.manager.stopping(&status, patience) => unreachable!("it goes on for ever"),
            _logged = self.pipes.drain(cut) => {}
        }
    }

    /// Reads everything again and listens at the places that are new. Whatever is wrong is found here, before anything
    /// changes. On a thread of its own, since files and names may take their time.
    fn read_again(&self) -> impl Future<Output = Result<Again, Error>> + use<> {
        let (origin, planner) = (Arc::clone(&self.origin), Arc::clone(&self.planner));
        let held = self.pipes.sources();
        let reading = spawn_blocking(move || {
            // A panic elsewhere leaves it whole.
            let mut planner = planner.lock().unwrap_or_else(PoisonError::into_inner);
            let Configuration { service, pipes, .. } = Configuration::read(&origin, &mut planner)?;
            let accepted =
                pipes.iter().flat_map(|plan| &plan.pipe.keys).map(|key| key.fingerprint()).collect();
            let count = pipes.len();
            Ok(Again { listening: pipes::listen_besides(&held, pipes)?, count, accepted, service })
        });
        async move {
            let failed = |error| Error::System { doing: "read the configuration", error };
            reading.await.map_err(|panic| failed(std::io::Error::other(panic)))?
        }
    }

    /// Has new connections served by what was read.
    async fn replace(&mut self, Again { listening, count, accepted, service }: Again) -> Result<(), Error> {
        self.pipes.replace(listening).await?;
        self.status.set_pipes(count);
        info!(pipes = count, "reloaded: new connections are served by it, running ones go on");
        for (key, connections) in self.status.usage.by_key() {
            if !accepted.contains(&key) {
                info!(%key, connections, "running connections have a key that new ones cannot use any more");
            }
        }
        let options = self.flags.clone().or(service);
        self.options.drain_timeout = options.drain_timeout;
        if options != self.options {
            warn!("what concerns the whole process has changed in the configuration; that takes a restart");
        }
        Ok(())
    }
}

/// What the service manager shows for this process.
struct Status {
    usage: Arc<Usage>,
    said: Mutex<Said>,
}

struct Said {
    note: &'static str,
    pipes: usize,
}

impl Status {
    fn new(pipes: &[Plan], planner: &Planner) -> Self {
        Self { usage: Arc::clone(planner.usage()), said: Mutex::new(Said { note: "", pipes: pipes.len() }) }
    }

    fn set_note(&self, note: &'static str) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).note = note;
    }

    fn set_pipes(&self, pipes: usize) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).pipes = pipes;
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let plural = if said.pipes == 1 { "" } else { "s" };
        write!(formatter, "{}{} pipe{plural}, {}", said.note, said.pipes, self.usage)
    }
}
