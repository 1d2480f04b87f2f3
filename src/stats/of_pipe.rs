//! What is counted at one pipe, and the connections that it carries.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use slab::Slab;
use tokio::time::Instant;

use super::causes::{Cause, CloseReason, Kinds, PerKind};
use super::histogram::Histogram;
use super::live::Live;
use super::usage::Usage;
use crate::proto::cipher::Suite;
use crate::proto::key::Fingerprint;

/// Failures of a pipe that are kept in words.
const WORDS: usize = 20;

/// Failures are counted by the hour, and for so many hours.
const HOURS: usize = 24;
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The time between two points of a history.
pub const HISTORY_STEP: Duration = Duration::from_secs(5);
/// Points of a history: 15 minutes.
const HISTORY: usize = 180;

/// Looks, one a second, over which a rate is taken.
const LOOKS: usize = 5;

/// What is counted at one pipe. It belongs to the pipe as the configuration knows it, so that it outlives a reload.
pub struct OfPipe {
    usage: Arc<Usage>,
    /// Since when all of this counts.
    pub since: Timestamp,
    /// How long handshakes took that were completed.
    pub handshakes: Histogram,
    /// How long connections lasted that have ended.
    pub durations: Histogram,
    accepted: AtomicU64,
    strangers: AtomicUsize,
    /// Connections over a tunnel that had carried others before.
    pub reused: AtomicU64,
    failures: PerKind<{ Cause::ALL.len() }>,
    closed: PerKind<{ CloseReason::ALL.len() }>,
    state: Mutex<State>,
}

struct State {
    running: Slab<Entry>,
    /// The most that ran at a time.
    most: usize,
    /// How many were established, by key and cipher. A list, since they are few.
    established: Vec<((Fingerprint, Suite), u64)>,
    /// Payload bytes of connections that have ended, by direction.
    ended: Bytes,
    hours: Hours,
    words: VecDeque<Failure>,
    looks: VecDeque<Look>,
    history: VecDeque<Point>,
    /// The last look that became a point.
    last_point: Option<Look>,
}

/// A connection, and what is known from earlier looks at it.
struct Entry {
    live: Arc<Live>,
    carried: u64,
    idle_since: Instant,
}

#[derive(Clone, Copy, Default)]
struct Bytes {
    to_target: u64,
    from_target: u64,
}

/// The counters at a moment.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    established: u64,
    bytes: Bytes,
}

#[derive(Clone, Copy)]
struct Point {
    connections: usize,
    rate: Rate,
}

/// Failures by cause in each of the last hours.
struct Hours {
    counts: VecDeque<[u32; Cause::ALL.len()]>,
    /// When the last of them began.
    began: Instant,
}

/// A failure in words.
#[derive(Clone)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Of which kind.
    pub cause: Cause,
    /// Of whom, and why.
    pub text: String,
}

/// Sums over all connections of a pipe, those that run included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Connections that arrived and may be here by where they come from.
    pub accepted: u64,
    /// Connections that carried.
    pub established: u64,
    /// Of these, those that run.
    pub running: usize,
    /// The most that ran at a time.
    pub most: usize,
    /// Payload bytes to the target.
    pub to_target: u64,
    /// Payload bytes from the target.
    pub from_target: u64,
    /// Connections that have not proved a key so far.
    pub strangers: usize,
    /// Connections over a tunnel that had carried others before.
    pub reused: u64,
}

/// How much there is a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// New connections.
    pub connections: f64,
    /// Payload bytes to the target.
    pub to_target: f64,
    /// Payload bytes from the target.
    pub from_target: f64,
}

/// The last 15 minutes, the oldest point first, [`HISTORY_STEP`] apart.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Connections that ran at that time.
    pub connections: Vec<usize>,
    /// What there was since the point before.
    pub rates: Vec<Rate>,
}

/// A connection, and how long it has carried nothing.
pub struct LiveView {
    /// The connection.
    pub live: Arc<Live>,
    /// Exact to the time between two looks.
    pub idle: Duration,
}

impl OfPipe {
    /// Of a pipe that has done nothing so far; its connections count in `usage` as well.
    pub fn new(usage: Arc<Usage>) -> Self {
        Self {
            usage,
            since: Timestamp::now(),
            handshakes: Histogram::default(),
            durations: Histogram::default(),
            accepted: AtomicU64::new(0),
            strangers: AtomicUsize::new(0),
            reused: AtomicU64::new(0),
            failures: PerKind::default(),
            closed: PerKind::default(),
            state: Mutex::new(State {
                running: Slab::new(),
                most: 0,
                established: Vec::new(),
                ended: Bytes::default(),
                hours: Hours::new(Instant::now()),
                words: VecDeque::new(),
                looks: VecDeque::new(),
                history: VecDeque::new(),
                last_point: None,
            }),
        }
    }

    /// Counts a connection that arrived and may be here by where it comes from.
    pub fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that has not proved a key, until what is returned is dropped.
    pub fn stranger(self: &Arc<Self>) -> Stranger {
        self.strangers.fetch_add(1, Ordering::Relaxed);
        Stranger(Arc::clone(self))
    }

    /// Counts a connection that never carried anything.
    pub fn fail(&self, cause: Cause) {
        self.failures.count(cause);
        self.state().hours.count(cause, Instant::now());
    }

    /// Keeps a failure in words. For those that the log has: strangers can make them by the thousand.
    pub fn tell(&self, cause: Cause, text: String) {
        let mut state = self.state();
        if state.words.len() == WORDS {
            state.words.pop_front();
        }
        state.words.push_back(Failure { at: Timestamp::now(), cause, text });
    }

    /// Counts a connection that carries, until what is returned says how it ended.
    pub fn establish(self: Arc<Self>, live: Arc<Live>) -> Running {
        let mut state = self.state();
        let kind = (live.key, live.cipher);
        match state.established.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, count)) => *count += 1,
            None => state.established.push((kind, 1)),
        }
        let number =
            state.running.insert(Entry { live: Arc::clone(&live), carried: 0, idle_since: live.started });
        state.most = state.most.max(state.running.len());
        drop(state);
        self.usage.begin(live.key);
        Running { of_pipe: self, live, number, reason: CloseReason::Stopped }
    }

    /// How many never carried anything, by cause.
    pub fn failures(&self, cause: Cause) -> u64 {
        self.failures.get(cause)
    }

    /// How many have ended, by reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed.get(reason)
    }

    /// How many never carried anything in the last 24 hours: with those of the hour that began before them.
    pub fn failures_of_a_day(&self, cause: Cause) -> u64 {
        let mut state = self.state();
        state.hours.advance(Instant::now());
        state.hours.counts.iter().map(|hour| u64::from(hour[cause.number()])).sum()
    }

    /// The last failures, the newest first.
    pub fn last_failures(&self) -> Vec<Failure> {
        self.state().words.iter().rev().cloned().collect()
    }

    /// How many were established, by key and cipher, and how many of them run.
    pub fn by_key(&self) -> Vec<((Fingerprint, Suite), u64)> {
        self.state().established.clone()
    }

    /// How many connections run with this key.
    pub fn running_with(&self, key: Fingerprint) -> usize {
        self.state().running.iter().filter(|(_, entry)| entry.live.key == key).count()
    }

    /// All sums.
    pub fn totals(&self) -> Totals {
        let state = self.state();
        let bytes = state.bytes();
        Totals {
            accepted: self.accepted.load(Ordering::Relaxed),
            established: state.established(),
            running: state.running.len(),
            most: state.most,
            to_target: bytes.to_target,
            from_target: bytes.from_target,
            strangers: self.strangers.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
        }
    }

    /// Looks at the connections. Rates, the history, and how long connections are idle are known from such looks, one a second.
    pub fn look(&self) {
        let now = Instant::now();
        let mut state = self.state();
        for (_, entry) in &mut state.running {
            let (to_target, from_target) = entry.live.bytes();
            let carried = to_target + from_target;
            if carried != entry.carried {
                (entry.carried, entry.idle_since) = (carried, now);
            }
        }
        let look = Look { at: now, established: state.established(), bytes: state.bytes() };
        if state.looks.len() > LOOKS {
            state.looks.pop_front();
        }
        state.looks.push_back(look);
        match state.last_point {
            Some(last) if now - last.at < HISTORY_STEP => {}
            last => {
                if let Some(last) = last {
                    if state.history.len() == HISTORY {
                        state.history.pop_front();
                    }
                    let point = Point { connections: state.running.len(), rate: last.rate_until(&look) };
                    state.history.push_back(point);
                }
                state.last_point = Some(look);
            }
        }
    }

    /// How much there is a second, over the last looks.
    pub fn rate(&self) -> Rate {
        let state = self.state();
        match (state.looks.front(), state.looks.back()) {
            (Some(first), Some(last)) => first.rate_until(last),
            _ => Rate::default(),
        }
    }

    /// The last 15 minutes, as far as there were looks.
    pub fn history(&self) -> History {
        let state = self.state();
        History {
            connections: state.history.iter().map(|point| point.connections).collect(),
            rates: state.history.iter().map(|point| point.rate).collect(),
        }
    }

    /// The connections that run.
    pub fn running(&self) -> Vec<LiveView> {
        let now = Instant::now();
        let view = |entry: &Entry| {
            let (to_target, from_target) = entry.live.bytes();
            let is_active = to_target + from_target != entry.carried;
            let idle = if is_active { Duration::ZERO } else { now - entry.idle_since };
            LiveView { live: Arc::clone(&entry.live), idle }
        };
        self.state().running.iter().map(|(_, entry)| view(entry)).collect()
    }

    /// Does `work` with each of the connections that run. They stay among these as long as it lasts.
    pub fn with_each_running(&self, work: impl FnMut(&Live)) {
        self.state().running.iter().map(|(_, entry)| &*entry.live).for_each(work);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: nothing in the changes to it panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn established(&self) -> u64 {
        self.established.iter().map(|(_, count)| count).sum()
    }

    fn bytes(&self) -> Bytes {
        self.running.iter().map(|(_, entry)| entry.live.bytes()).fold(self.ended, Bytes::plus)
    }
}

impl Bytes {
    fn plus(self, (to_target, from_target): (u64, u64)) -> Self {
        Self { to_target: self.to_target + to_target, from_target: self.from_target + from_target }
    }
}

impl Look {
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact beyond 52 bits")]
    fn rate_until(&self, later: &Self) -> Rate {
        let seconds = (later.at - self.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rate::default();
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Rate {
            connections: rate(self.established, later.established),
            to_target: rate(self.bytes.to_target, later.bytes.to_target),
            from_target: rate(self.bytes.from_target, later.bytes.from_target),
        }
    }
}

impl Hours {
    fn new(now: Instant) -> Self {
        Self { counts: VecDeque::from([[0; Cause::ALL.len()]]), began: now }
    }

    /// Begins as many hours as have passed.
    fn advance(&mut self, now: Instant) {
        while now - self.began >= HOUR {
            self.began += HOUR;
            // The current one, and all that reach into the last 24 hours.
            if self.counts.len() > HOURS {
                self.counts.pop_front();
            }
            self.counts.push_back([0; Cause::ALL.len()]);
        }
    }

    fn count(&mut self, cause: Cause, now: Instant) {
        self.advance(now);
        if let Some(hour) = self.counts.back_mut() {
            hour[cause.number()] = hour[cause.number()].saturating_add(1);
        }
    }
}

/// A connection that has not proved a key, counted until this is dropped.
pub struct Stranger(Arc<OfPipe>);

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.strangers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that carries, counted until this is dropped.
pub struct Running {
    of_pipe: Arc<OfPipe>,
    live: Arc<Live>,
    number: usize,
    /// For a task that is dropped with the runtime: that it was stopped.
    reason: CloseReason,
}

/// What a connection has carried in all.
pub struct Carried {
    /// Payload bytes to the target.
    pub to_target: u64,
    /// Payload bytes from the target.
    pub from_target: u64,
    /// From its admission to its end.
    pub time: Duration,
}

impl Running {
    /// What it is about.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The connection has ended, for `reason`.
    pub fn end(mut self, reason: CloseReason) -> (Arc<Live>, Carried) {
        self.reason = reason;
        let live = Arc::clone(&self.live);
        let (to_target, from_target) = live.bytes();
        let time = live.started.elapsed();
        (live, Carried { to_target, from_target, time })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { of_pipe, live, number, reason } = self;
        of_pipe.closed.count(*reason);
        of_pipe.durations.count(live.started.elapsed());
        let mut state = of_pipe.state();
        // In one step, so that no reader sees the sum without it, or with it twice.
        state.running.remove(*number);
        state.ended = state.ended.plus(live.bytes());
        drop(state);
        of_pipe.usage.end(live.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::connection_info::ConnectionId;
    use crate::proto::key::Key;
    use crate::stats::Ends;
    use crate::stream::Remote;

    fn of_pipe() -> Arc<OfPipe> {
        Arc::new(OfPipe::new(Arc::default()))
    }

    fn establish(of_pipe: &Arc<OfPipe>, key: u8) -> Running {
        let ends = Ends::Initiator { client: Remote::Local, target: Remote::Local };
        let key = Key::from_bytes(&[key; 32]).unwrap().fingerprint();
        let kind = (key, Suite::Packets);
        let configured = "127.0.0.1:1".parse().unwrap();
        Arc::clone(of_pipe).establish(Arc::new(Live::new(
            ConnectionId([0; 8]),
            ends,
            configured,
            kind,
            Instant::now(),
            0,
        )))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_connections_that_run_and_that_have_ended_are_one_sum() {
        let of_pipe = of_pipe();
        let (first, second) = (establish(&of_pipe, 1), establish(&of_pipe, 1));
        first.live().note(10, 1);
        second.live().note(5, 2);
        let totals = of_pipe.totals();
        assert_eq!((totals.to_target, totals.from_target, totals.running), (15, 3, 2));
        first.end(CloseReason::Finished);
        second.live().note(6, 2);
        let totals = of_pipe.totals();
        assert_eq!((totals.to_target, totals.from_target, totals.running, totals.most), (16, 3, 1, 2));
        assert_eq!((of_pipe.closed(CloseReason::Finished), totals.established), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_responders_bytes_go_the_other_way() {
        let ends = Ends::Responder { client: None, peer: Remote::Local, target: Remote::Local };
        let key = Key::from_bytes(&[1; 32]).unwrap().fingerprint();
        let (kind, configured) = ((key, Suite::Packets), "127.0.0.1:1".parse().unwrap());
        let live = Live::new(ConnectionId([0; 8]), ends, configured, kind, Instant::now(), 0);
        live.note(10, 1);
        assert_eq!(live.bytes(), (1, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_dropped_with_the_runtime_counts_as_stopped() {
        let of_pipe = of_pipe();
        drop(establish(&of_pipe, 1));
        assert_eq!((of_pipe.closed(CloseReason::Stopped), of_pipe.totals().running), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_taken_over_the_last_seconds() {
        let of_pipe = of_pipe();
        let running = establish(&of_pipe, 1);
        for second in 0..=60 {
            running.live().note(second.max(50) * 100, 0);
            of_pipe.look();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let rate = of_pipe.rate();
        assert!((rate.to_target - 100.0).abs() < 1e-6, "{rate:?}");
        assert_eq!((rate.connections, rate.from_target), (0.0, 0.0));
        let history = of_pipe.history();
        assert_eq!((history.connections.len(), history.connections[0]), (12, 1));
        assert_eq!(history.rates[11], rate);
    }

    #[tokio::test(start_paused = true)]
    async fn a_history_is_a_quarter_of_an_hour_long() {
        let of_pipe = of_pipe();
        for _ in 0..2_000 {
            of_pipe.look();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(of_pipe.history().connections.len(), 180);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_since_the_last_look_that_found_bytes() {
        let of_pipe = of_pipe();
        let running = establish(&of_pipe, 1);
        running.live().note(1, 0);
        of_pipe.look();
        tokio::time::advance(Duration::from_secs(30)).await;
        of_pipe.look();
        assert_eq!(of_pipe.running()[0].idle.as_secs(), 30);
        running.live().note(2, 0);
        assert_eq!(of_pipe.running()[0].idle.as_secs(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_forgotten_after_a_day_and_their_sum_is_not() {
        let of_pipe = of_pipe();
        of_pipe.fail(Cause::Busy);
        tokio::time::advance(Duration::from_secs(24 * 60 * 60 - 1)).await;
        of_pipe.fail(Cause::Busy);
        assert_eq!(of_pipe.failures_of_a_day(Cause::Busy), 2);
        tokio::time::advance(2 * HOUR).await;
        assert_eq!(of_pipe.failures_of_a_day(Cause::Busy), 1);
        assert_eq!((of_pipe.failures(Cause::Busy), of_pipe.failures(Cause::Gone)), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_failures_are_kept_in_words_the_newest_first() {
        let of_pipe = of_pipe();
        (0..30).for_each(|number| of_pipe.tell(Cause::Gone, number.to_string()));
        let texts: Vec<_> = of_pipe.last_failures().into_iter().map(|failure| failure.text).collect();
        assert_eq!((texts.len(), &*texts[0], &*texts[19]), (20, "29", "10"));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_counted_by_key() {
        let of_pipe = of_pipe();
        let _running = [establish(&of_pipe, 1), establish(&of_pipe, 2)];
        establish(&of_pipe, 1).end(CloseReason::Finished);
        let counts: Vec<_> = of_pipe.by_key().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1]);
        assert_eq!(of_pipe.running_with(Key::from_bytes(&[1; 32]).unwrap().fingerprint()), 1);
    }
}
