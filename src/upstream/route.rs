//! One way to a target: pure data.

use std::net::SocketAddr;

use thiserror::Error;

use super::tls::{CertificateName, Start, TlsClient};
use crate::addr::{Endpoint, Outgoing, Scheme, Target, UnixName};

/// A target and the address to reach it from: pure data, and of kinds that go together.
#[derive(Clone, Debug)]
pub struct Route {
    target: Target,
    from: Option<Outgoing>,
    pub(super) way: Way,
}

#[derive(Clone, Debug)]
pub(super) enum Way {
    Tcp { to: Host, from: Option<Host>, tls: Option<TlsRoute> },
    Unix { to: UnixName, from: Option<UnixName> },
}

/// How TLS is spoken with a target.
#[derive(Clone, Debug)]
pub(super) struct TlsRoute {
    pub(super) client: TlsClient,
    pub(super) start: Start,
    /// Whom its certificate is to be for.
    pub(super) host: CertificateName,
}

/// What TCP can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Address(SocketAddr),
    Name { host: String, port: u16 },
}

/// An outgoing address that cannot reach its target, whatever the network does.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the target {target} cannot be reached from {from}: both are to be Unix-domain sockets, or neither")]
pub struct FamilyMismatch {
    target: Target,
    from: Outgoing,
}

/// A host that no certificate can be for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no certificate can be for the host '{0}'")]
pub struct NotAServerName(String);

impl Route {
    /// The way to `target`, from the address `from` if that is not left to the system.
    ///
    /// # Errors
    /// [`FamilyMismatch`].
    pub fn new(target: Target, from: Option<Outgoing>) -> Result<Self, FamilyMismatch> {
        /// A Unix-domain socket's name, or what TCP can reach.
        fn sort(endpoint: &Endpoint) -> Result<Host, UnixName> {
            match endpoint.clone() {
                Endpoint::Ip(address) => Ok(Host::Address(address)),
                Endpoint::Name { host, port } => Ok(Host::Name { host, port }),
                Endpoint::Unix(name) => Err(name),
            }
        }
        let way = match (sort(target.endpoint()), from.as_ref().map(|from| sort(from.endpoint()))) {
            (Ok(to), None) => Way::Tcp { to, from: None, tls: None },
            (Ok(to), Some(Ok(from))) => Way::Tcp { to, from: Some(from), tls: None },
            (Err(to), None) => Way::Unix { to, from: None },
            (Err(to), Some(Err(from))) => Way::Unix { to, from: Some(from) },
            (Ok(_), Some(Err(_))) | (Err(_), Some(Ok(_))) => {
                let from = from.expect("it is the one that does not match");
                return Err(FamilyMismatch { target, from });
            }
        };
        Ok(Self { target, from, way })
    }

    /// The same way, on which `client` speaks TLS if the target's scheme says so.
    ///
    /// # Errors
    /// [`NotAServerName`], for a host that no certificate can be for.
    pub fn with_tls(mut self, client: &TlsClient) -> Result<Self, NotAServerName> {
        let start = match self.target.scheme() {
            Scheme::Plain => return Ok(self),
            Scheme::Tls => Start::AtOnce,
            Scheme::PostgresTls => Start::Postgres,
        };
        if let Way::Tcp { to, tls, .. } = &mut self.way {
            let host = match to {
                Host::Address(address) => address.ip().into(),
                Host::Name { host, .. } => host.parse().map_err(|_| NotAServerName(host.clone()))?,
            };
            *tls = Some(TlsRoute { client: client.clone(), start, host });
        }
        Ok(self)
    }

    /// Whether it leads to a TLS target that is not verified.
    pub fn is_unverified(&self) -> bool {
        matches!(&self.way, Way::Tcp { tls: Some(tls), .. } if !tls.client.verifies())
    }

    /// Where it leads, as it was written.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The host names that it takes to connect.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let hosts = match &self.way {
            Way::Tcp { to, from, .. } => [Some(to), from.as_ref()],
            Way::Unix { .. } => [None, None],
        };
        hosts.into_iter().flatten().filter_map(|host| match host {
            Host::Name { host, .. } => Some(&**host),
            Host::Address(_) => None,
        })
    }

    /// The outgoing address, as it was written, if that is not left to the system.
    pub fn outgoing(&self) -> Option<&Outgoing> {
        self.from.as_ref()
    }
}

impl From<Target> for Route {
    fn from(target: Target) -> Self {
        Self::new(target, None).expect("the system's own address is of every kind")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_target_cannot_be_reached_from_an_ip_address() {
        for (target, from) in [("/a", "127.0.0.1"), ("127.0.0.1:1", "/a"), ("host:1", "@a")] {
            let route = Route::new(target.parse().unwrap(), Some(from.parse().unwrap()));
            assert!(route.is_err(), "{target} from {from}");
        }
    }
}
