//! What the protocol's fuzz targets share: one handshake, always the same, and a second hand that holds its keys.
//!
//! Random bytes never get past a tag. So each target tries its input three ways: as what a stranger sends, as damage to
//! what a key holder sent, and as what a key holder sends who breaks the specification. The last needs the keys, which
//! `spipe::proto` hands to nobody; they are derived here from the same inputs, with its public Noise tokens.

use std::sync::OnceLock;

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768KeyPair};
use sha2::Sha256;
use spipe::proto::cipher::{Cipher, Ciphers};
use spipe::proto::handshake::{
    Initiator, InitiatorEstablished, InitiatorRandomness, Label, MESSAGE_1, MESSAGE_2, Responder,
    ResponderEstablished, ResponderRandomness,
};
use spipe::proto::key::Key;
use spipe::proto::noise::{MixedPsk, SymmetricState, initial_hash};
use x25519_dalek::{PublicKey, StaticSecret};

/// Bytes of a handshake message's payload, and of the ML-KEM fields before their tags.
pub const PAYLOAD: usize = 16;
pub const KEM_KEY: usize = 1184;
pub const KEM_CIPHERTEXT: usize = 1088;
const TAG: usize = 16;

// The inputs are those of the first connection in tests/protocol/vectors/spipe-1.txt, so its messages are seeds.

const fn counting<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = first.wrapping_add(i as u8);
        i += 1;
    }
    bytes
}

const KEY_FILE: [u8; 32] = counting(0xa0);

pub fn key() -> Key {
    Key::from_bytes(&KEY_FILE).unwrap()
}

pub fn ciphers() -> Ciphers {
    Ciphers::only(Cipher::ChaCha20Poly1305)
}

pub fn initiator_randomness() -> InitiatorRandomness {
    InitiatorRandomness { x25519: counting(0), kem: counting(0x20) }
}

pub fn responder_randomness() -> ResponderRandomness {
    ResponderRandomness { x25519: counting(0x60), kem: counting(0x80) }
}

/// The honest message 1, made once: handshakes are what limits how many inputs a second these targets try.
pub fn valid_message_1() -> &'static [u8; MESSAGE_1] {
    static MESSAGE: OnceLock<[u8; MESSAGE_1]> = OnceLock::new();
    MESSAGE.get_or_init(|| start().1)
}

/// The honest answer to it.
pub fn valid_message_2() -> &'static [u8; MESSAGE_2] {
    static MESSAGE: OnceLock<[u8; MESSAGE_2]> = OnceLock::new();
    MESSAGE.get_or_init(|| respond(valid_message_1()).unwrap().0)
}

pub fn start() -> (Initiator, [u8; MESSAGE_1]) {
    Initiator::start(&key(), &Label::default(), ciphers(), &initiator_randomness())
}

/// Reads message 1 and answers it.
pub fn respond(message: &[u8; MESSAGE_1]) -> Option<([u8; MESSAGE_2], Option<ResponderEstablished>)> {
    let responder = Responder::read(message, &[key()], &Label::default()).ok()?;
    let (message, established) = responder.reply(ciphers(), &responder_randomness());
    Some((message, established.ok()))
}

/// The initiator's end of the honest connection.
pub fn initiator() -> InitiatorEstablished {
    start().0.finish(valid_message_2()).unwrap()
}

/// The responder's end of it.
pub fn responder() -> ResponderEstablished {
    respond(valid_message_1()).unwrap().1.unwrap()
}

/// The front of `data` as an array, filled up with zeros.
pub fn array<const N: usize>(data: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| data.get(i).copied().unwrap_or(0))
}

/// Damages `message` as `data` says: three bytes are a place and what to flip there.
pub fn damage(message: &mut [u8], data: &[u8]) {
    for edit in data.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % message.len();
        message[place] ^= edit[2];
    }
}

/// Message 1 of a key holder that puts these bytes where its ML-KEM key and its payload belong.
pub fn message_1(kem_key: &[u8; KEM_KEY], payload: &[u8; PAYLOAD]) -> [u8; MESSAGE_1] {
    begin(kem_key, payload).1
}

/// Message 2 of a key holder that puts these bytes where its ML-KEM ciphertext and its payload belong, in answer to
/// [`start`]'s message 1; and the keys that follow.
pub fn message_2(ciphertext: &[u8; KEM_CIPHERTEXT], payload: &[u8; PAYLOAD]) -> ([u8; MESSAGE_2], Keys) {
    let pair = kem_pair();
    let (mut noise, message_1) = begin(pair.public_key().as_slice(), &offer());
    let secret = StaticSecret::from(responder_randomness().x25519);
    let public = PublicKey::from(&secret).to_bytes();
    noise.e(&public);
    noise.ee(secret.diffie_hellman(&PublicKey::from(array(&message_1))).as_bytes());
    let sealed_ciphertext = sealed(&mut noise, ciphertext);
    // Made with the initiator's own secret: a ciphertext out of nowhere has no sender who would know what it holds.
    noise.kem_secret(&mlkem768::decapsulate(pair.private_key(), &MlKem768Ciphertext::from(ciphertext)));
    let sealed_payload = sealed(&mut noise, payload);
    let message = [&public[..], &sealed_ciphertext, &sealed_payload].concat();
    let (to_responder, to_initiator) = noise.split();
    (message.try_into().unwrap(), Keys { to_responder: *to_responder, to_initiator: *to_initiator })
}

/// Both directions' first keys.
pub struct Keys {
    pub to_responder: [u8; 32],
    pub to_initiator: [u8; 32],
}

/// The keys of the honest connection.
pub fn keys() -> Keys {
    let (ciphertext, _) = mlkem768::encapsulate(kem_pair().public_key(), responder_randomness().kem);
    let mut choice = [0; PAYLOAD];
    choice[0] = Cipher::ChaCha20Poly1305 as u8;
    message_2(ciphertext.as_slice(), &choice).1
}

/// Frame `counter` of a direction, before the first rekey, with any plaintext.
pub fn frame(secret: &[u8; 32], counter: u64, text: &[u8]) -> Vec<u8> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::from_prk(secret).unwrap().expand(b"spipe/1 key chacha20poly1305", &mut key).unwrap();
    let header = u16::try_from(text.len() + TAG).unwrap().to_be_bytes();
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    let mut frame = [&header[..], text].concat();
    let tag = ChaCha20Poly1305::new(&key.into())
        .encrypt_inout_detached(&nonce.into(), &header, (&mut frame[2..]).into())
        .unwrap();
    frame.extend(tag);
    frame
}

fn offer() -> [u8; PAYLOAD] {
    let mut offer = [0; PAYLOAD];
    offer[0] = Cipher::ChaCha20Poly1305 as u8;
    offer
}

fn kem_pair() -> MlKem768KeyPair {
    mlkem768::generate_key_pair(initiator_randomness().kem)
}

fn begin(kem_key: &[u8; KEM_KEY], payload: &[u8; PAYLOAD]) -> (SymmetricState, [u8; MESSAGE_1]) {
    let mut psk = [0; 32];
    let hkdf = Hkdf::<Sha256>::new(Some(b"spipe/1 key file"), &KEY_FILE);
    hkdf.expand(b"spipe/1 psk", &mut psk).unwrap();
    let pattern = "Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256";
    let psk = MixedPsk::new(pattern, &psk);
    let mut noise = SymmetricState::new(&initial_hash(pattern, &[b"spipe/1\0"]), &psk);
    let public = PublicKey::from(&StaticSecret::from(initiator_randomness().x25519)).to_bytes();
    noise.e(&public);
    let message = [&public[..], &sealed(&mut noise, kem_key), &sealed(&mut noise, payload)].concat();
    (noise, message.try_into().unwrap())
}

fn sealed(noise: &mut SymmetricState, text: &[u8]) -> Vec<u8> {
    let mut field = [text, &[0; TAG]].concat();
    noise.seal(&mut field);
    field
}

/// The same for spiped's protocol: one connection, always the same, without forward secrecy on either side, which costs nothing.
pub mod spiped {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};
    use spipe::proto::framing::Seal;
    use spipe::proto::key::Key;
    use spipe::proto::spiped::group::{Half, VALUE};
    use spipe::proto::spiped::handshake::{
        Crossed, End, Established, ForwardSecrecy, PROOF, ProofError, Verified,
    };
    use spipe::proto::spiped::packet::{PACKET, PAYLOAD_MAX};

    /// Bytes of a packet's text: payload, zeros, length.
    pub const TEXT: usize = PAYLOAD_MAX + 4;
    const NONCES: [[u8; 32]; 2] = [[0x11; 32], [0x22; 32]];

    fn crossed(key: &Key, end: End) -> Crossed<'_> {
        match end {
            End::Initiator => Crossed::new(key, end, &NONCES[0], &NONCES[1]),
            End::Responder => Crossed::new(key, end, &NONCES[1], &NONCES[0]),
        }
    }

    /// The honest initiator's proof.
    pub fn proof(key: &Key) -> [u8; PROOF] {
        crossed(key, End::Initiator).prove(&Half::none())
    }

    /// What the responder says of a proof.
    pub fn verify<'k>(key: &'k Key, proof: &[u8; PROOF]) -> Result<Verified<'k>, ProofError> {
        crossed(key, End::Responder).verify(proof, ForwardSecrecy::Required)
    }

    fn hmac(key: &[u8], bytes: &[u8]) -> [u8; 32] {
        Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(bytes).finalize().into_bytes().into()
    }

    /// The proof of a key holder that has this value.
    pub fn proof_of(value: &[u8; VALUE]) -> [u8; PROOF] {
        let key = Sha256::digest(super::KEY_FILE);
        let mac = hmac(&key, &[NONCES.as_flattened(), &1_u32.to_be_bytes()].concat());
        [&value[..], &hmac(&mac, value)].concat().try_into().unwrap()
    }

    /// Both ends after the handshake.
    pub fn established(key: &Key) -> (Established, Established) {
        let [initiator, responder] = [End::Initiator, End::Responder].map(|end| crossed(key, end));
        let proofs = [initiator.prove(&Half::none()), responder.prove(&Half::none())];
        let initiator = initiator.verify(&proofs[1], ForwardSecrecy::Offered).unwrap();
        let responder = responder.verify(&proofs[0], ForwardSecrecy::Offered).unwrap();
        let (theirs, ours) = (responder.theirs(), initiator.theirs());
        (initiator.finish(&Half::none().agree(&ours)), responder.finish(&Half::none().agree(&theirs)))
    }

    /// The initiator's packets with any texts, as a key holder can make them.
    ///
    /// The cipher is a key stream, which a packet of zeros shows; so no second cipher is needed.
    pub fn packets(key: &Key, texts: &[[u8; TEXT]]) -> Vec<[u8; PACKET]> {
        let file = Sha256::digest(super::KEY_FILE);
        let mut one = [0; VALUE];
        one[VALUE - 1] = 1;
        // The second block of the keys: the HMAC's of the initiator's direction.
        let mac = hmac(&file, &[NONCES.as_flattened(), &one, &2_u32.to_be_bytes()].concat());
        let mut sealer = established(key).0.sealer;
        let zeros = [&[0; PAYLOAD_MAX][..], &1024_u32.to_be_bytes()].concat();
        let seal = |(number, text): (u64, &[u8; TEXT])| {
            let mut packet = [0; PACKET];
            sealer.data(&mut packet, PAYLOAD_MAX).unwrap();
            for ((byte, zero), wanted) in packet.iter_mut().zip(&zeros).zip(text) {
                *byte ^= zero ^ wanted;
            }
            let tag = hmac(&mac, &[&packet[..TEXT], &number.to_be_bytes()].concat());
            packet[TEXT..].copy_from_slice(&tag);
            packet
        };
        (0..).zip(texts).map(seal).collect()
    }
}
