//! Helpers of several test modules: whole connections, a byte stream cut into frames, and a second implementation of
//! the sending side that holds the keys.

use std::collections::BTreeMap;

use aegis::aegis256x4::Aegis256X4;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use hkdf::Hkdf;
use libcrux_ml_kem::mlkem768::{self, MlKem768PublicKey};
use sha2::Sha256;
use spipe::proto::cipher::{AesSupport, Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{
    AbortReason, FRAME_MAX, First, FrameError, HEADER, OVERHEAD, Opener, Sealer, Spent, frame_length,
};
use spipe::proto::framing::Received;
use spipe::proto::handshake::{Initiator, InitiatorRandomness, Label, Responder, ResponderRandomness};
use spipe::proto::handshake::{MESSAGE_1, MESSAGE_2};
use spipe::proto::key::Key;
use spipe::proto::noise::{MixedPsk, SymmetricState, initial_hash};
use x25519_dalek::{PublicKey, StaticSecret};

/// All ciphers: the promises about frames hold for each of them.
pub(crate) const CIPHERS: [Cipher; 3] = [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm, Cipher::Aegis256X4];

/// The number of frames under one key (step T5 of the specification).
pub(crate) const REKEY_AFTER: u64 = 65_536;

/// The key file for tests that need only one.
pub(crate) const KEY_FILE: [u8; 32] = *b"a key that only tests may use!!!";

/// The key file of [`other_key`].
pub(crate) const OTHER_KEY_FILE: &[u8] = b"another key, for tests only too!";

pub(crate) fn key() -> Key {
    Key::from_bytes(&KEY_FILE).unwrap()
}

pub(crate) fn other_key() -> Key {
    Key::from_bytes(OTHER_KEY_FILE).unwrap()
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// The initiator's random bytes. Different seeds give different bytes, so a test decides whether two handshakes
/// differ.
pub(crate) fn initiator_randomness(seed: u8) -> InitiatorRandomness {
    InitiatorRandomness { x25519: [seed; 32], kem: [seed.wrapping_add(64); 64] }
}

/// The responder's random bytes. They differ from the initiator's with the same `seed`.
pub(crate) fn responder_randomness(seed: u8) -> ResponderRandomness {
    ResponderRandomness { x25519: [seed.wrapping_add(128); 32], kem: [seed.wrapping_add(192); 32] }
}

/// An initiator with [`key`] and no label that offers all ciphers, and its message 1.
pub(crate) fn start(seed: u8) -> (Initiator, [u8; MESSAGE_1]) {
    Initiator::start(
        &key(),
        &Label::default(),
        Ciphers::auto(AesSupport::GcmAndAegis),
        &initiator_randomness(seed),
    )
}

/// The message 2 of a responder with the same configuration.
pub(crate) fn answer(message_1: &[u8; MESSAGE_1], seed: u8) -> [u8; MESSAGE_2] {
    let responder = Responder::read(message_1, &[key()], &Label::default()).unwrap();
    responder.reply(Ciphers::auto(AesSupport::GcmAndAegis), &responder_randomness(seed)).0
}

/// Both ends of one connection, directly after the handshake.
pub(crate) struct Connection {
    pub(crate) initiator: First<Sealer>,
    pub(crate) initiator_reads: Opener,
    pub(crate) responder: Sealer,
    pub(crate) responder_reads: First<Opener>,
    /// The secrets of both directions for use by the test: see [`Second`].
    pub(crate) keys: Second,
}

/// A connection under `cipher`. Connections have the same keys exactly when their seeds are equal.
pub(crate) fn connect(cipher: Cipher, seed: u8) -> Connection {
    let (ours, theirs) = (initiator_randomness(seed), responder_randomness(seed));
    let ciphers = Ciphers::only(cipher);
    let keys = Second::new(&KEY_FILE, "", (&ours, &theirs), &[cipher as u8], &[cipher as u8]);
    let (initiator, message_1) = Initiator::start(&key(), &Label::default(), ciphers, &ours);
    let responder = Responder::read(&message_1, &[key()], &Label::default()).unwrap();
    let (message_2, responder) = responder.reply(ciphers, &theirs);
    let (initiator, responder) = (initiator.finish(&message_2).unwrap(), responder.unwrap());
    Connection {
        initiator: initiator.sealer,
        initiator_reads: initiator.opener,
        responder: responder.sealer,
        responder_reads: responder.opener,
        keys,
    }
}

/// A second implementation that makes the messages of the handshake with any content, sealed with the right keys.
///
/// It plays a key holder that violates the specification, or a later version that extends it; `spipe::proto` can be
/// neither. It has its own sequence of Noise tokens, so it also checks the order of tokens in `handshake`.
pub(crate) struct Second {
    pub(crate) psk: [u8; 32],
    pub(crate) shared_x25519: [u8; 32],
    pub(crate) shared_kem: [u8; 32],
    pub(crate) message_1: [u8; MESSAGE_1],
    pub(crate) message_2: [u8; MESSAGE_2],
    pub(crate) to_responder: [u8; 32],
    pub(crate) to_initiator: [u8; 32],
}

impl Second {
    /// Plays both ends. `offer` and `choice` are the first bytes of the two payloads.
    pub(crate) fn new(
        key_file: &[u8],
        label: &str,
        (ours, theirs): (&InitiatorRandomness, &ResponderRandomness),
        offer: &[u8],
        choice: &[u8],
    ) -> Self {
        let pair = mlkem768::generate_key_pair(ours.kem);
        let kem_public = *pair.public_key().as_slice();
        Self::with_kem_key(key_file, label, (ours, theirs), offer, choice, &kem_public)
    }

    /// As [`Second::new`], with any bytes instead of the initiator's ML-KEM key.
    pub(crate) fn with_kem_key(
        key_file: &[u8],
        label: &str,
        (ours, theirs): (&InitiatorRandomness, &ResponderRandomness),
        offer: &[u8],
        choice: &[u8],
        kem_public: &[u8; 1184],
    ) -> Self {
        let psk = psk(key_file);
        let prologue = [b"spipe/1\0", label.as_bytes()].concat();
        let pattern = "Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256";
        let mixed = MixedPsk::new(pattern, &psk);
        let mut noise = SymmetricState::new(&initial_hash(pattern, &[&prologue]), &mixed);
        let initiator = StaticSecret::from(ours.x25519);
        let initiator_public = PublicKey::from(&initiator).to_bytes();
        let responder = StaticSecret::from(theirs.x25519);
        let responder_public = PublicKey::from(&responder).to_bytes();
        let (ciphertext, kem_secret) =
            mlkem768::encapsulate(&MlKem768PublicKey::from(kem_public), theirs.kem);

        noise.e(&initiator_public);
        let message_1 = [
            &initiator_public[..],
            &sealed(&mut noise, kem_public),
            &sealed(&mut noise, &filled_to_16(offer)),
        ]
        .concat();
        noise.e(&responder_public);
        let shared_x25519 = responder.diffie_hellman(&PublicKey::from(initiator_public)).to_bytes();
        noise.ee(&shared_x25519);
        let ciphertext = sealed(&mut noise, ciphertext.as_slice());
        noise.kem_secret(&kem_secret);
        let payload = sealed(&mut noise, &filled_to_16(choice));
        let message_2 = [&responder_public[..], &ciphertext, &payload].concat();

        let (to_responder, to_initiator) = noise.split();
        Self {
            psk,
            shared_x25519,
            shared_kem: kem_secret,
            message_1: message_1.try_into().unwrap(),
            message_2: message_2.try_into().unwrap(),
            to_responder: *to_responder,
            to_initiator: *to_initiator,
        }
    }
}

pub(crate) fn sealed(noise: &mut SymmetricState, text: &[u8]) -> Vec<u8> {
    let mut field = [text, &[0; 16]].concat();
    noise.seal(&mut field);
    field
}

fn filled_to_16(front: &[u8]) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[..front.len()].copy_from_slice(front);
    payload
}

fn expand(hkdf: &Hkdf<Sha256>, info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    hkdf.expand(info, &mut out).unwrap();
    out
}

/// The pre-shared key of a key file.
pub(crate) fn psk(key_file: &[u8]) -> [u8; 32] {
    expand(&Hkdf::new(Some(b"spipe/1 key file"), key_file), b"spipe/1 psk")
}

/// A direction's secret after `times` rekeys.
pub(crate) fn rekeyed(secret: [u8; 32], times: u64) -> [u8; 32] {
    (0..times).fold(secret, |secret, _| expand(&Hkdf::from_prk(&secret).unwrap(), b"spipe/1 rekey"))
}

/// The cipher's key, from a direction's secret.
pub(crate) fn frame_key(cipher: Cipher, secret: &[u8; 32]) -> [u8; 32] {
    expand(&Hkdf::from_prk(secret).unwrap(), format!("spipe/1 key {cipher}").as_bytes())
}

/// The frame number `counter` of a direction, with any `text` as its payload, kind and padding.
pub(crate) fn raw_frame(cipher: Cipher, secret: &[u8; 32], counter: u64, text: &[u8]) -> Vec<u8> {
    let key = &frame_key(cipher, secret);
    let header = u16::try_from(text.len() + 16).unwrap().to_be_bytes();
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    let body = match cipher {
        // A different implementation than the product's, where one is available.
        Cipher::ChaCha20Poly1305 => chacha_seal(key, nonce, &header, text),
        Cipher::Aes256Gcm => {
            let key = LessSafeKey::new(UnboundKey::new(&aead::AES_256_GCM, key).unwrap());
            let (nonce, mut body) = (aead::Nonce::assume_unique_for_key(nonce), text.to_vec());
            key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).unwrap();
            body
        }
        Cipher::Aegis256X4 => {
            let mut nonce = [0; 32];
            nonce[24..].copy_from_slice(&counter.to_be_bytes());
            let (mut body, tag) = Aegis256X4::<16>::new(key, &nonce).encrypt(text, &header);
            body.extend(tag);
            body
        }
    };
    [&header[..], &body].concat()
}

/// Seals with ChaCha20-Poly1305 from a different library than the one that seals the product's frames.
pub(crate) fn chacha_seal(key: &[u8; 32], nonce: [u8; 12], associated: &[u8], text: &[u8]) -> Vec<u8> {
    let mut sealed = text.to_vec();
    let cipher = ChaCha20Poly1305::new(key.into());
    let tag = cipher.encrypt_inout_detached(&nonce.into(), associated, (&mut *sealed).into()).unwrap();
    sealed.extend(tag);
    sealed
}

pub(crate) fn chacha_open(key: &[u8; 32], nonce: [u8; 12], associated: &[u8], sealed: &[u8]) -> Vec<u8> {
    let (text, tag) = sealed.split_last_chunk::<16>().unwrap();
    let mut text = text.to_vec();
    ChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(&nonce.into(), associated, (&mut *text).into(), &Tag::from(*tag))
        .unwrap();
    text
}

/// A nonce of the Noise framework: little-endian, whereas the nonces of spipe's frames are big-endian.
pub(crate) fn noise_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Seals *Open*, and returns the sealer for later frames.
pub(crate) fn open_frame(sealer: First<Sealer>, info: &ConnectionInfo) -> (Sealer, Vec<u8>) {
    let mut slot = vec![0; FRAME_MAX];
    let (sealer, length) = sealer.open(info, &mut slot);
    slot.truncate(length);
    (sealer, slot)
}

pub(crate) fn data_frame(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; payload.len() + OVERHEAD];
    slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let length = sealer.data(&mut slot, payload.len()).unwrap();
    assert_eq!(length, slot.len());
    slot
}

pub(crate) fn end_frame(sealer: Sealer) -> Vec<u8> {
    last_frame(sealer).0
}

/// *End*, and what is left for another connection.
pub(crate) fn last_frame(sealer: Sealer) -> (Vec<u8>, Spent<Sealer>) {
    let mut slot = vec![0; OVERHEAD];
    let (_, spent) = sealer.end(&mut slot).unwrap();
    (slot, spent)
}

pub(crate) fn abort_frame(sealer: Sealer, reason: AbortReason) -> Vec<u8> {
    let mut slot = vec![0; OVERHEAD + 1];
    sealer.abort(reason, &mut slot).unwrap();
    slot
}

/// What a reader of one direction got from a byte stream, and why it stopped.
#[derive(Debug, PartialEq)]
pub(crate) struct Read {
    pub(crate) info: Option<ConnectionInfo>,
    pub(crate) data: Vec<Vec<u8>>,
    pub(crate) stop: Stop,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Stop {
    /// The peer sent *End*, and nothing followed.
    End,
    Abort(AbortReason),
    Refused(FrameError),
    /// The bytes ended before *End*: a truncation at any place.
    CutShort,
}

impl Read {
    fn stopped(stop: Stop) -> Self {
        Self { info: None, data: Vec::new(), stop }
    }

    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.stop, Stop::Refused(_))
    }
}

/// Reads the initiator's stream: cuts it into frames by their headers, as the network code does, and opens them.
pub(crate) fn read_initiator(opener: First<Opener>, wire: &[u8]) -> Read {
    let (mut frame, rest) = match next_frame(wire) {
        Ok(Some(cut)) => cut,
        Ok(None) => return Read::stopped(Stop::CutShort),
        Err(error) => return Read::stopped(Stop::Refused(error)),
    };
    match opener.open(&mut frame) {
        Ok((opener, info)) => Read { info: Some(info), ..read_stream(opener, rest) },
        Err(error) => Read::stopped(Stop::Refused(error)),
    }
}

/// Reads the responder's stream, or the initiator's stream after *Open*.
pub(crate) fn read_stream(mut opener: Opener, mut wire: &[u8]) -> Read {
    let mut read = Read::stopped(Stop::CutShort);
    loop {
        let (mut frame, rest) = match next_frame(wire) {
            Ok(Some(cut)) => cut,
            Ok(None) => return read,
            Err(error) => return Read { stop: Stop::Refused(error), ..read },
        };
        read.stop = match opener.open(&mut frame) {
            Ok(Received::Data(range)) => {
                read.data.push(frame[range].to_vec());
                Stop::CutShort
            }
            Ok(Received::End) => Stop::End,
            Ok(Received::Abort(reason)) => Stop::Abort(reason),
            Err(error) => return Read { stop: Stop::Refused(error), ..read },
        };
        // Nothing may follow End or Abort; if something does, the next iteration refuses it.
        if rest.is_empty() {
            return read;
        }
        wire = rest;
    }
}

/// A frame and what follows it.
type Cut<'w> = (Vec<u8>, &'w [u8]);

/// The first frame of `wire`, or `None` if it is incomplete.
fn next_frame(wire: &[u8]) -> Result<Option<Cut<'_>>, FrameError> {
    let Some(&header) = wire.first_chunk::<HEADER>() else { return Ok(None) };
    let cut = wire.split_at_checked(frame_length(header)?);
    Ok(cut.map(|(frame, rest)| (frame.to_vec(), rest)))
}

/// All variants of `bytes` with one bit flipped, each with the number of that bit.
pub(crate) fn flips<const N: usize>(bytes: [u8; N]) -> impl Iterator<Item = (usize, [u8; N])> {
    (0..N * 8).map(move |bit| {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}

/// The fields of a vector file, one `name = hex` per line, grouped by `[section]`.
pub(crate) fn parse(file: &str) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let mut sections: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut section = String::new();
    for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            name.strip_suffix(']').expect("a section ends in ]").clone_into(&mut section);
        } else {
            let (name, value) = line.split_once(" =").expect("a field is name = hex");
            let fields = sections.entry(section.clone()).or_default();
            let twice = fields.insert(name.to_owned(), from_hex(value.trim_start()));
            assert!(twice.is_none(), "{name} occurs twice in {section}");
        }
    }
    sections
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte: {text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
