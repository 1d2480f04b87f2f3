//! The work that every peer does, and what is measured at it.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Between the two hosts of [`Work::Distant`].
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(50);

/// What the command line chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Many bytes.
    Bulk,
    /// Round trips on one connection.
    Rtt,
    /// Round trips on up to 9,000 connections.
    Active,
    /// New connections.
    Connect,
    /// New connections at a round trip of 50 ms.
    Distant,
    /// Memory of connections that carry nothing.
    Idle,
    /// Memory of connections that have carried much at once.
    Burst,
    /// Redis's own benchmark.
    Redis,
}

/// Where the bytes of [`Work::Bulk`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From client to service.
    Up,
    /// From service to client.
    Down,
    /// Half each, at once.
    Both,
}

/// One piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Bulk {
        streams: usize,
        direction: Direction,
    },
    RoundTrip {
        size: usize,
    },
    /// Messages now and then on many connections.
    Active {
        count: usize,
    },
    Connect,
    /// New connections between two hosts that are [`ROUND_TRIP`] apart.
    Distant,
    Idle {
        count: usize,
    },
    /// Idle connections that have carried bytes at the same time.
    Burst {
        count: usize,
    },
    Redis {
        pipeline: usize,
    },
}

impl Work {
    pub(crate) const ALL: [Self; 19] = [
        Self::Bulk { streams: 1, direction: Direction::Up },
        Self::Bulk { streams: 1, direction: Direction::Down },
        Self::Bulk { streams: 1, direction: Direction::Both },
        Self::Bulk { streams: 4, direction: Direction::Up },
        Self::Bulk { streams: 4, direction: Direction::Down },
        Self::Bulk { streams: 4, direction: Direction::Both },
        Self::RoundTrip { size: 64 },
        Self::RoundTrip { size: 16 << 10 },
        Self::Active { count: 100 },
        Self::Active { count: 1000 },
        Self::Active { count: 5000 },
        Self::Active { count: 9000 },
        Self::Connect,
        Self::Distant,
        Self::Idle { count: 1000 },
        Self::Idle { count: 5000 },
        Self::Burst { count: 1000 },
        Self::Redis { pipeline: 1 },
        Self::Redis { pipeline: 16 },
    ];

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Bulk { .. } => Kind::Bulk,
            Self::RoundTrip { .. } => Kind::Rtt,
            Self::Active { .. } => Kind::Active,
            Self::Connect => Kind::Connect,
            Self::Distant => Kind::Distant,
            Self::Idle { .. } => Kind::Idle,
            Self::Burst { .. } => Kind::Burst,
            Self::Redis { .. } => Kind::Redis,
        }
    }

    /// Its name in the results.
    pub(crate) fn id(self) -> String {
        match self {
            Self::Bulk { streams, direction } => format!("bulk-{streams}-{direction:?}").to_lowercase(),
            Self::RoundTrip { size } => format!("rtt-{size}"),
            Self::Active { count } => format!("active-{count}"),
            Self::Connect => "connect".to_owned(),
            Self::Distant => "distant".to_owned(),
            Self::Idle { count } => format!("idle-{count}"),
            Self::Burst { count } => format!("burst-{count}"),
            Self::Redis { pipeline } => format!("redis-p{pipeline}"),
        }
    }

    /// Its heading in the report.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Bulk { streams, direction } => {
                let streams = if streams == 1 { "1 stream".to_owned() } else { format!("{streams} streams") };
                let direction = match direction {
                    Direction::Up => "client to service",
                    Direction::Down => "service to client",
                    Direction::Both => "both directions at once (the sum of both)",
                };
                format!("Bulk, {streams}, {direction}")
            }
            Self::RoundTrip { size: 64 } => "Round trip of 64 B".to_owned(),
            Self::RoundTrip { size } => format!("Round trip of {} KiB", size >> 10),
            Self::Active { count } => format!("{count} active connections"),
            Self::Connect => "Connect, one byte there and back, close; 8 clients".to_owned(),
            Self::Distant => format!("New connection at a round trip of {} ms", ROUND_TRIP.as_millis()),
            Self::Idle { count } => format!("{count} idle connections"),
            Self::Burst { count } => format!("{count} connections after a burst"),
            Self::Redis { pipeline: 1 } => "Redis, 50 clients".to_owned(),
            Self::Redis { pipeline } => format!("Redis, 50 clients, -P {pipeline}"),
        }
    }
}

/// What one measurement gave.
pub(crate) type Values = Vec<(Metric, f64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    GbPerSecond,
    CpuPerGb,
    P50Micros,
    P99Micros,
    ConnectionsPerSecond,
    CpuMillisPerConnection,
    P99Millis,
    Failures,
    KibPerConnection,
    BaseMib,
    SetsPerSecond,
    GetsPerSecond,
    CpuMicrosPerRequest,
    RequestsPerSecond,
    FirstMillis,
    InTurnP50Millis,
    AtOnceP50Millis,
    AtOnceMaxMillis,
}

impl Metric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GbPerSecond => "GB/s",
            Self::CpuPerGb => "CPU s/GB",
            Self::P50Micros => "p50 µs",
            Self::P99Micros => "p99 µs",
            Self::ConnectionsPerSecond => "connections/s",
            Self::CpuMillisPerConnection => "CPU ms/connection",
            Self::P99Millis => "p99 ms",
            Self::Failures => "failures",
            Self::KibPerConnection => "KiB/connection",
            Self::BaseMib => "base MiB",
            Self::SetsPerSecond => "SET/s",
            Self::GetsPerSecond => "GET/s",
            Self::CpuMicrosPerRequest => "CPU µs/request",
            Self::RequestsPerSecond => "requests/s",
            Self::FirstMillis => "first ms",
            Self::InTurnP50Millis => "10 in turn, p50 ms",
            Self::AtOnceP50Millis => "64 at once, p50 ms",
            Self::AtOnceMaxMillis => "64 at once, max ms",
        }
    }

    /// Whether less is better.
    pub(crate) fn is_cost(self) -> bool {
        !matches!(
            self,
            Self::GbPerSecond
                | Self::ConnectionsPerSecond
                | Self::SetsPerSecond
                | Self::GetsPerSecond
                | Self::RequestsPerSecond
        )
    }

    /// A failure is a failure: there is no multiple of none.
    pub(crate) fn has_ratio(self) -> bool {
        self != Self::Failures
    }
}
