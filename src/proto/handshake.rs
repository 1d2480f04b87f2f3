//! The handshake, one round trip (PROTOCOL.md, section 3):
//!
//! ```text
//! Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256
//!   -> psk, e, e1
//!   <- e, ee, ekem1
//! ```
//!
//! [`Initiator::start`] → message 1 → [`Responder::read`] → [`Responder::reply`] → message 2 → [`Initiator::finish`].
//! Each step consumes the one before, so steps in a wrong order do not compile, and no state is left to use twice.
//!
//! ```
//! use spipe::proto::cipher::{Cipher, Ciphers};
//! use spipe::proto::handshake::{Initiator, InitiatorRandomness, Label, Responder, ResponderRandomness};
//! use spipe::proto::key::Key;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (key, label, ciphers) = (Key::from_bytes(&[7; 32])?, Label::default(), Ciphers::only(Cipher::Aes256Gcm));
//! // Of the operating system's random generator, in real use.
//! let (ours, theirs) =
//!     (InitiatorRandomness { x25519: [1; 32], kem: [2; 64] }, ResponderRandomness { x25519: [3; 32], kem: [4; 32] });
//!
//! let (initiator, message_1) = Initiator::start(&key, &label, ciphers, &ours);
//! let responder = Responder::read(&message_1, &[&key], &label)?;
//! assert_eq!(responder.fingerprint(), key.fingerprint());
//! let (message_2, established) = responder.reply(ciphers, &theirs);
//! assert_eq!(established?.cipher, Cipher::Aes256Gcm);
//! assert_eq!(initiator.finish(&message_2)?.cipher, Cipher::Aes256Gcm);
//! # Ok(())
//! # }
//! ```

use std::borrow::Borrow;

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::cipher::{Cipher, Ciphers, OFFER};
use super::features::{Abilities, Features};
use super::frame::{First, Opener, Sealer};
use super::key::{Fingerprint, Key};
use super::noise::{Forged, SymmetricState, TAG, initial_hash};
use super::stack::{self, wiped};
use super::x25519::{KeyPair, LENGTH as X25519};

pub(super) const PROTOCOL_NAME: &str = "Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256";

/// The prologue's fixed part. The zero byte keeps it apart from the label behind it.
const PROLOGUE: &[u8] = b"spipe/1\0";

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, table 3).
const KEM_KEY: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203, table 3).
const KEM_CIPHERTEXT: usize = 1088;
/// Bytes of either message's payload. What is not yet used is sent as zero and ignored, as room for later versions.
const PAYLOAD: usize = 16;
/// Where message 1's payload has the features that the initiator asks for: behind the ciphers.
const ASKED: usize = OFFER;
/// Where message 2's payload has those that the responder grants: behind the cipher.
const GRANTED: usize = 1;

/// Bytes of message 1, from the initiator.
pub const MESSAGE_1: usize = X25519 + KEM_KEY + TAG + PAYLOAD + TAG;
/// Bytes of message 2, from the responder.
pub const MESSAGE_2: usize = X25519 + KEM_CIPHERTEXT + TAG + PAYLOAD + TAG;

/// What an initiator consumes. It comes from the operating system's random generator, and is used once.
#[derive(ZeroizeOnDrop)]
pub struct InitiatorRandomness {
    /// The X25519 secret.
    pub x25519: [u8; 32],
    /// ML-KEM's key generation seeds: `d`, then `z` (FIPS 203, algorithm 16).
    pub kem: [u8; 64],
}

/// What a responder consumes, under the same conditions.
#[derive(ZeroizeOnDrop)]
pub struct ResponderRandomness {
    /// The X25519 secret.
    pub x25519: [u8; 32],
    /// ML-KEM's encapsulation seed `m` (FIPS 203, algorithm 17).
    pub kem: [u8; 32],
}

impl InitiatorRandomness {
    /// Has `fill` fill it, where it stays.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn draw<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Box<Self>, E> {
        let mut drawn = Box::new(Self { x25519: [0; 32], kem: [0; 64] });
        fill(&mut drawn.x25519)?;
        fill(&mut drawn.kem)?;
        Ok(drawn)
    }
}

impl ResponderRandomness {
    /// Has `fill` fill it, where it stays.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn draw<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Box<Self>, E> {
        let mut drawn = Box::new(Self { x25519: [0; 32], kem: [0; 32] });
        fill(&mut drawn.x25519)?;
        fill(&mut drawn.kem)?;
        Ok(drawn)
    }
}

/// Why a handshake failed.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The peer has another key or label, is not spipe, or the message was altered on the way.
    #[error(transparent)]
    Forged(#[from] Forged),
    /// The initiator holds the key but sent an encapsulation key that FIPS 203 forbids.
    #[error("the peer's ML-KEM key is malformed")]
    MalformedKemKey,
    /// Both ends hold the key, but `--cipher` leaves nothing in common.
    #[error("no transport cipher in common: this end accepts {0} only")]
    NoCommonCipher(Ciphers),
}

/// An optional text that both ends must share besides the key, mixed into the handshake. It is not secret.
///
/// It tells apart tunnels that share a key, so that an attacker on the network cannot join one tunnel's client to another
/// tunnel's service (rerouting; RFC 9257, section 4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label(String);

/// A label above [`Label::MAX`] bytes.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a label is at most {max} bytes, and this one is {0}", max = Label::MAX)]
pub struct LabelTooLong(usize);

impl Label {
    /// The most bytes a label may have.
    pub const MAX: usize = 255;
}

impl std::str::FromStr for Label {
    type Err = LabelTooLong;

    fn from_str(text: &str) -> Result<Self, LabelTooLong> {
        if text.len() > Self::MAX { Err(LabelTooLong(text.len())) } else { Ok(Self(text.to_owned())) }
    }
}

/// What a finished handshake leaves: one key a direction, and no way back to what made them.
pub struct Established<S, O> {
    /// For the frames that this end sends.
    pub sealer: S,
    /// For the frames that this end receives.
    pub opener: O,
    /// What both agreed on, for the log.
    pub cipher: Cipher,
    /// What both agreed on besides.
    pub features: Features,
}

/// What the initiator has then: its first frame is still to be sealed.
pub type InitiatorEstablished = Established<First<Sealer>, Opener>;
/// What the responder has then: the initiator's first frame is still to be opened.
pub type ResponderEstablished = Established<Sealer, First<Opener>>;

/// The initiator between its message and the responder's.
pub struct Initiator(Box<Started>);

/// What the initiator keeps until message 2.
struct Started {
    noise: SymmetricState,
    ephemeral: KeyPair,
    kem: KemSecret,
    abilities: Abilities,
}

impl Initiator {
    /// I1–I2: makes the ephemeral keys and message 1.
    pub fn start(
        key: &Key,
        label: &Label,
        abilities: impl Into<Abilities>,
        randomness: &InitiatorRandomness,
    ) -> (Self, [u8; MESSAGE_1]) {
        let abilities = abilities.into();
        wiped::<{ stack::ASYMMETRIC }, _>(|| {
            let (started, message) = Started::new(key, label, abilities, randomness);
            (Self(Box::new(started)), message)
        })
    }

    /// I3–I5: reads message 2.
    ///
    /// # Errors
    /// [`HandshakeError::Forged`] unless the responder holds the same key and label and answered this very message 1;
    /// [`HandshakeError::NoCommonCipher`] when it accepts no cipher of ours.
    pub fn finish(mut self, message: &[u8; MESSAGE_2]) -> Result<InitiatorEstablished, HandshakeError> {
        wiped::<{ stack::ASYMMETRIC }, _>(|| self.0.finish(message))
    }
}

impl Started {
    fn new(
        key: &Key,
        label: &Label,
        abilities: Abilities,
        randomness: &InitiatorRandomness,
    ) -> (Self, [u8; MESSAGE_1]) {
        let ephemeral = KeyPair::new(&randomness.x25519);
        let (kem, kem_public) = mlkem768::generate_key_pair(randomness.kem).into_parts();

        let mut message = [0; MESSAGE_1];
        let (e, rest) = message.split_at_mut(X25519);
        let (e1, payload) = rest.split_at_mut(KEM_KEY + TAG);
        e.copy_from_slice(ephemeral.public());
        e1[..KEM_KEY].copy_from_slice(kem_public.as_slice());
        payload[..OFFER].copy_from_slice(&abilities.ciphers.offer());
        payload[ASKED] = abilities.features.byte();

        let mut noise = SymmetricState::new(&begin(label), key.psk());
        noise.e(ephemeral.public());
        noise.seal(e1);
        noise.seal(payload);
        (Self { noise, ephemeral, kem: KemSecret(Box::new(kem)), abilities }, message)
    }

    fn finish(&mut self, message: &[u8; MESSAGE_2]) -> Result<InitiatorEstablished, HandshakeError> {
        let (e, rest) = message.split_first_chunk::<X25519>().expect("message 2 starts with a public key");
        let (ekem1, payload) = rest.split_at(KEM_CIPHERTEXT + TAG);
        let (mut ciphertext, mut choice) = ([0; KEM_CIPHERTEXT], [0; PAYLOAD]);

        self.noise.e(e);
        self.noise.ee(&self.ephemeral.agree(e));
        self.noise.open(ekem1, &mut ciphertext)?;
        let ciphertext = MlKem768Ciphertext::from(ciphertext);
        self.noise.kem_secret(&Zeroizing::new(mlkem768::decapsulate(&self.kem.0, &ciphertext)));
        let choice = self.noise.open(payload, &mut choice)?;

        let Abilities { ciphers, features } = self.abilities;
        let cipher = ciphers.accept(choice[0]).ok_or(HandshakeError::NoCommonCipher(ciphers))?;
        // What was not asked for is not granted.
        let features = Features::from_byte(choice[GRANTED]).and(features);
        let (to_responder, to_initiator) = self.noise.split();
        Ok(Established {
            sealer: First::new(Sealer::new(cipher, to_responder)),
            opener: Opener::new(cipher, to_initiator),
            cipher,
            features,
        })
    }
}

/// The responder once message 1 has proved that the initiator holds the key.
pub struct Responder(Box<Opened>);

/// What message 1 has said, and the state that it leaves.
struct Opened {
    noise: SymmetricState,
    initiator: [u8; X25519],
    kem_public: MlKem768PublicKey,
    offer: [u8; OFFER],
    /// What the initiator asks for.
    features: Features,
    fingerprint: Fingerprint,
}

impl Responder {
    /// R1–R2: reads message 1 with each key. Up to here the cost is symmetric cryptography over 1.2 KiB a key, so a
    /// stranger cannot make us work.
    ///
    /// All keys are tried, also after one has opened the message: how long this takes tells whether one did, which the
    /// answer tells anyway, and not which.
    ///
    /// # Errors
    /// [`HandshakeError::Forged`] when no key opens it; [`HandshakeError::MalformedKemKey`] when one does but what it
    /// carries is no ML-KEM key.
    pub fn read(
        message: &[u8; MESSAGE_1],
        keys: &[impl Borrow<Key>],
        label: &Label,
    ) -> Result<Self, HandshakeError> {
        Self::read_one_of(message, std::iter::once((keys, label))).map(|(responder, _)| responder)
    }

    /// The same where there are several labels, each with keys: also tells which of these pairs has opened the message, from 0.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_one_of<'d, K: Borrow<Key> + 'd>(
        message: &[u8; MESSAGE_1],
        doors: impl Iterator<Item = (&'d [K], &'d Label)>,
    ) -> Result<(Self, usize), HandshakeError> {
        wiped::<{ stack::SYMMETRIC }, _>(|| {
            let mut opened = None;
            for (door, (keys, label)) in doors.enumerate() {
                let beginning = begin(label);
                for key in keys {
                    let tried = Opened::read(message, key.borrow(), &beginning);
                    if let (Ok(tried), None) = (tried, &opened) {
                        opened = Some((tried, door));
                    }
                }
            }
            let (opened, door) = opened.ok_or(Forged)?;
            if mlkem768::validate_public_key(&opened.kem_public) {
                Ok((Self(Box::new(opened)), door))
            } else {
                Err(HandshakeError::MalformedKemKey)
            }
        })
    }

    /// Which of the keys the initiator proved to hold.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// R3–R5: makes message 2. It is to be sent even when there is no cipher in common: the initiator has proved the
    /// key and may know why it fails.
    pub fn reply(
        mut self,
        abilities: impl Into<Abilities>,
        randomness: &ResponderRandomness,
    ) -> ([u8; MESSAGE_2], Result<ResponderEstablished, HandshakeError>) {
        let abilities = abilities.into();
        wiped::<{ stack::ASYMMETRIC }, _>(|| self.0.reply(abilities, randomness))
    }
}

impl Opened {
    fn read(message: &[u8; MESSAGE_1], key: &Key, beginning: &[u8; 32]) -> Result<Self, Forged> {
        let (e, rest) = message.split_first_chunk::<X25519>().expect("message 1 starts with a public key");
        let (e1, payload) = rest.split_at(KEM_KEY + TAG);
        let (mut kem_public, mut offer) = ([0; KEM_KEY], [0; PAYLOAD]);

        let mut noise = SymmetricState::new(beginning, key.psk());
        noise.e(e);
        noise.open(e1, &mut kem_public)?;
        noise.open(payload, &mut offer)?;
        Ok(Self {
            noise,
            initiator: *e,
            kem_public: MlKem768PublicKey::from(kem_public),
            offer: *offer.first_chunk().expect("the payload has room for the offer"),
            features: Features::from_byte(offer[ASKED]),
            fingerprint: key.fingerprint(),
        })
    }

    fn reply(
        &mut self,
        Abilities { ciphers, features }: Abilities,
        randomness: &ResponderRandomness,
    ) -> ([u8; MESSAGE_2], Result<ResponderEstablished, HandshakeError>) {
        let (cipher, features) = (ciphers.choose(self.offer), features.and(self.features));
        let ephemeral = KeyPair::new(&randomness.x25519);
        let (ciphertext, kem_secret) = mlkem768::encapsulate(&self.kem_public, randomness.kem);
        let kem_secret = Zeroizing::new(kem_secret);

        let mut message = [0; MESSAGE_2];
        let (e, rest) = message.split_at_mut(X25519);
        let (ekem1, payload) = rest.split_at_mut(KEM_CIPHERTEXT + TAG);
        e.copy_from_slice(ephemeral.public());
        ekem1[..KEM_CIPHERTEXT].copy_from_slice(ciphertext.as_slice());
        payload[0] = cipher.map_or(0, |cipher| cipher as u8);
        payload[GRANTED] = features.byte();

        self.noise.e(ephemeral.public());
        self.noise.ee(&ephemeral.agree(&self.initiator));
        self.noise.seal(ekem1);
        self.noise.kem_secret(&kem_secret);
        self.noise.seal(payload);

        let established = cipher.ok_or(HandshakeError::NoCommonCipher(ciphers)).map(|cipher| {
            let (to_responder, to_initiator) = self.noise.split();
            Established {
                sealer: Sealer::new(cipher, to_initiator),
                opener: First::new(Opener::new(cipher, to_responder)),
                cipher,
                features,
            }
        });
        (message, established)
    }
}

/// What both ends do first, whatever the key: name the protocol, mix in prologue and label.
fn begin(label: &Label) -> [u8; 32] {
    initial_hash(PROTOCOL_NAME, &[PROLOGUE, label.0.as_bytes()])
}

/// The initiator's decapsulation key, which libcrux leaves to its user to wipe.
struct KemSecret(Box<MlKem768PrivateKey>);

impl Drop for KemSecret {
    fn drop(&mut self) {
        self.0[..MlKem768PrivateKey::len()].zeroize();
    }
}
