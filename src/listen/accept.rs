//! Accepting: from sockets that listen to arrivals.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tracing::{debug, warn};

use crate::addr::{Endpoint, Source};
use crate::stats::Repeated;
use crate::stream::socket_file::SocketFile;
use crate::stream::{self, Keepalive, Remote, Stream};

/// The first pause after accept(2) failed for want of descriptors or memory; it doubles …
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
/// … up to this.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// A connection that was accepted, and nothing more.
pub struct Arrival {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub remote: Remote,
}

/// A listening socket that connections can be accepted from.
pub struct Listener {
    socket: Arc<ListeningSocket>,
    /// If it is ours to remove.
    file: Option<SocketFile>,
    local: Endpoint,
    source: Source,
    /// Connections at the front of its queue that were there before it was set up, and have inherited nothing of that.
    early: u32,
}

/// The socket itself.
pub enum ListeningSocket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix-domain.
    Unix(UnixListener),
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// What names a socket while somebody else accepts at it. It does not keep the socket open.
#[derive(Clone)]
pub struct Handle {
    socket: Weak<ListeningSocket>,
    source: Source,
}

impl Handle {
    /// The source that it is for.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The socket, unless it has been closed.
    pub fn socket(&self) -> Option<Arc<ListeningSocket>> {
        self.socket.upgrade()
    }
}

impl Listener {
    pub(super) fn new(
        socket: ListeningSocket,
        file: Option<SocketFile>,
        local: Endpoint,
        source: Source,
    ) -> Self {
        Self { socket: Arc::new(socket), file, local, source, early: 0 }
    }

    /// What another process can be given the socket by.
    pub fn handle(&self) -> Handle {
        Handle { socket: Arc::downgrade(&self.socket), source: self.source.clone() }
    }

    /// Looks after the file of a socket that another process has handed over, from here on.
    pub fn adopt(&mut self) {
        if self.file.is_none()
            && let Source::At(Endpoint::Unix(name)) = &self.source
            && let Some(path) = name.file()
        {
            match SocketFile::own(path) {
                Ok(file) => self.file = Some(file),
                Err(error) => {
                    warn!(source = %self.local, %error, "the file of a socket that was handed over is gone");
                }
            }
        }
    }

    /// Closes the socket and leaves its file, which another process looks after from here on.
    pub fn leave(self) {
        if let Some(file) = self.file {
            file.leave();
        }
    }

    /// Puts the file of the socket in the place of what `path` names.
    ///
    /// # Errors
    /// The operating system's.
    pub fn rename(&mut self, path: &Path) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.rename(path))
    }

    /// Where it listens.
    pub fn local(&self) -> &Endpoint {
        &self.local
    }

    /// The source that it is for, which may outlive the pipe that named it.
    pub fn source(&self) -> &Source {
        &self.source
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        match &*self.socket {
            ListeningSocket::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, address)| Arrival { stream: Stream::Tcp(stream), remote: address.into() }),
            ListeningSocket::Unix(listener) => listener.poll_accept(context).map_ok(|(stream, _)| Arrival {
                remote: Remote::from(&stream),
                stream: Stream::Unix(stream),
            }),
        }
    }
}

/// All sockets of one pipe, which take turns.
pub struct Listeners {
    sockets: Vec<Listener>,
    /// The one to ask first, so that a busy socket does not keep the others waiting.
    first: usize,
    keepalive: Keepalive,
    shortage: Arc<Repeated>,
}

impl Listeners {
    /// Those of `sockets`, whose connections are kept alive as `keepalive` says.
    pub fn new(mut sockets: Vec<Listener>, keepalive: Keepalive) -> Self {
        for Listener { socket, early, local, .. } in &mut sockets {
            if let (ListeningSocket::Tcp(listener), Endpoint::Ip(local)) = (&**socket, local) {
                stream::set_up(listener, local.ip(), keepalive);
                // Such as the one for which systemd has started this process. Asked afterwards, so that none is missed.
                *early = stream::queued(listener);
            }
        }
        let shortage = Repeated::new(|_kind, more| {
            warn!(more, "cannot accept connections: further times in the last minute");
        });
        Self { sockets, first: 0, keepalive, shortage }
    }

    /// The sockets; they still listen.
    pub fn into_inner(self) -> Vec<Listener> {
        self.sockets
    }

    /// The next connection at any of the sockets. Failures of accept(2) never end the loop that calls this: a connection that
    /// died in the queue is passed over, and a lack of descriptors or memory is waited out, after `relieve` has had a chance to
    /// end it.
    pub(crate) async fn accept(&mut self, relieve: impl Fn()) -> Arrival {
        let mut pause = BACK_OFF_MIN;
        loop {
            let (listener, accepted) = poll_fn(|context| {
                for turn in 0..self.sockets.len() {
                    let index = (self.first + turn) % self.sockets.len();
                    if let Poll::Ready(accepted) = self.sockets[index].poll_accept(context) {
                        self.first = index + 1;
                        return Poll::Ready((index, accepted));
                    }
                }
                Poll::Pending
            })
            .await;
            match accepted {
                Ok(arrival) => {
                    let early = &mut self.sockets[listener].early;
                    if *early > 0
                        && let (Stream::Tcp(stream), Remote::Ip(host, _)) = (&arrival.stream, arrival.remote)
                    {
                        *early -= 1;
                        stream::set_up(stream, host, self.keepalive);
                    }
                    return arrival;
                }
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
                        self.shortage.event(Some("shortage"), || {
                            let source = self.sockets[listener].local();
                            warn!(%source, %error, "cannot accept connections for now; running ones go on");
                        });
                    }
                    relieve();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;
    use crate::listen::{Passed, SocketPermissions, listen};

    #[tokio::test]
    async fn connections_that_came_before_the_accept_loop_are_kept_alive_too() {
        let source = "127.0.0.1:0".parse().unwrap();
        let bound = listen(&source, &SocketPermissions::default(), &mut Passed::default()).unwrap().remove(0);
        let &Endpoint::Ip(address) = bound.local() else { panic!("it listens on a port") };
        let _early = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let mut listeners = Listeners::new(vec![bound.into_listener().unwrap()], Keepalive::default());
        let _later = TcpStream::connect(address).await.unwrap();
        for _ in 0..3 {
            let Stream::Tcp(accepted) = listeners.accept(|| {}).await.stream else { panic!("it is TCP") };
            let socket = SockRef::from(&accepted);
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        }
    }
}
