//! How much somebody may have: connections at a time, and new ones a second.

use std::num::NonZero;

use tokio::time::Instant;

/// What one source, or one key, may have: pure data. None is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// The most connections at a time.
    pub connections: Option<NonZero<u32>>,
    /// The most new connections a second. As many may come at once.
    pub rate: Option<NonZero<u32>>,
}

/// Why there may not be one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Connections,
    Rate,
}

/// What somebody has had of a quota.
pub(super) struct Spent {
    connections: u32,
    /// New connections that there may be at `at`; more with each second.
    allowance: f64,
    at: Instant,
}

impl Spent {
    /// Nothing.
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        Self { connections: 0, allowance: quota.rate.map_or(0.0, |rate| rate.get().into()), at: now }
    }

    /// Takes one more connection.
    ///
    /// # Errors
    /// [`Exceeded`], if there may not be one.
    pub(super) fn take(&mut self, quota: Quota, now: Instant) -> Result<(), Exceeded> {
        if quota.connections.is_some_and(|max| self.connections >= max.get()) {
            return Err(Exceeded::Connections);
        }
        if quota.rate.is_some() {
            self.refill(quota, now);
            if self.allowance < 1.0 {
                return Err(Exceeded::Rate);
            }
            self.allowance -= 1.0;
        }
        self.connections += 1;
        Ok(())
    }

    /// Gives as many new connections as `quota` has for a second: the rate is another one from now on.
    pub(super) fn renew_allowance(&mut self, quota: Quota, now: Instant) {
        *self = Self { connections: self.connections, ..Self::new(quota, now) };
    }

    /// A connection has ended.
    pub(super) fn give_back(&mut self) {
        self.connections -= 1;
    }

    pub(super) fn has_connections(&self) -> bool {
        self.connections > 0
    }

    /// Whether there may be as many new connections as there ever may.
    pub(super) fn is_refilled(&mut self, quota: Quota, now: Instant) -> bool {
        self.refill(quota, now);
        quota.rate.is_none_or(|rate| self.allowance >= f64::from(rate.get()))
    }

    fn refill(&mut self, quota: Quota, now: Instant) {
        if let Some(rate) = quota.rate {
            let rate = f64::from(rate.get());
            self.allowance = (self.allowance + (now - self.at).as_secs_f64() * rate).min(rate);
            self.at = now;
        }
    }
}
