//! The status over HTTP/1.1: who may ask, what there is, and how long it may take.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::access::{Guard, Refusal};
use super::events::Events;
use super::gather::Gatherer;
use super::metrics;
use super::page::{Page, Sorting};
use super::query::Query;
use super::verbs::{Answer, Reload};
use crate::stream::Stream;

/// How long a request may take to come, from its first moment or from the answer before it: more than the usual pause between
/// two of a scraper.
const HEADERS: Duration = Duration::from_secs(60);

/// The most bytes of a request before its body. No request here has a body that is read.
const HEADERS_MAX: usize = 16 * 1024;

/// How long a connection may last, whatever it does. Browsers take an event stream up again by themselves.
const AGE: Duration = Duration::from_secs(60 * 60);

/// How long the accept loops may take to give a sign of life.
const ALIVE: Duration = Duration::from_secs(5);

/// The most connections that an answer lists, and how many it lists if nothing else is asked for.
const LISTED_MAX: usize = 10_000;
const LISTED: usize = 200;

type Body = Either<Full<Bytes>, Events>;

/// Places for connections. One more than there are ends the connection that is there longest: readers that stall keep nobody out.
pub(super) struct Doors {
    places: usize,
    open: Arc<Mutex<VecDeque<CancellationToken>>>,
}

impl Doors {
    pub(super) fn new(places: usize) -> Self {
        Self { places, open: Arc::default() }
    }

    /// Does `connection`, unless its place is needed for another before it is done.
    pub(super) fn enter<F: Future<Output = ()> + Send>(
        &self,
        connection: F,
    ) -> impl Future<Output = ()> + Send + use<F> {
        let (token, open) = (CancellationToken::new(), Arc::clone(&self.open));
        {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that have ended by themselves are still in the list; they are the first to go.
            open.retain(|other| !other.is_cancelled());
            if open.len() >= self.places
                && let Some(oldest) = open.pop_front()
            {
                oldest.cancel();
            }
            open.push_back(token.clone());
        }
        async move {
            tokio::select! {
                () = connection => token.cancel(),
                () = token.cancelled() => {}
            }
        }
    }
}

/// What is served at some sockets.
#[derive(Clone)]
pub(super) struct Service {
    gatherer: Arc<Gatherer>,
    page: Arc<Page>,
    guard: Arc<Guard>,
    /// None where nothing but reading is allowed.
    reload: Option<Reload>,
}

impl Service {
    /// To be read.
    pub(super) fn status(gatherer: Arc<Gatherer>, guard: Arc<Guard>) -> Self {
        Self { gatherer, page: Arc::default(), guard, reload: None }
    }

    /// To be read, and to be told what to do.
    pub(super) fn control(gatherer: Arc<Gatherer>, guard: Arc<Guard>, reload: Reload) -> Self {
        Self { gatherer, page: Arc::default(), guard, reload: Some(reload) }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(self, stream: Stream) {
        match stream {
            Stream::Tcp(stream) => self.serve_over(stream).await,
            Stream::Unix(stream) => self.serve_over(stream).await,
            Stream::Tls(_) | Stream::Stdio(_) => unreachable!("it was accepted"),
        }
    }

    async fn serve_over(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
        let service = service_fn(|request| {
            let service = self.clone();
            async move { Ok::<_, Infallible>(service.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Ok(Err(error)) = timeout(AGE, connection).await {
            debug!(%error, "a reader of the status was not served to the end");
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let admitted = self.guard.admit(request.uri(), request.headers()).await;
        let mut response = match admitted {
            Ok(()) => self.route(&request).await,
            Err(Refusal::WrongHost) => text(
                StatusCode::MISDIRECTED_REQUEST,
                "the status is served to this host by its address or as localhost; --status-user lets it have other names\n",
            ),
            Err(Refusal::Unauthorized) => {
                let mut response =
                    text(StatusCode::UNAUTHORIZED, "the status is for those who have its password\n");
                let scheme = HeaderValue::from_static("Basic realm=\"spipe\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
        };
        for (name, value) in [
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if !response.headers().contains_key(header::CONTENT_SECURITY_POLICY) {
            let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, nothing);
        }
        response
    }

    async fn route(self, request: &Request<Incoming>) -> Response<Body> {
        let (path, query) = (request.uri().path(), Query::of(request.uri()));
        match (request.method(), &self.reload) {
            (&Method::GET, _) => self.read(path, &query, request).await,
            (&Method::POST, Some(reload)) => match reload.act(path, &query, &self.gatherer).await {
                Some(Answer { status, text }) => json(status, &text),
                None => text(StatusCode::NOT_FOUND, "there are the verbs reload, close, drain and resume\n"),
            },
            _ => {
                let only = "the status can only be read; verbs are for the socket of --control\n";
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, only);
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
                response
            }
        }
    }

    async fn read(self, path: &str, query: &Query, request: &Request<Incoming>) -> Response<Body> {
        match path {
            "/status" => json(StatusCode::OK, &self.gatherer.report()),
            "/" | "/events" | "/connections" => match query.sorting() {
                Err(error) => text(StatusCode::BAD_REQUEST, &format!("{error}\n")),
                Ok(sorting) => match path {
                    "/" => self.page(sorting).await,
                    "/events" => self.events(sorting),
                    _ => {
                        let limit = query.number("limit").unwrap_or(LISTED).min(LISTED_MAX);
                        json(StatusCode::OK, &self.gatherer.connections(sorting, limit))
                    }
                },
            },
            "/metrics" => {
                let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
                let format = metrics::Format::for_accept(accept.unwrap_or_default());
                typed(StatusCode::OK, format.content_type(), format.encode(&self.gatherer))
            }
            "/livez" => match timeout(ALIVE, self.gatherer.registry().heartbeat.answers()).await {
                Ok(()) => text(StatusCode::OK, "the accept loops turn\n"),
                Err(_) => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "an accept loop gives no sign of life; see the log, and restart spipe\n",
                ),
            },
            "/readyz" => match &*self.gatherer.reasons_not_ready() {
                [] => text(StatusCode::OK, "ready\n"),
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", reasons.join("\n"))),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there is /, /status, /connections, /metrics, /livez and /readyz\n",
            ),
        }
    }

    async fn page(self, sorting: Sorting) -> Response<Body> {
        let Self { gatherer, page, .. } = self;
        let policy = HeaderValue::from_str(page.content_security_policy());
        // Of many pipes, it takes a while.
        let rendered = spawn_blocking(move || {
            page.render(&gatherer.report(), &gatherer.connections(sorting, LISTED), sorting)
        });
        match rendered.await {
            Ok(Ok(html)) => {
                let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", html);
                let policy = policy.expect("the policy is a text of ours");
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
                response
            }
            Ok(Err(error)) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, &format!("a fault in spipe: {error}\n"))
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a fault in spipe; see the log\n"),
        }
    }

    fn events(self, sorting: Sorting) -> Response<Body> {
        let Self { gatherer, page, .. } = self;
        let events = Events::each_second(move || {
            page.render_content(&gatherer.report(), &gatherer.connections(sorting, LISTED), sorting).ok()
        });
        let mut response = Response::new(Either::Right(events));
        let media_type = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response
    }
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text.to_owned())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut body = serde_json::to_vec(value).expect("all keys are texts");
    body.push(b'\n');
    typed(status, "application/json", body)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::service::facts::Facts;
    use crate::service::measures::Measures;
    use crate::status::access::Access;

    /// A reader that a service of its own serves.
    fn reader() -> DuplexStream {
        let facts = Arc::new(Facts::new("off".to_owned(), Measures::open()));
        let gatherer = Arc::new(Gatherer::new(Arc::default(), facts, false));
        let (reader, served) = duplex(64);
        tokio::spawn(Service::status(gatherer, Guard::new(Access::Local)).serve_over(served));
        reader
    }

    /// How long the service keeps the connection.
    async fn until_its_end(mut reader: DuplexStream) -> Duration {
        let start = Instant::now();
        let _ = reader.read_to_end(&mut Vec::new()).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_end_is_given_up() {
        for part in ["", "GET /sta", "GET /status HTTP/1.1\r\nHost: x\r\n"] {
            let mut reader = reader();
            reader.write_all(part.as_bytes()).await.unwrap();
            assert_eq!(until_its_end(reader).await.as_secs(), HEADERS.as_secs(), "{part}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_byte_by_byte_has_no_more_time() {
        let (mut reader, start) = (reader(), Instant::now());
        loop {
            // It goes on for ever: all bytes belong to one field.
            if reader.write_all(b"a").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(start.elapsed() < HEADERS * 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_scraper_that_comes_again_in_time_keeps_its_connection() {
        let mut reader = reader();
        for _ in 0..3 {
            reader.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut answer = [0; 1024];
            assert_ne!(reader.read(&mut answer).await.unwrap(), 0);
            while timeout(Duration::from_secs(1), reader.read(&mut answer)).await.is_ok() {}
            tokio::time::sleep(HEADERS / 2).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_a_long_answer_that_stalls_is_ended_at_last() {
        let mut reader = reader();
        reader.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // Nothing is read of it, so it waits for room.
        tokio::time::sleep(AGE + Duration::from_secs(1)).await;
        assert!(reader.write_all(b"x").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_reader_more_ends_the_one_that_is_there_longest() {
        let doors = Doors::new(2);
        let enter = || tokio::spawn(doors.enter(std::future::pending::<()>()));
        let [first, second] = [enter(), enter()];
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        let _third = enter();
        first.await.unwrap();
        assert!(!second.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_has_ended_makes_room_without_the_end_of_another() {
        let doors = Doors::new(2);
        let first = tokio::spawn(doors.enter(std::future::pending::<()>()));
        tokio::spawn(doors.enter(std::future::ready(()))).await.unwrap();
        let _third = tokio::spawn(doors.enter(std::future::pending::<()>()));
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
    }
}
