//! The byte streams at a pipe's two ends, and what the pumps ask of them.

pub(crate) mod socket_file;
mod tcp;
pub mod tls;

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready, Stdin, Stdout};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

pub(crate) use self::tcp::queued;
pub use self::tcp::{Keepalive, Probes};
use self::tls::Tls;

/// The address at the other side of a stream, for the log and for the peer. Without the scope of an IPv6 address: each idle
/// connection keeps some of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An IP address and a port.
    Ip(IpAddr, u16),
    /// The process that has connected to a Unix-domain socket of ours, as the kernel knows it (SO_PEERCRED, unix(7)).
    Process {
        /// Its effective user when it connected.
        uid: u32,
        /// Its process id; 0 if this process cannot see it.
        pid: i32,
    },
    /// Some other process on this host: a Unix-domain socket, or standard input and output.
    Local,
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address.ip(), address.port())
    }
}

impl Remote {
    /// As an address, where it is one.
    pub fn ip(self) -> Option<SocketAddr> {
        match self {
            Self::Ip(ip, port) => Some(SocketAddr::new(ip, port)),
            Self::Process { .. } | Self::Local => None,
        }
    }
}

impl From<&UnixStream> for Remote {
    fn from(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(process) => Self::Process { uid: process.uid(), pid: process.pid().unwrap_or_default() },
            Err(_) => Self::Local,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, port) => write!(formatter, "[{ip}]:{port}"),
            Self::Process { uid, pid } => write!(formatter, "local(uid={uid},pid={pid})"),
            Self::Local => formatter.write_str("local"),
        }
    }
}

/// A connected byte stream.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix-domain socket.
    Unix(UnixStream),
    /// TLS over TCP. In a box: every stream would have to be as large.
    Tls(Box<Tls>),
    /// This process's standard input and output. In a box: every stream would have to be as large.
    Stdio(Box<(Stdin, Stdout)>),
}

/// Sets up a TCP connection to `host`, or a socket that listens there: on Linux, the connections accepted from it inherit that, for six
/// system calls less each.
pub(crate) fn set_up(socket: &impl AsFd, host: IpAddr, keepalive: Keepalive) {
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
    if host.to_canonical().is_loopback() {
        // Within a host, nothing can be congested, and what the host has for its network costs: with BBR, which paces by a timer, bulk
        // takes 1.6 times the CPU time. Every kernel has this one and lets everybody use it.
        let _ = SockRef::from(socket).set_tcp_congestion(b"reno");
    }
    tcp::keep_alive(socket, keepalive);
}

/// A fresh TCP connection, set up for a pipe: small writes leave at once, and dead peers are noticed.
///
/// Failures are passed over: they mean that the connection is gone already, which its first use will say.
pub(crate) fn set_up_tcp(stream: TcpStream, host: IpAddr, keepalive: Keepalive) -> TcpStream {
    set_up(&stream, host, keepalive);
    stream
}

impl Stream {
    /// The socket under it, where there is one.
    fn socket(&self) -> Option<Socket<'_>> {
        match self {
            Self::Tcp(stream) => Some(Socket::Tcp(stream)),
            Self::Unix(stream) => Some(Socket::Unix(stream)),
            Self::Tls(tls) => Some(Socket::Tcp(tls.socket())),
            Self::Stdio(_) => None,
        }
    }

    /// Its address at this side, over TCP.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self.socket() {
            Some(Socket::Tcp(stream)) => stream.local_addr().ok(),
            _ => None,
        }
    }

    /// From now on closing this stream is a reset, until [`Self::disarm`].
    ///
    /// A stream that was cut short must never look finished. With this set, that holds however the connection ends: by an
    /// error, by a deadline, and by the death of this process. Only TCP has resets; a Unix-domain socket gives its peer an
    /// error only when unread bytes are left in it.
    pub(crate) fn arm_reset(&self) {
        if let Some(Socket::Tcp(stream)) = self.socket() {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Closing is orderly again: what was written is delivered first.
    pub(crate) fn disarm(&self) {
        if let Some(Socket::Tcp(stream)) = self.socket() {
            let _ = SockRef::from(stream).set_linger(None);
        }
    }

    /// Whether our stream has ended, and the other side has not acknowledged it yet with all that was written before. Asked
    /// again for a moment while it is so, since an acknowledgement may be delayed (by 40 ms on Linux).
    pub(crate) async fn is_still_delivering(&self) -> bool {
        let mut pause = Duration::from_millis(5);
        while self.is_delivering() && pause < Duration::from_millis(500) {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.is_delivering()
    }

    fn is_delivering(&self) -> bool {
        // What is written to others than TCP is delivered.
        matches!(self.socket(), Some(Socket::Tcp(stream)) if tcp::is_delivering(stream))
    }

    /// Ends when the other side has gone, so that nobody is left to be served. Reads nothing. See [`Socket::reset`].
    ///
    /// A Unix-domain socket shows that it was closed, too; that counts if it was closed without a byte.
    pub(crate) async fn gone(&self) {
        match self.socket() {
            Some(socket @ Socket::Tcp(_)) => socket.reset().await,
            Some(socket @ Socket::Unix(stream)) => {
                // This fails only when the runtime shuts down, and all tasks with it.
                let _ready = stream.ready(Interest::READABLE).await;
                // In this order: once it is closed, no more bytes come.
                let is_closed = socket.is_closed();
                if !(is_closed && rustix::io::ioctl_fionread(stream).is_ok_and(|unread| unread == 0)) {
                    socket.reset().await;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until the other side has said something, or never will. Reads nothing.
    pub(crate) async fn readable(&self) {
        // tokio's readiness is a guess, so the kernel is asked. A failure is the next read's to tell.
        let _ = match self.socket() {
            Some(Socket::Tcp(stream)) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            Some(Socket::Unix(stream)) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            None => Ok(()),
        };
    }

    /// Whether the other side ends its stream within `limit`, without a byte before.
    pub(crate) async fn ends_within(&self, limit: Duration) -> bool {
        let _in_time = timeout(limit, self.readable()).await;
        let looked = match self.socket() {
            Some(Socket::Tcp(stream)) => {
                rustix::net::recv(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)
            }
            Some(Socket::Unix(stream)) => {
                rustix::net::recv(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)
            }
            None => return false,
        };
        // A reset is an end.
        looked.map_or_else(|error| error != Errno::WOULDBLOCK, |(count, _)| count == 0)
    }

    /// The same for now, also if the runtime has not been told of it so far.
    pub(crate) fn is_readable(&self) -> bool {
        let peeked = match self.socket() {
            Some(Socket::Tcp(stream)) => peek(stream),
            Some(Socket::Unix(stream)) => peek(stream),
            None => Ok(()),
        };
        !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ends when the other side has ended its stream or reset the connection, whatever is unread still. Reads nothing.
    pub(crate) async fn ended(&self) {
        // To tokio, "priority" is the end of reading and not bytes; it is also urgent data, which these sockets are not
        // registered for. These fail only when the runtime shuts down, and all tasks with it.
        let _ready = match self.socket() {
            Some(Socket::Tcp(stream)) => stream.ready(Interest::PRIORITY).await,
            Some(Socket::Unix(stream)) => stream.ready(Interest::PRIORITY).await,
            None => std::future::pending().await,
        };
    }

    /// Two halves to use at the same time.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        match self {
            Self::Tcp(stream) => {
                let socket = Socket::Tcp(stream);
                (Reader::Socket(socket), Writer::Socket(socket))
            }
            Self::Unix(stream) => {
                let socket = Socket::Unix(stream);
                (Reader::Socket(socket), Writer::Socket(socket))
            }
            Self::Tls(tls) => (Reader::Tls(tls), Writer::Tls(tls)),
            Self::Stdio(stdio) => {
                let (input, output) = &mut **stdio;
                (Reader::Stdin(input), Writer::Stdout(output))
            }
        }
    }
}

/// Reading into several places with one system call: tokio's `AsyncRead` cannot.
pub trait ReadVectored: AsyncRead + Unpin {
    /// Reads into `slots`, in order, at most as much as they hold; 0 is the end of the stream.
    ///
    /// # Errors
    /// The operating system's.
    fn poll_read_vectored(
        &mut self,
        context: &mut Context<'_>,
        slots: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        // For streams without such a system call: fill the first slot.
        let Some(slot) = slots.first_mut() else { return Poll::Ready(Ok(0)) };
        let mut buffer = ReadBuf::new(slot);
        ready!(Pin::new(self).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<T: AsyncRead> ReadVectored for tokio::io::ReadHalf<T> {}
impl ReadVectored for tokio::io::DuplexStream {}
impl ReadVectored for tokio::io::Empty {}

/// The socket under both halves of a [`Stream`].
#[derive(Clone, Copy)]
pub enum Socket<'s> {
    /// Of a TCP connection.
    Tcp(&'s TcpStream),
    /// Of a Unix-domain connection.
    Unix(&'s UnixStream),
}

/// Whether the other side answers what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There is nothing to answer.
    NotDue,
    /// It has answered lately.
    Heard,
    /// It has not.
    Due,
}

impl Socket<'_> {
    /// Ends when the other side has reset the connection, whatever is left to be read.
    ///
    /// The end of its stream is no reset. The other side may have half-closed and wait for its answer; and where it has closed
    /// for good, which looks the same over TCP, the bytes that it sent before are still to be delivered.
    pub(crate) async fn reset(self) {
        // These fail only when the runtime shuts down, and all tasks with it.
        let _ready = match self {
            Self::Tcp(stream) => stream.ready(Interest::ERROR).await,
            Self::Unix(stream) => stream.ready(Interest::ERROR).await,
        };
    }

    /// After [`Self::reset`]: what the operating system says of it.
    pub(crate) fn error(self) -> io::Error {
        let error = match self {
            Self::Tcp(stream) => stream.take_error(),
            Self::Unix(stream) => stream.take_error(),
        };
        match error {
            // To a reset behind the end of the stream, Linux says that we cannot write any more.
            Ok(Some(error)) if error.kind() != io::ErrorKind::BrokenPipe => error,
            _ => Errno::CONNRESET.into(),
        }
    }

    /// Whether the other side answers, to be asked again after `step`. TCP has acknowledgements. A Unix-domain socket needs
    /// none; but one that `has_ended` and is closed will never answer.
    pub(crate) fn answer(self, step: Duration, has_ended: bool) -> Answer {
        match self {
            Self::Tcp(stream) => tcp::answer(stream, step),
            Self::Unix(_) if !has_ended => Answer::NotDue,
            Self::Unix(_) if self.is_closed() => Answer::Due,
            Self::Unix(_) => Answer::Heard,
        }
    }

    /// Whether the other side has closed its socket, so that it will not read any more. TCP does not tell.
    pub(crate) fn is_closed(self) -> bool {
        let Self::Unix(stream) = self else { return false };
        // Only a look: a socket that was closed is ready.
        let flags = std::pin::pin!(stream.ready(Interest::WRITABLE));
        match flags.poll(&mut Context::from_waker(Waker::noop())) {
            // Of EPOLLHUP, or of an error.
            Poll::Ready(flags) => flags.is_ok_and(Ready::is_write_closed),
            Poll::Pending => false,
        }
    }

    fn poll_readv(self, context: &mut Context<'_>, slots: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let room = slots.iter().map(|slot| slot.len()).sum();
        match self {
            Self::Tcp(stream) => poll_transfer(stream, Interest::READABLE, context, room, || {
                Ok(rustix::io::readv(stream, slots)?)
            }),
            Self::Unix(stream) => poll_transfer(stream, Interest::READABLE, context, room, || {
                Ok(rustix::io::readv(stream, slots)?)
            }),
        }
    }

    fn poll_writev(self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        match self {
            Self::Tcp(stream) => poll_transfer(stream, Interest::WRITABLE, context, length, || {
                Ok(rustix::io::writev(stream, slices)?)
            }),
            Self::Unix(stream) => poll_transfer(stream, Interest::WRITABLE, context, length, || {
                Ok(rustix::io::writev(stream, slices)?)
            }),
        }
    }

    fn half_close(self) -> io::Result<()> {
        let shut = match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Unix(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        };
        match shut {
            // It was reset, which the next read will say.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut => shut,
        }
    }
}

/// readv(2) or writev(2) on a non-blocking socket.
///
/// A read that leaves room in the slots has drained the socket, and a write that leaves bytes has filled it. Telling tokio so
/// (by `WouldBlock`, which makes it forget the readiness) saves the call that would only find that out; with epoll's
/// edge-triggered mode new bytes, or new room, bring a new event. tokio does the same inside its own `poll_read`.
fn poll_transfer<S: Pollable>(
    socket: &S,
    interest: Interest,
    context: &mut Context<'_>,
    wanted: usize,
    mut transfer: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_ready(interest, context))?;
        let mut partial = None;
        let transferred = socket.try_io(interest, || {
            let count = transfer()?;
            if 0 < count && count < wanted {
                partial = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        match (partial, transferred) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, transferred) => return Poll::Ready(transferred),
        }
    }
}

/// What tokio's two stream sockets have in common without a trait of tokio's for it.
trait Pollable {
    /// For `interest` in reading or in writing.
    fn poll_ready(&self, interest: Interest, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<usize>) -> io::Result<usize>;
}

impl Pollable for TcpStream {
    fn poll_ready(&self, interest: Interest, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if interest.is_readable() { self.poll_read_ready(context) } else { self.poll_write_ready(context) }
    }

    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(interest, io)
    }
}

impl Pollable for UnixStream {
    fn poll_ready(&self, interest: Interest, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if interest.is_readable() { self.poll_read_ready(context) } else { self.poll_write_ready(context) }
    }

    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(interest, io)
    }
}

/// The reading half of a [`Stream`].
pub enum Reader<'s> {
    /// Of a connection.
    Socket(Socket<'s>),
    /// Of a connection with TLS.
    Tls(&'s Tls),
    /// Standard input.
    Stdin(&'s mut Stdin),
}

impl<'s> Reader<'s> {
    /// The socket, where there is one.
    pub(crate) fn socket(&self) -> Option<Socket<'s>> {
        match self {
            Self::Socket(socket) => Some(*socket),
            Self::Tls(tls) => Some(Socket::Tcp(tls.socket())),
            Self::Stdin(_) => None,
        }
    }
}

impl ReadVectored for Reader<'_> {
    fn poll_read_vectored(
        &mut self,
        context: &mut Context<'_>,
        slots: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => socket.poll_readv(context, slots),
            Self::Tls(tls) => tls.poll_readv(context, slots),
            Self::Stdin(input) => {
                let Some(slot) = slots.first_mut() else { return Poll::Ready(Ok(0)) };
                let mut buffer = ReadBuf::new(slot);
                ready!(Pin::new(input).poll_read(context, &mut buffer))?;
                Poll::Ready(Ok(buffer.filled().len()))
            }
        }
    }
}

/// Fails with `WouldBlock` while there is nothing to read, and no end of the stream.
fn peek(socket: &impl AsFd) -> io::Result<()> {
    rustix::net::recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(())
}

impl AsyncRead for Reader<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(socket) => {
                let mut slot = [IoSliceMut::new(buffer.initialize_unfilled())];
                let count = ready!(socket.poll_readv(context, &mut slot))?;
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
            Self::Tls(tls) => {
                let mut slot = [IoSliceMut::new(buffer.initialize_unfilled())];
                let count = ready!(tls.poll_readv(context, &mut slot))?;
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
            Self::Stdin(input) => Pin::new(input).poll_read(context, buffer),
        }
    }
}

/// The writing half of a [`Stream`].
pub enum Writer<'s> {
    /// Of a connection.
    Socket(Socket<'s>),
    /// Of a connection with TLS.
    Tls(&'s Tls),
    /// Standard output.
    Stdout(&'s mut Stdout),
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(socket) => socket.poll_writev(context, &[IoSlice::new(bytes)]),
            Self::Tls(tls) => tls.poll_writev(context, &[IoSlice::new(bytes)]),
            Self::Stdout(output) => Pin::new(output).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(socket) => socket.poll_writev(context, slices),
            Self::Tls(tls) => tls.poll_writev(context, slices),
            Self::Stdout(output) => Pin::new(output).poll_write_vectored(context, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.poll_flush(context),
            Self::Stdout(output) => Pin::new(output).poll_flush(context),
        }
    }

    /// Half-close: the reader at the other side sees the end of the stream, the other direction lives on.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(socket) => Poll::Ready(socket.half_close()),
            Self::Tls(tls) => tls.poll_shutdown(context),
            Self::Stdout(output) => {
                ready!(Pin::new(&mut *output).poll_flush(context))?;
                // inetd and the like give one socket as input and output. Closing one of two descriptors does not end its stream;
                // of anything else than a socket this fails, and need not succeed.
                let _not_a_socket = rustix::net::shutdown(&*output, rustix::net::Shutdown::Write);
                // The reader of our output learns of its end only when the descriptor is closed. Descriptor 1 itself stays
                // taken, lest the next socket get that number.
                let null = std::fs::File::options().write(true).open("/dev/null")?;
                Poll::Ready(Ok(rustix::stdio::dup2_stdout(&null)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// The congestion control of a connection that was set up as one to `host`.
    async fn control_of(host: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connected, _) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let stream = set_up_tcp(connected.unwrap(), host.parse().unwrap(), Keepalive::default());
        let name = SockRef::from(&stream).tcp_congestion().unwrap();
        String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
    }

    #[tokio::test]
    async fn within_a_host_congestion_is_controlled_by_what_costs_least() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(control_of(host).await, "reno", "{host}");
        }
    }

    #[tokio::test]
    async fn to_the_network_congestion_is_controlled_as_the_host_does() {
        let of_host = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        for host in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(control_of(host).await, of_host.trim(), "{host}");
        }
    }

    /// The accepted side, and the other one.
    async fn tcp_pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (Stream::Tcp(set_up_tcp(accepted, Ipv4Addr::LOCALHOST.into(), Keepalive::default())), other)
    }

    fn unix_pair() -> (Stream, UnixStream) {
        let (accepted, other) = UnixStream::pair().unwrap();
        (Stream::Unix(accepted), other)
    }

    fn reset(stream: TcpStream) {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
    }

    #[track_caller]
    fn gone(stream: &Stream) -> impl Future<Output = ()> {
        let limit = Duration::from_secs(20);
        async move { timeout(limit, stream.gone()).await.expect("it is noticed") }
    }

    /// What does not end is waited for in vain; this is long enough for an event on this host.
    async fn stays(stream: &Stream) -> bool {
        timeout(Duration::from_millis(100), stream.gone()).await.is_err()
    }

    #[tokio::test]
    async fn a_tcp_connection_that_was_reset_is_gone() {
        let (stream, other) = tcp_pair().await;
        reset(other);
        gone(&stream).await;
    }

    #[tokio::test]
    async fn a_reset_is_noticed_behind_bytes_and_their_end() {
        let (stream, mut other) = tcp_pair().await;
        other.write_all(b"request").await.unwrap();
        other.shutdown().await.unwrap();
        assert!(stays(&stream).await);
        reset(other);
        gone(&stream).await;
    }

    #[tokio::test]
    async fn a_tcp_connection_that_was_closed_is_not_gone() {
        let (stream, mut other) = tcp_pair().await;
        other.write_all(b"request").await.unwrap();
        drop(other);
        assert!(stays(&stream).await);
    }

    #[tokio::test]
    async fn a_unix_connection_that_was_closed_without_a_byte_is_gone() {
        let (stream, other) = unix_pair();
        drop(other);
        gone(&stream).await;
    }

    #[tokio::test]
    async fn a_unix_connection_that_was_closed_behind_bytes_is_not_gone() {
        let (stream, mut other) = unix_pair();
        other.write_all(b"request").await.unwrap();
        drop(other);
        assert!(stays(&stream).await);
    }

    #[tokio::test]
    async fn a_unix_connection_that_was_half_closed_is_not_gone() {
        let (stream, mut other) = unix_pair();
        other.shutdown().await.unwrap();
        assert!(stays(&stream).await);
    }

    #[tokio::test]
    async fn a_stream_is_being_delivered_until_its_end_is_acknowledged() {
        let (mut stream, mut other) = tcp_pair().await;
        SockRef::from(&other).set_recv_buffer_size(4096).unwrap();
        assert!(!stream.is_delivering());
        {
            let (_reader, mut writer) = stream.split();
            // More than the other side's buffer has room for, and little enough for ours.
            writer.write_all(&vec![7; 64 * 1024]).await.unwrap();
            writer.shutdown().await.unwrap();
        }
        assert!(stream.is_delivering());
        let mut received = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut other, &mut received).await.unwrap();
        // The acknowledgement of the end may be delayed.
        timeout(Duration::from_secs(20), async {
            while stream.is_delivering() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it is acknowledged");
    }

    #[tokio::test]
    async fn bytes_are_still_there_for_who_reads_after_waiting() {
        let (mut stream, mut other) = tcp_pair().await;
        other.write_all(b"request").await.unwrap();
        assert!(stays(&stream).await);
        let (mut reader, _writer) = stream.split();
        let mut bytes = [0; 7];
        tokio::io::AsyncReadExt::read_exact(&mut reader, &mut bytes).await.unwrap();
        assert_eq!(&bytes, b"request");
    }
}
