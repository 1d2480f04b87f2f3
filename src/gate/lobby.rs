//! Where connections wait that have not proved the key yet.
//!
//! They have a budget of their own, so that strangers that connect and say nothing cannot use up the connections that key
//! holders may have (`-n`). When the lobby is full, the connection that has waited longest is turned out, not the newcomer: a
//! handshake takes one round trip, so a key holder is through long before it is the oldest, while an idle stranger is
//! not. To keep key holders out, strangers would have to bring a full lobby each round trip.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many may wait. Each costs a socket and a few KiB.
const PLACES: usize = 256;

/// The waiting connections, the longest-waiting first.
#[derive(Default)]
pub(super) struct Lobby {
    waiting: Mutex<VecDeque<Arc<CancellationToken>>>,
}

impl Lobby {
    /// Lets one more in, and turns out the longest-waiting one when there is no place.
    pub(super) fn enter(self: &Arc<Self>) -> LobbyPlace {
        let turned_out = Arc::new(CancellationToken::new());
        let mut waiting = self.lock();
        if waiting.len() == PLACES
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.cancel();
        }
        waiting.push_back(Arc::clone(&turned_out));
        LobbyPlace { lobby: Arc::clone(self), turned_out }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<CancellationToken>>> {
        // A panic elsewhere leaves the queue whole: every change to it is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the lobby, free again when this is dropped.
pub struct LobbyPlace {
    lobby: Arc<Lobby>,
    turned_out: Arc<CancellationToken>,
}

impl LobbyPlace {
    /// Ends when the connection that waits here has to make room.
    pub async fn turned_out(&self) {
        self.turned_out.cancelled().await;
    }
}

impl Drop for LobbyPlace {
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
        let waiting: Vec<_> = (0..PLACES).map(|_| lobby.enter()).collect();
        assert!(waiting.iter().all(|waiting| !waiting.turned_out.is_cancelled()));
        let newcomer = lobby.enter();
        assert!(waiting[0].turned_out.is_cancelled());
        assert!(!waiting[1].turned_out.is_cancelled());
        assert!(!newcomer.turned_out.is_cancelled());
    }

    #[test]
    fn a_visitor_that_leaves_makes_room() {
        let lobby = Arc::new(Lobby::default());
        let mut waiting: Vec<_> = (0..PLACES).map(|_| lobby.enter()).collect();
        waiting.remove(100);
        assert_eq!(lobby.lock().len(), PLACES - 1);
        let _newcomer = lobby.enter();
        assert!(waiting.iter().all(|waiting| !waiting.turned_out.is_cancelled()));
    }
}
