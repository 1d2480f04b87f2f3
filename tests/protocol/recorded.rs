//! Whole connections with injected randomness, byte for byte as recorded in `vectors/spipe-1.txt`.
//!
//! They have two uses. A change that alters the wire fails here, even if both of our ends still agree. And another
//! implementation can be checked against them, as `vectors/check.py` does, which shares no code with this one.
//!
//! `SPIPE_RECORD=1 cargo test --test protocol recorded` writes the file anew. Wire version 1 is fixed, so this is
//! only for adding vectors; the existing ones must not change.

use std::fmt::Write as _;

use spipe::proto::cipher::{AesSupport, Cipher, Ciphers};
use spipe::proto::connection_info::{ConnectionInfo, Purpose};
use spipe::proto::features::{Abilities, Features};
use spipe::proto::frame::{AbortReason, Sealer};
use spipe::proto::handshake::{
    HandshakeError, Initiator, InitiatorRandomness, Label, Responder, ResponderRandomness,
};
use spipe::proto::key::Key;

use crate::support::{
    Read, Second, Stop, abort_frame, data_frame, label, last_frame, open_frame, parse, raw_frame,
    read_initiator, read_stream,
};

const RECORDED: &str = include_str!("vectors/spipe-1.txt");

const HEAD: &str = "\
# Test vectors of spipe's wire version 1 (docs/PROTOCOL.md). Each section is one connection; all values are hexadecimal.
#
# key_file, label                     the configuration of both ends; the label in UTF-8
# initiator_*, responder_*            the random bytes: X25519 secrets, ML-KEM's d then z, ML-KEM's m
# psk, fingerprint                    derived from key_file (section 2)
# offer, choice                       the start of the payloads of messages 1 and 2 (sections 4 and 4.1), zeros follow
# secret_to_responder, secret_to_initiator  the output of Split (section 3)
# to_responder.N.frame                the frame number N, counted from 0, of this direction (section 5)
# to_responder.N.text                 the sealed text: payload, kind, padding
#
# Frames that are not listed are Data frames with an empty payload and no padding.
# Recorded by tests/protocol/recorded.rs; check.py beside this file checks it with independent implementations.
";

/// The inputs of a recorded connection.
struct Case {
    name: &'static str,
    key_file: Vec<u8>,
    label: &'static str,
    initiator: InitiatorRandomness,
    responder: ResponderRandomness,
    offers: Ciphers,
    accepts: Ciphers,
    /// The features of both ends.
    features: Features,
    /// The code points in the messages, and the features behind them, independent of `Ciphers` and `Features`.
    offer: &'static [u8],
    choice: &'static [u8],
    client: &'static str,
    purpose: Purpose,
}

fn cases() -> Vec<Case> {
    // Counting bytes, so that an implementation that confuses two inputs or their order is detected.
    let from = |first: u8| std::array::from_fn(|i| first.wrapping_add(u8::try_from(i).unwrap()));
    let seeded = |first: u8| {
        let kem = std::array::from_fn(|i| first.wrapping_add(32).wrapping_add(u8::try_from(i).unwrap()));
        (
            InitiatorRandomness { x25519: from(first), kem },
            ResponderRandomness { x25519: from(first.wrapping_add(96)), kem: from(first.wrapping_add(128)) },
        )
    };
    let (chacha, aes) = (Ciphers::only(Cipher::ChaCha20Poly1305), Ciphers::auto(AesSupport::Gcm));
    let all = Ciphers::auto(AesSupport::GcmAndAegis);
    let ((i1, r1), (i2, r2), (i3, r3)) = (seeded(0x00), seeded(0x21), seeded(0x42));
    let ((i4, r4), (i5, r5), (i6, r6)) = (seeded(0x63), seeded(0x84), seeded(0xa5));
    vec![
        Case {
            name: "chacha20poly1305 without a label",
            key_file: (0xa0..0xc0).collect(),
            label: "",
            initiator: i1,
            responder: r1,
            offers: chacha,
            accepts: aes,
            features: Features::NONE,
            offer: &[1],
            choice: &[1],
            client: "192.0.2.7:50123",
            purpose: Purpose::Carry,
        },
        Case {
            name: "aes256gcm with a label",
            // Longer than a block of SHA-256. As an HMAC key it would be hashed first, but it is the input of HKDF.
            key_file: (0..100).collect(),
            label: "réplica",
            initiator: i2,
            responder: r2,
            offers: aes,
            accepts: aes,
            features: Features::NONE,
            offer: &[2, 1],
            choice: &[2],
            client: "[2001:db8::7]:443",
            purpose: Purpose::Carry,
        },
        Case {
            name: "no cipher in common",
            key_file: (0xa0..0xc0).collect(),
            label: "",
            initiator: i3,
            responder: r3,
            offers: chacha,
            accepts: Ciphers::only(Cipher::Aes256Gcm),
            features: Features::NONE,
            offer: &[1],
            choice: &[0],
            client: "",
            purpose: Purpose::Carry,
        },
        Case {
            name: "a probe, with acknowledgements agreed on",
            key_file: (0xa0..0xc0).collect(),
            label: "",
            initiator: i4,
            responder: r4,
            offers: chacha,
            accepts: chacha,
            features: Features::ACKNOWLEDGEMENT,
            offer: &[1, 0, 0, 0, 0, 0, 0, 0, 1],
            choice: &[1, 1],
            client: "192.0.2.7:50123",
            purpose: Purpose::Probe,
        },
        Case {
            name: "a ping, with pings agreed on",
            key_file: (0xa0..0xc0).collect(),
            label: "",
            initiator: i5,
            responder: r5,
            offers: aes,
            accepts: aes,
            features: Features::PING,
            offer: &[2, 1, 0, 0, 0, 0, 0, 0, 2],
            choice: &[2, 2],
            client: "[2001:db8::7]:443",
            purpose: Purpose::Ping,
        },
        Case {
            name: "aegis256x4, with all features agreed on",
            key_file: (0xa0..0xc0).collect(),
            label: "",
            initiator: i6,
            responder: r6,
            offers: all,
            accepts: all,
            features: Features::KNOWN,
            offer: &[3, 2, 1, 0, 0, 0, 0, 0, 7],
            choice: &[3, 7],
            client: "192.0.2.7:50123",
            purpose: Purpose::Carry,
        },
    ]
}

/// A section of the file, while it is written.
struct Section(String);

impl Section {
    fn put(&mut self, name: &str, value: &[u8]) {
        // A value may be empty, and no line may end with a space.
        let space = if value.is_empty() { "" } else { " " };
        write!(self.0, "{name} ={space}").unwrap();
        for byte in value {
            write!(self.0, "{byte:02x}").unwrap();
        }
        self.0.push('\n');
    }

    fn frame(&mut self, direction: &str, number: u64, text: &[u8], frame: &[u8]) {
        self.put(&format!("{direction}.{number}.text"), text);
        self.put(&format!("{direction}.{number}.frame"), frame);
    }
}

/// Plays the case with `spipe::proto` and records the bytes on the wire. Also checks that each end reads the other,
/// and that the second implementation in `support` makes the same messages.
fn record(case: &Case) -> String {
    let key = Key::from_bytes(&case.key_file).unwrap();
    let label: Label = label(case.label);
    let randomness = (&case.initiator, &case.responder);
    let abilities = |ciphers| Abilities { ciphers, features: case.features };
    let second = Second::new(&case.key_file, case.label, randomness, case.offer, case.choice);

    let (initiator, message_1) = Initiator::start(&key, &label, abilities(case.offers), &case.initiator);
    let responder = Responder::read(&message_1, &[Key::from_bytes(&case.key_file).unwrap()], &label).unwrap();
    let (message_2, responder) = responder.reply(abilities(case.accepts), &case.responder);
    assert_eq!(message_1, second.message_1);
    assert_eq!(message_2, second.message_2);

    let mut section = Section(format!("\n[{}]\n", case.name));
    section.put("key_file", &case.key_file);
    section.put("psk", &second.psk);
    let fingerprint = key.fingerprint().to_string().replace('-', "");
    writeln!(section.0, "fingerprint = {fingerprint}").unwrap();
    section.put("label", case.label.as_bytes());
    section.put("initiator_x25519", &case.initiator.x25519);
    section.put("initiator_kem", &case.initiator.kem);
    section.put("responder_x25519", &case.responder.x25519);
    section.put("responder_kem", &case.responder.kem);
    section.put("offer", case.offer);
    section.put("message_1", &message_1);
    section.put("choice", case.choice);
    section.put("message_2", &message_2);

    let initiator = initiator.finish(&message_2);
    if case.choice == [0] {
        assert_eq!(responder.err(), Some(HandshakeError::NoCommonCipher(case.accepts)));
        assert_eq!(initiator.err(), Some(HandshakeError::NoCommonCipher(case.offers)));
        return section.0;
    }
    let (initiator, responder) = (initiator.unwrap(), responder.unwrap());
    assert_eq!((initiator.cipher as u8, responder.cipher as u8), (case.choice[0], case.choice[0]));
    assert_eq!((initiator.features, responder.features), (case.features, case.features));
    section.put("secret_to_responder", &second.to_responder);
    section.put("secret_to_initiator", &second.to_initiator);

    // To the responder: Open, Data, Data with padding, End.
    let info = ConnectionInfo {
        client: Some(case.client.parse().unwrap()),
        purpose: case.purpose,
        ..ConnectionInfo::default()
    };
    let (mut sealer, open) = open_frame(initiator.sealer, &info);
    let data = data_frame(&mut sealer, b"PING\r\n");
    // spipe does not pad, so the second implementation makes the padded frame. It replaces the one that spipe sealed.
    let padded_text = b"PING\r\n\x02\0\0\0\0\0\0\0\0\0";
    let padded = raw_frame(initiator.cipher, &second.to_responder, 2, padded_text);
    data_frame(&mut sealer, b"PING\r\n");
    let (end, spent) = last_frame(sealer);
    let open_text = [&open_payload(case)[..], b"\x01"].concat();
    section.frame("to_responder", 0, &open_text, &open);
    section.frame("to_responder", 1, b"PING\r\n\x02", &data);
    section.frame("to_responder", 2, padded_text, &padded);
    section.frame("to_responder", 3, b"\x03", &end);
    // The first frame of the next connection.
    let (_, next) = open_frame(spent.renew_first(), &info);
    section.frame("next_to_responder", 4, &open_text, &next);
    let read = read_initiator(responder.opener, &[open, data, padded, end].concat());
    assert_eq!(read, Read { info: Some(info), data: vec![b"PING\r\n".to_vec(); 2], stop: Stop::End });

    // To the initiator: Data before and after each of two rekeys, Abort.
    let wire = long_stream(responder.sealer, &mut section);
    let read = read_stream(initiator.opener, &wire);
    assert_eq!(read.data.len(), 131_074);
    assert_eq!(read.stop, Stop::Abort(AbortReason::Shutdown));
    section.0
}

/// The payload of *Open* as specified in section 5.2, without the use of `ConnectionInfo`.
fn open_payload(case: &Case) -> Vec<u8> {
    let client = match case.client.parse().unwrap() {
        core::net::SocketAddr::V4(v4) => {
            [&[1, 0, 6][..], &v4.ip().octets(), &v4.port().to_be_bytes()].concat()
        }
        core::net::SocketAddr::V6(v6) => {
            [&[1, 0, 18][..], &v6.ip().octets(), &v6.port().to_be_bytes()].concat()
        }
    };
    let purpose: &[u8] = match case.purpose {
        Purpose::Carry => &[],
        Purpose::Probe => &[2, 0, 0],
        Purpose::Ping => &[6, 0, 0],
        Purpose::Spare => &[7, 0, 0],
    };
    [&client[..], purpose].concat()
}

fn long_stream(mut sealer: Sealer, section: &mut Section) -> Vec<u8> {
    let mut wire = Vec::new();
    for number in 0..131_074 {
        let payload: &[u8] = match number {
            0 => b"+PONG\r\n",
            65_535 => b"the last frame of the first key",
            65_536 => b"the first frame of the second key",
            131_072 => b"the first frame of the third key",
            _ => b"",
        };
        let frame = data_frame(&mut sealer, payload);
        if !payload.is_empty() {
            section.frame("to_initiator", number, &[payload, b"\x02"].concat(), &frame);
        }
        wire.extend(frame);
    }
    let abort = abort_frame(sealer, AbortReason::Shutdown);
    section.frame("to_initiator", 131_074, b"\x04\x04", &abort);
    wire.extend(abort);
    wire
}

#[test]
fn every_byte_on_the_wire_is_as_recorded() {
    let fresh = HEAD.to_owned() + &cases().iter().map(record).collect::<String>();
    if std::env::var_os("SPIPE_RECORD").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protocol/vectors/spipe-1.txt");
        std::fs::write(file, &fresh).unwrap();
        return;
    }
    // Field by field, since a failure that prints two whole files of hexadecimal digits is hard to read.
    let (fresh_fields, recorded) = (parse(&fresh), parse(RECORDED));
    assert_eq!(fresh_fields.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
    for (section, fields) in &fresh_fields {
        assert_eq!(fields.keys().collect::<Vec<_>>(), recorded[section].keys().collect::<Vec<_>>());
        for (name, value) in fields {
            assert_eq!(value, &recorded[section][name], "{name} of [{section}]");
        }
    }
    assert_eq!(fresh, RECORDED, "the fields are equal, so the comments or the order differ");
}
