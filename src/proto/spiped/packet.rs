//! The packets that follow the handshake.
//!
//! ```text
//!  0                              1024      1028                  1060
//!  ├──────────┬────────────────────┼──────────┼─────────────────────┤
//!  │ payload  │ zeros              │ length   │ HMAC-SHA256         │
//!  └──────────┴────────────────────┴──────────┴─────────────────────┘
//!   └──────── AES-256-CTR ────────────────────┘ └ of that, and of the packet's number
//! ```
//!
//! Every packet has a payload and this length. There is none for an end, nor for a failure.

use std::ops::Range;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::iv::FixedLength;

use crate::proto::frame::{AbortReason, Exhausted, FrameError, Misbehaviour};
use crate::proto::framing::{EndOfStream, Ending, Open, Received, Seal, Slot};
use crate::proto::stack::{self, wiped};

/// The most payload bytes in a packet.
pub const PAYLOAD_MAX: usize = 1024;
/// Bytes of what is encrypted: the payload, zeros, and the payload's length.
const TEXT: usize = PAYLOAD_MAX + 4;
/// Bytes of a packet.
pub const PACKET: usize = TEXT + 32;

/// Seals one direction's packets. In a box, since sealers and openers move, and a secret must not.
pub struct Sealer(Box<Direction>);

impl Sealer {
    pub(super) fn new(keys: &[u8]) -> Self {
        Self(Box::new(Direction::new(keys)))
    }
}

impl Seal for Sealer {
    const SLOT: Slot = Slot { size: PACKET, head: 0, tail: PACKET - PAYLOAD_MAX };
    type Spent = ();

    /// # Panics
    /// When `slot` is shorter than [`PACKET`], or `payload` above [`PAYLOAD_MAX`].
    fn data(&mut self, slot: &mut [u8], payload: usize) -> Result<usize, Exhausted> {
        let packet = slot.first_chunk_mut::<PACKET>().expect("a slot has room for a packet");
        let (text, mac) = packet.split_first_chunk_mut::<TEXT>().expect("a packet is longer than its text");
        text[payload..PAYLOAD_MAX].fill(0);
        let length = u32::try_from(payload).expect("a payload fits into its packet");
        text[PAYLOAD_MAX..].copy_from_slice(&length.to_be_bytes());
        let number = self.0.next()?;
        wiped::<{ stack::PACKET }, _>(|| {
            self.0.encrypt(number, text);
            mac.copy_from_slice(self.0.authenticate(number, text).as_ref());
        });
        Ok(PACKET)
    }

    fn end(self, _slot: &mut [u8]) -> Result<(Ending, ()), Exhausted> {
        Ok((Ending::HalfClose, ()))
    }

    fn abort(self, _reason: AbortReason, _slot: &mut [u8]) -> Result<Option<usize>, Exhausted> {
        Ok(None)
    }
}

/// Opens one direction's packets.
pub struct Opener(Box<Direction>, Stream);

/// Whether a direction may carry more packets.
enum Stream {
    Running,
    /// A packet was refused. Nothing after it can be trusted to be in order.
    Over,
}

impl Opener {
    pub(super) fn new(keys: &[u8]) -> Self {
        Self(Box::new(Direction::new(keys)), Stream::Running)
    }

    fn unseal(&mut self, packet: &mut [u8; PACKET]) -> Result<Range<usize>, FrameError> {
        let (text, mac) = packet.split_first_chunk_mut::<TEXT>().expect("a packet is longer than its text");
        let number = self.0.next()?;
        let is_authentic = wiped::<{ stack::PACKET }, _>(|| {
            let is_authentic =
                verify_slices_are_equal(self.0.authenticate(number, text).as_ref(), mac).is_ok();
            if is_authentic {
                // In this mode, to decrypt is to encrypt.
                self.0.encrypt(number, text);
            }
            is_authentic
        });
        if !is_authentic {
            return Err(FrameError::Forged);
        }
        let length = text.last_chunk().map(|length| u32::from_be_bytes(*length));
        match length.and_then(|length| usize::try_from(length).ok()) {
            // As in spiped, what is between the payload and its length is not looked at.
            Some(length @ 1..=PAYLOAD_MAX) => Ok(0..length),
            _ => Err(Misbehaviour::PacketLength.into()),
        }
    }
}

impl Open for Opener {
    const FRAME_MAX: usize = PACKET;
    const END_OF_STREAM: EndOfStream = EndOfStream::End;

    fn next_length(_unread: &[u8]) -> Result<Option<usize>, FrameError> {
        Ok(Some(PACKET))
    }

    fn open(&mut self, frame: &mut [u8]) -> Result<Received, FrameError> {
        if let Stream::Over = self.1 {
            return Err(Misbehaviour::FrameAfterEnd.into());
        }
        self.1 = Stream::Over;
        let length = frame.len();
        let packet = frame.try_into().map_err(|_| FrameError::Length(length))?;
        let payload = self.unseal(packet)?;
        self.1 = Stream::Running;
        Ok(Received::Data(payload))
    }
}

/// One direction's keys, and how many packets it had.
struct Direction {
    cipher: EncryptingKey,
    mac: hmac::Key,
    /// Sealed or opened so far: the next packet's number. It is never sent.
    packets: u64,
}

impl Direction {
    /// Of 32 bytes for the cipher and 32 for the HMAC. To be called within [`wiped`].
    fn new(keys: &[u8]) -> Self {
        let (cipher, mac) = keys.split_at(32);
        let cipher = UnboundCipherKey::new(&AES_256, cipher).expect("AES-256 takes 32 bytes of key");
        let cipher = EncryptingKey::ctr(cipher).expect("AES has this mode");
        Self { cipher, mac: hmac::Key::new(HMAC_SHA256, mac), packets: 0 }
    }

    /// The next packet's number. With none left, counter blocks would repeat.
    fn next(&mut self) -> Result<u64, Exhausted> {
        let number = self.packets;
        self.packets = number.checked_add(1).ok_or(Exhausted)?;
        Ok(number)
    }

    /// The counter blocks are the packet's number and that of the block in it, 64 bits each.
    fn encrypt(&self, number: u64, text: &mut [u8; TEXT]) {
        let mut block = [0; 16];
        block[..8].copy_from_slice(&number.to_be_bytes());
        self.cipher
            .less_safe_encrypt(text, EncryptionContext::Iv128(FixedLength::from(block)))
            .expect("a packet is far below the cipher's limit");
    }

    fn authenticate(&self, number: u64, text: &[u8; TEXT]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(text);
        context.update(&number.to_be_bytes());
        context.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(&[7; 64]), Opener::new(&[7; 64]))
    }

    fn seal(sealer: &mut Sealer, payload: &[u8]) -> [u8; PACKET] {
        let mut packet = [0xee; PACKET];
        packet[..payload.len()].copy_from_slice(payload);
        assert_eq!(sealer.data(&mut packet, payload.len()), Ok(PACKET));
        packet
    }

    /// An authentic packet that says that its payload has this length.
    fn seal_with_length(sealer: &mut Sealer, length: u32) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        let (text, mac) = packet.split_first_chunk_mut::<TEXT>().unwrap();
        text[PAYLOAD_MAX..].copy_from_slice(&length.to_be_bytes());
        let number = sealer.0.next().unwrap();
        sealer.0.encrypt(number, text);
        mac.copy_from_slice(sealer.0.authenticate(number, text).as_ref());
        packet
    }

    #[test]
    fn payloads_of_every_edge_size_arrive() {
        let (mut sealer, mut opener) = pair();
        for size in [1, 2, 15, 16, 17, 1023, 1024] {
            let payload: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut packet = seal(&mut sealer, &payload);
            assert_eq!(opener.open(&mut packet), Ok(Received::Data(0..size)));
            assert_eq!(packet[..size], payload);
            assert_eq!(packet[size..PAYLOAD_MAX], vec![0; PAYLOAD_MAX - size]);
        }
    }

    #[test]
    fn authentic_packets_without_a_payload_or_with_too_long_a_one_are_refused() {
        for length in [0, 1025, u32::MAX] {
            let (mut sealer, mut opener) = pair();
            let mut packet = seal_with_length(&mut sealer, length);
            let refused = FrameError::Misbehaved(Misbehaviour::PacketLength);
            assert_eq!(opener.open(&mut packet), Err(refused), "{length}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let packet = seal(&mut pair().0, b"payload");
        for bit in 0..PACKET * 8 {
            let (_, mut opener) = pair();
            let mut altered = packet;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open(&mut altered), Err(FrameError::Forged), "bit {bit}");
        }
    }

    #[test]
    fn a_packet_of_another_length_is_refused() {
        let packet = seal(&mut pair().0, b"payload");
        for length in [0, 1, PACKET - 1] {
            let mut shorter = packet[..length].to_vec();
            assert_eq!(pair().1.open(&mut shorter), Err(FrameError::Length(length)));
        }
        let mut longer = packet.to_vec();
        longer.push(0);
        assert_eq!(pair().1.open(&mut longer), Err(FrameError::Length(PACKET + 1)));
    }

    #[test]
    fn packets_repeated_exchanged_or_left_out_are_refused() {
        for order in [[0, 0], [1, 0], [0, 2]] {
            let (mut sealer, mut opener) = pair();
            let packets = [b"a", b"b", b"c"].map(|payload| seal(&mut sealer, payload));
            let results = order.map(|number: usize| opener.open(&mut packets[number].clone()));
            assert!(results.contains(&Err(FrameError::Forged)), "{order:?}");
        }
    }

    #[test]
    fn after_a_refused_packet_nothing_opens_not_even_the_packet_that_is_due() {
        let (mut sealer, mut opener) = pair();
        let packets = [b"a", b"b"].map(|payload| seal(&mut sealer, payload));
        assert_eq!(opener.open(&mut [0; PACKET]), Err(FrameError::Forged));
        for mut packet in packets {
            assert_eq!(opener.open(&mut packet), Err(Misbehaviour::FrameAfterEnd.into()));
        }
    }

    #[test]
    fn packets_of_one_direction_do_not_open_with_the_keys_of_the_other() {
        let mut packet = seal(&mut Sealer::new(&[8; 64]), b"payload");
        assert_eq!(pair().1.open(&mut packet), Err(FrameError::Forged));
    }

    #[test]
    fn a_used_up_counter_refuses_instead_of_wrapping() {
        let (mut sealer, mut opener) = pair();
        let mut packet = seal(&mut sealer, b"x");
        (sealer.0.packets, opener.0.packets) = (u64::MAX, u64::MAX);
        assert_eq!(sealer.data(&mut [0; PACKET], 1), Err(Exhausted));
        assert_eq!(opener.open(&mut packet), Err(FrameError::Exhausted(Exhausted)));
    }
}
