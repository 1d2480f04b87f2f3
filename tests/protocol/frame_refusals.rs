//! The frames that a reader refuses (PROTOCOL.md, sections 5 and 6), under both ciphers, and the streams that it must
//! not mistake for complete ones.

use spipe::proto::cipher::Cipher;
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{AbortReason, FRAME_MAX, FrameError, PAYLOAD_MAX};

use crate::support::{
    CIPHERS, REKEY_AFTER, Read, Stop, abort_frame, connect, data_frame, end_frame, open_frame, raw_frame,
    read_initiator, read_stream, rekeyed,
};

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const ABORT: u8 = 4;

fn info() -> ConnectionInfo {
    ConnectionInfo { client: Some("192.0.2.7:50123".parse().unwrap()), ..ConnectionInfo::default() }
}

/// A whole stream of the initiator, one frame per element: Open, three times Data, End.
fn frames(cipher: Cipher, seed: u8) -> Vec<Vec<u8>> {
    let (mut sealer, open) = open_frame(connect(cipher, seed).initiator, &info());
    let data = [&b"one"[..], b"two", b"three"].map(|payload| data_frame(&mut sealer, payload));
    [vec![open], data.to_vec(), vec![end_frame(sealer)]].concat()
}

/// Reads `wire` as the responder of a new connection with the same keys as [`frames`]`(cipher, 1)`.
fn read(cipher: Cipher, wire: &[u8]) -> Read {
    read_initiator(connect(cipher, 1).responder_reads, wire)
}

/// Reads frames with these texts, sealed by a key holder, as the whole stream of the initiator.
fn read_raw(cipher: Cipher, texts: &[&[u8]]) -> Read {
    let connection = connect(cipher, 1);
    let key = connection.keys.to_responder;
    let frames = (0..).zip(texts).map(|(counter, text)| raw_frame(cipher, &key, counter, text));
    read_initiator(connection.responder_reads, &frames.collect::<Vec<_>>().concat())
}

#[test]
fn an_untouched_stream_arrives_whole() {
    // Without this test, a reader that refuses everything would pass all others in this file.
    for cipher in CIPHERS {
        let read = read(cipher, &frames(cipher, 1).concat());
        let data = [&b"one"[..], b"two", b"three"].map(<[u8]>::to_vec).to_vec();
        assert_eq!(read, Read { info: Some(info()), data, stop: Stop::End });
    }
}

#[test]
fn the_responders_stream_arrives_whole() {
    for cipher in CIPHERS {
        let mut connection = connect(cipher, 1);
        let mut wire = data_frame(&mut connection.responder, b"hello");
        wire.extend(abort_frame(connection.responder, AbortReason::TargetUnreachable));
        let read = read_stream(connection.initiator_reads, &wire);
        assert_eq!(read.data, [b"hello"]);
        assert_eq!(read.stop, Stop::Abort(AbortReason::TargetUnreachable));
    }
}

#[test]
fn every_abort_reason_has_its_own_code_on_the_wire() {
    use AbortReason::{Busy, Expired, Idle, KeyRefused, Other, Reset, Shutdown, TargetUnreachable};
    let first = [(Reset, 1), (TargetUnreachable, 2), (Busy, 3), (Shutdown, 4)];
    let later = [(KeyRefused, 5), (Idle, 6), (Expired, 7), (Other(200), 200)];
    for (reason, code) in first.into_iter().chain(later) {
        let connection = connect(Cipher::Aes256Gcm, 1);
        let frame = abort_frame(connection.responder, reason);
        assert_eq!(frame, raw_frame(Cipher::Aes256Gcm, &connection.keys.to_initiator, 0, &[code, ABORT]));
        assert_eq!(read_stream(connection.initiator_reads, &frame).stop, Stop::Abort(reason));
    }
}

#[test]
fn the_largest_frame_arrives() {
    for cipher in CIPHERS {
        let mut connection = connect(cipher, 1);
        let frame = data_frame(&mut connection.responder, &vec![7; PAYLOAD_MAX]);
        assert_eq!(frame.len(), FRAME_MAX);
        assert_eq!(read_stream(connection.initiator_reads, &frame).data, [vec![7; PAYLOAD_MAX]]);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_frame_is_refused() {
    for cipher in CIPHERS {
        let frames = frames(cipher, 1);
        let wire = frames.concat();
        // The Data frame in the middle. After a flip of a low bit in its length, enough bytes follow it that the
        // frame is read to the end and its tag is checked.
        let start = frames[..2].concat().len();
        for bit in start * 8..(start + frames[2].len()) * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = read(cipher, &flipped);
            assert_eq!(read.data, [b"one"], "{cipher}, bit {bit}");
            // If the length goes beyond the end of the stream, the reader waits: no end, and nothing is delivered.
            assert!(read.is_refused() || read.stop == Stop::CutShort, "{cipher}, bit {bit}");
            let in_header = bit / 8 < start + 2;
            assert!(in_header || read.is_refused(), "{cipher}, bit {bit}");
        }
    }
}

#[test]
fn a_flipped_bit_in_the_first_frame_is_refused() {
    for cipher in CIPHERS {
        let wire = frames(cipher, 1).concat();
        for bit in 0..frames(cipher, 1)[0].len() * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = read(cipher, &flipped);
            assert_eq!((&read.info, read.data.len()), (&None, 0), "{cipher}, bit {bit}");
            assert!(read.is_refused() || read.stop == Stop::CutShort, "{cipher}, bit {bit}");
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_a_truncation_and_not_an_end() {
    // An attacker who controls the network can forge TCP's end of file. Only End ends a stream, even if the cut is
    // directly after a whole frame, where spiped would see a clean end.
    for cipher in CIPHERS {
        let frames = frames(cipher, 1);
        let wire = frames.concat();
        for length in 0..wire.len() {
            let read = read(cipher, &wire[..length]);
            assert_eq!(read.stop, Stop::CutShort, "{cipher}, {length} bytes");
            // Whole frames are delivered, and nothing of an incomplete frame.
            let whole = (1..4).filter(|&last| frames[..=last].concat().len() <= length).count();
            assert_eq!(read.data.len(), whole, "{cipher}, {length} bytes");
        }
    }
}

#[test]
fn a_stream_with_a_missing_byte_does_not_end_cleanly() {
    for cipher in CIPHERS {
        let wire = frames(cipher, 1).concat();
        for missing in 0..wire.len() {
            let mut shorter = wire.clone();
            shorter.remove(missing);
            assert_ne!(read(cipher, &shorter).stop, Stop::End, "{cipher}, byte {missing}");
        }
    }
}

#[test]
fn swapped_frames_are_refused() {
    // The number of a frame is its nonce and is not on the wire, so an attacker cannot change it. Some of the pairs
    // include Open or End.
    for cipher in CIPHERS {
        for (one, two) in [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (0, 4)] {
            let mut frames = frames(cipher, 1);
            frames.swap(one, two);
            let read = read(cipher, &frames.concat());
            assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}, {one} and {two}");
            assert_eq!(read.data.len(), one.saturating_sub(1));
        }
    }
}

#[test]
fn a_replayed_frame_is_refused() {
    // A replayed End or Abort is covered by the test of frames after them: the first one already ended the stream.
    for cipher in CIPHERS {
        for replayed in 0..4 {
            let mut frames = frames(cipher, 1);
            frames.insert(replayed + 1, frames[replayed].clone());
            let read = read(cipher, &frames.concat());
            assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}, frame {replayed}");
            assert_eq!(read.data.len(), replayed);
        }
    }
}

#[test]
fn a_dropped_frame_is_detected_at_the_next_one() {
    for cipher in CIPHERS {
        // Without the last frame, End, the stream is cut short, which is tested above.
        for dropped in 0..4 {
            let mut frames = frames(cipher, 1);
            frames.remove(dropped);
            let read = read(cipher, &frames.concat());
            assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}, frame {dropped}");
        }
    }
}

#[test]
fn any_frame_after_end_or_abort_is_refused() {
    for cipher in CIPHERS {
        for last in [&[END][..], &[1, ABORT]] {
            for late in [&[DATA][..], &[END], &[1, ABORT], &[OPEN]] {
                let read = read_raw(cipher, &[&[OPEN], last, late]);
                assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{last:?} {late:?}");
            }
        }
    }
}

#[test]
fn a_frame_reflected_to_its_sender_is_refused() {
    for cipher in CIPHERS {
        // To the initiator: its own Open, as frame 0 of the direction that it reads.
        let connection = connect(cipher, 1);
        let (_, open) = open_frame(connection.initiator, &info());
        let read = read_stream(connection.initiator_reads, &open);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");

        // To the responder: an Open under the key that it sends with. The product's sealer cannot make one there.
        let connection = connect(cipher, 1);
        let open = raw_frame(cipher, &connection.keys.to_initiator, 0, &[OPEN]);
        let read = read_initiator(connection.responder_reads, &open);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");
    }
}

#[test]
fn a_frame_of_another_connection_is_refused() {
    // The key file and the position in the stream are the same. Only the random bytes of the handshakes differ.
    for cipher in CIPHERS {
        let (ours, others) = (frames(cipher, 1), frames(cipher, 2));
        for place in 0..5 {
            let mut mixed = ours.clone();
            mixed[place].clone_from(&others[place]);
            let read = read(cipher, &mixed.concat());
            assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}, frame {place}");
        }
    }
}

#[test]
fn frames_under_another_cipher_are_refused() {
    // The cipher is agreed on once. A reader that tried all would multiply a forger's chances and hide faults of
    // a sender. Here the direction's secret and the nonce are the same, and only the cipher differs.
    let pairs = CIPHERS.into_iter().flat_map(|cipher| CIPHERS.map(|other| (cipher, other)));
    for (cipher, other) in pairs.filter(|(cipher, other)| cipher != other) {
        let connection = connect(cipher, 1);
        let frame = raw_frame(other, &connection.keys.to_responder, 0, &[OPEN]);
        let read = read_initiator(connection.responder_reads, &frame);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");
    }
}

#[test]
fn a_first_frame_other_than_open_is_refused() {
    // The responder dials after it has opened the first frame. No other frame than Open may cause that, even from a
    // key holder.
    for cipher in CIPHERS {
        for text in [&[DATA][..], b"GET /\x02", &[END], &[1, ABORT], &[5], &[0]] {
            let read = read_raw(cipher, &[text]);
            assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{cipher}, {text:?}");
        }
    }
}

#[test]
fn a_second_open_is_refused() {
    for cipher in CIPHERS {
        let read = read_raw(cipher, &[&[OPEN], b"x\x02", &[OPEN]]);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{cipher}");
        assert_eq!(read.data, [b"x"]);
    }
}

#[test]
fn an_open_from_the_responder_is_refused() {
    // Only the initiator's direction starts with Open. The types prevent our responder from sending one, but another
    // implementation could.
    for cipher in CIPHERS {
        let connection = connect(cipher, 1);
        let frame = raw_frame(cipher, &connection.keys.to_initiator, 0, &[OPEN]);
        let read = read_stream(connection.initiator_reads, &frame);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{cipher}");
    }
}

#[test]
fn an_open_with_malformed_fields_is_refused() {
    // In turn: cut in the header of a field, cut in its value, and a client address of invalid length.
    for text in [&[1, 0, OPEN][..], &[1, 0, 6, 192, 0, 2, OPEN], &[1, 0, 3, 7, 7, 7, OPEN]] {
        let read = read_raw(Cipher::Aes256Gcm, &[text]);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{text:?}");
    }
}

#[test]
fn authentic_frames_that_the_specification_forbids_are_refused() {
    // In turn: only padding, two unknown kinds, End with a payload, Abort without a reason, Abort with two.
    for cipher in CIPHERS {
        for text in [&[0_u8; 30][..], b"x\x05", b"x\xff", b"x\x03", &[ABORT], b"ab\x04"] {
            let read = read_raw(cipher, &[&[OPEN], text]);
            assert!(matches!(read.stop, Stop::Refused(FrameError::Misbehaved(_))), "{cipher}, {text:?}");
        }
    }
}

#[test]
fn padding_and_unknown_reasons_and_fields_of_later_versions_are_accepted() {
    // The format reserves these for later versions. If readers refused them today, no later version could use them.
    // The payload that ends with a zero shows that padding starts after the kind, and not at the first zero.
    for cipher in CIPHERS {
        let read = read_raw(cipher, &[&[9, 0, 1, 7, OPEN, 0, 0], b"x\0\x02\0\0\0", &[99, ABORT, 0]]);
        let stop = Stop::Abort(AbortReason::Other(99));
        assert_eq!(read, Read { info: Some(ConnectionInfo::default()), data: vec![b"x\0".to_vec()], stop });
    }
}

#[test]
fn a_frame_of_impossible_length_is_refused_from_its_header_alone() {
    // Before any other byte of the frame arrives: otherwise an attacker could make the reader wait for, or reserve,
    // more bytes than a frame can have.
    for cipher in CIPHERS {
        for header in [[0, 0], [0, 16], [0xff, 0xff]] {
            assert!(read(cipher, &header).is_refused(), "{header:?}");
        }
    }
}

#[test]
fn a_sealer_with_missing_or_early_rekeys_or_a_reset_counter_is_refused() {
    for cipher in CIPHERS {
        // The number of rekeys and the nonce of the frame that follows 65,536 frames, and whether it is accepted.
        for (rekeys, counter, accepted) in
            [(1, REKEY_AFTER, true), (0, REKEY_AFTER, false), (2, REKEY_AFTER, false), (1, 0, false)]
        {
            let mut connection = connect(cipher, 1);
            let mut wire = Vec::new();
            for _ in 0..REKEY_AFTER {
                wire.extend(data_frame(&mut connection.responder, b""));
            }
            let key = rekeyed(connection.keys.to_initiator, rekeys);
            wire.extend(raw_frame(cipher, &key, counter, &[END]));
            let stop = read_stream(connection.initiator_reads, &wire).stop;
            let expected = if accepted { Stop::End } else { Stop::Refused(FrameError::Forged) };
            assert_eq!(stop, expected, "{cipher}, {rekeys} rekeys, nonce {counter}");
        }
    }
}
