//! The idle tunnels of an initiator, which wait for another client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Duration, sleep};

use crate::addr::Target;
use crate::gate::KeptIdle;
use crate::stream::Remote;
use crate::tunnel::idle::IdleInitiator;
use crate::upstream::Candidate;

/// How often tunnels are looked at that nobody takes: those that are too old go, and those that the responder has given up.
const LOOK: Duration = Duration::from_secs(5);

/// Idle tunnels, as long as the pipe is as it was when they were made: a reload brings another one.
#[derive(Default)]
pub(super) struct Reserve(Mutex<State>);

#[derive(Default)]
struct State {
    /// The one that was used last is taken first, so that a burst's tunnels grow old when it is over.
    idle: Vec<Waiting>,
    /// Whether a task looks after them.
    is_looked_after: bool,
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

    /// Keeps a tunnel.
    pub(super) fn put(self: &Arc<Self>, waiting: Waiting) {
        let mut state = self.state();
        state.idle.push(waiting);
        if !state.is_looked_after {
            state.is_looked_after = true;
            tokio::spawn(look_after(Arc::downgrade(self)));
        }
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

/// Closes tunnels that are of no use any more, until there are none, or the pipe is gone.
async fn look_after(reserve: Weak<Reserve>) {
    loop {
        sleep(LOOK).await;
        let Some(reserve) = reserve.upgrade() else { return };
        let mut state = reserve.state();
        let useless: Vec<_> = state.idle.extract_if(.., |waiting| !waiting.is_usable()).collect();
        state.is_looked_after = !state.idle.is_empty();
        let is_done = !state.is_looked_after;
        drop(state);
        drop(useless);
        if is_done {
            return;
        }
    }
}
