//! From what the rooms know to a [`Report`].

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use super::page::{Order, Sorting};
use super::report::{
    Bytes, Check, Connection, ConnectionList, Connections, Durations, Failure, Failures, History, Key,
    Lookups, Mode, Pipe, PipeState, Process, Rate, Reload, Reloads, Report, SCHEMA, SortBy, State, Target,
    TargetState,
};
use crate::addr::Endpoint;
use crate::pipe::{self, KeyView, Registry, SharedView, View, Views};
use crate::proto::key::Fingerprint;
use crate::service::facts::Facts;
use crate::service::log::writer;
use crate::service::measures::Numbers;
use crate::stats::{
    self, Addresses, Cause, CloseReason, DialResult, HISTORY_STEP, Histogram, Kinds, LastUsed, LiveView,
    OfPipe,
};
use crate::upstream::{Known, Standing};

/// The time between two looks at the connections.
const LOOK: Duration = Duration::from_secs(1);

/// Where a process knows of itself.
pub struct Gatherer {
    registry: Arc<Registry>,
    facts: Arc<Facts>,
    /// Whether each pipe has to have a target that is up to be ready (`--ready-needs-target`).
    ready_needs_target: bool,
}

impl Gatherer {
    /// What `registry` and `facts` know.
    pub fn new(registry: Arc<Registry>, facts: Arc<Facts>, ready_needs_target: bool) -> Self {
        Self { registry, facts, ready_needs_target }
    }

    /// What outlives a reload.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Looks at all connections, for rates and histories. To be called once a second.
    fn look(&self) {
        let views = self.registry.views();
        views.pipes.iter().map(|view| &view.stats).for_each(|stats| stats.look());
        views.shared.iter().map(|view| &view.stats).for_each(|stats| stats.look());
    }

    /// All that is known now.
    pub fn report(&self) -> Report {
        let (views, last_used) = (self.registry.views(), self.registry.usage.last_used());
        let is_stopping = self.facts.is_stopping();
        let (found, failed) = self.registry.names.look_ups();
        let not_ready = self.not_ready(&views);
        let there = views.pipes.iter().filter(|view| !view.is_gone());
        let pipes = there.map(|view| self.pipe(view, &last_used));
        // Of sources that pipes share, where peers count of whom it is not known which pipe they are for.
        let names = names_of_shared(&views);
        let shared = views.shared.iter().zip(&names).filter_map(|(shared, name)| {
            let first = views.pipes.iter().find(|view| shared.names.contains(&view.name))?;
            let stats = Counted { name, limit: None, stats: &shared.stats };
            Some(stats.pipe(self.state(first), first, Vec::new(), Vec::new()))
        });
        Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.facts.started,
            now: Timestamp::now(),
            state: if is_stopping { State::Stopping } else { State::Serving },
            ready: not_ready.is_empty(),
            not_ready,
            sandbox: self.facts.sandbox.clone(),
            process: process(self.facts.measures.take()),
            reload: self.reloads(),
            name_lookups: Lookups { found, failed },
            log_lines_dropped: writer::dropped(),
            pipes: pipes.chain(shared).collect(),
        }
    }

    /// Why new connections are not served, if they are not: a line for each reason.
    pub(super) fn reasons_not_ready(&self) -> Vec<String> {
        self.not_ready(&self.registry.views())
    }

    fn not_ready(&self, views: &Views) -> Vec<String> {
        if self.facts.is_stopping() {
            return vec!["the process is stopping".to_owned()];
        }
        if views.pipes.is_empty() {
            return vec!["the process is starting".to_owned()];
        }
        let of_pipe = |view: &View| {
            let name = &view.name;
            if view.has_died() {
                Some(format!("{name}: its accept loop has died; reload"))
            } else if let Some(source) = view.unresolved.first() {
                Some(format!("{name}: not listening yet, the name of {source} does not resolve"))
            } else if self.ready_needs_target && !view.targets.iter().any(|known| is_up(known)) {
                Some(format!("{name}: no target is up"))
            } else {
                None
            }
        };
        views.pipes.iter().filter(|view| !view.is_removed()).filter_map(of_pipe).collect()
    }

    fn state(&self, view: &View) -> PipeState {
        if self.facts.is_stopping() {
            PipeState::Stopping
        } else if view.is_removed() {
            PipeState::Removed
        } else if view.has_died() {
            PipeState::Dead
        } else if view.unresolved.is_empty() {
            PipeState::Listening
        } else {
            PipeState::WaitingForName
        }
    }

    fn pipe(&self, view: &View, last_used: &LastUsed) -> Pipe {
        let established = view.stats.by_key();
        let key = |of_view: &KeyView| Key {
            fingerprint: of_view.key.to_string(),
            name: of_view.name.clone(),
            file: of_view.file.clone(),
            connections: view.stats.running_with(of_view.key),
            established: {
                let of_key = established.iter().filter(|((key, _), _)| *key == of_view.key);
                let none_so_far = view.ciphers.iter().map(|cipher| (cipher.to_string(), 0));
                none_so_far.chain(of_key.map(|((_, cipher), count)| (cipher.to_string(), *count))).collect()
            },
            last_used: last_used.get(&of_view.key).copied(),
            expires: of_view.expires,
        };
        let keys = view.keys.iter().map(key).collect();
        let targets = view.targets.iter().map(|known| self.target(view, known)).collect();
        let counted = Counted { name: &view.name, limit: view.limit, stats: &view.stats };
        counted.pipe(self.state(view), view, keys, targets)
    }

    fn target(&self, view: &View, known: &Known) -> Target {
        let condition = known.condition();
        let needed = view.check.as_ref().map(|check| match condition.standing {
            Standing::Down => check.rise.get(),
            Standing::Up | Standing::Due | Standing::Avoided => check.fall.get(),
        });
        let addresses = match known.target().endpoint() {
            Endpoint::Name { host, .. } => self.registry.names.known(host),
            Endpoint::Ip(_) | Endpoint::Unix(_) => None,
        };
        Target {
            target: known.target().to_string(),
            state: target_state(known),
            since: ago(condition.time),
            check: needed.map(|needed| Check { contradictions: condition.contradictions, needed }),
            last_error: Some(condition.reason).filter(|reason| !reason.is_empty()),
            connections: known.connections(),
            dials: by_word(|result: DialResult| known.stats.dials(result)),
            dial: durations(&known.stats.times),
            addresses: addresses
                .map(|addresses| addresses.iter().map(|address| address.ip().to_string()).collect())
                .unwrap_or_default(),
        }
    }

    fn reloads(&self) -> Reloads {
        let reloads = self.facts.reloads();
        let last = reloads.last.map(|(at, result)| Reload { at, error: result.err() });
        Reloads { succeeded: reloads.succeeded, failed: reloads.failed, last }
    }

    /// The connections that carry: the first `limit` of them in this order.
    pub fn connections(&self, Sorting { by, order }: Sorting, limit: usize) -> ConnectionList {
        let views = self.registry.views();
        let mut running: Vec<_> = views
            .pipes
            .iter()
            .flat_map(|view| view.stats.running().into_iter().map(move |running| (view, running)))
            .collect();
        let total = running.len();
        sort_running(&mut running, by);
        if order == Order::Reversed {
            running.reverse();
        }
        running.truncate(limit);
        let connections = running.iter().map(|(view, running)| connection(view, running)).collect();
        ConnectionList { schema: SCHEMA, total, connections }
    }
}

/// Looks at all connections once a second, for ever.
pub(super) async fn keep_looking(gatherer: Arc<Gatherer>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        gatherer.look();
    }
}

/// What pipes that share their sources are called together: their names with commas between them, and one more at the end if another
/// entry has that name. Two entries with one name would be series that are there twice, for which Prometheus refuses all of them.
fn names_of_shared(views: &Views) -> Vec<String> {
    let mut taken: HashSet<_> = views.pipes.iter().map(|view| view.name.clone()).collect();
    let unique = |shared: &SharedView| {
        let mut name = shared.names.join(",");
        while !taken.insert(name.clone()) {
            name.push(',');
        }
        name
    };
    views.shared.iter().map(unique).collect()
}

/// Where something counts, and what it is called.
struct Counted<'c> {
    name: &'c str,
    limit: Option<usize>,
    stats: &'c OfPipe,
}

impl Counted<'_> {
    fn pipe(&self, state: PipeState, view: &View, keys: Vec<Key>, targets: Vec<Target>) -> Pipe {
        let Self { name, limit, stats } = *self;
        let (totals, history, rate) = (stats.totals(), stats.history(), stats.rate());
        let failure = |failure: stats::Failure| Failure {
            at: failure.at,
            cause: failure.cause.word().to_owned(),
            text: failure.text,
        };
        let listening = view.listening.iter().map(ToString::to_string);
        Pipe {
            name: name.to_owned(),
            mode: view.mode.into(),
            state,
            sources: listening.chain(view.unresolved.iter().map(ToString::to_string)).collect(),
            since: stats.since,
            ciphers: view.ciphers.iter().map(ToString::to_string).collect(),
            connections: Connections {
                now: totals.running,
                limit,
                max: totals.most,
                accepted: totals.accepted,
                established: totals.established,
                reused: totals.reused,
            },
            rate: Rate {
                connections: rate.connections,
                to_target: rate.to_target,
                from_target: rate.from_target,
            },
            bytes: Bytes { to_target: totals.to_target, from_target: totals.from_target },
            strangers: totals.strangers,
            handshake: durations(&stats.handshakes),
            duration: durations(&stats.durations),
            keys,
            targets,
            failures: Failures {
                total: by_word(|cause: Cause| stats.failures(cause)),
                last_24_hours: by_word(|cause: Cause| stats.failures_of_a_day(cause)),
                last: stats.last_failures().into_iter().map(failure).collect(),
            },
            closed: by_word(|reason: CloseReason| stats.closed(reason)),
            history: History {
                step_seconds: HISTORY_STEP.as_secs(),
                connections: history.connections,
                new: history.rates.iter().map(|rate| rate.connections).collect(),
                to_target: history.rates.iter().map(|rate| rate.to_target).collect(),
                from_target: history.rates.iter().map(|rate| rate.from_target).collect(),
            },
        }
    }
}

/// A number for each kind, by its word.
fn by_word<K: Kinds>(number: impl Fn(K) -> u64) -> BTreeMap<String, u64> {
    K::ALL.iter().map(|kind| (kind.word().to_owned(), number(*kind))).collect()
}

fn is_up(known: &Known) -> bool {
    target_state(known) == TargetState::Up
}

fn target_state(known: &Known) -> TargetState {
    match known.condition().standing {
        _ if known.is_drained() => TargetState::Drained,
        Standing::Up => TargetState::Up,
        Standing::Due | Standing::Avoided => TargetState::Avoided,
        Standing::Down => TargetState::Down,
    }
}

fn process(numbers: Numbers) -> Process {
    Process {
        descriptors: numbers.descriptors,
        descriptors_limit: numbers.descriptors_limit,
        resident_bytes: numbers.resident,
        virtual_bytes: numbers.addressed,
        cpu_seconds: numbers.cpu,
        threads: numbers.threads,
    }
}

fn durations(histogram: &Histogram) -> Durations {
    Durations { count: histogram.total(), p50: histogram.quantile(0.5), p99: histogram.quantile(0.99) }
}

/// When something was that was so long ago.
fn ago(time: Duration) -> Timestamp {
    let now = Timestamp::now();
    SignedDuration::try_from(time).ok().and_then(|time| now.checked_sub(time).ok()).unwrap_or(now)
}

/// What connections are sorted by is made once for each, not at each comparison.
fn sort_running(running: &mut [(&View, LiveView)], sort: SortBy) {
    let bytes = |running: &LiveView| running.live.bytes();
    match sort {
        SortBy::Age => running.sort_by_cached_key(|(_, running)| running.live.started.elapsed()),
        SortBy::Idle => running.sort_by_key(|(_, running)| running.idle),
        SortBy::Bytes => running.sort_by_cached_key(|(_, running)| {
            let (to_target, from_target) = bytes(running);
            std::cmp::Reverse(to_target + from_target)
        }),
        SortBy::ToTarget => running.sort_by_cached_key(|(_, running)| std::cmp::Reverse(bytes(running).0)),
        SortBy::FromTarget => running.sort_by_cached_key(|(_, running)| std::cmp::Reverse(bytes(running).1)),
        SortBy::Client => running.sort_by_cached_key(|(_, running)| {
            Addresses::of(&running.live).client.map(|client| client.to_string())
        }),
        SortBy::Key => running.sort_by_cached_key(|(view, running)| {
            let key = running.live.key;
            (key_name(view, key), key.to_string())
        }),
        SortBy::Target => {
            running.sort_by_cached_key(|(_, running)| Addresses::of(&running.live).target.to_string());
        }
        SortBy::Pipe => running.sort_by(|(view, _), (other, _)| view.name.cmp(&other.name)),
    }
}

fn key_name(view: &View, key: Fingerprint) -> Option<String> {
    view.keys.iter().find(|of_view| of_view.key == key)?.name.clone()
}

fn connection(view: &View, running: &LiveView) -> Connection {
    let live = &*running.live;
    let Addresses { client, peer, target, configured } = Addresses::of(live);
    let (to_target, from_target) = live.bytes();
    Connection {
        id: live.id.to_string(),
        pipe: view.name.clone(),
        client: client.map(|client| client.to_string()),
        peer: peer.to_string(),
        target: target.to_string(),
        configured: configured.to_string(),
        key: live.key.to_string(),
        key_name: key_name(view, live.key),
        cipher: live.cipher.to_string(),
        age_seconds: live.started.elapsed().as_secs_f64(),
        idle_seconds: running.idle.as_secs_f64(),
        to_target,
        from_target,
    }
}

impl From<pipe::Mode> for Mode {
    fn from(mode: pipe::Mode) -> Self {
        match mode {
            pipe::Mode::Encrypt => Self::Encrypt,
            pipe::Mode::Decrypt => Self::Decrypt,
        }
    }
}
