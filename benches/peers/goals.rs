//! What spipe is meant to reach in every run, and whether it did.

use crate::format::{number, table};
use crate::peer::Peer;
use crate::results::Results;
use crate::work::{Direction, Metric, Work};

/// What a value is held against.
enum Goal {
    /// So many times the value of the best encrypted peer: at most, or at least where more is better.
    TimesBest(f64),
    /// So many times the value of one peer.
    Times(f64, Peer),
    /// At most so much more than one peer.
    Over(f64, Peer),
    AtMost(f64),
}

fn goals() -> Vec<(Work, Metric, Goal)> {
    let mut goals = Vec::new();
    for streams in [1, 4] {
        for direction in [Direction::Up, Direction::Down, Direction::Both] {
            let work = Work::Bulk { streams, direction };
            goals.push((work, Metric::CpuPerGb, Goal::TimesBest(0.6)));
            goals.push((work, Metric::GbPerSecond, Goal::TimesBest(1.6)));
        }
    }
    for size in [64, 16 << 10] {
        let work = Work::RoundTrip { size };
        goals.push((work, Metric::P50Micros, Goal::TimesBest(1.0)));
        goals.push((work, Metric::P99Micros, Goal::TimesBest(1.0)));
        goals.push((work, Metric::P50Micros, Goal::Over(5.0, Peer::NginxPlain)));
    }
    goals.push((Work::Connect, Metric::ConnectionsPerSecond, Goal::Times(2.0, Peer::NginxTls)));
    goals.push((Work::Connect, Metric::CpuMillisPerConnection, Goal::AtMost(0.8)));
    goals.push((Work::Idle { count: 5000 }, Metric::KibPerConnection, Goal::AtMost(8.0)));
    goals.push((Work::Idle { count: 5000 }, Metric::BaseMib, Goal::AtMost(8.0)));
    for pipeline in [1, 16] {
        let work = Work::Redis { pipeline };
        goals.push((work, Metric::SetsPerSecond, Goal::TimesBest(1.0)));
        goals.push((work, Metric::GetsPerSecond, Goal::TimesBest(1.0)));
    }
    goals
}

/// The table of all goals that this run says something about; empty if there is none.
pub(crate) fn verdicts(results: &Results) -> String {
    let heading = ["work", "measure", "goal", "it is", "met"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (work, metric, goal) in goals() {
        rows.extend(verdict(results, work, metric, &goal));
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}

fn verdict(results: &Results, work: Work, metric: Metric, goal: &Goal) -> Option<Vec<String>> {
    let value = |peer| results.spread(work, peer, metric).map(|spread| spread.median);
    let spipe = value(Peer::Spipe)?;
    let times = |limit: f64, peer: Peer, theirs: f64| {
        let ratio = spipe / theirs;
        let (sign, met) = if metric.is_cost() { ("≤", ratio <= limit) } else { ("≥", ratio >= limit) };
        (format!("{sign} {limit} × {}", peer.name()), format!("{ratio:.2} ×"), met)
    };
    let (goal, measured, met) = match *goal {
        Goal::TimesBest(limit) => {
            let (peer, theirs) = results.best_rival(work, metric, |_| true)?;
            times(limit, peer, theirs.median)
        }
        Goal::Times(limit, peer) => times(limit, peer, value(peer)?),
        Goal::Over(limit, peer) => {
            let more = spipe - value(peer)?;
            (format!("≤ {limit} more than {}", peer.name()), format!("{more:+.1}"), more <= limit)
        }
        Goal::AtMost(limit) => (format!("≤ {limit}"), number(spipe), spipe <= limit),
    };
    let met = if met { "yes" } else { "no" };
    Some(vec![work.title(), metric.name().to_owned(), goal, measured, met.to_owned()])
}
