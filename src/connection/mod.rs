//! One connection, from its admission to its log line: a life of each role, each told top to bottom.
//!
//! ```text
//!  initiator:  Admitted client ─▶ Connected (a responder) ─▶ Tunnel ──────────────────────┐
//!  responder:  Admitted stranger ─▶ Tunnel ─▶ Place ─▶ Connected (the target) ────────────┴─▶ carry ─▶ Carried
//! ```

mod carry;
mod check;
mod clock;
mod commit;
mod initiator;
mod limits;
mod responder;
mod watch;

use std::error::Error;
use std::fmt;
use std::time::Duration;

pub use self::check::Checks;
pub use self::initiator::Initiator;
pub use self::limits::Limits;
pub use self::responder::Responder;
use vec1::Vec1;

use crate::addr::{Name, Target};
use crate::gate::Busy;
use crate::names::Lookup;
use crate::proto::cipher::Ciphers;
use crate::proto::handshake::Label;
use crate::proto::key::Fingerprint;
use crate::pump::PumpError;
use crate::stream::Keepalive;
use crate::tunnel::{Terms, TunnelError};
use crate::upstream::{DialError, Targets};

/// What the keys of a pipe are called in the log: where each comes from. Each has a fingerprint of its own, by which the log and
/// limits tell keys apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyNames(Vec<(Fingerprint, String)>);

impl KeyNames {
    /// Adds a key.
    ///
    /// # Errors
    /// The name of the key that has this fingerprint already.
    pub fn add(&mut self, key: Fingerprint, name: String) -> Result<(), String> {
        if let Some(first) = self.of(key) {
            return Err(first.to_owned());
        }
        self.0.push((key, name));
        Ok(())
    }

    /// What a key is called; none that has no file is.
    pub fn of(&self, key: Fingerprint) -> Option<&str> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, name)| name.as_str())
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
    /// What has to agree with the other end.
    pub terms: Terms,
    /// How long connecting and the handshake may take together.
    pub timeout: Duration,
    /// When a TCP connection counts as dead.
    pub keepalive: Keepalive,
    /// How the names of the targets are treated.
    pub lookup: Lookup,
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
            terms: Terms { label: Label::default(), ciphers },
            timeout: Self::TIMEOUT,
            keepalive: Keepalive::default(),
            lookup: Lookup::default(),
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
    /// Checks have found the target down.
    #[error("checks of it fail: {0}")]
    Down(String),
    /// None of several targets can be used.
    #[error(transparent)]
    NoneLeft(#[from] NoneLeft),
    /// The peer did, but there are connections enough.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// A stranger had to make room for newer ones.
    #[error("too many connections are waiting to shake hands, and this one waited longest")]
    TurnedOut,
    /// The client or the peer that it was for is gone.
    #[error("the other side went away before the connection was established")]
    Gone,
    /// This process is stopping, and waits no longer.
    #[error("spipe was stopped before the connection was established")]
    Stopped,
}

impl SetupError {
    /// Whether it says something of the target. A lack of this process does not.
    fn is_of_the_target(&self) -> bool {
        match self {
            Self::Dial(error) => error.source.is_of_the_target(),
            Self::Tunnel(TunnelError::Randomness(_)) | Self::Gone | Self::Stopped => false,
            _ => true,
        }
    }

    /// The kind of failure, where strangers or a shortage can bring it about by the thousand: of such a kind, the log has a few
    /// and the number of the rest. Any other failure is that of a client or of a peer with the key, and has a line of its own.
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Tunnel(TunnelError::Incomplete { .. }) => Some("incomplete handshake"),
            Self::Tunnel(TunnelError::Forged) => Some("wrong key or label"),
            Self::Tunnel(_) => Some("failed handshake"),
            Self::Busy(_) => Some("too many connections"),
            Self::TurnedOut => Some("turned out"),
            Self::Gone => Some("gone"),
            Self::Dial(_) | Self::PassedOver(_) | Self::Down(_) | Self::NoneLeft(_) | Self::Stopped => None,
        }
    }
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
        let future = Arc::new(Initiator::new(common, key, upstream, Arc::default())).carry(client);
        assert!(size_of_val(&future) <= 288, "the task's future has {} bytes", size_of_val(&future));
        assert!(size_of::<Carrying>() <= 448, "what a connection owns has {} bytes", size_of::<Carrying>());
    }
}
