//! One direction each: [`SealPump`] from the local stream to the wire, [`OpenPump`] from the wire to the local stream.
//!
//! ```text
//!   local ── readv ──▶ slots ── seal in place ──▶ one write ──▶ wire          SealPump
//!   local ◀── writev ── payloads ◀── open in place ── one read ◀── wire       OpenPump
//! ```
//!
//! Both are polled, not awaited, for two reasons: a pump that waits for bytes holds no buffer, and after a failure its
//! state is still there, so that an *Abort* can go out on a frame boundary.
//!
//! They are generic over the protocol ([`Seal`], [`Open`]), and know of it what `proto::framing` says.

pub mod buffer;

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrayvec::ArrayVec;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::buffer::{BATCH, Buffer, GATHER, Payloads};
use crate::proto::frame::{AbortReason, Exhausted, FrameError, Misbehaviour, Opener, Spent};
use crate::proto::framing::{EndOfStream, Ending, Open, Received, Seal, Slot};
use crate::stream::ReadVectored;

/// Slots that one readv(2) may fill. spipe's frames fill a buffer with eight; more count where frames are small.
const SLOTS: usize = 64;

/// The most frames that a pump seals or opens before other tasks have a turn: 8 MiB of full ones. tokio counts reads and writes
/// for the same purpose, and ends a turn after 128. But one read can bring 27,000 empty frames.
///
/// With 48, bulk takes 1.015 of the CPU time, and with 16 up to 1.1.
pub const FRAMES_PER_TURN: usize = 128;

/// Ends this turn of a task that has more to do.
///
/// Not by waking the task, since tokio looks for events of sockets only after 61 turns of tasks that are ready. What yields to
/// tokio is polled again after that.
fn end_turn<T>(context: &mut Context<'_>) -> Poll<T> {
    let yielded = pin!(tokio::task::yield_now()).poll(context);
    debug_assert!(yielded.is_pending(), "a task yields once before it goes on");
    Poll::Pending
}

/// Why a connection failed once it was established.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PumpError {
    /// The local stream was reset, or could not be written to.
    #[error("the local side was reset: {0}")]
    Local(#[source] io::Error),
    /// The connection to the peer broke.
    #[error("the connection to the other end broke: {0}")]
    Wire(#[source] io::Error),
    /// The connection to the peer ended where the protocol has no end. By accident or by an attacker: it is not told apart.
    #[error("the connection to the other end was cut short")]
    Truncated,
    /// The peer's stream was complete, and the peer closed the connection before ours was. No frame can say why.
    #[error("the other end gave up: the connection there was reset, or this one was cut short")]
    Abandoned,
    /// The peer says that it failed.
    #[error("{}", describe(*.0))]
    Aborted(AbortReason),
    /// What came over the wire is not what the peer sealed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// This end may seal no more.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// This process is stopping, and waits no longer.
    #[error("spipe was stopped before the connection had finished")]
    Stopped,
    /// Checks have found that the target is down.
    #[error("the target went down (--on-down reset)")]
    TargetDown,
    /// The key of the connection is not accepted any more.
    #[error("its key is not accepted any more (--on-revoke reset)")]
    KeyRevoked,
    /// An administrator wanted it closed.
    #[error("an administrator closed it (spipe close)")]
    Closed,
    /// It took more time than it may.
    #[error(transparent)]
    TimeLimit(#[from] TimeLimit),
}

/// A limit on the time of a connection, which nothing else is wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TimeLimit {
    /// Nothing was carried for so long.
    #[error("idle: no byte was carried for {} s (--idle-timeout)", .0.as_secs())]
    Idle(Duration),
    /// One direction had ended, and the other carried nothing for so long.
    #[error("idle: it was half-closed, and no byte was carried for {} s (--half-close-timeout)", .0.as_secs())]
    HalfClosed(Duration),
    /// Its age.
    #[error("expired: it has lasted for as long as it may (--max-lifetime)")]
    Lifetime,
}

fn describe(reason: AbortReason) -> String {
    match reason {
        AbortReason::Reset => "the connection at the other end was reset".into(),
        AbortReason::TargetUnreachable => "the other end cannot reach its target; its log says why".into(),
        AbortReason::Busy => {
            "the other end has as many connections as it may; raise its -n, or the limits of \
                              this key there"
                .into()
        }
        AbortReason::Shutdown => "the other end was shut down".into(),
        AbortReason::KeyRefused => {
            "the other end does not accept this key any more, or not from this address; its log says why"
                .into()
        }
        AbortReason::Idle => "the other end ended the connection, since it was idle".into(),
        AbortReason::Expired => {
            "the other end ended the connection, since it has lasted for as long as it may".into()
        }
        AbortReason::Other(code) => format!("the other end gave up with code {code}"),
    }
}

/// What a watch on a connection is told while both pumps wait.
pub struct Waiting<'r, L, W> {
    /// The local stream.
    pub local: &'r L,
    /// Whether that has ended, and its end is told: nobody reads it any more, so nobody learns of a reset by reading.
    pub local_has_ended: bool,
    /// The connection to the peer.
    pub wire: &'r W,
    /// Whether the peer's direction has ended, and the local side is told.
    pub wire_has_ended: bool,
    /// Payload bytes that were sealed so far, whether they could be written yet or not.
    pub sealed: u64,
    /// Payload bytes that were opened so far, whether they could be written yet or not.
    pub opened: u64,
}

/// A watch that notices nothing, for streams that have nothing to watch.
pub fn unwatched<L, W>(_: &mut Context<'_>, _: Waiting<'_, L, W>) -> Poll<PumpError> {
    Poll::Pending
}

/// Runs both pumps until both directions have ended, or one has failed, or `watch` says that one has.
///
/// `local` and `wire` are each a reading and a writing half.
///
/// # Errors
/// The first [`PumpError`] of either pump, or of the watch.
pub fn run<S: Seal, O: Open, L: ReadVectored, W: AsyncRead + Unpin>(
    seal: &mut SealPump<S>,
    open: &mut OpenPump<O>,
    (mut local_reader, mut local_writer): (L, impl AsyncWrite + Unpin),
    (mut wire_reader, mut wire_writer): (W, impl AsyncWrite + Unpin),
    mut watch: impl FnMut(&mut Context<'_>, Waiting<'_, L, W>) -> Poll<PumpError>,
) -> impl Future<Output = Result<(), PumpError>> {
    let (mut begun, mut sealed, mut opened) = (false, false, false);
    // Not an async fn, whose future would keep every argument twice.
    poll_fn(move |context| {
        if !begun {
            begun = true;
            // What the client has said already shares a write with Open: it reaches the target one round trip after we
            // connected.
            if let Poll::Ready(Err(error)) = seal.poll_fill(context, &mut local_reader) {
                return Poll::Ready(Err(error));
            }
        }
        // Opening comes first, for it may learn from the peer why the other direction is about to fail.
        if !opened && let Poll::Ready(result) = open.poll(context, &mut wire_reader, &mut local_writer) {
            result?;
            opened = true;
        }
        if !sealed && let Poll::Ready(result) = seal.poll(context, &mut local_reader, &mut wire_writer) {
            result?;
            sealed = true;
        }
        if opened && sealed {
            return Poll::Ready(Ok(()));
        }
        if opened && let Poll::Ready(error) = open.poll_hangup(context, &mut wire_reader) {
            return Poll::Ready(Err(error));
        }
        let waiting = Waiting {
            local: &local_reader,
            local_has_ended: sealed,
            wire: &wire_reader,
            wire_has_ended: opened,
            sealed: seal.bytes(),
            opened: open.bytes(),
        };
        watch(context, waiting).map(Err)
    })
}

/// Frames that are sealed and not yet written.
struct Outbox {
    buffer: Buffer,
    /// Bytes sealed, from the front of the buffer.
    sealed: usize,
    /// Of these, bytes written.
    written: usize,
}

/// What a [`SealPump`] still has to do.
enum SealStage<S: Seal> {
    Carrying(S),
    /// The local stream has ended; the wire is to be half-closed once it has all.
    HalfClosing,
    /// All is sealed. None, unless it was an orderly end, told by a frame.
    Ended(Option<S::Spent>),
}

/// Whether the peer can know why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was told, or needs no telling, since its stream is complete.
    Yes,
    /// The protocol has no words for it: only a reset shows that the stream is not complete.
    Impossible,
}

/// From the local stream to the wire.
pub struct SealPump<S: Seal> {
    stage: SealStage<S>,
    /// None while there is nothing to write: an idle direction owns no buffer.
    outbox: Option<Outbox>,
    bytes: u64,
}

impl<S: Seal> SealPump<S> {
    /// A pump with nothing to write yet.
    pub fn new(sealer: S) -> Self {
        Self { stage: SealStage::Carrying(sealer), outbox: None, bytes: 0 }
    }

    /// A pump whose first `length` bytes to write are in `buffer` already. [`Self::poll_fill`] can add to them, so that the
    /// first bytes of the local stream share a write with them.
    pub fn with_sealed(sealer: S, buffer: Buffer, length: usize) -> Self {
        let outbox = Outbox { buffer, sealed: length, written: 0 };
        Self { stage: SealStage::Carrying(sealer), outbox: Some(outbox), bytes: 0 }
    }

    /// Payload bytes sealed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts a frame without payload in front of all that the local stream says.
    ///
    /// # Panics
    /// When something was sealed before.
    pub fn acknowledge(&mut self) {
        assert!(self.outbox.is_none(), "it is the first frame");
        if let SealStage::Carrying(sealer) = &mut self.stage {
            let mut buffer = Buffer::take();
            let sealed = sealer.data(&mut buffer, 0).expect("the first frame has a nonce");
            self.outbox = Some(Outbox { buffer, sealed, written: 0 });
        }
    }

    /// Carries bytes until the local stream has ended and its end is told on the wire.
    ///
    /// # Errors
    /// [`PumpError::Local`], [`PumpError::Wire`] and [`PumpError::Exhausted`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        local: &mut impl ReadVectored,
        wire: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), PumpError>> {
        let mut frames = 0;
        loop {
            ready!(self.poll_write(context, wire)).map_err(PumpError::Wire)?;
            match self.stage {
                SealStage::Carrying(_) if frames >= FRAMES_PER_TURN => return end_turn(context),
                SealStage::Carrying(_) => frames += ready!(self.poll_fill(context, local))?,
                SealStage::HalfClosing => {
                    ready!(Pin::new(&mut *wire).poll_shutdown(context)).map_err(PumpError::Wire)?;
                    self.stage = SealStage::Ended(None);
                }
                SealStage::Ended(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once from the local stream, as much as one call gives, and seals it behind what is sealed already; at the end
    /// of the stream, seals that. Gives the number of frames.
    ///
    /// # Errors
    /// [`PumpError::Local`] and [`PumpError::Exhausted`].
    pub fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        local: &mut impl ReadVectored,
    ) -> Poll<Result<usize, PumpError>> {
        let SealStage::Carrying(sealer) = &mut self.stage else { return Poll::Ready(Ok(0)) };
        let (mut buffer, mut end) = match self.outbox.take() {
            None => (Buffer::take(), 0),
            Some(Outbox { buffer, sealed, written }) => {
                debug_assert_eq!(written, 0, "frames join a batch before its first byte is written");
                (buffer, sealed)
            }
        };
        let read = local.poll_read_vectored(context, &mut payload_slots(&mut buffer[end..], S::SLOT));
        let outcome = match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(PumpError::Local(error))),
            Poll::Ready(Ok(0)) => {
                if let Some(sealer) = self.finish() {
                    match sealer.end(&mut buffer[end..])? {
                        (Ending::Frame(length), spent) => {
                            end += length;
                            self.stage = SealStage::Ended(Some(spent));
                        }
                        (Ending::HalfClose, _) => self.stage = SealStage::HalfClosing,
                    }
                }
                Poll::Ready(Ok(1))
            }
            Poll::Ready(Ok(mut unsealed)) => {
                self.bytes += unsealed as u64;
                let frames = unsealed.div_ceil(S::SLOT.payload_max());
                // The read filled the slots in order, so each frame but the last is full and ends where the next begins.
                while unsealed > 0 {
                    let payload = unsealed.min(S::SLOT.payload_max());
                    end += sealer.data(&mut buffer[end..], payload)?;
                    unsealed -= payload;
                }
                Poll::Ready(Ok(frames))
            }
        };
        if end > 0 {
            self.outbox = Some(Outbox { buffer, sealed: end, written: 0 });
        }
        outcome
    }

    /// Gives the sealer, which has one more thing to do, if it is still there.
    fn finish(&mut self) -> Option<S> {
        match std::mem::replace(&mut self.stage, SealStage::Ended(None)) {
            SealStage::Carrying(sealer) => Some(sealer),
            SealStage::HalfClosing | SealStage::Ended(_) => None,
        }
    }

    /// What is left, if the stream has ended in an orderly way and all of it is written.
    pub fn into_spent(self) -> Option<S::Spent> {
        match self.stage {
            SealStage::Ended(spent) if self.outbox.is_none() => spent,
            _ => None,
        }
    }

    /// Writes all that is sealed, and gives the buffer back.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        if let Some(outbox) = &mut self.outbox {
            while outbox.written < outbox.sealed {
                let rest = &outbox.buffer[outbox.written..outbox.sealed];
                match ready!(Pin::new(&mut *wire).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => outbox.written += count,
                }
            }
            self.outbox = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that this end failed: writes what is sealed, for the peer could not open what follows without the frames
    /// before it, then the frame that says so, if the protocol has one.
    ///
    /// # Errors
    /// When the wire cannot be written to; then nothing can be told, and a peer whose stream is not complete sees that.
    pub async fn abort(
        &mut self,
        reason: AbortReason,
        wire: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Told, PumpError> {
        poll_fn(|context| self.poll_write(context, wire)).await.map_err(PumpError::Wire)?;
        let Some(sealer) = self.finish() else { return Ok(Told::Yes) };
        let mut buffer = Buffer::take();
        let Some(sealed) = sealer.abort(reason, &mut buffer)? else { return Ok(Told::Impossible) };
        self.outbox = Some(Outbox { buffer, sealed, written: 0 });
        poll_fn(|context| self.poll_write(context, wire)).await.map_err(PumpError::Wire)?;
        Ok(Told::Yes)
    }
}

/// Where to read payloads to so that each can be sealed where it lies.
fn payload_slots(buffer: &mut [u8], Slot { size, head, tail }: Slot) -> ArrayVec<IoSliceMut<'_>, SLOTS> {
    buffer
        .chunks_mut(size)
        .filter(|slot| slot.len() > head + tail)
        .map(|slot| {
            let end = slot.len() - tail;
            IoSliceMut::new(&mut slot[head..end])
        })
        .take(SLOTS)
        .collect()
}

/// What a read from the wire gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Bytes.
    Some,
    /// Nothing, for ever. What that means depends on the protocol.
    EndOfStream,
}

/// Bytes from the wire that are not yet opened.
pub struct Inbox {
    /// None while `unread` is empty: an idle direction owns no buffer.
    buffer: Option<Buffer>,
    unread: Range<usize>,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { buffer: None, unread: 0..0 }
    }

    /// Takes out the next frame of those that `O` opens, if it is here whole: where it lies in [`Self::bytes`].
    ///
    /// # Errors
    /// [`FrameError::Length`].
    pub fn next_frame<O: Open>(&mut self) -> Result<Option<Range<usize>>, FrameError> {
        let Some(length) = O::next_length(self.unread())? else { return Ok(None) };
        if length > self.unread.len() {
            return Ok(None);
        }
        let frame = self.unread.start..self.unread.start + length;
        self.unread.start = frame.end;
        Ok(Some(frame))
    }

    /// The bytes that [`Self::next_frame`]'s ranges are of.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }

    /// Reads once from the wire, as much as one call gives and the buffer has room for. Frames taken out before are gone.
    ///
    /// # Errors
    /// [`PumpError::Wire`]; [`PumpError::Frame`] for an impossible length.
    pub fn poll_fill<O: Open>(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<Filled, PumpError>> {
        let wanted = O::next_length(self.unread())?.unwrap_or(O::FRAME_MAX);
        let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.start + wanted > BATCH {
            // The frame would not fit behind its beginning. Full frames never come here: eight of them fill the buffer.
            buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let mut room = ReadBuf::new(&mut buffer[self.unread.end..]);
        let read = Pin::new(wire).poll_read(context, &mut room);
        let count = room.filled().len();
        self.unread.end += count;
        if !self.unread.is_empty() {
            self.buffer = Some(buffer);
        }
        ready!(read).map_err(PumpError::Wire)?;
        Poll::Ready(Ok(if count == 0 { Filled::EndOfStream } else { Filled::Some }))
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }

    fn unread(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default().get(self.unread.clone()).unwrap_or_default()
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What an [`OpenPump`] still has to do.
#[derive(Clone, Copy)]
enum OpenStage {
    Carrying,
    /// The peer has ended its direction; the local stream is to be half-closed once it has all.
    Ending,
    /// The peer has failed; what came before it is still delivered.
    Aborting(AbortReason),
}

/// From the wire to the local stream.
pub struct OpenPump<O> {
    opener: O,
    inbox: Inbox,
    stage: OpenStage,
    bytes: u64,
}

impl OpenPump<Opener> {
    /// What is left, if the peer's stream has ended in an orderly way, and what has come behind it.
    pub fn into_spent(self) -> Option<(Spent<Opener>, Inbox)> {
        self.opener.spent().map(|spent| (spent, self.inbox))
    }
}

impl<O: Open> OpenPump<O> {
    /// A pump that starts with what the inbox holds.
    pub fn new(opener: O, inbox: Inbox) -> Self {
        Self { opener, inbox, stage: OpenStage::Carrying, bytes: 0 }
    }

    /// Payload bytes opened so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Carries bytes until the peer has ended its direction, and half-closes the local stream then.
    ///
    /// # Errors
    /// All of [`PumpError`] but [`PumpError::Exhausted`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncRead + Unpin),
        local: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), PumpError>> {
        let mut frames = 0;
        loop {
            ready!(self.poll_write(context, local)).map_err(PumpError::Local)?;
            match self.stage {
                OpenStage::Carrying if frames >= FRAMES_PER_TURN => return end_turn(context),
                OpenStage::Carrying => {
                    let opened = self.open_some(GATHER.min(FRAMES_PER_TURN - frames))?;
                    if opened > 0 {
                        frames += opened;
                        continue;
                    }
                    // A buffered writer, such as standard output, must not sit on bytes while we wait for more.
                    ready!(Pin::new(&mut *local).poll_flush(context)).map_err(PumpError::Local)?;
                    ready!(self.poll_read(context, wire))?;
                }
                OpenStage::Ending => return Pin::new(local).poll_shutdown(context).map_err(PumpError::Local),
                OpenStage::Aborting(reason) => return Poll::Ready(Err(PumpError::Aborted(reason))),
            }
        }
    }

    /// Opens the peer's first frame, and delivers nothing of it: that is left to [`Self::poll`].
    ///
    /// # Errors
    /// [`PumpError::Aborted`], if the frame says so, and all others of reading and opening.
    pub fn poll_first(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<(), PumpError>> {
        loop {
            let opened = self.open_some(1)?;
            match self.stage {
                OpenStage::Aborting(reason) => return Poll::Ready(Err(PumpError::Aborted(reason))),
                OpenStage::Ending => return Poll::Ready(Ok(())),
                OpenStage::Carrying if opened > 0 => return Poll::Ready(Ok(())),
                OpenStage::Carrying => ready!(self.poll_read(context, wire))?,
            }
        }
    }

    /// Reads once from the wire; its end is an end or a truncation.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<(), PumpError>> {
        if let Filled::EndOfStream = ready!(self.inbox.poll_fill::<O>(context, wire))? {
            if O::END_OF_STREAM == EndOfStream::Truncation || !self.inbox.unread.is_empty() {
                return Poll::Ready(Err(PumpError::Truncated));
            }
            self.stage = OpenStage::Ending;
        }
        Poll::Ready(Ok(()))
    }

    /// After the peer's end, while the other direction lives on: watches that the peer stays and says nothing more. Where the end
    /// of the stream was the end, there is nothing left to watch.
    pub fn poll_hangup(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut (impl AsyncRead + Unpin),
    ) -> Poll<PumpError> {
        if O::END_OF_STREAM == EndOfStream::End {
            return Poll::Pending;
        }
        if self.inbox.unread.is_empty() {
            match ready!(self.inbox.poll_fill::<O>(context, wire)) {
                Ok(Filled::Some) => {}
                Ok(Filled::EndOfStream) => return Poll::Ready(PumpError::Abandoned),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Ready(FrameError::from(Misbehaviour::BytesAfterEnd).into())
    }

    /// Opens the frames that are here whole, up to `max`; gives how many.
    fn open_some(&mut self, max: usize) -> Result<usize, FrameError> {
        let mut frames = 0;
        while let OpenStage::Carrying = self.stage
            && frames < max
            && let Some(frame) = self.inbox.next_frame::<O>()?
        {
            frames += 1;
            let Some(buffer) = &mut self.inbox.buffer else { unreachable!("a frame lies in a buffer") };
            match self.opener.open(&mut buffer[frame.clone()])? {
                Received::Data(payload) if payload.is_empty() => {}
                Received::Data(payload) => {
                    self.bytes += payload.len() as u64;
                    buffer.payloads_mut().push(frame.start + payload.start..frame.start + payload.end);
                }
                Received::End => self.stage = OpenStage::Ending,
                Received::Abort(reason) => self.stage = OpenStage::Aborting(reason),
            }
        }
        Ok(frames)
    }

    /// Writes all payloads that are opened.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        local: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while let Some(buffer) = &mut self.inbox.buffer
            && !buffer.payloads().is_empty()
        {
            let count = {
                let slices: ArrayVec<_, GATHER> =
                    buffer.payloads().iter().map(|payload| IoSlice::new(&buffer[payload.clone()])).collect();
                ready!(Pin::new(&mut *local).poll_write_vectored(context, &slices))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            take_off(buffer.payloads_mut(), count);
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes `count` written bytes off the front of `payloads`.
fn take_off(payloads: &mut Payloads, mut count: usize) {
    let whole = payloads.iter().take_while(|payload| {
        let fits = payload.len() <= count;
        count -= if fits { payload.len() } else { 0 };
        fits
    });
    let whole = whole.count();
    payloads.drain(..whole);
    if let Some(first) = payloads.first_mut() {
        first.start += count;
    }
}
