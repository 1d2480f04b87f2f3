//! The load: a service behind the pipe and clients in front of it.
//!
//! Plain threads with blocking sockets, except where there are more connections than threads can serve: the least that can
//! stand between the clock and the pipe. Their CPU time is the
//! benchmark's own and never counted.

mod active;
mod bulk;
mod burst;
mod client;
mod connect;
mod distant;
pub(crate) mod echo;
mod idle;
pub(crate) mod redis;
mod round_trip;
pub(crate) mod service;

use std::time::Duration;

use bulk::Size;
use service::Service;

use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Values, Work};

/// Does `work` through `pipe`, at whose far end is what it takes: `service`, an [`Echo`](echo::Echo), or a Redis server.
pub(crate) fn measure(work: Work, pipe: &Pipe, service: &Service, effort: &Effort) -> Result<Values> {
    match work {
        Work::Bulk { streams, direction } => bulk::run(pipe, streams, direction, effort.bulk),
        Work::RoundTrip { size } => round_trip::run(pipe, size, effort.exchanges),
        Work::Active { count } => active::run(pipe, count, effort.active),
        Work::Connect => connect::run(pipe, effort.connect),
        Work::Distant => distant::run(pipe, effort.settle),
        Work::Idle { count } => idle::run(pipe, service, count, effort.settle),
        Work::Burst { count } => burst::run(pipe, count, effort.settle),
        Work::Redis { pipeline } => redis::run(pipe, pipeline, effort.redis),
    }
}

/// How much of each work there is.
pub(crate) struct Effort {
    bulk: Size,
    exchanges: usize,
    active: Duration,
    connect: Duration,
    /// Between the last connection and the measuring of memory, and before a first connection.
    settle: Duration,
    redis: Duration,
}

impl Effort {
    pub(crate) fn full() -> Self {
        Self {
            bulk: Size { bytes: 2 << 30, time: Duration::from_secs(2) },
            exchanges: 20_000,
            active: Duration::from_secs(6),
            connect: Duration::from_secs(2),
            settle: Duration::from_secs(1),
            redis: Duration::from_secs(3),
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            bulk: Size { bytes: 1 << 30, time: Duration::from_millis(600) },
            exchanges: 5_000,
            active: Duration::from_secs(2),
            connect: Duration::from_secs(1),
            settle: Duration::from_millis(500),
            redis: Duration::from_secs(1),
        }
    }
}
