//! Listening.
//!
//! Binding needs no runtime and comes before it: what a process does between the two (leaving its user, say) must come
//! before the first thread. A [`Bound`] socket becomes a [`Listener`] inside the runtime.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tracing::{debug, warn};

use crate::addr::{Endpoint, SocketName, Source, UnixName};
use crate::stream::socket_file::{Existing, SocketFile};
use crate::stream::{Keepalive, Stream};

/// Connections that the kernel may hold for us before they are accepted. It caps this at net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// The first pause after accept(2) failed for want of descriptors or memory; it doubles …
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
/// … up to this.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Why a source cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The operating system says no.
    #[error("cannot listen on {place}: {error}{}", hint(place, error))]
    Refused {
        /// Where.
        place: Source,
        /// Why.
        error: io::Error,
    },
    /// Something that is no socket has the name.
    #[error("cannot listen on {0}: a file that is not a socket has this name; choose another or remove it")]
    NotASocket(UnixName),
    /// A process listens there.
    #[error("cannot listen on {0}: another process is listening there; stop it or choose another name")]
    InUse(UnixName),
    /// The service manager has not passed what was counted on.
    #[error(
        "cannot listen on {place}: {}; start spipe by a .socket unit{}, or name an address",
        if passed.is_empty() { "systemd has passed no socket".to_owned() } else { format!("systemd has passed only {}", passed.join(", ")) },
        if let Source::Passed(Some(name)) = place { format!(" with FileDescriptorName={name}") } else { String::new() }
    )]
    NotPassed {
        /// What was asked for.
        place: Source,
        /// The names of what is there, and not taken yet.
        passed: Vec<String>,
    },
}

fn hint(place: &Source, error: &io::Error) -> &'static str {
    match (place, error.kind()) {
        (Source::At(Endpoint::Unix(_)), _) => "",
        (_, io::ErrorKind::AddrInUse) => "; stop what listens there, or choose another port",
        (_, io::ErrorKind::PermissionDenied) => "; a port below 1024 needs CAP_NET_BIND_SERVICE",
        (_, io::ErrorKind::AddrNotAvailable) => "; this host does not have that address",
        _ => "",
    }
}

/// A socket that listens: the kernel queues connections from here on. Always non-blocking.
pub struct Bound {
    socket: BoundSocket,
    local: Endpoint,
    source: Source,
}

enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, Option<SocketFile>),
}

impl Bound {
    /// Where it listens: for `[127.0.0.1]:0` the port that was chosen.
    pub fn local(&self) -> &Endpoint {
        &self.local
    }

    /// A socket that listens already, and whose file, if it has one, belongs to whoever has made it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn passed_tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = Endpoint::Ip(socket.local_addr()?);
        Ok(Self { socket: BoundSocket::Tcp(socket), local, source: Source::Passed(None) })
    }

    /// The same, of a Unix-domain socket.
    ///
    /// # Errors
    /// The operating system's.
    pub fn passed_unix(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket2::SockRef::from(&socket).local_addr()?;
        let name = UnixName::of(&address).map_err(io::Error::other)?;
        Ok(Self {
            socket: BoundSocket::Unix(socket, None),
            local: Endpoint::Unix(name),
            source: Source::Passed(None),
        })
    }

    /// Makes it known to the runtime, within which this is to be called.
    ///
    /// # Errors
    /// [`ListenError::Refused`].
    pub fn into_listener(self) -> Result<Listener, ListenError> {
        let Self { socket, local, source } = self;
        let socket = match socket {
            BoundSocket::Tcp(socket) => TcpListener::from_std(socket).map(ListenerSocket::Tcp),
            BoundSocket::Unix(socket, file) => {
                UnixListener::from_std(socket).map(|socket| ListenerSocket::Unix(socket, file))
            }
        };
        match socket {
            Ok(socket) => Ok(Listener { socket, local, source }),
            Err(error) => Err(ListenError::Refused { place: source, error }),
        }
    }
}

/// A listening socket that connections can be accepted from.
pub struct Listener {
    socket: ListenerSocket,
    local: Endpoint,
    source: Source,
}

enum ListenerSocket {
    Tcp(TcpListener),
    /// The file too, if that is ours to remove.
    Unix(UnixListener, #[expect(dead_code, reason = "it is there to be dropped")] Option<SocketFile>),
}

impl Listener {
    /// Where it listens.
    pub fn local(&self) -> &Endpoint {
        &self.local
    }

    /// What it was asked for as, which outlives the pipe that asked.
    pub fn source(&self) -> &Source {
        &self.source
    }

    fn poll_accept(
        &self,
        context: &mut Context<'_>,
        keepalive: Keepalive,
    ) -> Poll<io::Result<(Stream, Option<SocketAddr>)>> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, peer)| (Stream::tcp(stream, keepalive), Some(peer))),
            ListenerSocket::Unix(listener, ..) => {
                listener.poll_accept(context).map_ok(|(stream, _)| (Stream::Unix(stream), None))
            }
        }
    }
}

/// All sockets of one pipe, which take turns.
pub struct Listeners {
    listeners: Vec<Listener>,
    /// The one to ask first, so that a busy socket does not keep the others waiting.
    first: usize,
}

impl Listeners {
    /// Those of `listeners`.
    pub fn new(listeners: Vec<Listener>) -> Self {
        Self { listeners, first: 0 }
    }

    /// The sockets; they still listen.
    pub fn into_inner(self) -> Vec<Listener> {
        self.listeners
    }

    /// The next connection at any of the sockets, and where it comes from. Failures of accept(2) never end the loop that calls
    /// this: a connection that died in the queue is passed over, and a lack of descriptors or memory is waited out.
    pub(crate) async fn accept(&mut self, keepalive: Keepalive) -> (Stream, Option<SocketAddr>) {
        let mut pause = BACK_OFF_MIN;
        loop {
            let (listener, accepted) = poll_fn(|context| {
                for turn in 0..self.listeners.len() {
                    let index = (self.first + turn) % self.listeners.len();
                    if let Poll::Ready(accepted) = self.listeners[index].poll_accept(context, keepalive) {
                        self.first = index + 1;
                        return Poll::Ready((index, accepted));
                    }
                }
                Poll::Pending
            })
            .await;
            match accepted {
                Ok(accepted) => return accepted,
                // accept(2): errors that belong to the one connection.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::NetworkUnreachable
                            | io::ErrorKind::HostUnreachable
                    ) =>
                {
                    debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    // Once a spell: the log must not fill because descriptors are short.
                    if pause == BACK_OFF_MIN {
                        warn!(source = %self.listeners[listener].local, %error, "cannot accept connections for now; running ones go on");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

/// Sockets that the service manager has passed, by their names, as long as nobody has taken them.
#[derive(Default)]
pub struct Passed {
    sockets: Vec<(String, Bound)>,
}

impl Passed {
    /// In the order in which they were passed. Several may have the same name.
    pub fn new(sockets: Vec<(String, Bound)>) -> Self {
        Self { sockets }
    }

    /// The names of those that nobody has taken.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(|(name, _)| name.clone()).collect()
    }

    /// All with this name, or all there are.
    fn take(&mut self, name: Option<&SocketName>) -> Vec<Bound> {
        let wanted = |(other, _): &mut (String, Bound)| name.is_none_or(|name| name.as_str() == other);
        self.sockets.extract_if(.., wanted).map(|(_, bound)| bound).collect()
    }
}

/// Starts to listen on all that `source` stands for, some of which may be among those `passed`. Looking up a name blocks.
///
/// # Errors
/// [`ListenError`]. Where `source` stands for several addresses, those of a family that this host does not have are passed
/// over, as long as one is left.
pub fn listen(source: &Source, passed: &mut Passed) -> Result<Vec<Bound>, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), error };
    match source {
        Source::Passed(name) => match passed.take(name.as_ref()) {
            none if none.is_empty() => {
                Err(ListenError::NotPassed { place: source.clone(), passed: passed.names() })
            }
            sockets => {
                Ok(sockets.into_iter().map(|bound| Bound { source: source.clone(), ..bound }).collect())
            }
        },
        Source::At(Endpoint::Unix(name)) => Ok(vec![listen_unix(name, source)?]),
        Source::At(endpoint) => {
            let addresses = endpoint.resolve_blocking().map_err(refused)?;
            listen_tcp(&addresses, source).map_err(refused)
        }
        Source::Every { port } => {
            let any = |port| [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
            listen_tcp(&any(*port), source).map_err(refused)
        }
    }
}

fn listen_tcp(addresses: &[SocketAddr], source: &Source) -> io::Result<Vec<Bound>> {
    let mut listeners: Vec<Bound> = Vec::new();
    let mut missing = None;
    for &(mut address) in addresses {
        // When the system chooses the port, it chooses once for all addresses.
        if address.port() == 0
            && let Some(Endpoint::Ip(first)) = listeners.first().map(Bound::local)
        {
            address.set_port(first.port());
        }
        match bind_tcp(address, source) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_missing_family(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(code, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

fn bind_tcp(address: SocketAddr, source: &Source) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    // Else a restart would have to wait until the old connections' TIME_WAIT is over.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // The IPv4 side of "every address" has a socket of its own.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = std::net::TcpListener::from(socket);
    let local = Endpoint::Ip(socket.local_addr()?);
    Ok(Bound { socket: BoundSocket::Tcp(socket), local, source: source.clone() })
}

fn listen_unix(name: &UnixName, source: &Source) -> Result<Bound, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), error };
    if let Some(file) = name.file() {
        match Existing::at(file).map_err(refused)? {
            Existing::Nothing => {}
            // Such as a killed process leaves behind.
            Existing::Stale => std::fs::remove_file(file).map_err(refused)?,
            Existing::InUse => return Err(ListenError::InUse(name.clone())),
            Existing::OtherFile => return Err(ListenError::NotASocket(name.clone())),
        }
    }
    let bind = || {
        let socket = unix_socket()?;
        socket.bind(&SockAddr::unix(name.as_path())?)?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket = bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(name.clone()),
        _ => refused(error),
    })?;
    let file = name.file().map(SocketFile::own).transpose().map_err(refused)?;
    Ok(Bound {
        socket: BoundSocket::Unix(socket.into(), file),
        local: Endpoint::Unix(name.clone()),
        source: source.clone(),
    })
}

fn unix_socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
}
