//! Host names become addresses, by the system's resolver: hosts file, nsswitch, search domains and all.
//!
//! getaddrinfo(3) knows no other way than to block, for half a minute where a DNS server does not answer. So look-ups are shared,
//! bounded in number, and kept apart from connections: a connection takes the last answer, which is looked up again in the
//! background (`-r`). Only a name that has never had one is waited for.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use vec1::Vec1;

/// The most look-ups at a time, each of which has a thread: a DNS server that is dead takes no more.
const LOOK_UPS: usize = 32;

/// A look-up that ended so lately answers those that ask for a new one: a crowd of failing connections is one question a second.
const RECENT: Duration = Duration::from_secs(1);

/// Why a name gives no address.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The resolver says no.
    #[error("cannot resolve '{host}': {source}")]
    Refused {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// The name exists and has no address.
    #[error("'{0}' has no address")]
    NoAddress(String),
}

/// One look-up may answer many connections.
impl Clone for ResolveError {
    fn clone(&self) -> Self {
        match self {
            Self::Refused { host, source } => {
                // An error of the resolver has no number of the system's to be kept.
                Self::Refused {
                    host: host.clone(),
                    source: io::Error::new(source.kind(), source.to_string()),
                }
            }
            Self::NoAddress(host) => Self::NoAddress(host.clone()),
        }
    }
}

/// How names are treated: pure data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// When a name is looked up again that has been found.
    pub refresh: Refresh,
    /// Of which family to try the addresses first; else in the order of the resolver (RFC 6724).
    pub prefer: Option<Family>,
    /// What the name of a source means that does not resolve.
    pub sources: Unresolved,
}

/// What it means that the name of a source does not resolve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unresolved {
    /// A mistake: there is no pipe.
    #[default]
    IsAnError,
    /// The source is listened on once it does (`-D`).
    Waits,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { refresh: Refresh::Every(Self::INTERVAL), prefer: None, sources: Unresolved::IsAnError }
    }
}

impl Lookup {
    /// The time between look-ups by default, as spiped has it.
    pub const INTERVAL: Duration = Duration::from_secs(60);
}

/// When a name is looked up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// This often, and when its addresses cannot be connected to (`-r`).
    Every(Duration),
    /// Not at all (`-R`).
    Never,
}

/// A family of addresses (`--prefer`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Whether `address` is one of the family.
    pub fn has(self, address: &SocketAddr) -> bool {
        address.is_ipv4() == (self == Self::Ipv4)
    }
}

impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ipv4" => Ok(Self::Ipv4),
            "ipv6" => Ok(Self::Ipv6),
            _ => Err(format!("'{text}' is no family of addresses; write ipv4 or ipv6")),
        }
    }
}

/// The addresses of a name, without a port.
type Answer = Result<Vec1<SocketAddr>, ResolveError>;

/// The names that the pipes of a process look up.
pub struct Names {
    by_host: Mutex<HashMap<String, Arc<Name>>>,
    look_ups: Arc<Semaphore>,
    counts: Arc<Counts>,
}

/// How many look-ups have ended, by how they did.
#[derive(Default)]
struct Counts {
    found: AtomicU64,
    failed: AtomicU64,
}

impl Default for Names {
    fn default() -> Self {
        let look_ups = Arc::new(Semaphore::new(LOOK_UPS));
        Self { by_host: Mutex::default(), look_ups, counts: Arc::default() }
    }
}

/// What is known of one name.
struct Name {
    host: String,
    state: Mutex<State>,
    /// Told when a look-up has ended.
    looked_up: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// The last answer that had addresses.
    known: Option<Vec1<SocketAddr>>,
    /// What the last look-up gave, and when.
    last: Option<(Answer, Instant)>,
    is_being_looked_up: bool,
}

impl Names {
    /// The addresses of `host`, with `port`: the last ones that are known, or those that a look-up gives.
    ///
    /// # Errors
    /// [`ResolveError`], when none are known and the look-up gives none.
    pub(crate) async fn addresses(&self, host: &str, port: u16) -> Result<Vec1<SocketAddr>, ResolveError> {
        let name = self.name(host);
        let known = name.state().known.clone();
        let addresses = match known {
            Some(known) => known,
            None => self.look_up(&name, RECENT).await?,
        };
        Ok(with_port(addresses, port))
    }

    /// The addresses of `host` as they are now, with `port`, for a connection that the last ones were of no use to. Those that a
    /// look-up gave a moment ago will do.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub(crate) async fn addresses_anew(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec1<SocketAddr>, ResolveError> {
        self.look_up(&self.name(host), RECENT).await.map(|addresses| with_port(addresses, port))
    }

    /// Looks `host` up now and again, until what is given is dropped.
    pub(crate) fn keep_fresh(self: &Arc<Self>, host: &str, every: Duration) -> Refreshing {
        let (names, name) = (Arc::clone(self), self.name(host));
        Refreshing(tokio::spawn(async move {
            loop {
                // A name that has never had an address is one that somebody may be about to set up.
                let pause = match names.look_up(&name, RECENT.min(every)).await {
                    Ok(_) => every,
                    Err(_) if name.state().known.is_some() => every,
                    Err(_) => every.min(5 * RECENT),
                };
                sleep(pause).await;
            }
        }))
    }

    /// How many look-ups there were in the background that found addresses, and how many that failed.
    pub fn look_ups(&self) -> (u64, u64) {
        let [found, failed] =
            [&self.counts.found, &self.counts.failed].map(|count| count.load(Ordering::Relaxed));
        (found, failed)
    }

    /// The addresses of `host` that connections take now. None, if none were ever found.
    pub fn known(&self, host: &str) -> Option<Vec1<SocketAddr>> {
        self.by_host().get(host)?.state().known.clone()
    }

    /// Forgets all names but these.
    pub(crate) fn keep_only(&self, hosts: &HashSet<&str>) {
        self.by_host().retain(|host, _| hosts.contains(&**host));
    }

    fn name(&self, host: &str) -> Arc<Name> {
        let mut by_host = self.by_host();
        if let Some(name) = by_host.get(host) {
            return Arc::clone(name);
        }
        let (state, looked_up) = (Mutex::default(), watch::Sender::default());
        let name = Arc::new(Name { host: host.to_owned(), state, looked_up });
        by_host.insert(host.to_owned(), Arc::clone(&name));
        name
    }

    /// Looks `name` up, or joins a look-up of it that is under way, or takes the answer of one that is younger than `recent`.
    async fn look_up(&self, name: &Arc<Name>, recent: Duration) -> Answer {
        let mut looked_up = name.looked_up.subscribe();
        {
            let mut state = name.state();
            match &state.last {
                Some((answer, at)) if !state.is_being_looked_up && at.elapsed() < recent => {
                    return answer.clone();
                }
                _ => {}
            }
            if !state.is_being_looked_up {
                state.is_being_looked_up = true;
                // In a task of its own: it goes on for the others, and for later, when this connection is given up.
                tokio::spawn(Arc::clone(name).look_up(Arc::clone(&self.look_ups), Arc::clone(&self.counts)));
            }
        }
        let _sender_lives = looked_up.changed().await;
        let (answer, _) = name.state().last.clone().expect("a look-up has ended");
        answer
    }

    fn by_host(&self) -> MutexGuard<'_, HashMap<String, Arc<Name>>> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.by_host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Name {
    async fn look_up(self: Arc<Self>, look_ups: Arc<Semaphore>, counts: Arc<Counts>) {
        let _turn = look_ups.acquire().await.expect("the semaphore is never closed");
        let host = self.host.clone();
        let answer = tokio::task::spawn_blocking(move || resolve_blocking(&host, 0)).await;
        let answer = answer.unwrap_or_else(|panic| {
            Err(ResolveError::Refused { host: self.host.clone(), source: io::Error::other(panic) })
        });
        if answer.is_ok() { &counts.found } else { &counts.failed }.fetch_add(1, Ordering::Relaxed);
        self.note(answer);
        self.looked_up.send_replace(());
    }

    /// Keeps `answer`, and has the log tell what it changes.
    fn note(&self, answer: Answer) {
        let mut state = self.state();
        let name = &self.host;
        let was_refused = state.last.as_ref().is_some_and(|(last, _)| last.is_err());
        match &answer {
            Ok(addresses) => {
                if was_refused {
                    info!(name, "the name can be looked up again");
                }
                if let Some(known) = &state.known
                    && as_set(known) != as_set(addresses)
                {
                    let [before, now] = [known, addresses].map(list);
                    info!(name, before, now, "the name has other addresses");
                }
                state.known = Some(addresses.clone());
            }
            Err(error) if !was_refused => {
                let reason = error.to_string();
                if state.known.is_some() {
                    warn!(name, reason, "the name cannot be looked up; its last addresses are used");
                } else {
                    warn!(name, reason, "the name cannot be looked up");
                }
            }
            Err(_) => {}
        }
        state.last = Some((answer, Instant::now()));
        state.is_being_looked_up = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: every change to it is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is looked up in the background, as long as this lives.
pub(crate) struct Refreshing(JoinHandle<()>);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn with_port(addresses: Vec1<SocketAddr>, port: u16) -> Vec1<SocketAddr> {
    addresses.mapped(|mut address| {
        address.set_port(port);
        address
    })
}

/// DNS servers shuffle their answers.
fn as_set(addresses: &Vec1<SocketAddr>) -> HashSet<SocketAddr> {
    addresses.iter().copied().collect()
}

fn list(addresses: &Vec1<SocketAddr>) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}

/// Whether `host` has an address at this moment. Blocks.
pub(crate) fn resolves(host: &str) -> bool {
    resolve_blocking(host, 0).is_ok()
}

/// Looks up at once, where there is no runtime.
///
/// # Errors
/// [`ResolveError`].
pub(crate) fn resolve_blocking(host: &str, port: u16) -> Result<Vec1<SocketAddr>, ResolveError> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|source| ResolveError::Refused { host: host.to_owned(), source })?;
    Vec1::try_from_vec(found.collect()).map_err(|_| ResolveError::NoAddress(host.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_known_name_is_not_waited_for() {
        let names = Names::default();
        let known = names.addresses("localhost", 80).await.unwrap();
        names.look_ups.forget_permits(LOOK_UPS);
        assert_eq!(names.addresses("localhost", 80).await.unwrap(), known);
        assert_eq!(names.addresses("localhost", 81).await.unwrap().first().port(), 81);
    }

    #[tokio::test]
    async fn many_that_ask_at_once_share_a_look_up() {
        let names = Arc::new(Names::default());
        // One at a time, so that a second look-up would show.
        names.look_ups.forget_permits(LOOK_UPS - 1);
        let turn = Arc::clone(&names.look_ups).acquire_owned().await.unwrap();
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let names = Arc::clone(&names);
                tokio::spawn(async move { names.addresses("localhost", 1).await.is_ok() })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(names.name("localhost").state().is_being_looked_up);
        drop(turn);
        for asked in asking {
            assert!(asked.await.unwrap());
        }
    }

    #[tokio::test]
    async fn the_last_answer_is_used_while_the_name_cannot_be_looked_up() {
        let names = Names::default();
        let known = names.addresses("localhost", 80).await.unwrap();
        let refused = ResolveError::NoAddress("localhost".to_owned());
        names.name("localhost").note(Err(refused));
        assert_eq!(names.addresses("localhost", 80).await.unwrap(), known);
        assert!(names.addresses_anew("localhost", 80).await.is_err(), "it was looked up a moment ago");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_as_often_as_asked_also_within_a_second() {
        let names = Arc::new(Names::default());
        let _refreshing = names.keep_fresh("localhost", Duration::from_millis(200));
        sleep(Duration::from_millis(1_100)).await;
        assert_eq!(names.look_ups(), (6, 0));
    }

    #[tokio::test]
    async fn a_name_that_is_used_no_more_is_forgotten() {
        let names = Names::default();
        names.addresses("localhost", 80).await.unwrap();
        names.keep_only(&HashSet::from(["example.com"]));
        assert!(names.by_host().is_empty());
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_an_error_that_names_it() {
        let error = Names::default().addresses("name.invalid", 80).await.unwrap_err();
        assert!(error.to_string().contains("'name.invalid'"), "{error}");
        assert_eq!(error.clone().to_string(), error.to_string());
    }
}
