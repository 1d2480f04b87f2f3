//! What the clients in front of the pipe have in common.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::service::{PATIENCE, Request, prepare};

/// A connection whose service has taken `request`.
pub(super) fn request(address: SocketAddr, request: Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    prepare(&stream)?;
    stream.write_all(&request.to_bytes())?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// How long it took, and what came of it.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The time that `percent` of `sorted` took at most.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}
