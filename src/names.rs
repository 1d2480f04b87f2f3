//! Host names become addresses, by the system's resolver: hosts file, nsswitch, search domains and all.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use thiserror::Error;
use vec1::Vec1;

/// Why a name gives no address.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The resolver says no.
    #[error("cannot resolve '{host}': {source}")]
    Refused {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// The name exists and has no address.
    #[error("'{0}' has no address")]
    NoAddress(String),
}

/// The names that the pipes of a process look up.
#[derive(Default)]
pub struct Names(());

impl Names {
    /// The addresses of `host`, with `port`, looked up now.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> Result<Vec1<SocketAddr>, ResolveError> {
        // getaddrinfo(3) knows no other way than to block.
        let name = host.to_owned();
        let looking_up = tokio::task::spawn_blocking(move || resolve_blocking(&name, port));
        looking_up.await.unwrap_or_else(|panic| {
            Err(ResolveError::Refused { host: host.to_owned(), source: io::Error::other(panic) })
        })
    }
}

/// The same, for where there is no runtime.
///
/// # Errors
/// [`ResolveError`].
pub(crate) fn resolve_blocking(host: &str, port: u16) -> Result<Vec1<SocketAddr>, ResolveError> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|source| ResolveError::Refused { host: host.to_owned(), source })?;
    Vec1::try_from_vec(found.collect()).map_err(|_| ResolveError::NoAddress(host.to_owned()))
}
