//! New connections over a distance: how long until the first byte of an answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread::{self, sleep};
use std::time::Duration;

use super::client::{percentile, request, timed};
use super::service::Request;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

const IN_TURN: usize = 10;
const AT_ONCE: usize = 64;

pub(crate) fn run(pipe: &Pipe, settle: Duration) -> Result<Values> {
    // What an end makes ready before there is a client, it has had the time to.
    sleep(settle + pipe.readies);
    let first = answer(pipe.entrance)?;
    let mut in_turn = (0..IN_TURN).map(|_| answer(pipe.entrance)).collect::<io::Result<Vec<_>>>()?;
    in_turn.sort_unstable();
    sleep(settle + pipe.readies);
    let mut at_once = answers_at_once(pipe.entrance)?;
    at_once.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![
        (Metric::FirstMillis, millis(first)),
        (Metric::InTurnP50Millis, millis(percentile(&in_turn, 50))),
        (Metric::AtOnceP50Millis, millis(percentile(&at_once, 50))),
        (Metric::AtOnceMaxMillis, millis(percentile(&at_once, 100))),
    ])
}

/// From connect(2) to the first byte of the answer.
fn answer(entrance: SocketAddr) -> io::Result<Duration> {
    let (took, stream) = timed(|| request(entrance, Request::Answer));
    stream.map(|_| took)
}

fn answers_at_once(entrance: SocketAddr) -> io::Result<Vec<Duration>> {
    let ready = Barrier::new(AT_ONCE);
    let client = || {
        ready.wait();
        answer(entrance)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect()
    })
}
