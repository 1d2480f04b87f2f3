//! All pipes of a process: start, replacement while connections run, drain.
//!
//! A running connection belongs to no pipe that could be taken away: it has what it needs, and lives until it has ended. What
//! is replaced is who accepts the next one. The sockets stay: a pipe's place is known by what it was written as ([`Source`]),
//! and a new pipe at the same place takes the socket over with whoever waits in its queue.

pub mod heartbeat;
pub mod serve;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::addr::{Endpoint, Source};
use crate::connection::Pipe;
use crate::connection::running::Connections;
use crate::gate::lobby::Lobby;
use crate::listen::{self, Bound, ListenError, Listener, Passed};
use crate::pipe::heartbeat::Heartbeat;
use crate::pipe::serve::{Role, Running, Server};
use crate::proto::cipher::Ciphers;
use crate::stream::Keepalive;

/// One pipe, as it is to be.
pub struct Plan {
    /// Which end.
    pub role: Role,
    /// Where to accept connections. No two plans share one.
    pub sources: Vec<Source>,
    /// What to do with each.
    pub pipe: Pipe,
    /// The most connections at a time; `usize::MAX` for no limit.
    pub max_connections: usize,
    /// For the accepted sockets.
    pub keepalive: Keepalive,
}

/// Pipes whose sockets listen.
pub struct Listening {
    plans: Vec<Plan>,
    bound: Vec<Bound>,
}

/// Starts to listen for all of `plans`, some of whose sockets may be among those `passed`. Needs no runtime.
///
/// # Errors
/// [`ListenError`], for the first place that cannot be listened on.
pub fn listen(plans: Vec<Plan>, passed: &mut Passed) -> Result<Listening, ListenError> {
    let bound = bind(plans.iter().flat_map(|plan| &plan.sources), passed)?;
    Ok(Listening { plans, bound })
}

/// The same at a reload, where all at `held` listens already and nothing new is passed. Looking up a name blocks.
///
/// # Errors
/// [`ListenError`], for the first new place that cannot be listened on.
pub fn listen_besides(held: &[Source], plans: Vec<Plan>) -> Result<Listening, ListenError> {
    let wanted = plans.iter().flat_map(|plan| &plan.sources);
    let bound = bind(wanted.filter(|source| !held.contains(source)), &mut Passed::default())?;
    Ok(Listening { plans, bound })
}

fn bind<'s>(
    sources: impl Iterator<Item = &'s Source>,
    passed: &mut Passed,
) -> Result<Vec<Bound>, ListenError> {
    let mut bound = Vec::new();
    for source in sources {
        bound.extend(listen::listen(source, passed)?);
    }
    Ok(bound)
}

impl Listening {
    /// Where they listen, in the order of the plans.
    pub fn places(&self) -> impl Iterator<Item = &Endpoint> {
        self.bound.iter().map(Bound::local)
    }

    /// Starts to accept. To be called within the runtime.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub fn start(self) -> Result<Pipes, ListenError> {
        let mut pipes =
            Pipes { serving: Vec::new(), connections: Connections::default(), heartbeat: Arc::default() };
        let mut sockets = into_listeners(self.bound)?;
        for plan in self.plans {
            pipes.serve(plan, &mut sockets, Vec::new(), &[]);
        }
        Ok(pipes)
    }
}

fn into_listeners(bound: Vec<Bound>) -> Result<Vec<Listener>, ListenError> {
    bound.into_iter().map(Bound::into_listener).collect()
}

/// Pipes at work.
pub struct Pipes {
    serving: Vec<Serving>,
    connections: Connections,
    heartbeat: Arc<Heartbeat>,
}

/// One of them.
struct Serving {
    running: Running,
    legacy: Legacy,
}

/// What a pipe leaves to one in its place.
struct Legacy {
    sources: Vec<Source>,
    max_connections: usize,
    limit: Arc<Semaphore>,
    lobby: Arc<Lobby>,
    said: Said,
}

/// What the log was told of a pipe, to tell it again when it has become another.
#[derive(PartialEq, Eq)]
struct Said {
    name: Option<String>,
    role: Role,
    target: String,
    keys: String,
    ciphers: Ciphers,
}

impl Said {
    fn of(role: Role, pipe: &Pipe) -> Self {
        let keys: Vec<_> = pipe.keys.iter().map(|key| key.fingerprint().to_string()).collect();
        Self {
            name: pipe.name.clone(),
            role,
            target: pipe.dialer.target().to_string(),
            keys: keys.join(","),
            ciphers: pipe.ciphers,
        }
    }

    fn log(&self, listener: &Listener) {
        let Self { name, role, target, keys, ciphers } = self;
        let (version, source) = (env!("CARGO_PKG_VERSION"), listener.local());
        info!(pipe = name.as_deref(), version, %role, %source, %target, key = %keys, %ciphers, "listening");
    }
}

impl Pipes {
    /// Asks all accept loops whether they still turn.
    pub fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }

    /// The places that are listened on, as they were written. Not those whose accept loop has died: they are to be bound anew.
    pub fn sources(&self) -> Vec<Source> {
        let alive = self.serving.iter().filter(|serving| !serving.running.has_died());
        alive.flat_map(|serving| &serving.legacy.sources).cloned().collect()
    }

    /// Has other pipes in the place of these: what [`listen_besides`] gave for the places that are listened on now. Running
    /// connections go on, and no new one is refused at a place that stays. When this fails, nothing has changed.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub async fn replace(&mut self, Listening { plans, bound }: Listening) -> Result<(), ListenError> {
        let mut new = into_listeners(bound)?;
        let (mut kept, mut legacies) = (Vec::new(), Vec::new());
        for Serving { running, legacy } in self.serving.drain(..) {
            kept.extend(running.stop().await);
            legacies.push(legacy);
        }
        for plan in plans {
            let kept = take(&mut kept, &plan.sources);
            self.serve(plan, &mut new, kept, &legacies);
        }
        for gone in kept {
            info!(source = %gone.local(), "no longer listening");
        }
        Ok(())
    }

    /// Serves `plan` on those of the `new` sockets that are its own, and on the `kept` ones.
    fn serve(&mut self, plan: Plan, new: &mut Vec<Listener>, kept: Vec<Listener>, legacies: &[Legacy]) {
        let Plan { role, sources, pipe, max_connections, keepalive } = plan;
        let legacy = legacies.iter().find(|legacy| legacy.sources == sources);
        let said = Said::of(role, &pipe);
        let mut listeners = take(new, &sources);
        let known = legacy.is_some_and(|legacy| legacy.said == said);
        for listener in listeners.iter().chain(kept.iter().filter(|_| !known)) {
            said.log(listener);
        }
        listeners.extend(kept);
        // Whoever is connected counts, as long as the limit itself is the same. Permits cannot be taken back from a limit that
        // shrinks, so a changed one is a new one.
        let limit = legacy.filter(|legacy| legacy.max_connections == max_connections).map_or_else(
            || Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            |legacy| Arc::clone(&legacy.limit),
        );
        let lobby = legacy.map_or_else(Arc::default, |legacy| Arc::clone(&legacy.lobby));
        let server = Server {
            role,
            listeners,
            pipe: Arc::new(pipe),
            limit: Arc::clone(&limit),
            lobby: Arc::clone(&lobby),
            keepalive,
        };
        let running = server.start(&self.connections, &self.heartbeat);
        let legacy = Legacy { sources, max_connections, limit, lobby, said };
        self.serving.push(Serving { running, legacy });
    }

    /// Accepts no more and lets the running connections finish, until `cut` says to wait no longer. Then their peers are told.
    /// Gives how many were cut short.
    pub async fn drain(self, cut: impl Future<Output = ()>) -> usize {
        for Serving { running, .. } in self.serving {
            // Closed here: what arrives from here on is refused by the kernel, not left in a queue.
            drop(running.stop().await);
        }
        let connections = self.connections;
        info!(
            connections = connections.running(),
            "stopping: letting connections finish; signal again to end them"
        );
        let cut = tokio::select! {
            // With no connection to wait for, a limit of no time at all has not run out.
            biased;
            () = connections.finished() => 0,
            () = cut => connections.cut_short().await,
        };
        if cut == 0 {
            info!("stopped");
        } else {
            warn!(connections = cut, "stopped: ended connections that were not finished");
        }
        cut
    }
}

/// Those of `listeners` that listen for one of `sources`.
fn take(listeners: &mut Vec<Listener>, sources: &[Source]) -> Vec<Listener> {
    listeners.extract_if(.., |listener| sources.contains(listener.source())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;
    use crate::proto::cipher::Cipher;
    use crate::proto::handshake::Label;
    use crate::proto::key::Key;
    use crate::upstream::Dialer;

    fn plan(source: &str) -> Plan {
        Plan {
            role: Role::Initiator,
            sources: vec![source.parse().unwrap()],
            pipe: Pipe {
                name: None,
                keys: vec![Arc::new(Key::from_bytes(&[1; 32]).unwrap())],
                label: Label::default(),
                ciphers: Ciphers::only(Cipher::Aes256Gcm),
                dialer: Dialer::new("127.0.0.1:1".parse().unwrap(), None, Keepalive::On).unwrap(),
                timeout: Duration::from_secs(1),
                usage: Arc::default(),
            },
            max_connections: 1,
            keepalive: Keepalive::On,
        }
    }

    #[tokio::test]
    async fn a_source_whose_accept_loop_has_died_is_bound_anew_at_a_reload() {
        let listening = listen(vec![plan("127.0.0.1:0")], &mut Passed::default()).unwrap();
        let Some(&Endpoint::Ip(address)) = listening.places().next() else { panic!("it listens on a port") };
        drop(listening);
        let source = address.to_string();
        let mut pipes = listen(vec![plan(&source)], &mut Passed::default()).unwrap().start().unwrap();
        assert_eq!(pipes.sources().len(), 1);
        pipes.serving[0].running.kill().await;
        assert!(TcpStream::connect(address).await.is_err(), "its socket is gone with it");

        let listening = listen_besides(&pipes.sources(), vec![plan(&source)]).unwrap();
        pipes.replace(listening).await.unwrap();
        assert!(TcpStream::connect(address).await.is_ok());
    }
}
