//! The process at work: obeys signals, reloads, drains, and tells the service manager.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::facts::Facts;
use super::hand_over::{Request, Succession, Successor, Word};
use super::notify::Manager;
use super::sandbox::Confinement;
use super::signals::{Signal, Signals};
use super::state::Ago;
use crate::addr::{Endpoint, Source};
use crate::names;
use crate::pipe::{self, Expiries, Expiry, Listening, Pipes, Registry, Specs, Stage};
use crate::proto::key::Fingerprint;
use crate::stats::Usage;
use crate::upstream::Running;

/// The pause before the names of sources that do not resolve are looked up again.
const NAMES_AGAIN: Duration = Duration::from_secs(2);

/// After so many days without use, a key may be one that nobody has any more.
const IDLE_DAYS: i64 = 7;

/// Why a reload failed. It ends as one line in the log.
pub type ReloadError = Box<dyn Error + Send + Sync>;

/// What a configuration says when it is read again.
pub struct Reread {
    /// The pipes that there are to be.
    pub specs: Specs,
    /// How connections are treated.
    pub policy: Policy,
    /// Whether something has changed that only a restart can bring into force.
    pub needs_restart: bool,
}

/// How connections are treated that run, when something about the process or their key changes.
#[derive(Clone, Copy)]
pub struct Policy {
    /// How long they may go on after a stop.
    pub drain_timeout: Duration,
    /// What becomes of them when a reload takes their key away, or it expires.
    pub on_revoke: Running,
}

/// Asks for a reload. It is answered with how many pipes there are then, or with what is wrong.
pub type ReloadRequest = oneshot::Sender<Result<usize, String>>;

/// Reads the configuration again. It may block.
pub type Reader = dyn Fn() -> Result<Reread, ReloadError> + Send + Sync;

/// A reload that can be put into force: all new sources are listened on.
struct Reloaded {
    listening: Listening,
    pipes: usize,
    /// The keys that new connections may have.
    accepted: HashSet<Fingerprint>,
    policy: Policy,
    needs_restart: bool,
}

/// The process at work.
pub struct Supervisor<'m> {
    pipes: Pipes,
    expiries: Expiries,
    reader: Arc<Reader>,
    policy: Policy,
    manager: &'m Manager,
    confined: Confinement,
    facts: Arc<Facts>,
    succession: Succession,
    status: Status,
}

/// Why a process accepts no more.
enum End {
    /// It is to stop.
    Stop,
    /// Another serves in its place.
    HandedOver(Successor),
}

impl<'m> Supervisor<'m> {
    /// Looks after `pipes`, `count` of them. `reader` is asked at each reload.
    pub fn new(
        pipes: Pipes,
        count: usize,
        reader: Arc<Reader>,
        policy: Policy,
        manager: &'m Manager,
        (confined, facts): (Confinement, Arc<Facts>),
        succession: Succession,
    ) -> Self {
        let usage = Arc::clone(&pipes.registry().usage);
        let text = Mutex::new(Text { note: "", pipes: count });
        let status = Status(Arc::new(StatusText { usage, text }));
        let expiries = pipes.expiries();
        Self { pipes, expiries, reader, policy, manager, confined, facts, succession, status }
    }

    /// Obeys signals and `requests` until all connections have ended, or may go on no longer.
    pub async fn supervise(mut self, mut signals: Signals, requests: mpsc::Receiver<ReloadRequest>) {
        let (manager, status) = (self.manager, self.status.clone());
        let heartbeat = Arc::clone(&self.pipes.registry().heartbeat);
        let attend = || manager.attend(&heartbeat, || status.to_string());
        let end = tokio::select! {
            end = self.obey(&mut signals, requests) => end,
            () = attend() => unreachable!("it goes on for ever"),
        };
        match end {
            End::Stop => tokio::select! {
                () = self.stop(signals) => {}
                () = attend() => unreachable!("it goes on for ever"),
            },
            // The manager listens to the other process now: what this one says would be taken for its word.
            End::HandedOver(successor) => self.make_way(successor, signals).await,
        }
    }

    async fn obey(&mut self, signals: &mut Signals, mut requests: mpsc::Receiver<ReloadRequest>) -> End {
        self.manager.ready(&self.status.to_string());
        self.tell_idle_keys();
        if self.policy.on_revoke == Running::Reset {
            // The configuration may have lost a key since the process before was started.
            self.succession.predecessors().keep(self.pipes.keys()).await;
        }
        loop {
            let asked_by = tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Reload => None,
                    Signal::Stop => return End::Stop,
                },
                request = self.succession.next() => match request {
                    Request::Take { by, wanted, answer } => {
                        // Who has asked may be gone.
                        let _ = answer.send(self.succession.offer(by, &wanted, self.pipes.handles()));
                        continue;
                    }
                    Request::GiveUp => {
                        self.succession.forget_candidate();
                        continue;
                    }
                    Request::Serve(successor) => return End::HandedOver(successor),
                },
                Some(request) = requests.recv() => Some(request),
                () = await_names(self.pipes.unresolved()) => {
                    let listened = tokio::select! {
                        listened = self.listen_again() => listened,
                        // A name may not resolve any more, and be looked up for long.
                        () = signals.stop() => return End::Stop,
                    };
                    self.listen_at_resolved_names(listened).await;
                    continue;
                }
                expiry = self.expiries.next() => {
                    self.obey_calendar(&expiry).await;
                    continue;
                }
            };
            self.manager.reloading();
            let reading = tokio::select! {
                read = self.read_again() => read,
                // Reading may hang: at a name that is looked up, or at a pipe in the place of a key.
                () = signals.stop() => return End::Stop,
            };
            let replaced = match reading {
                Ok(reloaded) => self.replace(reloaded).await,
                Err(error) => Err(error),
            };
            let result = replaced.map_err(|error| {
                let hint = if is_denied(&*error) && self.confined == Confinement::On {
                    "; a directory or a file of another user that is new since the start is out of reach (sandbox): restart to let it in"
                } else {
                    ""
                };
                format!("{error}{hint}")
            });
            match &result {
                Ok(_) => self.status.set_note(""),
                Err(reason) => {
                    error!(reason, "not reloaded: what was in force stays in force");
                    self.status.set_note("the last reload failed, see the log; ");
                }
            }
            self.facts.note_reload(result.clone().map(drop));
            if let Some(request) = asked_by {
                // Who has asked may be gone.
                let _ = request.send(result);
            }
            self.manager.ready(&self.status.to_string());
        }
    }

    /// Tells of keys that may have to be removed.
    fn tell_idle_keys(&self) {
        let mut last_used = self.pipes.registry().usage.last_used();
        for (key, names) in self.pipes.accepted_keys() {
            // Once, also when several pipes have it.
            let Some(then) = last_used.remove(&key) else { continue };
            let ago = Ago::since(then);
            if ago.days() >= IDLE_DAYS {
                let (key_file, key_name) = (names.file(key), names.name(key));
                info!(%key, key_file, key_name, last_used = %then, "nobody has used this key for {ago}");
            }
        }
    }

    /// A key expires soon, or now.
    async fn obey_calendar(&mut self, Expiry { key, file, name, expires, stage }: &Expiry) {
        let (key_file, key_name) = (file.as_deref(), name.as_deref());
        match (stage, self.policy.on_revoke) {
            (Stage::Soon, _) => {
                warn!(%key, key_file, key_name, %expires, "the key expires soon: give its holder a new one");
            }
            (Stage::Now, Running::Keep) => {
                self.pipes.registry().connections.give_up_idle();
                warn!(%key, key_file, key_name, %expires, "the key has expired: new connections are refused, running ones go on");
            }
            (Stage::Now, Running::Reset) => {
                let ended = self.pipes.registry().revoke(|other| other == *key);
                self.succession.predecessors().revoke(*key).await;
                warn!(%key, key_file, key_name, %expires, ended, "the key has expired: new connections are refused, running ones end");
            }
        }
    }

    /// Listens at those sources that are not listened on so far. On a thread of its own, since names may take their time.
    fn listen_again(&self) -> impl Future<Output = Result<Listening, ReloadError>> + use<> {
        let (held, specs) = (self.pipes.held(), self.pipes.specs());
        let listening = spawn_blocking(move || Ok(pipe::listen_besides(&held, specs)?));
        async move { listening.await.unwrap_or_else(|panic| Err(panic.into())) }
    }

    /// Accepts at the sources whose names resolve by now.
    async fn listen_at_resolved_names(&mut self, listened: Result<Listening, ReloadError>) {
        let replaced = match listened {
            Ok(listening) => self.pipes.replace(listening).await.map_err(ReloadError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = replaced {
            let reason = error.to_string();
            // Such as an address that this host is about to get. The names are looked up again after a pause.
            warn!(reason, "a name has resolved, and cannot be listened on; trying again");
        }
    }

    /// Reads everything again and listens at the sources that are new. Whatever is wrong is found here, before anything
    /// changes. On a thread of its own, since files and names may take their time.
    fn read_again(&self) -> impl Future<Output = Result<Reloaded, ReloadError>> + use<> {
        let (reader, held) = (Arc::clone(&self.reader), self.pipes.held());
        let reading = spawn_blocking(move || {
            let Reread { specs, policy, needs_restart } = reader()?;
            let keys = specs.iter().flat_map(|spec| spec.role.keys());
            let accepted = keys.map(|key| key.fingerprint()).collect();
            let pipes = specs.iter().len();
            let listening = pipe::listen_besides(&held, specs)?;
            Ok(Reloaded { listening, pipes, accepted, policy, needs_restart })
        });
        async move { reading.await.unwrap_or_else(|panic| Err(panic.into())) }
    }

    /// Puts what was read into force for new connections. Gives how many pipes there are.
    async fn replace(&mut self, reloaded: Reloaded) -> Result<usize, ReloadError> {
        let Reloaded { listening, pipes, accepted, policy, needs_restart } = reloaded;
        self.pipes.replace(listening).await?;
        self.status.set_pipes(pipes);
        self.policy = policy;
        self.expiries = self.pipes.expiries();
        info!(pipes, "reloaded: new connections are served by it, running ones go on");
        let registry = self.pipes.registry();
        for (key, connections) in registry.usage.by_key() {
            if !accepted.contains(&key) {
                info!(%key, connections, "running connections have a key that new ones cannot use any more");
            }
        }
        if policy.on_revoke == Running::Reset {
            revoke(registry, |key| !accepted.contains(&key));
            self.succession.predecessors().keep(accepted.into_iter()).await;
        }
        self.tell_idle_keys();
        if needs_restart {
            warn!("what concerns the whole process has changed in the configuration; that takes a restart");
        }
        Ok(pipes)
    }

    /// Lets connections finish, also those of older processes, for as long as they may.
    async fn stop(self, mut signals: Signals) {
        self.status.set_note("stopping; ");
        self.facts.note_stop();
        let status = self.status.to_string();
        let (cut, patience) = (CancellationToken::new(), self.policy.drain_timeout);
        let finish = async {
            let (taken, predecessors) = self.succession.end().await;
            let draining = self.pipes.stop_accepting(&taken).await;
            let connections = draining.connections();
            info!(connections, "stopping: letting connections finish; signal again to end them");
            predecessors.stop();
            let limit = async {
                tokio::select! { () = sleep(patience) => {}, () = signals.stop() => {} }
                predecessors.stop();
                cut.cancel();
                std::future::pending::<()>().await;
            };
            let ended = async {
                let ended = draining.finish(cut.cancelled()).await;
                log_end(ended);
                predecessors.ended(cut.cancelled()).await;
            };
            tokio::select! { () = ended => {}, () = limit => {} }
        };
        tokio::select! {
            // The manager first: it has to know how long this may take.
            biased;
            () = self.manager.stopping(&status, patience) => unreachable!("it goes on for ever"),
            () = finish => {}
        }
    }

    /// Lets `successor` serve. Connections may take their time then, until it is told to stop.
    async fn make_way(self, mut successor: Successor, mut signals: Signals) {
        self.facts.note_stop();
        let (taken, predecessors) = self.succession.end().await;
        let draining = self.pipes.stop_accepting(&taken).await;
        let (to, connections) = (successor.pid(), draining.connections());
        if let Err(error) = successor.go(connections) {
            warn!(to, %error, "the process that takes over was not told that it is to serve");
        }
        // It has them from here on.
        drop(predecessors);
        info!(to, connections, "handed over: another process serves; letting connections finish");
        let registry = Arc::clone(draining.registry());
        let limit = follow(&mut successor, &mut signals, self.policy.drain_timeout, &registry);
        log_end(draining.finish(limit).await);
    }
}

/// Does what `successor` says, and ends when connections are to be ended: `patience` after the first reason to stop, or at the
/// second one.
async fn follow(successor: &mut Successor, signals: &mut Signals, patience: Duration, registry: &Registry) {
    let mut limit = None;
    loop {
        let word = tokio::select! {
            word = successor.next() => word,
            () = signals.stop() => Word::Stop,
            () = until(limit) => return,
        };
        match word {
            Word::Keep(keys) => revoke(registry, |key| !keys.contains(&key)),
            Word::Revoke(revoked) => revoke(registry, |key| key == revoked),
            Word::Stop if limit.is_some() => return,
            Word::Stop | Word::Gone => limit = limit.or(Some(Instant::now() + patience)),
        }
    }
}

/// Waits until then; for ever, if there is no limit.
async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// Ends the connections of such keys.
fn revoke(registry: &Registry, is_revoked: impl Fn(Fingerprint) -> bool) {
    let ended = registry.revoke(is_revoked);
    if ended > 0 {
        warn!(ended, "ending running connections: their keys are not accepted any more");
    }
}

/// What became of the connections, of which `cut` were ended.
fn log_end(cut: usize) {
    if cut == 0 {
        info!("stopped");
    } else {
        warn!(connections = cut, "stopped: ended connections that were not finished");
    }
}

/// Ends when the name of one of these sources resolves; never, if there are none.
async fn await_names(sources: impl Iterator<Item = &Source>) {
    let names = sources.filter_map(|source| match source {
        Source::At(Endpoint::Name { host, .. }) => Some(host.clone()),
        _ => None,
    });
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        return std::future::pending().await;
    }
    loop {
        sleep(NAMES_AGAIN).await;
        let names = names.clone();
        // One after the other, so that a DNS server that is dead has one thread of ours.
        let resolve = move || names.iter().any(|name| names::resolves(name));
        if spawn_blocking(resolve).await.unwrap_or(false) {
            return;
        }
    }
}

/// Whether the system would have done it for a process with more rights.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What the service manager shows for this process.
#[derive(Clone)]
struct Status(Arc<StatusText>);

struct StatusText {
    usage: Arc<Usage>,
    text: Mutex<Text>,
}

struct Text {
    note: &'static str,
    pipes: usize,
}

impl Status {
    fn set_note(&self, note: &'static str) {
        self.text().note = note;
    }

    fn set_pipes(&self, pipes: usize) {
        self.text().pipes = pipes;
    }

    fn text(&self) -> MutexGuard<'_, Text> {
        // A panic elsewhere leaves it whole: every change to it is one step.
        self.0.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text { note, pipes } = *self.text();
        let plural = if pipes == 1 { "" } else { "s" };
        write!(formatter, "{note}{pipes} pipe{plural}, {}", self.0.usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::ListenError;

    #[test]
    fn a_refusal_is_found_at_the_root_of_an_error() {
        let refused = |kind: io::ErrorKind| ListenError::Refused {
            place: "[]:1".parse().unwrap(),
            source: kind.into(),
        };
        assert!(is_denied(&refused(io::ErrorKind::PermissionDenied)));
        assert!(!is_denied(&refused(io::ErrorKind::AddrInUse)));
    }
}
