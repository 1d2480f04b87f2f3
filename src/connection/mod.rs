//! One connection, from its admission to its log line: a life of each role, each told top to bottom.
//!
//! ```text
//!  initiator:  Admitted client ─▶ Connected (a responder) ─▶ Tunnel ──────────────────────┐
//!  responder:  Admitted stranger ─▶ Tunnel ─▶ Place ─▶ Connected (the target) ────────────┴─▶ carry ─▶ Carried
//!
//!  ping:       Connected (a responder) ─▶ Tunnel ─▶ Pinging ══▶ Tunnel ─▶ Place ─▶ echo
//! ```

mod carry;
mod check;
pub(crate) mod clock;
mod commit;
mod echo;
mod front;
mod initiator;
mod limits;
mod ping;
mod reserve;
mod responder;
mod watch;

use std::error::Error;
use std::fmt;
use std::time::Duration;

pub use self::check::Checks;
pub use self::front::Front;
pub use self::initiator::Initiator;
pub use self::limits::Limits;
pub use self::ping::{PingError, Pinger, Pinging};
pub use self::responder::Responder;
use rand::TryRng;
use rand::rngs::SysRng;
use vec1::Vec1;

use crate::addr::{Name, Target};
use crate::gate::{Cut, IdentifyError, KeyRefused, NotAdmitted};
use crate::names::Lookup;
use crate::proto::cipher::Ciphers;
use crate::proto::connection_info::ConnectionId;
use crate::proto::frame::AbortReason;
use crate::proto::handshake::{HandshakeError, Label};
use crate::proto::key::Fingerprint;
use crate::proxy_header::Version;
use crate::pump::PumpError;
use crate::stats::Cause;
use crate::stream::Keepalive;
use crate::tunnel::handshake::Ending;
use crate::tunnel::{Protocol, Reuse, Terms, TunnelError};
use crate::upstream::{DialError, Targets};

/// What the keys of a pipe are called in the log. Each has a fingerprint of its own, by which the log and limits tell keys apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyNames(Vec<KeyName>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyName {
    key: Fingerprint,
    /// Where it comes from, as that was written.
    file: String,
    /// Whose it is.
    name: Option<Name>,
}

impl KeyNames {
    /// Adds a key that comes from `file`.
    ///
    /// # Errors
    /// The file of the key that has this fingerprint already.
    pub fn add(&mut self, key: Fingerprint, file: String) -> Result<(), String> {
        if let Some(first) = self.file(key) {
            return Err(first.to_owned());
        }
        self.0.push(KeyName { key, file, name: None });
        Ok(())
    }

    /// Gives a key that is there a name.
    pub fn set_name(&mut self, key: Fingerprint, name: Name) {
        if let Some(of_key) = self.0.iter_mut().find(|of_key| of_key.key == key) {
            of_key.name = Some(name);
        }
    }

    /// Where a key comes from.
    pub fn file(&self, key: Fingerprint) -> Option<&str> {
        self.find(key).map(|of_key| of_key.file.as_str())
    }

    /// Whose a key is, if that is said.
    pub fn name(&self, key: Fingerprint) -> Option<&str> {
        self.find(key)?.name.as_ref().map(Name::as_str)
    }

    /// Each key, with its file.
    pub fn iter(&self) -> impl Iterator<Item = (Fingerprint, &str)> {
        self.0.iter().map(|of_key| (of_key.key, of_key.file.as_str()))
    }

    fn find(&self, key: Fingerprint) -> Option<&KeyName> {
        self.0.iter().find(|of_key| of_key.key == key)
    }
}

/// What all connections of one pipe have in common, whatever its role: pure data.
#[derive(Clone, Debug)]
pub struct Common {
    /// What the pipe is called in the log, where there are several.
    pub name: Option<Name>,
    /// What its keys are called there.
    pub key_names: KeyNames,
    /// The responders, or the services, of which each connection gets one.
    pub targets: Targets,
    /// What it speaks with the other end.
    pub protocol: Protocol,
    /// How long connecting and the handshake may take together.
    pub timeout: Duration,
    /// When a TCP connection counts as dead.
    pub keepalive: Keepalive,
    /// How the names of the targets are treated.
    pub lookup: Lookup,
    /// Whether targets are told of the client first, and how.
    pub send_proxy: Option<Version>,
    /// How long a connection may go on.
    pub limits: Limits,
}

impl Common {
    /// The name, as the log has it.
    pub(crate) fn pipe(&self) -> Option<&str> {
        self.name.as_ref().map(Name::as_str)
    }

    /// [`timeout`](Self::timeout) by default, as spiped has it.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// A pipe without a name that leads to `targets`, with defaults for the rest.
    pub fn new(targets: impl Into<Targets>, ciphers: Ciphers) -> Self {
        Self {
            name: None,
            key_names: KeyNames::default(),
            targets: targets.into(),
            protocol: Protocol::Spipe(Terms { label: Label::default(), ciphers, reuse: Reuse::On }),
            timeout: Self::TIMEOUT,
            keepalive: Keepalive::default(),
            lookup: Lookup::default(),
            send_proxy: None,
            limits: Limits::default(),
        }
    }
}

/// Why a connection never carried anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The responder, or the target, cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The peer did not prove the key, or did not go on.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The responder proved the key, and then did not take the client.
    #[error(transparent)]
    PassedOver(PumpError),
    /// The target is not to be tried: checks have found it down, or it is drained.
    #[error("{0}")]
    Down(String),
    /// None of several targets can be used.
    #[error(transparent)]
    NoneLeft(#[from] NoneLeft),
    /// The peer did, and may not be here, or not now.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// A proxy has not said who is behind it, or that one may not be here.
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    /// A stranger had to make room for newer ones.
    #[error("too many connections are waiting to shake hands, and this one waited longest")]
    TurnedOut,
    /// The client or the peer that it was for is gone.
    #[error("the other side went away before the connection was established")]
    Gone,
    /// This process is stopping, and waits no longer.
    #[error("spipe was stopped before the connection was established")]
    Stopped,
    /// The key is not accepted any more.
    #[error("its key is not accepted any more (--on-revoke reset)")]
    KeyRevoked,
    /// An administrator wanted it closed.
    #[error("an administrator closed it (spipe close)")]
    Closed,
}

impl From<Cut> for SetupError {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Stopped => Self::Stopped,
            Cut::Revoked => Self::KeyRevoked,
            Cut::Closed => Self::Closed,
        }
    }
}

impl From<Cut> for PumpError {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Stopped => Self::Stopped,
            Cut::Revoked => Self::KeyRevoked,
            Cut::Closed => Self::Closed,
        }
    }
}

impl SetupError {
    /// Whether it says something of the target. A lack of this process does not.
    fn is_of_the_target(&self) -> bool {
        match self {
            Self::Dial(error) => error.source.is_of_the_target(),
            Self::Tunnel(TunnelError::Randomness(_) | TunnelError::ShortOfTime)
            | Self::Identify(_)
            | Self::Gone
            | Self::Stopped
            | Self::KeyRevoked
            | Self::Closed => false,
            _ => true,
        }
    }

    /// The kind of failure, where strangers, a shortage or the limits of a key can bring it about by the thousand: of such a kind,
    /// the log has a few and the number of the rest. Any other failure is that of a client or of a peer with the key, and has a line of its own.
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Tunnel(TunnelError::Incomplete { .. }) => Some("incomplete handshake"),
            Self::Tunnel(TunnelError::Forged | TunnelError::SpipedForged) => Some("wrong key or label"),
            Self::Tunnel(_) => Some("failed handshake"),
            Self::NotAdmitted(NotAdmitted::Key { refused, .. }) => Some(match refused {
                KeyRefused::Expired(_) => "expired key",
                KeyRefused::Address => "key from elsewhere",
                KeyRefused::Connections => "connections of a key",
                KeyRefused::Rate => "rate of a key",
                KeyRefused::Revoked => "revoked key",
            }),
            Self::NotAdmitted(NotAdmitted::Source(_)) | Self::Identify(IdentifyError::Denied(_)) => {
                Some("denied")
            }
            Self::NotAdmitted(_) => Some("too many connections"),
            Self::Identify(IdentifyError::Header(_) | IdentifyError::Check) => Some("no PROXY header"),
            Self::TurnedOut => Some("turned out"),
            Self::Gone => Some("gone"),
            Self::Dial(_)
            | Self::PassedOver(_)
            | Self::Down(_)
            | Self::NoneLeft(_)
            | Self::Stopped
            | Self::KeyRevoked
            | Self::Closed => None,
        }
    }

    /// How it is counted.
    fn cause(&self) -> Cause {
        match self {
            Self::Dial(_)
            | Self::Down(_)
            | Self::PassedOver(PumpError::Aborted(AbortReason::TargetUnreachable)) => Cause::Target,
            Self::Tunnel(error) => of_tunnel(error),
            Self::PassedOver(PumpError::Aborted(AbortReason::Busy))
            | Self::NotAdmitted(NotAdmitted::Busy) => Cause::Busy,
            Self::PassedOver(PumpError::Aborted(AbortReason::KeyRefused))
            | Self::NotAdmitted(NotAdmitted::Key { .. })
            | Self::KeyRevoked => Cause::KeyRefused,
            Self::PassedOver(PumpError::Aborted(AbortReason::Shutdown)) | Self::Stopped | Self::Closed => {
                Cause::Stopped
            }
            Self::PassedOver(_) => Cause::Other,
            // One connection is one failure, whatever each of its targets said.
            Self::NoneLeft(NoneLeft(failures)) => failures.first().1.cause(),
            Self::Identify(IdentifyError::Denied(_)) | Self::NotAdmitted(NotAdmitted::Source(_)) => {
                Cause::Denied
            }
            Self::Identify(IdentifyError::Header(_) | IdentifyError::Check) => Cause::NoProxyHeader,
            Self::TurnedOut => Cause::TurnedOut,
            Self::Gone => Cause::Gone,
        }
    }
}

fn of_tunnel(error: &TunnelError) -> Cause {
    match error {
        TunnelError::Forged | TunnelError::SpipedForged => Cause::WrongKeyOrLabel,
        TunnelError::Incomplete { ending: Ending::TimedOut, .. } => Cause::Timeout,
        TunnelError::Incomplete { .. } | TunnelError::Send(_) | TunnelError::SpipedSend(_) => {
            Cause::Incomplete
        }
        TunnelError::Handshake(HandshakeError::NoCommonCipher(_)) => Cause::NoCommonCipher,
        TunnelError::NotOpenedInTime | TunnelError::NotOpened(_) => Cause::ReplayOrNoOpen,
        _ => Cause::Other,
    }
}

/// An id for a new connection.
fn random_id() -> ConnectionId {
    let mut id = [0; 8];
    // Where this fails, so does the handshake, and says so.
    let _ = SysRng.try_fill_bytes(&mut id);
    ConnectionId(id)
}

/// What each of several targets said, in the order in which they were tried.
#[derive(Debug)]
pub struct NoneLeft(Vec1<(Target, SetupError)>);

impl NoneLeft {
    /// Of one target, its own error; of several, all of theirs.
    fn of(failures: Vec<(Target, SetupError)>) -> SetupError {
        match Vec1::try_from_vec(failures) {
            Ok(failures) if failures.len() == 1 => failures.split_off_first().0.1,
            Ok(failures) => Self(failures).into(),
            Err(_) => unreachable!("a pipe has a target, and each that is not used has failed"),
        }
    }
}

impl fmt::Display for NoneLeft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("no target can be used: ")?;
        for (place, (target, error)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            match error {
                // It names the target itself.
                SetupError::Dial(error) => write!(formatter, "{separator}{error}")?,
                error => write!(formatter, "{separator}{target}: {error}")?,
            }
        }
        Ok(())
    }
}

impl Error for NoneLeft {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.first().1)
    }
}

/// Why a connection failed, for a caller that has it as its only one; the log has it in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// Before it carried anything.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// While it did.
    #[error(transparent)]
    Pump(#[from] PumpError),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::carry::Carrying;
    use super::*;
    use crate::addr::Target;
    use crate::gate::{Admitted, ClientPlace, Connections};
    use crate::proto::cipher::Cipher;
    use crate::proto::key::Key;
    use crate::stats::{Live, OfPipe};
    use crate::stream::{Remote, Stream};
    use crate::upstream::Upstream;

    /// What each idle connection costs besides its keys and sockets; it grows unnoticed, by a variable that lives across a
    /// wait.
    #[tokio::test]
    async fn a_connection_that_carries_is_small() {
        let (local, _far) = tokio::net::UnixStream::pair().unwrap();
        let target: Target = "127.0.0.1:1".parse().unwrap();
        let common = Common::new(target, Ciphers::only(Cipher::Aes256Gcm));
        let key = Arc::new(Key::from_bytes(&[1; 32]).unwrap());
        let place = ClientPlace { place: Connections::default().place(None), establishing: None };
        let client = Admitted { stream: Stream::Unix(local), remote: Remote::Local, place };
        let upstream = Upstream::fresh(&common.targets, common.keepalive, common.lookup);
        let stats = Arc::new(OfPipe::new(Arc::default()));
        let future = Arc::new(Initiator::new(common, key, None, upstream, stats, 0)).carry(client);
        assert!(size_of_val(&future) <= 320, "the task's future has {} bytes", size_of_val(&future));
        let owned = size_of::<Carrying>() + size_of::<Live>();
        assert!(owned <= 584, "what a connection owns has {owned} bytes");
    }
}
