//! The load: a service behind the pipe and clients in front of it.
//!
//! Plain threads with blocking sockets: the least that can stand between the clock and the pipe. Their CPU time is the
//! benchmark's own and never counted.

pub(crate) mod bulk;
pub(crate) mod connect;
pub(crate) mod idle;
pub(crate) mod redis;
pub(crate) mod round_trip;
pub(crate) mod service;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use service::Request;

/// How long any one step may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection with `TCP_NODELAY` and patience that ends.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// A connection whose service has taken `request`.
fn request(address: SocketAddr, request: Request) -> io::Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.write_all(&request.to_bytes())?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// How long it took, and what came of it.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The time that `percent` of `sorted` took at most.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}
