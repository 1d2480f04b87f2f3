//! Sockets that listen already: bound by us before there is a runtime, passed by the service manager, or handed over by the
//! process that served before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use socket2::{Domain, SockRef};
use tokio::net::{TcpListener, UnixListener};

use super::ListenError;
use super::accept::{Listener, ListeningSocket};
use crate::addr::{Endpoint, SocketName, Source, UnixName};
use crate::stream::socket_file::SocketFile;

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
    pub(super) fn tcp(socket: std::net::TcpListener, source: Source) -> io::Result<Self> {
        let local = Endpoint::Ip(socket.local_addr()?);
        Ok(Self { socket: BoundSocket::Tcp(socket), local, source })
    }

    pub(super) fn unix(
        socket: std::os::unix::net::UnixListener,
        file: Option<SocketFile>,
        name: UnixName,
        source: Source,
    ) -> Self {
        Self { socket: BoundSocket::Unix(socket, file), local: Endpoint::Unix(name), source }
    }

    /// Where it listens: for `[127.0.0.1]:0` the port that was chosen.
    pub fn local(&self) -> &Endpoint {
        &self.local
    }

    /// Makes it known to the runtime, within which this is to be called.
    ///
    /// # Errors
    /// [`ListenError::Refused`].
    pub fn into_listener(self) -> Result<Listener, ListenError> {
        let Self { socket, local, source } = self;
        let socket = match socket {
            BoundSocket::Tcp(socket) => {
                TcpListener::from_std(socket).map(|socket| (ListeningSocket::Tcp(socket), None))
            }
            BoundSocket::Unix(socket, file) => {
                UnixListener::from_std(socket).map(|socket| (ListeningSocket::Unix(socket), file))
            }
        };
        match socket {
            Ok((socket, file)) => Ok(Listener::new(socket, file, local, source)),
            Err(error) => Err(ListenError::Refused { place: source, source: error }),
        }
    }
}

/// Sockets that others have opened for us, as long as no source has taken them: the service manager, which has a name for each,
/// and the process that served before, which knows the sources.
#[derive(Default)]
pub struct Passed {
    sockets: Vec<PassedSocket>,
    handed_over: Vec<HandedOver>,
}

/// A socket that another process has listened on for `source`, and goes on listening on unless we take it over for good.
pub struct HandedOver {
    socket: BoundSocket,
    local: Endpoint,
    source: Source,
}

impl HandedOver {
    /// `socket`, which listens. Its file, if it has one, is the other process's to remove.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(socket: OwnedFd, source: Source) -> io::Result<Self> {
        never_block(&socket)?;
        let view = SockRef::from(&socket);
        let address = view.local_addr()?;
        let (local, socket) = if view.domain()? == Domain::UNIX {
            let name = UnixName::of(&address).map_err(io::Error::other)?;
            (Endpoint::Unix(name), BoundSocket::Unix(socket.into(), None))
        } else {
            let address = address.as_socket().ok_or(io::ErrorKind::Unsupported)?;
            (Endpoint::Ip(address), BoundSocket::Tcp(socket.into()))
        };
        Ok(Self { socket, local, source })
    }

    /// Whether clients can still reach it: somebody may have removed its file.
    fn is_reachable(&self) -> bool {
        match &self.source {
            // Without connecting, for it would be a client of the other process.
            Source::At(Endpoint::Unix(name)) => name.file().is_none_or(|file| {
                std::fs::symlink_metadata(file).is_ok_and(|metadata| metadata.file_type().is_socket())
            }),
            _ => true,
        }
    }
}

/// The longest that accept(2) may block, if it does at all: the shortest time that the kernel can wait.
const NEVER_BLOCK: Duration = Duration::from_micros(1);

/// Keeps accept(2) from waiting at a socket that other processes have too. O_NONBLOCK belongs to the socket and not to a process, and systemd
/// takes it away whenever it starts a process with the socket (NonBlocking=, systemd.service(5)); the process that serves until that
/// one takes over would stand still in accept(2). The time limit of the socket (SO_RCVTIMEO) nobody changes.
fn never_block(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(NEVER_BLOCK))
}

struct PassedSocket {
    name: String,
    socket: BoundSocket,
    local: Endpoint,
}

impl Passed {
    /// Adds a TCP socket that listens already.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add_tcp(&mut self, name: String, socket: std::net::TcpListener) -> io::Result<()> {
        never_block(&socket)?;
        let local = Endpoint::Ip(socket.local_addr()?);
        self.sockets.push(PassedSocket { name, socket: BoundSocket::Tcp(socket), local });
        Ok(())
    }

    /// Adds a Unix-domain socket that listens already. Its file, if it has one, belongs to the program that made it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add_unix(&mut self, name: String, socket: std::os::unix::net::UnixListener) -> io::Result<()> {
        never_block(&socket)?;
        let address = SockRef::from(&socket).local_addr()?;
        let local = Endpoint::Unix(UnixName::of(&address).map_err(io::Error::other)?);
        self.sockets.push(PassedSocket { name, socket: BoundSocket::Unix(socket, None), local });
        Ok(())
    }

    /// Has `sockets` taken before anything is bound, and closes those that were to be taken before and were not.
    pub fn hand_over(&mut self, sockets: Vec<HandedOver>) {
        self.handed_over = sockets;
    }

    /// All that were handed over for `source`. None, if it has to be bound.
    pub(super) fn take_handed_over(&mut self, source: &Source) -> Vec<Bound> {
        let is_ours = |socket: &mut HandedOver| socket.source == *source && socket.is_reachable();
        self.handed_over
            .extract_if(.., is_ours)
            .map(|HandedOver { socket, local, source }| Bound { socket, local, source })
            .collect()
    }

    /// The names of those that no source has taken.
    pub fn names(&self) -> Vec<String> {
        self.sockets.iter().map(|passed| passed.name.clone()).collect()
    }

    /// All with this name, or all there are, for `source`.
    pub(super) fn take(&mut self, name: Option<&SocketName>, source: &Source) -> Vec<Bound> {
        let wanted = |passed: &mut PassedSocket| name.is_none_or(|name| name.as_str() == passed.name);
        self.sockets
            .extract_if(.., wanted)
            .map(|PassedSocket { socket, local, .. }| Bound { socket, local, source: source.clone() })
            .collect()
    }
}
