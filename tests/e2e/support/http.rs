//! A client of HTTP/1.1 over TCP or a Unix-domain socket. It believes nothing: a response that is not complete, or not
//! as RFC 9112 has it, fails the test. For servers that a test plays there is [`read_request`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use super::socket::{connect, connect_unix};

/// Where a server listens.
#[derive(Clone)]
pub(crate) enum Server {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection to a server.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Server {
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], "")
    }

    /// Sends a request with these headers in addition to `Host`, `Connection: close` and, if there is a body,
    /// `Content-Length`; returns the response.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        Opened::receive(self.send(&request(method, path, headers, body))).finish(method)
    }

    /// Sends these bytes, and whatever they are, returns all that comes back until the server ends the connection.
    #[track_caller]
    pub(crate) fn send_raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut received = Vec::new();
        match self.send(bytes).read_to_end(&mut received) {
            // A server that has not read everything resets the connection.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("no end: {error}"),
            _ => received,
        }
    }

    /// Asks for server-sent events. The response has to be one.
    #[track_caller]
    pub(crate) fn events(&self, path: &str) -> Events {
        let request = request("GET", path, &[("Accept", "text/event-stream")], "");
        let opened = Opened::receive(self.send(&request));
        assert_eq!(opened.status, 200, "{path}");
        let media_type = header(&opened.headers, "Content-Type").unwrap_or_default();
        assert_eq!(media_type.split(';').next(), Some("text/event-stream"), "{path}");
        Events(BufReader::new(opened.body()))
    }

    #[track_caller]
    fn send(&self, bytes: &[u8]) -> Box<dyn Stream> {
        let mut stream: Box<dyn Stream> = match self {
            Self::Tcp(address) => Box::new(connect(*address)),
            Self::Unix(path) => {
                Box::new(connect_unix(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
            }
        };
        // A server may refuse a request before it has read all of it: what it answers counts.
        let _ = stream.write_all(bytes);
        stream
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut lines = vec![
        format!("{method} {path} HTTP/1.1"),
        "Host: localhost".to_owned(),
        "Connection: close".to_owned(),
    ];
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    if !body.is_empty() {
        lines.push(format!("Content-Length: {}", body.len()));
    }
    format!("{}\r\n\r\n{body}", lines.join("\r\n")).into_bytes()
}

impl Response {
    /// The value of a header that is there at most once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

#[track_caller]
fn header<'headers>(headers: &'headers [(String, String)], wanted: &str) -> Option<&'headers str> {
    let mut values = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let first = values.next();
    assert!(values.next().is_none(), "{wanted} is there twice: {headers:?}");
    first.map(|(_, value)| value.as_str())
}

/// A response whose body is still to be read.
struct Opened {
    status: u16,
    headers: Vec<(String, String)>,
    rest: BufReader<Box<dyn Stream>>,
}

impl Opened {
    #[track_caller]
    fn receive(connection: Box<dyn Stream>) -> Self {
        let mut rest = BufReader::new(connection);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let count = rest.read_until(b'\n', &mut head).expect("a response arrives in time");
            assert!(count > 0, "the response ends in its head: {}", String::from_utf8_lossy(&head));
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        if let Err(error) = response.parse(&head) {
            panic!("not a response ({error}): {}", String::from_utf8_lossy(&head));
        }
        let value = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("headers are ASCII");
        Self {
            status: response.code.expect("a complete head has a status"),
            headers: response.headers.iter().map(|has| (has.name.to_owned(), value(has.value))).collect(),
            rest,
        }
    }

    /// The body as its sender sends it (RFC 9112, 6.3).
    #[track_caller]
    fn body(self) -> Box<dyn Read + Send> {
        let length = header(&self.headers, "Content-Length");
        match header(&self.headers, "Transfer-Encoding") {
            Some(coding) => {
                assert_eq!((coding, length), ("chunked", None), "one length, and in a way that is known");
                Box::new(Chunked { rest: self.rest, left: Some(0) })
            }
            None => match length {
                Some(length) => Box::new(Counted {
                    rest: self.rest,
                    left: length.parse().expect("Content-Length is a number"),
                }),
                None => Box::new(self.rest),
            },
        }
    }

    /// Reads all of the body, if a response to this method may have one.
    #[track_caller]
    fn finish(self, method: &str) -> Response {
        let (status, headers) = (self.status, self.headers.clone());
        let mut body = String::new();
        if method != "HEAD" && status != 204 && status != 304 {
            self.body().read_to_string(&mut body).unwrap_or_else(|error| panic!("{status}: {error}"));
        } else {
            let mut rest = self.rest;
            rest.read_to_string(&mut body).expect("a clean end");
            assert_eq!(body, "", "{status} has no body");
        }
        Response { status, headers, body }
    }
}

/// A body of a known length, after which the connection ends.
struct Counted {
    rest: BufReader<Box<dyn Stream>>,
    left: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.rest.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| wrong("more than Content-Length"))?;
        if count == 0 && self.left > 0 {
            return Err(wrong("less than Content-Length"));
        }
        Ok(count)
    }
}

/// A body in chunks (RFC 9112, 7.1), without extensions and trailers, after which the connection ends.
struct Chunked {
    rest: BufReader<Box<dyn Stream>>,
    /// Bytes of the present chunk that have not been read yet; `None` after the last chunk.
    left: Option<u64>,
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.left {
            None => return Ok(0),
            Some(0) => u64::from_str_radix(&self.line()?, 16).map_err(|_| wrong("a chunk without a size"))?,
            Some(left) => left,
        };
        if left == 0 {
            self.left = None;
            let ends = self.line()?.is_empty() && self.rest.read(&mut [0])? == 0;
            return if ends { Ok(0) } else { Err(wrong("bytes after its end")) };
        }
        let count = (&mut self.rest).take(left).read(buffer)?;
        if count == 0 {
            return Err(wrong("an end within a chunk"));
        }
        let left = left - count as u64;
        self.left = Some(left);
        if left == 0 && !self.line()?.is_empty() {
            return Err(wrong("a chunk that is longer than its size"));
        }
        Ok(count)
    }
}

impl Chunked {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.rest.read_line(&mut line)?;
        line.strip_suffix("\r\n").map(ToOwned::to_owned).ok_or_else(|| wrong("an end between chunks"))
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the body has {what}"))
}

/// A stream of server-sent events (HTML, 9.2.5).
pub(crate) struct Events(BufReader<Box<dyn Read + Send>>);

/// One event.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Event {
    /// Its type; empty is the same as `message`.
    pub(crate) kind: String,
    pub(crate) data: String,
    pub(crate) id: String,
}

impl Events {
    /// The next line, without its end. `None` is the clean end of the stream.
    #[track_caller]
    pub(crate) fn next_line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line arrives in time");
        line.strip_suffix('\n').map(ToOwned::to_owned)
    }

    /// The next event that has data; comments and other fields are skipped. `None` is the clean end of the stream.
    #[track_caller]
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let mut event = Event::default();
        let mut data = Vec::new();
        loop {
            let line = self.next_line()?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.kind),
                "id" => value.clone_into(&mut event.id),
                "data" => data.push(value.to_owned()),
                _ if !line.is_empty() => {}
                _ if data.is_empty() => event = Event::default(),
                _ => return Some(Event { data: data.join("\n"), ..event }),
            }
        }
    }
}

/// The first line of a request, which is read to its end. A browser also connects ahead of requests that it then does
/// not make.
pub(crate) fn read_request(stream: &TcpStream) -> Option<String> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let first = lines.next();
    lines.for_each(drop);
    first
}
