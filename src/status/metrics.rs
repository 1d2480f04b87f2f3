//! What Prometheus reads: OpenMetrics, or its own older text format for those that do not ask for OpenMetrics.
//!
//! Names are part of what programs read; `docs/STATUS.md` lists them. No label says who a client is: each value of a label is a series
//! that a database keeps for ever, and strangers must not be able to make any.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::gather::Gatherer;
use super::report::{PipeState, Report, TargetState};
use crate::pipe::{View, Views};
use crate::stats::{Cause, Histogram, Kinds};

/// Which text a scraper gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4.
    Text,
}

impl Format {
    /// What a scraper that sends this `Accept` header gets.
    pub(super) fn for_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// All that `gatherer` knows.
    pub(super) fn encode(self, gatherer: &Arc<Gatherer>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(Arc::clone(gatherer))));
        let mut text = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut text, &registry),
            Self::Text => prometheus_text::encode(&mut text, &registry),
        }
        .expect("a text in memory can be written to");
        text
    }
}

/// One look at everything.
struct Scrape(Arc<Gatherer>);

impl fmt::Debug for Scrape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (report, views) = (self.0.report(), self.0.registry().views());
        let mut families = Families(encoder);
        of_process(&mut families, &report)?;
        of_pipes(&mut families, &report)?;
        of_keys(&mut families, &views)?;
        of_targets(&mut families, &report)?;
        histograms(&mut families, &views)
    }
}

/// A row of labels: names and values.
type Labels<'l> = Vec<(&'l str, &'l str)>;

struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    fn write<L: EncodeLabelSet>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            let mut sample = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => sample.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
                _ => sample.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    /// A number that only grows; its name gets `_total`.
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, as_float(value)));
        self.write((name, help, MetricType::Counter), samples)
    }

    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        self.write((name, help, MetricType::Gauge), samples)
    }

    /// Durations of events that take from 2^`first` to 2^`last` seconds.
    fn histogram<'l, 'h>(
        &mut self,
        name: &str,
        help: &str,
        (first, last): (i32, i32),
        samples: impl IntoIterator<Item = (Labels<'l>, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, histogram) in samples {
            let mut below = 0;
            // The encoder sums up by itself.
            let buckets = histogram.cumulative(first, last).into_iter().map(|(end, count)| {
                let in_bucket = count - below;
                below = count;
                (end, in_bucket)
            });
            let buckets: Vec<_> = buckets.collect();
            let (seconds, count) = (histogram.seconds(), below);
            let mut sample = family.encode_family(&labels)?;
            sample.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers than these")]
fn as_float(number: u64) -> f64 {
    number as f64
}

fn of_process(families: &mut Families<'_>, report: &Report) -> fmt::Result {
    let none = Labels::new;
    let mut info =
        families.0.encode_descriptor("spipe_build", "The version of spipe", None, MetricType::Info)?;
    info.encode_info(&[("version", &*report.version)])?;
    let started = report.started.as_duration().as_secs_f64();
    families.gauge(
        "spipe_start_time_seconds",
        "When the process started, in seconds since 1970",
        [(none(), started)],
    )?;
    families.gauge(
        "spipe_ready",
        "1, if new connections are served as /readyz has it",
        [(none(), if report.ready { 1.0 } else { 0.0 })],
    )?;
    let reload = &report.reload;
    families.counter(
        "spipe_reloads",
        "Times that the configuration was read again",
        [(vec![("result", "ok")], reload.succeeded), (vec![("result", "failed")], reload.failed)],
    )?;
    let is_good = reload.last.as_ref().is_none_or(|last| last.error.is_none());
    families.gauge(
        "spipe_last_reload_successful",
        "0, if the configuration was wrong when it was last read again, so that an older one is in force",
        [(none(), if is_good { 1.0 } else { 0.0 })],
    )?;
    let lookups = &report.name_lookups;
    families.counter(
        "spipe_name_lookups",
        "Look-ups of host names",
        [(vec![("result", "ok")], lookups.found), (vec![("result", "failed")], lookups.failed)],
    )?;
    families.counter(
        "spipe_log_lines_dropped",
        "Log lines that were lost, since the log was not read as fast as it was written",
        [(none(), report.log_lines_dropped)],
    )?;
    // As all clients of Prometheus name them.
    let process = &report.process;
    if let Some(seconds) = process.cpu_seconds {
        families
            .write(("process_cpu_seconds", "Processor time", MetricType::Counter), [(none(), seconds)])?;
    }
    families.gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970",
        [(none(), started)],
    )?;
    let numbers = [
        ("process_open_fds", "Open files", process.descriptors),
        ("process_max_fds", "The most files that may be open", process.descriptors_limit),
        ("process_resident_memory_bytes", "Memory in use", process.resident_bytes),
        ("process_virtual_memory_bytes", "Address space in use", process.virtual_bytes),
        ("process_threads", "Threads", process.threads),
    ];
    for (name, help, number) in numbers {
        if let Some(number) = number {
            families.gauge(name, help, [(none(), as_float(number))])?;
        }
    }
    Ok(())
}

fn of_pipes(families: &mut Families<'_>, report: &Report) -> fmt::Result {
    let pipes = || report.pipes.iter();
    families.gauge(
        "spipe_pipe_up",
        "1, if the pipe accepts connections",
        pipes().map(|pipe| {
            let is_up = pipe.state == PipeState::Listening;
            (vec![("pipe", &*pipe.name)], if is_up { 1.0 } else { 0.0 })
        }),
    )?;
    families.gauge(
        "spipe_connections_limit",
        "The most connections at a time (-n); +Inf is no limit",
        pipes().map(|pipe| {
            let limit = pipe.connections.limit.map_or(f64::INFINITY, |limit| as_float(limit as u64));
            (vec![("pipe", &*pipe.name)], limit)
        }),
    )?;
    families.counter(
        "spipe_connections_accepted",
        "Connections that arrived and may be here by where they come from",
        pipes().map(|pipe| (vec![("pipe", &*pipe.name)], pipe.connections.accepted)),
    )?;
    families.counter(
        "spipe_connections_reused",
        "Connections over a tunnel that had carried others before",
        pipes().map(|pipe| (vec![("pipe", &*pipe.name)], pipe.connections.reused)),
    )?;
    families.counter(
        "spipe_connections_closed",
        "Connections that carried and have ended, by reason",
        pipes().flat_map(|pipe| {
            let closed = pipe.closed.iter();
            closed.map(|(reason, count)| (vec![("pipe", &*pipe.name), ("reason", &**reason)], *count))
        }),
    )?;
    families.counter(
        "spipe_handshake_failures",
        "Connections that never carried anything because of the handshake, or what decides about it, by cause",
        pipes().flat_map(|pipe| {
            let causes = Cause::ALL.iter().filter(|cause| cause.is_of_the_handshake());
            causes.map(|cause| {
                let count = pipe.failures.total.get(cause.word()).copied().unwrap_or_default();
                (vec![("pipe", &*pipe.name), ("cause", cause.word())], count)
            })
        }),
    )?;
    families.counter(
        "spipe_bytes",
        "Payload bytes carried",
        pipes().flat_map(|pipe| {
            let directions = [("to_target", pipe.bytes.to_target), ("from_target", pipe.bytes.from_target)];
            directions
                .map(|(direction, bytes)| (vec![("pipe", &*pipe.name), ("direction", direction)], bytes))
        }),
    )?;
    families.gauge(
        "spipe_strangers",
        "Connections that have not proved the key so far",
        pipes().map(|pipe| (vec![("pipe", &*pipe.name)], as_float(pipe.strangers as u64))),
    )
}

/// Keys that a reload has taken away stay as long as the pipe does: their connections may run and need places, and a counter that
/// vanished and came back would count them anew.
/// The pipes that the report has.
fn there(views: &Views) -> impl Iterator<Item = &View> {
    views.pipes.iter().filter(|view| !view.is_gone())
}

fn of_keys(families: &mut Families<'_>, views: &Views) -> fmt::Result {
    let running = |view: &View| -> BTreeMap<String, usize> {
        let before = view.stats.by_key().into_iter().map(|((key, _), _)| key);
        let keys = view.keys.iter().map(|of_view| of_view.key).chain(before);
        keys.map(|key| (key.to_string(), view.stats.running_with(key))).collect()
    };
    let running: Vec<_> = there(views).map(|view| (&*view.name, running(view))).collect();
    families.gauge(
        "spipe_connections",
        "Connections that carry",
        running.iter().flat_map(|(pipe, keys)| {
            keys.iter().map(|(key, count)| (vec![("pipe", *pipe), ("key", &**key)], as_float(*count as u64)))
        }),
    )?;
    let established = |view: &View| -> BTreeMap<(String, String), u64> {
        let kinds =
            view.keys.iter().flat_map(|of_view| view.ciphers.iter().map(|cipher| (of_view.key, *cipher)));
        let counts = kinds.map(|kind| (kind, 0)).chain(view.stats.by_key());
        counts.map(|((key, cipher), count)| ((key.to_string(), cipher.to_string()), count)).collect()
    };
    let established: Vec<_> = there(views).map(|view| (&*view.name, established(view))).collect();
    families.counter(
        "spipe_connections_established",
        "Connections that carried, or still do",
        established.iter().flat_map(|(pipe, kinds)| {
            kinds.iter().map(|((key, cipher), count)| {
                (vec![("pipe", *pipe), ("key", &**key), ("cipher", &**cipher)], *count)
            })
        }),
    )
}

fn of_targets(families: &mut Families<'_>, report: &Report) -> fmt::Result {
    let targets =
        || report.pipes.iter().flat_map(|pipe| pipe.targets.iter().map(move |target| (pipe, target)));
    families.gauge(
        "spipe_target_up",
        "1, if connections get the target",
        targets().map(|(pipe, target)| {
            let is_up = target.state == TargetState::Up;
            (vec![("pipe", &*pipe.name), ("target", &*target.target)], if is_up { 1.0 } else { 0.0 })
        }),
    )?;
    families.counter(
        "spipe_target_dials",
        "Attempts to connect to the target, of checks as well, by result",
        targets().flat_map(|(pipe, target)| {
            target.dials.iter().map(|(result, count)| {
                let (pipe, target) = (("pipe", &*pipe.name), ("target", &*target.target));
                (vec![pipe, target, ("result", &**result)], *count)
            })
        }),
    )
}

/// From a quarter of a millisecond to 16 seconds.
const QUICK: (i32, i32) = (-12, 4);
/// From an eighth of a second to three days.
const LONG: (i32, i32) = (-3, 18);

fn histograms(families: &mut Families<'_>, views: &Views) -> fmt::Result {
    let of_pipes = || there(views).map(|view| (vec![("pipe", &*view.name)], &view.stats));
    families.histogram(
        "spipe_handshake_duration_seconds",
        "How long handshakes took",
        QUICK,
        of_pipes().map(|(labels, stats)| (labels, &stats.handshakes)),
    )?;
    families.histogram(
        "spipe_connection_duration_seconds",
        "How long connections lasted that have ended",
        LONG,
        of_pipes().map(|(labels, stats)| (labels, &stats.durations)),
    )?;
    let targets: Vec<_> = there(views)
        .flat_map(|view| view.targets.iter().map(move |known| (view, known.target().to_string(), known)))
        .collect();
    families.histogram(
        "spipe_target_dial_duration_seconds",
        "How long it took to connect to the target",
        QUICK,
        targets.iter().map(|(view, target, known)| {
            (vec![("pipe", &*view.name), ("target", &**target)], &known.stats.times)
        }),
    )
}
