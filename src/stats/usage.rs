//! How many connections each key carries at this moment, and when it last carried one.
//!
//! It is what an administrator has to know before an old key is taken away, and the log cannot tell it: a connection is
//! in the log when it has ended.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::proto::key::Fingerprint;

/// The established connections of a process, by key.
#[derive(Default)]
pub struct Usage {
    /// Only the keys that are in use, in the order in which they came to be. A list, since they are few.
    by_key: Mutex<Vec<(Fingerprint, usize)>>,
    /// When the last connection of a key ended.
    last_used: Mutex<LastUsed>,
}

/// When keys were last used, as far as is known.
pub type LastUsed = HashMap<Fingerprint, Timestamp>;

impl Usage {
    /// Counts one more connection of `key`, until its [`end`](Self::end).
    pub(super) fn begin(&self, key: Fingerprint) {
        let mut by_key = self.lock();
        match by_key.iter_mut().find(|(other, _)| *other == key) {
            Some((_, connections)) => *connections += 1,
            None => by_key.push((key, 1)),
        }
    }

    /// A connection of `key` has ended.
    pub(super) fn end(&self, key: Fingerprint) {
        let mut by_key = self.lock();
        if let Some((_, connections)) = by_key.iter_mut().find(|(other, _)| *other == key) {
            *connections -= 1;
        }
        by_key.retain(|(_, connections)| *connections > 0);
        drop(by_key);
        self.ends().insert(key, Timestamp::now());
    }

    /// The keys in use, each with how many connections it has.
    pub fn by_key(&self) -> Vec<(Fingerprint, usize)> {
        self.lock().clone()
    }

    /// What is known from another process, before this one has connections.
    pub fn remember(&self, last_used: LastUsed) {
        self.ends().extend(last_used);
    }

    /// When each key was last used: now, for those that are in use.
    pub fn last_used(&self) -> LastUsed {
        let now = Timestamp::now();
        let mut last_used = self.ends().clone();
        last_used.extend(self.by_key().into_iter().map(|(key, _)| (key, now)));
        last_used
    }

    fn ends(&self) -> MutexGuard<'_, LastUsed> {
        // A panic elsewhere leaves the map whole: every change to it is one call.
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Fingerprint, usize)>> {
        // A panic elsewhere leaves the list whole: every change to it is one call.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the service manager's status: `17 connections (7f3a-19c2: 15, 0b81-44e0: 2)`.
impl fmt::Display for Usage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_key = self.by_key();
        match by_key.iter().map(|(_, connections)| connections).sum() {
            0_usize => return formatter.write_str("no connections"),
            1 => formatter.write_str("1 connection")?,
            connections => write!(formatter, "{connections} connections")?,
        }
        for (place, (key, connections)) in by_key.iter().enumerate() {
            write!(formatter, "{}{key}: {connections}", if place == 0 { " (" } else { ", " })?;
        }
        formatter.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::key::Key;

    fn fingerprint(byte: u8) -> Fingerprint {
        Key::from_bytes(&[byte; 32]).unwrap().fingerprint()
    }

    #[test]
    fn connections_are_counted_by_key_as_long_as_they_live() {
        let (usage, old, new) = (Usage::default(), fingerprint(1), fingerprint(2));
        for key in [old, new, old] {
            usage.begin(key);
        }
        assert_eq!(usage.to_string(), format!("3 connections ({old}: 2, {new}: 1)"));
        usage.end(old);
        usage.end(old);
        assert_eq!(usage.to_string(), format!("1 connection ({new}: 1)"));
        assert_eq!(usage.by_key(), [(new, 1)]);
    }

    #[test]
    fn a_key_that_carries_was_last_used_now_and_any_other_when_its_last_connection_ended() {
        let (usage, old, new, idle) = (Usage::default(), fingerprint(1), fingerprint(2), fingerprint(3));
        usage.remember([(old, Timestamp::UNIX_EPOCH), (idle, Timestamp::UNIX_EPOCH)].into());
        let start = Timestamp::now();
        usage.begin(old);
        usage.end(old);
        let end = Timestamp::now();
        usage.begin(new);
        let last_used = usage.last_used();
        assert!((start..=end).contains(&last_used[&old]));
        assert!(last_used[&new] >= end);
        assert_eq!(last_used[&idle], Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn without_connections_no_key_is_named() {
        let usage = Usage::default();
        usage.begin(fingerprint(1));
        usage.end(fingerprint(1));
        assert_eq!(usage.to_string(), "no connections");
    }
}
