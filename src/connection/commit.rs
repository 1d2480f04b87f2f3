//! Until a responder's target stands, an initiator with several responders can give the client to another one: it keeps a copy of
//! what the client has said.
//!
//! No byte is given to two targets. *Abort* before any other frame says that the target has seen nothing: a responder reads the
//! client's bytes for nobody but a target that it has connected to (PROTOCOL.md, T2). A wire that breaks says nothing of the
//! kind, so then another responder is tried only if no byte of the client was sealed.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::Common;
use super::watch::Watch;
use crate::proto::features::Features;
use crate::proto::frame::AbortReason;
use crate::pump::{PumpError, Waiting};
use crate::stream::{ReadVectored, Reader, Stream};
use crate::tunnel::Tunnel;

/// The most bytes of a client that are kept: more than a request, and as much as a new TCP connection brings before it is
/// answered. What a client says beyond waits for the responder's acknowledgement.
const KEPT_MAX: usize = 64 * 1024;

/// What a client has said before a responder's target stands.
#[derive(Default)]
pub(super) struct FirstBytes {
    bytes: Vec<u8>,
}

/// What a responder gets of a client before its first frame.
#[derive(Clone, Copy)]
pub(super) enum Hold {
    /// All that the client says.
    Nothing,
    /// Not a byte, so that another one may have the client whatever happens, at the latest then.
    UntilOpened(Instant),
}

/// What has become of a client and one responder.
pub(super) enum Committed {
    /// The connection is this responder's for good.
    Yes,
    /// The target there has seen nothing of the client, and another responder may have it.
    PassedOver(PumpError),
    /// The connection failed, and it is not known what the target has seen.
    Failed(PumpError),
}

impl FirstBytes {
    /// Whether a responder has to get what was kept.
    pub(super) fn has_some(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Carries `local` to the responder behind `tunnel` until it is known whether the client stays there. What was kept from
    /// earlier responders goes first. The connection was admitted when it `started`.
    pub(super) async fn commit(
        &mut self,
        local: &mut Stream,
        tunnel: &mut Tunnel,
        common: &Common,
        started: Instant,
        hold: Hold,
    ) -> Committed {
        let Tunnel { seal, open, wire, features, .. } = tunnel;
        let (reader, _writer) = local.split();
        let (mut wire_reader, mut wire_writer) = wire.split();
        let full = if features.have(Features::ACKNOWLEDGEMENT) { Full::Waits } else { Full::GivesUp };
        let kept = match hold {
            Hold::Nothing => self.bytes.len(),
            Hold::UntilOpened(_) => 0,
        };
        let mut client = Copying { reader, first: self, replayed: 0, hold, full, has_given_up: false };
        let mut late = match hold {
            Hold::Nothing => None,
            Hold::UntilOpened(deadline) => Some(pin!(sleep_until(deadline))),
        };
        let mut watch = Watch::new(common, started, None);
        let (mut begun, mut has_ended) = (false, false);
        let opened = poll_fn(|context| {
            if !begun {
                begun = true;
                // All that was kept shares a write with Open: there is room for it.
                if let Poll::Ready(Err(error)) = seal.poll_fill(context, &mut client) {
                    return Poll::Ready(Err(error));
                }
                debug_assert!(client.replayed >= kept, "a buffer has room for all that is kept");
            }
            // Asked first: what it says may be why the other direction fails.
            if let Poll::Ready(opened) = open.poll_first(context, &mut wire_reader) {
                return Poll::Ready(opened);
            }
            if !has_ended && let Poll::Ready(sealed) = seal.poll(context, &mut client, &mut wire_writer) {
                sealed?;
                has_ended = true;
            }
            if client.has_given_up {
                return Poll::Ready(Ok(()));
            }
            if let Some(late) = &mut late
                && late.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Err(PumpError::Wire(io::ErrorKind::TimedOut.into())));
            }
            let waiting = Waiting {
                local: &client.reader,
                local_has_ended: has_ended,
                wire: &wire_reader,
                wire_has_ended: false,
                sealed: seal.bytes(),
                opened: open.bytes(),
            };
            watch.poll(context, &waiting).map(Err)
        })
        .await;
        match opened {
            Ok(()) => Committed::Yes,
            Err(error) if has_seen_nothing(&error, *features, seal.bytes()) => Committed::PassedOver(error),
            Err(error) => Committed::Failed(error),
        }
    }
}

/// Whether a target has seen nothing of a client of which so many bytes were `sealed`, when `error` came instead of the first
/// frame.
fn has_seen_nothing(error: &PumpError, features: Features, sealed: u64) -> bool {
    match error {
        PumpError::Aborted(AbortReason::TargetUnreachable | AbortReason::Busy) => true,
        // A target that stood would have been acknowledged before.
        PumpError::Aborted(_) => features.have(Features::ACKNOWLEDGEMENT),
        PumpError::Wire(_) | PumpError::Truncated => sealed == 0,
        _ => false,
    }
}

/// What happens when no more can be kept.
#[derive(Clone, Copy)]
enum Full {
    /// The client waits: an acknowledgement will come.
    Waits,
    /// Nothing is kept any more: an older responder acknowledges nothing, and its target may wait for all that the client says.
    GivesUp,
}

/// Reads from a client, and keeps a copy.
struct Copying<'c> {
    reader: Reader<'c>,
    first: &'c mut FirstBytes,
    /// Of what was kept, what this responder has got.
    replayed: usize,
    hold: Hold,
    full: Full,
    has_given_up: bool,
}

impl ReadVectored for Copying<'_> {
    fn poll_read_vectored(
        &mut self,
        context: &mut Context<'_>,
        slots: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Hold::UntilOpened(_) = self.hold {
            return Poll::Pending;
        }
        let bytes = &mut self.first.bytes;
        if self.replayed < bytes.len() {
            let before = self.replayed;
            for slot in slots {
                let rest = &bytes[self.replayed..];
                let count = rest.len().min(slot.len());
                slot[..count].copy_from_slice(&rest[..count]);
                self.replayed += count;
            }
            return Poll::Ready(Ok(self.replayed - before));
        }
        let room = KEPT_MAX - bytes.len();
        if room == 0 {
            self.has_given_up = matches!(self.full, Full::GivesUp);
            // Whoever polls sees that, or is woken by the acknowledgement.
            return Poll::Pending;
        }
        let Some(slot) = slots.first_mut() else { return Poll::Ready(Ok(0)) };
        let room = room.min(slot.len());
        let count =
            ready!(self.reader.poll_read_vectored(context, &mut [IoSliceMut::new(&mut slot[..room])]))?;
        bytes.extend_from_slice(&slot[..count]);
        self.replayed = bytes.len();
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Copying<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(
            self.get_mut().poll_read_vectored(context, &mut [IoSliceMut::new(buffer.initialize_unfilled())])
        )?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}
