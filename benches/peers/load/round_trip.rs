//! Round trips: one message at a time there and back, over one connection.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::client::{percentile, request, timed};
use super::service::Request;
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

/// A peer that holds messages back needs minutes for all exchanges; so many seconds' worth say as much.
const LONGEST: Duration = Duration::from_secs(10);

pub(crate) fn run(pipe: &Pipe, size: usize, exchanges: usize) -> Result<Values> {
    let mut stream = request(pipe.entrance, Request::Echo(size))?;
    let mut message = vec![7; size];
    let mut exchange = || {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    };
    // The first ones find cold caches and small windows.
    (0..exchanges / 20).try_for_each(|_| exchange())?;
    let before = pipe.cpu()?;
    let start = Instant::now();
    let mut times = (0..exchanges)
        .take_while(|_| start.elapsed() < LONGEST)
        .map(|_| {
            let (took, done) = timed(&mut exchange);
            done.map(|()| took)
        })
        .collect::<io::Result<Vec<Duration>>>()?;
    let after = pipe.cpu()?;
    times.sort_unstable();
    let micros = |percent| percentile(&times, percent).as_secs_f64() * 1e6;
    let mut values = vec![(Metric::P50Micros, micros(50)), (Metric::P99Micros, micros(99))];
    if let (Some(before), Some(after)) = (before, after) {
        values.push((Metric::CpuMicrosPerRequest, (after - before) * 1e6 / float_len(times.len())));
    }
    Ok(values)
}
