//! Where connections come from, as far as they count together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::stream::Remote;

/// What counts as one source.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// The network, and the host or the site in it: what one who has one address usually has more of.
    Network { block: IpAddr, host: IpAddr },
    /// A Unix-domain socket.
    Local,
}

impl Source {
    pub(super) fn of(remote: Remote) -> Self {
        let Remote::Ip(ip, _) = remote else { return Self::Local };
        let ip = ip.to_canonical();
        let (block, host) = match ip {
            IpAddr::V4(_) => (24, 32),
            // RFC 6177: a site has a /48 to a /64, and chooses freely within it.
            IpAddr::V6(_) => (48, 64),
        };
        Self::Network { block: network(ip, block), host: network(ip, host) }
    }

    pub(super) fn block(self) -> Option<IpAddr> {
        match self {
            Self::Network { block, .. } => Some(block),
            Self::Local => None,
        }
    }

    /// The IPv4 address, or the beginning of the IPv6 /64.
    pub(super) fn host(self) -> Option<IpAddr> {
        match self {
            Self::Network { host, .. } => Some(host),
            Self::Local => None,
        }
    }
}

/// The first `bits` of an address.
fn network(ip: IpAddr, bits: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & u32::MAX << (32 - bits)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & u128::MAX << (128 - bits)).into(),
    }
}
