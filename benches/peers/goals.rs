//! What spipe is meant to reach in every run, and whether it did.

use crate::format::{ABSENT, number, table};
use crate::peer::Peer;
use crate::results::Results;
use crate::work::{Direction, Metric, ROUND_TRIP, Work};

/// What a value is held against.
enum Goal {
    /// So many times the value of the best encrypted peer: at most, or at least where more is better.
    TimesBest(f64),
    /// So many times the value of one peer.
    Times(f64, Peer),
    /// So many times its own value at other work.
    TimesOwn(f64, Work),
    /// At most so much more than one peer.
    Over(f64, Peer),
    /// At most so much more than its own value at other work.
    OverOwn(f64, Work),
    AtMost(f64),
}

fn goals() -> Vec<(Work, Metric, Goal)> {
    let mut goals = Vec::new();
    for streams in [1, 4] {
        for direction in [Direction::Up, Direction::Down, Direction::Both] {
            let work = Work::Bulk { streams, direction };
            goals.push((work, Metric::CpuPerGb, Goal::TimesBest(0.5)));
            goals.push((work, Metric::GbPerSecond, Goal::TimesBest(1.8)));
        }
    }
    for size in [64, 16 << 10] {
        let work = Work::RoundTrip { size };
        goals.push((work, Metric::P50Micros, Goal::TimesBest(1.0)));
        goals.push((work, Metric::P99Micros, Goal::TimesBest(1.0)));
        goals.push((work, Metric::P50Micros, Goal::Over(5.0, Peer::NginxPlain)));
    }
    for count in [1000, 9000] {
        goals.push((Work::Active { count }, Metric::P99Micros, Goal::Times(1.0, Peer::NginxPlain)));
    }
    let growth = Goal::TimesOwn(1.4, Work::Active { count: 100 });
    goals.push((Work::Active { count: 9000 }, Metric::CpuMicrosPerRequest, growth));
    goals.push((Work::Connect, Metric::ConnectionsPerSecond, Goal::Times(3.0, Peer::NginxTls)));
    goals.push((Work::Connect, Metric::ConnectionsPerSecond, Goal::Times(1.0, Peer::NginxPlain)));
    goals.push((Work::Connect, Metric::CpuMillisPerConnection, Goal::Times(0.2, Peer::NginxTls)));
    for metric in [Metric::FirstMillis, Metric::InTurnP50Millis, Metric::AtOnceP50Millis] {
        goals.push((Work::Distant, metric, Goal::AtMost(ROUND_TRIP.as_secs_f64() * 1e3 + 2.0)));
    }
    goals.push((Work::Idle { count: 5000 }, Metric::KibPerConnection, Goal::AtMost(8.0)));
    goals.push((Work::Idle { count: 5000 }, Metric::BaseMib, Goal::AtMost(8.0)));
    let more_than_idle = Goal::OverOwn(8.0, Work::Idle { count: 1000 });
    goals.push((Work::Burst { count: 1000 }, Metric::KibPerConnection, more_than_idle));
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

/// Whose value it is. Of clients that come after a quiet time, tunnels can be ready for them only if somebody asks for that.
fn subject(work: Work, metric: Metric) -> Peer {
    match (work, metric) {
        (Work::Distant, Metric::FirstMillis | Metric::AtOnceP50Millis) => Peer::SpipeWithSpares,
        _ => Peer::Spipe,
    }
}

fn verdict(results: &Results, work: Work, metric: Metric, goal: &Goal) -> Option<Vec<String>> {
    let value = |work, peer| results.spread(work, peer, metric).map(|spread| spread.median);
    let subject = subject(work, metric);
    let spipe = value(work, subject);
    // What spipe fails at, it does not reach; what it was not measured at says nothing.
    if spipe.is_none() && !(results.took_part(subject) && results.metrics(work).contains(&metric)) {
        return None;
    }
    let times = |limit: f64, of: &str, base: f64| {
        let ratio = spipe.map(|spipe| spipe / base);
        let (sign, met) = if metric.is_cost() {
            ("≤", ratio.is_some_and(|ratio| ratio <= limit))
        } else {
            ("≥", ratio.is_some_and(|ratio| ratio >= limit))
        };
        (format!("{sign} {limit} × {of}"), ratio.map(|ratio| format!("{ratio:.2} ×")), met)
    };
    let over = |limit: f64, than: &str, base: f64| {
        let more = spipe.map(|spipe| spipe - base);
        let met = more.is_some_and(|more| more <= limit);
        (format!("≤ {limit} more than {than}"), more.map(|more| format!("{more:+.1}")), met)
    };
    let (goal, measured, met) = match *goal {
        Goal::TimesBest(limit) => {
            let (peer, theirs) = results.best_rival(work, metric, |_| true)?;
            times(limit, peer.name(), theirs.median)
        }
        Goal::Times(limit, peer) => times(limit, peer.name(), value(work, peer)?),
        Goal::TimesOwn(limit, other) => {
            times(limit, &format!("that of {}", other.title()), value(other, Peer::Spipe)?)
        }
        Goal::Over(limit, peer) => over(limit, peer.name(), value(work, peer)?),
        Goal::OverOwn(limit, other) => {
            over(limit, &format!("that of {}", other.title()), value(other, Peer::Spipe)?)
        }
        Goal::AtMost(limit) => {
            (format!("≤ {limit}"), spipe.map(number), spipe.is_some_and(|spipe| spipe <= limit))
        }
    };
    let measured = measured.unwrap_or_else(|| ABSENT.to_owned());
    let met = if met { "yes" } else { "no" };
    let title =
        if subject == Peer::Spipe { work.title() } else { format!("{}, {}", work.title(), subject.name()) };
    Some(vec![title, metric.name().to_owned(), goal, measured, met.to_owned()])
}
