//! The frames that follow the handshake (PROTOCOL.md, section 5).
//!
//! ```text
//!  0        2                                      length + 2
//!  ├────────┼─────────────────────────┬──────┬─────────┬─────┤
//!  │ length │ payload                 │ kind │ padding │ tag │
//!  └────────┴─────────────────────────┴──────┴─────────┴─────┘
//!   clear,   └──────────────── sealed ────────────────┘
//!   associated data
//! ```
//!
//! A frame is sealed where its payload was read to and opened where it was received: nothing here copies a payload.
//! What may follow what is in the types: an initiator's [`Sealer`] exists only once its *Open* is sealed
//! ([`First`]), and [`Sealer::end`] and [`Sealer::abort`] consume it. What an orderly end leaves ([`Spent`]) is good for another
//! connection only.

use std::ops::Range;

use hkdf::Hkdf;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use super::aead::FrameKey;
use super::cipher::Cipher;
use super::connection_info::{ConnectionInfo, MalformedOpen};
use super::framing::{EndOfStream, Ending, Open, Received, Seal, Slot};
use super::noise::{Forged, Secret, TAG};
use super::stack::{self, wiped};

/// Bytes of the length field in front of a frame.
pub const HEADER: usize = 2;
/// Bytes of a frame that are not payload: header, kind, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// The most bytes a frame has, header included. A power of two, so that full frames lie page-aligned in a buffer.
pub const FRAME_MAX: usize = 64 * 1024;
/// The most payload bytes in one frame.
pub const PAYLOAD_MAX: usize = FRAME_MAX - OVERHEAD;

/// Frames sealed under one key before it is replaced (step T5): at most 4 GiB, which is 2^28 AES blocks, and leaves an
/// attacker on AES-256-GCM's confidentiality an advantage below 2^-73. It also bounds what a stolen memory image opens.
const REKEY_AFTER: u64 = 1 << 16;

/// A frame could not be opened. The connection is over: nothing after it can be trusted to be in order.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field is outside what a frame can have.
    #[error("a frame of impossible length {0}")]
    Length(usize),
    /// Altered, reordered, repeated or dropped on the way, or sealed with another key.
    #[error("a frame does not authenticate: it was altered, reordered or repeated on the way")]
    Forged,
    /// Authentic, but not what the specification allows at this place.
    #[error("the peer broke the protocol: {0}")]
    Misbehaved(#[source] Misbehaviour),
    /// The nonce counter is used up (2^64 − 1 frames).
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// What a peer that holds the key must not send. Each is a mistake in its program, or malice.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// Its first frame is another one than *Open*.
    #[error("its first frame is not Open")]
    FirstFrameNotOpen,
    /// *Open* again.
    #[error("an Open that is not the first frame")]
    SecondOpen,
    /// The fields of *Open* cannot be read.
    #[error(transparent)]
    Open(MalformedOpen),
    /// A frame with nothing but padding.
    #[error("a frame of zeros")]
    NoKind,
    /// A frame of a kind that the specification does not have.
    #[error("a frame of unknown kind")]
    UnknownKind,
    /// *End* carries nothing.
    #[error("an End with a payload")]
    EndWithPayload,
    /// *Abort* carries a reason of one byte.
    #[error("an Abort without its one byte of reason")]
    AbortWithoutReason,
    /// A packet of spiped's protocol whose payload cannot have that length.
    #[error("a packet whose payload has not 1 to 1,024 bytes")]
    PacketLength,
    /// A frame after *End*, after *Abort*, or after one that was refused.
    #[error("a frame after the stream was over")]
    FrameAfterEnd,
    /// Bytes after *End* that are not even a frame.
    #[error("bytes after its End")]
    BytesAfterEnd,
}

impl From<Misbehaviour> for FrameError {
    fn from(misbehaviour: Misbehaviour) -> Self {
        Self::Misbehaved(misbehaviour)
    }
}

/// The nonce counter is used up: one more frame would repeat a nonce.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("this direction has carried 2^64 - 1 frames and its nonces are used up")]
pub struct Exhausted;

/// Why a peer aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// The peer's local connection was reset.
    Reset,
    /// The responder could not connect to its target.
    TargetUnreachable,
    /// The responder carries as many connections as it may.
    Busy,
    /// The peer is shutting down.
    Shutdown,
    /// The peer does not accept the key that both hold, or not any more, or not from the address of this end.
    KeyRefused,
    /// The connection carried nothing for longer than the peer allows.
    Idle,
    /// The connection has lasted for as long as the peer allows.
    Expired,
    /// A code of a later version.
    Other(u8),
}

impl AbortReason {
    fn code(self) -> u8 {
        match self {
            Self::Reset => 1,
            Self::TargetUnreachable => 2,
            Self::Busy => 3,
            Self::Shutdown => 4,
            Self::KeyRefused => 5,
            Self::Idle => 6,
            Self::Expired => 7,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Reset,
            2 => Self::TargetUnreachable,
            3 => Self::Busy,
            4 => Self::Shutdown,
            5 => Self::KeyRefused,
            6 => Self::Idle,
            7 => Self::Expired,
            code => Self::Other(code),
        }
    }
}

/// The byte behind a frame's payload. Never 0, which is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Open = 1,
    Data = 2,
    End = 3,
    Abort = 4,
}

/// How many bytes the frame has, header included, that starts with this header.
///
/// # Errors
/// [`FrameError::Length`] when it could not hold a kind and a tag, or is above [`FRAME_MAX`].
pub fn frame_length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let sealed = usize::from(u16::from_be_bytes(header));
    match HEADER + sealed {
        length @ OVERHEAD..=FRAME_MAX => Ok(length),
        _ => Err(FrameError::Length(sealed)),
    }
}

/// The sealer or opener of the initiator's direction before its first frame, which must be *Open* (steps T1 and T2).
pub struct First<T>(T);

impl<T> First<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(inner)
    }
}

impl First<Sealer> {
    /// T1: seals *Open* into the front of `slot`, and gives the frame's length and the sealer for what follows.
    ///
    /// # Panics
    /// When `slot` is shorter than [`FRAME_MAX`].
    pub fn open(self, info: &ConnectionInfo, slot: &mut [u8]) -> (Sealer, usize) {
        let mut sealer = self.0;
        let payload = info.encode(&mut slot[HEADER..]);
        let length = sealer.seal(Kind::Open, slot, payload).expect("the first frame has a nonce");
        (sealer, length)
    }
}

impl First<Opener> {
    /// T2: opens the first frame.
    ///
    /// # Errors
    /// As [`Opener::open`]; [`FrameError::Misbehaved`] for any other frame than *Open*.
    pub fn open(mut self, frame: &mut [u8]) -> Result<(Opener, ConnectionInfo), FrameError> {
        match self.0.unseal(frame)? {
            (Kind::Open, payload) => {
                let info = ConnectionInfo::decode(&frame[payload]).map_err(Misbehaviour::Open)?;
                Ok((self.0, info))
            }
            _ => Err(Misbehaviour::FirstFrameNotOpen.into()),
        }
    }
}

/// Seals one direction's frames. In a box, since sealers and openers move, and a secret must not.
pub struct Sealer(Box<Chain>);

impl Sealer {
    pub(super) fn new(cipher: Cipher, secret: Secret) -> Self {
        Self(Box::new(Chain::new(cipher, secret)))
    }

    /// T3: seals the `payload` bytes that lie behind the header's place in `slot`, in place; gives the frame's length.
    ///
    /// # Errors
    /// [`Exhausted`] when no nonce is left.
    ///
    /// # Panics
    /// When `slot` is shorter than `payload` + [`OVERHEAD`], or `payload` above [`PAYLOAD_MAX`].
    pub fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        self.seal(Kind::Data, slot, payload)
    }

    /// T4: seals *End* into the front of `slot`. Nothing can be sealed after it for this connection.
    ///
    /// # Errors
    /// [`Exhausted`] when no nonce is left.
    pub fn end(mut self, slot: &mut [u8]) -> Result<(usize, Spent<Self>), Exhausted> {
        let length = self.seal(Kind::End, slot, 0)?;
        Ok((length, Spent(self)))
    }

    /// T4: seals *Abort* into the front of `slot`. Nothing can be sealed after it.
    ///
    /// # Errors
    /// [`Exhausted`] when no nonce is left.
    pub fn abort(mut self, reason: AbortReason, slot: &mut [u8]) -> Result<usize, Exhausted> {
        slot[HEADER] = reason.code();
        self.seal(Kind::Abort, slot, 1)
    }

    fn seal(&mut self, kind: Kind, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        assert!(payload <= PAYLOAD_MAX, "a frame holds at most {PAYLOAD_MAX} bytes");
        let frame = &mut slot[..payload + OVERHEAD];
        let length = u16::try_from(frame.len() - HEADER).expect("FRAME_MAX fits the length field");
        let (header, sealed) =
            frame.split_first_chunk_mut::<HEADER>().expect("a frame is longer than its header");
        let (text, tag) = sealed.split_last_chunk_mut::<TAG>().expect("a frame has room for its tag");
        *header = length.to_be_bytes();
        text[payload] = kind as u8;

        let number = self.0.next()?;
        *tag = self.0.key.seal(number, header, text);
        Ok(frame.len())
    }
}

/// Opens one direction's frames.
pub struct Opener(Box<Chain>, Stream);

/// Whether a direction may carry more frames.
enum Stream {
    Running,
    /// *End* came.
    Complete,
    /// *Abort* came, or a frame was refused. Had a refused frame cost no more than its nonce, then a network
    /// that put garbage in a frame's place could drop that frame from the stream of a caller that overlooks the error.
    Over,
}

/// One direction of a connection that has ended in an orderly way (step T7).
pub struct Spent<T>(T);

impl Spent<Sealer> {
    /// T7: the direction that the responder seals, for the next connection.
    #[must_use]
    pub fn renew(mut self) -> Sealer {
        self.0.0.renew();
        self.0
    }

    /// T7: the direction that the initiator seals. Its first frame is *Open*.
    #[must_use]
    pub fn renew_first(self) -> First<Sealer> {
        First(self.renew())
    }
}

impl Spent<Opener> {
    /// T7: the direction that the initiator opens, for the next connection.
    #[must_use]
    pub fn renew(mut self) -> Opener {
        self.0.0.renew();
        self.0.1 = Stream::Running;
        self.0
    }

    /// T7: the direction that the responder opens. Its first frame must be *Open*.
    #[must_use]
    pub fn renew_first(self) -> First<Opener> {
        First(self.renew())
    }
}

impl Opener {
    pub(super) fn new(cipher: Cipher, secret: Secret) -> Self {
        Self(Box::new(Chain::new(cipher, secret)), Stream::Running)
    }

    /// T6: opens one whole frame in place, header included, as [`frame_length`] measured it.
    ///
    /// # Errors
    /// [`FrameError::Forged`] for anything but the next frame that the peer sealed; [`FrameError::Misbehaved`] for an authentic
    /// frame that has no kind, an unknown one, a second *Open*, or an *End* or *Abort* with a wrong payload, and for every frame
    /// after an error, *End* or *Abort*.
    pub fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        if !matches!(self.1, Stream::Running) {
            return Err(Misbehaviour::FrameAfterEnd.into());
        }
        self.1 = Stream::Over;
        match self.unseal(frame)? {
            (Kind::Data, payload) => {
                self.1 = Stream::Running;
                Ok(Received::Data(payload))
            }
            (Kind::End, payload) if payload.is_empty() => {
                self.1 = Stream::Complete;
                Ok(Received::End)
            }
            (Kind::End, _) => Err(Misbehaviour::EndWithPayload.into()),
            (Kind::Abort, payload) => match frame[payload] {
                [code] => Ok(Received::Abort(AbortReason::from_code(code))),
                _ => Err(Misbehaviour::AbortWithoutReason.into()),
            },
            (Kind::Open, _) => Err(Misbehaviour::SecondOpen.into()),
        }
    }

    /// What is left, if *End* has come.
    pub fn spent(self) -> Option<Spent<Self>> {
        matches!(self.1, Stream::Complete).then_some(Spent(self))
    }

    fn unseal(&mut self, frame: &mut [u8]) -> Result<(Kind, Range<usize>), FrameError> {
        let length = frame.len();
        let (header, sealed) = frame.split_first_chunk_mut::<HEADER>().ok_or(FrameError::Length(length))?;
        if frame_length(*header)? != length {
            return Err(FrameError::Length(length));
        }
        let number = self.0.next()?;
        let text = self.0.key.open(number, header, sealed).map_err(|Forged| FrameError::Forged)?;

        // As in TLS 1.3 (RFC 8446, section 5.4), the kind is the last byte that is not zero. The scan's duration shows
        // how much padding there is, and only to an observer that already sees the frame's length.
        let end = text.iter().rposition(|&byte| byte != 0).ok_or(Misbehaviour::NoKind)?;
        let kind = match text[end] {
            1 => Kind::Open,
            2 => Kind::Data,
            3 => Kind::End,
            4 => Kind::Abort,
            _ => return Err(Misbehaviour::UnknownKind.into()),
        };
        Ok((kind, HEADER..HEADER + end))
    }
}

impl Seal for Sealer {
    const SLOT: Slot = Slot { size: FRAME_MAX, head: HEADER, tail: OVERHEAD - HEADER };
    type Spent = Spent<Self>;

    fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        Self::data(self, slot, payload)
    }

    fn end(self, slot: &mut [u8]) -> Result<(Ending, Spent<Self>), Exhausted> {
        let (length, spent) = Self::end(self, slot)?;
        Ok((Ending::Frame(length), spent))
    }

    fn abort(self, reason: AbortReason, slot: &mut [u8]) -> Result<Option<usize>, Exhausted> {
        Self::abort(self, reason, slot).map(Some)
    }
}

impl Open for Opener {
    const FRAME_MAX: usize = FRAME_MAX;
    const END_OF_STREAM: EndOfStream = EndOfStream::Truncation;

    fn next_length(unread: &[u8]) -> Result<Option<usize>, FrameError> {
        unread.first_chunk::<HEADER>().map(|header| frame_length(*header)).transpose()
    }

    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        Self::open(self, frame)
    }
}

/// One direction's secret, the cipher's key from it, and the secrets that follow from it.
struct Chain {
    cipher: Cipher,
    /// Only ever a key of HKDF's, as the traffic secrets of TLS 1.3 are: the cipher has a key of its own.
    secret: Secret,
    key: FrameKey,
    /// Frames sealed or opened so far, over all secrets: the number of the next one. It goes on when the secret is replaced, so that
    /// no (key, nonce) pair could repeat even if a replacement were skipped.
    counter: u64,
}

impl Chain {
    fn new(cipher: Cipher, secret: Secret) -> Self {
        let key = frame_key(cipher, &secret);
        Self { cipher, secret, key, counter: 0 }
    }

    /// The number of the next frame, which is its nonce. Replaces the secret first when it is time (T5).
    ///
    /// Called once a frame whether or not it opens: a forgery ends the stream, so there is nothing to keep.
    fn next(&mut self) -> Result<u64, Exhausted> {
        let following = self.counter.checked_add(1).ok_or(Exhausted)?;
        if self.counter != 0 && self.counter.is_multiple_of(REKEY_AFTER) {
            self.rekey();
        }
        Ok(std::mem::replace(&mut self.counter, following))
    }

    /// T5.
    fn rekey(&mut self) {
        self.step(b"spipe/1 rekey");
    }

    /// T7.
    fn renew(&mut self) {
        self.step(b"spipe/1 next connection");
    }

    /// The next secret is a one-way function of this one, which is wiped: what is found later opens nothing sent before.
    fn step(&mut self, label: &[u8]) {
        wiped::<{ stack::SYMMETRIC }, _>(|| {
            self.secret = expand(&self.secret, &[label]);
            self.key = frame_key(self.cipher, &self.secret);
        });
    }
}

/// The cipher's key. Its derivation names the cipher, so no key is ever used with two.
fn frame_key(cipher: Cipher, secret: &Secret) -> FrameKey {
    FrameKey::new(cipher, expand(secret, &[b"spipe/1 key ", cipher.name().as_bytes()]))
}

fn expand(secret: &Secret, info: &[&[u8]]) -> Secret {
    let mut output = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::from_prk(&**secret)
        .expect("a secret is as long as a SHA-256 digest")
        .expand_multi_info(info, &mut *output)
        .expect("HKDF-SHA256 gives up to 8,160 bytes");
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(cipher: Cipher) -> (Sealer, Opener) {
        (Sealer::new(cipher, Zeroizing::new([7; 32])), Opener::new(cipher, Zeroizing::new([7; 32])))
    }

    fn seal(sealer: &mut Sealer, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut slot = vec![0; payload.len() + OVERHEAD];
        slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        sealer.seal(kind, &mut slot, payload.len()).unwrap();
        slot
    }

    /// A frame as a peer could seal it that knows the key but not the specification.
    fn seal_raw(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut frame = u16::try_from(text.len() + TAG).unwrap().to_be_bytes().to_vec();
        let mut body = text.to_vec();
        let number = sealer.0.next().unwrap();
        let tag = sealer.0.key.seal(number, &frame, &mut body);
        frame.extend(body);
        frame.extend(tag);
        frame
    }

    #[test]
    fn payloads_of_every_edge_size_arrive() {
        for cipher in [Cipher::Aegis256X4, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let (mut sealer, mut opener) = pair(cipher);
            for size in [0, 1, 15, 16, 17, 255, 256, 4095, PAYLOAD_MAX - 1, PAYLOAD_MAX] {
                let payload: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
                let mut frame = seal(&mut sealer, Kind::Data, &payload);
                let Received::Data(range) = opener.open(&mut frame).unwrap() else { panic!("not data") };
                assert_eq!(frame[range], payload);
            }
        }
    }

    #[test]
    fn payloads_that_end_in_zeros_keep_them() {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        let mut frame = seal(&mut sealer, Kind::Data, &[5, 0, 0, 0]);
        assert_eq!(opener.open(&mut frame), Ok(Received::Data(2..6)));
        assert_eq!(frame[2..6], [5, 0, 0, 0]);
    }

    #[test]
    fn padding_is_taken_off() {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        let mut frame = seal_raw(&mut sealer, &[b'h', b'i', Kind::Data as u8, 0, 0, 0, 0]);
        assert_eq!(opener.open(&mut frame), Ok(Received::Data(2..4)));
    }

    #[test]
    fn frames_on_both_sides_of_a_rekey_arrive_and_the_key_has_changed() {
        let (mut sealer, mut opener) = pair(Cipher::ChaCha20Poly1305);
        (sealer.0.counter, opener.0.counter) = (REKEY_AFTER - 1, REKEY_AFTER - 1);
        for payload in [b"last", b"next", b"more"] {
            let mut frame = seal(&mut sealer, Kind::Data, payload);
            assert_eq!(opener.open(&mut frame), Ok(Received::Data(2..6)));
        }
        assert_ne!(*sealer.0.secret, [7; 32]);
        assert_eq!(sealer.0.secret, opener.0.secret);
    }

    #[test]
    fn the_old_key_opens_the_last_frame_before_a_rekey_and_not_the_first_after() {
        let (mut sealer, opener) = pair(Cipher::Aes256Gcm);
        for (counter, opens) in [(REKEY_AFTER - 1, true), (REKEY_AFTER, false)] {
            sealer.0.counter = counter;
            let mut frame = seal(&mut sealer, Kind::Data, b"x");
            let (header, body) = frame.split_first_chunk_mut::<HEADER>().unwrap();
            let result = opener.0.key.open(counter, header, body);
            assert_eq!(result.is_ok(), opens, "{counter}");
        }
    }

    #[test]
    fn a_used_up_counter_refuses_instead_of_wrapping() {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        let mut frame = seal(&mut sealer, Kind::Data, b"x");
        (sealer.0.counter, opener.0.counter) = (u64::MAX, u64::MAX);
        assert_eq!(sealer.data(&mut [0; 100], 1), Err(Exhausted));
        assert_eq!(opener.open(&mut frame), Err(FrameError::Exhausted(Exhausted)));
        assert!(sealer.end(&mut [0; 100]).is_err());
    }

    #[test]
    fn authentic_frames_against_the_specification_are_refused() {
        for text in
            [&[0_u8; 5][..], &[0], &[9], b"payload\x05", &[Kind::Abort as u8], b"ab\x04", b"a\x03", &[1]]
        {
            let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
            let mut frame = seal_raw(&mut sealer, text);
            assert!(matches!(opener.open(&mut frame), Err(FrameError::Misbehaved(_))), "{text:?}");
        }
    }

    #[test]
    fn a_first_frame_that_is_not_open_is_refused() {
        for kind in [Kind::Data, Kind::End, Kind::Abort] {
            let (mut sealer, opener) = pair(Cipher::Aes256Gcm);
            let mut frame = seal(&mut sealer, kind, &[]);
            assert!(matches!(First(opener).open(&mut frame), Err(FrameError::Misbehaved(_))), "{kind:?}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_opened() {
        for sealed in [0, 1, 16, 65_535] {
            let header = u16::try_from(sealed).unwrap().to_be_bytes();
            assert_eq!(frame_length(header), Err(FrameError::Length(sealed)));
        }
        assert_eq!(frame_length([0, 17]), Ok(OVERHEAD));
        assert_eq!(frame_length([0xff, 0xfe]), Ok(FRAME_MAX));
    }

    #[test]
    fn a_frame_shorter_or_longer_than_its_header_says_is_refused() {
        let frame = seal(&mut pair(Cipher::Aes256Gcm).0, Kind::Data, b"payload");
        for cut in 0..frame.len() {
            let (_, mut opener) = pair(Cipher::Aes256Gcm);
            assert!(opener.open(&mut frame[..cut].to_vec()).is_err(), "{cut} bytes");
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert!(pair(Cipher::Aes256Gcm).1.open(&mut longer).is_err());
    }

    #[test]
    fn after_a_refused_frame_nothing_opens_not_even_the_frame_that_is_due() {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        let mut frames = [b"a", b"b"].map(|payload| seal(&mut sealer, Kind::Data, payload));
        let mut garbage = [0; OVERHEAD];
        garbage[1] = 17;
        assert_eq!(opener.open(&mut garbage), Err(FrameError::Forged));
        for frame in &mut frames {
            assert!(matches!(opener.open(frame), Err(FrameError::Misbehaved(_))));
        }
    }

    #[test]
    fn after_end_and_abort_nothing_opens() {
        for (kind, payload) in [(Kind::End, &[][..]), (Kind::Abort, &[1])] {
            let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
            opener.open(&mut seal(&mut sealer, kind, payload)).unwrap();
            let mut late = seal(&mut sealer, Kind::Data, b"late");
            assert!(matches!(opener.open(&mut late), Err(FrameError::Misbehaved(_))), "{kind:?}");
        }
    }

    /// Both ends of one direction, after a connection that has carried `payload` and ended well.
    fn renewed(payload: &[u8]) -> (First<Sealer>, First<Opener>, Secret) {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        opener.open(&mut seal(&mut sealer, Kind::Data, payload)).unwrap();
        let before = sealer.0.secret.clone();
        let mut slot = [0; OVERHEAD];
        let (_, sealed) = sealer.end(&mut slot).unwrap();
        assert_eq!(opener.open(&mut slot), Ok(Received::End));
        (sealed.renew_first(), opener.spent().unwrap().renew_first(), before)
    }

    #[test]
    fn another_connection_follows_with_other_secrets_and_numbers_that_go_on() {
        let (sealer, opener, before) = renewed(b"first");
        assert_eq!(sealer.0.0.secret, opener.0.0.secret);
        assert_ne!(sealer.0.0.secret, before);
        assert_eq!((sealer.0.0.counter, opener.0.0.counter), (2, 2));
        let mut slot = vec![0; FRAME_MAX];
        let info = ConnectionInfo::default();
        let (mut sealer, length) = sealer.open(&info, &mut slot);
        let (mut opener, _) = opener.open(&mut slot[..length]).unwrap();
        let mut frame = seal(&mut sealer, Kind::Data, b"second");
        assert_eq!(opener.open(&mut frame), Ok(Received::Data(2..8)));
    }

    #[test]
    fn the_next_connection_begins_with_open_and_nothing_else() {
        for kind in [Kind::Data, Kind::End, Kind::Abort] {
            let (sealer, opener, _) = renewed(b"first");
            let mut frame = seal(&mut { sealer.0 }, kind, &[]);
            assert!(matches!(opener.open(&mut frame), Err(FrameError::Misbehaved(_))), "{kind:?}");
        }
    }

    #[test]
    fn a_frame_of_the_connection_before_does_not_open_in_the_next_one() {
        let (mut sealer, mut opener) = pair(Cipher::Aes256Gcm);
        let mut end = seal(&mut sealer, Kind::End, &[]);
        let mut late = seal(&mut sealer, Kind::Data, b"late");
        opener.open(&mut end).unwrap();
        let mut opener = opener.spent().unwrap().renew();
        assert_eq!(opener.open(&mut late), Err(FrameError::Forged));
    }

    #[test]
    fn a_direction_that_has_not_ended_well_is_good_for_nothing_more() {
        let (mut sealer, opener) = pair(Cipher::Aes256Gcm);
        assert!(opener.spent().is_none(), "it still runs");
        let (_, mut opener) = pair(Cipher::Aes256Gcm);
        opener.open(&mut seal(&mut sealer, Kind::Abort, &[1])).unwrap();
        assert!(opener.spent().is_none(), "it was aborted");
        let (_, mut opener) = pair(Cipher::Aes256Gcm);
        let mut garbage = [0; OVERHEAD];
        garbage[1] = 17;
        assert!(opener.open(&mut garbage).is_err());
        assert!(opener.spent().is_none(), "a frame was refused");
    }
}
