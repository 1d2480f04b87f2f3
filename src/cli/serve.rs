//! From a configuration to a process: one that listens, or one with a single connection.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use super::{Called, Error, contradict};
use crate::config::key_file::Owners;
use crate::config::options::{PipeOptions, ServiceOptions};
use crate::config::plan::Planner;
use crate::config::{self, ConfigError, Configuration, Origin, Parsed};
use crate::connection::{Common, ConnectionError, Initiator};
use crate::gate::{Admitted, ClientPlace, Connections};
use crate::listen::SocketPermissions;
use crate::names::Unresolved;
use crate::pipe::{self, Registry, Specs};
use crate::pump::PumpError;
use crate::service::daemon::{self, Background, Leaving, Side};
use crate::service::hand_over::{self, Handed, Place, Succession, Wanted};
use crate::service::log::{self, Destination};
use crate::service::notify::Manager;
use crate::service::pid_file::PidFile;
use crate::service::privileges::Identity;
use crate::service::process;
use crate::service::sandbox::Needs;
use crate::service::signals::Signals;
use crate::service::startup::{Service, Started, StartupError};
use crate::service::state::{Keeper, StateDirectory};
use crate::service::supervisor::{Reader, Reread, Supervisor};
use crate::stats::OfPipe;
use crate::status::{self, Gatherer, Reload};
use crate::stream::{Remote, Stream};
use crate::upstream::Upstream;

/// For the socket of `--hand-over`, who asks there, and the processes that let their connections finish.
const HAND_OVER_DESCRIPTORS: usize = 32;

/// Serves what `origin` says until a signal ends it. `flags` come from the command line, and go before a file's.
///
/// # Errors
/// [`enum@Error`], for all that keeps it from starting.
pub(super) fn serve(origin: Origin, flags: ServiceOptions) -> Result<ExitCode, Error> {
    let parsed = origin.parse()?;
    let options = flags.clone().or(parsed.service.clone());
    // Before any key is read: keys would be in two processes.
    match options.daemon.then(daemon::split).transpose()? {
        Some(Side::Foreground(code)) => Ok(code),
        Some(Side::Background(background)) => serve_as(origin, parsed, flags, Some(background)),
        None => serve_as(origin, parsed, flags, None),
    }
}

/// The same in the process that is to serve: the one in the `background`, if there are two. `parsed` is what `origin` says.
///
/// # Errors
/// [`enum@Error`], for all that keeps it from starting.
pub(super) fn serve_as(
    origin: Origin,
    parsed: Parsed,
    flags: ServiceOptions,
    background: Option<Background>,
) -> Result<ExitCode, Error> {
    let options = flags.clone().or(parsed.service.clone());
    start_log(&options, LevelFilter::INFO);
    let user = options.user.as_ref().map(Identity::of).transpose().map_err(StartupError::from)?;
    let mut planner = Planner::new(Owners::new(user.and_then(|user| user.uid())));
    let Configuration { specs, key_files } = parsed.plan(&mut planner)?;
    let mut needs = needs_of(&origin, &specs, &key_files);
    if let Some(path) = &options.pid_file {
        needs.pid_file(path);
    }
    let state = StateDirectory::find(options.state_directory.as_deref())?;
    let status = options.status()?;
    status.sources().for_each(|source| needs.listen_at(source));
    let mut kept_free = status.descriptors();
    let (mut handed, mut place) = (Handed::default(), None);
    if let Some(path) = &options.hand_over {
        needs.hand_over(path);
        kept_free += HAND_OVER_DESCRIPTORS;
        // What is wrong with the configuration has been found by now, without the process that serves.
        handed = hand_over::ask(path, &wanted(&specs, &status, &options))?;
        place = Some(Place::listen(path)?);
    }
    let registry = Arc::new(Registry::new(process::descriptors().saturating_sub(kept_free)));
    if let Some(state) = &state {
        needs.state_directory(state.path());
        if options.hand_over.is_some() {
            needs.share_state(state.path());
        }
        registry.usage.remember(state.last_used_or_nothing());
    }
    needs.log_to(options.log_destination());
    let pipes = specs.iter().len();
    let manager = Manager::from_env();
    let Service { runtime, sockets, signals, mut pid_file, leaving, facts } = Started::new()
        .listen(|passed| {
            // The status first: a pipe may take all that systemd has passed.
            passed.hand_over(handed.status);
            let status = status.listen(passed)?;
            passed.hand_over(handed.pipes);
            Ok::<_, Error>((status, pipe::listen(specs, passed)?))
        })?
        .write_pid_file(options.pid_file.as_deref(), handed.pid_file)?
        .become_user(options.user.as_ref())?
        .detach(background)?
        .confine(|| options.confinement().apply(&needs))
        .start_runtime()?;
    let (policy, confinement, facts) = (options.policy(), options.confinement(), Arc::new(facts));
    let (status_sockets, sockets) = sockets;
    let served = runtime.block_on(async {
        // Before the log says that we listen: an administrator who has read that may send a signal, and it must stop us in an
        // orderly way and remove the socket file.
        let received = Signals::new().map_err(|source| Error::System { doing: "receive signals", source })?;
        let usage = Arc::clone(&registry.usage);
        let keeper = state.map(|state| Keeper::start(state, usage)).transpose();
        let keeper = keeper.map_err(|source| Error::System { doing: "start a thread", source })?;
        signals.release()?;
        let (mut sockets, mut status_sockets) = (sockets.register()?, status_sockets.register()?);
        let elsewhere = CancellationToken::new();
        let lock = pid_file.as_ref().map(PidFile::lock).transpose();
        let lock = lock.map_err(|source| Error::System { doing: "keep the pid file locked", source })?;
        let succession = match place.map(Place::register).transpose()? {
            Some(place) => {
                let heir = place.take_over(handed.predecessor).await?;
                // From here on, this is the process that serves.
                sockets.adopt();
                status_sockets.adopt();
                Succession::new(heir, status_sockets.handles(), elsewhere.clone(), lock)
            }
            None => Succession::default(),
        };
        pid_file.iter_mut().for_each(PidFile::keep);
        // Whoever has called may rely on all of that when the call returns.
        leaving.map(Leaving::leave).transpose()?;
        let running = sockets.start(Arc::clone(&registry));
        let gatherer = Gatherer::new(registry, Arc::clone(&facts), status.ready_needs_target);
        let (ask, requests) = mpsc::channel(1);
        let serving = status_sockets.start(Arc::new(gatherer), Reload::new(ask), elsewhere);
        let reader = reader(origin, flags, options, planner);
        Supervisor::new(running, pipes, reader, policy, &manager, (confinement, facts), succession)
            .supervise(received, requests)
            .await;
        serving.end().await;
        if let Some(keeper) = keeper {
            keeper.finish();
        }
        // A stop was asked for. The log says how many connections were cut.
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_background();
    drop(pid_file);
    served
}

/// What serving `specs` takes, with their `key_files`, once the process is locked in.
fn needs_of(origin: &Origin, specs: &Specs, key_files: &[PathBuf]) -> Needs {
    let mut needs = Needs::new();
    if let Origin::File(path) = origin {
        needs.configuration(path);
    }
    for path in key_files {
        needs.key(path);
    }
    for spec in specs.iter() {
        for source in spec.sources.iter() {
            needs.listen_at(source);
            if spec.common.lookup.sources == Unresolved::Waits {
                needs.listen_later(source);
            }
        }
        if let Origin::File(_) = origin
            && spec.permissions != SocketPermissions::default()
        {
            needs.give_socket_files(spec.permissions.owner.as_ref());
        }
        spec.common.targets.routes().iter().for_each(|route| needs.dial(route));
    }
    needs
}

/// What the process that serves so far is asked for.
fn wanted(specs: &Specs, status: &status::Plan, options: &ServiceOptions) -> Wanted {
    Wanted {
        pipes: specs.iter().flat_map(|spec| spec.sources.iter()).cloned().collect(),
        status: status.sources().cloned().collect(),
        pid_file: options.pid_file.is_some(),
    }
}

/// Reads the configuration at a reload. What concerns the whole process is settled at the start, but for its
/// [`Policy`](crate::service::supervisor::Policy).
fn reader(origin: Origin, flags: ServiceOptions, options: ServiceOptions, planner: Planner) -> Arc<Reader> {
    let planner = Mutex::new(planner);
    Arc::new(move || {
        // A panic elsewhere leaves it whole.
        let mut planner = planner.lock().unwrap_or_else(PoisonError::into_inner);
        let parsed = origin.parse()?;
        let service = flags.clone().or(parsed.service.clone());
        let Configuration { specs, .. } = parsed.plan(&mut planner)?;
        Ok(Reread { specs, policy: service.policy(), needs_restart: !service.is_settled_as(&options) })
    })
}

/// Carries the one connection of standard input and output.
///
/// # Errors
/// [`enum@Error`], for all that keeps it from starting, and when the connection fails.
pub(super) fn connect(options: PipeOptions, service: &ServiceOptions) -> Result<ExitCode, Error> {
    if let Some(option) = service.asks_for_a_service() {
        contradict(&format!(
            "{option} is for a pipe that listens; give -e or -d and -s SOURCE, or leave it out"
        ));
    }
    // As a filter in a pipeline or under ssh, only what goes wrong is news.
    start_log(service, LevelFilter::ERROR);
    let mut planner = Planner::new(Owners::new(None));
    let (common, key) = config::stdio_pipe(options, &mut planner).map_err(ConfigError::from)?;
    let runtime = start_small_runtime(&common, service)?;
    let stdio = Admitted {
        stream: Stream::Stdio(Box::new((tokio::io::stdin(), tokio::io::stdout()))),
        remote: Remote::Local,
        place: ClientPlace { place: Connections::default().place(None), establishing: None },
    };
    let stats = Arc::new(OfPipe::new(Arc::default()));
    let upstream = Upstream::fresh(&common.targets, common.keepalive, common.lookup);
    let initiator = Arc::new(Initiator::new(common, key, None, upstream, stats, 0));
    let carried = runtime.block_on(initiator.carry(stdio));
    // A thread may still sit in read(2) on standard input, and nothing can wake it.
    runtime.shutdown_background();
    match carried {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The reader of our output is gone, as ssh is when it has what it came for. Any filter ends without a word then.
        Err(ConnectionError::Pump(PumpError::Local(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(Error::Connection(error)),
    }
}

/// The runtime of a process that has connections to the targets of `common` and no others, and is locked in. Signals end it, as they do
/// any filter.
///
/// # Errors
/// [`StartupError`].
pub(super) fn start_small_runtime(
    common: &Common,
    service: &ServiceOptions,
) -> Result<Runtime, StartupError> {
    let mut needs = Needs::new();
    common.targets.routes().iter().for_each(|route| needs.dial(route));
    needs.log_to(service.log_destination());
    let Service { runtime, signals, .. } = Started::new()
        .without_sockets()?
        .write_pid_file(None, None)?
        .become_user(None)?
        .detach(None)?
        .confine(|| service.confinement().apply(&needs))
        .start_small_runtime()?;
    signals.release()?;
    Ok(runtime)
}

/// Starts the log; by default, it has what `level` lets through.
pub(super) fn start_log(options: &ServiceOptions, level: LevelFilter) {
    let destination = options.log_destination();
    log::start(options.log_level(level), options.log_format.unwrap_or_default(), destination);
    if destination == Destination::Syslog && !log::has_syslog_daemon() {
        // The log is the one place where this would not be read.
        let _ = writeln!(
            io::stderr(),
            "{}: no log daemon listens at /dev/log: log lines are lost until one does",
            Called::by_name()
        );
    }
}
