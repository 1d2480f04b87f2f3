//! What ends a connection that no read and no write would end: nobody reads a side that has said all it has, and nobody waits
//! for the acknowledgement of what was sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

use super::Common;
use super::clock::sleep;
use super::limits::Timekeeper;
use crate::pump::{PumpError, Waiting};
use crate::stream::{Answer, Keepalive, Reader, Socket};

/// So many looks in a row that find an answer due are enough: with the one at which it was not due for long enough, and the
/// longest pause of the kernel's probes, they fit into the eight steps of the limit.
const LOOKS: u8 = 6;

/// The watch on one connection. Idle, it costs neither memory of its own nor wake-ups.
pub(super) struct Watch<'s> {
    keepalive: &'s Keepalive,
    /// Ends when the connection is to be reset, since its target is down. None for most connections.
    down: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Ends when the local side is reset; made when nobody reads that any more. In a box, since few connections need it.
    reset: Option<Pin<Box<dyn Future<Output = ()> + Send + 's>>>,
    /// Until the next look. None while nothing is under way.
    step: Option<Pin<Box<Sleep>>>,
    /// None without a limit on the connection's time. In a box, since few pipes have one.
    time: Option<Box<Timekeeper>>,
    /// Whether something has happened since the last look.
    is_stirred: bool,
    local: Unanswered,
    wire: Unanswered,
}

impl<'s> Watch<'s> {
    /// A watch on a connection that was admitted when it `started`. It also ends the connection when `down` does.
    pub(super) fn new(
        common: &'s Common,
        started: Instant,
        down: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ) -> Self {
        let (local, wire) = (Unanswered(0), Unanswered(0));
        let (keepalive, time) = (&common.keepalive, Timekeeper::of(common.limits, started));
        Self { keepalive, down, reset: None, step: None, time, is_stirred: false, local, wire }
    }

    /// To be polled whenever the connection has done what there was to do.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        waiting: &Waiting<'_, Reader<'s>, Reader<'s>>,
    ) -> Poll<PumpError> {
        if let Some(down) = &mut self.down
            && down.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(PumpError::TargetDown);
        }
        if let Some(time) = &mut self.time
            && let Poll::Ready(limit) = time.poll(context, waiting)
        {
            return Poll::Ready(limit.into());
        }
        let (local, wire) = (waiting.local.socket(), waiting.wire.socket());
        if waiting.local_has_ended
            && let Some(local) = local
        {
            let reset = self.reset.get_or_insert_with(|| Box::pin(local.reset()));
            if reset.as_mut().poll(context).is_ready() {
                return Poll::Ready(PumpError::Local(local.error()));
            }
        }
        let step = self.keepalive.step();
        loop {
            let until = self.step.get_or_insert_with(|| Box::pin(sleep(step)));
            if until.as_mut().poll(context).is_pending() {
                self.is_stirred = true;
                return Poll::Pending;
            }
            until.as_mut().reset(Instant::now() + step);
            let ask = |socket: Option<Socket<'_>>, has_ended| {
                socket.map_or(Answer::NotDue, |socket| socket.answer(step, has_ended))
            };
            let (local, wire) = (ask(local, waiting.local_has_ended), ask(wire, false));
            if self.local.is_dead(local) {
                return Poll::Ready(PumpError::Local(self.no_answer()));
            }
            if self.wire.is_dead(wire) {
                return Poll::Ready(PumpError::Wire(self.no_answer()));
            }
            let is_quiet = !self.is_stirred && (local, wire) == (Answer::NotDue, Answer::NotDue);
            self.is_stirred = false;
            if is_quiet {
                // The next byte stirs it again; until then, keep-alive asks.
                self.step = None;
                return Poll::Pending;
            }
            ready!(until.as_mut().poll(context));
        }
    }

    fn no_answer(&self) -> io::Error {
        let seconds = self.keepalive.dead_after.as_secs();
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {seconds} s (--dead-after)"))
    }
}

/// How many looks in a row have found that an answer is due.
struct Unanswered(u8);

impl Unanswered {
    fn is_dead(&mut self, answer: Answer) -> bool {
        self.0 = if answer == Answer::Due { self.0 + 1 } else { 0 };
        self.0 >= LOOKS
    }
}
