//! The accept loop of one pipe: permits, and a stop that loses no client.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::connection::Pipe;
use crate::connection::running::Connections;
use crate::gate::lobby::Lobby;
use crate::listen::{Listener, Listeners};
use crate::pipe::heartbeat::Heartbeat;
use crate::stream::Keepalive;

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
    /// A permit for each connection (those that have not proved the key yet need none).
    pub limit: Arc<Semaphore>,
    /// Where those wait that have not.
    pub lobby: Arc<Lobby>,
    /// For the accepted sockets.
    pub keepalive: Keepalive,
}

impl Server {
    /// Starts to accept, in the background. The connections are `connections`, and live on when this is stopped; each accept
    /// loop answers to `heartbeat`.
    pub fn start(self, connections: &Connections, heartbeat: &Arc<Heartbeat>) -> Running {
        let shared = Arc::new(Shared {
            role: self.role,
            pipe: self.pipe,
            limit: self.limit,
            lobby: self.lobby,
            keepalive: self.keepalive,
            connections: connections.clone(),
        });
        let stop = CancellationToken::new();
        let (stopped, heartbeat) = (stop.clone(), Arc::clone(heartbeat));
        let mut listeners = Listeners::new(self.listeners);
        let accepting = tokio::spawn(async move {
            let accepting = async {
                tokio::select! {
                    () = shared.accept(&mut listeners) => {}
                    () = stopped.cancelled() => {}
                }
            };
            heartbeat.beside(accepting).await;
            listeners
        });
        Running { stop, accepting }
    }
}

/// A server at work.
pub struct Running {
    stop: CancellationToken,
    accepting: JoinHandle<Listeners>,
}

impl Running {
    /// Accepts no more, and gives the sockets back. They still listen: as long as they live, the kernel queues connections.
    pub async fn stop(self) -> Vec<Listener> {
        self.stop.cancel();
        self.accepting.await.map_or_else(
            |panic| {
                error!(%panic, "an accept loop had died, and its sockets with it");
                Vec::new()
            },
            Listeners::into_inner,
        )
    }

    /// Ends the accept loop as a panic would.
    #[cfg(test)]
    pub(crate) async fn kill(&mut self) {
        self.accepting.abort();
        while !self.has_died() {
            tokio::task::yield_now().await;
        }
    }

    /// Whether the accept loop has died, and its sockets with it: new connections are refused.
    pub fn has_died(&self) -> bool {
        // It ends by itself only when it is stopped, and that consumes this.
        self.accepting.is_finished()
    }
}

/// What all accept loops of a server share.
struct Shared {
    role: Role,
    pipe: Arc<Pipe>,
    limit: Arc<Semaphore>,
    lobby: Arc<Lobby>,
    keepalive: Keepalive,
    connections: Connections,
}

impl Shared {
    /// Accepts connections for ever. One loop for all sockets of the pipe: a slot is taken before it is known where the next
    /// client comes, and with a loop for each socket, one where nobody comes could keep the last slot.
    async fn accept(&self, listeners: &mut Listeners) {
        loop {
            match self.role {
                Role::Initiator => {
                    // The slot comes before accept: a client beyond the limit waits in the kernel's queue, where it costs
                    // nothing, and not half-served in here.
                    let permit = self.reserve().await;
                    let (local, client) = listeners.accept(self.keepalive).await;
                    let connection =
                        Arc::clone(&self.pipe).initiate(local, client, Some(permit), &self.connections);
                    self.connections.spawn(connection);
                }
                Role::Responder => {
                    let (wire, from) = listeners.accept(self.keepalive).await;
                    let (visitor, limit) = (self.lobby.enter(), Arc::clone(&self.limit));
                    let connection =
                        Arc::clone(&self.pipe).respond(wire, from, visitor, limit, &self.connections);
                    self.connections.spawn(connection);
                }
            }
        }
    }

    async fn reserve(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.limit).try_acquire_owned() {
            return permit;
        }
        warn!(
            pipe = self.pipe.name.as_deref(),
            "as many connections as -n allows are open; more have to wait"
        );
        Arc::clone(&self.limit).acquire_owned().await.expect("the semaphore is never closed")
    }
}
