//! The accept loop of one pipe, and a stop that loses no client.

use std::sync::Arc;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::error;
use vec1::Vec1;

use super::registry::Registry;
use super::spec::{Group, Role, Spec};
use crate::connection::{Checks, Front, Initiator, Responder};
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
    /// Starts to accept at `listeners` what the pipes of `group` say. The connections live on when this is stopped.
    pub(super) fn start(group: Group, listeners: Vec<Listener>, registry: &Registry) -> Self {
        let keepalive = group.first().common.keepalive;
        let reception = Reception::new(group, registry);
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

    /// What tells later whether the loop has ended.
    pub(super) fn handle(&self) -> AbortHandle {
        self.task.abort_handle()
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

/// What becomes of the arrivals at the sources of one pipe, or of several responders.
struct Reception {
    /// That of the pipe; of the first one, if there are several: what it decides is the same for all.
    gate: Arc<Gate>,
    life: Life,
    connections: Connections,
    _checks: Vec<Checks>,
}

enum Life {
    Initiator(Arc<Initiator>),
    Responders(Arc<Front>),
}

impl Reception {
    fn new(group: Group, registry: &Registry) -> Self {
        let connections = registry.connections.clone();
        let (mut gates, mut responders, mut checks) = (Vec::new(), Vec::new(), Vec::new());
        let is_shared = group.is_shared();
        let unknown = registry.unknown(&group);
        for (identity, Spec { sources, rules, role, common, permissions: _ }) in group.into_identified() {
            if !is_shared {
                registry.rename(&identity);
            }
            let admissions = registry.admissions(&identity, &rules);
            let upstream = registry.upstream(&identity, &common);
            let keys = registry.keys(&role, &rules);
            let stats = registry.stats(&identity);
            let arrivals = Arc::clone(unknown.as_ref().unwrap_or(&stats));
            let (name, connections) = (common.name.clone(), connections.clone());
            let gate =
                Gate::new(name, sources, rules, keys, is_shared, (admissions, arrivals), connections.clone());
            let gate = Arc::new(gate);
            match role {
                Role::Initiator { key, spares } => {
                    let initiator = Arc::new(Initiator::new(
                        common,
                        key,
                        Some(Arc::clone(&gate)),
                        upstream,
                        stats,
                        spares,
                    ));
                    checks.push(initiator.checks());
                    initiator.make_ready();
                    return Self { gate, life: Life::Initiator(initiator), connections, _checks: checks };
                }
                Role::Responder { keys } => {
                    let responder =
                        Arc::new(Responder::new(common, keys, Arc::clone(&gate), upstream, stats));
                    checks.push(responder.checks());
                    responders.push(responder);
                    gates.push(gate);
                }
            }
        }
        let responders = Vec1::try_from_vec(responders).expect("a group has a pipe");
        let unknown = unknown.unwrap_or_else(|| responders.first().stats());
        let life = Life::Responders(Arc::new(Front::new(responders, unknown)));
        let gate = gates.swap_remove(0);
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
                Life::Responders(front) => {
                    let stranger = self.gate.next_stranger(listeners).await;
                    self.connections.spawn(Arc::clone(front).carry(stranger));
                }
            }
            if accepted.is_multiple_of(ACCEPTED_AT_A_TIME) {
                tokio::task::yield_now().await;
            }
        }
    }
}
