//! `spipe status`: a report as a text for people.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::cli::text::{
    between, bytes, causes, connections, count_of_bytes, mode, of_limit, pipe_state, printable, state,
    target_state, time,
};
use crate::status::report::{Key, Pipe, Report, Target};

/// The whole process: some lines, and a block for each pipe.
pub(super) fn text(report: &Report) -> String {
    let mut lines = process(report);
    for pipe in &report.pipes {
        lines.push(String::new());
        lines.extend(block(pipe, report.now));
    }
    lines.iter().fold(String::new(), |text, line| text + &printable(line) + "\n")
}

fn process(report: &Report) -> Vec<String> {
    let Report { version, pid, started, now, .. } = report;
    let ready =
        if report.ready { "ready".to_owned() } else { format!("not ready: {}", report.not_ready.join("; ")) };
    let mut lines = vec![
        format!("spipe {version}, process {pid}: {}, {ready}", state(report.state)),
        row("started", &format!("{}, {} ago", time(*started), between(*started, *now))),
        row("reloaded", &reloaded(report)),
        row("sandbox", &report.sandbox),
    ];
    if let Some(has) = has(report) {
        lines.push(row("has", &has));
    }
    let lookups = &report.name_lookups;
    if lookups.found + lookups.failed > 0 {
        lines.push(row(
            "look-ups",
            &format!("{} of names, {} failed", lookups.found + lookups.failed, lookups.failed),
        ));
    }
    if report.log_lines_dropped > 0 {
        lines.push(row(
            "log",
            &format!("{} lines were lost, since it was not read in time", report.log_lines_dropped),
        ));
    }
    lines
}

fn reloaded(report: &Report) -> String {
    let reloads = &report.reload;
    let Some(last) = &reloads.last else { return "never".to_owned() };
    let outcome = last.error.as_ref().map_or("successfully".to_owned(), |error| format!("refused: {error}"));
    let (succeeded, failed) = (reloads.succeeded, reloads.failed);
    format!(
        "{}, {} ago, {outcome} ({succeeded} succeeded, {failed} failed)",
        time(last.at),
        between(last.at, report.now)
    )
}

/// What the process has of the system, as far as that is known.
fn has(report: &Report) -> Option<String> {
    let process = &report.process;
    let limit = process.descriptors_limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let parts = [
        process.descriptors.map(|open| format!("{open}{limit} files")),
        process.resident_bytes.map(|bytes| format!("{} of memory", count_of_bytes(bytes))),
        process.cpu_seconds.map(|seconds| format!("{seconds:.1} s of processor time")),
        process.threads.map(|threads| format!("{threads} threads")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn block(pipe: &Pipe, now: Timestamp) -> Vec<String> {
    let (counts, rate) = (&pipe.connections, &pipe.rate);
    let mut lines = vec![
        format!(
            "pipe {}: {}, {} at {}",
            pipe.name,
            mode(pipe.mode),
            pipe_state(pipe.state),
            pipe.sources.join(" ")
        ),
        row(
            "connections",
            &format!(
                "{} now, at most {} at a time, {} since {}",
                of_limit(counts.now, counts.limit),
                counts.max,
                counts.established,
                time(pipe.since)
            ),
        ),
        row(
            "rate",
            &format!(
                "{:.1} new/s, {}/s to the target, {}/s from it",
                rate.connections,
                bytes(rate.to_target),
                bytes(rate.from_target)
            ),
        ),
        row(
            "carried",
            &format!(
                "{} to the target, {} from it",
                count_of_bytes(pipe.bytes.to_target),
                count_of_bytes(pipe.bytes.from_target)
            ),
        ),
    ];
    if pipe.strangers > 0 {
        lines.push(row("strangers", &format!("{} have not proved the key so far", pipe.strangers)));
    }
    lines.extend(pipe.keys.iter().map(|key| row("key", &self::key(key, now))));
    lines.extend(pipe.targets.iter().map(|target| row("target", &self::target(target, now))));
    let failures = causes(&pipe.failures.last_24_hours);
    let failures =
        if failures.is_empty() { "none in 24 hours".to_owned() } else { format!("in 24 hours: {failures}") };
    lines.push(row("failures", &failures));
    if let Some(last) = pipe.failures.last.first() {
        lines.push(row(
            "last failure",
            &format!("{} ago: {}: {}", between(last.at, now), last.cause, last.text),
        ));
    }
    lines
}

fn key(key: &Key, now: Timestamp) -> String {
    let name = key.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let used = match key.last_used {
        Some(at) => format!("last used {} ago", between(at, now)),
        None => "no use known".to_owned(),
    };
    let expires = match key.expires {
        Some(at) if at <= now => format!(", expired {}", time(at)),
        Some(at) => format!(", expires {}", time(at)),
        None => String::new(),
    };
    format!("{}{name}: {}, {used}{expires}", key.fingerprint, connections(key.connections as u64))
}

fn target(target: &Target, now: Timestamp) -> String {
    let mut text = format!(
        "{}: {} for {}, {}",
        target.target,
        target_state(target.state),
        between(target.since, now),
        connections(target.connections as u64)
    );
    if let Some(check) = target.check.as_ref().filter(|check| check.contradictions > 0) {
        let _ = write!(text, ", {} of {} checks contradict", check.contradictions, check.needed);
    }
    if let Some(error) = &target.last_error {
        let _ = write!(text, ", last error: {error}");
    }
    text
}

/// `  name         value`
fn row(name: &str, value: &str) -> String {
    format!("  {name:12} {value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::samples;
    use crate::status::report::{Check, Failure, Reload, TargetState};
    use jiff::SignedDuration;

    #[test]
    fn a_healthy_process_is_a_few_lines() {
        assert_eq!(
            text(&samples::report()),
            "\
spipe 1.2.3, process 4711: serving, ready
  started      2026-03-01 09:00:00 UTC, 1 h ago
  reloaded     never
  sandbox      seccomp
  has          34 of 1024 files, 11.7 MiB of memory, 1.5 s of processor time, 3 threads

pipe redis: encrypts, listening at [127.0.0.1]:6379
  connections  1 of 100 now, at most 40 at a time, 1234 since 2026-03-01 09:00:00 UTC
  rate         3.2 new/s, 1.1 MiB/s to the target, 332 KiB/s from it
  carried      4.7 GiB to the target, 12 B from it
  key          7f3a-19c2 (web1): 1 connection, last used 3 s ago
  target       [10.0.0.1]:6380: up for 1 h, 1 connection
  failures     none in 24 hours
"
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut report = samples::report();
        let now = report.now;
        report.ready = false;
        report.not_ready = vec!["pipe redis: all targets are down".to_owned(), "stopping".to_owned()];
        report.reload.failed = 1;
        let at = now - SignedDuration::from_secs(61);
        report.reload.last = Some(Reload { at, error: Some("a.toml: no\nsuch key".to_owned()) });
        report.log_lines_dropped = 7;
        report.name_lookups.failed = 2;
        let pipe = &mut report.pipes[0];
        pipe.strangers = 5;
        pipe.keys[0].expires = Some(now);
        pipe.targets[0].state = TargetState::Down;
        pipe.targets[0].check = Some(Check { contradictions: 1, needed: 2 });
        pipe.targets[0].last_error = Some("connection refused".to_owned());
        pipe.failures.last_24_hours.insert("dial".to_owned(), 3);
        let failure = Failure { at, cause: "dial".to_owned(), text: "\u{1b}[31mrefused".to_owned() };
        pipe.failures.last.push(failure);
        let text = text(&report);
        for line in [
            "spipe 1.2.3, process 4711: serving, not ready: pipe redis: all targets are down; stopping",
            "  reloaded     2026-03-01 09:58:59 UTC, 1 min 1 s ago, refused: a.toml: no\\nsuch key (0 succeeded, 1 failed)",
            "  look-ups     2 of names, 2 failed",
            "  log          7 lines were lost, since it was not read in time",
            "  strangers    5 have not proved the key so far",
            "  key          7f3a-19c2 (web1): 1 connection, last used 3 s ago, expired 2026-03-01 10:00:00 UTC",
            "  target       [10.0.0.1]:6380: down for 1 h, 1 connection, 1 of 2 checks contradict, \
             last error: connection refused",
            "  failures     in 24 hours: dial 3",
            "  last failure 1 min 1 s ago: dial: \\u{1b}[31mrefused",
        ] {
            assert!(text.lines().any(|has| has == line), "no '{line}' in:\n{text}");
        }
    }
}
