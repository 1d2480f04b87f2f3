//! The published vector for `Noise_NNpsk0_25519_ChaChaPoly_SHA256`, reproduced with our tokens. Our handshake is this
//! pattern with `e1` and `ekem1` added; for these two, no vectors are published.
//!
//! The vector's handshake hash is checked only through its effect as associated data of the second message's payload,
//! since the product never outputs it.

use std::collections::BTreeMap;

use spipe::proto::noise::{Forged, MixedPsk, Secret, SymmetricState, initial_hash};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::support::{chacha_seal, noise_nonce, parse, sealed};

type Vector = BTreeMap<String, Vec<u8>>;

fn vector() -> Vector {
    parse(include_str!("vectors/noise-NNpsk0.txt")).remove("NNpsk0").unwrap()
}

fn begin(vector: &Vector) -> SymmetricState {
    let pattern = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
    let psk = MixedPsk::new(pattern, &array(&vector["psk"]));
    SymmetricState::new(&initial_hash(pattern, &[&vector["prologue"]]), &psk)
}

/// Plays the initiator. Returns its message 0, and the keys of both directions from the recorded message 1.
fn initiator(vector: &Vector) -> (Vec<u8>, Result<(Secret, Secret), Forged>) {
    let mut noise = begin(vector);
    let (secret, public) = ephemeral(&vector["init_ephemeral"]);
    noise.e(&public);
    let sent = [&public[..], &sealed(&mut noise, &vector["0.payload"])].concat();

    let (e, payload) = vector["1.message"].split_first_chunk::<32>().unwrap();
    noise.e(e);
    noise.ee(secret.diffie_hellman(&PublicKey::from(*e)).as_bytes());
    let opened = noise.open(payload, &mut [0; 100]).map(|text| assert_eq!(text, vector["1.payload"]));
    (sent, opened.map(|()| noise.split()))
}

/// Plays the responder. Returns its message 1 and the keys of both directions, from the recorded message 0.
fn responder(vector: &Vector) -> Result<(Vec<u8>, (Secret, Secret)), Forged> {
    let mut noise = begin(vector);
    let (initiator, payload) = vector["0.message"].split_first_chunk::<32>().unwrap();
    noise.e(initiator);
    assert_eq!(noise.open(payload, &mut [0; 100])?, vector["0.payload"]);

    let (secret, public) = ephemeral(&vector["resp_ephemeral"]);
    noise.e(&public);
    noise.ee(secret.diffie_hellman(&PublicKey::from(*initiator)).as_bytes());
    let sent = [&public[..], &sealed(&mut noise, &vector["1.payload"])].concat();
    Ok((sent, noise.split()))
}

/// Whether these keys seal the recorded transport messages.
fn transport_matches(vector: &Vector, keys: &(Secret, Secret)) -> bool {
    // Messages 2 and 4 go to the responder, 3 and 5 to the initiator; each direction counts from 0.
    (2..6_u64).all(|number| {
        let key = if number % 2 == 0 { &keys.0 } else { &keys.1 };
        let nonce = noise_nonce(number / 2 - 1);
        let sealed = chacha_seal(key, nonce, &[], &vector[&format!("{number}.payload")]);
        sealed == vector[&format!("{number}.message")]
    })
}

fn ephemeral(secret: &[u8]) -> (StaticSecret, [u8; 32]) {
    let secret = StaticSecret::from(array(secret));
    let public = PublicKey::from(&secret).to_bytes();
    (secret, public)
}

fn array(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap()
}

#[test]
fn the_initiators_bytes_are_the_published_ones() {
    let vector = vector();
    let (sent, keys) = initiator(&vector);
    assert_eq!(sent, vector["0.message"]);
    assert!(transport_matches(&vector, &keys.unwrap()));
}

#[test]
fn the_responders_bytes_are_the_published_ones() {
    let vector = vector();
    let (sent, keys) = responder(&vector).unwrap();
    assert_eq!(sent, vector["1.message"]);
    assert!(transport_matches(&vector, &keys));
}

#[test]
fn keys_of_the_wrong_direction_do_not_seal_the_published_transport_messages() {
    // Two ends that both confuse the directions would understand each other, but no other implementation.
    let vector = vector();
    let (_, (to_responder, to_initiator)) = responder(&vector).unwrap();
    assert!(!transport_matches(&vector, &(to_initiator, to_responder)));
}

#[test]
fn the_published_messages_are_refused_under_another_psk_or_prologue() {
    for field in ["psk", "prologue"] {
        let mut vector = vector();
        vector.get_mut(field).unwrap()[0] ^= 1;
        assert_eq!(responder(&vector).err(), Some(Forged), "{field} at the responder");
        assert_eq!(initiator(&vector).1.err(), Some(Forged), "{field} at the initiator");
    }
}
