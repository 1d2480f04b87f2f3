//! How many there may be of something at a time: connections of a pipe (`-n`), connections of the process.

use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// The most connections at a time. None is no limit.
pub(super) type MaxConnections = Option<NonZero<usize>>;

/// Connections, counted against a limit that a reload may change while they run.
pub(super) struct Limit {
    /// Gives permits in the order in which they were asked for.
    free: Semaphore,
    state: Mutex<State>,
}

struct State {
    /// What the semaphore started with, and was changed to since.
    max: usize,
    /// Permits that are taken beyond a limit that has become smaller: they are not given to others when they become free.
    excess: usize,
}

impl Limit {
    /// No connection yet, and at most `max`.
    pub(super) fn new(max: MaxConnections) -> Self {
        let max = permits(max);
        Self { free: Semaphore::new(max), state: Mutex::new(State { max, excess: 0 }) }
    }

    /// Another limit from now on. Running connections beyond a smaller one go on.
    pub(super) fn set_max(&self, max: MaxConnections) {
        let (mut state, max) = (self.state(), permits(max));
        if max >= state.max {
            let more = max - state.max;
            let kept = more.min(state.excess);
            state.excess -= kept;
            self.free.add_permits(more - kept);
        } else {
            let less = state.max - max;
            state.excess += less - self.free.forget_permits(less);
        }
        state.max = max;
    }

    /// A permit, if one is free now.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        self.free.try_acquire().ok()?.forget();
        Some(Permit(Arc::clone(self)))
    }

    /// A permit, as soon as one is free.
    pub(super) async fn take(self: &Arc<Self>) -> Permit {
        self.free.acquire().await.expect("the semaphore is never closed").forget();
        Permit(Arc::clone(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the numbers whole: every change to them is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No limit.
impl Default for Limit {
    fn default() -> Self {
        Self::new(None)
    }
}

fn permits(max: MaxConnections) -> usize {
    max.map_or(Semaphore::MAX_PERMITS, |max| max.get().min(Semaphore::MAX_PERMITS))
}

/// One connection's share of the limit, free again when this is dropped.
pub(super) struct Permit(Arc<Limit>);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if state.excess > 0 {
            state.excess -= 1;
        } else {
            self.0.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max: usize) -> Arc<Limit> {
        Arc::new(Limit::new(NonZero::new(max)))
    }

    #[test]
    fn no_permit_is_given_beyond_the_limit() {
        let limit = limit(2);
        let _two = [limit.try_take().unwrap(), limit.try_take().unwrap()];
        assert!(limit.try_take().is_none());
    }

    #[test]
    fn a_limit_of_none_gives_permits_without_end() {
        let limit = limit(0);
        let permits: Vec<_> = (0..10_000).map_while(|_| limit.try_take()).collect();
        assert_eq!(permits.len(), 10_000);
    }

    #[tokio::test]
    async fn a_permit_that_is_dropped_goes_to_the_task_that_waits() {
        let limit = limit(1);
        let first = limit.take().await;
        let waiting = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { drop(limit.take().await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_permit_that_nobody_takes_up_goes_to_the_next_task_that_waits() {
        let limit = limit(1);
        let first = limit.take().await;
        let mut impatient = Box::pin(limit.take());
        let poll = std::future::poll_fn(|context| {
            std::task::Poll::Ready(impatient.as_mut().poll(context).is_pending())
        });
        assert!(poll.await);
        let waiting = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { drop(limit.take().await) }
        });
        tokio::task::yield_now().await;
        // The permit is offered to the one that waits longest, which leaves.
        drop(first);
        drop(impatient);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_larger_limit_lets_in_those_that_wait() {
        let limit = limit(1);
        let _first = limit.take().await;
        let waiting = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { limit.take().await }
        });
        tokio::task::yield_now().await;
        limit.set_max(NonZero::new(2));
        let _second = waiting.await.unwrap();
        assert!(limit.try_take().is_none());
    }

    #[test]
    fn a_smaller_limit_counts_the_connections_that_run() {
        let limit = limit(3);
        let mut running: Vec<_> = (0..3).map(|_| limit.try_take().unwrap()).collect();
        limit.set_max(NonZero::new(2));
        running.pop();
        assert!(limit.try_take().is_none(), "two are running");
        running.pop();
        assert!(limit.try_take().is_some());
    }

    #[test]
    fn a_limit_that_shrinks_and_grows_again_is_the_last_one() {
        let limit = limit(0);
        let running: Vec<_> = (0..5).map(|_| limit.try_take().unwrap()).collect();
        for max in [3, 10, 1, 0, 6] {
            limit.set_max(NonZero::new(max));
        }
        let _sixth = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        drop(running);
        assert_eq!((0..10).map_while(|_| limit.try_take()).collect::<Vec<_>>().len(), 5);
    }
}
