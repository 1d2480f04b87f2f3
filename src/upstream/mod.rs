//! Connecting out.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, UnixSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::addr::{Endpoint, Outgoing, Target, UnixName};
use crate::stream::socket_file::{Existing, SocketFile};
use crate::stream::{Keepalive, Stream};

/// How long an attempt is alone before the next address is tried too (RFC 8305's "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to one target, again and again.
pub struct Dialer {
    target: Target,
    from: Option<Outgoing>,
    keepalive: Keepalive,
    /// Held while a Unix-domain socket has the outgoing name, which only one can have at a time.
    naming: Mutex<()>,
}

/// An outgoing address that cannot reach its target, whatever the network does.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the target {target} cannot be reached from {from}: both are to be Unix-domain sockets, or neither")]
pub struct FamilyMismatch {
    target: Target,
    from: Outgoing,
}

impl Dialer {
    /// A dialer for `target`, from the address `from` if one is given.
    ///
    /// # Errors
    /// [`FamilyMismatch`].
    pub fn new(target: Target, from: Option<Outgoing>, keepalive: Keepalive) -> Result<Self, FamilyMismatch> {
        if let Some(from) = &from {
            let is_unix = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Unix(_));
            if is_unix(target.endpoint()) != is_unix(from.endpoint()) {
                return Err(FamilyMismatch { target, from: from.clone() });
            }
        }
        Ok(Self { target, from, keepalive, naming: Mutex::new(()) })
    }

    /// Where it connects to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Where it connects from, if that is not left to the system.
    pub fn from(&self) -> Option<&Outgoing> {
        self.from.as_ref()
    }

    /// Connects. A name is looked up anew each time, so that a changed one takes effect at once.
    ///
    /// # Errors
    /// When no address of the target can be reached; the text names each that was tried. There is no deadline: it is the
    /// caller's.
    pub async fn dial(&self) -> io::Result<Stream> {
        if let Endpoint::Unix(name) = self.target.endpoint() {
            return Ok(Stream::Unix(self.dial_unix(name).await?));
        }
        let from = match &self.from {
            Some(from) => from.endpoint().resolve().await?,
            None => Vec::new(),
        };
        let attempts = pair_up(&self.target.endpoint().resolve().await?, &from);
        if attempts.is_empty() {
            return Err(io::Error::other("no address of the target is of the outgoing address's family"));
        }
        Ok(Stream::tcp(race(attempts).await?, self.keepalive))
    }

    async fn dial_unix(&self, target: &UnixName) -> io::Result<UnixStream> {
        let Some(Endpoint::Unix(from)) = self.from.as_ref().map(Outgoing::endpoint) else {
            return UnixStream::connect(target.as_path()).await;
        };
        let _guard = self.naming.lock().await;
        let socket = UnixSocket::new_stream()?;
        // The file goes as soon as the connection is established, since the peer has seen the name by then and the file would be
        // in the way of the next connection; and also when this future is dropped before.
        let _file = bind_unix(&socket, from).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot connect from {from} (-b): {error}"))
        })?;
        socket.connect(target.as_path()).await
    }
}

/// Gives `socket` the outgoing name `from`, and its file an owner.
///
/// A file that is there already and that nobody listens on was left behind by a process that was killed between bind(2) and
/// unlink(2). It is replaced, as for sources. It may also belong to another process that is just connecting under the same
/// name; that one has its connection all the same, since only the file is replaced.
fn bind_unix(socket: &UnixSocket, from: &UnixName) -> io::Result<Option<SocketFile>> {
    let Some(file) = from.file() else {
        socket.bind(from.as_path())?;
        return Ok(None);
    };
    match Existing::at(file)? {
        Existing::Nothing => {}
        Existing::Stale => std::fs::remove_file(file)?,
        Existing::InUse => {
            return Err(io::Error::other("another process is listening there; choose another name"));
        }
        Existing::OtherFile => {
            return Err(io::Error::other("a file that is not a socket has this name; choose another"));
        }
    }
    socket.bind(from.as_path())?;
    SocketFile::own(file).map(Some)
}

/// One way to reach a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    to: SocketAddr,
    from: Option<SocketAddr>,
}

impl Attempt {
    async fn connect(self) -> io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            // A fixed outgoing port would otherwise be unusable for a minute after each connection.
            socket.set_reuseaddr(true)?;
            socket.bind(from)?;
        }
        socket.connect(self.to).await
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Endpoint::Ip(self.to).fmt(formatter)?;
        match self.from {
            Some(from) => write!(formatter, " from {}", Endpoint::Ip(from)),
            None => Ok(()),
        }
    }
}

/// The attempts to make, in order: the resolver's order, but the families in turn, since it is a whole family that tends
/// to be broken (RFC 8305, section 4). Each has an outgoing address of its own family, if any is wanted.
fn pair_up(targets: &[SocketAddr], from: &[SocketAddr]) -> Vec<Attempt> {
    let attempts = targets.iter().filter_map(|&to| {
        let matching = from.iter().copied().find(|from| from.is_ipv4() == to.is_ipv4());
        (from.is_empty() || matching.is_some()).then_some(Attempt { to, from: matching })
    });
    let (mut preferred, mut other): (Vec<_>, Vec<_>) =
        attempts.partition(|attempt| attempt.to.is_ipv4() == targets[0].is_ipv4());
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

/// The first attempt to succeed. Each starts when the one before has failed or has had its [`HEAD_START`].
async fn race(attempts: Vec<Attempt>) -> io::Result<TcpStream> {
    if let [only] = attempts[..] {
        return only.connect().await;
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
            Ok(Some(Ok((_, Ok(stream))))) => return Ok(stream),
            Ok(Some(Ok((attempt, Err(error))))) => failures.push((attempt, error)),
            Ok(Some(Err(panic))) => return Err(io::Error::other(panic)),
            Ok(None) => break,
            Err(_head_start_is_over) => {}
        }
    }
    let kind = failures.first().map_or(io::ErrorKind::Other, |(_, error)| error.kind());
    let tried: Vec<_> = failures.iter().map(|(attempt, error)| format!("{attempt}: {error}")).collect();
    Err(io::Error::new(kind, tried.join("; ")))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let targets = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        let order: Vec<_> = pair_up(&targets, &[]).iter().map(|attempt| attempt.to).collect();
        assert_eq!(order, addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
    }

    #[test]
    fn targets_of_another_family_than_the_outgoing_address_are_left_out() {
        let attempts = pair_up(&addresses(&["[::1]:1", "1.1.1.1:1"]), &addresses(&["127.0.0.1:0"]));
        assert_eq!(attempts.iter().map(|attempt| attempt.to).collect::<Vec<_>>(), addresses(&["1.1.1.1:1"]));
    }

    #[tokio::test]
    async fn a_dead_address_does_not_keep_the_live_one_waiting() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let targets = [dead.local_addr().unwrap(), live.local_addr().unwrap()];
        drop(dead);
        let stream = race(pair_up(&targets, &[])).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), targets[1]);
    }

    #[tokio::test]
    async fn a_failure_names_every_address_that_was_tried() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.2:0").await.unwrap(),
        ];
        let targets = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        drop(listeners);
        let error = race(pair_up(&targets, &[])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        for target in targets {
            assert!(error.to_string().contains(&Endpoint::Ip(target).to_string()), "{error}");
        }
    }

    #[test]
    fn a_unix_target_cannot_be_reached_from_an_ip_address() {
        let dialer = Dialer::new("/a".parse().unwrap(), Some("127.0.0.1".parse().unwrap()), Keepalive::On);
        assert!(dialer.is_err());
    }
}
