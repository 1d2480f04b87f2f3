//! Idle connections: what an end keeps for each that carries nothing.

use std::net::{SocketAddr, TcpStream};
use std::thread::{self, sleep};
use std::time::Duration;

use super::client::request;
use super::service::{Request, Service};
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

/// How many connections are opened at a time.
const OPENERS: usize = 16;
/// After so many failures in a row, an opener counts the rest of its connections as failed.
const GIVE_UP: usize = 5;

pub(crate) fn run(pipe: &Pipe, service: &Service, count: usize, settle: Duration) -> Result<Values> {
    let Some(before) = pipe.memory()? else { return Ok(Vec::new()) };
    let open: Vec<TcpStream> = thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS)
            .map(|opener| {
                let share = count / OPENERS + usize::from(opener < count % OPENERS);
                scope.spawn(move || open(pipe.entrance, share))
            })
            .collect();
        openers.into_iter().flat_map(|opener| opener.join().expect("it does not panic")).collect()
    });
    sleep(settle);
    let after = pipe.memory()?.ok_or("both ends are there")?;
    let opened = open.len();
    drop(open);
    service.release();
    if opened == 0 {
        return Err(format!("none of {count} connections succeeded").into());
    }

    let grown = after.iter().sum::<f64>() - before.iter().sum::<f64>();
    Ok(vec![
        (Metric::KibPerConnection, grown / float_len(opened)),
        (Metric::BaseMib, before[0].max(before[1]) / 1024.0),
        (Metric::Failures, float_len(count - opened)),
    ])
}

/// Connections over each of which a byte has gone there and back.
fn open(entrance: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(count);
    let mut in_a_row = 0;
    for _ in 0..count {
        match request(entrance, Request::Hold) {
            Ok(stream) => {
                open.push(stream);
                in_a_row = 0;
            }
            Err(_) if in_a_row == GIVE_UP => break,
            Err(_) => in_a_row += 1,
        }
    }
    open
}
