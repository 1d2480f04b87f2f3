//! Our Noise tokens against `snow`, an independent implementation of the same specification that is tested with other
//! vectors: as initiator, as responder, and as a peer with another pre-shared key.

use snow::{Builder, HandshakeState, TransportState};
use spipe::proto::noise::{Forged, MixedPsk, Secret, SymmetricState, initial_hash};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::support::{chacha_open, chacha_seal, noise_nonce, sealed};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"a prologue";
const PSK: [u8; 32] = [3; 32];
const OTHER_PSK: [u8; 32] = [4; 32];

fn snow(psk: &[u8; 32]) -> Builder<'_> {
    Builder::new(PATTERN.parse().unwrap()).prologue(PROLOGUE).unwrap().psk(0, psk).unwrap()
}

/// snow's next message, with `payload`.
fn write(peer: &mut HandshakeState, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 200];
    let length = peer.write_message(payload, &mut message).unwrap();
    message.truncate(length);
    message
}

fn begin(psk: &[u8; 32]) -> SymmetricState {
    SymmetricState::new(&initial_hash(PATTERN, &[PROLOGUE]), &MixedPsk::new(PATTERN, psk))
}

/// Our initiator after its message and before the answer.
struct Started {
    noise: SymmetricState,
    secret: StaticSecret,
    message: Vec<u8>,
}

fn start(psk: &[u8; 32]) -> Started {
    let mut noise = begin(psk);
    let secret = StaticSecret::from([5; 32]);
    let public = PublicKey::from(&secret).to_bytes();
    noise.e(&public);
    let message = [&public[..], &sealed(&mut noise, b"from the initiator")].concat();
    Started { noise, secret, message }
}

fn finish(mut ours: Started, message: &[u8]) -> Result<(Secret, Secret), Forged> {
    let (e, payload) = message.split_first_chunk::<32>().unwrap();
    ours.noise.e(e);
    ours.noise.ee(ours.secret.diffie_hellman(&PublicKey::from(*e)).as_bytes());
    assert_eq!(ours.noise.open(payload, &mut [0; 100])?, b"from the responder");
    Ok(ours.noise.split())
}

/// Our responder, from snow's message to the answer.
fn respond(psk: &[u8; 32], message: &[u8]) -> Result<(Vec<u8>, (Secret, Secret)), Forged> {
    let (e, payload) = message.split_first_chunk::<32>().unwrap();
    let mut noise = begin(psk);
    noise.e(e);
    assert_eq!(noise.open(payload, &mut [0; 100])?, b"from the initiator");
    let secret = StaticSecret::from([6; 32]);
    let public = PublicKey::from(&secret).to_bytes();
    noise.e(&public);
    noise.ee(secret.diffie_hellman(&PublicKey::from(*e)).as_bytes());
    let message = [&public[..], &sealed(&mut noise, b"from the responder")].concat();
    Ok((message, noise.split()))
}

/// Sends three messages in each direction. Shows that both sides have equal keys for the same directions, with
/// Noise's nonces.
fn talk(snow: &mut TransportState, we_send: &Secret, we_receive: &Secret) {
    for number in 0..3_u64 {
        let (nonce, mut buffer) = (noise_nonce(number), [0; 100]);

        let sent = chacha_seal(we_send, nonce, &[], b"hello");
        let length = snow.read_message(&sent, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");

        let length = snow.write_message(b"hello yourself", &mut buffer).unwrap();
        let received = chacha_open(we_receive, nonce, &[], &buffer[..length]);
        assert_eq!(received, b"hello yourself");
    }
}

#[test]
fn snow_as_initiator_and_our_responder_understand_each_other() {
    let mut peer = snow(&PSK).build_initiator().unwrap();
    let (answer, (to_responder, to_initiator)) =
        respond(&PSK, &write(&mut peer, b"from the initiator")).unwrap();
    let mut payload = [0; 100];
    let length = peer.read_message(&answer, &mut payload).unwrap();
    assert_eq!(&payload[..length], b"from the responder");
    talk(&mut peer.into_transport_mode().unwrap(), &to_initiator, &to_responder);
}

#[test]
fn snow_as_responder_and_our_initiator_understand_each_other() {
    let ours = start(&PSK);
    let mut peer = snow(&PSK).build_responder().unwrap();
    let mut payload = [0; 100];
    let length = peer.read_message(&ours.message, &mut payload).unwrap();
    assert_eq!(&payload[..length], b"from the initiator");
    let (to_responder, to_initiator) = finish(ours, &write(&mut peer, b"from the responder")).unwrap();
    talk(&mut peer.into_transport_mode().unwrap(), &to_responder, &to_initiator);
}

#[test]
fn snow_as_initiator_with_another_psk_is_refused() {
    let mut peer = snow(&OTHER_PSK).build_initiator().unwrap();
    assert_eq!(respond(&PSK, &write(&mut peer, b"from the initiator")).err(), Some(Forged));
}

#[test]
fn snow_as_responder_with_another_psk_refuses_our_first_message() {
    let mut peer = snow(&OTHER_PSK).build_responder().unwrap();
    assert!(peer.read_message(&start(&PSK).message, &mut [0; 100]).is_err());
}

#[test]
fn an_answer_of_snow_under_another_psk_is_refused() {
    // A responder cannot answer a message that it could not read, so this one reads a message under its own key. The
    // ephemeral key is the same in both messages, so only the pre-shared key differs.
    let mut peer = snow(&OTHER_PSK).build_responder().unwrap();
    peer.read_message(&start(&OTHER_PSK).message, &mut [0; 100]).unwrap();
    let answer = write(&mut peer, b"from the responder");
    assert_eq!(finish(start(&PSK), &answer).err(), Some(Forged));
}
