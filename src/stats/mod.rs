//! How many connections each key carries at this moment.
//!
//! It is what an administrator has to know before an old key is taken away, and the log cannot tell it: a connection is
//! in the log when it has ended.

mod repeated;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::repeated::Repeated;
use crate::proto::key::Fingerprint;

/// The established connections of a process, by key.
#[derive(Default)]
pub struct Usage {
    /// Only the keys that are in use, in the order in which they came to be. A list, since they are few.
    by_key: Mutex<Vec<(Fingerprint, usize)>>,
}

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
    fn without_connections_no_key_is_named() {
        let usage = Usage::default();
        drop(usage.count(fingerprint(1)));
        assert_eq!(usage.to_string(), "no connections");
    }
}
