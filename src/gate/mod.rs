//! Which arrivals may become connections, and how many: for both roles, everything that decides it is here.
//!
//! ```text
//!  initiator:  Permits ─▶ Arrival ─▶ Admitted<ClientPlace>       clients beyond the limits wait in the kernel's queue
//!  responder:  Arrival ─▶ Admitted<LobbyPlace> ─▶ tunnel ─▶ Place      a stranger waits in the lobby; a peer that has
//!                                                                   proved the key waits for its permits
//! ```
//!
//! Nothing is accepted that cannot be held: what a process has descriptors for is its `Budget`, and a burst beyond it stays in
//! the kernel's queue, where it costs nothing and nobody is refused.
//!
//! `docs/DESIGN.md`, "A new option", shows what to add here.

mod access;
mod budget;
mod by_key;
mod limit;
mod lobby;
mod per_source;
mod place;
mod proxied;
mod quota;
mod source;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use vec1::Vec1;

pub use self::access::{Access, TrustedProxies};
pub(crate) use self::budget::Budget;
use self::by_key::Entered;
pub(crate) use self::by_key::OfKey;
pub use self::by_key::{KeyRefused, KeyRules};
use self::limit::{Limit, Permit};
pub use self::lobby::{LobbyPlace, Stage};
use self::per_source::BySource;
pub use self::per_source::OfSource;
pub use self::place::{Connections, Cut, Place};
pub use self::proxied::{HeaderError, read_header};
use self::quota::Exceeded;
pub use self::quota::Quota;
use crate::addr::{Name, Sources};
use crate::listen::{Arrival, Listeners};
use crate::proto::key::Fingerprint;
use crate::stats::{Cause, OfPipe, Repeated};
use crate::stream::{Remote, Stream};

/// The most clients of an initiator that are being connected on at a time; the next ones wait in the kernel's queue. Beyond
/// this, a burst is not served sooner, since the processors are busy: each of its clients only waits longer for an answer, and
/// all run into their deadlines (`-o`) together. At a round trip of 0.2 s, 256 are 640 connections a second.
const ESTABLISHING: usize = 256;

/// How long a proxy that speaks for itself may take to close the connection, or to say something, before it is served: its health
/// checks close at once, and are not worth a connection to the target. Some wait for the service to speak first.
const CHECK: Duration = Duration::from_millis(100);

/// What a pipe admits: pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most connections at a time (`-n`). None is no limit.
    pub max_connections: Option<NonZero<usize>>,
    /// The most connections at a time that are shaking hands. None is what the processors can do with (an initiator), and what
    /// there are descriptors for (a responder, whose process has these places in common).
    pub max_handshakes: Option<NonZero<usize>>,
    /// Which addresses may connect.
    pub access: Access,
    /// What one source may have.
    pub per_source: Quota,
    /// What the holders of its keys may do, where that is said.
    pub of_keys: HashMap<Fingerprint, KeyRules>,
    /// If there are any, connections come from these, which say first who is behind them (`--accept-proxy`).
    pub proxies: Option<TrustedProxies>,
}

impl Rules {
    /// `-n` by default, as spiped has it.
    pub const MAX_CONNECTIONS: usize = 100;

    /// Whether both decide the same before it is known which key a connection has.
    pub(crate) fn agree_before_the_key(&self, other: &Self) -> bool {
        self.access == other.access && self.per_source == other.per_source && self.proxies == other.proxies
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_connections: NonZero::new(Self::MAX_CONNECTIONS),
            max_handshakes: None,
            access: Access::default(),
            per_source: Quota::default(),
            of_keys: HashMap::new(),
            proxies: None,
        }
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

/// A connection that may not be here, by where it comes from.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Denied(&'static str);

/// Why it is not known who a proxy brings, or it may not be here.
#[derive(Debug, Error)]
pub enum IdentifyError {
    /// The proxy does not say.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It wanted to know whether something listens.
    #[error("it was a health check of the proxy")]
    Check,
    /// It does, and the client may not be here.
    #[error("{0}")]
    Denied(#[from] Denied),
}

impl IdentifyError {
    /// Whether a proxy did no more than look whether something listens, as load balancers do every few seconds.
    pub fn is_health_check(&self) -> bool {
        matches!(self, Self::Check | Self::Header(HeaderError::Nothing))
    }
}

/// What a proxy has said of a connection, besides where that comes from.
pub struct Identified {
    /// What it was made to, as the proxy says.
    pub reached: Option<SocketAddr>,
    /// What else the proxy has said: fields of the PROXY protocol.
    pub fields: Vec<u8>,
    /// Counts at the source, as long as it lives.
    pub of_source: Option<OfSource>,
}

/// Why a peer that has proved a key is not admitted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotAdmitted {
    /// No connection has ended in time.
    #[error("no connection ended in time to make room for this one; raise -n")]
    Busy,
    /// It came over a tunnel that had carried others before, and where that comes from may not have one more.
    #[error(transparent)]
    Source(Denied),
    /// The holders of this key may not do this.
    #[error("{refused}")]
    Key {
        /// Which key.
        key: Fingerprint,
        /// Why.
        refused: KeyRefused,
    },
}

/// What a pipe has admitted. It is kept by what the pipe is known by, so that it outlives a reload.
pub(crate) struct Admissions {
    limit: Arc<Limit>,
    /// Pipes with the same sources have it in common: it counts before it is known which one a connection is for.
    by_source: Arc<BySource>,
    /// Clients of an initiator that are being connected on.
    establishing: Arc<Limit>,
    /// How many peers of a responder have proved the key and wait.
    waiting: watch::Sender<usize>,
}

impl Admissions {
    /// Those of a new pipe. `beside` are those of another one with the same sources, if there is one.
    pub(crate) fn new(rules: &Rules, beside: Option<&Self>) -> Self {
        let by_source = match beside {
            Some(other) => Arc::clone(&other.by_source),
            None => Arc::default(),
        };
        by_source.set_limits(rules.per_source);
        Self {
            limit: Arc::new(Limit::new(rules.max_connections)),
            by_source,
            establishing: Arc::new(Limit::new(establishing(rules))),
            waiting: watch::Sender::default(),
        }
    }

    /// Has `rules` hold from now on, for what has been admitted as well.
    pub(crate) fn change(&self, rules: &Rules) {
        self.limit.set_max(rules.max_connections);
        self.establishing.set_max(establishing(rules));
        self.by_source.set_limits(rules.per_source);
    }
}

fn establishing(rules: &Rules) -> Option<NonZero<usize>> {
    rules.max_handshakes.or(NonZero::new(ESTABLISHING))
}

/// A peer that waits for its permits, counted until this is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn count(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// What a connection holds as long as it runs.
pub struct Permits {
    key: Fingerprint,
    _limits: OfLimits,
    source: Option<OfSource>,
    /// None for a client, which has no key.
    _entered: Option<Entered>,
}

/// What a connection holds of the limits, before it is known where it comes from.
struct OfLimits {
    _pipe: Permit,
    _process: Permit,
}

/// What a client of an initiator holds while it is being connected on.
pub struct ClientPlace {
    /// Its place among all connections.
    pub place: Place,
    /// Its place among those that are being connected on. None where there is only one.
    pub establishing: Option<Establishing>,
}

/// To be dropped once the connection is established.
pub struct Establishing(#[expect(dead_code, reason = "it is there to be dropped")] Permit);

/// One idle tunnel of an initiator, counted until this is dropped.
pub struct KeptIdle {
    _permit: Permit,
    of_key: Arc<OfKey>,
}

impl KeptIdle {
    /// Whether the key of the tunnel has not expired.
    pub fn may_stay(&self) -> bool {
        self.of_key.check().is_ok()
    }
}

/// Where the connections of one pipe come in.
pub struct Gate {
    /// For the log.
    name: Option<Name>,
    sources: Sources,
    access: Access,
    proxies: Option<TrustedProxies>,
    /// Those that a responder accepts, or the one that an initiator proves.
    keys: Vec1<(Fingerprint, Arc<OfKey>)>,
    /// Whether other pipes have the same sources.
    is_shared: bool,
    admissions: Arc<Admissions>,
    connections: Connections,
    /// Where those count that arrive.
    arrivals: Arc<OfPipe>,
    saturation: Arc<Repeated>,
    denials: Arc<Repeated>,
}

impl Gate {
    pub(crate) fn new(
        name: Option<Name>,
        sources: Sources,
        rules: Rules,
        keys: Vec1<(Fingerprint, Arc<OfKey>)>,
        is_shared: bool,
        (admissions, arrivals): (Arc<Admissions>, Arc<OfPipe>),
        connections: Connections,
    ) -> Self {
        let Rules { access, proxies, .. } = rules;
        let pipe = name.clone();
        let denials = Repeated::new(move |kind, more| {
            warn!(
                pipe = pipe.as_ref().map(Name::as_str),
                kind, more, "denied: further connections in the last minute"
            );
        });
        let pipe = name.clone();
        let saturation = Repeated::new(move |kind, more| {
            warn!(
                pipe = pipe.as_ref().map(Name::as_str),
                kind, more, "clients waited at further times in the last minute"
            );
        });
        Self {
            name,
            sources,
            access,
            proxies,
            keys,
            is_shared,
            admissions,
            connections,
            arrivals,
            saturation,
            denials,
        }
    }

    /// An initiator's next client. Its permits come before it is accepted: a client beyond the limits waits in the kernel's queue,
    /// where it costs nothing.
    pub async fn next_client(&self, listeners: &mut Listeners) -> Admitted<ClientPlace> {
        let limits = self.limits().await;
        let establishing = self.admissions.establishing.take().await;
        let (key, of_key) = self.keys.first();
        let enter = |remote| match of_key.check() {
            Ok(()) => self.arrive(remote),
            // The peer would refuse it, and could not be told from one that fails.
            Err(_) => Err(Denied("the key of the pipe has expired (expires)")),
        };
        let (Arrival { stream, remote }, source) = self.next_arrival(listeners, enter, || {}).await;
        let permits = Permits { key: *key, _limits: limits, source, _entered: None };
        let place = self.connections.place(Some(permits));
        let place = ClientPlace { place, establishing: Some(Establishing(establishing)) };
        Admitted { stream, remote, place }
    }

    /// A responder's next peer, which is a stranger until it has proved the key.
    pub async fn next_stranger(&self, listeners: &mut Listeners) -> Admitted<LobbyPlace> {
        let lobby = self.connections.lobby();
        // As long as enough key holders wait, one more would wait as well, and longer.
        if !self.is_shared {
            let waiting_max = self.connections.waiting_max();
            let mut waiting = self.admissions.waiting.subscribe();
            let _sender_lives = waiting.wait_for(|waiting| *waiting < waiting_max).await.map(drop);
        }
        lobby.room().await;
        let (Arrival { stream, remote }, of_source) =
            self.next_arrival(listeners, |remote| self.arrive(remote), || lobby.turn_one_out()).await;
        Admitted { stream, remote, place: lobby.enter(remote, of_source, Some(self.arrivals.stranger())) }
    }

    /// The next connection that may be here by where it comes from. Nothing else is spent on one that may not: it is reset, and
    /// told nothing.
    async fn next_arrival(
        &self,
        listeners: &mut Listeners,
        enter: impl Fn(Remote) -> Result<Option<OfSource>, Denied>,
        relieve: impl Fn(),
    ) -> (Arrival, Option<OfSource>) {
        loop {
            let arrival = listeners.accept(&relieve).await;
            match enter(arrival.remote) {
                Ok(of_source) => {
                    self.arrivals.accept();
                    return (arrival, of_source);
                }
                Err(Denied(denied)) => {
                    arrival.stream.arm_reset();
                    self.arrivals.fail(Cause::Denied);
                    self.denials.event(Some(denied), || {
                        let (pipe, remote) = (self.name.as_ref().map(Name::as_str), arrival.remote);
                        self.arrivals.tell(Cause::Denied, format!("{remote}: {denied}"));
                        warn!(pipe, from = %remote, reason = denied, "denied");
                    });
                }
            }
            // One that is denied is cheap, and there may be many.
            tokio::task::consume_budget().await;
        }
    }

    /// Counts a connection at its source, if that is known already: proxies still have to say.
    ///
    /// # Errors
    /// Why it may not be here.
    fn arrive(&self, remote: Remote) -> Result<Option<OfSource>, Denied> {
        match &self.proxies {
            None => self.enter(remote),
            Some(proxies) if proxies.contain(remote) => Ok(None),
            Some(_) => Err(Denied("it is no proxy that may tell who is behind it (--trust-proxy)")),
        }
    }

    /// Counts a connection at its source.
    ///
    /// # Errors
    /// Why it may not be here.
    fn enter(&self, remote: Remote) -> Result<Option<OfSource>, Denied> {
        if !self.access.admits(remote) {
            return Err(Denied("its address may not connect (--allow, --deny)"));
        }
        self.admissions.by_source.enter(remote).map_err(|exceeded| match exceeded {
            Exceeded::Connections => {
                Denied("its source has as many connections as it may (--max-per-source)")
            }
            Exceeded::Rate => {
                Denied("its source makes new connections faster than it may (--rate-per-source)")
            }
        })
    }

    /// A place for an idle tunnel from `remote`. It counts at no source.
    pub fn rest(&self, remote: Remote) -> LobbyPlace {
        self.connections.lobby().rest(remote)
    }

    /// A place for a peer from `remote` that is told that this end gives up, until it has closed the connection.
    pub fn part(&self, remote: Remote) -> LobbyPlace {
        self.connections.lobby().part(remote)
    }

    /// Whether a tunnel of `key` may be idle.
    ///
    /// # Errors
    /// [`NotAdmitted::Key`].
    ///
    /// # Panics
    /// If the key is none of those that the gate was made for.
    pub fn may_rest(&self, key: Fingerprint) -> Result<(), NotAdmitted> {
        self.of_key(key).check().map_err(|refused| NotAdmitted::Key { key, refused })
    }

    fn of_key(&self, key: Fingerprint) -> &Arc<OfKey> {
        let of_key = self.keys.iter().find(|(other, _)| *other == key).map(|(_, of_key)| of_key);
        of_key.expect("a responder's gate has the keys that the responder accepts")
    }

    /// Counts another connection over a tunnel from `remote`, as if it had just arrived.
    ///
    /// # Errors
    /// [`NotAdmitted::Source`].
    pub fn arrive_again(&self, remote: Remote) -> Result<Option<OfSource>, NotAdmitted> {
        let of_source = self.enter(remote).map_err(NotAdmitted::Source)?;
        self.arrivals.accept();
        Ok(of_source)
    }

    /// A permit to keep an idle tunnel of an initiator, if there is one and its key has not expired.
    pub fn keep_idle(&self) -> Option<KeptIdle> {
        let (_, of_key) = self.keys.first();
        let permit = self.connections.idle().try_take()?;
        Some(KeptIdle { _permit: permit, of_key: Arc::clone(of_key) }).filter(KeptIdle::may_stay)
    }

    /// Whether connections come from proxies, which say first who is behind them.
    pub fn is_behind_proxies(&self) -> bool {
        self.proxies.is_some()
    }

    /// Has the proxy that has made the connection at `stream`, from `remote`, say who is behind it: that is `remote` from then on.
    ///
    /// # Errors
    /// [`IdentifyError`].
    pub async fn identify(
        &self,
        stream: &mut Stream,
        remote: &mut Remote,
    ) -> Result<Identified, IdentifyError> {
        let told = read_header(stream).await?;
        let reached = match told.addresses {
            Some((from, to)) => {
                *remote = from.into();
                Some(to)
            }
            // Who only looks whether something listens has closed by then.
            None if stream.ends_within(CHECK).await => return Err(IdentifyError::Check),
            None => None,
        };
        let of_source = self.enter(*remote)?;
        Ok(Identified { reached, fields: told.passed_on(), of_source })
    }

    /// A place for a peer at `remote` that has proved `key`, as soon as there is one. It has left the lobby with `of_source`.
    ///
    /// # Errors
    /// [`NotAdmitted`], when the key's holders may not have it, or there is none until `deadline`.
    ///
    /// # Panics
    /// If the key is none of those that the gate was made for.
    pub async fn admit_peer(
        &self,
        key: Fingerprint,
        remote: Remote,
        of_source: Option<OfSource>,
        deadline: Instant,
    ) -> Result<Place, NotAdmitted> {
        let refused = |refused| NotAdmitted::Key { key, refused };
        let of_key = self.of_key(key);
        // First, so that a key that has enough takes no place from the others, not even one to wait in.
        let entered = of_key.enter(remote).map_err(refused)?;
        // Where accepting cannot pause for a pipe that is full, because others have the same source.
        if self.is_shared && *self.admissions.waiting.borrow() >= self.connections.waiting_max() {
            return Err(NotAdmitted::Busy);
        }
        let _waiting = Waiting::count(&self.admissions.waiting);
        let limits = timeout_at(deadline, self.limits()).await.map_err(|_| NotAdmitted::Busy)?;
        let permits = Permits { key, _limits: limits, source: of_source, _entered: Some(entered) };
        let place = self.connections.place(Some(permits));
        // Who revokes the key meanwhile finds the place, or is found here.
        of_key.check().map_err(refused)?;
        Ok(place)
    }

    async fn limits(&self) -> OfLimits {
        let of_pipe = self.permit(
            &self.admissions.limit,
            "limit",
            "as many connections as -n allows are open; further clients wait",
        );
        let of_pipe = of_pipe.await;
        let of_process = self.permit(
            self.connections.limit(),
            "descriptors",
            "as many connections are open as the limit on open files allows; further clients wait",
        );
        OfLimits { _pipe: of_pipe, _process: of_process.await }
    }

    async fn permit(&self, limit: &Arc<Limit>, kind: &'static str, message: &'static str) -> Permit {
        if let Some(permit) = limit.try_take() {
            return permit;
        }
        self.saturation.event(Some(kind), || {
            warn!(pipe = self.name.as_ref().map(Name::as_str), source = %self.sources, "{message}");
        });
        limit.take().await
    }
}
