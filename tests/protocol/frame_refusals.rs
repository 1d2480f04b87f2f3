//! What a reader of frames refuses (PROTOCOL.md, sections 5 and 6), under both ciphers, and what it must not mistake
//! for a complete stream.

use spipe::proto::cipher::Cipher;
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{AbortReason, FRAME_MAX, FrameError, PAYLOAD_MAX};

use crate::support::{
    CIPHERS, Read, Stop, abort_frame, connect, data_frame, end_frame, open_frame, raw_frame, read_initiator,
    read_stream, rekeyed,
};

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const ABORT: u8 = 4;

/// Frames of one key before the next (step T5), as the specification has it.
const REKEY_AFTER: u64 = 65_536;

fn info() -> ConnectionInfo {
    ConnectionInfo { client: Some("192.0.2.7:50123".parse().unwrap()) }
}

/// A whole stream of the initiator's, a frame an element: Open, three times Data, End.
fn frames(cipher: Cipher, seed: u8) -> Vec<Vec<u8>> {
    let (mut sealer, open) = open_frame(connect(cipher, seed).initiator, &info());
    let data = [&b"one"[..], b"two", b"three"].map(|payload| data_frame(&mut sealer, payload));
    [vec![open], data.to_vec(), vec![end_frame(sealer)]].concat()
}

/// Reads `wire` as the responder of a fresh connection with the same keys as [`frames`]`(cipher, 1)`.
fn read(cipher: Cipher, wire: &[u8]) -> Read {
    read_initiator(connect(cipher, 1).responder_reads, wire)
}

/// Reads frames of these plaintexts, sealed by someone who has the key, behind nothing.
fn read_raw(cipher: Cipher, texts: &[&[u8]]) -> Read {
    let connection = connect(cipher, 1);
    let key = connection.keys.to_responder;
    let frames = (0..).zip(texts).map(|(counter, text)| raw_frame(cipher, &key, counter, text));
    read_initiator(connection.responder_reads, &frames.collect::<Vec<_>>().concat())
}

#[test]
fn an_untouched_stream_arrives_whole() {
    // Without this, a reader that refused everything would pass the rest of this file.
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
    use AbortReason::{Busy, Other, Reset, Shutdown, TargetUnreachable};
    for (reason, code) in [(Reset, 1), (TargetUnreachable, 2), (Busy, 3), (Shutdown, 4), (Other(200), 200)] {
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
        // The Data frame in the middle. More stream follows it than a small flip in its header asks for, so that a
        // frame cut too long meets its tag as well.
        let start = frames[..2].concat().len();
        for bit in start * 8..(start + frames[2].len()) * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = read(cipher, &flipped);
            assert_eq!(read.data, [b"one"], "{cipher}, bit {bit}");
            // A length raised beyond the stream's end leaves the reader waiting: also no end, and nothing delivered.
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
fn a_stream_cut_anywhere_is_cut_short_and_never_ended() {
    // Whoever owns the network can forge TCP's end of file. Only End ends a stream, also when the cut is just behind
    // a whole frame, where spiped would see a clean end.
    for cipher in CIPHERS {
        let frames = frames(cipher, 1);
        let wire = frames.concat();
        for length in 0..wire.len() {
            let read = read(cipher, &wire[..length]);
            assert_eq!(read.stop, Stop::CutShort, "{cipher}, {length} bytes");
            // What arrived whole counts; of a frame that did not, nothing is seen.
            let whole = (1..4).filter(|&last| frames[..=last].concat().len() <= length).count();
            assert_eq!(read.data.len(), whole, "{cipher}, {length} bytes");
        }
    }
}

#[test]
fn bytes_missing_inside_the_stream_are_refused_or_leave_it_waiting() {
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
    // A frame's number is its nonce and is nowhere on the wire, so there is nothing that could be renumbered. Among
    // the pairs are those with Open and with End.
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
    // Of a replayed End or Abort only the test of what comes behind them can tell: the first already ended the
    // stream.
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
fn a_dropped_frame_is_noticed_at_the_next_one() {
    for cipher in CIPHERS {
        // Without the last frame, End, the stream is cut short: tested above.
        for dropped in 0..4 {
            let mut frames = frames(cipher, 1);
            frames.remove(dropped);
            let read = read(cipher, &frames.concat());
            assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}, frame {dropped}");
        }
    }
}

#[test]
fn anything_behind_end_or_abort_is_refused() {
    for cipher in CIPHERS {
        for last in [&[END][..], &[1, ABORT]] {
            for late in [&[DATA][..], &[END], &[1, ABORT], &[OPEN]] {
                let read = read_raw(cipher, &[&[OPEN], last, late]);
                assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{last:?} {late:?}");
            }
        }
    }
}

#[test]
fn a_frame_reflected_to_its_sender_is_refused() {
    for cipher in CIPHERS {
        // To the initiator: its own Open, which is frame 0 of the direction that it reads too.
        let connection = connect(cipher, 1);
        let (_, open) = open_frame(connection.initiator, &info());
        let read = read_stream(connection.initiator_reads, &open);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");

        // To the responder: an Open under the key that it sends with. Its sealer cannot make one, its key can.
        let connection = connect(cipher, 1);
        let open = raw_frame(cipher, &connection.keys.to_initiator, 0, &[OPEN]);
        let read = read_initiator(connection.responder_reads, &open);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");
    }
}

#[test]
fn a_frame_of_another_connection_is_refused() {
    // The same key file, and the same place in the stream: connections are kept apart by what each handshake drew.
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
fn frames_under_the_other_cipher_are_refused() {
    // The cipher is agreed once. A reader that tried both would double a forger's chances and hide a confused sender.
    // Here key and nonce are the same, and only the cipher differs.
    for (cipher, other) in [(CIPHERS[0], CIPHERS[1]), (CIPHERS[1], CIPHERS[0])] {
        let connection = connect(cipher, 1);
        let frame = raw_frame(other, &connection.keys.to_responder, 0, &[OPEN]);
        let read = read_initiator(connection.responder_reads, &frame);
        assert_eq!(read.stop, Stop::Refused(FrameError::Forged), "{cipher}");
    }
}

#[test]
fn a_first_frame_other_than_open_is_refused() {
    // The responder dials when the first frame has opened. What is no Open must not get it that far, even from a
    // holder of the key.
    for cipher in CIPHERS {
        for text in [&[DATA][..], b"GET /\x02", &[END], &[1, ABORT], &[5], &[0]] {
            let read = read_raw(cipher, &[text]);
            assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{cipher}, {text:?}");
        }
    }
}

#[test]
fn a_second_open_is_refused() {
    for cipher in CIPHERS {
        let read = read_raw(cipher, &[&[OPEN], b"x\x02", &[OPEN]]);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{cipher}");
        assert_eq!(read.data, [b"x"]);
    }
}

#[test]
fn an_open_from_the_responder_is_refused() {
    // Only the initiator's direction starts with Open. The types keep our responder from sending one, and no other's.
    for cipher in CIPHERS {
        let connection = connect(cipher, 1);
        let frame = raw_frame(cipher, &connection.keys.to_initiator, 0, &[OPEN]);
        let read = read_stream(connection.initiator_reads, &frame);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{cipher}");
    }
}

#[test]
fn an_open_with_malformed_fields_is_refused() {
    // Cut in the field's header, cut in its value, and a client address of no family's length.
    for text in [&[1, 0, OPEN][..], &[1, 0, 6, 192, 0, 2, OPEN], &[1, 0, 3, 7, 7, 7, OPEN]] {
        let read = read_raw(Cipher::Aes256Gcm, &[text]);
        assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{text:?}");
    }
}

#[test]
fn authentic_frames_that_the_specification_forbids_are_refused() {
    // In turn: nothing but padding, two unknown kinds, End with a payload, Abort without its reason, Abort with two.
    for cipher in CIPHERS {
        for text in [&[0_u8; 30][..], b"x\x05", b"x\xff", b"x\x03", &[ABORT], b"ab\x04"] {
            let read = read_raw(cipher, &[&[OPEN], text]);
            assert!(matches!(read.stop, Stop::Refused(FrameError::Unexpected(_))), "{cipher}, {text:?}");
        }
    }
}

#[test]
fn padding_and_unknown_reasons_and_fields_of_later_versions_are_accepted() {
    // The room that the format leaves. Were it refused today, no later version could ever use it. The payload that
    // ends in a zero shows that padding is found from the kind and not guessed from the zeros.
    for cipher in CIPHERS {
        let read = read_raw(cipher, &[&[9, 0, 1, 7, OPEN, 0, 0], b"x\0\x02\0\0\0", &[99, ABORT, 0]]);
        let stop = Stop::Abort(AbortReason::Other(99));
        assert_eq!(read, Read { info: Some(ConnectionInfo::default()), data: vec![b"x\0".to_vec()], stop });
    }
}

#[test]
fn a_frame_of_impossible_length_is_refused_from_its_header_alone() {
    // Before a byte of the frame has come: otherwise a stranger on the wire could make the reader wait for, or
    // reserve, what no frame can have.
    for cipher in CIPHERS {
        for header in [[0, 0], [0, 16], [0xff, 0xff]] {
            assert!(read(cipher, &header).is_refused(), "{header:?}");
        }
    }
}

#[test]
fn a_sealer_that_does_not_rekey_or_rekeys_early_or_counts_anew_is_refused() {
    for cipher in CIPHERS {
        // What the frame is sealed with that comes when 65,536 frames are through: (rekeys, nonce).
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
