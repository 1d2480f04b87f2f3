//! The idle tunnels of an initiator, which wait for another client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Duration, Instant, sleep};

use crate::addr::Target;
use crate::gate::KeptIdle;
use crate::stream::Remote;
use crate::tunnel::idle::IdleInitiator;
use crate::upstream::Candidate;

/// How often tunnels are looked at that nobody takes: those that are too old go, and those that the responder has given up; and where
/// there are fewer than are wanted, spare ones are made.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// The longest pause between two attempts to make spare tunnels, if they fail or the responder gives them up at once: it has no place for
/// more, or cannot be reached.
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// The most spare tunnels that are made at one look, one after the other, so that they take no time from clients. Of those for a crowd
/// that may come again, the responder is heard of over as many.
const SPARES: usize = 64;

/// Idle tunnels, as long as the pipe is as it was when they were made: a reload brings another one.
pub(super) struct Reserve {
    /// How many are to be there, however few clients have come lately (`--spares`).
    ready: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one that was used last is taken first, so that a burst's tunnels grow old when it is over.
    idle: Vec<Waiting>,
    /// Whether a task looks after them.
    is_looked_after: bool,
    /// Clients that are here now.
    clients: usize,
    /// The most of them since the last look.
    most: usize,
    /// The most of them recently: from a peak, it falls by one with each look.
    recent: usize,
    /// Over how many tunnels the responder is to be heard of, since the last look.
    fresh: usize,
}

/// A client that is here until this is dropped. It does not keep the reserve: after a reload, connections that run are no reason to keep
/// idle tunnels.
pub(super) struct Client(Weak<Reserve>);

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(reserve) = self.0.upgrade() {
            reserve.state().clients -= 1;
        }
    }
}

/// A tunnel that waits.
pub(super) struct Waiting {
    pub(super) tunnel: IdleInitiator,
    /// The responder, as it was written.
    pub(super) target: Target,
    /// The address that was dialed.
    pub(super) remote: Remote,
    /// Its place in the budget of the process.
    pub(super) kept: KeptIdle,
}

impl Waiting {
    /// Whether the tunnel may be used so much `later`, as far as this end knows.
    fn may_stay(&self, later: Duration) -> bool {
        self.kept.may_stay() && self.tunnel.may_go_on(later)
    }
}

/// What a look at the tunnels has found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// How many are wanted besides those that are there.
    lacking: usize,
    /// Whether the responder has given up some.
    some_given_up: bool,
}

impl Reserve {
    /// A reserve of at least as many tunnels as `ready`, once somebody looks after it.
    pub(super) fn new(ready: usize) -> Self {
        Self { ready, state: Mutex::default() }
    }

    /// Whether tunnels are to be there, however few clients have come lately.
    pub(super) fn is_to_be_ready(&self) -> bool {
        self.ready > 0
    }

    /// Whether somebody is to look after it before there is a tunnel.
    pub(super) fn begin(&self) -> bool {
        self.is_to_be_ready() && !std::mem::replace(&mut self.state().is_looked_after, true)
    }

    /// A tunnel to `candidate` over which another connection may begin.
    pub(super) fn take(&self, candidate: &Candidate) -> Option<Waiting> {
        loop {
            let waiting = {
                let mut state = self.state();
                let is_of_it = |waiting: &Waiting| waiting.target == *candidate.target();
                let place = state.idle.iter().rposition(is_of_it)?;
                state.idle.remove(place)
            };
            // Outside of the lock, since it asks the kernel.
            if waiting.may_stay(Duration::ZERO)
                && !waiting.tunnel.is_given_up()
                && candidate.leads_to(waiting.remote)
            {
                return Some(waiting);
            }
        }
    }

    /// How many tunnels there are to `target`.
    pub(super) fn count(&self, target: &Target) -> usize {
        self.state().idle.iter().filter(|waiting| waiting.target == *target).count()
    }

    /// Counts a client.
    pub(super) fn client(self: &Arc<Self>) -> Client {
        let mut state = self.state();
        state.clients += 1;
        state.most = state.most.max(state.clients);
        drop(state);
        Client(Arc::downgrade(self))
    }

    /// Keeps a tunnel. If nobody looks after the tunnels so far, that is to begin: then the answer is true.
    pub(super) fn put(&self, waiting: Waiting) -> bool {
        let mut state = self.state();
        state.idle.push(waiting);
        !std::mem::replace(&mut state.is_looked_after, true)
    }

    /// Closes tunnels that are of no use any more. Nothing, if there is nothing to look after any more.
    fn look(&self) -> Option<Found> {
        let mut state = self.state();
        let given_up: Vec<_> = state.idle.extract_if(.., |waiting| waiting.tunnel.is_given_up()).collect();
        let too_old: Vec<_> =
            state.idle.extract_if(.., |waiting| !waiting.may_stay(Duration::ZERO)).collect();
        state.recent = state.most.max(state.recent.saturating_sub(1));
        state.most = state.clients;
        state.is_looked_after = self.is_to_be_ready() || !state.idle.is_empty() || state.recent > 1;
        // A single client at a time finds the tunnel of the one before, or waits for a handshake as the first one did.
        let crowd = if state.recent > 1 { state.recent } else { 0 };
        let for_crowd = crowd.saturating_sub(state.clients);
        state.fresh = for_crowd.min(SPARES).max(self.ready);
        // Those that are too old soon are made anew before.
        let lasting = state.idle.iter().filter(|waiting| waiting.may_stay(2 * LOOK)).count();
        let lacking = for_crowd.max(self.ready).saturating_sub(lasting);
        let found = Found { lacking, some_given_up: !given_up.is_empty() };
        let answer = state.is_looked_after.then_some(found);
        drop(state);
        // Closing takes time, so not under the lock.
        drop((given_up, too_old));
        answer
    }

    /// Takes out a tunnel over which the responder is to be heard of, and was not lately.
    fn take_quiet(&self) -> Option<Waiting> {
        let mut state = self.state();
        let first = state.idle.len().saturating_sub(state.fresh);
        let is_quiet = |waiting: &Waiting| waiting.tunnel.idle_for() > LOOK && waiting.may_stay(2 * LOOK);
        let place = state.idle[first..].iter().position(is_quiet)?;
        Some(state.idle.remove(first + place))
    }

    /// Gives up the tunnels to `target`: one of them was dead, and so are the others, as like as not.
    pub(super) fn give_up(&self, target: &Target) {
        let dead: Vec<_> = self.state().idle.extract_if(.., |waiting| waiting.target == *target).collect();
        drop(dead);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: every change to it is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose tunnels wait here.
pub(super) trait Keeper: Send + Sync + 'static {
    fn reserve(&self) -> &Reserve;

    /// Makes one more tunnel. Gives whether there is one.
    fn make_spare(self: Arc<Self>) -> impl Future<Output = bool> + Send;

    /// Has the responder be heard of over a tunnel, and puts that back if it was.
    fn refresh(self: Arc<Self>, waiting: Waiting) -> impl Future<Output = ()> + Send;
}

/// Looks after the tunnels of `keeper` from `delay` on, until there are none, or it is gone.
pub(super) async fn look_after(keeper: Weak<impl Keeper>, delay: Duration) {
    sleep(delay).await;
    let (mut pause, mut next) = (LOOK, Instant::now());
    loop {
        let Some(found) = keeper.upgrade().and_then(|keeper| keeper.reserve().look()) else { return };
        let mut is_in_vain = found.some_given_up;
        if !is_in_vain && next <= Instant::now() {
            if found.lacking == 0 {
                // Those that were made have lasted.
                pause = LOOK;
            }
            for _ in 0..found.lacking.min(SPARES) {
                let Some(keeper) = keeper.upgrade() else { return };
                is_in_vain = !keeper.make_spare().await;
                if is_in_vain {
                    break;
                }
            }
        }
        if is_in_vain {
            next = Instant::now() + pause;
            pause = (2 * pause).min(PAUSE_MAX);
        }
        // One after the other, so that all but one are there for clients; and not for ever, where there are more than there is time for.
        let enough = Instant::now() + LOOK;
        while Instant::now() < enough
            && let Some(keeper) = keeper.upgrade()
            && let Some(waiting) = keeper.reserve().take_quiet()
        {
            keeper.refresh(waiting).await;
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(reserve: &Reserve) -> Option<usize> {
        reserve.look().map(|found| found.lacking)
    }

    #[test]
    fn as_many_tunnels_are_wanted_as_there_were_clients_at_a_time_recently() {
        let reserve = Arc::new(Reserve::new(0));
        let crowd: Vec<_> = (0..10).map(|_| reserve.client()).collect();
        assert_eq!(lacking(&reserve), Some(0), "each has one");
        drop(crowd);
        // Those that they leave are not kept in this test.
        assert_eq!(lacking(&reserve), Some(10));
        let _some: Vec<_> = (0..4).map(|_| reserve.client()).collect();
        assert_eq!(lacking(&reserve), Some(9 - 4));
    }

    #[test]
    fn a_peak_is_forgotten() {
        let reserve = Arc::new(Reserve::new(0));
        drop((0..10).map(|_| reserve.client()).collect::<Vec<_>>());
        let looks = std::iter::from_fn(|| reserve.look()).count();
        assert_eq!(looks, 9);
    }

    #[test]
    fn for_one_client_at_a_time_no_tunnel_is_made() {
        let reserve = Arc::new(Reserve::new(0));
        for _ in 0..5 {
            drop(reserve.client());
        }
        assert_eq!(reserve.look(), None);
    }

    #[test]
    fn those_that_are_to_be_ready_are_wanted_besides_those_that_clients_have() {
        let reserve = Arc::new(Reserve::new(3));
        assert_eq!(lacking(&reserve), Some(3));
        let _crowd: Vec<_> = (0..10).map(|_| reserve.client()).collect();
        assert_eq!(lacking(&reserve), Some(3));
    }

    /// Makes tunnels in vain.
    struct Unlucky {
        reserve: Reserve,
        start: Instant,
        attempts: Mutex<Vec<u64>>,
    }

    impl Unlucky {
        fn new() -> Self {
            Self { reserve: Reserve::new(1), start: Instant::now(), attempts: Mutex::default() }
        }
    }

    impl Keeper for Unlucky {
        fn reserve(&self) -> &Reserve {
            &self.reserve
        }

        async fn make_spare(self: Arc<Self>) -> bool {
            self.attempts.lock().unwrap().push(self.start.elapsed().as_secs());
            false
        }

        async fn refresh(self: Arc<Self>, _: Waiting) {
            unreachable!("there is none");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_cannot_be_made_is_tried_again_after_longer_and_longer_pauses() {
        let keeper = Arc::new(Unlucky::new());
        let looking = look_after(Arc::downgrade(&keeper), Duration::ZERO);
        let _over = tokio::time::timeout(Duration::from_secs(500), looking).await;
        assert_eq!(*keeper.attempts.lock().unwrap(), [0, 5, 15, 35, 75, 155, 275, 395]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_after_a_reserve_that_is_gone() {
        let gone = Arc::downgrade(&Arc::new(Unlucky::new()));
        look_after(gone, Duration::ZERO).await;
    }
}
