//! Which arrivals may become connections, and how many: for both roles, everything that decides it is here.
//!
//! ```text
//!  initiator:  Permit ─▶ Arrival ─▶ Admitted<Place>       clients beyond the limit wait in the kernel's queue
//!  responder:  Arrival ─▶ Admitted<LobbyPlace> ─▶ tunnel ─▶ Place      a stranger waits in the lobby; a peer that has
//!                                                                   proved the key waits for a permit
//! ```
//!
//! `docs/DESIGN.md`, "A new option", shows what to add here.

mod limit;
mod lobby;
mod place;

use std::num::NonZero;
use std::sync::Arc;

use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use self::limit::{Limit, Permit};
use self::lobby::Lobby;
pub use self::lobby::LobbyPlace;
pub use self::place::{Connections, Place};
use crate::addr::{Name, Sources};
use crate::listen::{Arrival, Listeners};
use crate::stats::Repeated;
use crate::stream::{Keepalive, Remote, Stream};

/// What a pipe admits: pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most connections at a time (`-n`). None is no limit.
    pub max_connections: Option<NonZero<usize>>,
}

impl Rules {
    /// `-n` by default, as spiped has it.
    pub const MAX_CONNECTIONS: usize = 100;
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_connections: NonZero::new(Self::MAX_CONNECTIONS) }
    }
}

/// A connection that may be here, with what it holds for that: a [`Place`], or a stranger's place in the lobby.
pub struct Admitted<P> {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub remote: Remote,
    /// Given back when this is dropped.
    pub place: P,
}

/// A peer that has proved the key, and no connection has ended in time to make room for it.
#[derive(Debug, Error)]
#[error("no connection ended in time to make room for this one; raise -n")]
pub struct Busy;

/// What the pipes at some sources have admitted. It belongs to the sources and not to a pipe, so that it outlives a reload.
pub(crate) struct Admissions {
    limit: Arc<Limit>,
    lobby: Arc<Lobby>,
}

impl Admissions {
    pub(crate) fn new(rules: &Rules) -> Self {
        Self { limit: Arc::new(Limit::new(rules.max_connections)), lobby: Arc::default() }
    }

    /// Has `rules` hold from now on, for what has been admitted as well.
    pub(crate) fn change(&self, rules: &Rules) {
        self.limit.set_max(rules.max_connections);
    }
}

/// Where the connections of one pipe come in.
pub struct Gate {
    /// For the log.
    name: Option<Name>,
    sources: Sources,
    keepalive: Keepalive,
    admissions: Arc<Admissions>,
    connections: Connections,
    saturation: Arc<Repeated>,
}

impl Gate {
    pub(crate) fn new(
        name: Option<Name>,
        sources: Sources,
        keepalive: Keepalive,
        admissions: Arc<Admissions>,
        connections: Connections,
    ) -> Self {
        let pipe = name.clone();
        let saturation = Repeated::new(move |_kind, more| {
            let pipe = pipe.as_ref().map(Name::as_str);
            warn!(
                pipe,
                more, "as many connections as -n allows were open at further times in the last minute"
            );
        });
        Self { name, sources, keepalive, admissions, connections, saturation }
    }

    /// An initiator's next client. Its permit comes before it is accepted: a client beyond the limit waits in the kernel's queue,
    /// where it costs nothing.
    pub async fn next_client(&self, listeners: &mut Listeners) -> Admitted<Place> {
        let permit = self.permit().await;
        let Arrival { stream, remote } = listeners.accept(self.keepalive).await;
        Admitted { stream, remote, place: self.connections.place(Some(permit)) }
    }

    /// A responder's next peer, which is a stranger until it has proved the key.
    pub async fn next_stranger(&self, listeners: &mut Listeners) -> Admitted<LobbyPlace> {
        let Arrival { stream, remote } = listeners.accept(self.keepalive).await;
        Admitted { stream, remote, place: self.admissions.lobby.enter() }
    }

    /// A place for a peer that has proved the key, as soon as there is one.
    ///
    /// # Errors
    /// [`Busy`], when there is none until `deadline`.
    pub async fn admit_peer(&self, deadline: Instant) -> Result<Place, Busy> {
        let permit = timeout_at(deadline, self.admissions.limit.take()).await.map_err(|_| Busy)?;
        Ok(self.connections.place(Some(permit)))
    }

    async fn permit(&self) -> Permit {
        if let Some(permit) = self.admissions.limit.try_take() {
            return permit;
        }
        self.saturation.event(Some("saturation"), || {
            warn!(
                pipe = self.name.as_ref().map(Name::as_str),
                source = %self.sources,
                "as many connections as -n allows are open; further clients wait"
            );
        });
        self.admissions.limit.take().await
    }
}
