//! One attempt for each address of a target, and the race between them (RFC 8305).

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use vec1::Vec1;

use crate::addr::Interface;
use crate::names::Family;

/// How long an attempt is alone before the next address is tried too (RFC 8305's "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);

/// One way to reach a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    to: SocketAddr,
    from: Option<SocketAddr>,
    over: Option<Interface>,
}

impl Attempt {
    async fn connect(self) -> io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A dial that is given up is a reset, also when the other side has accepted already. An end of the stream is what a client
        // sends that has half-closed, and where an initiator is dialed by mistake, a chain of such clients would go on for ever.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        if let Some(interface) = self.over {
            SockRef::from(&socket).bind_device(Some(interface.as_str().as_bytes()))?;
        }
        if let Some(from) = self.from {
            if from.port() == 0 {
                // connect(2) then chooses the port, which can be one that has connections to other targets. bind(2), which does
                // not know the target, would take a port of its own for each connection.
                setsockopt(&socket, IpBindAddressNoPort, &true)?;
            } else {
                // A fixed outgoing port would otherwise be unusable for a minute after each connection.
                socket.set_reuseaddr(true)?;
            }
            socket.bind(from)?;
        }
        socket.connect(self.to).await
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{}]:{}", self.to.ip(), self.to.port())?;
        if let Some(from) = self.from {
            write!(formatter, " from [{}]:{}", from.ip(), from.port())?;
        }
        self.over.map_or(Ok(()), |interface| write!(formatter, " over {interface}"))
    }
}

/// The attempts to make, in order: the resolver's order, but the families in turn, since it is a whole family that tends
/// to be broken (RFC 8305, section 4); the family to `prefer` first, else that of the first address. Each has an outgoing
/// address of its own family, if any is wanted, and all go `over` one interface, if that is not left to the system.
pub(super) fn pair_up(
    targets: &Vec1<SocketAddr>,
    from: &[SocketAddr],
    over: Option<Interface>,
    prefer: Option<Family>,
) -> Vec<Attempt> {
    let attempts = targets.iter().filter_map(|&to| {
        let matching = from.iter().copied().find(|from| from.is_ipv4() == to.is_ipv4());
        (from.is_empty() || matching.is_some()).then_some(Attempt { to, from: matching, over })
    });
    let first = if targets.first().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let (mut preferred, mut other): (Vec<_>, Vec<_>) =
        attempts.partition(|attempt| prefer.unwrap_or(first).has(&attempt.to));
    let mut interleaved = Vec::with_capacity(preferred.len() + other.len());
    preferred.reverse();
    other.reverse();
    loop {
        let before = interleaved.len();
        interleaved.extend(preferred.pop());
        interleaved.extend(other.pop());
        if interleaved.len() == before {
            return interleaved;
        }
    }
}

/// The attempts that were made on one target, in the order in which they failed.
#[derive(Debug)]
pub struct Refusals(Vec1<(Attempt, io::Error)>);

impl Refusals {
    /// What the operating system said to the attempt that failed first.
    pub(super) fn into_first(self) -> io::Error {
        self.0.split_off_first().0.1
    }

    /// The addresses that were tried, each with what the operating system said.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &io::Error)> {
        self.0.iter().map(|(attempt, error)| (attempt.to, error))
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (attempt, error)) in self.0.iter().enumerate() {
            write!(formatter, "{}{attempt}: {error}", if place == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Error for Refusals {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0.first().1)
    }
}

/// The first attempt to succeed, with the address that it led to. Each starts when the one before has failed or has had its
/// [`HEAD_START`].
///
/// # Errors
/// All that failed, in the order in which they did.
pub(super) async fn race(attempts: Vec1<Attempt>) -> Result<(TcpStream, SocketAddr), Refusals> {
    if let [attempt] = attempts[..] {
        let connected = attempt.connect().await.map(|stream| (stream, attempt.to));
        return connected.map_err(|error| Refusals(Vec1::new((attempt, error))));
    }
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        if let Some(next) = waiting.next() {
            running.spawn(async move { (next, next.connect().await) });
        }
        let head_start = if waiting.len() > 0 { HEAD_START } else { Duration::MAX };
        match tokio::time::timeout(head_start, running.join_next()).await {
            Ok(Some(Ok((attempt, Ok(stream))))) => return Ok((stream, attempt.to)),
            Ok(Some(Ok((attempt, Err(error))))) => failures.push((attempt, error)),
            Ok(Some(Err(panic))) => std::panic::resume_unwind(panic.into_panic()),
            Ok(None) => {
                let failures = Vec1::try_from_vec(failures).expect("each attempt succeeded or failed");
                return Err(Refusals(failures));
            }
            Err(_head_start_is_over) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec1<SocketAddr> {
        Vec1::try_from_vec(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    fn order(attempts: &[Attempt]) -> Vec<SocketAddr> {
        attempts.iter().map(|attempt| attempt.to).collect()
    }

    #[test]
    fn families_take_turns() {
        let attempts = pair_up(&addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]), &[], None, None);
        assert_eq!(order(&attempts), *addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
    }

    #[test]
    fn the_family_to_prefer_comes_first() {
        let targets = addresses(&["[::1]:1", "[::2]:1", "1.1.1.1:1"]);
        let attempts = pair_up(&targets, &[], None, Some(Family::Ipv4));
        assert_eq!(order(&attempts), *addresses(&["1.1.1.1:1", "[::1]:1", "[::2]:1"]));
    }

    #[test]
    fn a_family_to_prefer_that_a_target_lacks_changes_nothing() {
        let targets = addresses(&["[::1]:1", "[::2]:1"]);
        assert_eq!(order(&pair_up(&targets, &[], None, Some(Family::Ipv4))), *targets);
    }

    #[test]
    fn targets_of_another_family_than_the_outgoing_address_are_left_out() {
        let attempts =
            pair_up(&addresses(&["[::1]:1", "1.1.1.1:1"]), &addresses(&["127.0.0.1:0"]), None, None);
        assert_eq!(order(&attempts), *addresses(&["1.1.1.1:1"]));
    }

    fn attempts(targets: [SocketAddr; 2]) -> Vec1<Attempt> {
        let targets = Vec1::try_from_vec(targets.to_vec()).unwrap();
        Vec1::try_from_vec(pair_up(&targets, &[], None, None)).unwrap()
    }

    #[tokio::test]
    async fn a_dead_address_does_not_keep_the_live_one_waiting() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let targets = [dead.local_addr().unwrap(), live.local_addr().unwrap()];
        drop(dead);
        let (stream, address) = race(attempts(targets)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), targets[1]);
        assert_eq!(address, targets[1]);
    }

    #[tokio::test]
    async fn a_failure_names_every_address_that_was_tried() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.2:0").await.unwrap(),
        ];
        let targets = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        drop(listeners);
        let refusals = race(attempts(targets)).await.unwrap_err();
        assert_eq!(refusals.iter().map(|(address, _)| address).collect::<Vec<_>>(), targets);
        let refused = |address: SocketAddr| {
            format!("[{}]:{}: Connection refused (os error 111)", address.ip(), address.port())
        };
        assert_eq!(refusals.to_string(), targets.map(refused).join("; "));
    }
}
