//! One connection that carries, as others may see it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::addr::Target;
use crate::proto::cipher::Suite;
use crate::proto::connection_info::ConnectionId;
use crate::proto::key::Fingerprint;
use crate::stream::Remote;

/// The addresses of a connection's ends, by what each is; they mean the same in the log of both roles.
#[derive(Clone, Copy)]
pub enum Ends {
    /// An initiator dials its peer.
    Initiator {
        /// Where the client is.
        client: Remote,
        /// The responder that was dialed.
        target: Remote,
    },
    /// A responder is told of the client, where that has an address.
    Responder {
        /// Where the client is.
        client: Option<Remote>,
        /// The initiator.
        peer: Remote,
        /// The service that was dialed.
        target: Remote,
    },
}

/// One connection that carries. Idle, it has 200 bytes of this.
pub struct Live {
    /// What both ends call it.
    pub id: ConnectionId,
    /// Its ends.
    pub ends: Ends,
    /// Its target, as that was written.
    pub configured: Target,
    /// The key that both ends hold.
    pub key: Fingerprint,
    /// What seals it.
    pub cipher: Suite,
    /// When it was admitted.
    pub started: Instant,
    /// Its place among those that run, by which it can be told to end.
    pub place: usize,
    to_target: AtomicU64,
    from_target: AtomicU64,
}

impl Live {
    /// A connection that has carried nothing so far.
    pub fn new(
        id: ConnectionId,
        ends: Ends,
        configured: Target,
        (key, cipher): (Fingerprint, Suite),
        started: Instant,
        place: usize,
    ) -> Self {
        let (to_target, from_target) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { id, ends, configured, key, cipher, started, place, to_target, from_target }
    }

    /// Takes note how many payload bytes this end has sealed and opened so far. Two plain stores: only the connection's own task
    /// writes here.
    pub fn note(&self, sealed: u64, opened: u64) {
        let (to_target, from_target) = match self.ends {
            Ends::Initiator { .. } => (sealed, opened),
            Ends::Responder { .. } => (opened, sealed),
        };
        self.to_target.store(to_target, Ordering::Relaxed);
        self.from_target.store(from_target, Ordering::Relaxed);
    }

    /// Payload bytes so far: to the target, and from it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.to_target.load(Ordering::Relaxed), self.from_target.load(Ordering::Relaxed))
    }
}

/// The addresses of a connection, as people are told of them.
pub struct Addresses<'c> {
    /// Where the client is; a responder knows it from the initiator.
    pub client: Option<Remote>,
    /// The other end of the tunnel.
    pub peer: Dialed<'c>,
    /// What was dialed: by the initiator its peer, by the responder the service.
    pub target: Dialed<'c>,
    /// The target, as that was written.
    pub configured: &'c Target,
}

/// An address that was dialed; of a Unix-domain socket, that is what the configuration says.
#[derive(Clone, Copy)]
pub enum Dialed<'c> {
    /// An address of its own.
    Address(Remote),
    /// No other than this.
    AsConfigured(&'c Target),
}

impl fmt::Display for Dialed<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::AsConfigured(target) => target.fmt(formatter),
        }
    }
}

impl<'c> Addresses<'c> {
    /// Those of one connection.
    pub fn of(live: &'c Live) -> Self {
        let configured = &live.configured;
        let dialed = |remote| match remote {
            Remote::Process { .. } | Remote::Local => Dialed::AsConfigured(configured),
            Remote::Ip(..) => Dialed::Address(remote),
        };
        match live.ends {
            Ends::Initiator { client, target } => {
                let target = dialed(target);
                Self { client: Some(client), peer: target, target, configured }
            }
            Ends::Responder { client, peer, target } => {
                Self { client, peer: Dialed::Address(peer), target: dialed(target), configured }
            }
        }
    }
}
