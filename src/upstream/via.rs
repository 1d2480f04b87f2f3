//! Proxies on the way to a target: what is said to them on a connection before it leads to the target.

use std::fmt;
use std::io;
use std::str;
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_socks::TargetAddr;
use tokio_socks::tcp::Socks5Stream;
use zeroize::Zeroizing;

use super::route::Host;
use crate::addr::{Proxy, ProxyProtocol};

/// The user and password that a proxy asks for. Without `Debug`: it is a secret.
pub struct Credentials {
    user: Zeroizing<String>,
    password: Zeroizing<String>,
}

/// A text that is no [`Credentials`]. It does not show the text.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("write one line, USER:PASSWORD, with 1 to 255 bytes of each and without control characters")]
pub struct NotCredentials;

impl Credentials {
    /// From `USER:PASSWORD`, which may end with a newline.
    ///
    /// # Errors
    /// [`NotCredentials`].
    pub fn parse(text: &[u8]) -> Result<Self, NotCredentials> {
        let text = str::from_utf8(text).map_err(|_| NotCredentials)?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let (user, password) = text.split_once(':').ok_or(NotCredentials)?;
        // RFC 1929 has lengths of one byte, and RFC 7617 no control characters.
        let is_usable = |text: &str| (1..=255).contains(&text.len()) && !text.contains(char::is_control);
        if !is_usable(user) || !is_usable(password) {
            return Err(NotCredentials);
        }
        let keep = |text: &str| Zeroizing::new(text.to_owned());
        Ok(Self { user: keep(user), password: keep(password) })
    }

    /// As an HTTP proxy takes them (RFC 7617).
    fn basic(&self) -> Zeroizing<String> {
        let (user, password) = (self.user.as_bytes(), self.password.as_bytes());
        let mut pair = Zeroizing::new(Vec::with_capacity(user.len() + 1 + password.len()));
        pair.extend_from_slice(user);
        pair.push(b':');
        pair.extend_from_slice(password);
        Zeroizing::new(Base64::encode_string(&pair))
    }
}

/// A proxy, and what it is told of us.
#[derive(Clone)]
pub(super) struct Via {
    pub(super) proxy: Proxy,
    pub(super) host: Host,
    pub(super) credentials: Option<Arc<Credentials>>,
}

/// Without the credentials.
impl fmt::Debug for Via {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Via").field(&self.proxy).finish()
    }
}

/// Why a proxy does not lead to the target.
#[derive(Debug, Error)]
#[error("the proxy {proxy} {source}")]
pub struct ProxyError {
    proxy: Proxy,
    source: Refusal,
}

/// What the proxy did, or did not.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The time limit came first.
    #[error("has not connected in time (-o)")]
    TimedOut,
    /// The connection to the proxy broke.
    #[error("closed the connection: {0}")]
    Broken(#[from] io::Error),
    /// It wants to know who we are.
    #[error("asks for a user and password; name a file with USER:PASSWORD by --via-auth")]
    CredentialsMissing,
    /// It does not like who we are.
    #[error("does not accept the user and password of --via-auth")]
    CredentialsRefused,
    /// An HTTP proxy does not connect.
    #[error("answers {status} {reason}{hint}", hint = http_hint(*status))]
    Http {
        /// The status code.
        status: u16,
        /// What the proxy says about it.
        reason: String,
    },
    /// A SOCKS proxy does not connect.
    #[error("does not connect: {0}")]
    Socks(tokio_socks::Error),
    /// It is something else.
    #[error("does not speak HTTP; is it the right port?")]
    NotHttp,
    /// It is something else, or has SOCKS 4 only.
    #[error("does not speak SOCKS 5; is it the right port?")]
    NotSocks,
}

/// What to do about the answer of an HTTP proxy.
fn http_hint(status: u16) -> &'static str {
    match status {
        403 | 405 => ": it does not allow this target; squid allows CONNECT to port 443 only (SSL_ports)",
        502..=504 => ": it cannot reach the target",
        _ => "",
    }
}

impl Via {
    /// Has the proxy at the other side of `socket` connect to `target`, until `deadline`. A name is resolved there.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub(super) async fn lead(
        &self,
        socket: TcpStream,
        target: &Host,
        deadline: Instant,
    ) -> Result<TcpStream, ProxyError> {
        let leading = async {
            match self.proxy.protocol() {
                ProxyProtocol::Socks5 => self.socks(socket, target).await,
                ProxyProtocol::Http => self.http(socket, target).await,
            }
        };
        let led = timeout_at(deadline, leading).await.unwrap_or(Err(Refusal::TimedOut));
        led.map_err(|source| ProxyError { proxy: self.proxy.clone(), source })
    }

    async fn socks(&self, socket: TcpStream, target: &Host) -> Result<TcpStream, Refusal> {
        let target = match target {
            Host::Address(address) => TargetAddr::Ip(*address),
            Host::Name { host, port } => TargetAddr::Domain(host.into(), *port),
        };
        let led = match &self.credentials {
            Some(credentials) => {
                let Credentials { user, password } = &**credentials;
                Socks5Stream::connect_with_password_and_socket(socket, target, user, password).await
            }
            None => Socks5Stream::connect_with_socket(socket, target).await,
        };
        led.map(Socks5Stream::into_inner).map_err(|error| match error {
            tokio_socks::Error::Io(error) => Refusal::Broken(error),
            tokio_socks::Error::PasswordAuthFailure(_) => Refusal::CredentialsRefused,
            tokio_socks::Error::NoAcceptableAuthMethods if self.credentials.is_none() => {
                Refusal::CredentialsMissing
            }
            tokio_socks::Error::InvalidResponseVersion => Refusal::NotSocks,
            error => Refusal::Socks(error),
        })
    }

    async fn http(&self, mut socket: TcpStream, target: &Host) -> Result<TcpStream, Refusal> {
        socket.write_all(self.request(target).as_bytes()).await?;
        let (status, reason) = read_answer(&mut socket).await?;
        match status {
            200..=299 => Ok(socket),
            407 if self.credentials.is_none() => Err(Refusal::CredentialsMissing),
            407 => Err(Refusal::CredentialsRefused),
            status => Err(Refusal::Http { status, reason }),
        }
    }

    /// A request for a tunnel (RFC 9110, section 9.3.6).
    fn request(&self, target: &Host) -> Zeroizing<String> {
        let authority = match target {
            Host::Address(address) => address.to_string(),
            Host::Name { host, port } => format!("{host}:{port}"),
        };
        // With room for all of it: a text that grows leaves copies of the password behind.
        let mut request = Zeroizing::new(String::with_capacity(2 * authority.len() + 1024));
        for part in ["CONNECT ", &authority, " HTTP/1.1\r\nHost: ", &authority, "\r\n"] {
            request.push_str(part);
        }
        if let Some(credentials) = &self.credentials {
            for part in ["Proxy-Authorization: Basic ", &*credentials.basic(), "\r\n"] {
                request.push_str(part);
            }
        }
        request.push_str("\r\n");
        request
    }
}

/// Bytes of a proxy's answer, and how many headers, at most: real ones have a few hundred bytes.
const ANSWER_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// Reads the head of an answer, and not a byte more: what comes behind it is the target's. Gives the status code and what the
/// proxy says about it.
async fn read_answer(socket: &mut TcpStream) -> Result<(u16, String), Refusal> {
    let mut answer = vec![0; ANSWER_MAX];
    let mut length = 0;
    loop {
        let peeked = socket.peek(&mut answer[length..]).await?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&answer[..length + peeked]).map_err(|_| Refusal::NotHttp)?;
        let (head, found) = match (parsed, response.code) {
            (httparse::Status::Complete(head), Some(status)) => {
                (head, Some((status, printable(response.reason.unwrap_or_default()))))
            }
            _ if peeked == 0 && length < ANSWER_MAX => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            // Too long.
            _ if peeked == 0 => return Err(Refusal::NotHttp),
            _ => (length + peeked, None),
        };
        // What has been looked at is taken out, or peeking would not wait for more.
        socket.read_exact(&mut answer[length..head]).await?;
        length = head;
        if let Some(found) = found {
            return Ok(found);
        }
    }
}

/// A proxy's words for the log: nobody else's, but bounded.
fn printable(reason: &str) -> String {
    reason.chars().filter(|character| !character.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of this answer, which comes in pieces; and what is left to be read behind it.
    async fn read(pieces: &[&str]) -> (Result<(u16, String), Refusal>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        proxy.set_nodelay(true).unwrap();
        let answering = async {
            for piece in pieces {
                proxy.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            proxy.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(read_answer(&mut socket), answering);
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        (answer, rest)
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_left_for_the_client() {
        let (answer, rest) = read(&["HTTP/1.1 200 Connection established\r\n\r\n220 mail.example\r\n"]).await;
        assert_eq!(answer.unwrap(), (200, "Connection established".to_owned()));
        assert_eq!(rest, "220 mail.example\r\n");
    }

    #[tokio::test]
    async fn an_answer_may_come_byte_by_byte() {
        let whole = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\nno";
        let pieces: Vec<_> = whole.split_inclusive(|_: char| true).collect();
        let (answer, rest) = read(&pieces).await;
        assert_eq!(answer.unwrap(), (407, "Proxy Authentication Required".to_owned()));
        assert_eq!(rest, "no");
    }

    #[tokio::test]
    async fn an_answer_that_stops_is_a_broken_connection() {
        for pieces in [&[][..], &["HTTP/1.1 200"], &["HTTP/1.1 200 OK\r\nVia: x\r\n"]] {
            let (answer, _) = read(pieces).await;
            assert!(matches!(answer, Err(Refusal::Broken(_))), "{pieces:?}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_http_is_told_apart() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(ANSWER_MAX));
        for answer in ["-ERR unknown command\r\n", "\0\0\0", &*long] {
            let (answered, _) = read(&[answer]).await;
            assert!(matches!(answered, Err(Refusal::NotHttp)), "{answered:?}");
        }
    }

    #[test]
    fn credentials_are_one_line_with_both() {
        for text in ["user:password", "user:password\n", "user:pass:word\r\n", "ü:ß"] {
            assert!(Credentials::parse(text.as_bytes()).is_ok(), "{text}");
        }
        let long = format!("user:{}", "x".repeat(256));
        for text in ["", "user", "user:", ":password", "a:b\nc:d\n", "a\0:b", &*long] {
            assert!(Credentials::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Credentials::parse(b"user:\xff").is_err());
    }

    #[test]
    fn credentials_are_told_as_rfc_7617_has_them() {
        let credentials = Credentials::parse(b"Aladdin:open sesame").unwrap();
        assert_eq!(*credentials.basic(), "QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
