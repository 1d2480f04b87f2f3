//! How many connections each key carries at this moment, and when it last carried one.
//!
//! It is what an administrator has to know before an old key is taken away, and the log cannot tell it: a connection is
//! in the log when it has ended.

mod repeated;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

pub use self::repeated::Repeated;
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
    /// Counts a connection until what is returned is dropped.
    pub fn count(&self, key: Fingerprint) -> Counted<'_> {
        let mut by_key = self.lock();
        match by_key.iter_mut().find(|(other, _)| *other == key) {
            Some((_, connections)) => *connections += 1,
            None => by_key.push((key, 1)),
        }
        Counted { usage: self, key }
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

/// A connection that is counted.
pub struct Counted<'u> {
    usage: &'u Usage,
    key: Fingerprint,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut by_key = self.usage.lock();
        if let Some((_, connections)) = by_key.iter_mut().find(|(other, _)| *other == self.key) {
            *connections -= 1;
        }
        by_key.retain(|(_, connections)| *connections > 0);
        drop(by_key);
        self.usage.ends().insert(self.key, Timestamp::now());
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
        let first = usage.count(old);
        let _second = usage.count(new);
        let third = usage.count(old);
        assert_eq!(usage.to_string(), format!("3 connections ({old}: 2, {new}: 1)"));
        drop((first, third));
        assert_eq!(usage.to_string(), format!("1 connection ({new}: 1)"));
        assert_eq!(usage.by_key(), [(new, 1)]);
    }

    #[test]
    fn a_key_that_carries_was_last_used_now_and_any_other_when_its_last_connection_ended() {
        let (usage, old, new, idle) = (Usage::default(), fingerprint(1), fingerprint(2), fingerprint(3));
        usage.remember([(old, Timestamp::UNIX_EPOCH), (idle, Timestamp::UNIX_EPOCH)].into());
        let start = Timestamp::now();
        drop(usage.count(old));
        let end = Timestamp::now();
        let _running = usage.count(new);
        let last_used = usage.last_used();
        assert!((start..=end).contains(&last_used[&old]));
        assert!(last_used[&new] >= end);
        assert_eq!(last_used[&idle], Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn without_connections_no_key_is_named() {
        let usage = Usage::default();
        drop(usage.count(fingerprint(1)));
        assert_eq!(usage.to_string(), "no connections");
    }
}
