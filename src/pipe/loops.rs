//! Pipes that lead into themselves: a connection to one of them would make the next without end, and take all its places.
//!
//! Found is what can be told here and now: by addresses, by names that are equal, and by `localhost`. No name is looked up,
//! for what a name stands for may be another thing at the time of a connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::spec::Spec;
use crate::addr::{Endpoint, Source, Target};
use crate::upstream::Route;

/// A pipe, and the target by which it leads to the next one.
pub(super) struct Step<'s> {
    /// Its place among all pipes.
    pub(super) pipe: usize,
    pub(super) target: &'s Target,
}

/// Pipes of which each leads to the next, and the last to the first.
pub(super) fn find(specs: &[Spec]) -> Option<Vec<Step<'_>>> {
    let mut listening: HashMap<Endpoint, Vec<usize>> = HashMap::new();
    for (number, spec) in specs.iter().enumerate() {
        for place in spec.sources.iter().flat_map(listens_at) {
            listening.entry(place).or_default().push(number);
        }
    }
    let at = |place: &Endpoint| listening.get(place).map(Vec::as_slice).unwrap_or_default();
    let leads_to = |target: &Target| {
        let mut next = Vec::new();
        for place in connects_to(target.endpoint()) {
            next.extend(at(&place));
            if let Endpoint::Ip(address) = place {
                let every_address = at(&ip(unspecified(address.ip()), address.port()));
                if !every_address.is_empty() && is_of_this_host(address.ip()) {
                    next.extend(every_address);
                }
            }
        }
        next
    };
    let next = |spec: &Spec| targets(spec).flat_map(leads_to).collect::<Vec<_>>();
    let pipes = cycle(&specs.iter().map(next).collect::<Vec<_>>())?;
    let steps = pipes.iter().zip(pipes.iter().cycle().skip(1)).map(|(&pipe, next)| {
        let target = targets(&specs[pipe]).find(|target| leads_to(target).contains(next));
        Step { pipe, target: target.expect("one of its targets led there") }
    });
    Some(steps.collect())
}

/// Those that are connected to from here. What an address is to a proxy, nobody here can tell.
fn targets(spec: &Spec) -> impl Iterator<Item = &Target> {
    spec.common.targets.routes().iter().filter(|route| route.proxy().is_none()).map(Route::target)
}

/// The places at which a source waits for connections; an unspecified address is all of its family.
fn listens_at(source: &Source) -> Vec<Endpoint> {
    match source {
        // The system chooses the port, so no target can name it.
        Source::At(endpoint) if endpoint.port() == Some(0) => Vec::new(),
        Source::At(endpoint) => as_ip_or_itself(endpoint),
        Source::Every { port } => {
            vec![ip(Ipv4Addr::UNSPECIFIED.into(), *port), ip(Ipv6Addr::UNSPECIFIED.into(), *port)]
        }
        // Known only when the process has started.
        Source::Passed(_) => Vec::new(),
    }
}

/// The places that a connection to `target` may come to.
fn connects_to(target: &Endpoint) -> Vec<Endpoint> {
    let mut places = as_ip_or_itself(target);
    for place in &mut places {
        // Connecting to the unspecified address is connecting to the loopback address (ip(7)).
        if let Endpoint::Ip(address) = place
            && address.ip().is_unspecified()
        {
            address.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
    }
    places
}

/// `endpoint` in one form for all ways to write it.
fn as_ip_or_itself(endpoint: &Endpoint) -> Vec<Endpoint> {
    match endpoint {
        Endpoint::Ip(address) => vec![ip(address.ip(), address.port())],
        // Its addresses are fixed (RFC 6761, section 6.3).
        Endpoint::Name { host, port } if host.eq_ignore_ascii_case("localhost") => {
            vec![ip(Ipv4Addr::LOCALHOST.into(), *port), ip(Ipv6Addr::LOCALHOST.into(), *port)]
        }
        Endpoint::Name { host, port } => {
            vec![Endpoint::Name { host: host.to_ascii_lowercase(), port: *port }]
        }
        Endpoint::Unix(_) => vec![endpoint.clone()],
    }
}

fn ip(address: IpAddr, port: u16) -> Endpoint {
    Endpoint::Ip(SocketAddr::new(address.to_canonical(), port))
}

fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Whether a connection to `address` stays on this host. Connecting a datagram socket sends nothing, and the kernel gives it
/// the address from which it would send; to an address of this host, that is the same one. Trying to bind to the address
/// would tell nothing where net.ipv4.ip_nonlocal_bind is set.
fn is_of_this_host(address: IpAddr) -> bool {
    let sends_from = || {
        let socket = UdpSocket::bind((unspecified(address), 0))?;
        // Any port: that of "discard" has a number.
        socket.connect((address, 9))?;
        socket.local_addr()
    };
    address.is_loopback() || sends_from().is_ok_and(|local| local.ip() == address)
}

/// A cycle in the graph that has an arrow from each place of `next` to the places there.
fn cycle(next: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy)]
    enum Seen {
        No,
        /// So many steps from the start of the path.
        OnPath(usize),
        /// No cycle can be reached from it.
        Done,
    }
    let mut seen = vec![Seen::No; next.len()];
    for start in 0..next.len() {
        // A path from `start`; of each place on it, how many of its arrows have been followed.
        let mut path = Vec::new();
        let mut step = Some(start);
        loop {
            match step.map(|to| (to, seen[to])) {
                Some((to, Seen::No)) => {
                    seen[to] = Seen::OnPath(path.len());
                    path.push((to, 0));
                }
                Some((_, Seen::OnPath(first))) => {
                    return Some(path[first..].iter().map(|(place, _)| *place).collect());
                }
                Some((_, Seen::Done)) | None => {}
            }
            let Some((place, followed)) = path.last_mut() else { break };
            step = next[*place].get(*followed).copied();
            *followed += 1;
            if step.is_none() {
                seen[*place] = Seen::Done;
                path.pop();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proto::cipher::{Cipher, Ciphers};
    use crate::proto::key::Key;

    /// The cycle among pipes that are written as `source > target`.
    fn cycle_of(pipes: &[&str]) -> Option<Vec<usize>> {
        let key = Arc::new(Key::from_bytes(&[1; 32]).unwrap());
        let spec = |text: &&str| {
            let (source, target) = text.split_once(" > ").unwrap();
            let ciphers = Ciphers::only(Cipher::Aes256Gcm);
            Spec::initiator(source.parse().unwrap(), target.parse().unwrap(), Arc::clone(&key), ciphers)
        };
        let specs: Vec<_> = pipes.iter().map(spec).collect();
        find(&specs).map(|steps| steps.iter().map(|step| step.pipe).collect())
    }

    /// An address of this host that is no loopback address, where it has one.
    fn own_address() -> Option<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.1:9").ok()?;
        Some(socket.local_addr().unwrap().ip())
    }

    #[test]
    fn a_target_that_is_the_pipes_own_source_is_found() {
        for pipe in [
            "127.0.0.1:80 > 127.0.0.1:80",
            "[::1]:80 > [::1]:80",
            "0.0.0.0:80 > 127.0.0.1:80",
            "0.0.0.0:80 > 127.9.9.9:80",
            "0.0.0.0:80 > 0.0.0.0:80",
            "127.0.0.1:80 > 0.0.0.0:80",
            "[::]:80 > [::1]:80",
            "*:80 > 127.0.0.1:80",
            "*:80 > [::1]:80",
            "*:80 > localhost:80",
            "127.0.0.1:80 > localhost:80",
            "[::1]:80 > LocalHost:80",
            "localhost:80 > 127.0.0.1:80",
            "localhost:80 > localhost:80",
            "127.0.0.1:80 > [::ffff:127.0.0.1]:80",
            "proxy.example:80 > Proxy.example:80",
            "/run/a.sock > /run/a.sock",
            "/run/a.sock > /run//./a.sock",
            "@a > @a",
        ] {
            assert_eq!(cycle_of(&[pipe]), Some(vec![0]), "{pipe}");
        }
    }

    #[test]
    fn a_target_elsewhere_is_none() {
        for pipe in [
            "127.0.0.1:80 > 127.0.0.1:81",
            "127.0.0.1:80 > 127.0.0.2:80",
            "127.0.0.1:80 > [::1]:80",
            "0.0.0.0:80 > [::1]:80",
            "[::]:80 > 127.0.0.1:80",
            "*:80 > 192.0.2.1:80",
            "*:80 > [2001:db8::1]:80",
            "*:80 > server:80",
            "127.0.0.1:0 > 127.0.0.1:80",
            "systemd > 127.0.0.1:80",
            "/run/a.sock > /run/b.sock",
            "/a > @a",
        ] {
            assert_eq!(cycle_of(&[pipe]), None, "{pipe}");
        }
    }

    #[test]
    fn an_address_of_this_host_is_reached_at_every_address() {
        if let Some(own) = own_address() {
            assert_eq!(cycle_of(&[&format!("*:80 > {own}:80")]), Some(vec![0]));
            assert_eq!(cycle_of(&[&format!("127.0.0.1:80 > {own}:80")]), None);
        }
    }

    #[test]
    fn a_chain_of_pipes_is_no_cycle() {
        assert_eq!(cycle_of(&["127.0.0.1:1 > 127.0.0.1:2", "127.0.0.1:2 > 127.0.0.1:3"]), None);
        assert_eq!(cycle_of(&["127.0.0.1:2 > 127.0.0.1:3", "127.0.0.1:1 > 127.0.0.1:2"]), None);
        // Two ways to one place.
        let both =
            ["[::1]:1 > localhost:2", "[::1]:2 > [::1]:3", "127.0.0.1:2 > [::1]:3", "[::1]:3 > [::1]:4"];
        assert_eq!(cycle_of(&both), None);
    }

    #[test]
    fn a_cycle_of_several_pipes_is_found_wherever_it_begins() {
        let two = ["127.0.0.1:1 > 127.0.0.1:2", "*:2 > localhost:1"];
        assert_eq!(cycle_of(&two), Some(vec![0, 1]));
        let three = ["@d > @e", "@a > @b", "@x > @a", "@c > @a", "@b > @c"];
        assert_eq!(cycle_of(&three), Some(vec![1, 4, 3]));
        // By the second of two ways only.
        let second = ["[::1]:1 > localhost:2", "127.0.0.1:2 > @a", "[::1]:2 > [::1]:1"];
        assert_eq!(cycle_of(&second), Some(vec![0, 2]));
    }
}
