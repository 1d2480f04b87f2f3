//! What the holders of one key may do (`[[key]]` in a file).
//!
//! A key is the identity of whoever holds it, so its rules are the same for all pipes of the process that accept it, and what its
//! holders have is counted for all of these together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;

use super::access::Access;
use super::quota::{Exceeded, Quota, Spent};
use crate::stream::Remote;

/// What the holders of a key may do: pure data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRules {
    /// Where they may be.
    pub access: Access,
    /// How much they may have, all together.
    pub quota: Quota,
    /// From when on the key is refused.
    pub expires: Option<Timestamp>,
}

/// Why a peer may not be here, although it has proved the key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyRefused {
    /// It is too late.
    #[error("its key expired at {0}; give it a new one")]
    Expired(Timestamp),
    /// A reload has ended all connections of the key.
    #[error("its key is not accepted any more")]
    Revoked,
    /// It is in the wrong place.
    #[error("its address may not use this key (allow)")]
    Address,
    /// There are connections enough.
    #[error("its key has as many connections as it may (max-connections)")]
    Connections,
    /// They come too fast.
    #[error("its key makes new connections faster than it may (rate)")]
    Rate,
}

impl From<Exceeded> for KeyRefused {
    fn from(exceeded: Exceeded) -> Self {
        match exceeded {
            Exceeded::Connections => Self::Connections,
            Exceeded::Rate => Self::Rate,
        }
    }
}

/// What holders of one key have been admitted to. It belongs to the process, so that it outlives a reload.
pub(crate) struct OfKey(Mutex<State>);

struct State {
    rules: KeyRules,
    /// Counted also where nothing is limited: a reload may set a limit.
    spent: Spent,
    is_revoked: bool,
}

impl OfKey {
    pub(crate) fn new(rules: KeyRules) -> Self {
        let spent = Spent::new(rules.quota, Instant::now());
        Self(Mutex::new(State { rules, spent, is_revoked: false }))
    }

    /// Has `rules` hold from now on; the connections that are there count.
    pub(crate) fn accept(&self, rules: KeyRules) {
        let mut state = self.state();
        state.is_revoked = false;
        if state.rules != rules {
            let now = Instant::now();
            if state.rules.quota.rate != rules.quota.rate {
                state.spent.renew_allowance(rules.quota, now);
            }
            state.rules = rules;
        }
    }

    /// Refuses also those that are on their way in.
    pub(crate) fn revoke(&self) {
        self.state().is_revoked = true;
    }

    /// Whether the key can be used now, wherever.
    ///
    /// # Errors
    /// [`KeyRefused`].
    pub(super) fn check(&self) -> Result<(), KeyRefused> {
        self.state().check()
    }

    /// Counts one more connection, from `remote`, until what is given is dropped.
    ///
    /// # Errors
    /// [`KeyRefused`].
    pub(super) fn enter(self: &Arc<Self>, remote: Remote) -> Result<Entered, KeyRefused> {
        let mut state = self.state();
        state.check()?;
        if !state.rules.access.admits(remote) {
            return Err(KeyRefused::Address);
        }
        let quota = state.rules.quota;
        state.spent.take(quota, Instant::now())?;
        Ok(Entered(Arc::clone(self)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: every change to it is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), KeyRefused> {
        match self.rules.expires {
            Some(expires) if expires <= Timestamp::now() => Err(KeyRefused::Expired(expires)),
            _ if self.is_revoked => Err(KeyRefused::Revoked),
            _ => Ok(()),
        }
    }
}

/// A connection, counted at its key until this is dropped.
pub(super) struct Entered(Arc<OfKey>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.state().spent.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::time::Duration;

    use jiff::SignedDuration;

    use super::*;

    fn rules(connections: u32, rate: u32) -> KeyRules {
        let quota = Quota { connections: NonZero::new(connections), rate: NonZero::new(rate) };
        KeyRules { quota, ..KeyRules::default() }
    }

    fn of(rules: KeyRules) -> Arc<OfKey> {
        Arc::new(OfKey::new(rules))
    }

    fn enter(key: &Arc<OfKey>) -> Result<Entered, KeyRefused> {
        key.enter(Remote::Local)
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_a_reload_sets_counts_the_connections_that_were_there_before() {
        let key = of(KeyRules::default());
        let mut running = [(); 3].map(|()| Some(enter(&key).unwrap()));
        key.accept(rules(3, 0));
        assert_eq!(enter(&key).err(), Some(KeyRefused::Connections));
        running[0] = None;
        assert!(enter(&key).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_that_a_reload_sets_gives_what_comes_in_a_second() {
        let key = of(KeyRules::default());
        key.accept(rules(0, 2));
        drop([enter(&key).unwrap(), enter(&key).unwrap()]);
        assert_eq!(enter(&key).err(), Some(KeyRefused::Rate));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(enter(&key).is_ok() && enter(&key).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_that_changes_nothing_gives_no_new_allowance() {
        let key = of(rules(0, 1));
        drop(enter(&key).unwrap());
        key.accept(rules(0, 1));
        assert_eq!(enter(&key).err(), Some(KeyRefused::Rate));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_in_the_wrong_place_takes_nothing_of_the_rate() {
        let access = Access::new(Some(vec!["192.0.2.0/24".parse().unwrap()]), Vec::new());
        let key = of(KeyRules { access, ..rules(0, 1) });
        let from = |ip: &str| key.enter(Remote::Ip(ip.parse().unwrap(), 1)).map(drop);
        assert_eq!(from("198.51.100.1"), Err(KeyRefused::Address));
        assert_eq!(from("192.0.2.1"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_refused_from_the_moment_that_it_expires() {
        let after = |seconds| Timestamp::now() + SignedDuration::from_secs(seconds);
        let until = |expires| of(KeyRules { expires: Some(expires), ..KeyRules::default() });
        assert!(enter(&until(after(3_600))).is_ok());
        let past = after(-1);
        assert_eq!(enter(&until(past)).err(), Some(KeyRefused::Expired(past)));
        assert_eq!(until(past).check(), Err(KeyRefused::Expired(past)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_key_is_refused_until_it_is_accepted_again() {
        let key = of(KeyRules::default());
        key.revoke();
        assert_eq!(enter(&key).err(), Some(KeyRefused::Revoked));
        key.accept(KeyRules::default());
        assert!(enter(&key).is_ok());
    }
}
