//! Which target a connection gets, and what is known of each from connections before.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use vec1::Vec1;

use super::dial::{Connected, DialError, Dialer};
use super::health::{Change, Condition, Health, Standing};
use super::route::Route;
use super::targets::{Balance, Check, Running, Targets};
use crate::addr::{Name, Target};
use crate::names::Lookup;
use crate::stats::{DialResult, OfTarget};
use crate::stream::{Keepalive, Remote};

/// Why connections do not get a target that nothing is wrong with.
const DRAINED: &str = "an administrator drains it (spipe drain)";

/// What is known of a target of a pipe. It outlives a reload.
pub struct Known {
    target: Target,
    /// Connections of the pipe that have it, those included that are being set up.
    connections: AtomicUsize,
    health: Mutex<Health>,
    /// Whether the target is a responder that was found not to know what an acknowledgement is.
    is_older: AtomicBool,
    /// Whether the target is a responder that has a handshake for each connection.
    shakes_hands_each_time: AtomicBool,
    /// Whether an administrator wants new connections to get other targets.
    is_drained: AtomicBool,
    /// Told each time that checks have found the target down.
    downs: watch::Sender<()>,
    /// What was counted at it.
    pub stats: OfTarget,
}

impl Known {
    /// Of a target that was never tried.
    pub fn new(target: Target) -> Self {
        let (connections, health) = (AtomicUsize::new(0), Mutex::new(Health::new(Instant::now())));
        let [is_older, shakes_hands_each_time, is_drained] = [(); 3].map(|()| AtomicBool::new(false));
        let (downs, stats) = (watch::Sender::new(()), OfTarget::default());
        Self { target, connections, health, is_older, shakes_hands_each_time, is_drained, downs, stats }
    }

    /// The target, as it was written.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connections that have it, those included that are being set up.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How it is doing.
    pub fn condition(&self) -> Condition {
        self.health().condition(Instant::now())
    }

    /// Whether new connections get other targets, because an administrator wants it so.
    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Has new connections get other targets, or this one again; those that run go on.
    pub fn set_drained(&self, is_drained: bool) {
        self.is_drained.store(is_drained, Ordering::Relaxed);
    }

    /// Whether connections may have it, and in which place.
    fn standing(&self, now: Instant) -> Standing {
        if self.is_drained() { Standing::Down } else { self.health().standing(now) }
    }

    /// Why connections do not get it.
    fn reason(&self) -> String {
        if self.is_drained() {
            DRAINED.to_owned()
        } else {
            format!("checks of it fail: {}", self.health().reason())
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // A panic elsewhere leaves it whole: every change to it is one call.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The targets of a pipe at work.
pub struct Upstream {
    pipe: Option<Name>,
    candidates: Vec1<Candidate>,
    balance: Balance,
    check: Option<Check>,
    /// Counts choices, for those that take turns.
    turn: AtomicUsize,
}

/// One of them.
pub struct Candidate {
    dialer: Dialer,
    known: Arc<Known>,
}

impl Candidate {
    /// What `dialer` dials, of which so much is `known`.
    pub fn new(dialer: Dialer, known: Arc<Known>) -> Self {
        Self { dialer, known }
    }

    /// The target, as it was written.
    pub fn target(&self) -> &Target {
        &self.known.target
    }

    /// Whether a connection that was made to `remote` leads to it still.
    pub fn leads_to(&self, remote: Remote) -> bool {
        self.dialer.leads_to(remote)
    }

    /// Whether it is worth while to send a probe to this responder: not to an older one.
    pub fn may_answer_probes(&self) -> bool {
        !self.known.is_older.load(Ordering::Relaxed)
    }

    /// Takes note whether this responder `answers_probes`.
    pub fn note_features(&self, answers_probes: bool) {
        self.known.is_older.store(!answers_probes, Ordering::Relaxed);
    }

    /// Whether a tunnel to this responder may wait for a client.
    pub fn may_keep_tunnels(&self) -> bool {
        !self.known.shakes_hands_each_time.load(Ordering::Relaxed)
    }

    /// Takes note whether this responder `keeps_tunnels` for other connections.
    pub fn note_reuse(&self, keeps_tunnels: bool) {
        self.known.shakes_hands_each_time.store(!keeps_tunnels, Ordering::Relaxed);
    }

    /// Connects to it, whatever is known of it. It gets to see `preamble` first.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, preamble: &[u8], deadline: Instant) -> Result<Connected, DialError> {
        let began = Instant::now();
        let dialed = self.dialer.dial(preamble, deadline).await;
        let result = dialed.as_ref().map_or_else(|error| error.source.result(), |_| DialResult::Connected);
        self.known.stats.count(result, began.elapsed());
        dialed
    }
}

impl Upstream {
    /// The `targets` of the pipe that the log calls `pipe`; each becomes a candidate by `prepare`.
    pub fn new(pipe: Option<Name>, targets: &Targets, prepare: impl FnMut(&Route) -> Candidate) -> Self {
        let candidates = targets.routes().mapped_ref(prepare);
        let (balance, check) = (targets.balance(), targets.check().cloned());
        Self { pipe, candidates, balance, check, turn: AtomicUsize::new(0) }
    }

    /// The same, of targets that were never tried, for a process with one connection.
    pub fn fresh(targets: &Targets, keepalive: Keepalive, lookup: Lookup) -> Self {
        let names = Arc::default();
        Self::new(None, targets, |route| {
            let dialer = Dialer::new(route.clone(), keepalive, lookup, Arc::clone(&names));
            Candidate::new(dialer, Arc::new(Known::new(route.target().clone())))
        })
    }

    /// Each of its targets.
    pub fn candidates(&self) -> &Vec1<Candidate> {
        &self.candidates
    }

    /// How its targets are to be checked, if they are.
    pub fn check(&self) -> Option<&Check> {
        self.check.as_ref()
    }

    /// Whether connections are spread over the targets that are up.
    pub fn spreads(&self) -> bool {
        self.balance != Balance::Failover
    }

    /// Whether there is another target to pass on to.
    pub fn has_several(&self) -> bool {
        self.candidates.len() > 1
    }

    /// The targets for one connection, in the order in which to try them.
    pub fn choose(&self) -> Choice<'_> {
        self.from(self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// The same for a look at whether one can be reached. It takes no connection's turn: looks that come between connections would
    /// give all of these the same target.
    pub fn look(&self) -> Choice<'_> {
        self.from(self.turn.load(Ordering::Relaxed))
    }

    fn from(&self, turn: usize) -> Choice<'_> {
        let count = self.candidates.len();
        let first = match self.balance {
            Balance::Failover => 0,
            Balance::RoundRobin | Balance::LeastConnections => turn % count,
        };
        let now = Instant::now();
        let mut left: Vec<_> = (first..count)
            .chain(0..first)
            .map(|place| (place, self.candidates[place].known.standing(now)))
            .collect();
        if self.balance == Balance::LeastConnections {
            left.sort_by_key(|(place, _)| self.candidates[*place].known.connections.load(Ordering::Relaxed));
        }
        // The next one is at the end.
        left.sort_by_key(|(_, standing)| *standing == Standing::Avoided);
        left.reverse();
        Choice { upstream: self, left }
    }

    /// Tells the log what has changed. With one target and no checks, each failed connection has a line that says the same.
    fn report(&self, known: &Known, change: Option<Change>, reason: &str) {
        let Some(change) = change else { return };
        if change == Change::Down {
            known.downs.send_replace(());
        }
        if !self.has_several() && self.check.is_none() {
            return;
        }
        let (pipe, target) = (self.pipe.as_ref().map(Name::as_str), &known.target);
        match change {
            Change::Avoided => warn!(pipe, %target, reason, "target avoided: a connection to it failed"),
            Change::Down => warn!(pipe, %target, reason, "target down: checks of it fail"),
            Change::Up { after } => {
                info!(pipe, %target, seconds = after.as_secs_f64(), "target up again");
            }
        }
    }

    /// Takes note that a check of `candidate` has succeeded.
    pub fn check_worked(&self, candidate: &Candidate, check: &Check) {
        let change = candidate.known.health().check_worked(Instant::now(), check.rise);
        self.report(&candidate.known, change, "");
    }

    /// Takes note that a check of `candidate` has failed, for `reason`.
    pub fn check_failed(&self, candidate: &Candidate, check: &Check, reason: &str) {
        let change = candidate.known.health().check_failed(Instant::now(), check.fall, reason.to_owned());
        self.report(&candidate.known, change, reason);
    }

    /// Whether the last check of `candidate` agrees with what was known before.
    pub fn is_settled(&self, candidate: &Candidate) -> bool {
        candidate.known.health().is_settled()
    }
}

/// The targets that a connection has not tried so far.
pub struct Choice<'u> {
    upstream: &'u Upstream,
    /// The next one is at the end.
    left: Vec<(usize, Standing)>,
}

/// What a connection is to do next about its target.
pub enum Next<'u> {
    /// Try this one.
    Try(Chosen<'u>),
    /// Do not try this one, for this reason: checks have found it down, or an administrator drains it.
    Down(&'u Target, String),
}

impl<'u> Iterator for Choice<'u> {
    type Item = Next<'u>;

    fn next(&mut self) -> Option<Next<'u>> {
        let upstream = self.upstream;
        while let Some((place, standing)) = self.left.pop() {
            let candidate = &upstream.candidates[place];
            let known = &candidate.known;
            let trial = match standing {
                Standing::Up | Standing::Avoided => None,
                Standing::Due if known.health().begin_trial(Instant::now()) => Some(Trial(known)),
                Standing::Due => {
                    // Another connection tries it.
                    self.left.insert(0, (place, Standing::Avoided));
                    continue;
                }
                Standing::Down => return Some(Next::Down(&known.target, known.reason())),
            };
            let in_use = InUse::new(Arc::clone(known), upstream.check.as_ref());
            return Some(Next::Try(Chosen { upstream, candidate, in_use, _trial: trial }));
        }
        None
    }
}

impl Choice<'_> {
    /// Until when the target that was given last may be tried, of the time until `deadline`: those that are left get as much.
    pub fn share(&self, deadline: Instant) -> Instant {
        let left = self.left.iter().filter(|(_, standing)| *standing != Standing::Down).count();
        let parts = u32::try_from(left + 1).unwrap_or(u32::MAX);
        let now = Instant::now();
        now + deadline.saturating_duration_since(now) / parts
    }
}

/// A target that a connection is to try. If this is dropped, it was not tried to the end, and nothing is known from it.
pub struct Chosen<'u> {
    upstream: &'u Upstream,
    candidate: &'u Candidate,
    in_use: InUse,
    _trial: Option<Trial<'u>>,
}

impl<'u> Chosen<'u> {
    /// What to connect to.
    pub fn candidate(&self) -> &'u Candidate {
        self.candidate
    }

    /// Takes note that the connection works. It has the target as long as what is returned lives.
    pub fn worked(self) -> InUse {
        let change = self.candidate.known.health().connection_worked(Instant::now());
        self.upstream.report(&self.candidate.known, change, "");
        self.in_use
    }

    /// The connection has the target, but shows neither that it works nor that it failed.
    pub fn not_judged(self) -> InUse {
        self.in_use
    }

    /// Takes note that the target is to be passed over, since it failed for `reason`.
    pub fn failed(self, reason: &str) {
        let known = &self.candidate.known;
        let change = known.health().connection_failed(Instant::now(), reason.to_owned());
        self.upstream.report(known, change, reason);
    }
}

/// The trial of a target that was avoided, for one connection at a time.
struct Trial<'u>(&'u Known);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.health().end_trial();
    }
}

/// A target, as long as a connection has it.
pub struct InUse {
    known: Arc<Known>,
    /// None where a connection stays when its target goes down.
    downs: Option<watch::Receiver<()>>,
}

impl InUse {
    fn new(known: Arc<Known>, check: Option<&Check>) -> Self {
        let is_reset = check.is_some_and(|check| check.on_down == Running::Reset);
        known.connections.fetch_add(1, Ordering::Relaxed);
        let downs = is_reset.then(|| known.downs.subscribe());
        Self { known, downs }
    }

    /// The target, as it was written.
    pub fn target(&self) -> &Target {
        &self.known.target
    }

    /// Ends when checks find the target down. None where the connection is to go on then.
    pub fn down(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let mut downs = self.downs.clone()?;
        Some(Box::pin(async move {
            // The sender lives as long as this connection counts at it.
            let _told = downs.changed().await;
        }))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.known.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::time::Duration;

    use super::*;

    const ONE: NonZero<u32> = NonZero::new(1).unwrap();

    fn check(on_down: Running) -> Check {
        Check { every: Duration::from_secs(60), rise: ONE, fall: ONE, exchange: None, on_down }
    }

    /// Targets that are called `a:1`, `b:1`, …
    fn upstream(count: u8, balance: Balance, check: Option<Check>) -> Upstream {
        let target = |number| format!("{}:1", char::from(b'a' + number)).parse::<Target>().unwrap();
        let routes = (0..count).map(|number| Route::from(target(number))).collect();
        let targets = Targets::new(Vec1::try_from_vec(routes).unwrap(), balance, check).unwrap();
        Upstream::fresh(&targets, Keepalive::default(), Lookup::default())
    }

    fn name(target: &Target) -> char {
        target.to_string().trim_start_matches('[').chars().next().unwrap()
    }

    /// The order in which one connection tries the targets, if all fail without a word about it; in brackets, those that it
    /// must not try.
    fn order(upstream: &Upstream) -> String {
        upstream.choose().fold(String::new(), |order, next| match next {
            Next::Try(chosen) => format!("{order}{}", name(chosen.candidate().target())),
            Next::Down(target, _) => format!("{order}({})", name(target)),
        })
    }

    fn first(upstream: &Upstream) -> Chosen<'_> {
        match upstream.choose().next() {
            Some(Next::Try(chosen)) => chosen,
            _ => panic!("there is one to try"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failover_goes_by_the_order_as_written() {
        let upstream = upstream(3, Balance::Failover, None);
        assert_eq!([order(&upstream), order(&upstream)], ["abc", "abc"]);
    }

    #[tokio::test(start_paused = true)]
    async fn round_robin_takes_turns() {
        let upstream = upstream(3, Balance::RoundRobin, None);
        let orders = [(); 4].map(|()| order(&upstream));
        assert_eq!(orders, ["abc", "bca", "cab", "abc"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_takes_no_turn() {
        let upstream = upstream(2, Balance::RoundRobin, None);
        let orders = [(); 4].map(|()| {
            assert_eq!(upstream.look().count(), 2);
            order(&upstream)
        });
        assert_eq!(orders, ["ab", "ba", "ab", "ba"]);
    }

    #[tokio::test(start_paused = true)]
    async fn least_connections_counts_those_that_are_being_set_up() {
        let upstream = upstream(3, Balance::LeastConnections, None);
        let mut taken = Vec::new();
        for _ in 0..9 {
            taken.push(first(&upstream));
        }
        for candidate in upstream.candidates() {
            assert_eq!(candidate.known.connections.load(Ordering::Relaxed), 3);
        }
        let freed = taken.remove(4);
        let target = freed.candidate().target().clone();
        drop(freed);
        assert_eq!(first(&upstream).candidate().target(), &target);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_failed_comes_last_until_one_connection_tries_it_again() {
        let upstream = upstream(2, Balance::Failover, None);
        first(&upstream).failed("refused");
        assert_eq!(order(&upstream), "ba");
        tokio::time::advance(Duration::from_secs(1)).await;
        let trial = first(&upstream);
        assert_eq!(name(trial.candidate().target()), 'a');
        assert_eq!(order(&upstream), "ba", "it is being tried");
        drop(trial);
        drop(first(&upstream).worked());
        assert_eq!(order(&upstream), "ab");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_have_failed_all_are_tried() {
        let upstream = upstream(2, Balance::Failover, None);
        for next in upstream.choose() {
            let Next::Try(chosen) = next else { panic!("none is down") };
            chosen.failed("refused");
        }
        assert_eq!(order(&upstream), "ab");
    }

    #[tokio::test(start_paused = true)]
    async fn what_checks_have_found_down_is_not_tried_but_named() {
        let upstream = upstream(2, Balance::Failover, Some(check(Running::Keep)));
        upstream.check_failed(&upstream.candidates()[0], &check(Running::Keep), "a replica");
        assert_eq!(order(&upstream), "(a)b");
        let Some(Next::Down(_, reason)) = upstream.choose().next() else { panic!("it is down") };
        assert_eq!(reason, "checks of it fail: a replica");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_drained_is_not_tried_until_it_no_longer_is() {
        let upstream = upstream(2, Balance::RoundRobin, None);
        let first = &upstream.candidates()[0].known;
        first.set_drained(true);
        let drained = [order(&upstream), order(&upstream)];
        assert_eq!(drained, ["(a)b", "b(a)"]);
        first.set_drained(false);
        assert_eq!(order(&upstream), "ab");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_have_a_target_keep_it_when_it_is_drained() {
        let upstream = upstream(1, Balance::Failover, Some(check(Running::Reset)));
        let in_use = first(&upstream).worked();
        upstream.candidates()[0].known.set_drained(true);
        assert_eq!(upstream.candidates()[0].known.connections(), 1);
        let down = in_use.down().unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), down).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn each_target_gets_its_share_of_the_time_and_the_last_one_all_that_is_left() {
        let upstream = upstream(4, Balance::Failover, Some(check(Running::Keep)));
        upstream.check_failed(&upstream.candidates()[3], &check(Running::Keep), "a replica");
        let start = Instant::now();
        let (mut choice, deadline) = (upstream.choose(), start + Duration::from_secs(6));
        let mut share = || {
            choice.next();
            choice.share(deadline)
        };
        assert_eq!(share(), start + Duration::from_secs(2));
        assert_eq!(share(), start + Duration::from_secs(3));
        assert_eq!(share(), deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_learn_that_checks_have_found_their_target_down() {
        let reset = check(Running::Reset);
        let upstream = upstream(1, Balance::Failover, Some(reset.clone()));
        let in_use = first(&upstream).worked();
        let down = in_use.down().unwrap();
        upstream.check_failed(&upstream.candidates()[0], &reset, "a replica");
        down.await;
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_stay_are_not_told() {
        let upstream = upstream(1, Balance::Failover, Some(check(Running::Keep)));
        assert!(first(&upstream).worked().down().is_none());
    }
}
