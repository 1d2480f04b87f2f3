//! spiped's protocol: byte for byte as recorded in `vectors/spiped.txt`, and what is refused.
//!
//! `SPIPE_RECORD=1 cargo test --test protocol spiped` writes the file anew. That wire is fixed, so this is only for adding vectors.
//! `vectors/check.py` derives the same values without any of this code; the program itself is tried in `tests/e2e`.

use std::fmt::Write as _;

use spipe::proto::frame::FrameError;
use spipe::proto::framing::{EndOfStream, Ending, Open, Received, Seal};
use spipe::proto::key::{Key, KeyDerivation};
use spipe::proto::spiped::group::{Half, VALUE};
use spipe::proto::spiped::handshake::{Crossed, End, ForwardSecrecy, NONCE, PROOF, ProofError};
use spipe::proto::spiped::packet::{Opener, PACKET, PAYLOAD_MAX, Sealer};

use crate::second;
use crate::support::{key, other_key, parse};

const RECORDED: &str = include_str!("vectors/spiped.txt");

const HEAD: &str = "\
# Test vectors of spiped's protocol (docs/SPIPED.md). Each section is one connection; all values are hexadecimal.
#
# key_file                            what both ends have
# initiator_*, responder_*            the random bytes: nonces, and the 256 random bits of exponents; none with -f
# initiator_proof, responder_proof    the messages behind the nonces
# to_responder.N.payload, .packet     the packet number N, counted from 0, of this direction, and what it carries
#
# Recorded by tests/protocol/spiped.rs; check.py beside this file checks it with independent implementations.
";

const NONCES: [[u8; NONCE]; 2] = [[0x11; NONCE], [0x22; NONCE]];

/// The inputs of a recorded connection.
struct Case {
    name: &'static str,
    key_file: Vec<u8>,
    /// Of the initiator and of the responder; none with `-f`.
    secrets: [Option<[u8; 32]>; 2],
}

fn cases() -> [Case; 3] {
    let counting = |from: u8| std::array::from_fn(|at| from.wrapping_add(u8::try_from(at).unwrap()));
    [
        Case {
            name: "both ends with forward secrecy",
            key_file: (0..32).collect(),
            secrets: [Some([0x33; 32]), Some([0x44; 32])],
        },
        Case { name: "an initiator with -f", key_file: (0..32).collect(), secrets: [None, Some([0x44; 32])] },
        Case {
            name: "a key file with five bytes",
            key_file: b"short".to_vec(),
            secrets: [Some(counting(0x80)), Some(counting(0xe0))],
        },
    ]
}

fn any_key(file: &[u8]) -> Key {
    let mut derivation = KeyDerivation::default();
    derivation.update(file);
    derivation.finish_any()
}

fn half(secret: Option<[u8; 32]>) -> Half {
    secret.map_or_else(Half::none, |secret| Half::new(&secret))
}

/// Both ends after the handshake, and the messages.
struct Connection {
    proofs: [[u8; PROOF]; 2],
    initiator: (Sealer, Opener),
    responder: (Sealer, Opener),
}

fn connect(key: &Key, secrets: [Option<[u8; 32]>; 2]) -> Connection {
    let [ours, theirs] = secrets.map(half);
    let initiator = Crossed::new(key, End::Initiator, &NONCES[0], &NONCES[1]);
    let responder = Crossed::new(key, End::Responder, &NONCES[1], &NONCES[0]);
    let proof = initiator.prove(&ours);
    let responder = responder.verify(&proof, ForwardSecrecy::Offered).unwrap();
    let answer = responder.prove(&theirs);
    let initiator = initiator.verify(&answer, ForwardSecrecy::Offered).unwrap();
    let of_responder = theirs.agree(&responder.theirs());
    let of_initiator = ours.agree(&initiator.theirs());
    let (initiator, responder) = (initiator.finish(&of_initiator), responder.finish(&of_responder));
    Connection {
        proofs: [proof, answer],
        initiator: (initiator.sealer, initiator.opener),
        responder: (responder.sealer, responder.opener),
    }
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[..payload.len()].copy_from_slice(payload);
    sealer.data(&mut packet, payload.len()).unwrap();
    packet
}

fn record() -> String {
    let mut text = HEAD.to_owned();
    for Case { name, key_file, secrets } in cases() {
        let mut connection = connect(&any_key(&key_file), secrets);
        writeln!(text, "\n[{name}]").unwrap();
        let mut field = |name: &str, value: &[u8]| {
            let hex = value.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            writeln!(text, "{}", format!("{name} = {hex}").trim_end()).unwrap();
        };
        field("key_file", &key_file);
        for (at, end) in ["initiator", "responder"].into_iter().enumerate() {
            field(&format!("{end}_nonce"), &NONCES[at]);
            field(&format!("{end}_secret"), secrets[at].as_ref().map_or(&[], |secret| &secret[..]));
            field(&format!("{end}_proof"), &connection.proofs[at]);
        }
        let ends = [("to_responder", &mut connection.initiator), ("to_initiator", &mut connection.responder)];
        for (direction, (sealer, _)) in ends {
            for (number, payload) in [&b"hello"[..], &[b'A'; PAYLOAD_MAX], b"world\n"].into_iter().enumerate()
            {
                field(&format!("{direction}.{number}.payload"), payload);
                field(&format!("{direction}.{number}.packet"), &seal(sealer, payload));
            }
        }
    }
    text
}

#[test]
fn connections_are_byte_for_byte_as_recorded() {
    let text = record();
    if std::env::var_os("SPIPE_RECORD").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protocol/vectors/spiped.txt");
        std::fs::write(path, text).unwrap();
        return;
    }
    assert!(text == RECORDED, "the wire has changed");
    assert_eq!(parse(RECORDED).len(), cases().len());
}

#[test]
fn what_one_end_seals_the_other_opens_in_both_directions() {
    for secrets in
        [[Some([1; 32]), Some([2; 32])], [None, Some([2; 32])], [Some([1; 32]), None], [None, None]]
    {
        let Connection { mut initiator, mut responder, .. } = connect(&key(), secrets);
        for payload in [&b"one"[..], &[7; PAYLOAD_MAX]] {
            let mut packet = seal(&mut initiator.0, payload);
            assert_eq!(responder.1.open(&mut packet), Ok(Received::Data(0..payload.len())));
            assert_eq!(&packet[..payload.len()], payload);
            let mut packet = seal(&mut responder.0, payload);
            assert_eq!(initiator.1.open(&mut packet), Ok(Received::Data(0..payload.len())));
        }
    }
}

#[test]
fn an_end_is_an_end_of_the_stream_and_a_failure_has_no_packet() {
    let Connection { initiator, responder, .. } = connect(&key(), [None, None]);
    assert_eq!(initiator.0.end(&mut []), Ok((Ending::HalfClose, ())));
    let reason = spipe::proto::frame::AbortReason::Reset;
    assert_eq!(responder.0.abort(reason, &mut []), Ok(None));
    assert_eq!(Opener::END_OF_STREAM, EndOfStream::End);
}

/// The responder's view of a proof, which it has to refuse.
fn refusal(key: &Key, proof: &[u8; PROOF], secrecy: ForwardSecrecy) -> Option<ProofError> {
    Crossed::new(key, End::Responder, &NONCES[1], &NONCES[0]).verify(proof, secrecy).err()
}

fn proof_of(key: &Key, nonces: [[u8; NONCE]; 2], half: &Half) -> [u8; PROOF] {
    Crossed::new(key, End::Initiator, &nonces[0], &nonces[1]).prove(half)
}

#[test]
fn a_proof_with_any_flipped_bit_is_refused() {
    let proof = proof_of(&key(), NONCES, &Half::none());
    let key = key();
    assert_eq!(refusal(&key, &proof, ForwardSecrecy::Offered), None);
    for bit in 0..PROOF * 8 {
        let mut altered = proof;
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(refusal(&key, &altered, ForwardSecrecy::Offered), Some(ProofError::Forged), "bit {bit}");
    }
}

#[test]
fn a_proof_of_another_key_is_refused() {
    let proof = proof_of(&other_key(), NONCES, &Half::none());
    assert_eq!(refusal(&key(), &proof, ForwardSecrecy::Offered), Some(ProofError::Forged));
}

#[test]
fn a_proof_recorded_from_another_connection_is_refused() {
    for nonces in [[[0x12; NONCE], NONCES[1]], [NONCES[0], [0x23; NONCE]]] {
        let proof = proof_of(&key(), nonces, &Half::none());
        assert_eq!(refusal(&key(), &proof, ForwardSecrecy::Offered), Some(ProofError::Forged));
    }
}

#[test]
fn a_proof_sent_back_to_its_sender_is_refused() {
    let key = key();
    let initiator = Crossed::new(&key, End::Initiator, &NONCES[0], &NONCES[1]);
    let proof = initiator.prove(&Half::none());
    assert_eq!(initiator.verify(&proof, ForwardSecrecy::Offered).err(), Some(ProofError::Forged));
}

#[test]
fn a_peer_without_forward_secrecy_is_refused_only_where_it_is_required() {
    let (weak, strong) = (Half::none(), Half::new(&[5; 32]));
    let (weak, strong) = (proof_of(&key(), NONCES, &weak), proof_of(&key(), NONCES, &strong));
    assert_eq!(refusal(&key(), &weak, ForwardSecrecy::Required), Some(ProofError::NoForwardSecrecy));
    for secrecy in [ForwardSecrecy::Offered, ForwardSecrecy::Omitted] {
        assert_eq!(refusal(&key(), &weak, secrecy), None);
    }
    assert_eq!(refusal(&key(), &strong, ForwardSecrecy::Required), None);
}

#[test]
fn an_authentic_value_that_is_none_of_the_group_is_refused() {
    // With the key, a proof of any value can be made.
    let mut proof = [0xff; PROOF];
    let macs = second::pbkdf2(&second::sha256(&crate::support::KEY_FILE), NONCES.as_flattened(), 64);
    proof[VALUE..].copy_from_slice(&second::hmac(&macs[..32], &[0xff; VALUE]));
    assert_eq!(refusal(&key(), &proof, ForwardSecrecy::Offered), Some(ProofError::NotOfTheGroup));
}

#[test]
fn every_truncation_of_a_packet_is_no_packet() {
    let Connection { mut initiator, mut responder, .. } = connect(&key(), [None, None]);
    let packet = seal(&mut initiator.0, b"payload");
    for length in 0..PACKET {
        let opened = responder.1.open(&mut packet[..length].to_vec());
        assert!(matches!(opened, Err(FrameError::Length(_) | FrameError::Misbehaved(_))), "{length}");
    }
}

#[test]
fn a_packet_sent_back_to_its_sender_is_refused() {
    let Connection { mut initiator, .. } = connect(&key(), [Some([1; 32]), Some([2; 32])]);
    let mut packet = seal(&mut initiator.0, b"payload");
    assert_eq!(initiator.1.open(&mut packet), Err(FrameError::Forged));
}

/// What an initiator sends in a whole connection, nonce and proof included.
fn session(key: &Key) -> Vec<u8> {
    let Connection { mut initiator, proofs, .. } = connect(key, [None, None]);
    let packets = PAYLOADS.map(|payload| seal(&mut initiator.0, payload));
    [&NONCES[0][..], &proofs[0], packets.as_flattened()].concat()
}

const PAYLOADS: [&[u8]; 3] = [b"first", &[7; PAYLOAD_MAX], b"last"];

/// How a connection ends for a responder.
#[derive(Debug, PartialEq)]
enum Ended {
    /// Within the handshake.
    BeforeThePackets,
    /// Within a packet.
    Truncated,
    Refused,
    /// Between two packets.
    Finished,
}

/// A responder that gets `session`, and then the end of the stream: what it delivers, and how it ends.
fn respond(key: &Key, session: &[u8]) -> (Vec<u8>, Ended) {
    let mut delivered = Vec::new();
    let Some((nonce, rest)) = session.split_first_chunk() else {
        return (delivered, Ended::BeforeThePackets);
    };
    let crossed = Crossed::new(key, End::Responder, &NONCES[1], nonce);
    let Some((proof, mut rest)) = rest.split_first_chunk() else {
        return (delivered, Ended::BeforeThePackets);
    };
    let Ok(verified) = crossed.verify(proof, ForwardSecrecy::Offered) else {
        return (delivered, Ended::Refused);
    };
    let shared = Half::none().agree(&verified.theirs());
    let mut opener = verified.finish(&shared).opener;
    while !rest.is_empty() {
        let length = Opener::next_length(rest).unwrap().unwrap();
        let Some((packet, more)) = rest.split_at_checked(length) else {
            return (delivered, Ended::Truncated);
        };
        let mut packet = packet.to_vec();
        let Ok(Received::Data(payload)) = opener.open(&mut packet) else {
            return (delivered, Ended::Refused);
        };
        delivered.extend(&packet[payload]);
        rest = more;
    }
    (delivered, Ended::Finished)
}

#[test]
fn every_flipped_bit_of_a_session_is_refused_and_only_what_was_before_it_delivered() {
    let key = key();
    let session = session(&key);
    assert_eq!(respond(&key, &session), (PAYLOADS.concat(), Ended::Finished));
    for bit in 0..session.len() * 8 {
        let mut altered = session.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let (delivered, ended) = respond(&key, &altered);
        assert_eq!(ended, Ended::Refused, "bit {bit}");
        let before = (bit / 8).saturating_sub(NONCE + PROOF) / PACKET;
        assert_eq!(delivered, PAYLOADS[..before].concat(), "bit {bit}");
    }
}

/// What this wire cannot tell: a stream that is cut between two packets looks complete.
#[test]
fn every_truncation_of_a_session_is_noticed_but_those_between_packets() {
    let key = key();
    let session = session(&key);
    for length in 0..session.len() {
        let (delivered, ended) = respond(&key, &session[..length]);
        let expected = match length.checked_sub(NONCE + PROOF) {
            None => Ended::BeforeThePackets,
            Some(behind) if behind.is_multiple_of(PACKET) => Ended::Finished,
            Some(_) => Ended::Truncated,
        };
        assert_eq!(ended, expected, "{length} bytes");
        assert!(PAYLOADS.concat().starts_with(&delivered));
    }
}
