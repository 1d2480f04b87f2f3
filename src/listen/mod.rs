//! Sources become sockets that listen, and sockets become arrivals.
//!
//! Binding needs no runtime and comes before it: what a process does between the two (leaving its user, say) must come
//! before the first thread. A [`Bound`] socket becomes a [`Listener`] inside the runtime.

mod accept;
mod bound;
mod permissions;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

pub use self::accept::{Arrival, Handle, Listener, Listeners, ListeningSocket};
pub use self::bound::{Bound, HandedOver, Passed};
pub use self::permissions::{NotASocketMode, PermissionsError, SocketMode, SocketOwner, SocketPermissions};
use crate::addr::{Endpoint, Source, UnixName};
use crate::names::{self, ResolveError};
use crate::stream::socket_file::{Existing, SocketFile};

/// Connections that the kernel may hold for us before they are accepted: a burst waits there. The kernel caps this at
/// net.core.somaxconn, which is 4096 unless somebody has changed it.
const BACKLOG: i32 = 4096;

/// Why a source cannot be listened on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The operating system says no.
    #[error("cannot listen on {place}: {source}{}", hint(place, source))]
    Refused {
        /// Where.
        place: Source,
        /// Why.
        source: io::Error,
    },
    /// The name of the source has no address.
    #[error("cannot listen on {place}: {source}")]
    Unresolved {
        /// Where.
        place: Source,
        /// Why.
        source: ResolveError,
    },
    /// Something that is no socket has the name.
    #[error("cannot listen on {0}: a file that is not a socket has this name; choose another or remove it")]
    NotASocket(UnixName),
    /// Its file cannot have the permissions that it is to have.
    #[error("cannot listen on {place}: {source}")]
    Permissions {
        /// Where.
        place: Source,
        /// Why.
        source: PermissionsError,
    },
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

/// Starts to listen on all that `source` stands for, some of which may be among those `passed`. The file of a Unix-domain socket gets
/// `permissions`; one that systemd has passed has its own. Looking up a name blocks.
///
/// # Errors
/// [`ListenError`]. Where `source` stands for several addresses, those of a family that this host does not have are passed
/// over, as long as one is left.
pub fn listen(
    source: &Source,
    permissions: &SocketPermissions,
    passed: &mut Passed,
) -> Result<Vec<Bound>, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), source: error };
    let handed_over = passed.take_handed_over(source);
    if !handed_over.is_empty() {
        if let Source::At(Endpoint::Unix(name)) = source
            && let Some(path) = name.file()
        {
            give_permissions(permissions, path, source)?;
        }
        return Ok(handed_over);
    }
    match source {
        Source::Passed(name) => match passed.take(name.as_ref(), source) {
            none if none.is_empty() => {
                Err(ListenError::NotPassed { place: source.clone(), passed: passed.names() })
            }
            sockets => Ok(sockets),
        },
        Source::At(Endpoint::Unix(name)) => Ok(vec![listen_unix(name, source, permissions)?]),
        Source::At(Endpoint::Ip(address)) => listen_tcp(&[*address], source).map_err(refused),
        Source::At(Endpoint::Name { host, port }) => {
            let addresses = names::resolve_blocking(host, *port)
                .map_err(|error| ListenError::Unresolved { place: source.clone(), source: error })?;
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
    Bound::tcp(socket.into(), source.clone())
}

fn give_permissions(
    permissions: &SocketPermissions,
    path: &Path,
    source: &Source,
) -> Result<(), ListenError> {
    let refused = |error| ListenError::Permissions { place: source.clone(), source: error };
    permissions.give_to(path).map_err(refused)
}

fn listen_unix(
    name: &UnixName,
    source: &Source,
    permissions: &SocketPermissions,
) -> Result<Bound, ListenError> {
    let refused = |error| ListenError::Refused { place: source.clone(), source: error };
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
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.bind(&SockAddr::unix(name.as_path())?)?;
        Ok(socket)
    };
    let socket = bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(name.clone()),
        _ => refused(error),
    })?;
    let file = name.file().map(SocketFile::own).transpose().map_err(refused)?;
    if let Some(path) = name.file() {
        give_permissions(permissions, path, source)?;
    }
    socket.listen(BACKLOG).map_err(refused)?;
    Ok(Bound::unix(socket.into(), file, name.clone(), source.clone()))
}
