//! Carrying the handshake over a stream, against a deadline.

use std::borrow::Borrow;
use std::{fmt, io};

use rand::TryRng;
use rand::rngs::SysRng;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::proto::connection_info::ConnectionInfo;
use crate::proto::features::Abilities;
use crate::proto::frame::{First, Opener};
use crate::proto::handshake::{
    HandshakeError, Initiator, InitiatorEstablished, InitiatorRandomness, Label, MESSAGE_1, MESSAGE_2,
    Responder, ResponderEstablished, ResponderRandomness,
};
use crate::proto::key::{Fingerprint, Key};
use crate::proto::spiped::handshake::ProofError;
use crate::pump::{Filled, Inbox, PumpError};

/// Why no connection was established. The text says what is likely, since the peer says nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The peer's message did not come, or not whole.
    #[error("{got} of {wanted} bytes of the other end's {awaited} came, then {ending}; {}", awaited.hint(*.got, ending))]
    Incomplete {
        /// Which message it is.
        awaited: Awaited,
        /// Bytes that came.
        got: usize,
        /// Bytes that the message has.
        wanted: usize,
        /// What came instead of the rest.
        #[source]
        ending: Ending,
    },
    /// The message came and is not what it should be.
    #[error(transparent)]
    Handshake(HandshakeError),
    /// The peer's message does not open.
    #[error(
        "the other end's handshake does not open with this key: the keys differ (compare 'spipe fingerprint'), or the \
         labels, or it is not spipe"
    )]
    Forged,
    /// In spiped's protocol, the peer's proof is not that of this key.
    #[error(
        "the other end's handshake does not authenticate with this key: the key files differ (compare them with sha256sum), or it \
         is not spiped"
    )]
    SpipedForged,
    /// In spiped's protocol, the peer's proof is authentic, and cannot be used.
    #[error(transparent)]
    SpipedProof(ProofError),
    /// This process was too busy to compute its part of the handshake in time.
    #[error("this end was too busy to finish the handshake in time (-o)")]
    ShortOfTime,
    /// Our message could not be sent.
    #[error("cannot send the handshake: {0}; {CLOSED_IN_SILENCE}")]
    Send(#[source] io::Error),
    /// The same in spiped's protocol.
    #[error("cannot send the handshake: {0}; {SPIPED_CLOSED}")]
    SpipedSend(#[source] io::Error),
    /// The peer held the key, and then did not open the connection in time.
    #[error("the other end shook hands and then opened no connection in time (-o)")]
    NotOpenedInTime,
    /// The peer held the key, and then did not open the connection.
    #[error("the other end shook hands and then opened no connection: {0}")]
    NotOpened(#[source] PumpError),
    /// The system's random generator failed.
    #[error("the system gives no random bytes: {0}")]
    Randomness(#[source] rand::rngs::SysError),
}

/// How reading ended too early.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Ending {
    /// The peer closed the connection.
    #[error("it closed the connection")]
    Closed,
    /// The deadline passed.
    #[error("nothing more in time (-o)")]
    TimedOut,
    /// The connection broke.
    #[error("the connection broke ({0})")]
    Broken(#[source] io::Error),
}

/// Why a peer that says nothing closes the connection. To one that has not proved the key it never says which.
const CLOSED_IN_SILENCE: &str = "its key or label differs (compare 'spipe fingerprint'), it has too many connections to shake \
                                 hands with, or it is not spipe; if it is, its log says which";

/// A message that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Message 1 or 2 of spipe's own protocol.
    Message,
    /// In spiped's protocol, the first message of either end.
    Nonce,
    /// In spiped's protocol, the second message of a responder.
    RespondersProof,
    /// The second message of an initiator.
    InitiatorsProof,
}

impl fmt::Display for Awaited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Message => "handshake",
            Self::Nonce => "first handshake message",
            Self::RespondersProof | Self::InitiatorsProof => "second handshake message",
        })
    }
}

impl Awaited {
    /// Whether a peer that has closed the connection before its first byte may just have looked whether something listens.
    pub fn is_first(self) -> bool {
        matches!(self, Self::Message | Self::Nonce)
    }

    /// What is likely.
    fn hint(self, got: usize, ending: &Ending) -> &'static str {
        match (self, got, ending) {
            (Self::Message, 0, Ending::Closed | Ending::Broken(_)) => CLOSED_IN_SILENCE,
            (Self::Message, 0, Ending::TimedOut) => "it is too busy to answer, or it is not spipe",
            (Self::Message, ..) => "it is not spipe, or the network is failing",
            (Self::Nonce | Self::RespondersProof, 0, Ending::Closed | Ending::Broken(_)) => SPIPED_CLOSED,
            (Self::InitiatorsProof, 0, Ending::Closed | Ending::Broken(_)) => {
                "it gave up, or it is not spiped"
            }
            (Self::Nonce | Self::RespondersProof | Self::InitiatorsProof, 0, Ending::TimedOut) => {
                "it is too busy to answer, or it is not spiped"
            }
            (Self::Nonce | Self::RespondersProof | Self::InitiatorsProof, ..) => {
                "it is not spiped, or the network is failing"
            }
        }
    }
}

impl From<ProofError> for TunnelError {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Forged => Self::SpipedForged,
            error => Self::SpipedProof(error),
        }
    }
}

/// The same of spiped's, which tells nobody either, and connects to its target before it knows its peer.
const SPIPED_CLOSED: &str = "its key differs (compare the key files with sha256sum), it cannot reach its target, it has as many \
                             connections as it may (-n), or it is not spiped";

impl From<HandshakeError> for TunnelError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Forged(_) => Self::Forged,
            error => Self::Handshake(error),
        }
    }
}

/// I1–I5: the initiator's side.
///
/// # Errors
/// [`TunnelError`].
pub async fn initiate(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    key: &Key,
    label: &Label,
    abilities: impl Into<Abilities>,
    deadline: Instant,
) -> Result<InitiatorEstablished, TunnelError> {
    // Scopes end as soon as they can: a future keeps room for all that lives at the same time.
    let initiator = {
        let (initiator, message) = start(key, label, abilities.into())?;
        send(wire, &message, deadline).await.map_err(TunnelError::Send)?;
        initiator
    };
    let mut message = [0; MESSAGE_2];
    receive(wire, &mut message, Awaited::Message, deadline).await?;
    Ok(initiator.finish(&message)?)
}

fn start(
    key: &Key,
    label: &Label,
    abilities: Abilities,
) -> Result<(Initiator, [u8; MESSAGE_1]), TunnelError> {
    let randomness = InitiatorRandomness::draw(random)?;
    Ok(Initiator::start(key, label, abilities, &randomness))
}

/// R1–R5: the responder's side; also tells which key the initiator holds.
///
/// Until message 1 has opened, not a byte is sent and nothing costly is computed.
///
/// # Errors
/// [`TunnelError`].
pub async fn respond(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    keys: &[impl Borrow<Key>],
    label: &Label,
    abilities: impl Into<Abilities>,
    deadline: Instant,
) -> Result<(ResponderEstablished, Fingerprint), TunnelError> {
    let door = Door { keys, label, abilities: abilities.into() };
    let Answered { established, key, .. } = respond_at(wire, &[door], deadline).await?;
    Ok((established, key))
}

/// What opens message 1, and what is agreed on then.
pub struct Door<'d, K> {
    /// Any of these keys …
    pub keys: &'d [K],
    /// … with this label.
    pub label: &'d Label,
    /// What this end can do.
    pub abilities: Abilities,
}

/// What is known once message 2 has been sent.
pub struct Answered {
    /// The frames that follow.
    pub established: ResponderEstablished,
    /// The key that the initiator holds.
    pub key: Fingerprint,
    /// Which door its message has opened.
    pub door: usize,
}

/// The same as [`respond`] where there are several doors.
///
/// # Errors
/// [`TunnelError`].
pub async fn respond_at(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    doors: &[Door<'_, impl Borrow<Key>>],
    deadline: Instant,
) -> Result<Answered, TunnelError> {
    let (message, established, key, door) = {
        let mut message = [0; MESSAGE_1];
        receive(wire, &mut message, Awaited::Message, deadline).await?;
        answer(&message, doors)?
    };
    send(wire, &message, deadline).await.map_err(TunnelError::Send)?;
    Ok(Answered { established: established?, key, door })
}

/// Message 2, to be sent in any case, what is established with it, by which key and at which door.
type Answer = ([u8; MESSAGE_2], Result<ResponderEstablished, HandshakeError>, Fingerprint, usize);

fn answer(message: &[u8; MESSAGE_1], doors: &[Door<'_, impl Borrow<Key>>]) -> Result<Answer, TunnelError> {
    let pairs = doors.iter().map(|door| (door.keys, door.label));
    let (responder, door) = Responder::read_one_of(message, pairs)?;
    let key = responder.fingerprint();
    let randomness = ResponderRandomness::draw(random)?;
    let (message, established) = responder.reply(doors[door].abilities, &randomness);
    Ok((message, established, key, door))
}

/// T2: waits for the initiator's *Open*. Only then is it certain that the peer is there now, and not a recording of its
/// message 1. `inbox` has what has come already, and what has come behind it stays there.
///
/// # Errors
/// [`TunnelError::NotOpened`].
pub async fn await_open(
    wire: &mut (impl AsyncRead + Unpin),
    opener: First<Opener>,
    mut inbox: Inbox,
    deadline: Instant,
) -> Result<(Opener, ConnectionInfo, Inbox), TunnelError> {
    let frame = async {
        loop {
            if let Some(frame) = inbox.next_frame::<Opener>()? {
                return Ok(frame);
            }
            match std::future::poll_fn(|context| inbox.poll_fill::<Opener>(context, wire)).await? {
                Filled::Some => {}
                Filled::EndOfStream => return Err(PumpError::Truncated),
            }
        }
    };
    let frame = timeout_at(deadline, frame)
        .await
        .map_err(|_| TunnelError::NotOpenedInTime)?
        .map_err(TunnelError::NotOpened)?;
    let (opener, info) =
        opener.open(&mut inbox.bytes()[frame]).map_err(|error| TunnelError::NotOpened(error.into()))?;
    Ok((opener, info, inbox))
}

fn random(secret: &mut [u8]) -> Result<(), TunnelError> {
    SysRng.try_fill_bytes(secret).map_err(TunnelError::Randomness)
}

pub(super) async fn send(
    wire: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
    deadline: Instant,
) -> io::Result<()> {
    let sent = timeout_at(deadline, wire.write_all(message)).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

pub(super) async fn receive(
    wire: &mut (impl AsyncRead + Unpin),
    message: &mut [u8],
    awaited: Awaited,
    deadline: Instant,
) -> Result<(), TunnelError> {
    let wanted = message.len();
    let mut got = 0;
    while got < wanted {
        let ending = match timeout_at(deadline, wire.read(&mut message[got..])).await {
            Ok(Ok(0)) => Ending::Closed,
            Ok(Ok(count)) => {
                got += count;
                continue;
            }
            Ok(Err(error)) => Ending::Broken(error),
            Err(_) => Ending::TimedOut,
        };
        return Err(TunnelError::Incomplete { awaited, got, wanted, ending });
    }
    Ok(())
}
