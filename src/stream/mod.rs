//! The byte streams at a pipe's two ends, and what the pumps ask of them.

pub(crate) mod socket_file;

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::fd::AsFd;
use rustix::net::RecvFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready, Stdin, Stdout};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// TCP keep-alive: first probe after this long without traffic, which is inside the idle limits of common NATs …
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// … then one probe this often …
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
/// … and this many without an answer end the connection: a vanished peer is noticed in two minutes.
const KEEPALIVE_PROBES: u32 = 4;

/// Whether TCP connections are probed when idle (`-j` turns it off).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keepalive {
    /// Probe.
    On,
    /// Do not: a connection may then outlive its peer for ever.
    Off,
}

/// The address at the other side of a stream, for the log and for the peer. Without the scope of an IPv6 address: each idle
/// connection keeps some of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An IP address and a port.
    Ip(IpAddr, u16),
    /// Some process on this host: a Unix-domain socket, or standard input and output.
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
            Self::Local => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, port) => write!(formatter, "[{ip}]:{port}"),
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
    /// This process's standard input and output. In a box: every stream would have to be as large.
    Stdio(Box<(Stdin, Stdout)>),
}

impl Stream {
    /// A fresh TCP connection, set up for a pipe: small writes leave at once, and dead peers are noticed.
    ///
    /// Failures are passed over: they mean that the connection is gone already, which its first use will say.
    pub(crate) fn tcp(stream: TcpStream, keepalive: Keepalive) -> Self {
        let socket = SockRef::from(&stream);
        let _ = socket.set_tcp_nodelay(true);
        if keepalive == Keepalive::On {
            let settings = TcpKeepalive::new()
                .with_time(KEEPALIVE_AFTER)
                .with_interval(KEEPALIVE_EVERY)
                .with_retries(KEEPALIVE_PROBES);
            let _ = socket.set_tcp_keepalive(&settings);
        }
        Self::Tcp(stream)
    }

    /// From now on closing this stream is a reset, until [`Self::disarm`].
    ///
    /// A stream that was cut short must never look finished. With this set, that holds however the connection ends: by an
    /// error, by a deadline, and by the death of this process. Only TCP has resets; a Unix-domain socket gives its peer an
    /// error only when unread bytes are left in it.
    pub(crate) fn arm_reset(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Closing is orderly again: what was written is delivered first.
    pub(crate) fn disarm(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(None);
        }
    }

    /// Ends when the other side has reset the connection, so that nobody is left to be served. Reads nothing.
    ///
    /// The end of the other side's stream is not enough. It may have half-closed and wait for its answer, and where it has
    /// closed for good, which looks the same over TCP, the bytes that it sent before are still to be delivered. Only a
    /// Unix-domain socket shows that it was closed; that counts if it was closed without a byte.
    pub(crate) async fn gone(&self) {
        // These fail only when the runtime shuts down, and all tasks with it.
        let _ready = match self {
            Self::Tcp(stream) => stream.ready(Interest::ERROR).await,
            Self::Unix(stream) => {
                let _ready = stream.ready(Interest::READABLE).await;
                // Both at once are ready at once: this asks for the flags. Write-closed is EPOLLHUP, or an error.
                let now = stream.ready(Interest::READABLE | Interest::WRITABLE).await;
                let is_closed = now.is_ok_and(Ready::is_write_closed);
                if is_closed && rustix::io::ioctl_fionread(stream).is_ok_and(|unread| unread == 0) {
                    return;
                }
                stream.ready(Interest::ERROR).await
            }
            Self::Stdio(_) => std::future::pending().await,
        };
    }

    /// Waits until the other side has said something, or never will. Reads nothing.
    pub(crate) async fn readable(&self) {
        // tokio's readiness is a guess, so the kernel is asked. A failure is the next read's to tell.
        let _ = match self {
            Self::Tcp(stream) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            Self::Stdio(_) => Ok(()),
        };
    }

    /// The same for now, also if the runtime has not been told of it so far.
    pub(crate) fn is_readable(&self) -> bool {
        let peeked = match self {
            Self::Tcp(stream) => peek(stream),
            Self::Unix(stream) => peek(stream),
            Self::Stdio(_) => Ok(()),
        };
        !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ends when the other side has ended its stream or reset the connection, whatever is unread still. Reads nothing.
    pub(crate) async fn ended(&self) {
        // To tokio, "priority" is the end of reading and not bytes; it is also urgent data, which these sockets are not
        // registered for. These fail only when the runtime shuts down, and all tasks with it.
        let _ready = match self {
            Self::Tcp(stream) => stream.ready(Interest::PRIORITY).await,
            Self::Unix(stream) => stream.ready(Interest::PRIORITY).await,
            Self::Stdio(_) => std::future::pending().await,
        };
    }

    /// Two halves to use at the same time.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Tcp(reader), Writer::Tcp(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Unix(reader), Writer::Unix(writer))
            }
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

/// The reading half of a [`Stream`].
pub enum Reader<'s> {
    /// Of a TCP connection.
    Tcp(tcp::ReadHalf<'s>),
    /// Of a Unix-domain socket.
    Unix(unix::ReadHalf<'s>),
    /// Standard input.
    Stdin(&'s mut Stdin),
}

impl ReadVectored for Reader<'_> {
    fn poll_read_vectored(
        &mut self,
        context: &mut Context<'_>,
        slots: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(half) => poll_readv::<TcpStream>((*half).as_ref(), context, slots),
            Self::Unix(half) => poll_readv::<UnixStream>((*half).as_ref(), context, slots),
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

/// readv(2) on a non-blocking socket.
///
/// A read that leaves room in the slots has drained the socket. Telling tokio so (by `WouldBlock`, which makes it forget
/// the readiness) saves the extra read that would only find it empty; with epoll's edge-triggered mode new bytes bring a
/// new event. tokio does the same inside its own `poll_read`.
fn poll_readv<S: Socket>(
    socket: &S,
    context: &mut Context<'_>,
    slots: &mut [IoSliceMut<'_>],
) -> Poll<io::Result<usize>> {
    let room: usize = slots.iter().map(|slot| slot.len()).sum();
    loop {
        ready!(socket.poll_read_ready(context))?;
        let mut drained = None;
        let read = socket.try_read(|| {
            let count = rustix::io::readv(socket, slots)?;
            if 0 < count && count < room {
                drained = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        match (drained, read) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, read) => return Poll::Ready(read),
        }
    }
}

/// What tokio's two stream sockets have in common without a trait of tokio's for it.
trait Socket: AsFd {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_read(&self, read: impl FnMut() -> io::Result<usize>) -> io::Result<usize>;
}

impl Socket for TcpStream {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn try_read(&self, read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, read)
    }
}

impl Socket for UnixStream {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn try_read(&self, read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        self.try_io(Interest::READABLE, read)
    }
}

impl AsyncRead for Reader<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            Self::Unix(half) => Pin::new(half).poll_read(context, buffer),
            Self::Stdin(input) => Pin::new(input).poll_read(context, buffer),
        }
    }
}

/// The writing half of a [`Stream`].
pub enum Writer<'s> {
    /// Of a TCP connection.
    Tcp(tcp::WriteHalf<'s>),
    /// Of a Unix-domain socket.
    Unix(unix::WriteHalf<'s>),
    /// Standard output.
    Stdout(&'s mut Stdout),
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_write(context, bytes),
            Self::Unix(half) => Pin::new(half).poll_write(context, bytes),
            Self::Stdout(output) => Pin::new(output).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_write_vectored(context, slices),
            Self::Unix(half) => Pin::new(half).poll_write_vectored(context, slices),
            Self::Stdout(output) => Pin::new(output).poll_write_vectored(context, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_flush(context),
            Self::Unix(half) => Pin::new(half).poll_flush(context),
            Self::Stdout(output) => Pin::new(output).poll_flush(context),
        }
    }

    /// Half-close: the reader at the other side sees the end of the stream, the other direction lives on.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_shutdown(context),
            Self::Unix(half) => Pin::new(half).poll_shutdown(context),
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
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// The accepted side, and the other one.
    async fn tcp_pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (Stream::tcp(accepted, Keepalive::On), other)
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
