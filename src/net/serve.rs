//! The accept loop: permits, back-off, drain.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::listen::Listener;
use super::lobby::Lobby;
use super::pipe::Pipe;
use super::stream::Keepalive;

/// Which end of the pipe this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `-e`: accepts plain connections and seals them.
    Initiator,
    /// `-d`: accepts sealed connections and opens them.
    Responder,
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Initiator => "encrypt",
            Self::Responder => "decrypt",
        })
    }
}

/// A pipe with all that it takes to serve.
pub struct Server {
    /// Which end.
    pub role: Role,
    /// Where to accept connections.
    pub listeners: Vec<Listener>,
    /// What to do with each.
    pub pipe: Arc<Pipe>,
    /// The most connections at a time (those that have not proved the key yet do not count).
    pub max_connections: usize,
    /// For the accepted sockets.
    pub keepalive: Keepalive,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every connection came to its own end.
    Drained,
    /// This many were cut short.
    Cut(usize),
}

impl Server {
    /// Starts to accept, in the background.
    pub fn start(self) -> Running {
        let connections = TaskTracker::new();
        let shared = Arc::new(Shared {
            role: self.role,
            pipe: self.pipe,
            limit: Arc::new(Semaphore::new(self.max_connections.min(Semaphore::MAX_PERMITS))),
            lobby: Arc::new(Lobby::default()),
            keepalive: self.keepalive,
            connections: connections.clone(),
        });
        let stop = CancellationToken::new();
        let accepting = TaskTracker::new();
        for listener in self.listeners {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            accepting.spawn(async move {
                tokio::select! {
                    () = shared.accept(&listener) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        accepting.close();
        connections.close();
        Running { stop, accepting, connections }
    }
}

/// A server at work.
pub struct Running {
    stop: CancellationToken,
    accepting: TaskTracker,
    connections: TaskTracker,
}

impl Running {
    /// Accepts no more and lets the running connections finish, until `cut` says to wait no longer.
    pub async fn drain(self, cut: impl Future<Output = ()>) -> Stopped {
        self.stop.cancel();
        // Then the listeners are closed: what arrives from here on is refused by the kernel, not left in a queue.
        self.accepting.wait().await;
        info!(
            connections = self.connections.len(),
            "stopping: letting connections finish; signal again to end them"
        );
        tokio::select! {
            () = self.connections.wait() => {
                info!("stopped");
                Stopped::Drained
            }
            () = cut => {
                let cut = self.connections.len();
                warn!(connections = cut, "stopped: ended connections that were not finished");
                Stopped::Cut(cut)
            }
        }
    }
}

/// What all accept loops of a server share.
struct Shared {
    role: Role,
    pipe: Arc<Pipe>,
    limit: Arc<Semaphore>,
    lobby: Arc<Lobby>,
    keepalive: Keepalive,
    connections: TaskTracker,
}

impl Shared {
    /// Accepts connections for ever.
    async fn accept(&self, listener: &Listener) {
        loop {
            match self.role {
                Role::Initiator => {
                    // The slot comes before accept: a client beyond the limit waits in the kernel's queue, where it costs
                    // nothing, and not half-served in here.
                    let permit = self.reserve().await;
                    let (local, client) = listener.accept(self.keepalive).await;
                    let pipe = Arc::clone(&self.pipe);
                    self.connections.spawn(async move {
                        let _ = pipe.initiate(local, client).await;
                        drop(permit);
                    });
                }
                Role::Responder => {
                    let (wire, from) = listener.accept(self.keepalive).await;
                    let (pipe, limit) = (Arc::clone(&self.pipe), Arc::clone(&self.limit));
                    let visitor = self.lobby.enter();
                    self.connections.spawn(async move {
                        let _ = pipe.respond(wire, from, visitor, limit).await;
                    });
                }
            }
        }
    }

    async fn reserve(&self) -> tokio::sync::OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.limit).try_acquire_owned() {
            return permit;
        }
        warn!("as many connections as -n allows are open; more have to wait");
        Arc::clone(&self.limit).acquire_owned().await.expect("the semaphore is never closed")
    }
}
