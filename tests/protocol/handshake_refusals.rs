//! The messages that the handshake refuses (PROTOCOL.md, sections 3 and 6), and a few similar ones that it must
//! accept.
//!
//! There is no test of a truncated handshake message: the readers take arrays with the exact sizes of the messages.
//! So a short message is a read that never completes, and no reader can be called with it.

use std::borrow::Borrow;
use std::cell::Cell;

use spipe::proto::cipher::{AesSupport, Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::features::{Abilities, Features};
use spipe::proto::frame::FrameError;
use spipe::proto::handshake::{HandshakeError, Initiator, Label, MESSAGE_1, MESSAGE_2, Responder};
use spipe::proto::key::Key;
use spipe::proto::noise::Forged;

use crate::support::{
    KEY_FILE, Read, Second, Stop, answer, connect, data_frame, end_frame, flips, initiator_randomness, key,
    label, open_frame, other_key, read_initiator, read_stream, responder_randomness, start,
};

const FORGED: HandshakeError = HandshakeError::Forged(Forged);

/// A responder with [`key`] and the label `text` reads message 1.
fn read(message: &[u8; MESSAGE_1], text: &str) -> Result<Responder, HandshakeError> {
    Responder::read(message, &[key()], &label(text))
}

/// `a` with the bytes from `at` on replaced by those of `b`.
fn spliced<const N: usize>(a: [u8; N], b: [u8; N], at: usize) -> [u8; N] {
    let mut spliced = a;
    spliced[at..].copy_from_slice(&b[at..]);
    spliced
}

#[test]
fn untouched_messages_are_accepted() {
    // Without this test, ends that refuse everything would pass all others in this file.
    let (initiator, message_1) = start(1);
    assert!(read(&message_1, "").is_ok());
    assert!(initiator.finish(&answer(&message_1, 1)).is_ok());
}

#[test]
fn a_flipped_bit_in_message_1_is_refused() {
    let (_, message) = start(1);
    for (bit, flipped) in flips(message) {
        assert_eq!(read(&flipped, "").err(), Some(FORGED), "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_in_message_2_is_refused() {
    // Bit 255 matters most: X25519 ignores it, so both ends compute the same secret, and only the transcript differs.
    let message = answer(&start(1).1, 1);
    for (bit, flipped) in flips(message) {
        assert_eq!(start(1).0.finish(&flipped).err(), Some(FORGED), "bit {bit}");
    }
}

#[test]
fn bytes_that_are_not_a_handshake_are_refused() {
    // All zeros is also an X25519 point of low order, with a known shared secret. Without the key it does not help an
    // attacker: the psk alone seals message 1.
    for byte in [0, 0xff, b'\n'] {
        assert_eq!(read(&[byte; MESSAGE_1], "").err(), Some(FORGED));
        assert_eq!(start(1).0.finish(&[byte; MESSAGE_2]).err(), Some(FORGED));
    }
}

#[test]
fn message_1_under_another_key_is_refused() {
    let (_, message) = start(1);
    assert_eq!(Responder::read(&message, &[other_key()], &Label::default()).err(), Some(FORGED));
}

#[test]
fn a_key_file_that_differs_in_one_bit_is_another_key() {
    let (_, message) = start(1);
    for (bit, file) in flips(KEY_FILE) {
        let key = Key::from_bytes(&file).unwrap();
        let refused = Responder::read(&message, &[key], &Label::default()).err();
        assert_eq!(refused, Some(FORGED), "bit {bit}");
    }
}

#[test]
fn a_key_file_with_an_added_newline_is_another_key() {
    // Every byte of the file counts: nothing is trimmed, since a random key may end with a newline.
    let (_, message) = start(1);
    let key = Key::from_bytes(&[&KEY_FILE[..], b"\n"].concat()).unwrap();
    assert_eq!(Responder::read(&message, &[key], &Label::default()).err(), Some(FORGED));
}

#[test]
fn message_1_under_another_label_is_refused() {
    // They include prefixes and a trailing zero, since the label is at the end of the prologue without a length.
    let labels = ["", "redis", "Redis", "redi", "redis2", " redis", "redis\0", "postgres"];
    for ours in labels {
        let randomness = initiator_randomness(1);
        let (_, message) =
            Initiator::start(&key(), &label(ours), Ciphers::auto(AesSupport::GcmAndAegis), &randomness);
        for theirs in labels {
            let refused = read(&message, theirs).err();
            assert_eq!(refused, (ours != theirs).then_some(FORGED), "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn message_2_under_another_label_is_refused() {
    // A responder cannot answer a message that it cannot read, so it answers one from the same initiator with the
    // other label.
    for (ours, theirs) in [("", "redis"), ("redis", ""), ("redis", "redi"), ("redis", "postgres")] {
        let initiator = |text| {
            Initiator::start(
                &key(),
                &label(text),
                Ciphers::auto(AesSupport::GcmAndAegis),
                &initiator_randomness(1),
            )
        };
        let responder = read(&initiator(theirs).1, theirs).unwrap();
        let (message, _) = responder.reply(Ciphers::auto(AesSupport::GcmAndAegis), &responder_randomness(1));
        assert_eq!(initiator(ours).0.finish(&message).err(), Some(FORGED), "{ours:?} {theirs:?}");
    }
}

#[test]
fn a_label_of_255_bytes_is_accepted_and_one_of_256_is_refused() {
    assert!("x".repeat(255).parse::<Label>().is_ok());
    assert!("x".repeat(256).parse::<Label>().is_err());
    // Bytes count, not characters.
    assert!("é".repeat(128).parse::<Label>().is_err());
}

#[test]
fn a_responder_without_keys_refuses_every_message() {
    assert_eq!(Responder::read(&start(1).1, &[] as &[Key], &Label::default()).err(), Some(FORGED));
}

#[test]
fn a_responder_with_several_keys_reports_the_one_that_the_initiator_holds() {
    let keys = || [other_key(), Key::from_bytes(&[1; 40]).unwrap(), key()];
    for place in 0..3 {
        let mine = &keys()[place];
        let randomness = initiator_randomness(1);
        let (initiator, message) =
            Initiator::start(mine, &Label::default(), Ciphers::auto(AesSupport::GcmAndAegis), &randomness);
        let responder = Responder::read(&message, &keys(), &Label::default()).unwrap();
        assert_eq!(responder.fingerprint(), mine.fingerprint());
        let (answer, _) = responder.reply(Ciphers::auto(AesSupport::GcmAndAegis), &responder_randomness(1));
        assert!(initiator.finish(&answer).is_ok(), "the answer is under key {place}");
    }
}

/// A key that counts how often it is tried.
struct Counted<'c>(Key, &'c Cell<usize>);

impl Borrow<Key> for Counted<'_> {
    fn borrow(&self) -> &Key {
        self.1.set(self.1.get() + 1);
        &self.0
    }
}

#[test]
fn every_key_is_tried_once_whichever_of_them_fits() {
    let keys = |mine: Option<u8>| {
        let other = |place: u8| Key::from_bytes(&[place; 40]).unwrap();
        let key_at = |place| if mine == Some(place) { key() } else { other(place) };
        (0..5).map(key_at).collect::<Vec<_>>()
    };
    for mine in [None, Some(0), Some(2), Some(4)] {
        let tries = Cell::new(0);
        let counted: Vec<_> = keys(mine).into_iter().map(|key| Counted(key, &tries)).collect();
        let read = Responder::read(&start(1).1, &counted, &Label::default());
        assert_eq!(read.is_ok(), mine.is_some());
        assert_eq!(tries.get(), 5, "when the key at place {mine:?} fits");
    }
}

#[test]
fn a_responder_with_several_keys_refuses_one_that_is_not_among_them() {
    // When no key in turn fits, the responder must not use the last one.
    let keys = [other_key(), Key::from_bytes(&[1; 40]).unwrap()];
    assert_eq!(Responder::read(&start(1).1, &keys, &Label::default()).err(), Some(FORGED));
}

#[test]
fn a_message_with_fields_of_two_handshakes_is_refused() {
    // Each field is authentic by itself. Only the transcript, their associated data, binds them together.
    let ((_, one), (_, two)) = (start(1), start(2));
    for at in [32, 32 + 1184 + 16] {
        assert_eq!(read(&spliced(one, two, at), "").err(), Some(FORGED), "message 1 from byte {at}");
    }
    // Both answer the same message 1, so each alone is accepted.
    let (one, two) = (answer(&one, 1), answer(&one, 2));
    for at in [32, 32 + 1088 + 16] {
        let message = spliced(one, two, at);
        assert_eq!(start(1).0.finish(&message).err(), Some(FORGED), "message 2 from byte {at}");
    }
}

#[test]
fn message_2_of_another_handshake_is_refused() {
    // Two handshakes at once, with their answers swapped.
    let ((one, first), (two, second)) = (start(1), start(2));
    let (for_one, for_two) = (answer(&first, 1), answer(&second, 2));
    assert_eq!(one.finish(&for_two).err(), Some(FORGED));
    assert_eq!(two.finish(&for_one).err(), Some(FORGED));
}

#[test]
fn a_replayed_message_2_is_refused() {
    let (earlier, message_1) = start(1);
    let recorded = answer(&message_1, 1);
    assert!(earlier.finish(&recorded).is_ok());
    assert_eq!(start(2).0.finish(&recorded).err(), Some(FORGED));
}

#[test]
fn message_1_reflected_to_its_sender_is_refused_as_message_2() {
    // The sizes differ, so an attacker must cut the message or move its parts; each variant keeps some field intact.
    let (_, message) = start(1);
    let front: [u8; MESSAGE_2] = *message.first_chunk().unwrap();
    let back: [u8; MESSAGE_2] = *message.last_chunk().unwrap();
    let mut both_ends = front;
    both_ends[MESSAGE_2 - 32..].copy_from_slice(&message[MESSAGE_1 - 32..]);
    let key_and_tail: [u8; MESSAGE_2] =
        [&message[..32], &message[MESSAGE_1 - (MESSAGE_2 - 32)..]].concat().try_into().unwrap();
    for reflected in [front, back, both_ends, key_and_tail] {
        assert_eq!(start(1).0.finish(&reflected).err(), Some(FORGED));
    }
}

#[test]
fn message_2_reflected_to_its_sender_is_refused_as_message_1() {
    // A host that runs both roles could receive its own answer.
    let message = answer(&start(1).1, 1);
    let mut reflected = [0; MESSAGE_1];
    reflected[..MESSAGE_2].copy_from_slice(&message);
    assert_eq!(read(&reflected, "").err(), Some(FORGED));
    // The same with the payload at its place in message 1.
    reflected[MESSAGE_1 - 32..].copy_from_slice(&message[MESSAGE_2 - 32..]);
    assert_eq!(read(&reflected, "").err(), Some(FORGED));
}

#[test]
fn an_answer_with_the_initiators_own_ephemeral_key_is_refused() {
    // An attacker knows the initiator's public key and can send it as the responder's, but lacks the secrets.
    let (initiator, message_1) = start(1);
    let mut message_2 = answer(&message_1, 1);
    message_2[..32].copy_from_slice(&message_1[..32]);
    assert_eq!(initiator.finish(&message_2).err(), Some(FORGED));
}

#[test]
fn an_initiator_rerouted_to_the_opposite_tunnel_is_accepted_with_the_same_label_only() {
    // RFC 9257's "Selfie": a host runs an initiator and, for the opposite tunnel, a responder with the same key, and
    // an attacker connects them to each other. With the same label this succeeds: the key lets any holder connect to
    // any other. Separate labels or separate keys prevent it.
    let initiator = |text| {
        Initiator::start(
            &key(),
            &label(text),
            Ciphers::auto(AesSupport::GcmAndAegis),
            &initiator_randomness(1),
        )
        .1
    };
    assert!(read(&initiator(""), "").is_ok());
    assert!(read(&initiator("to the replica"), "to the replica").is_ok());
    assert_eq!(read(&initiator("to the replica"), "to the primary").err(), Some(FORGED));
}

#[test]
fn a_replayed_connection_is_answered_and_its_frames_are_refused() {
    // The responder cannot recognise a replayed message 1. It dials only after it has opened the first frame, whose
    // key depends on the responder's own random bytes.
    let cipher = Cipher::ChaCha20Poly1305;
    let recorded = connect(cipher, 1);
    let (mut sealer, mut wire) = open_frame(recorded.initiator, &ConnectionInfo::default());
    wire.extend(data_frame(&mut sealer, b"DELETE everything"));
    wire.extend(end_frame(sealer));
    let read = read_initiator(recorded.responder_reads, &wire);
    assert_eq!((read.data.len(), read.stop), (1, Stop::End), "the recording itself is valid");

    let replayed = Responder::read(&recorded.keys.message_1, &[key()], &Label::default()).unwrap();
    let (_, established) = replayed.reply(Ciphers::only(cipher), &responder_randomness(2));
    let read = read_initiator(established.unwrap().opener, &wire);
    assert_eq!(read, Read { info: None, data: vec![], stop: Stop::Refused(FrameError::Forged) });
}

#[test]
fn an_initiator_refuses_recorded_frames_of_another_connection() {
    let mut recorded = connect(Cipher::Aes256Gcm, 1);
    let wire = data_frame(&mut recorded.responder, b"+OK");
    // Even if the initiator repeats its random bytes: the responder has another ephemeral key, so the keys differ.
    let (initiator, message_1) = start(1);
    let established = initiator.finish(&answer(&message_1, 2)).unwrap();
    assert_eq!(read_stream(established.opener, &wire).stop, Stop::Refused(FrameError::Forged));
}

#[test]
fn a_key_holder_with_a_malformed_kem_key_is_refused() {
    // FIPS 203, section 7.2: each coefficient is below 3329. Bytes 0xff encode the coefficient 4095.
    let pair = (&initiator_randomness(1), &responder_randomness(1));
    let second = Second::with_kem_key(&KEY_FILE, "", pair, &[1], &[1], &[0xff; 1184]);
    assert_eq!(read(&second.message_1, "").err(), Some(HandshakeError::MalformedKemKey));
}

#[test]
fn both_ends_report_that_they_have_no_cipher_in_common() {
    // The ends trust each other and have a configuration error, so the logs of both should have the cause.
    let (aes, chacha) = (Ciphers::only(Cipher::Aes256Gcm), Ciphers::only(Cipher::ChaCha20Poly1305));
    for (ours, theirs) in [(aes, chacha), (chacha, aes)] {
        let (initiator, message_1) =
            Initiator::start(&key(), &Label::default(), ours, &initiator_randomness(1));
        let (message_2, established) = read(&message_1, "").unwrap().reply(theirs, &responder_randomness(1));
        assert_eq!(established.err(), Some(HandshakeError::NoCommonCipher(theirs)));
        // Message 2 is authenticated, so an attacker without the key cannot cause this error at the initiator.
        assert_eq!(initiator.finish(&message_2).err(), Some(HandshakeError::NoCommonCipher(ours)));
    }
}

#[test]
fn the_responders_preference_decides_among_the_ciphers_in_common() {
    // The fastest one only if both ends have it in hardware. `--cipher` at either end is respected.
    let (auto, gcm_only) = (Ciphers::auto(AesSupport::GcmAndAegis), Ciphers::auto(AesSupport::Gcm));
    let [aegis, aes, chacha] =
        [Cipher::Aegis256X4, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305].map(Ciphers::only);
    for (ours, theirs, chosen) in [
        (auto, auto, Cipher::Aegis256X4),
        (auto, gcm_only, Cipher::Aes256Gcm),
        (gcm_only, auto, Cipher::Aes256Gcm),
        (auto, chacha, Cipher::ChaCha20Poly1305),
        (chacha, auto, Cipher::ChaCha20Poly1305),
        (auto, aes, Cipher::Aes256Gcm),
        (aes, auto, Cipher::Aes256Gcm),
        (auto, aegis, Cipher::Aegis256X4),
        (aegis, auto, Cipher::Aegis256X4),
    ] {
        let (initiator, message_1) =
            Initiator::start(&key(), &Label::default(), ours, &initiator_randomness(1));
        let (message_2, responder) = read(&message_1, "").unwrap().reply(theirs, &responder_randomness(1));
        assert_eq!(responder.unwrap().cipher, chosen);
        assert_eq!(initiator.finish(&message_2).unwrap().cipher, chosen);
    }
}

#[test]
fn a_choice_that_was_not_offered_is_refused() {
    // A responder that holds the key could choose a cipher that the initiator did not offer.
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let chacha = Ciphers::only(Cipher::ChaCha20Poly1305);
    for choice in [0, 2, 3, 255] {
        let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &[1], &[choice]);
        let (initiator, message_1) = Initiator::start(&key(), &Label::default(), chacha, &ours);
        assert_eq!(message_1, second.message_1);
        let refused = initiator.finish(&second.message_2).err();
        assert_eq!(refused, Some(HandshakeError::NoCommonCipher(chacha)), "{choice}");
    }
}

#[test]
fn values_of_later_versions_in_the_payloads_are_ignored() {
    // The transcript covers all of a payload, so the message 2 of `Second` answers only its own message 1. So this
    // tests our responder with its message 1, and our initiator with the message 2 of another `Second`.
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let later = [200, 2, 201, 1, 0, 7, 7, 7, 1, 2, 3, 4, 5, 6, 7, 8];
    let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &later, &[]);
    let (_, established) =
        read(&second.message_1, "").unwrap().reply(Ciphers::auto(AesSupport::GcmAndAegis), &theirs);
    assert_eq!(established.unwrap().cipher, Cipher::Aes256Gcm);

    let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &[3, 2, 1], &[1, 9, 9, 9, 9, 9, 9, 9, 9]);
    let (initiator, message_1) = start(1);
    assert_eq!(message_1, second.message_1);
    assert_eq!(initiator.finish(&second.message_2).unwrap().cipher, Cipher::ChaCha20Poly1305);
}

/// What 0.2.0 sends with AES instructions: it knows code points 1 and 2 only.
const OLD_OFFER: &[u8] = &[2, 1];

#[test]
fn a_responder_answers_an_initiator_from_before_aegis_as_it_did() {
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let second = Second::new(&KEY_FILE, "", (&ours, &theirs), OLD_OFFER, &[2]);
    let responder = read(&second.message_1, "").unwrap();
    let (message_2, established) = responder.reply(Ciphers::auto(AesSupport::GcmAndAegis), &theirs);
    assert_eq!(message_2, second.message_2);
    assert_eq!(established.unwrap().cipher, Cipher::Aes256Gcm);
}

#[test]
fn an_initiator_takes_the_answer_of_a_responder_from_before_aegis() {
    // Which skips the first code point, for it does not know it.
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    for (choice, cipher) in [(2, Cipher::Aes256Gcm), (1, Cipher::ChaCha20Poly1305)] {
        let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &[3, 2, 1], &[choice]);
        let (initiator, message_1) = start(1);
        assert_eq!(message_1, second.message_1);
        assert_eq!(initiator.finish(&second.message_2).unwrap().cipher, cipher);
    }
}

#[test]
fn an_initiator_that_offers_aegis_alone_has_nothing_in_common_with_a_responder_from_before_it() {
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let aegis = Ciphers::only(Cipher::Aegis256X4);
    let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &[3], &[0]);
    let (initiator, message_1) = Initiator::start(&key(), &Label::default(), aegis, &ours);
    assert_eq!(message_1, second.message_1);
    assert_eq!(initiator.finish(&second.message_2).err(), Some(HandshakeError::NoCommonCipher(aegis)));
}

/// What two ends agree on of features, when `asked` is in message 1 and `granted` in message 2.
fn agreed(asked: u8, granted: u8) -> Features {
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let second =
        Second::new(&KEY_FILE, "", (&ours, &theirs), &[1, 0, 0, 0, 0, 0, 0, 0, asked], &[1, granted]);
    let features = match asked {
        0 => Features::NONE,
        1 => Features::ACKNOWLEDGEMENT,
        2 => Features::PING,
        3 => Features::ACKNOWLEDGEMENT.or(Features::PING),
        4 => Features::REUSE,
        _ => Features::KNOWN,
    };
    let abilities = Abilities { ciphers: Ciphers::only(Cipher::ChaCha20Poly1305), features };
    let (initiator, message_1) = Initiator::start(&key(), &Label::default(), abilities, &ours);
    assert_eq!(message_1, second.message_1);
    initiator.finish(&second.message_2).unwrap().features
}

#[test]
fn a_feature_is_agreed_on_when_it_is_asked_for_and_granted() {
    assert_eq!(agreed(1, 1), Features::ACKNOWLEDGEMENT);
    assert_eq!(agreed(1, 0), Features::NONE);
    assert_eq!(agreed(2, 2), Features::PING);
    assert_eq!(agreed(2, 0), Features::NONE);
    assert_eq!(agreed(4, 4), Features::REUSE);
    assert_eq!(agreed(4, 3), Features::NONE);
    assert_eq!(agreed(7, 7), Features::KNOWN);
    assert_eq!(agreed(7, 3), Features::ACKNOWLEDGEMENT.or(Features::PING));
    assert_eq!(agreed(3, 1), Features::ACKNOWLEDGEMENT);
}

#[test]
fn a_feature_that_was_not_asked_for_is_not_granted() {
    assert_eq!(agreed(0, 1), Features::NONE);
    assert_eq!(agreed(1, 3), Features::ACKNOWLEDGEMENT);
    assert_eq!(agreed(2, 1), Features::NONE);
}

#[test]
fn features_of_later_versions_are_neither_granted_nor_believed() {
    assert_eq!(agreed(7, 0xf8), Features::NONE);
    let (ours, theirs) = (initiator_randomness(1), responder_randomness(1));
    let second = Second::new(&KEY_FILE, "", (&ours, &theirs), &[1, 0, 0, 0, 0, 0, 0, 0, 0xff], &[1, 7]);
    let responder = Responder::read(&second.message_1, &[key()], &Label::default()).unwrap();
    let abilities = Abilities { ciphers: Ciphers::only(Cipher::ChaCha20Poly1305), features: Features::KNOWN };
    assert_eq!(responder.reply(abilities, &theirs).0, second.message_2);
}
