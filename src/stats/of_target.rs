//! What is counted at one target of a pipe.

use std::time::Duration;

use super::Histogram;
use super::causes::{Kinds, PerKind, kinds};

kinds! {
    /// What became of an attempt to connect to a target, of clients and of checks.
    DialResult {
        /// A connection.
        Connected = "connected",
        /// It was refused, or the target cannot be reached.
        Refused = "refused",
        /// No answer came in time.
        Timeout = "timeout",
        /// Its name has no address.
        Unresolved = "unresolved",
        /// The proxy before it did not lead there.
        Proxy = "proxy",
        /// There was no TLS with it, or the wrong certificate.
        Tls = "tls",
        /// Something is lacking at this end: descriptors, ports, an interface.
        Local = "local",
    }
}

/// What is counted at one target of a pipe.
#[derive(Default)]
pub struct OfTarget {
    dials: PerKind<{ DialResult::ALL.len() }>,
    /// How long it took to connect, where that succeeded.
    pub times: Histogram,
}

impl OfTarget {
    /// Counts an attempt.
    pub fn count(&self, result: DialResult, time: Duration) {
        self.dials.count(result);
        if result == DialResult::Connected {
            self.times.count(time);
        }
    }

    /// How many attempts had this result.
    pub fn dials(&self, result: DialResult) -> u64 {
        self.dials.get(result)
    }
}
