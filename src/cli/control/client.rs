//! Asks a running process over its control socket: one connection for each question, with limits on time and size.

use std::error::Error;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::status::report::{ConnectionList, Report, SCHEMA, SortBy};

/// How long a process may take to answer. A healthy one takes milliseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a reload may take: it reads all files again and looks up all names.
const RELOAD: Duration = Duration::from_secs(60);

/// How long to wait until a socket may have room for a connection again: nothing tells when.
const FULL: Duration = Duration::from_millis(50);

/// Bytes of an answer. 100,000 connections take about half of it.
const LARGEST: usize = 64 * 1024 * 1024;

/// Why a process was not asked, or did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The process says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// There is nothing to end.
    #[error("{0}: no connection has it; 'spipe top' shows what there is")]
    NoConnection(String),
    /// A target that was waited for is in use again.
    #[error("{0}: new connections get this target again: it was resumed meanwhile")]
    Resumed(String),
    /// A target that was waited for has gone.
    #[error("{0}: no pipe has this target any more, so that its connections cannot be counted; they go on")]
    NoTarget(String),
    /// There was no answer, or none that can be used.
    #[error("{}: {fault}", path.display())]
    NoAnswer {
        /// The control socket.
        path: PathBuf,
        /// What happened instead.
        fault: Fault,
    },
}

/// What happened instead of an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// There is no file of this name.
    #[error("there is no such socket; is spipe running with --control and this path?")]
    NoSocket,
    /// It is another kind of file.
    #[error("this is not a socket; name the path that spipe was started with (--control)")]
    OtherFile,
    /// The process that made the socket has ended.
    #[error("nothing listens at this socket any more; is spipe still running with --control and this path?")]
    Stale,
    /// The socket belongs to another user.
    #[error("permission denied; ask as the user that spipe runs as, or as root")]
    Denied,
    /// The system says something else.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The time is up.
    #[error(
        "the process does not answer: nothing came within {} s. It may be stopped, or have too much to do; \
         its log says more",
        .0.as_secs()
    )]
    Silent(Duration),
    /// The connection ended too early.
    #[error("the process does not answer: the connection ended too early ({0}); is it still running?")]
    BrokenOff(hyper::Error),
    /// It has no end in sight.
    #[error("the answer is larger than {} MiB; is this the --control socket of spipe?", LARGEST / 1024 / 1024)]
    TooLarge,
    /// It is another program's socket.
    #[error("what listens there is not spipe ({0}); name the path that spipe was started with (--control)")]
    NotSpipe(String),
    /// The process is of a later version.
    #[error(
        "the process speaks version {theirs} of the status format, and this command knows {SCHEMA}; \
         use the spipe command that belongs to the process"
    )]
    Newer {
        /// The process's [`SCHEMA`].
        theirs: u32,
    },
}

/// What an administrator orders.
pub(super) enum Order<'text> {
    /// Read the configuration again.
    Reload,
    /// End the connection with this id.
    CloseConnection(&'text str),
    /// End all connections that have the key with this fingerprint.
    CloseKey(&'text str),
    /// New connections get other targets than this one.
    Drain(Destination<'text>),
    /// They may get it again.
    Resume(Destination<'text>),
}

/// A target as it was written; that of one pipe, or of all that have it.
#[derive(Clone, Copy)]
pub(super) struct Destination<'text> {
    pub(super) target: &'text str,
    pub(super) pipe: Option<&'text str>,
}

/// What came of an order, in words.
#[derive(Debug, Deserialize)]
pub(super) struct Done {
    pub(super) message: String,
}

/// What came of an order that concerns connections.
#[derive(Debug, Deserialize)]
pub(super) struct Counted {
    /// What was done, in words.
    pub(super) message: String,
    /// Connections that were ended, or that have the target.
    pub(super) connections: u64,
}

/// Whether new connections are served.
pub(super) enum Readiness {
    Ready,
    /// Why not.
    NotReady(String),
}

/// Asks the process that listens at one socket.
pub(super) struct Client {
    path: PathBuf,
}

impl Client {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// All that the process says of itself.
    pub(super) async fn report(&self) -> Result<Report, ControlError> {
        let body = self.ask("/status").await?;
        self.known(&body)
    }

    /// The same as the process writes it, also if its format is newer.
    pub(super) async fn report_as_it_came(&self) -> Result<Bytes, ControlError> {
        let body = self.ask("/status").await?;
        self.parse::<Versioned>(&body)?;
        Ok(body)
    }

    /// The first `limit` connections by this order.
    pub(super) async fn connections(
        &self,
        sort: SortBy,
        limit: usize,
    ) -> Result<ConnectionList, ControlError> {
        let sort = serde_json::to_value(sort).expect("the order is a word");
        let sort = sort.as_str().expect("the order is a word");
        let body = self.ask(&format!("/connections?sort={sort}&limit={limit}")).await?;
        self.known(&body)
    }

    /// Whether new connections are served.
    pub(super) async fn readiness(&self) -> Result<Readiness, ControlError> {
        let (status, body) = self.exchange(Method::GET, "/readyz", ANSWER).await?;
        match status {
            StatusCode::OK => Ok(Readiness::Ready),
            StatusCode::SERVICE_UNAVAILABLE => {
                Ok(Readiness::NotReady(String::from_utf8_lossy(&body).trim().to_owned()))
            }
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// Has the process do something.
    pub(super) async fn order<T: DeserializeOwned>(&self, order: Order<'_>) -> Result<T, ControlError> {
        let limit = if matches!(order, Order::Reload) { RELOAD } else { ANSWER };
        match self.exchange(Method::POST, &order.path(), limit).await? {
            (StatusCode::OK, body) => self.parse(&body),
            (status, body) => Err(self.refusal(status, &body)),
        }
    }

    async fn ask(&self, path: &str) -> Result<Bytes, ControlError> {
        match self.exchange(Method::GET, path, ANSWER).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(self.refusal(status, &body)),
        }
    }

    /// What is no success: the process says why, or it is another program.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> ControlError {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        match serde_json::from_slice(body) {
            Ok(Refusal { error }) => ControlError::Refused(error),
            Err(_) => self.failed(Fault::NotSpipe(format!("it answers {status}"))),
        }
    }

    fn known<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        // First, since what is newer may be different in any way.
        let Versioned { schema } = self.parse(body)?;
        if schema > SCHEMA {
            return Err(self.failed(Fault::Newer { theirs: schema }));
        }
        self.parse(body)
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        serde_json::from_slice(body)
            .map_err(|error| self.failed(Fault::NotSpipe(format!("its answer cannot be read: {error}"))))
    }

    fn failed(&self, fault: Fault) -> ControlError {
        ControlError::NoAnswer { path: self.path.clone(), fault }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .body(Empty::new())
            .expect("paths are ASCII without spaces");
        let answer = async {
            let stream = self.connect().await?;
            converse(stream, request).await
        };
        within(limit, answer).await.map_err(|fault| self.failed(fault))
    }

    async fn connect(&self) -> Result<UnixStream, Fault> {
        loop {
            let error = match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            return Err(match error.kind() {
                // More connections wait than the socket has room for.
                io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(FULL).await;
                    continue;
                }
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Fault::NoSocket,
                io::ErrorKind::PermissionDenied => Fault::Denied,
                io::ErrorKind::ConnectionRefused => match fs::metadata(&self.path) {
                    Ok(file) if !file.file_type().is_socket() => Fault::OtherFile,
                    _ => Fault::Stale,
                },
                _ => Fault::Connect(error),
            });
        }
    }
}

/// What every JSON answer has, whatever its version.
#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Fault::Silent(limit)))
}

async fn converse(stream: UnixStream, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Bytes), Fault> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Fault::of)?;
    // What goes wrong here, the request and its answer hear of.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    read(sender.send_request(request).await.map_err(Fault::of)?).await
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, Bytes), Fault> {
    let (head, body) = response.into_parts();
    match Limited::new(body, LARGEST).collect().await {
        Ok(body) => Ok((head.status, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge),
        Err(error) => {
            Err(Fault::of(*error.downcast::<hyper::Error>().expect("the body has hyper's errors only")))
        }
    }
}

impl Fault {
    fn of(error: hyper::Error) -> Self {
        // A server that speaks before it is asked has the request cancelled, and is the cause of that.
        let cause = error.source().and_then(|cause| cause.downcast_ref()).unwrap_or(&error);
        let of_system = cause.source().is_some_and(<dyn Error>::is::<io::Error>);
        if of_system || cause.is_incomplete_message() || cause.is_canceled() || cause.is_closed() {
            Self::BrokenOff(error)
        } else {
            Self::NotSpipe(cause.to_string())
        }
    }
}

impl Order<'_> {
    fn path(&self) -> String {
        match self {
            Self::Reload => "/reload".to_owned(),
            Self::CloseConnection(id) => format!("/close?id={}", encoded(id)),
            Self::CloseKey(fingerprint) => format!("/close?key={}", encoded(fingerprint)),
            Self::Drain(destination) => format!("/drain?{}", destination.query()),
            Self::Resume(destination) => format!("/resume?{}", destination.query()),
        }
    }
}

impl Destination<'_> {
    fn query(&self) -> String {
        let pipe = self.pipe.map(|pipe| format!("&pipe={}", encoded(pipe))).unwrap_or_default();
        format!("target={}{pipe}", encoded(self.target))
    }
}

fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_one_value_whatever_is_in_it() {
        let target = "tls://a b+c&pipe=x?%41#é\n";
        let destination = Destination { target, pipe: Some("a=b") };
        assert_eq!(
            Order::Drain(destination).path(),
            "/drain?target=tls%3A%2F%2Fa%20b%2Bc%26pipe%3Dx%3F%2541%23%C3%A9%0A&pipe=a%3Db"
        );
        assert_eq!(Order::CloseKey("7f3a-19c2").path(), "/close?key=7f3a%2D19c2");
    }
}
