//! Where connections wait that have not proved the key yet.
//!
//! They have their own budget, so that strangers who connect and say nothing cannot use up the connections that key
//! holders may have (`-n`). When the lobby is full the one who has waited longest is turned out, not the newcomer: a
//! handshake takes one round trip, so a key holder is through long before it is the oldest, while an idle stranger is
//! not. To keep key holders out, strangers would have to bring a full lobby each round trip.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many may wait. Each costs a socket and a few KiB.
pub const PLACES: usize = 256;

/// The waiting connections, the longest-waiting first.
#[derive(Default)]
pub struct Lobby {
    waiting: Mutex<VecDeque<Arc<CancellationToken>>>,
}

impl Lobby {
    /// Lets one more in, and turns out the longest-waiting one when there is no place.
    pub fn enter(self: &Arc<Self>) -> Visitor {
        let turned_out = Arc::new(CancellationToken::new());
        let mut waiting = self.lock();
        if waiting.len() == PLACES
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.cancel();
        }
        waiting.push_back(Arc::clone(&turned_out));
        Visitor { lobby: Arc::clone(self), turned_out }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<CancellationToken>>> {
        // A panic elsewhere leaves the queue whole: every change to it is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the lobby, free again when this is dropped.
pub struct Visitor {
    lobby: Arc<Lobby>,
    turned_out: Arc<CancellationToken>,
}

impl Visitor {
    /// Ends when this visitor has to make room.
    pub async fn turned_out(&self) {
        self.turned_out.cancelled().await;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.lobby.lock().retain(|other| !Arc::ptr_eq(other, &self.turned_out));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lobby_turns_out_the_longest_waiting() {
        let lobby = Arc::new(Lobby::default());
        let visitors: Vec<_> = (0..PLACES).map(|_| lobby.enter()).collect();
        assert!(visitors.iter().all(|visitor| !visitor.turned_out.is_cancelled()));
        let newcomer = lobby.enter();
        assert!(visitors[0].turned_out.is_cancelled());
        assert!(!visitors[1].turned_out.is_cancelled());
        assert!(!newcomer.turned_out.is_cancelled());
    }

    #[test]
    fn who_leaves_makes_room() {
        let lobby = Arc::new(Lobby::default());
        let mut visitors: Vec<_> = (0..PLACES).map(|_| lobby.enter()).collect();
        visitors.remove(100);
        assert_eq!(lobby.waiting(), PLACES - 1);
        let _newcomer = lobby.enter();
        assert!(visitors.iter().all(|visitor| !visitor.turned_out.is_cancelled()));
    }
}
