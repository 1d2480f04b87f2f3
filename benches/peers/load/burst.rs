//! Memory after a burst: what an end keeps once many connections have carried bytes at the same time.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread::{self, sleep};
use std::time::Duration;

use super::client::connect;
use super::service::exchange;
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

/// How many connections are opened, and carry bytes, at the same time.
const AT_ONCE: usize = 256;
/// What each carries in either direction.
const BYTES: usize = 64 << 10;

pub(crate) fn run(pipe: &Pipe, count: usize, settle: Duration) -> Result<Values> {
    let Some(before) = pipe.memory()? else { return Ok(Vec::new()) };
    let mut open = Vec::with_capacity(count);
    for first in (0..count).step_by(AT_ONCE) {
        open.extend(batch(pipe.entrance, AT_ONCE.min(count - first)));
    }
    if open.is_empty() {
        return Err(format!("none of {count} connections succeeded").into());
    }
    sleep(settle);
    let after = pipe.memory()?.ok_or("both ends are there")?;
    let grown = after.iter().sum::<f64>() - before.iter().sum::<f64>();
    Ok(vec![
        (Metric::KibPerConnection, grown / float_len(open.len())),
        (Metric::Failures, float_len(count - open.len())),
    ])
}

/// Connections that have carried [`BYTES`] to an echo and back, all at the same time; those that failed are left out.
fn batch(entrance: SocketAddr, count: usize) -> Vec<TcpStream> {
    let ready = Barrier::new(count);
    let carry = || {
        ready.wait();
        let stream = connect(entrance)?;
        exchange(&stream, BYTES, BYTES)?;
        Ok::<_, io::Error>(stream)
    };
    thread::scope(|scope| {
        let open: Vec<_> = (0..count).map(|_| scope.spawn(carry)).collect();
        open.into_iter().filter_map(|stream| stream.join().expect("it does not panic").ok()).collect()
    })
}
