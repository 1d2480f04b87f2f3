//! What carrying bytes has to know of a wire protocol: where a payload lies in a frame, how long the next frame is, how a
//! direction ends, and how a failure is told.
//!
//! `frame` has spipe's own frames. Whatever moves bytes is generic over [`Seal`] and [`Open`], so another protocol is
//! another pair of types that implement them.

use std::ops::Range;

use super::frame::{AbortReason, Exhausted, FrameError};

/// The room for one frame in a buffer, and where its payload lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bytes of a frame with the longest payload.
    pub size: usize,
    /// Bytes in front of the payload.
    pub head: usize,
    /// Bytes behind the longest payload.
    pub tail: usize,
}

impl Slot {
    /// The most payload bytes in one frame.
    pub const fn payload_max(self) -> usize {
        self.size - self.head - self.tail
    }
}

/// How an orderly stream is told to be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By a last frame, this many bytes long. The wire stays open behind it, and is watched.
    Frame(usize),
    /// By the end of the stream that the frames travel on: the wire is half-closed behind the last frame.
    HalfClose,
}

/// What it means when the stream that the frames travel on ends at the boundary of two frames. Within a frame it is always a
/// truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfStream {
    /// A truncation, too: the protocol has a frame for the end, and it did not come.
    Truncation,
    /// The end of this direction.
    End,
}

/// Seals one direction's frames in place.
pub trait Seal {
    /// Where payloads are to lie.
    const SLOT: Slot;
    /// What is left when the stream has ended in an orderly way.
    type Spent;

    /// Seals the `payload` bytes that lie behind the head's place in `slot`; gives the frame's length.
    ///
    /// # Errors
    /// [`Exhausted`] when it may seal no more.
    fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted>;

    /// Ends an orderly stream. If there is a frame for it, seals that into the front of `slot`.
    ///
    /// # Errors
    /// [`Exhausted`] when it may seal no more.
    fn end(self, slot: &mut [u8]) -> Result<(Ending, Self::Spent), Exhausted>;

    /// Seals into the front of `slot` that the connection has failed; gives the frame's length, or none where the protocol has no
    /// frame for it. Then the wire must be reset, for an orderly close could be taken for an end.
    ///
    /// # Errors
    /// [`Exhausted`] when it may seal no more.
    fn abort(self, reason: AbortReason, slot: &mut [u8]) -> Result<Option<usize>, Exhausted>;
}

/// Opens one direction's frames in place.
pub trait Open {
    /// The most bytes a frame has.
    const FRAME_MAX: usize;
    /// What the end of the underlying stream means.
    const END_OF_STREAM: EndOfStream;

    /// How many bytes the frame has that `unread` starts with, if that can be told yet.
    ///
    /// # Errors
    /// [`FrameError::Length`] for a length that no frame can have.
    fn next_length(unread: &[u8]) -> Result<Option<usize>, FrameError>;

    /// Opens one whole frame, as [`Self::next_length`] measured it.
    ///
    /// # Errors
    /// [`FrameError`] when it is not the peer's next frame.
    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError>;
}

/// What an opened frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes of the stream, and where in the frame they lie. May be empty.
    Data(Range<usize>),
    /// The stream of this direction is complete.
    End,
    /// The connection has failed at the peer: what was received is not the whole stream.
    Abort(AbortReason),
}
