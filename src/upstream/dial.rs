//! Dialing one target, by the one way that leads to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use tokio::net::{UnixSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use vec1::Vec1;

use super::attempt::{Refusals, pair_up, race};
use super::route::{Host, Route, Way};
use crate::addr::{Target, UnixName};
use crate::names::{Names, ResolveError};
use crate::stream::socket_file::{Existing, SocketFile};
use crate::stream::{Keepalive, Remote, Stream};

/// The pause before another attempt when no descriptor was free.
const SHORTAGE: Duration = Duration::from_millis(50);

/// Why a target cannot be reached.
#[derive(Debug, Error)]
#[error("cannot connect to {target}: {source}")]
pub struct DialError {
    /// The target, as it was written.
    pub target: Target,
    /// What is in the way.
    pub source: Box<DialFailure>,
}

/// What is in the way to a target.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DialFailure {
    /// The time limit came first.
    #[error("no answer in time (-o)")]
    TimedOut,
    /// A name has no address: the target's, or that of the outgoing address.
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    /// The outgoing address is of another family than all addresses of the target.
    #[error("no address of the target is of the outgoing address's family")]
    NoCommonFamily,
    /// The one address that the target is cannot be connected to.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// None of the addresses that the target stands for can be connected to.
    #[error(transparent)]
    AllRefused(#[from] Refusals),
    /// The outgoing name of a Unix-domain socket cannot be taken.
    #[error("cannot connect from {name} (-b): {source}")]
    Outgoing {
        /// The name.
        name: UnixName,
        /// Why.
        source: io::Error,
    },
}

impl DialFailure {
    /// Whether no more is lacking than a descriptor.
    fn is_shortage(&self) -> bool {
        self.has_code(&[Errno::MFILE, Errno::NFILE])
    }

    /// Whether it says something of the target. A lack of descriptors or of outgoing ports does not, nor does an outgoing name
    /// that cannot be taken.
    pub fn is_of_the_target(&self) -> bool {
        !self.has_code(&[Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE])
            && !matches!(self, Self::Outgoing { .. })
    }

    fn has_code(&self, codes: &[Errno]) -> bool {
        let has_code = |error: &io::Error| {
            error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw_os_error(code)))
        };
        match self {
            Self::Refused(error) | Self::Outgoing { source: error, .. } => has_code(error),
            Self::AllRefused(refusals) => refusals.iter().any(|(_, error)| has_code(error)),
            Self::TimedOut | Self::Unresolved(_) | Self::NoCommonFamily => false,
        }
    }
}

/// A stream to a target.
pub struct Connected {
    /// The stream. Over TCP, closing it is a reset until that is disarmed.
    pub stream: Stream,
    /// The address that was dialed, of those that the target has.
    pub remote: Remote,
}

/// Connects over one route, again and again.
pub struct Dialer {
    route: Route,
    keepalive: Keepalive,
    names: Arc<Names>,
    /// Held while a Unix-domain socket has the outgoing name, which only one can have at a time.
    naming: Mutex<()>,
}

impl Dialer {
    /// A dialer of `route`, which looks names up in `names`.
    pub fn new(route: Route, keepalive: Keepalive, names: Arc<Names>) -> Self {
        Self { route, keepalive, names, naming: Mutex::new(()) }
    }

    /// Connects. A name is looked up anew each time, so that a changed one takes effect at once.
    ///
    /// # Errors
    /// [`DialError`], when no address of the target can be reached until `deadline`; it names each that was tried.
    pub async fn dial(&self, deadline: Instant) -> Result<Connected, DialError> {
        let connected = loop {
            let connected =
                timeout_at(deadline, self.dial_once()).await.unwrap_or(Err(DialFailure::TimedOut));
            // An accepted client is not turned away for want of a descriptor, as long as one may become free.
            match connected {
                Err(failure) if failure.is_shortage() && Instant::now() + SHORTAGE < deadline => {
                    sleep(SHORTAGE).await;
                }
                connected => break connected,
            }
        };
        connected.map_err(|failure| DialError { target: self.route.target().clone(), source: failure.into() })
    }

    async fn dial_once(&self) -> Result<Connected, DialFailure> {
        match &self.route.way {
            Way::Tcp { to, from } => self.dial_tcp(to, from.as_ref()).await,
            Way::Unix { to, from } => self.dial_unix(to, from.as_ref()).await,
        }
    }

    async fn dial_tcp(&self, to: &Host, from: Option<&Host>) -> Result<Connected, DialFailure> {
        let from = match from {
            Some(from) => self.resolve(from).await?.into_vec(),
            None => Vec::new(),
        };
        let attempts = pair_up(&self.resolve(to).await?, &from);
        let attempts = Vec1::try_from_vec(attempts).map_err(|_| DialFailure::NoCommonFamily)?;
        let (stream, address) = race(attempts).await.map_err(|refusals| match (to, from.is_empty()) {
            // The address is in the error already, as the target.
            (Host::Address(_), true) => DialFailure::Refused(refusals.into_first()),
            _ => DialFailure::AllRefused(refusals),
        })?;
        Ok(Connected { stream: Stream::tcp(stream, self.keepalive), remote: address.into() })
    }

    async fn resolve(&self, host: &Host) -> Result<Vec1<SocketAddr>, ResolveError> {
        match host {
            Host::Address(address) => Ok(Vec1::new(*address)),
            Host::Name { host, port } => self.names.resolve(host, *port).await,
        }
    }

    async fn dial_unix(&self, to: &UnixName, from: Option<&UnixName>) -> Result<Connected, DialFailure> {
        let stream = match from {
            None => UnixStream::connect(to.as_path()).await,
            Some(from) => {
                let _guard = self.naming.lock().await;
                let socket = UnixSocket::new_stream().map_err(DialFailure::Refused)?;
                // The file goes as soon as the connection is established, since the peer has seen the name by then and the file
                // would be in the way of the next connection; and also when this future is dropped before.
                let _file = bind_unix(&socket, from)
                    .map_err(|source| DialFailure::Outgoing { name: from.clone(), source })?;
                socket.connect(to.as_path()).await
            }
        };
        let stream = stream.map_err(DialFailure::Refused)?;
        Ok(Connected { stream: Stream::Unix(stream), remote: Remote::Local })
    }
}

/// Gives `socket` the outgoing name `from`, and its file an owner.
///
/// A file that is there already and that nobody listens on was left behind by a process that was killed between bind(2) and
/// unlink(2). It is replaced, as for sources. It may also belong to another process that is just connecting under the same
/// name; that one has its connection all the same, since only the file is replaced.
fn bind_unix(socket: &UnixSocket, from: &UnixName) -> io::Result<Option<SocketFile>> {
    let Some(file) = from.file() else {
        socket.bind(from.as_path())?;
        return Ok(None);
    };
    match Existing::at(file)? {
        Existing::Nothing => {}
        Existing::Stale => std::fs::remove_file(file)?,
        Existing::InUse => {
            return Err(io::Error::other("another process is listening there; choose another name"));
        }
        Existing::OtherFile => {
            return Err(io::Error::other("a file that is not a socket has this name; choose another"));
        }
    }
    socket.bind(from.as_path())?;
    SocketFile::own(file).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_has_its_cause_at_its_root() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let route = Route::from(free.to_string().parse::<Target>().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let error =
            Dialer::new(route, Keepalive::default(), Arc::default()).dial(deadline).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            format!("cannot connect to [127.0.0.1]:{}: Connection refused (os error 111)", free.port())
        );
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
    }
}
