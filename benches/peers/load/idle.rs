//! Idle connections: what an end keeps for each that carries nothing.

use std::thread::sleep;
use std::time::Duration;

use super::client::open;
use super::service::{Request, Service};
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

/// Failures in a row, after which there are no more attempts.
const GIVE_UP: usize = 6;

pub(crate) fn run(pipe: &Pipe, service: &Service, count: usize, settle: Duration) -> Result<Values> {
    let Some(before) = pipe.memory()? else { return Ok(Vec::new()) };
    let open = open(pipe.entrance, count, Request::Hold, GIVE_UP);
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
