//! The accept loop of one pipe, and a stop that loses no client.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::registry::Registry;
use super::spec::{Role, Spec};
use crate::connection::{Checks, Initiator, Responder};
use crate::gate::{Connections, Gate};
use crate::listen::{Listener, Listeners};

/// Connections that are accepted in a burst before those that were accepted have their turn. With 1, each of them would cost a
/// wake-up of another thread.
const ACCEPTED_AT_A_TIME: u64 = 8;

/// A pipe that accepts connections, in the background.
pub(super) struct Accepting {
    stop: CancellationToken,
    task: JoinHandle<Listeners>,
}

impl Accepting {
    /// Starts to accept at `listeners` what `spec` says. The connections live on when this is stopped.
    pub(super) fn start(spec: Spec, listeners: Vec<Listener>, registry: &Registry) -> Self {
        let keepalive = spec.common.keepalive;
        let reception = Reception::new(spec, registry);
        let stop = CancellationToken::new();
        let (stopped, heartbeat) = (stop.clone(), Arc::clone(&registry.heartbeat));
        let mut listeners = Listeners::new(listeners, keepalive);
        let task = tokio::spawn(async move {
            let accepting = async {
                tokio::select! {
                    () = reception.receive(&mut listeners) => {}
                    () = stopped.cancelled() => {}
                }
            };
            heartbeat.beside(accepting).await;
            listeners
        });
        Self { stop, task }
    }

    /// Accepts no more, and gives the sockets back. They still listen: as long as they live, the kernel queues connections.
    pub(super) async fn stop(self) -> Vec<Listener> {
        self.stop.cancel();
        self.task.await.map_or_else(
            |panic| {
                error!(%panic, "an accept loop had died, and its sockets with it");
                Vec::new()
            },
            Listeners::into_inner,
        )
    }

    /// Whether the accept loop has died, and its sockets with it: new connections are refused.
    pub(super) fn has_died(&self) -> bool {
        // It ends by itself only when it is stopped, and that consumes this.
        self.task.is_finished()
    }

    /// Ends the accept loop as a panic would.
    #[cfg(test)]
    pub(super) async fn kill(&mut self) {
        self.task.abort();
        while !self.has_died() {
            tokio::task::yield_now().await;
        }
    }
}

/// What becomes of the arrivals at one pipe.
struct Reception {
    gate: Arc<Gate>,
    life: Life,
    connections: Connections,
    _checks: Checks,
}

enum Life {
    Initiator(Arc<Initiator>),
    Responder(Arc<Responder>),
}

impl Reception {
    fn new(spec: Spec, registry: &Registry) -> Self {
        let Spec { sources, rules, role, common, permissions: _ } = spec;
        let admissions = registry.admissions(&sources, &rules);
        let connections = registry.connections.clone();
        let name = common.name.clone();
        let upstream = registry.upstream(&sources, &common);
        let gate = Arc::new(Gate::new(name, sources, rules.access, admissions, connections.clone()));
        let usage = Arc::clone(&registry.usage);
        let (life, checks) = match role {
            Role::Initiator { key } => {
                let initiator = Arc::new(Initiator::new(common, key, upstream, usage));
                let checks = initiator.checks();
                (Life::Initiator(initiator), checks)
            }
            Role::Responder { keys } => {
                let responder = Arc::new(Responder::new(common, keys, Arc::clone(&gate), upstream, usage));
                let checks = responder.checks();
                (Life::Responder(responder), checks)
            }
        };
        Self { gate, life, connections, _checks: checks }
    }

    /// Goes on for ever. One loop for all sockets of the pipe: an initiator's permit is taken before it is known where the next
    /// client comes, and with a loop for each socket, one where no client comes could keep the last permit.
    ///
    /// After a few, the accepted connections are served before the next one is accepted: so this loop does not outrun the handshakes.
    async fn receive(&self, listeners: &mut Listeners) {
        for accepted in 1_u64.. {
            match &self.life {
                Life::Initiator(initiator) => {
                    let client = self.gate.next_client(listeners).await;
                    self.connections.spawn(Arc::clone(initiator).carry(client));
                }
                Life::Responder(responder) => {
                    let stranger = self.gate.next_stranger(listeners).await;
                    self.connections.spawn(Arc::clone(responder).carry(stranger));
                }
            }
            if accepted.is_multiple_of(ACCEPTED_AT_A_TIME) {
                tokio::task::yield_now().await;
            }
        }
    }
}
