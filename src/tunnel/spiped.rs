//! The handshake of spiped's protocol over a stream, against a deadline.

use std::borrow::Borrow;
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::LazyLock;

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::handshake::{Awaited, TunnelError, receive, send};
use super::idle::History;
use super::{SpipedTunnel, Tunnel};
use crate::proto::cipher::Suite;
use crate::proto::features::Features;
use crate::proto::key::{Fingerprint, Key};
use crate::proto::spiped::group::{Half, Public, RANDOM, Shared};
use crate::proto::spiped::handshake::{
    Crossed, End, Established, ForwardSecrecy, NONCE, PROOF, ProofError, Verified,
};
use crate::pump::{Inbox, OpenPump, SealPump};
use crate::stream::Stream;

/// What opens a connection at a responder.
pub struct SpipedDoor<'d, K> {
    /// Any of these keys.
    pub keys: &'d [K],
    /// What is asked of the peer besides.
    pub secrecy: ForwardSecrecy,
}

/// The initiator's side.
pub(super) async fn initiate(
    mut wire: Stream,
    key: &Key,
    secrecy: ForwardSecrecy,
    deadline: Instant,
) -> Result<SpipedTunnel, TunnelError> {
    let established = {
        let (reader, writer) = wire.split();
        let mut wire = tokio::io::join(reader, writer);
        let our = nonce()?;
        send(&mut wire, &our, deadline).await.map_err(TunnelError::SpipedSend)?;
        let mut peers = [0; NONCE];
        // The half needs nothing of the peer, so it is made while the nonces are on their way.
        let (half, received) =
            tokio::join!(half(secrecy, deadline), receive(&mut wire, &mut peers, Awaited::Nonce, deadline));
        received?;
        let half = half?;
        let crossed = Crossed::new(key, End::Initiator, &our, &peers);
        send(&mut wire, &crossed.prove(&half), deadline).await.map_err(TunnelError::SpipedSend)?;
        let mut proof = [0; PROOF];
        receive(&mut wire, &mut proof, Awaited::RespondersProof, deadline).await?;
        let verified = crossed.verify(&proof, secrecy)?;
        let shared = agree(half, verified.theirs(), deadline).await?;
        verified.finish(&shared)
    };
    Ok(tunnel(wire, established, key.fingerprint()))
}

/// The responder's side, and which of `doors` the peer has opened.
///
/// The peer has to speak first, so that a stranger that says nothing is told nothing. That costs no time: an initiator sends its
/// nonce without waiting for ours.
pub(super) async fn answer(
    mut wire: Stream,
    doors: &[SpipedDoor<'_, impl Borrow<Key>>],
    deadline: Instant,
) -> Result<(SpipedTunnel, usize), TunnelError> {
    let (established, key, door) = {
        let (reader, writer) = wire.split();
        let mut wire = tokio::io::join(reader, writer);
        let mut peers = [0; NONCE];
        receive(&mut wire, &mut peers, Awaited::Nonce, deadline).await?;
        let our = nonce()?;
        send(&mut wire, &our, deadline).await.map_err(TunnelError::SpipedSend)?;
        let mut proof = [0; PROOF];
        receive(&mut wire, &mut proof, Awaited::InitiatorsProof, deadline).await?;
        // Nothing costly is computed before it is known that the peer holds the key.
        let Opened { verified, key, door } = open(doors, &our, &peers, &proof)?;
        let half = half(doors[door].secrecy, deadline).await?;
        // The peer computes while we do.
        send(&mut wire, &verified.prove(&half), deadline).await.map_err(TunnelError::SpipedSend)?;
        let shared = agree(half, verified.theirs(), deadline).await?;
        (verified.finish(&shared), key, door)
    };
    Ok((tunnel(wire, established, key), door))
}

/// What a peer's proof has opened.
struct Opened<'k> {
    verified: Verified<'k>,
    key: Fingerprint,
    door: usize,
}

/// The first of `doors` that the peer's proof opens.
fn open<'d>(
    doors: &'d [SpipedDoor<'_, impl Borrow<Key>>],
    our: &[u8; NONCE],
    peers: &[u8; NONCE],
    proof: &[u8; PROOF],
) -> Result<Opened<'d>, ProofError> {
    for (door, SpipedDoor { keys, secrecy }) in doors.iter().enumerate() {
        for key in keys.iter().map(Borrow::borrow) {
            match Crossed::new(key, End::Responder, our, peers).verify(proof, *secrecy) {
                Ok(verified) => return Ok(Opened { verified, key: key.fingerprint(), door }),
                Err(ProofError::Forged) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Err(ProofError::Forged)
}

/// From here on, only a reset tells the peer that something has failed, also when this process is killed.
fn tunnel(wire: Stream, Established { sealer, opener }: Established, key: Fingerprint) -> SpipedTunnel {
    wire.arm_reset();
    let (seal, open) = (SealPump::new(sealer), OpenPump::new(opener, Inbox::new()));
    let (features, history) = (Features::NONE, History::begin());
    Tunnel { wire, seal, open, key, cipher: Suite::Packets, features, history }
}

fn nonce() -> Result<[u8; NONCE], TunnelError> {
    let mut nonce = [0; NONCE];
    SysRng.try_fill_bytes(&mut nonce).map_err(TunnelError::Randomness)?;
    Ok(nonce)
}

/// Our half of the exchange.
async fn half(secrecy: ForwardSecrecy, deadline: Instant) -> Result<Half, TunnelError> {
    if secrecy == ForwardSecrecy::Omitted {
        return Ok(Half::none());
    }
    let mut random = Box::new(Zeroizing::new([0; RANDOM]));
    SysRng.try_fill_bytes(&mut **random).map_err(TunnelError::Randomness)?;
    compute(move || Half::new(&random), deadline).await
}

/// What both halves give.
async fn agree(half: Half, theirs: Public, deadline: Instant) -> Result<Shared, TunnelError> {
    if half.is_none() || theirs.is_one() {
        return Ok(half.agree(&theirs));
    }
    compute(move || half.agree(&theirs), deadline).await
}

/// As many computations at a time as there are threads for connections, so that a burst of handshakes leaves half of the processor
/// to the connections that carry.
static TURNS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(Handle::current().metrics().num_workers()));

/// Computes beside the threads that serve connections: an exponentiation takes 0.2 to 0.5 ms, on small processors ten times that.
async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    deadline: Instant,
) -> Result<T, TunnelError> {
    let turn = timeout_at(deadline, TURNS.acquire()).await.map_err(|_| TunnelError::ShortOfTime)?;
    let turn = turn.expect("nobody closes it");
    let computing = spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    match computing.await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime shuts down, and this task with it.
            Err(_) => pending().await,
        },
    }
}
