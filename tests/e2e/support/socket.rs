//! Clients and targets played by the test.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::DEADLINE;
use super::redis::free_port;

/// A connection with a timeout, so that it fails instead of hanging.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

pub(crate) fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    guard(&stream);
    Ok(stream)
}

/// An address at which nothing listens.
pub(crate) fn dead() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A connection from `from`, which is one of the addresses of the loopback network.
pub(crate) fn connect_from(from: [u8; 4], address: SocketAddr) -> TcpStream {
    try_connect_from(from, address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

pub(crate) fn try_connect_from(from: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::from(from), 0)).into())?;
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    guard(&stream);
    Ok(stream)
}

fn guard(stream: &TcpStream) {
    // These fail on a connection that has already ended; its first use reports that too.
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let _ = stream.set_write_timeout(Some(DEADLINE));
    let _ = stream.set_nodelay(true);
}

/// A connection over a Unix-domain socket with a timeout, so that it fails instead of hanging.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    guard_unix(&stream);
    Ok(stream)
}

pub(crate) fn guard_unix(stream: &UnixStream) {
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let _ = stream.set_write_timeout(Some(DEADLINE));
}

/// A target on a free port; the test accepts its connections one by one.
pub(crate) struct Service(TcpListener);

impl Service {
    pub(crate) fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    pub(crate) fn start_on(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        // On Linux the receive timeout also applies to accept(2).
        SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).expect("the socket is open");
        Self(listener)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("the socket is bound")
    }

    pub(crate) fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().expect("a client connects in time");
        guard(&stream);
        stream
    }

    /// The next connection, if it arrives in this time.
    pub(crate) fn accept_within(&self, limit: Duration) -> Option<TcpStream> {
        SockRef::from(&self.0).set_read_timeout(Some(limit)).expect("the socket is open");
        let accepted = self.0.accept();
        SockRef::from(&self.0).set_read_timeout(Some(DEADLINE)).expect("the socket is open");
        accepted.ok().map(|(stream, _)| stream).inspect(guard)
    }

    /// Asserts that no connection has arrived since the last [`Self::accept`]. The kernel queues a connection before
    /// connect(2) returns at the other side, so there is nothing to wait for.
    #[track_caller]
    pub(crate) fn assert_no_connection(&self) {
        self.0.set_nonblocking(true).expect("the socket is open");
        let accepted = self.0.accept();
        self.0.set_nonblocking(false).expect("the socket is open");
        assert_eq!(accepted.map(|(_, peer)| peer).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }

    /// Takes the connections that have arrived already, and closes them.
    pub(crate) fn drain(&self) {
        self.0.set_nonblocking(true).expect("the socket is open");
        while self.0.accept().is_ok() {}
        self.0.set_nonblocking(false).expect("the socket is open");
    }

    /// Serves every connection with `serve` on a separate thread, for as long as the test runs.
    pub(crate) fn serve(self, serve: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
        let address = self.address();
        SockRef::from(&self.0).set_read_timeout(None).expect("the socket is open");
        thread::spawn(move || {
            while let Ok((stream, _)) = self.0.accept() {
                guard(&stream);
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        address
    }
}

/// A target that sends back all bytes that it receives.
pub(crate) fn echo() -> SocketAddr {
    Service::start().serve(send_back)
}

pub(crate) fn send_back(mut stream: TcpStream) {
    let mut reader = stream.try_clone().expect("descriptors are left");
    let _ = io::copy(&mut reader, &mut stream);
    let _ = stream.shutdown(Shutdown::Write);
}

/// Sends `text`, and asserts that the target sends it back.
#[track_caller]
pub(crate) fn assert_echoes(stream: &mut (impl Read + Write), text: &str) {
    stream.write_all(text.as_bytes()).expect("the stream can be written");
    assert_reads(stream, text);
}

/// Asserts that the next bytes are `text`.
#[track_caller]
pub(crate) fn assert_reads(stream: &mut impl Read, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).expect("the stream can be read");
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// Asserts that the stream ends cleanly and without another byte.
#[track_caller]
pub(crate) fn assert_ends(stream: &mut impl Read) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("a clean end");
    assert!(rest.is_empty(), "{} bytes too many", rest.len());
}

/// Asserts that the stream is reset, after any number of bytes; returns these bytes.
#[track_caller]
pub(crate) fn assert_reset(stream: &mut impl Read) -> Vec<u8> {
    let mut received = Vec::new();
    let ending = stream.read_to_end(&mut received).map_err(|error| error.kind());
    assert_eq!(ending, Err(ErrorKind::ConnectionReset), "after {} bytes", received.len());
    received
}

/// Reads until the other side closes or resets the connection; returns the bytes.
pub(crate) fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => received,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => received,
        Err(error) => panic!("neither a clean end nor a reset: {error}"),
    }
}

/// Resets the connection.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("the socket is open");
    drop(stream);
}

/// An address that never answers a connection attempt: its queue has length zero and is full.
pub(crate) struct BlackHole {
    listener: Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        listener.listen(0).expect("the socket is bound");
        let address = local_address(&listener);
        let mut queued = Vec::new();
        // The kernel drops a SYN when the queue is full, so the queue is full once an attempt gets no answer.
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
        }
        Self { listener, _queued: queued }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        local_address(&self.listener)
    }
}

/// A port that no other process gets as long as this lives, for servers that are killed and come back. A server that is told to
/// can listen there; while none does, connections are refused.
pub(crate) struct Port(Socket);

impl Port {
    pub(crate) fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // Linux gives the port to a second socket that wants just this one, if both say so and this one does not listen.
        socket.set_reuse_address(true).expect("the socket is open");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        local_address(&self.0)
    }

    pub(crate) fn number(&self) -> u16 {
        self.address().port()
    }
}

fn local_address(socket: &Socket) -> SocketAddr {
    socket.local_addr().ok().and_then(|address| address.as_socket()).expect("the socket is bound")
}

/// A TCP connection over IPv4 as the kernel lists it (proc_pid_net(5)). Both ends are whole addresses: a connection that
/// another test makes from 127.0.0.7 may well have the port of a listener at 127.0.0.1.
pub(crate) struct Listed {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// `01` established, `02` SYN sent, `06` TIME_WAIT (include/net/tcp_states.h), in hexadecimal.
    pub(crate) state: String,
    /// Bytes that have arrived and that the process has not read.
    pub(crate) unread: usize,
    /// `00` none, `01` a retransmission, `02` keep-alive.
    pub(crate) timer: String,
    /// When it runs out.
    pub(crate) timer_left: Duration,
}

/// All TCP connections and listeners of this network namespace over IPv4.
pub(crate) fn listed() -> Vec<Listed> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux has this file");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.map(|row| Listed {
        local: listed_address(row[1]),
        remote: listed_address(row[2]),
        state: row[3].to_owned(),
        unread: row[4]
            .split_once(':')
            .and_then(|(_, bytes)| usize::from_str_radix(bytes, 16).ok())
            .expect("two numbers"),
        timer: row[5][..2].to_owned(),
        // In hundredths of a second (USER_HZ), in hexadecimal.
        timer_left: u64::from_str_radix(&row[5][3..], 16)
            .map(|hundredths| Duration::from_millis(hundredths * 10))
            .expect("a number"),
    })
    .collect()
}

/// `0100007F:1F90` is 127.0.0.1:8080: the address as the number that is in memory, the port as one reads it.
fn listed_address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').expect("an address has a port");
    let ip = u32::from_str_radix(ip, 16).expect("the address is a number").to_ne_bytes();
    SocketAddr::from((ip, u16::from_str_radix(port, 16).expect("the port is a number")))
}
