//! The results as tables: Markdown that also reads well in a terminal.

use std::fmt::Write as _;

use crate::format::{ABSENT, number, table};
use crate::peer::Peer;
use crate::results::{Results, Spread};
use crate::work::{Metric, Work};
use crate::{goals, plot};

/// What spipe is judged by.
const JUDGED: [(Work, Metric); 20] = [
    (Work::ALL[0], Metric::CpuPerGb),
    (Work::ALL[0], Metric::GbPerSecond),
    (Work::ALL[3], Metric::CpuPerGb),
    (Work::ALL[3], Metric::GbPerSecond),
    (Work::RoundTrip { size: 64 }, Metric::P50Micros),
    (Work::RoundTrip { size: 64 }, Metric::P99Micros),
    (Work::RoundTrip { size: 64 }, Metric::CpuMicrosPerRequest),
    (Work::Active { count: 1000 }, Metric::P99Micros),
    (Work::Active { count: 9000 }, Metric::P99Micros),
    (Work::Active { count: 9000 }, Metric::CpuMicrosPerRequest),
    (Work::Connect, Metric::ConnectionsPerSecond),
    (Work::Connect, Metric::CpuMillisPerConnection),
    (Work::Distant, Metric::InTurnP50Millis),
    (Work::Distant, Metric::AtOnceP50Millis),
    (Work::Idle { count: 5000 }, Metric::KibPerConnection),
    (Work::Burst { count: 1000 }, Metric::KibPerConnection),
    (Work::Redis { pipeline: 1 }, Metric::GetsPerSecond),
    (Work::Redis { pipeline: 1 }, Metric::CpuMicrosPerRequest),
    (Work::Redis { pipeline: 16 }, Metric::GetsPerSecond),
    (Work::Redis { pipeline: 16 }, Metric::CpuMicrosPerRequest),
];

fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || ABSENT.to_owned(),
        |Spread { median, min, max }| {
            let (median, min, max) = (number(median), number(min), number(max));
            if min == max { median } else { format!("{median} ({min}–{max})") }
        },
    )
}

fn ratio(of: Option<Spread>, to: Option<Spread>) -> String {
    of.zip(to)
        .filter(|(_, to)| to.median > 0.0)
        .map_or_else(|| ABSENT.to_owned(), |(of, to)| format!("{:.2}", of.median / to.median))
}

/// The table of one work.
pub(crate) fn work(results: &Results, work: Work) -> String {
    let metrics = results.metrics(work);
    let mut heading = vec!["pipe".to_owned()];
    for metric in &metrics {
        heading.push(metric.name().to_owned());
        if metric.has_ratio() {
            heading.push("× spipe".to_owned());
        }
    }
    let mut rows = vec![heading];
    for peer in results.peers().into_iter().filter(|peer| peer.takes_part_in(work)) {
        let mut row = vec![peer.name().to_owned()];
        for &metric in &metrics {
            let spread = results.spread(work, peer, metric);
            row.push(cell(spread));
            if metric.has_ratio() {
                row.push(ratio(spread, results.spread(work, Peer::Spipe, metric)));
            }
        }
        rows.push(row);
    }
    format!("### {}\n\n{}", work.title(), table(&rows))
}

/// spipe beside the best of its kind.
pub(crate) fn judgement(results: &Results) -> String {
    let heading = ["work", "measure", "spipe", "best encrypted peer", "its value", "spipe ÷ it"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (work, metric) in JUDGED {
        let Some(spipe) = results.spread(work, Peer::Spipe, metric) else { continue };
        // A peer that does less than a pipe does is no measure of one, but is not kept quiet either.
        let best = results.best_rival(work, metric, |_| true);
        let equal = results.best_rival(work, metric, |peer| peer.does_less_at(work).is_none());
        let mut shown: Vec<_> = best.into_iter().chain(equal).collect();
        shown.dedup_by_key(|(peer, _)| *peer);
        for (peer, value) in shown {
            let less = peer.does_less_at(work).map(|less| format!(" ({less})"));
            rows.push(vec![
                work.title(),
                metric.name().to_owned(),
                number(spipe.median),
                format!("{}{}", peer.name(), less.unwrap_or_default()),
                number(value.median),
                ratio(Some(spipe), Some(value)),
            ]);
        }
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}

/// What the number of connections costs: a request's CPU time with few and with many, of each peer.
pub(crate) fn growth(results: &Results) -> String {
    let cpu = |peer, count| results.spread(Work::Active { count }, peer, Metric::CpuMicrosPerRequest);
    let mut heading = vec!["pipe".to_owned()];
    heading.extend([100, 1000, 5000, 9000].map(|count| format!("CPU µs/request, {count}")));
    heading.extend([5000, 9000].map(|count| format!("{count} ÷ 100")));
    let mut rows = vec![heading];
    for peer in results.peers() {
        let few = cpu(peer, 100);
        if few.is_some() {
            let mut row = vec![peer.name().to_owned()];
            row.extend([100, 1000, 5000, 9000].map(|count| cell(cpu(peer, count))));
            row.extend([5000, 9000].map(|count| ratio(cpu(peer, count), few)));
            rows.push(row);
        }
    }
    if rows.len() == 1 { String::new() } else { table(&rows) }
}

/// Everything, for `results.md`.
pub(crate) fn document(results: &Results) -> String {
    let rounds = results.rounds;
    let mut text = format!(
        "# spipe beside its peers\n\n\
         Written by `cargo bench --bench peers`, which anyone can run. Every pipe did the same work in turn, in {rounds} \
         rounds: the tables have the medians, with the smallest and the largest in parentheses. `× spipe` is a value as a \
         multiple of spipe's. [results.json](results.json) has every single value.\n\n"
    );
    let judgement = judgement(results);
    if !judgement.is_empty() {
        let _ = write!(text, "## spipe and the best encrypted peer\n\n{judgement}\n");
    }
    let verdicts = goals::verdicts(results);
    if !verdicts.is_empty() {
        let _ = write!(
            text,
            "## Goals\n\nWhat spipe is meant to reach, in medians. The best is the best encrypted peer of the run, \
             whatever it leaves out.\n\n{verdicts}\n"
        );
    }
    let growth = growth(results);
    if !growth.is_empty() {
        let _ = write!(text, "## What the number of active connections costs\n\n{growth}\n");
    }
    for chart in plot::charts(results) {
        let _ = writeln!(text, "![{}]({})\n", chart.title, chart.file);
    }
    text.push_str(
        "## How it is measured\n\n\
         - Everything is on one machine: client, near end, far end and service, over loopback. The load shares the cores \
         with the ends, so GB/s and connections/s say what is left for the load, and CPU time says what the ends cost.\n\
         - CPU time is user and system time of all processes of both ends, as the kernel accounts for it. GB are 10⁹ bytes \
         of the user's data; a request is a round trip, or one of Redis's. The load's own CPU time is not counted.\n\
         - Active connections send messages of 64 B, each after the answer to the one before, and 5,000 a second over all of \
         them together, whatever their number. A message's time begins as it is sent.\n\
         - A burst is 256 connections at a time, each of which carries 64 KiB to an echo and back. All stay open, and are \
         idle when memory is measured.\n\
         - New connections at a round trip of 50 ms go between two network namespaces, joined by a program that passes on each \
         packet 25 ms later. The client and the near end are in one, the far end and an echo in the other; `direct` is a client \
         that connects to the echo itself. The time is from connect(2) to the first byte of the answer: of the first \
         connection since the ends were started, of 10 in turn, and of 64 at once.\n\
         - Each measurement starts its peer afresh. Bulk carries 2 GiB, or what a slow peer carries in 2 s.\n\
         - Memory is PSS: what both ends have more with the connections than without, divided by their number. The base is \
         the larger of the two ends before; the two share their program's pages. The kernel's socket buffers are not in it.\n\
         - Each peer runs as packaged, with room for the connections; rows with \"64 KiB\" have buffers of this size as their only \
         other setting. `tokio-rustls` is a relay of 100 lines in this benchmark, which does nothing else.\n\
         - TLS is 1.3, with a certificate on P-256 that the \
         near end checks (the far end does not check the near one); sessions are resumed where that is the default. \
         spipe does a full handshake for each connection, authenticated in both directions and with ML-KEM. \
         `ssh -L` sends all connections over one that it has already.\n\
         - nginx sets memory aside for as many connections as it is configured for, so its base is large.\n\n",
    );
    text.push_str("## The machine\n\n| | |\n|-|-|\n");
    for (name, value) in &results.machine {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text.push_str("\n## All results\n\n");
    for work in results.works() {
        let _ = writeln!(text, "{}", self::work(results, work));
    }
    if !results.errors.is_empty() {
        text.push_str("## What failed\n\n");
        for error in &results.errors {
            let _ = writeln!(text, "- {error}");
        }
    }
    text
}
