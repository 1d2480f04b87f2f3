//! Bulk: many bytes over one or more connections.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::client::request;
use super::service::{CHUNK, Request, exchange};
use crate::count::{float_len, whole};
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Direction, Metric, Values};

/// What a run carries at most, and how long it may take: slow peers carry less.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
}

pub(crate) fn run(pipe: &Pipe, streams: usize, direction: Direction, size: Size) -> Result<Values> {
    // First so much that a slow peer needs a quarter of a second: it warms up, and says how much is not too much.
    let trial = 16 << 20;
    let took = carry(pipe.entrance, streams, direction, trial)?;
    let fitting = float_len(trial) * size.time.div_duration_f64(took);
    let bytes = if fitting < float_len(size.bytes) { trial.max(whole(fitting)) } else { size.bytes };

    let before = pipe.cpu()?;
    let took = carry(pipe.entrance, streams, direction, bytes)?;
    let after = pipe.cpu()?;
    let gigabytes = float_len(bytes) / 1e9;
    let mut values = vec![(Metric::GbPerSecond, gigabytes / took.as_secs_f64())];
    if let (Some(before), Some(after)) = (before, after) {
        values.push((Metric::CpuPerGb, (after - before) / gigabytes));
    }
    Ok(values)
}

/// Carries `bytes` in all, and returns how long that took from the moment that every connection was there.
fn carry(entrance: SocketAddr, streams: usize, direction: Direction, bytes: usize) -> io::Result<Duration> {
    let share = (bytes / streams).next_multiple_of(2 * CHUNK);
    let (send, take) = match direction {
        Direction::Up => (share, 0),
        Direction::Down => (0, share),
        Direction::Both => (share / 2, share / 2),
    };
    let connections = (0..streams)
        .map(|_| request(entrance, Request::Bulk { take: send, send: take }))
        .collect::<io::Result<Vec<_>>>()?;
    let ready = Barrier::new(streams + 1);
    thread::scope(|scope| {
        let work: Vec<_> = connections
            .iter()
            .map(|mut stream| {
                let ready = &ready;
                scope.spawn(move || {
                    ready.wait();
                    stream.write_all(b"g")?;
                    exchange(stream, send, take)?;
                    stream.read_exact(&mut [0])
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        for stream in work {
            stream.join().expect("it does not panic")?;
        }
        Ok(start.elapsed())
    })
}
