//! How long a connection may go on, although nothing is wrong with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

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
}

/// The limits of one connection, and how far it is.
///
/// It looks at the time when a timer has run out, and not at each byte: that would cost a busy connection more than all else here.
/// So there is one timer, and at most one wake-up in the time of the limit.
pub(super) struct Timekeeper {
    limits: Limits,
    /// Bytes that were carried when last looked.
    carried: u64,
    /// Whether one direction had ended.
    is_half_closed: bool,
    /// Since when no more were.
    quiet_since: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Timekeeper {
    /// None without a limit, so that nothing has to be looked at.
    pub(super) fn of(limits: Limits) -> Option<Box<Self>> {
        let is_limited = limits != Limits::default();
        is_limited.then(|| {
            let quiet_since = Instant::now();
            Box::new(Self { limits, carried: 0, is_half_closed: false, quiet_since, alarm: None })
        })
    }

    /// Gives the limit that is reached. To be polled whenever the connection has done what there was to do.
    pub(super) fn poll<L, W>(
        &mut self,
        context: &mut Context<'_>,
        waiting: &Waiting<'_, L, W>,
    ) -> Poll<TimeLimit> {
        if self.carried != waiting.carried {
            self.carried = waiting.carried;
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
        let Limits { idle, half_closed } = self.limits;
        let (quiet, limit) = match half_closed.filter(|_| self.is_half_closed) {
            Some(half_closed) => (half_closed, TimeLimit::HalfClosed(half_closed)),
            None => idle.map(|idle| (idle, TimeLimit::Idle(idle)))?,
        };
        Some((self.quiet_since + quiet, limit))
    }
}
