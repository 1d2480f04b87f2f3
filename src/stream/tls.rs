//! A connection to a target that speaks TLS, with a socket under it that is watched as any other.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Socket;

/// What the end of the TCP stream means, when TLS has not said that the stream is complete (close_notify).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareEnd {
    /// A truncation: an attacker on the path can end a TCP connection, and nothing else tells such an end apart.
    IsTruncation,
    /// The end of the stream, for servers that never say it: a truncation looks the same.
    IsEnd,
}

/// The connection.
pub struct Tls {
    socket: Arc<TcpStream>,
    /// Both halves use it, within one task: the lock is never waited for.
    session: Mutex<Session>,
    bare_end: BareEnd,
}

struct Session {
    stream: TlsStream<Shared>,
    /// What went wrong behind bytes that had to be delivered first.
    failure: Option<io::Error>,
}

/// The TCP connection under a session of TLS, which is also looked at beside it.
pub(crate) struct Shared(Arc<TcpStream>);

impl Shared {
    pub(crate) fn new(socket: Arc<TcpStream>) -> Self {
        Self(socket)
    }

    fn socket(&self) -> Socket<'_> {
        Socket::Tcp(&self.0)
    }
}

impl Tls {
    /// A session that has shaken hands over `socket`.
    pub(crate) fn new(socket: Arc<TcpStream>, session: TlsStream<Shared>, bare_end: BareEnd) -> Self {
        let session = Mutex::new(Session { stream: session, failure: None });
        Self { socket, session, bare_end }
    }

    /// The TCP connection under it.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        // After a panic in the middle of a record, the peer finds the next one wrong.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has come whole, into as many of `slots` as that fills: a record has 16 KiB at most, and a slot four times that.
    pub(super) fn poll_readv(
        &self,
        context: &mut Context<'_>,
        slots: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let (mut session, mut count) = (self.session(), 0);
        let Session { stream, failure } = &mut *session;
        if let Some(failure) = failure.take() {
            return Poll::Ready(Err(failure));
        }
        for slot in slots {
            let mut buffer = ReadBuf::new(slot);
            while buffer.remaining() > 0 {
                let before = buffer.filled().len();
                match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                    // The end is there at the next call, too.
                    Poll::Ready(Ok(())) | Poll::Pending if count + before > 0 => {
                        return Poll::Ready(Ok(count + before));
                    }
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(0)),
                    Poll::Ready(Err(error)) if self.is_end(&error) => return Poll::Ready(Ok(count + before)),
                    Poll::Ready(Err(error)) if count + before > 0 => {
                        // A socket tells its error once.
                        *failure = Some(in_plain_words(error));
                        return Poll::Ready(Ok(count + before));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(in_plain_words(error))),
                }
            }
            count += buffer.filled().len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_end(&self, error: &io::Error) -> bool {
        // rustls says so of the end of the TCP stream, and of nothing else.
        self.bare_end == BareEnd::IsEnd && error.kind() == io::ErrorKind::UnexpectedEof
    }

    pub(super) fn poll_writev(
        &self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.session().stream).poll_write_vectored(context, slices)
    }

    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.session().stream).poll_flush(context)
    }

    /// Says that our stream is complete (close_notify), and half-closes the TCP connection. The other direction lives on.
    pub(super) fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.session().stream).poll_shutdown(context)
    }
}

/// rustls explains this one to programmers.
fn in_plain_words(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::UnexpectedEof => io::Error::new(
            kind,
            "it closed the connection without saying that its stream is complete (close_notify); if it never does, see \
             --tls-ignore-unexpected-eof",
        ),
        _ => error,
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut slot = [IoSliceMut::new(buffer.initialize_unfilled())];
        let count = ready!(self.socket().poll_readv(context, &mut slot))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket().poll_writev(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket().poll_writev(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket().half_close())
    }
}
