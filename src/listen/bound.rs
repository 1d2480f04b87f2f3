//! Sockets that listen already: bound by us before there is a runtime, or passed by the service manager.

use std::io;

use tokio::net::{TcpListener, UnixListener};

use super::ListenError;
use super::accept::{Listener, Socket};
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
            BoundSocket::Tcp(socket) => TcpListener::from_std(socket).map(Socket::Tcp),
            BoundSocket::Unix(socket, file) => {
                UnixListener::from_std(socket).map(|socket| Socket::Unix(socket, file))
            }
        };
        match socket {
            Ok(socket) => Ok(Listener::new(socket, local, source)),
            Err(error) => Err(ListenError::Refused { place: source, source: error }),
        }
    }
}

/// Sockets that the service manager has passed, by their names, as long as no source has taken them.
#[derive(Default)]
pub struct Passed {
    sockets: Vec<PassedSocket>,
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
        socket.set_nonblocking(true)?;
        let local = Endpoint::Ip(socket.local_addr()?);
        self.sockets.push(PassedSocket { name, socket: BoundSocket::Tcp(socket), local });
        Ok(())
    }

    /// Adds a Unix-domain socket that listens already. Its file, if it has one, belongs to the program that made it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add_unix(&mut self, name: String, socket: std::os::unix::net::UnixListener) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let address = socket2::SockRef::from(&socket).local_addr()?;
        let local = Endpoint::Unix(UnixName::of(&address).map_err(io::Error::other)?);
        self.sockets.push(PassedSocket { name, socket: BoundSocket::Unix(socket, None), local });
        Ok(())
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
