//! One way to a target: pure data.

use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;

use super::tls::{CertificateName, Start, TlsClient};
use super::via::{Credentials, Via};
use crate::addr::{Endpoint, Interface, Outgoing, Proxy, Scheme, Target, UnixName};

/// A target and the address to reach it from: pure data, and of kinds that go together.
#[derive(Clone, Debug)]
pub struct Route {
    target: Target,
    from: Option<Outgoing>,
    pub(super) way: Way,
}

#[derive(Clone, Debug)]
pub(super) enum Way {
    Tcp(Box<TcpWay>),
    Unix { to: UnixName, from: Option<UnixName> },
}

/// The layers of a way over TCP, in the order in which they are connected.
#[derive(Clone, Debug)]
pub(super) struct TcpWay {
    pub(super) from: Option<Host>,
    pub(super) over: Option<Interface>,
    pub(super) via: Option<Via>,
    pub(super) to: Host,
    pub(super) tls: Option<TlsRoute>,
}

impl TcpWay {
    fn new(to: Host, from: Option<Host>) -> Box<Self> {
        Box::new(Self { from, over: None, via: None, to, tls: None })
    }

    /// What is connected to.
    pub(super) fn first_hop(&self) -> &Host {
        self.via.as_ref().map_or(&self.to, |via| &via.host)
    }
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

impl Host {
    /// A place that TCP can reach, or the name of a Unix-domain socket.
    fn of(endpoint: &Endpoint) -> Result<Self, UnixName> {
        match endpoint.clone() {
            Endpoint::Ip(address) => Ok(Self::Address(address)),
            Endpoint::Name { host, port } => Ok(Self::Name { host, port }),
            Endpoint::Unix(name) => Err(name),
        }
    }
}

/// An outgoing address that cannot reach its target, whatever the network does.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the target {target} cannot be reached from {from}: both are to be Unix-domain sockets, or neither")]
pub struct FamilyMismatch {
    target: Target,
    from: Outgoing,
}

/// A target that no proxy leads to.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no proxy leads to {0}: it is a Unix-domain socket of this host; leave --via out")]
pub struct NotThroughProxy(Target);

/// A target that no interface leads to.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no network interface leads to {0}: it is a Unix-domain socket of this host; leave --interface out")]
pub struct NotOverInterface(Target);

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
        let way = match (Host::of(target.endpoint()), from.as_ref().map(|from| Host::of(from.endpoint()))) {
            (Ok(to), None) => Way::Tcp(TcpWay::new(to, None)),
            (Ok(to), Some(Ok(from))) => Way::Tcp(TcpWay::new(to, Some(from))),
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
        if let Way::Tcp(way) = &mut self.way {
            let host = match &way.to {
                Host::Address(address) => address.ip().into(),
                Host::Name { host, .. } => host.parse().map_err(|_| NotAServerName(host.clone()))?,
            };
            way.tls = Some(TlsRoute { client: client.clone(), start, host });
        }
        Ok(self)
    }

    /// The same way, through `proxy`, which is told `credentials`.
    ///
    /// # Errors
    /// [`NotThroughProxy`].
    ///
    /// # Panics
    /// Never: a proxy is an IP address or a name.
    pub fn through(
        mut self,
        proxy: Proxy,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Self, NotThroughProxy> {
        let Way::Tcp(way) = &mut self.way else { return Err(NotThroughProxy(self.target)) };
        let host = Host::of(proxy.endpoint()).expect("a proxy is an IP address or a name");
        way.via = Some(Via { proxy, host, credentials });
        Ok(self)
    }

    /// The same way, over `interface` and no other.
    ///
    /// # Errors
    /// [`NotOverInterface`].
    pub fn over(mut self, interface: Interface) -> Result<Self, NotOverInterface> {
        let Way::Tcp(way) = &mut self.way else { return Err(NotOverInterface(self.target)) };
        way.over = Some(interface);
        Ok(self)
    }

    /// The interface that it goes over, if that is not left to the system.
    pub fn interface(&self) -> Option<Interface> {
        match &self.way {
            Way::Tcp(way) => way.over,
            Way::Unix { .. } => None,
        }
    }

    /// The proxy that it goes through, if it does.
    pub fn proxy(&self) -> Option<&Proxy> {
        match &self.way {
            Way::Tcp(way) => way.via.as_ref().map(|via| &via.proxy),
            Way::Unix { .. } => None,
        }
    }

    /// Whether it leads to a TLS target that is not verified.
    pub fn is_unverified(&self) -> bool {
        match &self.way {
            Way::Tcp(way) => way.tls.as_ref().is_some_and(|tls| !tls.client.verifies()),
            Way::Unix { .. } => false,
        }
    }

    /// Where it leads, as it was written.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The host names that it takes to connect.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let hosts = match &self.way {
            Way::Tcp(way) => [Some(way.first_hop()), way.from.as_ref()],
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
