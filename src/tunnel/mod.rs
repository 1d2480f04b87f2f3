//! The handshake under its deadline: from a connected stream to a tunnel.

pub mod handshake;
pub mod idle;
mod spiped;

use std::borrow::Borrow;
use std::task::{Context, Poll};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout, timeout_at};
use tokio_util::either::Either;
use tracing::debug;

pub use self::handshake::{Door, TunnelError};
use self::idle::History;
pub use self::spiped::SpipedDoor;
use crate::proto::cipher::{Ciphers, Suite};
use crate::proto::connection_info::ConnectionInfo;
use crate::proto::features::{Abilities, Features};
use crate::proto::frame::{AbortReason, Opener, Sealer};
use crate::proto::framing::{Open, Seal};
use crate::proto::handshake::{Label, ResponderEstablished};
use crate::proto::key::{Fingerprint, Key};
use crate::proto::spiped::handshake::ForwardSecrecy;
use crate::proto::spiped::packet;
use crate::pump::buffer::Buffer;
use crate::pump::{self, Inbox, OpenPump, PumpError, SealPump, Told, Waiting};
use crate::stream::{ReadVectored, Reader, Stream};

/// How long a failing connection may take to tell its peer so. The peer finds out anyway when the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long an initiator waits for the responder to close first.
const PARTING: Duration = Duration::from_secs(2);

/// What both ends speak, and have to agree on besides the key: pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// spipe's own (`docs/PROTOCOL.md`).
    Spipe(Terms),
    /// spiped's (`docs/SPIPED.md`).
    Spiped(ForwardSecrecy),
}

impl Protocol {
    /// What may seal a connection, the preferred one first.
    pub fn suites(&self) -> Vec<Suite> {
        match self {
            Self::Spipe(terms) => terms.ciphers.iter().map(Suite::Frames).collect(),
            Self::Spiped(_) => vec![Suite::Packets],
        }
    }

    /// The same in words: `aes256gcm or chacha20poly1305`.
    pub fn describe_suites(&self) -> String {
        self.suites().iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    }
}

/// What both ends of spipe's own protocol have to agree on besides the key: pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What both ends share besides.
    pub label: Label,
    /// The transport ciphers that this end accepts.
    pub ciphers: Ciphers,
    /// Whether a tunnel may carry one connection after another.
    pub reuse: Reuse,
}

/// Whether a tunnel may carry one connection after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Yes, if the other end can do that, too.
    #[default]
    On,
    /// No (`--no-reuse`): each connection has a handshake of its own.
    Off,
}

impl Terms {
    /// The features that this end knows and has a use for.
    pub fn features(&self) -> Features {
        match self.reuse {
            Reuse::On => Features::KNOWN,
            Reuse::Off => Features::KNOWN.without(Features::REUSE),
        }
    }

    /// A door that `keys` open on these terms.
    pub fn door<'d, K>(&'d self, keys: &'d [K]) -> Door<'d, K> {
        let abilities = Abilities { ciphers: self.ciphers, features: self.features() };
        Door { keys, label: &self.label, abilities }
    }
}

/// What peers at one source can open, each with its keys. All are of one protocol, for a peer's first bytes do not tell which one it
/// speaks.
pub enum Doors<'d, K> {
    /// Of spipe's own protocol.
    Spipe(Vec<Door<'d, K>>),
    /// Of spiped's.
    Spiped(Vec<SpipedDoor<'d, K>>),
}

impl<'d, K> Doors<'d, K> {
    /// Of pipes with these protocols and keys.
    pub fn new(pipes: impl Iterator<Item = (&'d Protocol, &'d [K])>) -> Self {
        let (mut spipe, mut spiped) = (Vec::new(), Vec::new());
        for (protocol, keys) in pipes {
            match protocol {
                Protocol::Spipe(terms) => spipe.push(terms.door(keys)),
                Protocol::Spiped(secrecy) => spiped.push(SpipedDoor { keys, secrecy: *secrecy }),
            }
        }
        debug_assert!(spipe.is_empty() || spiped.is_empty(), "pipes that share a source have one protocol");
        if spiped.is_empty() { Self::Spipe(spipe) } else { Self::Spiped(spiped) }
    }
}

/// A tunnel: the peer has proved the key, and bytes can be sealed and opened. By default, one of spipe's own protocol.
pub struct Tunnel<S: Seal = Sealer, O = Opener> {
    /// The connection to the peer.
    pub wire: Stream,
    /// For what this end sends.
    pub seal: SealPump<S>,
    /// For what this end receives.
    pub open: OpenPump<O>,
    /// The key that both ends hold.
    pub key: Fingerprint,
    /// What seals it.
    pub cipher: Suite,
    /// What both ends agreed on besides.
    pub features: Features,
    history: History,
}

/// A tunnel of spiped's protocol.
pub type SpipedTunnel = Tunnel<packet::Sealer, packet::Opener>;

/// A tunnel of either protocol.
pub enum AnyTunnel {
    /// spipe's own.
    Spipe(Tunnel),
    /// spiped's.
    Spiped(SpipedTunnel),
}

impl From<Tunnel> for AnyTunnel {
    fn from(tunnel: Tunnel) -> Self {
        Self::Spipe(tunnel)
    }
}

/// Does the same with a tunnel of either protocol.
macro_rules! either {
    ($tunnel:expr, $name:ident => $what:expr) => {
        match $tunnel {
            AnyTunnel::Spipe($name) => $what,
            AnyTunnel::Spiped($name) => $what,
        }
    };
}

/// A peer that was answered.
pub struct Answered {
    door: usize,
    stage: AnsweredStage,
}

/// How far it has come.
enum AnsweredStage {
    /// Its message 1 may still be a recording.
    BeforeOpen { wire: Stream, established: Box<ResponderEstablished>, key: Fingerprint },
    /// In spiped's protocol, its proof covers our nonce: it is there now.
    Proved(Box<SpipedTunnel>),
}

impl Answered {
    /// Which door it has opened.
    pub fn door(&self) -> usize {
        self.door
    }

    /// Waits for *Open*: only the peer of now can have sealed it. Gives what the initiator says of its client, too.
    ///
    /// # Errors
    /// [`TunnelError`], when it has not come until `deadline`.
    pub async fn prove(self, deadline: Instant) -> Result<(AnyTunnel, ConnectionInfo), TunnelError> {
        let (mut wire, established, key) = match self.stage {
            AnsweredStage::BeforeOpen { wire, established, key } => (wire, *established, key),
            AnsweredStage::Proved(tunnel) => {
                return Ok((AnyTunnel::Spiped(*tunnel), ConnectionInfo::default()));
            }
        };
        let ResponderEstablished { sealer, opener, cipher, features } = established;
        let (opener, info, inbox) =
            handshake::await_open(&mut wire.split().0, opener, Inbox::new(), deadline).await?;
        let (seal, open, cipher) =
            (SealPump::new(sealer), OpenPump::new(opener, inbox), Suite::Frames(cipher));
        let history = History::begin();
        Ok((AnyTunnel::Spipe(Tunnel { wire, seal, open, key, cipher, features, history }), info))
    }
}

impl AnyTunnel {
    /// The initiator's side, as [`Tunnel::initiate`]. In spiped's protocol there are no features, and nothing is said of the client.
    ///
    /// # Errors
    /// [`TunnelError`], when the responder has not proved the key until `deadline`.
    pub async fn initiate(
        wire: Stream,
        key: &Key,
        protocol: &Protocol,
        features: Features,
        info: &ConnectionInfo,
        deadline: Instant,
    ) -> Result<Self, TunnelError> {
        match protocol {
            Protocol::Spipe(terms) => {
                Tunnel::initiate(wire, key, terms, features, info, deadline).await.map(Self::Spipe)
            }
            Protocol::Spiped(secrecy) => {
                // In a box: the future of every connection would have to be as large.
                Box::pin(spiped::initiate(wire, key, *secrecy, deadline)).await.map(Self::Spiped)
            }
        }
    }

    /// The responder's side as far as the peer's door is known: for spipe's own protocol, as far as message 2.
    ///
    /// # Errors
    /// [`TunnelError`], when nothing that opens one of `doors` has come until `deadline`.
    pub async fn answer(
        wire: Stream,
        doors: &Doors<'_, impl Borrow<Key>>,
        deadline: Instant,
    ) -> Result<Answered, TunnelError> {
        match doors {
            Doors::Spipe(doors) => Tunnel::answer(wire, doors, deadline).await,
            Doors::Spiped(doors) => {
                let (tunnel, door) = Box::pin(spiped::answer(wire, doors, deadline)).await?;
                Ok(Answered { door, stage: AnsweredStage::Proved(tunnel.into()) })
            }
        }
    }

    /// The key that both ends hold.
    pub fn key(&self) -> Fingerprint {
        either!(self, tunnel => tunnel.key)
    }

    /// What seals it.
    pub fn cipher(&self) -> Suite {
        either!(self, tunnel => tunnel.cipher)
    }

    /// Payload bytes that were sealed so far, and opened.
    pub fn bytes(&self) -> (u64, u64) {
        either!(self, tunnel => (tunnel.seal.bytes(), tunnel.open.bytes()))
    }

    /// Tells an initiator that wants to know that the target stands, before any byte of it.
    pub fn acknowledge(&mut self) {
        if let Self::Spipe(tunnel) = self
            && tunnel.features.have(Features::ACKNOWLEDGEMENT)
        {
            tunnel.seal.acknowledge();
        }
    }

    /// Carries bytes between `local` and the peer, as [`pump::run`].
    ///
    /// # Errors
    /// [`PumpError`].
    pub fn carry<'t, L: ReadVectored>(
        &'t mut self,
        local: (L, impl AsyncWrite + Unpin),
        watch: impl FnMut(&mut Context<'_>, Waiting<'_, L, Reader<'t>>) -> Poll<PumpError>,
    ) -> impl Future<Output = Result<(), PumpError>> {
        match self {
            Self::Spipe(Tunnel { seal, open, wire, .. }) => {
                Either::Left(pump::run(seal, open, local, wire.split(), watch))
            }
            Self::Spiped(Tunnel { seal, open, wire, .. }) => {
                Either::Right(pump::run(seal, open, local, wire.split(), watch))
            }
        }
    }

    /// Carries nothing, as [`Tunnel::probe`].
    ///
    /// # Errors
    /// [`PumpError`].
    pub async fn probe(&mut self, deadline: Instant) -> Result<(), PumpError> {
        either!(self, tunnel => tunnel.probe(deadline).await)
    }

    /// Waits until the peer has closed the connection, as [`Tunnel::await_close`].
    pub async fn await_close(&mut self) {
        either!(self, tunnel => tunnel.await_close().await);
    }

    /// Has the connection close in an orderly way, now that both directions have ended well.
    pub fn finish(&self) {
        match self {
            // It does so in any case: its peer knows by a frame whether a stream is complete.
            Self::Spipe(_) => {}
            Self::Spiped(tunnel) => tunnel.wire.disarm(),
        }
    }

    /// Whether it can carry another connection when this one has ended well.
    pub fn is_reusable(&self) -> bool {
        matches!(self, Self::Spipe(tunnel) if tunnel.features.have(Features::REUSE))
    }

    /// Ends when nobody is left to be carried, as far as that can be known without reading.
    pub async fn gone(&self) {
        match self {
            Self::Spipe(tunnel) => tunnel.gone().await,
            // A peer whose client has ended its stream has ended its side of the wire, and waits for an answer.
            Self::Spiped(tunnel) => tunnel.wire.gone().await,
        }
    }

    /// Tells the peer why this end gives up, as [`Tunnel::abort`].
    pub async fn abort(&mut self, reason: AbortReason) {
        either!(self, tunnel => tunnel.abort(reason).await);
    }
}

impl Tunnel {
    /// The initiator's side, which asks for `features`. *Open* is sealed and not yet written: it shares a write with the
    /// client's first bytes, so that they reach the target one round trip after the connection was established. It says `info`.
    ///
    /// # Errors
    /// [`TunnelError`], when the responder has not proved the key until `deadline`.
    pub async fn initiate(
        mut wire: Stream,
        key: &Key,
        terms: &Terms,
        features: Features,
        info: &ConnectionInfo,
        deadline: Instant,
    ) -> Result<Self, TunnelError> {
        let abilities = Abilities { ciphers: terms.ciphers, features };
        let established = {
            let (reader, writer) = wire.split();
            let mut wire = tokio::io::join(reader, writer);
            handshake::initiate(&mut wire, key, &terms.label, abilities, deadline).await?
        };
        // Until here, giving up is a reset. From here on, the peer is told why.
        wire.disarm();
        let mut buffer = Buffer::take();
        let (sealer, length) = established.sealer.open(info, &mut buffer);
        Ok(Self {
            wire,
            seal: SealPump::with_sealed(sealer, buffer, length),
            open: OpenPump::new(established.opener, Inbox::new()),
            key: key.fingerprint(),
            cipher: Suite::Frames(established.cipher),
            features: established.features,
            history: History::begin(),
        })
    }

    /// The responder's side as far as message 2.
    ///
    /// # Errors
    /// [`TunnelError`], when no message 1 that opens one of `doors` has come until `deadline`.
    async fn answer(
        mut wire: Stream,
        doors: &[Door<'_, impl Borrow<Key>>],
        deadline: Instant,
    ) -> Result<Answered, TunnelError> {
        let answered = {
            let (reader, writer) = wire.split();
            let mut wire = tokio::io::join(reader, writer);
            handshake::respond_at(&mut wire, doors, deadline).await?
        };
        let handshake::Answered { established, key, door } = answered;
        let stage = AnsweredStage::BeforeOpen { wire, established: established.into(), key };
        Ok(Answered { door, stage })
    }

    /// Ends when the peer has closed the connection, or it broke, so that nobody is left to be carried. Reads nothing: a peer
    /// that has both directions open never ends its side of the wire.
    pub async fn gone(&self) {
        self.wire.ended().await;
    }
}

impl<S: Seal, O: Open> Tunnel<S, O> {
    /// Carries nothing, from either side: with an initiator, *Open* has said that this is a probe, and with a responder, the target
    /// stands.
    ///
    /// # Errors
    /// [`PumpError`]: the peer says why its target cannot be reached, or has not answered until `deadline`.
    pub async fn probe(&mut self, deadline: Instant) -> Result<(), PumpError> {
        let Self { wire, seal, open, .. } = self;
        let nothing = (tokio::io::empty(), tokio::io::sink());
        let probing = pump::run(seal, open, nothing, wire.split(), pump::unwatched);
        timeout_at(deadline, probing)
            .await
            .unwrap_or_else(|_| Err(PumpError::Wire(std::io::ErrorKind::TimedOut.into())))
    }

    /// Waits until the peer has closed the connection, for a moment. Both directions have ended.
    ///
    /// The end that closes first keeps the connection's ports for a minute (TIME_WAIT), and where connections are dialed from,
    /// ports are few: 28,232 by default for each address that is dialed. So the end that dialed leaves it to the other.
    pub async fn await_close(&mut self) {
        let (mut reader, _writer) = self.wire.split();
        let _closed_or_not = timeout(PARTING, reader.read(&mut [0])).await;
    }

    /// Tells the peer why this end gives up, and waits a moment until it has closed the connection.
    pub async fn abort(&mut self, reason: AbortReason) {
        part(&mut self.wire, &mut self.seal, reason).await;
    }
}

/// Tells the peer at `wire` why this end gives up, and waits a moment until it has hung up: closing a socket with unread bytes would reset
/// it and could overtake the farewell.
async fn part(wire: &mut Stream, seal: &mut SealPump<impl Seal>, reason: AbortReason) {
    let (mut reader, mut writer) = wire.split();
    let farewell = async {
        if seal.abort(reason, &mut writer).await? == Told::Impossible {
            return Ok(Told::Impossible);
        }
        writer.shutdown().await.map_err(PumpError::Wire)?;
        let mut ignored = Buffer::take();
        while reader.read(&mut ignored).await.map_err(PumpError::Wire)? > 0 {}
        Ok::<_, PumpError>(Told::Yes)
    };
    match timeout(FAREWELL, farewell).await {
        Ok(Ok(Told::Impossible)) => wire.arm_reset(),
        Ok(Ok(Told::Yes)) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "the peer was gone before it could be told"),
    }
}
