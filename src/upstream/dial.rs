//! Dialing one target, by the one way that leads to it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use vec1::Vec1;

use super::attempt::{Refusals, pair_up, race};
use super::route::{Host, Route, TcpWay, TlsRoute, Way};
use super::tls::TlsError;
use super::via::ProxyError;
use crate::addr::{Target, UnixName};
use crate::names::{Lookup, Names, Refresh, Refreshing, ResolveError};
use crate::stats::DialResult;
use crate::stream::socket_file::{Existing, SocketFile};
use crate::stream::{self, Keepalive, Remote, Stream};

/// How long connecting takes where nothing is wrong, over any network; beyond that, a name is looked up again meanwhile.
const UNUSUAL: Duration = Duration::from_secs(1);

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
    /// A proxy was connected to, and does not lead to the target.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A connection was made, and there is no TLS on it.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    /// that cannot be taken, or an interface that is not there.
    pub fn is_of_the_target(&self) -> bool {
        !self.has_code(&[Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE, Errno::NODEV])
            && !matches!(self, Self::Outgoing { .. })
    }

    /// How it is counted.
    pub(super) fn result(&self) -> DialResult {
        match self {
            _ if !self.is_of_the_target() => DialResult::Local,
            Self::TimedOut => DialResult::Timeout,
            Self::Unresolved(_) | Self::NoCommonFamily => DialResult::Unresolved,
            Self::Refused(error) if error.kind() == io::ErrorKind::TimedOut => DialResult::Timeout,
            Self::Refused(_) | Self::AllRefused(_) | Self::Outgoing { .. } => DialResult::Refused,
            Self::Proxy(_) => DialResult::Proxy,
            Self::Tls(_) => DialResult::Tls,
        }
    }

    fn has_code(&self, codes: &[Errno]) -> bool {
        let has_code = |error: &io::Error| {
            error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw_os_error(code)))
        };
        match self {
            Self::Refused(error) | Self::Outgoing { source: error, .. } => has_code(error),
            Self::AllRefused(refusals) => refusals.iter().any(|(_, error)| has_code(error)),
            Self::TimedOut | Self::Unresolved(_) | Self::NoCommonFamily | Self::Proxy(_) | Self::Tls(_) => {
                false
            }
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
    lookup: Lookup,
    names: Arc<Names>,
    /// The names of the route, which are looked up in the background.
    refreshing: Vec<Refreshing>,
    /// Held while a Unix-domain socket has the outgoing name, which only one can have at a time.
    naming: Mutex<()>,
}

impl Dialer {
    /// A dialer of `route`, which looks names up in `names` as `lookup` says.
    pub fn new(route: Route, keepalive: Keepalive, lookup: Lookup, names: Arc<Names>) -> Self {
        Self { route, keepalive, lookup, names, refreshing: Vec::new(), naming: Mutex::new(()) }
    }

    /// The same, with its names looked up in the background as well. To be called within the runtime.
    #[must_use]
    pub fn keep_names_fresh(mut self) -> Self {
        if let Refresh::Every(time) = self.lookup.refresh {
            self.refreshing = self.route.names().map(|name| self.names.keep_fresh(name, time)).collect();
        }
        self
    }

    /// The name of what is connected to first, the target or the proxy before it, if that is a name.
    pub fn host(&self) -> Option<&str> {
        match self.first_hop()? {
            Host::Name { host, .. } => Some(host),
            Host::Address(_) => None,
        }
    }

    /// The addresses of what is connected to first. None of a Unix-domain socket.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn look_up(&self) -> Result<Option<Vec1<SocketAddr>>, ResolveError> {
        match self.first_hop() {
            Some(host) => self.addresses(host).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether a connection to `remote` is one to this target still: what has its name may have moved since.
    pub fn leads_to(&self, remote: Remote) -> bool {
        let Some(Host::Name { host, .. }) = self.first_hop() else { return true };
        let (Some(addresses), Some(remote)) = (self.names.known(host), remote.ip()) else { return true };
        addresses.iter().any(|address| address.ip().to_canonical() == remote.ip().to_canonical())
    }

    fn first_hop(&self) -> Option<&Host> {
        match &self.route.way {
            Way::Tcp(way) => Some(way.first_hop()),
            Way::Unix { .. } => None,
        }
    }

    /// Connects. The target gets to see `preamble` first, before TLS.
    ///
    /// # Errors
    /// [`DialError`], when no address of the target can be reached until `deadline`; it names each that was tried.
    pub async fn dial(&self, preamble: &[u8], deadline: Instant) -> Result<Connected, DialError> {
        let connected = loop {
            let connected = timeout_at(deadline, self.dial_once(preamble, deadline))
                .await
                .unwrap_or(Err(DialFailure::TimedOut));
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

    async fn dial_once(&self, preamble: &[u8], deadline: Instant) -> Result<Connected, DialFailure> {
        match &self.route.way {
            Way::Tcp(way) => self.dial_tcp(way, preamble, deadline).await,
            Way::Unix { to, from } => self.dial_unix(to, from.as_ref(), preamble).await,
        }
    }

    async fn dial_tcp(
        &self,
        way: &TcpWay,
        preamble: &[u8],
        deadline: Instant,
    ) -> Result<Connected, DialFailure> {
        let TcpWay { from, via, to, tls, .. } = way;
        let (socket, address) = self.connect(way.first_hop(), from.as_ref()).await?;
        let socket = stream::set_up_tcp(socket, address.ip(), self.keepalive);
        // In boxes: these handshakes need much more room than all else here.
        let mut socket = match via {
            None => socket,
            Some(via) => Box::pin(via.lead(socket, to, deadline)).await?,
        };
        say(&mut socket, preamble).await?;
        let stream = match tls {
            None => Stream::Tcp(socket),
            Some(TlsRoute { client, start, host }) => {
                Stream::Tls(Box::new(Box::pin(client.connect(socket, *start, host, deadline)).await?))
            }
        };
        Ok(Connected { stream, remote: address.into() })
    }

    async fn connect(&self, to: &Host, from: Option<&Host>) -> Result<(TcpStream, SocketAddr), DialFailure> {
        let from = match from {
            Some(from) => self.addresses(from).await?.into_vec(),
            None => Vec::new(),
        };
        let known = self.addresses(to).await?;
        let is_systems_choice = from.is_empty() && self.route.interface().is_none();
        match (to, self.lookup.refresh) {
            (Host::Name { host, port }, Refresh::Every(_)) => {
                self.race_and_look_up(&known, &from, || self.names.addresses_anew(host, *port)).await
            }
            _ => self.race(&known, &from).await.map_err(|failure| match (to, is_systems_choice, failure) {
                // The address is in the error already, as the target.
                (Host::Address(_), true, DialFailure::AllRefused(refusals)) => {
                    DialFailure::Refused(refusals.into_first())
                }
                (.., failure) => failure,
            }),
        }
    }

    async fn race(
        &self,
        to: &Vec1<SocketAddr>,
        from: &[SocketAddr],
    ) -> Result<(TcpStream, SocketAddr), DialFailure> {
        let attempts = pair_up(to, from, self.route.interface(), self.lookup.prefer);
        let attempts = Vec1::try_from_vec(attempts).map_err(|_| DialFailure::NoCommonFamily)?;
        Ok(race(attempts).await?)
    }

    /// Connects to the addresses that are known of a name. When they fail, or nothing has come of them for a while, the name is
    /// looked up, and addresses that are new are tried as well: what has the name may have moved.
    async fn race_and_look_up<L: Future<Output = Result<Vec1<SocketAddr>, ResolveError>>>(
        &self,
        known: &Vec1<SocketAddr>,
        from: &[SocketAddr],
        look_up: impl FnOnce() -> L,
    ) -> Result<(TcpStream, SocketAddr), DialFailure> {
        let mut to_known = pin!(self.race(known, from));
        let failure = match timeout(UNUSUAL, &mut to_known).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        let mut to_new = pin!(async {
            let new = look_up().await.ok()?.into_vec();
            let new = new.into_iter().filter(|address| !known.contains(address)).collect();
            self.race(&Vec1::try_from_vec(new).ok()?, from).await.ok()
        });
        if let Some(failure) = failure {
            // Of new addresses that fail as well, it is not worth while to tell.
            return to_new.await.ok_or(failure);
        }
        let mut new_have_failed = false;
        loop {
            tokio::select! {
                connected = &mut to_known => return match connected {
                    Err(failure) if !new_have_failed => to_new.await.ok_or(failure),
                    connected => connected,
                },
                connected = &mut to_new, if !new_have_failed => match connected {
                    Some(connected) => return Ok(connected),
                    None => new_have_failed = true,
                },
            }
        }
    }

    async fn addresses(&self, host: &Host) -> Result<Vec1<SocketAddr>, ResolveError> {
        match host {
            Host::Address(address) => Ok(Vec1::new(*address)),
            Host::Name { host, port } => self.names.addresses(host, *port).await,
        }
    }

    async fn dial_unix(
        &self,
        to: &UnixName,
        from: Option<&UnixName>,
        preamble: &[u8],
    ) -> Result<Connected, DialFailure> {
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
        let mut stream = stream.map_err(DialFailure::Refused)?;
        say(&mut stream, preamble).await?;
        Ok(Connected { stream: Stream::Unix(stream), remote: Remote::Local })
    }
}

/// Writes a preamble, if there is one. It fits a fresh socket's buffer.
async fn say(socket: &mut (impl AsyncWrite + Unpin), preamble: &[u8]) -> Result<(), DialFailure> {
    if preamble.is_empty() { Ok(()) } else { socket.write_all(preamble).await.map_err(DialFailure::Refused) }
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
        let error = Dialer::new(route, Keepalive::default(), Lookup::default(), Arc::default())
            .dial(&[], deadline)
            .await
            .err()
            .unwrap();
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
