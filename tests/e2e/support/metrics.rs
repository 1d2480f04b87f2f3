//! Metrics, as monitoring reads them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::http::Server;
use super::poll_until;
use super::process::{Ended, Process, run, run_with_input};
use super::redis::free_port;

/// Asserts that Prometheus can read `text` as its text format, and has nothing against its names, types and help.
#[track_caller]
pub(crate) fn check_with_promtool(text: &str) {
    let ended = run_with_input(Command::new("promtool").args(["check", "metrics"]), text.into());
    assert_approves(&ended, text);
    assert_eq!(ended.text(), "", "about:\n{text}");
}

/// Asserts that Prometheus can read `text`, whose samples have no times, as OpenMetrics.
#[track_caller]
pub(crate) fn check_as_openmetrics(text: &str) {
    // promtool reads this format only to import samples of the past, which have the time when they were taken.
    let dated = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
        Some(sample) if !sample.starts_with('#') => format!("{sample} 1600000000\n"),
        _ => line.to_owned(),
    });
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("metrics");
    std::fs::write(&file, dated.collect::<String>()).expect("the file can be written");
    let mut promtool = Command::new("promtool");
    promtool
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .arg(file)
        .arg(directory.path().join("blocks"));
    assert_approves(&run(&mut promtool), text);
}

#[track_caller]
fn assert_approves(ended: &Ended, text: &str) {
    assert!(ended.code == Some(0) && ended.stderr.is_empty(), "promtool: {} about:\n{text}", ended.stderr);
}

/// One value.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// The samples of a text that promtool approves of, and that has no times and no exemplars.
#[track_caller]
pub(crate) fn samples(text: &str) -> Vec<Sample> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            let before = labels.insert(label.to_owned(), value);
            assert!(before.is_none(), "a label is there twice: {line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some(Sample { name: name.to_owned(), labels, value: rest.strip_prefix(' ')?.parse().ok()? })
}

/// The text up to the closing quote, and what follows the quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

/// A real Prometheus that scrapes one server every second.
pub(crate) struct Prometheus {
    _process: Process,
    server: Server,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes `/metrics` at this address. It takes five seconds until it begins.
    pub(crate) fn scrape(address: SocketAddr) -> Self {
        for _ in 0..10 {
            if let Some(prometheus) = Self::try_scrape(address) {
                return prometheus;
            }
        }
        panic!("prometheus finds no free port in ten attempts");
    }

    fn try_scrape(address: SocketAddr) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let configuration = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s }}\n\
             scrape_configs: [{{ job_name: spipe, static_configs: [{{ targets: ['{address}'] }}] }}]\n"
        );
        std::fs::write(&configuration, text).expect("the file can be written");
        let listens = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", configuration.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        let process = Process::start(command.arg(format!("--web.listen-address={listens}")));
        process.has_line_before_exit("Server is ready to receive web requests").then(|| Self {
            _process: process,
            server: Server::Tcp(listens),
            _directory: directory,
        })
    }

    /// Why the first scrape has failed, if it has.
    #[track_caller]
    pub(crate) fn await_scrape(&self) -> Result<(), String> {
        poll_until("the first scrape", || {
            let targets = self.ask("/api/v1/targets");
            let target = &targets["activeTargets"][0];
            match target["health"].as_str()? {
                "up" => Some(Ok(())),
                "down" => Some(Err(target["lastError"].as_str().unwrap_or_default().to_owned())),
                _ => None,
            }
        })
    }

    /// The series that a query of PromQL finds, each as `{ "metric": { LABELS }, "value": [TIME, "VALUE"] }`.
    #[track_caller]
    pub(crate) fn query(&self, query: &str) -> Vec<Value> {
        let escaped: Vec<_> = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut found = self.ask(&format!("/api/v1/query?query={}", escaped.concat()));
        std::mem::take(found["result"].as_array_mut().expect("a query of series finds series"))
    }

    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let response = self.server.get(path);
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let mut answer: Value = serde_json::from_str(&response.body).expect("Prometheus answers in JSON");
        answer["data"].take()
    }
}
