//! The handshake under its deadline: from a connected stream to a tunnel.

pub mod handshake;

use std::borrow::Borrow;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout, timeout_at};
use tracing::debug;

pub use self::handshake::{Door, TunnelError};
use crate::proto::cipher::{Cipher, Ciphers};
use crate::proto::connection_info::ConnectionInfo;
use crate::proto::features::{Abilities, Features};
use crate::proto::frame::{AbortReason, Opener, Sealer};
use crate::proto::handshake::{Label, ResponderEstablished};
use crate::proto::key::{Fingerprint, Key};
use crate::pump::buffer::Buffer;
use crate::pump::{self, Inbox, OpenPump, PumpError, SealPump, Told};
use crate::stream::Stream;

/// How long a failing connection may take to tell its peer so. The peer finds out anyway when the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long an initiator waits for the responder to close first.
const PARTING: Duration = Duration::from_secs(2);

/// What both ends have to agree on besides the key: pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What both ends share besides.
    pub label: Label,
    /// The transport ciphers that this end accepts.
    pub ciphers: Ciphers,
}

impl Terms {
    /// A door that `keys` open on these terms.
    pub fn door<'d, K>(&'d self, keys: &'d [K]) -> Door<'d, K> {
        let abilities = Abilities { ciphers: self.ciphers, features: Features::KNOWN };
        Door { keys, label: &self.label, abilities }
    }
}

/// A tunnel: the peer has proved the key, and frames can be sealed and opened.
pub struct Tunnel {
    /// The connection to the peer.
    pub wire: Stream,
    /// For the frames that this end sends.
    pub seal: SealPump<Sealer>,
    /// For the frames that this end receives.
    pub open: OpenPump<Opener>,
    /// The key that both ends hold.
    pub key: Fingerprint,
    /// The cipher that both ends chose.
    pub cipher: Cipher,
    /// What both ends agreed on besides.
    pub features: Features,
}

/// A peer that was answered. Its message 1 may still be a recording.
pub struct Answered {
    wire: Stream,
    established: ResponderEstablished,
    key: Fingerprint,
    door: usize,
}

impl Answered {
    /// Which door its message 1 has opened.
    pub fn door(&self) -> usize {
        self.door
    }

    /// Waits for *Open*: only the peer of now can have sealed it. Gives what the initiator says of its client, too.
    ///
    /// # Errors
    /// [`TunnelError`], when it has not come until `deadline`.
    pub async fn prove(self, deadline: Instant) -> Result<(Tunnel, ConnectionInfo), TunnelError> {
        let Self { mut wire, established, key, .. } = self;
        let ResponderEstablished { sealer, opener, cipher, features } = established;
        let (opener, info, inbox) = handshake::await_open(&mut wire.split().0, opener, deadline).await?;
        let (seal, open) = (SealPump::new(sealer), OpenPump::new(opener, inbox));
        Ok((Tunnel { wire, seal, open, key, cipher, features }, info))
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
            cipher: established.cipher,
            features: established.features,
        })
    }

    /// The responder's side as far as message 2.
    ///
    /// # Errors
    /// [`TunnelError`], when no message 1 that opens one of `doors` has come until `deadline`.
    pub async fn answer(
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
        Ok(Answered { wire, established, key, door })
    }

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

    /// Ends when the peer has closed the connection, or it broke, so that nobody is left to be carried. Reads nothing: a peer
    /// that has both directions open never ends its side of the wire.
    pub async fn gone(&self) {
        self.wire.ended().await;
    }

    /// Tells the peer why this end gives up, and waits until it has hung up: closing a socket with unread bytes would reset
    /// it and could overtake the farewell.
    pub async fn abort(&mut self, reason: AbortReason) {
        let Self { wire, seal, .. } = self;
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
}
