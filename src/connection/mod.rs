//! One connection, from accept to close.
//!
//! ```text
//!  initiator:  local accepted ─▶ dial the responder ─▶ handshake ─▶ Open ─▶ pumps
//!  responder:  wire accepted  ─▶ handshake ─▶ Open ─▶ dial the target      ─▶ pumps
//! ```

pub mod running;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::addr::{Endpoint, Target};
use crate::connection::running::{Connections, Counted};
use crate::gate::lobby::Visitor;
use crate::proto::cipher::{Cipher, Ciphers};
use crate::proto::connection_info::ConnectionInfo;
use crate::proto::frame::{AbortReason, Opener, Sealer};
use crate::proto::handshake::Label;
use crate::proto::key::{Fingerprint, Key};
use crate::pump::buffer::Buffer;
use crate::pump::{self, Inbox, OpenPump, PumpError, SealPump, Told};
use crate::stats::Usage;
use crate::stream::Stream;
use crate::tunnel::{self, Failure};
use crate::upstream::Dialer;

/// How long a failing connection may take to tell its peer so. The peer finds out anyway when the connection closes.
const FAREWELL: Duration = Duration::from_secs(1);

/// What all connections of one pipe have in common.
pub struct Pipe {
    /// What it is called in the log, where there are several.
    pub name: Option<String>,
    /// What both ends share: a responder accepts any of them, an initiator uses the first. Never empty.
    pub keys: Vec<Arc<Key>>,
    /// What both ends share besides.
    pub label: Label,
    /// The transport ciphers that this end accepts.
    pub ciphers: Ciphers,
    /// Connects to the responder, or to the service.
    pub dialer: Dialer,
    /// How long connecting and the handshake may take together.
    pub timeout: Duration,
    /// Where its connections are counted.
    pub usage: Arc<Usage>,
}

/// Why a connection never carried anything.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The responder, or the service, cannot be reached.
    #[error("cannot connect to {target}: {error}")]
    Dial {
        /// Where.
        target: Target,
        /// Why.
        error: io::Error,
    },
    /// The peer did not prove the key, or did not go on.
    #[error(transparent)]
    Handshake(#[from] Failure),
    /// The peer did, but there are connections enough.
    #[error("no connection ended in time to make room for this one; raise -n")]
    Busy,
    /// A stranger had to make room for newer ones.
    #[error("too many connections are waiting to shake hands, and this one waited longest")]
    TurnedOut,
    /// This process is stopping, and waits no longer.
    #[error("spipe was stopped before the connection was established")]
    Stopped,
}

/// Why a connection failed, for whoever has it as its only one; the log has it in any case.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// Before it carried anything.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// While it did.
    #[error(transparent)]
    Pump(#[from] PumpError),
}

/// A connection that is ready to carry bytes. Always in a box: a future has room for each place that a value moves through.
struct Ready {
    local: Stream,
    wire: Stream,
    seal: SealPump<Sealer>,
    open: OpenPump<Opener>,
    target_is: Towards,
    started: Instant,
    peer: Peer,
    key: Fingerprint,
    cipher: Cipher,
    /// What the initiator told of the client: a responder's news.
    client: Option<Peer>,
    /// Its place among the connections that there may be.
    counted: Counted,
}

/// On which side of this end the target is.
#[derive(Clone, Copy)]
enum Towards {
    Wire,
    Local,
}

/// Where a connection comes from, for the log.
#[derive(Clone, Copy)]
struct Peer(Option<SocketAddr>);

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => Endpoint::Ip(address).fmt(formatter),
            None => formatter.write_str("local"),
        }
    }
}

impl Pipe {
    /// The initiator's side of one connection; `client` is where `local` comes from. The connection keeps `permit`.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn initiate(
        self: Arc<Self>,
        local: Stream,
        client: Option<SocketAddr>,
        permit: Option<OwnedSemaphorePermit>,
        connections: &Connections,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (pipe, counted) = (Arc::clone(&self), connections.count());
        if let Some(permit) = permit {
            counted.hold(permit);
        }
        let setting_up = async move {
            let ready = pipe.set_up_initiator(local, client, counted).await;
            ready.inspect_err(|error| pipe.log_failure("failed", Peer(client), error))
        };
        self.set_up_and_carry(setting_up)
    }

    async fn set_up_initiator(
        &self,
        local: Stream,
        client: Option<SocketAddr>,
        counted: Counted,
    ) -> Result<Box<Ready>, SetupError> {
        let started = Instant::now();
        let deadline = started + self.timeout;
        // Whatever goes wrong, the client sees a reset and not an empty answer.
        local.arm_reset();
        let key = &self.keys[0];
        let establishing = async {
            let mut wire = self.dial(deadline).await?;
            let established = {
                let (reader, writer) = wire.split();
                let mut wire = tokio::io::join(reader, writer);
                tunnel::initiate(&mut wire, key, &self.label, self.ciphers, deadline).await?
            };
            Ok::<_, SetupError>((wire, established))
        };
        let (wire, established) =
            counted.unless_cut(pin!(establishing)).await.unwrap_or(Err(SetupError::Stopped))?;
        let mut buffer = Buffer::take();
        let (sealer, length) = established.sealer.open(&ConnectionInfo { client }, &mut buffer);
        Ok(Box::new(Ready {
            local,
            wire,
            seal: SealPump::with_sealed(sealer, buffer, length),
            open: OpenPump::new(established.opener, Inbox::new()),
            target_is: Towards::Wire,
            started,
            peer: Peer(client),
            key: key.fingerprint(),
            cipher: established.cipher,
            client: None,
            counted,
        }))
    }

    /// The responder's side of one connection; `from` is where `wire` comes from. `limit` bounds the connections of peers
    /// that have proved the key.
    ///
    /// # Errors
    /// Why it failed, which is in the log as well.
    pub fn respond(
        self: Arc<Self>,
        wire: Stream,
        from: Option<SocketAddr>,
        visitor: Visitor,
        limit: Arc<Semaphore>,
        connections: &Connections,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let (pipe, connections) = (Arc::clone(&self), connections.clone());
        let setting_up = async move {
            let ready = pipe.set_up_responder(wire, Peer(from), visitor, limit, &connections).await;
            ready.inspect_err(|error| pipe.log_failure("refused", Peer(from), error))
        };
        self.set_up_and_carry(setting_up)
    }

    async fn set_up_responder(
        &self,
        mut wire: Stream,
        peer: Peer,
        visitor: Visitor,
        limit: Arc<Semaphore>,
        connections: &Connections,
    ) -> Result<Box<Ready>, SetupError> {
        let started = Instant::now();
        let deadline = started + self.timeout;
        let shake_hands = async {
            let (reader, writer) = wire.split();
            let mut wire = tokio::io::join(reader, writer);
            let (established, key) =
                tunnel::respond(&mut wire, &self.keys, &self.label, self.ciphers, deadline).await?;
            let opened = tunnel::await_open(&mut wire, established.opener, deadline).await?;
            Ok::<_, Failure>((established.sealer, opened, established.cipher, key))
        };
        let (sealer, (opener, info, inbox), cipher, key) = tokio::select! {
            shaken = shake_hands => shaken?,
            () = visitor.turned_out() => return Err(SetupError::TurnedOut),
        };
        drop(visitor);
        let counted = connections.count();
        let mut seal = SealPump::new(sealer);

        let reaching = async {
            let permit = timeout_at(deadline, limit.acquire_owned()).await.map_err(|_| SetupError::Busy)?;
            counted.hold(permit.expect("the semaphore is never closed"));
            self.dial(deadline).await
        };
        let reached = counted.unless_cut(pin!(reaching)).await.unwrap_or(Err(SetupError::Stopped));
        let local = match reached {
            Ok(local) => local,
            Err(error) => {
                let reason = match error {
                    SetupError::Busy => AbortReason::Busy,
                    SetupError::Stopped => AbortReason::Shutdown,
                    _ => AbortReason::TargetUnreachable,
                };
                say_farewell(&mut seal, reason, &mut wire).await;
                return Err(error);
            }
        };
        local.arm_reset();
        Ok(Box::new(Ready {
            local,
            wire,
            seal,
            open: OpenPump::new(opener, inbox),
            target_is: Towards::Local,
            started,
            peer,
            key,
            cipher,
            client: Some(Peer(info.client)),
            counted,
        }))
    }

    /// A future that is large only as long as it sets up: handshake messages are in a box that goes when it is done.
    fn set_up_and_carry(
        self: Arc<Self>,
        setting_up: impl Future<Output = Result<Box<Ready>, SetupError>> + Send + 'static,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send + 'static {
        let setting_up = Box::pin(setting_up);
        async move {
            let ready = setting_up.await?;
            Ok(self.carry(ready).await?)
        }
    }

    fn log_failure(&self, what: &'static str, peer: Peer, error: &SetupError) {
        warn!(pipe = self.name(), %peer, target = %self.dialer.target(), reason = error.to_string(), "{what}");
    }

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    async fn dial(&self, deadline: Instant) -> Result<Stream, SetupError> {
        let dialed = timeout_at(deadline, self.dialer.dial()).await;
        dialed
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time (-o)")))
            .map_err(|error| SetupError::Dial { target: self.dialer.target().clone(), error })
    }

    /// Carries bytes both ways until both ends have closed or one fails, and logs the end.
    async fn carry(&self, mut ready: Box<Ready>) -> Result<(), PumpError> {
        let _counted = self.usage.count(ready.key);
        {
            let Ready { peer, key, cipher, .. } = *ready;
            let client = ready.client.map(tracing::field::display);
            debug!(pipe = self.name(), %peer, client, target = %self.dialer.target(), %key, %cipher, "established");
        }
        let carrying = pump::run(&mut ready.seal, &mut ready.open, ready.local.split(), ready.wire.split());
        let result = ready.counted.unless_cut(carrying).await.unwrap_or(Err(PumpError::Stopped));
        match &result {
            Ok(()) => ready.local.disarm(),
            Err(failure @ (PumpError::Local(_) | PumpError::Stopped)) => {
                drop(ready.local);
                let reason =
                    if let PumpError::Stopped = failure { AbortReason::Shutdown } else { AbortReason::Reset };
                Box::pin(say_farewell(&mut ready.seal, reason, &mut ready.wire)).await;
            }
            Err(_) => {}
        }

        let Ready { peer, key, cipher, .. } = *ready;
        let client = ready.client.map(tracing::field::display);
        let (sealed, opened) = (ready.seal.bytes(), ready.open.bytes());
        let (to_target, from_target) = match ready.target_is {
            Towards::Wire => (sealed, opened),
            Towards::Local => (opened, sealed),
        };
        let target = self.dialer.target();
        let seconds = ready.started.elapsed().as_secs_f64();
        let reason = result.as_ref().map_or_else(ToString::to_string, |()| "finished".to_owned());
        macro_rules! log_end {
            ($level:ident) => {
                $level!(pipe = self.name(), %peer, client, %target, %key, %cipher, to_target, from_target, seconds, reason, "closed")
            };
        }
        match result {
            // Resets are everyday life.
            Ok(()) | Err(PumpError::Local(_) | PumpError::Aborted(AbortReason::Reset)) => log_end!(info),
            Err(_) => log_end!(warn),
        }
        result
    }
}

/// Tells the peer why this end gives up, and waits until it has hung up: closing a socket with unread bytes would reset it
/// and could overtake the farewell.
async fn say_farewell(seal: &mut SealPump<Sealer>, reason: AbortReason, wire: &mut Stream) {
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
        Ok(Err(error)) => debug!(%error, "the other end was gone before it could be told"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Keepalive;

    /// What each idle connection costs besides its keys and sockets; it grows unnoticed, by a variable that lives across a
    /// wait.
    #[tokio::test]
    async fn a_connection_that_carries_is_small() {
        let (local, _far) = tokio::net::UnixStream::pair().unwrap();
        let pipe = Pipe {
            name: None,
            keys: vec![Arc::new(Key::from_bytes(&[1; 32]).unwrap())],
            label: Label::default(),
            ciphers: Ciphers::only(Cipher::Aes256Gcm),
            dialer: Dialer::new("127.0.0.1:1".parse().unwrap(), None, Keepalive::On).unwrap(),
            timeout: Duration::from_secs(1),
            usage: Arc::default(),
        };
        let future = Arc::new(pipe).initiate(Stream::Unix(local), None, None, &Connections::default());
        assert!(size_of_val(&future) <= 288, "the task's future has {} bytes", size_of_val(&future));
        assert!(size_of::<Ready>() <= 576, "what a connection owns has {} bytes", size_of::<Ready>());
    }
}
