//! What the clients in front of the pipe have in common.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::service::{PATIENCE, Request, prepare};

/// How many connections [`open`] opens at a time.
const OPENERS: usize = 16;

/// A connection that has carried nothing yet.
pub(super) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    prepare(&stream)?;
    Ok(stream)
}

/// A connection whose service has taken `request`.
pub(super) fn request(address: SocketAddr, request: Request) -> io::Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.write_all(&request.to_bytes())?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// So many connections whose service has taken `request`, or fewer if some fail. An opener that fails so many times in a
/// row counts the rest of its connections as failed.
pub(super) fn open(entrance: SocketAddr, count: usize, request: Request, give_up: usize) -> Vec<TcpStream> {
    thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS)
            .map(|opener| {
                let share = count / OPENERS + usize::from(opener < count % OPENERS);
                scope.spawn(move || open_in_turn(entrance, share, request, give_up))
            })
            .collect();
        openers.into_iter().flat_map(|opener| opener.join().expect("it does not panic")).collect()
    })
}

fn open_in_turn(entrance: SocketAddr, count: usize, wanted: Request, give_up: usize) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(count);
    let mut in_a_row = 0;
    for _ in 0..count {
        if let Ok(stream) = request(entrance, wanted) {
            open.push(stream);
            in_a_row = 0;
        } else {
            in_a_row += 1;
            if in_a_row == give_up {
                break;
            }
        }
    }
    open
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
