//! Which addresses may connect (`--allow`, `--deny`).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::stream::Remote;

/// Lists of networks: pure data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// If there are any, only these may connect.
    allow: Option<Networks>,
    /// These may not, whatever the other list says.
    deny: Networks,
}

impl Access {
    /// Addresses in `allow`, if that is given, and not in `deny`.
    pub fn new(allow: Option<Vec<IpNet>>, deny: Vec<IpNet>) -> Self {
        Self { allow: allow.map(Networks::new), deny: Networks::new(deny) }
    }

    /// Whether `remote` may connect. Local clients may: the permissions of the socket's file are the list for these.
    pub(super) fn admits(&self, remote: Remote) -> bool {
        let Remote::Ip(ip, _) = remote else { return true };
        let is_allowed = self.allow.as_ref().is_none_or(|allow| allow.contain(ip));
        is_allowed && !self.deny.contain(ip)
    }
}

/// The proxies that may tell who is behind them (`--trust-proxy`): pure data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxies(Networks);

impl TrustedProxies {
    /// Those of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(Networks::new(networks))
    }

    /// Whether `remote` may tell. Local ones may: the permissions of the socket's file are the list for these.
    pub(super) fn contain(&self, remote: Remote) -> bool {
        match remote {
            Remote::Ip(ip, _) => self.0.contain(ip),
            Remote::Process { .. } | Remote::Local => true,
        }
    }
}

/// Networks in order, of which none contains another: looking an address up in a list of a million takes twenty steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Networks {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Networks {
    fn new(networks: Vec<IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => v4.push(network),
                IpNet::V6(network) => v6.push(network),
            }
        }
        Self { v4: Ipv4Net::aggregate(&v4), v6: Ipv6Net::aggregate(&v6) }
    }

    fn contain(&self, ip: IpAddr) -> bool {
        // An IPv4 client of a socket for IPv6 is an IPv4 client (RFC 4291, section 2.5.5.2).
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let behind = self.v4.partition_point(|network| network.network() <= ip);
                behind > 0 && self.v4[behind - 1].contains(&ip)
            }
            IpAddr::V6(ip) => {
                let behind = self.v6.partition_point(|network| network.network() <= ip);
                behind > 0 && self.v6[behind - 1].contains(&ip)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn admits(access: &Access, ip: &str) -> bool {
        access.admits(Remote::Ip(ip.parse().unwrap(), 1))
    }

    #[test]
    fn without_lists_all_may_connect() {
        assert!(admits(&Access::default(), "192.0.2.1") && admits(&Access::default(), "2001:db8::1"));
    }

    #[test]
    fn only_what_is_allowed_may_connect() {
        let access =
            Access::new(Some(networks(&["192.0.2.0/25", "2001:db8::/48", "198.51.100.7/32"])), Vec::new());
        for ip in ["192.0.2.0", "192.0.2.127", "198.51.100.7", "2001:db8:0:ffff::", "::ffff:192.0.2.5"] {
            assert!(admits(&access, ip), "{ip}");
        }
        for ip in
            ["192.0.2.128", "192.0.1.255", "198.51.100.6", "198.51.100.8", "2001:db8:1::", "::1", "0.0.0.0"]
        {
            assert!(!admits(&access, ip), "{ip}");
        }
    }

    #[test]
    fn what_is_denied_may_not_connect_also_if_it_is_allowed() {
        let access = Access::new(Some(networks(&["10.0.0.0/8"])), networks(&["10.1.0.0/16"]));
        assert!(admits(&access, "10.0.255.255") && admits(&access, "10.2.0.0"));
        assert!(!admits(&access, "10.1.0.0") && !admits(&access, "10.1.255.255"));
    }

    #[test]
    fn an_empty_list_of_what_is_allowed_admits_nobody() {
        assert!(!admits(&Access::new(Some(Vec::new()), Vec::new()), "127.0.0.1"));
    }

    #[test]
    fn networks_within_others_do_not_hide_them() {
        let access = Access::new(None, networks(&["10.0.0.0/8", "10.5.0.0/16", "10.5.5.5/32", "0.0.0.0/32"]));
        for ip in ["10.0.0.1", "10.5.0.1", "10.5.5.5", "10.5.5.6", "10.255.255.255", "0.0.0.0"] {
            assert!(!admits(&access, ip), "{ip}");
        }
        assert!(admits(&access, "0.0.0.1") && admits(&access, "11.0.0.0"));
    }

    #[test]
    fn local_clients_are_in_no_list() {
        assert!(Access::new(Some(Vec::new()), networks(&["0.0.0.0/0", "::/0"])).admits(Remote::Local));
    }
}
