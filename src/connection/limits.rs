//! How long a connection may go on, although nothing is wrong with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::time::{Instant, Sleep};

use super::clock::sleep;
use crate::pump::{TimeLimit, Waiting};

/// How long a connection may go on: pure data. None is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Without a byte of either direction (`--idle-timeout`).
    pub idle: Option<Duration>,
    /// The same, once one direction has ended (`--half-close-timeout`). None is the same as before.
    pub half_closed: Option<Duration>,
    /// From its admission on (`--max-lifetime`), less up to a tenth.
    pub lifetime: Option<Duration>,
}

/// The limits of one connection, and how far it is.
///
/// It looks at the time when a timer has run out, and not at each byte: that would cost a busy connection more than all else here.
/// So there is one timer, and at most one wake-up in the time of the limit.
pub(super) struct Timekeeper {
    limits: Limits,
    /// When its lifetime is over.
    expires: Option<Instant>,
    /// Bytes that were carried when last looked.
    carried: u64,
    /// Whether one direction had ended.
    is_half_closed: bool,
    /// Since when no more were.
    quiet_since: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Timekeeper {
    /// None without a limit, so that nothing has to be looked at. The connection was admitted when it `started`.
    pub(super) fn of(limits: Limits, started: Instant) -> Option<Box<Self>> {
        let is_limited = limits != Limits::default();
        is_limited.then(|| {
            let expires = limits.lifetime.map(|lifetime| started + shortened(lifetime));
            let quiet_since = Instant::now();
            Box::new(Self { limits, expires, carried: 0, is_half_closed: false, quiet_since, alarm: None })
        })
    }

    /// Gives the limit that is reached. To be polled whenever the connection has done what there was to do.
    pub(super) fn poll<L, W>(
        &mut self,
        context: &mut Context<'_>,
        waiting: &Waiting<'_, L, W>,
    ) -> Poll<TimeLimit> {
        let carried = waiting.sealed + waiting.opened;
        if self.carried != carried {
            self.carried = carried;
            self.quiet_since = Instant::now();
        }
        if !self.is_half_closed && (waiting.local_has_ended || waiting.wire_has_ended) {
            // An end is a word, too. The limit that counts from here on may be the shorter one.
            self.is_half_closed = true;
            self.quiet_since = Instant::now();
            self.alarm = None;
        }
        loop {
            let Some((due, limit)) = self.next() else { return Poll::Pending };
            let until_due = || Box::pin(sleep(due.saturating_duration_since(Instant::now())));
            let alarm = self.alarm.get_or_insert_with(until_due);
            ready!(alarm.as_mut().poll(context));
            if Instant::now() >= due {
                return Poll::Ready(limit);
            }
            // Bytes were carried meanwhile.
            alarm.as_mut().reset(due);
        }
    }

    /// The limit that comes next, and when.
    fn next(&self) -> Option<(Instant, TimeLimit)> {
        let Limits { idle, half_closed, .. } = self.limits;
        let quiet = match half_closed.filter(|_| self.is_half_closed) {
            Some(half_closed) => Some((half_closed, TimeLimit::HalfClosed(half_closed))),
            None => idle.map(|idle| (idle, TimeLimit::Idle(idle))),
        };
        let quiet = quiet.map(|(time, limit)| (self.quiet_since + time, limit));
        let expires = self.expires.map(|expires| (expires, TimeLimit::Lifetime));
        quiet.into_iter().chain(expires).min_by_key(|(due, _)| *due)
    }
}

/// 90 to 100 % of `lifetime`, at random. Connections that began together, as they do when a service has been restarted, would else
/// end together, and come back together, for ever.
fn shortened(lifetime: Duration) -> Duration {
    // Without randomness, all of it: that is no reason to have no limit.
    let random = SysRng.try_next_u32().unwrap_or(u32::MAX);
    lifetime.mul_f64(0.9 + 0.1 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_spread_over_the_last_tenth() {
        let whole = Duration::from_secs(1_000);
        let mut times: Vec<_> = (0..1_000).map(|_| shortened(whole).as_secs()).collect();
        times.sort_unstable();
        assert!(times[0] >= 900 && times[999] <= 1_000, "{} to {}", times[0], times[999]);
        times.dedup();
        // Of the hundred seconds, as good as each has one.
        assert!(times.len() > 90, "only {} different seconds", times.len());
    }

    #[test]
    fn without_a_limit_there_is_nothing_to_keep() {
        assert!(Timekeeper::of(Limits::default(), Instant::now()).is_none());
    }
}
