//! What a process says now, beside what it said before.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::cli::control::client::{Client, ControlError};
use crate::status::report::{Connection, ConnectionList, Report, SortBy};

/// The most connections to ask for: some 4 MB, which each side makes or reads in some 50 ms. Those that matter by the order that was
/// asked for come first.
const MOST: usize = 10_000;

/// What connections are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Bytes of both directions since the look before, the most first.
    #[default]
    Rate,
    /// As the process sorts them.
    By(SortBy),
}

impl Sort {
    /// The next one, of all, in a circle.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Rate => Self::By(SortBy::Bytes),
            Self::By(SortBy::Bytes | SortBy::ToTarget | SortBy::FromTarget) => Self::By(SortBy::Age),
            Self::By(SortBy::Age) => Self::By(SortBy::Idle),
            Self::By(SortBy::Idle) => Self::By(SortBy::Client),
            Self::By(SortBy::Client) => Self::By(SortBy::Key),
            Self::By(SortBy::Key) => Self::By(SortBy::Target),
            Self::By(SortBy::Target) => Self::By(SortBy::Pipe),
            Self::By(SortBy::Pipe) => Self::Rate,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::By(SortBy::Age) => "age",
            Self::By(SortBy::Idle) => "idle time",
            Self::By(SortBy::Bytes) => "bytes",
            Self::By(SortBy::ToTarget) => "bytes to the target",
            Self::By(SortBy::FromTarget) => "bytes from the target",
            Self::By(SortBy::Client) => "client",
            Self::By(SortBy::Key) => "key",
            Self::By(SortBy::Target) => "target",
            Self::By(SortBy::Pipe) => "pipe",
        }
    }

    /// The order to ask the process for.
    fn asked(self) -> SortBy {
        match self {
            // Those that carry something now have been idle for the shortest time.
            Self::Rate => SortBy::Idle,
            Self::By(by) => by,
        }
    }
}

/// What was seen at one look.
pub(super) struct Seen {
    pub(super) report: Report,
    /// Processors in use since the look before: 1 is one of them, all the time. Nothing at the first look.
    pub(super) processors: Option<f64>,
    pub(super) sort: Sort,
    /// In this order; [`MOST`] at most.
    pub(super) connections: Vec<Carrying>,
    /// How many connections there are.
    pub(super) total: usize,
}

/// A connection, with bytes a second since the look before, or, if it was not seen then, since its beginning.
pub(super) struct Carrying {
    pub(super) connection: Connection,
    pub(super) to_target: f64,
    pub(super) from_target: f64,
}

/// Looks at a process, and remembers what it needs of the look before.
pub(super) struct Watch {
    client: Client,
    before: Option<Before>,
}

impl Watch {
    pub(super) fn new(client: Client) -> Self {
        Self { client, before: None }
    }

    /// One look.
    pub(super) async fn look(&mut self, sort: Sort) -> Result<Seen, ControlError> {
        let report = self.client.report().await?;
        let list = self.client.connections(sort.asked(), MOST).await?;
        let before = self.before.replace(Before::of(&report, &list));
        // Another process at the same socket begins anew.
        let before = before.filter(|before| before.process == (report.pid, report.started));
        Ok(compare(before.as_ref(), report, list, sort))
    }
}

/// What is remembered of a look.
struct Before {
    process: (u32, Timestamp),
    now: Timestamp,
    cpu_seconds: Option<f64>,
    /// By id.
    connections: HashMap<String, Counts>,
}

#[derive(Clone, Copy)]
struct Counts {
    age_seconds: f64,
    to_target: u64,
    from_target: u64,
}

impl Before {
    fn of(report: &Report, list: &ConnectionList) -> Self {
        let counts =
            list.connections.iter().map(|connection| (connection.id.clone(), Counts::of(connection)));
        Self {
            process: (report.pid, report.started),
            now: report.now,
            cpu_seconds: report.process.cpu_seconds,
            connections: counts.collect(),
        }
    }
}

impl Counts {
    const NONE: Self = Self { age_seconds: 0.0, to_target: 0, from_target: 0 };

    fn of(connection: &Connection) -> Self {
        let &Connection { age_seconds, to_target, from_target, .. } = connection;
        Self { age_seconds, to_target, from_target }
    }
}

fn compare(before: Option<&Before>, report: Report, list: ConnectionList, sort: Sort) -> Seen {
    let processors = before.and_then(|before| {
        let elapsed = before.now.duration_until(report.now).as_secs_f64();
        // A clock that is set is no time that passes.
        (elapsed > 0.0).then_some((report.process.cpu_seconds? - before.cpu_seconds?).max(0.0) / elapsed)
    });
    let rates = |connection: Connection| {
        let now = Counts::of(&connection);
        let then = before.and_then(|before| before.connections.get(&connection.id)).copied();
        let then = then.unwrap_or(Counts::NONE);
        let elapsed = now.age_seconds - then.age_seconds;
        let rate = |then: u64, now: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let bytes = now.saturating_sub(then) as f64;
            if elapsed > 0.0 { bytes / elapsed } else { 0.0 }
        };
        let (to_target, from_target) =
            (rate(then.to_target, now.to_target), rate(then.from_target, now.from_target));
        Carrying { connection, to_target, from_target }
    };
    let mut connections: Vec<_> = list.connections.into_iter().map(rates).collect();
    if sort == Sort::Rate {
        let rate = |carrying: &Carrying| carrying.to_target + carrying.from_target;
        // Stable: those that carry nothing keep the order that they came in.
        connections.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
    }
    Seen { report, processors, sort, connections, total: list.total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::samples;

    fn list(connections: Vec<Connection>) -> ConnectionList {
        ConnectionList { schema: 1, total: connections.len(), connections }
    }

    fn at(id: &str, age_seconds: f64, to_target: u64, from_target: u64) -> Connection {
        Connection { id: id.to_owned(), age_seconds, to_target, from_target, ..samples::connection() }
    }

    fn rates(before: Vec<Connection>, now: Vec<Connection>, sort: Sort) -> Vec<(String, f64, f64)> {
        let before = Before::of(&samples::report(), &list(before));
        let seen = compare(Some(&before), samples::report(), list(now), sort);
        let rates = |carrying: Carrying| (carrying.connection.id, carrying.to_target, carrying.from_target);
        seen.connections.into_iter().map(rates).collect()
    }

    #[test]
    fn connections_are_sorted_by_what_they_carried_between_two_looks() {
        let before = vec![at("old", 100.0, 1_000_000, 0), at("busy", 10.0, 0, 50), at("gone", 9.0, 7, 7)];
        let now = vec![at("old", 102.0, 1_000_000, 0), at("new", 0.5, 20, 0), at("busy", 12.0, 200, 250)];
        let expected =
            [("busy".to_owned(), 100.0, 100.0), ("new".to_owned(), 40.0, 0.0), ("old".to_owned(), 0.0, 0.0)];
        assert_eq!(rates(before, now, Sort::Rate), expected);
    }

    #[test]
    fn an_order_of_the_process_stays_as_it_is() {
        let now = vec![at("first", 1.0, 0, 0), at("second", 1.0, 9, 9)];
        let ids: Vec<_> =
            rates(Vec::new(), now, Sort::By(SortBy::Client)).into_iter().map(|(id, ..)| id).collect();
        assert_eq!(ids, ["first", "second"]);
    }

    #[test]
    fn a_count_that_goes_back_or_a_clock_that_stands_is_no_rate() {
        let before = vec![at("a", 5.0, 100, 100), at("b", 5.0, 0, 0), at("c", 5.0, 0, 0)];
        let now = vec![at("a", 6.0, 50, 100), at("b", 5.0, 10, 10), at("c", 4.0, 10, 10)];
        assert!(rates(before, now, Sort::Rate).iter().all(|(_, to, from)| *to == 0.0 && *from == 0.0));
    }

    #[test]
    fn processor_time_is_known_from_the_second_look_on() {
        let (mut first, mut second) = (samples::report(), samples::report());
        first.process.cpu_seconds = Some(10.0);
        second.process.cpu_seconds = Some(11.0);
        let processors = |before: Option<&Before>, report: &Report| {
            compare(before, report.clone(), list(Vec::new()), Sort::Rate).processors
        };
        let before = Before::of(&first, &list(Vec::new()));
        assert_eq!(processors(None, &second), None);
        assert_eq!(processors(Some(&before), &second), None, "no time has passed");
        second.now += jiff::SignedDuration::from_secs(2);
        assert_eq!(processors(Some(&before), &second), Some(0.5));
        second.process.cpu_seconds = None;
        assert_eq!(processors(Some(&before), &second), None);
    }

    #[test]
    fn the_orders_are_a_circle() {
        let orders: Vec<_> = std::iter::successors(Some(Sort::Rate), |sort| Some(sort.next()))
            .skip(1)
            .take_while(|sort| *sort != Sort::Rate)
            .collect();
        let names: Vec<_> = orders.iter().map(|sort| sort.name()).collect();
        assert_eq!(names, ["bytes", "age", "idle time", "client", "key", "target", "pipe"]);
    }
}
