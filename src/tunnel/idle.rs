//! A tunnel between two connections (PROTOCOL.md, section 5.7): one has ended well in both directions, and the wire waits for the next.
//!
//! The initiator decides when there is a next one. The responder may give up an idle tunnel at any time and says so, so that an
//! initiator whose *Open* is on its way knows that no target has seen it.

use tokio::time::{Duration, Instant};

use super::{AnyTunnel, Tunnel, TunnelError, handshake, part};
use crate::proto::cipher::Suite;
use crate::proto::connection_info::ConnectionInfo;
use crate::proto::features::Features;
use crate::proto::frame::{AbortReason, First, Opener, Sealer, Spent};
use crate::proto::key::Fingerprint;
use crate::pump::buffer::Buffer;
use crate::pump::{Inbox, OpenPump, PumpError, SealPump};
use crate::stream::Stream;

/// How long after its handshake an initiator begins another connection over a tunnel: what a stolen image of the memory opens of
/// later connections ends with this.
pub const REUSED_FOR: Duration = Duration::from_secs(120);
/// How long a responder waits for one: longer, so that an initiator does not come too late, whatever the network takes.
pub const KEPT_FOR: Duration = Duration::from_secs(150);
/// The most connections over one tunnel: each moves the secrets on by one step, and a handshake brings fresh ones.
pub const USES_MAX: u32 = 1000;

/// What a tunnel has behind it.
#[derive(Clone, Copy)]
pub(super) struct History {
    /// When its handshake was complete.
    pub(super) established: Instant,
    /// The connections that it has carried, the one that runs included.
    pub(super) uses: u32,
}

impl History {
    pub(super) fn begin() -> Self {
        Self { established: Instant::now(), uses: 1 }
    }

    fn next(self) -> Self {
        Self { uses: self.uses + 1, ..self }
    }
}

/// An idle tunnel, with what its two directions begin with.
pub struct Idle<S, O> {
    wire: Stream,
    sealer: S,
    opener: O,
    /// What has come already of the next connection.
    inbox: Inbox,
    key: Fingerprint,
    cipher: Suite,
    features: Features,
    history: History,
    /// Since when it is idle: since the peer was heard of.
    since: Instant,
}

/// At an initiator, which begins the next connection.
pub type IdleInitiator = Idle<First<Sealer>, Opener>;
/// At a responder, which waits for it.
pub type IdleResponder = Idle<Sealer, First<Opener>>;

impl AnyTunnel {
    /// T7 at an initiator: None, unless both directions have ended well, and the tunnel may carry another connection.
    pub fn rest_at_initiator(self) -> Option<IdleInitiator> {
        let parts = self.into_parts()?;
        if !parts.inbox.is_empty() {
            return None;
        }
        let (sealer, opener) = (parts.sealer.renew_first(), parts.opener.renew());
        // An empty inbox may still have a buffer.
        let idle = Idle::new(parts.wire, sealer, opener, Inbox::new(), parts.kind, parts.history);
        idle.may_go_on(Duration::ZERO).then_some(idle)
    }

    /// The same at a responder.
    pub fn rest_at_responder(self) -> Option<IdleResponder> {
        let parts = self.into_parts()?;
        let (sealer, opener) = (parts.sealer.renew(), parts.opener.renew_first());
        Some(Idle::new(parts.wire, sealer, opener, parts.inbox, parts.kind, parts.history))
    }

    fn into_parts(self) -> Option<Parts> {
        let Self::Spipe(tunnel) = self else { return None };
        let Tunnel { wire, seal, open, key, cipher, features, history } = tunnel;
        if !features.have(Features::REUSE) {
            return None;
        }
        let (sealer, (opener, inbox)) = (seal.into_spent()?, open.into_spent()?);
        Some(Parts { wire, sealer, opener, inbox, kind: (key, cipher, features), history })
    }
}

/// What a tunnel leaves when both directions have ended well.
struct Parts {
    wire: Stream,
    sealer: Spent<Sealer>,
    opener: Spent<Opener>,
    inbox: Inbox,
    kind: (Fingerprint, Suite, Features),
    history: History,
}

impl<S, O> Idle<S, O> {
    fn new(
        wire: Stream,
        sealer: S,
        opener: O,
        inbox: Inbox,
        (key, cipher, features): (Fingerprint, Suite, Features),
        history: History,
    ) -> Self {
        Self { wire, sealer, opener, inbox, key, cipher, features, history, since: Instant::now() }
    }
}

impl IdleInitiator {
    /// Whether another connection may begin so much `later`, as far as its age and the number of its uses go.
    pub fn may_go_on(&self, later: Duration) -> bool {
        self.history.established.elapsed() + later < REUSED_FOR && self.history.uses < USES_MAX
    }

    /// Whether the responder has given it up, or the wire has ended.
    pub fn is_given_up(&self) -> bool {
        // Between connections, a responder says nothing else.
        self.wire.is_readable()
    }

    /// How long it is since the peer was heard of.
    pub fn idle_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// T1 of the next connection: as after a handshake, *Open* is sealed and not yet written.
    pub fn begin(self, info: &ConnectionInfo) -> Tunnel {
        let Self { wire, sealer, opener, inbox, key, cipher, features, history, since: _ } = self;
        let mut buffer = Buffer::take();
        let (sealer, length) = sealer.open(info, &mut buffer);
        Tunnel {
            wire,
            seal: SealPump::with_sealed(sealer, buffer, length),
            open: OpenPump::new(opener, inbox),
            key,
            cipher,
            features,
            history: history.next(),
        }
    }
}

/// What an idle tunnel of a responder has come to.
pub enum Next {
    /// The initiator begins another connection, and says this of it.
    Connection(Box<(Tunnel, ConnectionInfo)>),
    /// The initiator has closed it, or the network has.
    Left,
    /// It is given up, and the initiator is to be told.
    GivenUp(Parting),
}

impl IdleResponder {
    /// T2 of the next connection: waits for *Open*, at most until the tunnel is too old, or `give_up` ends.
    ///
    /// # Errors
    /// [`TunnelError::NotOpened`], for anything else that comes.
    pub async fn next(self, give_up: impl Future<Output = ()>) -> Result<Next, TunnelError> {
        let Self { mut wire, sealer, opener, inbox, key, cipher, features, history, since: _ } = self;
        let too_old = history.established + KEPT_FOR;
        let opened = {
            let (mut reader, _writer) = wire.split();
            tokio::select! {
                // A connection that has begun counts.
                biased;
                opened = handshake::await_open(&mut reader, opener, inbox, too_old) => Some(opened),
                () = give_up => None,
            }
        };
        match opened {
            Some(Ok((opener, info, inbox))) => {
                let (seal, open) = (SealPump::new(sealer), OpenPump::new(opener, inbox));
                let tunnel = Tunnel { wire, seal, open, key, cipher, features, history: history.next() };
                Ok(Next::Connection(Box::new((tunnel, info))))
            }
            Some(Err(TunnelError::NotOpened(PumpError::Truncated | PumpError::Wire(_)))) => Ok(Next::Left),
            Some(Err(TunnelError::NotOpenedInTime)) | None => {
                Ok(Next::GivenUp(Parting { wire, seal: SealPump::new(sealer) }))
            }
            Some(Err(error)) => Err(error),
        }
    }
}

/// An idle tunnel that is given up.
pub struct Parting {
    wire: Stream,
    seal: SealPump<Sealer>,
}

impl Parting {
    /// Tells the initiator that the tunnel is given up.
    pub async fn part(mut self) {
        part(&mut self.wire, &mut self.seal, AbortReason::Idle).await;
    }
}
