//! The idle tunnels of an initiator, which wait for another client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Duration, sleep};

use crate::addr::Target;
use crate::gate::KeptIdle;
use crate::stream::Remote;
use crate::tunnel::idle::IdleInitiator;
use crate::upstream::Candidate;

/// How often tunnels are looked at that nobody takes: those that are too old go, and those that the responder has given up; and if there
/// were more clients at a time recently than there are tunnels now, spare ones are made.
const LOOK: Duration = Duration::from_secs(5);

/// The most spare tunnels that are made at one look, so that they take no time from clients.
const SPARES: usize = 8;

/// Idle tunnels, as long as the pipe is as it was when they were made: a reload brings another one.
#[derive(Default)]
pub(super) struct Reserve(Mutex<State>);

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
    fn is_usable(&self) -> bool {
        self.kept.may_stay() && self.tunnel.is_usable()
    }
}

impl Reserve {
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
            if waiting.is_usable() && candidate.leads_to(waiting.remote) {
                return Some(waiting);
            }
        }
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

    /// Closes tunnels that are of no use any more. Says how many are lacking for as many clients as there were recently; or nothing, if
    /// there is nothing to look after any more.
    fn look(&self) -> Option<usize> {
        let mut state = self.state();
        let useless: Vec<_> = state.idle.extract_if(.., |waiting| !waiting.is_usable()).collect();
        state.recent = state.most.max(state.recent.saturating_sub(1));
        state.most = state.clients;
        state.is_looked_after = !state.idle.is_empty() || state.recent > 1;
        // A single client at a time finds the tunnel of the one before, or waits for a handshake as the first one did.
        let wanted = if state.recent > 1 { state.recent } else { 0 };
        let lacking = wanted.saturating_sub(state.clients + state.idle.len());
        let answer = state.is_looked_after.then_some(lacking);
        drop(state);
        // Closing takes time, so not under the lock.
        drop(useless);
        answer
    }

    /// Gives up the tunnels to `target`: one of them was dead, and so are the others, as like as not.
    pub(super) fn give_up(&self, target: &Target) {
        let dead: Vec<_> = self.state().idle.extract_if(.., |waiting| waiting.target == *target).collect();
        drop(dead);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: every change to it is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the tunnels of an initiator, until there are none, or the pipe is gone. `make_spare` gives whether it has made one.
pub(super) async fn look_after<I, F: Future<Output = bool>>(
    initiator: Weak<I>,
    reserve: impl Fn(&I) -> &Reserve,
    make_spare: impl Fn(Arc<I>) -> F,
) {
    loop {
        sleep(LOOK).await;
        let Some(lacking) = initiator.upgrade().and_then(|initiator| reserve(&initiator).look()) else {
            return;
        };
        for _ in 0..lacking.min(SPARES) {
            let Some(initiator) = initiator.upgrade() else { return };
            if !make_spare(initiator).await {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tunnels_are_wanted_as_there_were_clients_at_a_time_recently() {
        let reserve = Arc::new(Reserve::default());
        let crowd: Vec<_> = (0..10).map(|_| reserve.client()).collect();
        assert_eq!(reserve.look(), Some(0), "each has one");
        drop(crowd);
        // Those that they leave are not kept in this test.
        assert_eq!(reserve.look(), Some(10));
        let _some: Vec<_> = (0..4).map(|_| reserve.client()).collect();
        assert_eq!(reserve.look(), Some(9 - 4));
    }

    #[test]
    fn a_peak_is_forgotten() {
        let reserve = Arc::new(Reserve::default());
        drop((0..10).map(|_| reserve.client()).collect::<Vec<_>>());
        let looks = std::iter::from_fn(|| reserve.look()).count();
        assert_eq!(looks, 9);
    }

    #[test]
    fn for_one_client_at_a_time_no_tunnel_is_made() {
        let reserve = Arc::new(Reserve::default());
        for _ in 0..5 {
            drop(reserve.client());
        }
        assert_eq!(reserve.look(), None);
    }
}
