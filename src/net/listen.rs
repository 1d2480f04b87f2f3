//! Listening.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::{debug, warn};

use super::addr::{Endpoint, Source, UnixName};
use super::stream::{Keepalive, Stream};

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

/// A listening socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix-domain socket.
    Unix(UnixListener, UnixName, Option<SocketFile>),
}

impl Listener {
    /// Where it listens: for `[127.0.0.1]:0` the port that was chosen.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local(&self) -> io::Result<Endpoint> {
        match self {
            Self::Tcp(listener) => Ok(Endpoint::Ip(listener.local_addr()?)),
            Self::Unix(_, name, _) => Ok(Endpoint::Unix(name.clone())),
        }
    }

    /// The next connection and where it comes from. Failures of accept(2) never end the loop that calls this: a connection
    /// that died in the queue is passed over, and a lack of descriptors or memory is waited out.
    pub(crate) async fn accept(&self, keepalive: Keepalive) -> (Stream, Option<SocketAddr>) {
        let mut pause = BACK_OFF_MIN;
        loop {
            let accepted = match self {
                Self::Tcp(listener) => {
                    listener.accept().await.map(|(stream, peer)| (Stream::tcp(stream, keepalive), Some(peer)))
                }
                Self::Unix(listener, ..) => {
                    listener.accept().await.map(|(stream, _)| (Stream::Unix(stream), None))
                }
            };
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
                        warn!(%error, "cannot accept connections for now; running ones go on");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

/// Starts to listen on all that `source` stands for.
///
/// # Errors
/// [`ListenError`]. Where `source` stands for several addresses, those of a family that this host does not have are passed
/// over, as long as one is left.
pub async fn listen(source: &Source) -> Result<Vec<Listener>, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), error };
    match source {
        Source::At(Endpoint::Unix(name)) => Ok(vec![listen_unix(name, source).await?]),
        Source::At(endpoint) => {
            let addresses = endpoint.resolve().await.map_err(refused)?;
            listen_tcp(&addresses).map_err(refused)
        }
        Source::Every { port } => {
            let any = |port| [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
            listen_tcp(&any(*port)).map_err(refused)
        }
    }
}

fn listen_tcp(addresses: &[SocketAddr]) -> io::Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut missing = None;
    for &(mut address) in addresses {
        // When the system chooses the port, it chooses once for all addresses.
        if address.port() == 0
            && let Some(Ok(Endpoint::Ip(first))) = listeners.first().map(Listener::local)
        {
            address.set_port(first.port());
        }
        match bind_tcp(address) {
            Ok(listener) => listeners.push(Listener::Tcp(listener)),
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

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    // Else a restart would have to wait until the old connections' TIME_WAIT is over.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // The IPv4 side of "every address" has a socket of its own.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn listen_unix(name: &UnixName, source: &Source) -> Result<Listener, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), error };
    if let Some(file) = name.file() {
        clear_the_way(file, name, refused).await?;
    }
    let listener = UnixListener::bind(name.as_path()).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(name.clone()),
        _ => refused(error),
    })?;
    let file = name.file().map(SocketFile::new).transpose().map_err(refused)?;
    Ok(Listener::Unix(listener, name.clone(), file))
}

/// Removes a socket that nobody listens on any more, such as a killed process leaves behind.
async fn clear_the_way(
    file: &Path,
    name: &UnixName,
    refused: impl Fn(io::Error) -> ListenError,
) -> Result<(), ListenError> {
    match std::fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(name.clone()));
        }
        Ok(_) => {}
    }
    // Only a connection attempt tells whether somebody listens. A full queue (EAGAIN) is somebody, too.
    match UnixStream::connect(file).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(file).map_err(refused)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refused(error)),
        _ => Err(ListenError::InUse(name.clone())),
    }
}

/// The file of a Unix-domain socket that we listen on. Dropping it removes the file, unless another has taken its place.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, which name a file for good.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
