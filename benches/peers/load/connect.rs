//! Connections: connect, one byte there and back, close; by clients at the same time.

use std::net::SocketAddr;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::client::{percentile, request, timed};
use super::service::Request;
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

const CLIENTS: usize = 8;

pub(crate) fn run(pipe: &Pipe, time: Duration) -> Result<Values> {
    let before = pipe.cpu()?;
    let start = Instant::now();
    let clients: Vec<Client> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| Client::run(pipe.entrance, start, time))).collect();
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect()
    });
    let took = start.elapsed();
    // The last closes are still on their way through the ends.
    sleep(Duration::from_millis(200));
    let after = pipe.cpu()?;

    let failures: usize = clients.iter().map(|client| client.failures).sum();
    let mut times: Vec<Duration> = clients.into_iter().flat_map(|client| client.times).collect();
    if times.is_empty() {
        return Err(format!("none of {failures} connections succeeded").into());
    }
    times.sort_unstable();
    let done = float_len(times.len());
    let mut values = vec![(Metric::ConnectionsPerSecond, done / took.as_secs_f64())];
    if let (Some(before), Some(after)) = (before, after) {
        values.push((Metric::CpuMillisPerConnection, (after - before) * 1e3 / done));
    }
    values.push((Metric::P99Millis, percentile(&times, 99).as_secs_f64() * 1e3));
    values.push((Metric::Failures, float_len(failures)));
    Ok(values)
}

#[derive(Default)]
struct Client {
    times: Vec<Duration>,
    failures: usize,
}

impl Client {
    fn run(entrance: SocketAddr, start: Instant, time: Duration) -> Self {
        let mut client = Self::default();
        while start.elapsed() < time {
            match timed(|| request(entrance, Request::Answer).map(drop)) {
                (took, Ok(())) => client.times.push(took),
                (_, Err(_)) => client.failures += 1,
            }
        }
        client
    }
}
