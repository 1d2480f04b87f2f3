//! Where connections to a responder wait that carry nothing: one lobby for the process, whichever pipe has accepted them. They have not
//! proved the key yet; or they have, and their tunnel is idle between two connections, or is given up.
//!
//! A stranger costs little, but strangers come without end, so they have a budget of their own, and it is spent by how far each
//! has got: nothing said, in the middle of message 1, or message 1 opened and answered. A stage is out of reach of those that
//! are at an earlier one: silent connections, however many, only take places from each other.
//!
//! When a stage has no place left, the source that holds most of its places loses the one that it has held longest. An honest
//! client's source holds few. It takes as many sources as there are places to keep it out, and all of them in different
//! networks.
//!
//! But nobody loses its place before it has had a fair time: as long as this process takes to read what has come already, or
//! the peer to answer message 2. Meanwhile no more is accepted, and a burst waits in the kernel's queue.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::per_source::OfSource;
use super::source::Source;
use crate::stats;
use crate::stream::Remote;

/// How long a silent stranger keeps its place in any case: an initiator's message 1 comes with its connection, and is read in
/// this time. With the places of a process that has descriptors enough, it holds up nothing below 400,000 strangers a second.
const SILENT_GRACE: Duration = Duration::from_millis(10);
/// The same for a peer that was answered: several round trips, even over a satellite. Only a key holder, or a recording of one,
/// comes to have this much.
const ANSWERED_GRACE: Duration = Duration::from_secs(2);

/// How far a connection has got that carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has said nothing.
    Silent,
    /// It has said something, and not all of message 1.
    Speaking,
    /// Its message 1 has opened, and message 2 is on its way to it.
    Answered,
    /// Its tunnel has carried a connection, and waits for the next.
    Idle,
    /// It was told that this end gives up, and is to close the connection.
    Parting,
}

/// The connections of a process that have not proved the key.
#[derive(Default)]
pub(crate) struct Lobby {
    crowds: Mutex<Crowds>,
    /// Told when one leaves its stage.
    left: Notify,
}

#[derive(Default)]
struct Crowds {
    silent: Crowd,
    speaking: Crowd,
    answered: Crowd,
    idle: Crowd,
    parting: Crowd,
    next_ticket: u64,
}

impl Crowds {
    fn at(&mut self, stage: Stage) -> &mut Crowd {
        match stage {
            Stage::Silent => &mut self.silent,
            Stage::Speaking => &mut self.speaking,
            Stage::Answered => &mut self.answered,
            Stage::Idle => &mut self.idle,
            Stage::Parting => &mut self.parting,
        }
    }

    /// Makes sure that there is a place to be silent at, and one to be answered at. If nobody may be turned out yet, says when.
    fn make_room(&mut self, now: Instant) -> Option<Instant> {
        let crowds = [(&mut self.silent, SILENT_GRACE), (&mut self.answered, ANSWERED_GRACE)];
        let grace_ends = crowds.into_iter().filter_map(|(crowd, grace)| {
            let first = if crowd.is_full() { crowd.first_to_go()?.since } else { return None };
            (first + grace > now || !crowd.turn_out()).then_some(first + grace)
        });
        grace_ends.max()
    }

    /// Adds one, without a look at whether there is a place.
    fn add(&mut self, stage: Stage, source: Source) -> (u64, Arc<Notify>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let turned_out = Arc::new(Notify::new());
        let stranger = Stranger { ticket, since: Instant::now(), turned_out: Arc::clone(&turned_out) };
        self.at(stage).add(source, stranger);
        (ticket, turned_out)
    }
}

impl Lobby {
    /// From now on, there are `places` in all, and at least one for each stage. Those that are here stay.
    pub(crate) fn set_places(&self, places: usize) {
        // Strangers are mostly silent; saying all of message 1, which fits into a packet or two, takes next to no time.
        let (silent, speaking) = (places / 2, places / 8);
        let mut crowds = self.crowds();
        crowds.silent.places = silent.max(1);
        crowds.speaking.places = speaking.max(1);
        crowds.answered.places = places.saturating_sub(silent + speaking).max(1);
    }

    /// From now on, there are so many places for idle tunnels. Those that are here stay.
    pub(crate) fn set_idle_places(&self, places: usize) {
        self.crowds().idle.places = places.max(1);
    }

    /// From now on, there are so many places for peers that are to close their connections. Those that are here stay.
    pub(crate) fn set_parting_places(&self, places: usize) {
        self.crowds().parting.places = places.max(1);
    }

    /// Waits until there is a place for one more, which may have to be made.
    pub(super) async fn room(&self) {
        loop {
            // Before the look, so that no change behind it is missed.
            let left = self.left.notified();
            let Some(grace_ends) = self.crowds().make_room(Instant::now()) else { return };
            tokio::select! {
                () = left => {}
                () = sleep_until(grace_ends) => {}
            }
        }
    }

    /// Lets in a connection that has said nothing yet.
    pub(super) fn enter(
        self: &Arc<Self>,
        remote: Remote,
        of_source: Option<OfSource>,
        counted: Option<stats::Stranger>,
    ) -> LobbyPlace {
        let source = Source::of(remote);
        let (ticket, turned_out) = self.crowds().add(Stage::Silent, source);
        let (lobby, stage) = (Arc::clone(self), Stage::Silent);
        LobbyPlace { lobby, stage, source, ticket, turned_out, of_source, _counted: counted }
    }

    /// Keeps a place for an idle tunnel, if need be that of another one.
    pub(super) fn rest(self: &Arc<Self>, remote: Remote) -> LobbyPlace {
        self.keep(Stage::Idle, remote)
    }

    /// Keeps a place for a peer that is to close its connection, if need be that of another one.
    pub(super) fn part(self: &Arc<Self>, remote: Remote) -> LobbyPlace {
        self.keep(Stage::Parting, remote)
    }

    fn keep(self: &Arc<Self>, stage: Stage, remote: Remote) -> LobbyPlace {
        let source = Source::of(remote);
        let mut crowds = self.crowds();
        if crowds.at(stage).is_full() {
            crowds.at(stage).turn_out();
        }
        let (ticket, turned_out) = crowds.add(stage, source);
        drop(crowds);
        let lobby = Arc::clone(self);
        LobbyPlace { lobby, stage, source, ticket, turned_out, of_source: None, _counted: None }
    }

    /// Has all idle tunnels be given up. Nobody else needs their places, so they have them until their peers have closed.
    pub(super) fn give_up_idle(&self) {
        self.crowds().idle.strangers().for_each(|stranger| stranger.turned_out.notify_one());
    }

    /// For want of descriptors, turns out a peer that has nothing to wait for, an idle tunnel, or a stranger, if there is one that has
    /// said nothing or not enough.
    pub(super) fn turn_one_out(&self) {
        let mut crowds = self.crowds();
        let first_to_go = [Stage::Parting, Stage::Idle, Stage::Silent, Stage::Speaking];
        let _is_out = first_to_go.into_iter().any(|stage| crowds.at(stage).turn_out());
    }

    fn crowds(&self) -> MutexGuard<'_, Crowds> {
        // A panic elsewhere leaves them whole: nothing in the changes to them panics half-way.
        self.crowds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the lobby, free again when this is dropped.
pub struct LobbyPlace {
    lobby: Arc<Lobby>,
    stage: Stage,
    source: Source,
    ticket: u64,
    turned_out: Arc<Notify>,
    of_source: Option<OfSource>,
    /// None for a peer that has proved the key, and in tests of this alone.
    _counted: Option<stats::Stranger>,
}

impl LobbyPlace {
    /// Ends when the place is needed for another.
    pub async fn turned_out(&self) {
        self.turned_out.notified().await;
    }

    /// Leaves the lobby. What is given counts at the source of the connection, as long as that lives.
    pub fn leave(mut self) -> Option<OfSource> {
        self.of_source.take()
    }

    /// It is known by now where the connection comes from, which a proxy has brought: from here on, it counts there.
    pub fn count_at(&mut self, remote: Remote, of_source: Option<OfSource>) {
        let source = Source::of(remote);
        let mut crowds = self.lobby.crowds();
        crowds.at(self.stage).remove(self.source, self.ticket);
        (self.ticket, self.turned_out) = crowds.add(self.stage, source);
        drop(crowds);
        (self.source, self.of_source) = (source, of_source);
    }

    /// The peer is told that this end gives up, and is to close the connection. If another has taken the place, it has one among those
    /// that are told so, until another one needs that.
    pub fn part(&mut self) {
        let is_taken = !self.lobby.crowds().at(self.stage).has(self.source, self.ticket);
        if is_taken {
            self.advance(Stage::Parting);
        }
    }

    /// The connection has got as far as `stage`, and takes a place there.
    pub fn advance(&mut self, stage: Stage) {
        let mut crowds = self.lobby.crowds();
        // It may have been turned out, and not noticed: what it said came first.
        crowds.at(self.stage).remove(self.source, self.ticket);
        if let Stage::Speaking | Stage::Parting = stage
            && crowds.at(stage).is_full()
        {
            crowds.at(stage).turn_out();
        }
        (self.ticket, self.turned_out) = crowds.add(stage, self.source);
        self.stage = stage;
        drop(crowds);
        self.lobby.left.notify_waiters();
    }

    /// Does `work`, unless the place is needed for another before it is done: then there is no result.
    pub async fn unless_turned_out<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // Work that is done counts.
            biased;
            done = work => Some(done),
            () = self.turned_out.notified() => None,
        }
    }
}

impl Drop for LobbyPlace {
    fn drop(&mut self) {
        self.lobby.crowds().at(self.stage).remove(self.source, self.ticket);
        self.lobby.left.notify_waiters();
    }
}

/// The strangers at one stage.
#[derive(Default)]
struct Crowd {
    places: usize,
    taken: usize,
    blocks: HashMap<Option<IpAddr>, Block>,
}

/// Those of one network, by source, the longest-waiting first.
type Block = HashMap<Source, VecDeque<Stranger>>;

struct Stranger {
    /// In the order in which they came.
    ticket: u64,
    since: Instant,
    turned_out: Arc<Notify>,
}

impl Crowd {
    fn is_full(&self) -> bool {
        self.taken >= self.places
    }

    fn add(&mut self, source: Source, stranger: Stranger) {
        self.taken += 1;
        self.blocks.entry(source.block()).or_default().entry(source).or_default().push_back(stranger);
    }

    /// All of them, in no order.
    fn strangers(&self) -> impl Iterator<Item = &Stranger> {
        self.blocks.values().flat_map(Block::values).flatten()
    }

    /// Whether a stranger is here, and was not turned out.
    fn has(&self, source: Source, ticket: u64) -> bool {
        let strangers = self.blocks.get(&source.block()).and_then(|block| block.get(&source));
        strangers.is_some_and(|strangers| {
            strangers.binary_search_by_key(&ticket, |stranger| stranger.ticket).is_ok()
        })
    }

    /// Takes away a stranger, if it was not turned out.
    fn remove(&mut self, source: Source, ticket: u64) -> Option<Stranger> {
        let block = self.blocks.get_mut(&source.block())?;
        let strangers = block.get_mut(&source)?;
        let index = strangers.binary_search_by_key(&ticket, |stranger| stranger.ticket).ok()?;
        let stranger = strangers.remove(index);
        if strangers.is_empty() {
            block.remove(&source);
        }
        if block.is_empty() {
            self.blocks.remove(&source.block());
        }
        self.taken -= 1;
        stranger
    }

    /// Turns out the one that goes first. False when nobody is here.
    fn turn_out(&mut self) -> bool {
        let Some((source, ticket)) = self.heaviest().map(|(source, first)| (source, first.ticket)) else {
            return false;
        };
        self.remove(source, ticket).inspect(|stranger| stranger.turned_out.notify_one()).is_some()
    }

    fn first_to_go(&self) -> Option<&Stranger> {
        self.heaviest().map(|(_, first)| first)
    }

    /// The source with most strangers, in the network with most, and its longest-waiting. Among equals, whose longest-waiting
    /// came first.
    ///
    /// A look at every network: a microsecond for each hundred.
    fn heaviest(&self) -> Option<(Source, &Stranger)> {
        let first =
            |block: &Block| block.values().filter_map(VecDeque::front).map(|first| first.ticket).min();
        let count = |block: &Block| block.values().map(VecDeque::len).sum::<usize>();
        let block = self.blocks.values().max_by_key(|block| (count(block), Reverse(first(block))))?;
        let (source, strangers) = block.iter().max_by_key(|(_, strangers)| {
            (strangers.len(), Reverse(strangers.front().map(|first| first.ticket)))
        })?;
        Some((*source, strangers.front()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 64;
    const SILENT: usize = PLACES / 2;
    const ANSWERED: usize = PLACES - PLACES / 2 - PLACES / 8;

    fn lobby() -> Arc<Lobby> {
        let lobby = Lobby::default();
        lobby.set_places(PLACES);
        Arc::new(lobby)
    }

    fn from(address: &str) -> Remote {
        Remote::Ip(address.parse().unwrap(), 1)
    }

    async fn is_out(place: &LobbyPlace) -> bool {
        place.unless_turned_out(tokio::task::yield_now()).await.is_none()
    }

    async fn out(places: &[LobbyPlace]) -> Vec<usize> {
        let mut out = Vec::new();
        for (index, place) in places.iter().enumerate() {
            if is_out(place).await {
                out.push(index);
            }
        }
        out
    }

    /// Strangers that come one after the other, as soon as there is room for each.
    async fn enter(lobby: &Arc<Lobby>, count: usize, address: &str) -> Vec<LobbyPlace> {
        let mut places = Vec::new();
        for _ in 0..count {
            lobby.room().await;
            places.push(lobby.enter(from(address), None, None));
        }
        places
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_as_long_as_nobody_has_had_its_fair_time() {
        let lobby = lobby();
        let start = Instant::now();
        let waiting = enter(&lobby, SILENT, "192.0.2.1").await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        lobby.room().await;
        assert_eq!(start.elapsed(), SILENT_GRACE);
        assert_eq!(out(&waiting).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_waiting_of_a_single_source_makes_room() {
        let lobby = lobby();
        let waiting = enter(&lobby, SILENT + 2, "192.0.2.1").await;
        assert_eq!(out(&waiting).await, [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_source_with_most_places_makes_room_and_not_the_one_that_waits_longest() {
        let lobby = lobby();
        let honest = lobby.enter(from("192.0.2.1"), None, None);
        let flood = enter(&lobby, 1_000, "198.51.100.1").await;
        assert!(!is_out(&honest).await);
        assert_eq!(out(&flood).await.len(), 1_000 - (SILENT - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_of_one_network_count_together() {
        let lobby = lobby();
        // Each of the others has fewer places than this one, and together they have more.
        let honest: Vec<_> = (0..3).map(|_| lobby.enter(from("192.0.2.1"), None, None)).collect();
        let mut flood = Vec::new();
        for host in 0..=255 {
            flood.extend(enter(&lobby, 1, &format!("198.51.100.{host}")).await);
        }
        assert!(out(&honest).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn within_a_network_the_source_with_most_places_makes_room() {
        let lobby = lobby();
        let honest = lobby.enter(from("198.51.100.7"), None, None);
        let _flood = enter(&lobby, 100, "198.51.100.1").await;
        assert!(!is_out(&honest).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_one_site_are_one_source() {
        let lobby = lobby();
        let honest = lobby.enter(from("2001:db8:1::1"), None, None);
        let mut flood = Vec::new();
        for host in 0..100 {
            flood.extend(enter(&lobby, 1, &format!("2001:db8:2::{host}")).await);
        }
        assert!(!is_out(&honest).await);
        assert!(Source::of(from("2001:db8:2::1")) == Source::of(from("2001:db8:2::ffff:1")));
        assert!(Source::of(from("::ffff:192.0.2.1")) == Source::of(from("192.0.2.1")));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_a_unix_socket_are_one_source() {
        let lobby = lobby();
        let honest = lobby.enter(from("192.0.2.1"), None, None);
        let mut flood = Vec::new();
        for _ in 0..100 {
            lobby.room().await;
            flood.push(lobby.enter(Remote::Local, None, None));
        }
        assert!(!is_out(&honest).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_has_said_something_loses_nothing_to_silent_ones() {
        let lobby = lobby();
        let mut honest = lobby.enter(from("192.0.2.1"), None, None);
        honest.advance(Stage::Speaking);
        let _flood = enter(&lobby, 1_000, "192.0.2.1").await;
        assert!(!is_out(&honest).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_was_turned_out_and_has_said_something_by_then_goes_on() {
        let lobby = lobby();
        let mut honest = lobby.enter(from("192.0.2.1"), None, None);
        let _flood = enter(&lobby, 1_000, "192.0.2.1").await;
        assert_eq!(honest.unless_turned_out(std::future::ready(1)).await, Some(1));
        honest.advance(Stage::Speaking);
        assert!(!is_out(&honest).await);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_never_finish_message_1_take_places_from_each_other() {
        let lobby = lobby();
        let mut answered = lobby.enter(from("192.0.2.1"), None, None);
        answered.advance(Stage::Answered);
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let mut slow = lobby.enter(from("198.51.100.1"), None, None);
            slow.advance(Stage::Speaking);
            waiting.push(slow);
        }
        assert_eq!(out(&waiting).await.len(), 100 - PLACES / 8);
        assert!(!is_out(&answered).await);
    }

    fn answer(lobby: &Arc<Lobby>, count: usize, address: &str) -> Vec<LobbyPlace> {
        let answered = (0..count).map(|_| {
            let mut place = lobby.enter(from(address), None, None);
            place.advance(Stage::Answered);
            place
        });
        answered.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_that_were_answered_have_their_grace_no_more_is_accepted() {
        let lobby = lobby();
        let waiting = answer(&lobby, ANSWERED, "192.0.2.1");
        let start = Instant::now();
        lobby.room().await;
        assert_eq!(start.elapsed().as_secs(), ANSWERED_GRACE.as_secs());
        assert_eq!(out(&waiting).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_proves_the_key_makes_room_at_once() {
        let lobby = lobby();
        let mut waiting = answer(&lobby, ANSWERED, "192.0.2.1");
        let start = Instant::now();
        let room = tokio::spawn({
            let lobby = Arc::clone(&lobby);
            async move { lobby.room().await }
        });
        tokio::task::yield_now().await;
        waiting.pop();
        room.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 0);
        assert!(out(&waiting).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn recordings_of_one_source_make_room_before_the_peer_of_another() {
        let lobby = lobby();
        let honest = answer(&lobby, 1, "192.0.2.1");
        let recordings = answer(&lobby, ANSWERED - 1, "198.51.100.1");
        tokio::time::advance(ANSWERED_GRACE).await;
        lobby.room().await;
        assert!(out(&honest).await.is_empty());
        assert_eq!(out(&recordings).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_leaves_makes_room() {
        let lobby = lobby();
        let mut waiting = enter(&lobby, SILENT, "192.0.2.1").await;
        waiting.remove(SILENT / 2);
        let _newcomer = enter(&lobby, 1, "192.0.2.1").await;
        assert!(out(&waiting).await.is_empty());
        drop(waiting);
        assert_eq!(lobby.crowds().silent.taken, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn for_want_of_descriptors_a_silent_stranger_goes_first() {
        let lobby = lobby();
        let mut speaking = lobby.enter(from("192.0.2.1"), None, None);
        speaking.advance(Stage::Speaking);
        let silent = lobby.enter(from("192.0.2.2"), None, None);
        let answered = answer(&lobby, 1, "192.0.2.3");
        lobby.turn_one_out();
        assert!(is_out(&silent).await && !is_out(&speaking).await);
        lobby.turn_one_out();
        assert!(is_out(&speaking).await);
        lobby.turn_one_out();
        assert!(out(&answered).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_beyond_the_places_takes_that_of_the_source_with_the_most() {
        let lobby = lobby();
        lobby.set_idle_places(3);
        let crowd: Vec<_> = (0..2).map(|_| lobby.rest(from("192.0.2.1"))).collect();
        let _other = lobby.rest(from("198.51.100.1"));
        let _one_more = lobby.rest(from("203.0.113.1"));
        assert_eq!(out(&crowd).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_tunnels_take_no_places_from_strangers() {
        let lobby = lobby();
        let waiting = answer(&lobby, ANSWERED - 1, "192.0.2.1");
        let _idle: Vec<_> = (0..2 * PLACES).map(|_| lobby.rest(from("192.0.2.1"))).collect();
        let start = Instant::now();
        lobby.room().await;
        assert_eq!(start.elapsed().as_secs(), 0);
        assert!(out(&waiting).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn for_want_of_descriptors_an_idle_tunnel_goes_first() {
        let lobby = lobby();
        let waiting = [lobby.enter(from("192.0.2.1"), None, None)];
        let idle = [lobby.rest(from("192.0.2.2"))];
        lobby.turn_one_out();
        assert_eq!((out(&idle).await.len(), out(&waiting).await.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_close_its_connection_makes_room_for_the_next_that_is_to() {
        let lobby = lobby();
        lobby.set_parting_places(3);
        let parting: Vec<_> = (0..4).map(|_| lobby.part(from("192.0.2.1"))).collect();
        assert_eq!(out(&parting).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_whose_place_another_needs_has_one_among_those_that_are_to_close() {
        let lobby = lobby();
        lobby.set_idle_places(1);
        lobby.set_parting_places(1);
        let mut given_up = lobby.rest(from("192.0.2.1"));
        let _other = lobby.rest(from("192.0.2.1"));
        assert!(is_out(&given_up).await);
        given_up.part();
        assert!(!is_out(&given_up).await);
        let _one_more = lobby.part(from("192.0.2.1"));
        assert!(is_out(&given_up).await);
    }

    #[tokio::test(start_paused = true)]
    async fn for_want_of_descriptors_a_peer_goes_first_that_is_to_close_its_connection() {
        let lobby = lobby();
        let (idle, parting) = ([lobby.rest(from("192.0.2.1"))], [lobby.part(from("192.0.2.2"))]);
        lobby.turn_one_out();
        assert_eq!((out(&idle).await.len(), out(&parting).await.len()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_idle_tunnels_can_be_given_up_at_once() {
        let lobby = lobby();
        lobby.set_idle_places(9);
        let idle: Vec<_> = (0..9).map(|_| lobby.rest(from("192.0.2.1"))).collect();
        lobby.give_up_idle();
        assert_eq!(out(&idle).await.len(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_tunnels_that_are_given_up_at_once_have_their_places_until_they_have_closed() {
        let lobby = lobby();
        lobby.set_idle_places(9);
        lobby.set_parting_places(1);
        let mut idle: Vec<_> = (0..9).map(|_| lobby.rest(from("192.0.2.1"))).collect();
        lobby.give_up_idle();
        assert_eq!(out(&idle).await.len(), 9);
        idle.iter_mut().for_each(LobbyPlace::part);
        assert!(out(&idle).await.is_empty());
        // A new one needs a place.
        let _new = lobby.rest(from("192.0.2.1"));
        assert_eq!(out(&idle).await, [0]);
    }
}
