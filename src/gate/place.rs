//! All connections of a process: how many there are, and how they are told to end at once.

use std::future::poll_fn;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::limit::Limit;
use super::lobby::Lobby;
use super::{Budget, OfSource, Permits};
use crate::proto::key::Fingerprint;

/// How long all connections together may take to tell their peers that they are cut short.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The connections of a process, whichever pipe has accepted them.
#[derive(Clone, Default)]
pub struct Connections(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Those that have not proved the key.
    lobby: Arc<Lobby>,
    /// How many there are descriptors for.
    limit: Arc<Limit>,
    /// How many idle tunnels its initiators may keep.
    idle: Arc<Limit>,
    /// How many key holders of one pipe may wait.
    waiting_max: AtomicUsize,
    /// All tasks, those with strangers included.
    tasks: TaskTracker,
    /// The connections that count. A cancellation token for each would do the same for 90 bytes more a connection, and take a
    /// lock of all connections whenever bytes come.
    running: Mutex<Slab<Running>>,
    /// Set once all are to end.
    is_cut: AtomicBool,
    /// How many have been told to end by themselves and have not ended yet. As long as there is none, nobody asks for the lock.
    told: AtomicUsize,
    /// Told when the last one has ended.
    none_left: Notify,
}

/// One of them.
struct Running {
    /// What wakes its task.
    waker: Waker,
    /// None for the one connection of a process that has no other.
    key: Option<Fingerprint>,
    /// Why it was told to end, if it was.
    told: Option<Cut>,
}

/// Why a connection has to end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The process stops.
    Stopped,
    /// Its key is not accepted any more.
    Revoked,
    /// An administrator wanted it closed.
    Closed,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Slab<Running>> {
        // A panic elsewhere leaves the list whole: every change to it is one call.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Has `budget` hold from now on, for the connections that are there as well.
    pub(crate) fn set_budget(&self, budget: Budget) {
        let Budget { connections, strangers, waiting, idle, parting } = budget;
        self.0.limit.set_max(NonZero::new(connections));
        self.0.lobby.set_places(strangers);
        // A process with both roles may have twice as many: a responder gives one up when descriptors are short.
        self.0.lobby.set_idle_places(idle);
        self.0.lobby.set_parting_places(parting);
        self.0.idle.set_max(NonZero::new(idle));
        self.0.waiting_max.store(waiting, Ordering::Relaxed);
    }

    pub(super) fn lobby(&self) -> &Arc<Lobby> {
        &self.0.lobby
    }

    pub(super) fn limit(&self) -> &Arc<Limit> {
        &self.0.limit
    }

    pub(super) fn idle(&self) -> &Arc<Limit> {
        &self.0.idle
    }

    pub(super) fn waiting_max(&self) -> usize {
        self.0.waiting_max.load(Ordering::Relaxed)
    }

    /// Runs `connection` in a task of its own.
    pub fn spawn(&self, connection: impl Future<Output: Send> + Send + 'static) {
        drop(self.0.tasks.spawn(connection));
    }

    /// Counts a connection as running, and keeps its `permits`, for as long as what is returned lives. A stranger has no place:
    /// until a peer has proved the key, there is nothing that could be finished.
    pub fn place(&self, permits: Option<Permits>) -> Place {
        let key = permits.as_ref().map(|permits| permits.key);
        let running = Running { waker: Waker::noop().clone(), key, told: None };
        let number = self.0.running().insert(running);
        Place { shared: Arc::clone(&self.0), number, permits }
    }

    /// How many are running.
    pub fn running(&self) -> usize {
        self.0.running().len()
    }

    /// Waits until all tasks have ended. To be called when no new ones are spawned.
    pub(crate) async fn finished(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Has responders give up their idle tunnels, whichever key these have: a new one costs a handshake.
    pub(crate) fn give_up_idle(&self) {
        self.0.lobby.give_up_idle();
    }

    /// Tells the connections whose key is one of `these` to end, and why. Gives how many were told.
    pub(crate) fn end_with_key(&self, cut: Cut, these: impl Fn(Fingerprint) -> bool) -> usize {
        self.end(cut, |_, running| running.key.is_some_and(&these))
    }

    /// Tells the connection whose place has this number to end, and why. False, if it was told before.
    pub(crate) fn end_at(&self, cut: Cut, place: usize) -> bool {
        self.end(cut, |number, _| number == place) > 0
    }

    fn end(&self, cut: Cut, are_meant: impl Fn(usize, &Running) -> bool) -> usize {
        let mut wakers = Vec::new();
        for (number, running) in self.0.running().iter_mut() {
            if running.told.is_none() && are_meant(number, running) {
                running.told = Some(cut);
                self.0.told.fetch_add(1, Ordering::SeqCst);
                wakers.push(running.waker.clone());
            }
        }
        let count = wakers.len();
        wakers.into_iter().for_each(Waker::wake);
        count
    }

    /// Tells all connections to end, and waits for a moment until they have told their peers. Gives how many were running.
    pub(crate) async fn cut_short(&self) -> usize {
        self.0.is_cut.store(true, Ordering::SeqCst);
        let wakers: Vec<_> = self.0.running().iter().map(|(_, running)| running.waker.clone()).collect();
        let count = wakers.len();
        wakers.into_iter().for_each(Waker::wake);
        let ended = async {
            while self.running() > 0 {
                self.0.none_left.notified().await;
            }
        };
        let _some_peers_are_slow = timeout(LAST_WORDS, ended).await;
        count
    }
}

/// One connection's place among those that run, free again when this is dropped.
pub struct Place {
    shared: Arc<Shared>,
    /// Which of those that run.
    number: usize,
    /// None where nothing is counted.
    permits: Option<Permits>,
}

impl Place {
    /// Which of those that run it is, as long as it does.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// The connection counts at a source, which is known by now.
    pub(crate) fn count_at(&mut self, of_source: Option<OfSource>) {
        if let Some(permits) = &mut self.permits {
            permits.source = of_source;
        }
    }

    /// Does `work`, unless the connection has to end before that is done: then there is only the reason.
    pub(crate) fn unless_cut<T>(
        &self,
        mut work: impl Future<Output = T> + Unpin,
    ) -> impl Future<Output = Result<T, Cut>> {
        let mut is_registered = false;
        // Not an async fn, whose future would keep the work twice.
        poll_fn(move |context| {
            if !is_registered {
                // Once is enough: a task has the same waker all its life.
                is_registered = true;
                self.shared.running()[self.number].waker.clone_from(context.waker());
            }
            match Pin::new(&mut work).poll(context) {
                Poll::Ready(result) => Poll::Ready(Ok(result)),
                Poll::Pending => self.cut().map_or(Poll::Pending, |cut| Poll::Ready(Err(cut))),
            }
        })
    }

    /// Why the connection has to end, if it has to.
    fn cut(&self) -> Option<Cut> {
        if self.shared.is_cut.load(Ordering::SeqCst) {
            return Some(Cut::Stopped);
        }
        let some_are_told = self.shared.told.load(Ordering::SeqCst) > 0;
        if some_are_told { self.shared.running()[self.number].told } else { None }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let is_last = {
            let mut running = self.shared.running();
            if running.remove(self.number).told.is_some() {
                self.shared.told.fetch_sub(1, Ordering::SeqCst);
            }
            running.is_empty()
        };
        if is_last {
            self.shared.none_left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_waits_is_ended_by_a_cut_that_comes_later() {
        let connections = Connections::default();
        let place = connections.place(None);
        let work = tokio::spawn(async move { place.unless_cut(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        assert_eq!(connections.cut_short().await, 1);
        assert_eq!(work.await.unwrap(), Err(Cut::Stopped));
    }

    #[tokio::test]
    async fn work_that_begins_after_the_cut_is_ended_at_once() {
        let connections = Connections::default();
        connections.cut_short().await;
        let place = connections.place(None);
        assert_eq!(place.unless_cut(std::future::pending::<()>()).await, Err(Cut::Stopped));
    }

    /// Each idle connection has one.
    #[test]
    fn what_a_running_connection_takes_in_the_list_is_small() {
        assert!(size_of::<Running>() <= 24, "{} bytes", size_of::<Running>());
    }

    #[tokio::test]
    async fn work_that_is_done_is_not_cut() {
        let connections = Connections::default();
        connections.cut_short().await;
        assert_eq!(connections.place(None).unless_cut(std::future::ready(7)).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_end_is_not_waited_for_longer_than_a_moment() {
        let connections = Connections::default();
        let _stuck = connections.place(None);
        let start = tokio::time::Instant::now();
        assert_eq!(connections.cut_short().await, 1);
        assert_eq!(start.elapsed().as_secs(), LAST_WORDS.as_secs());
    }
}
