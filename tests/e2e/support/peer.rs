//! The other end of a tunnel, played by the test, which thereby knows every secret of the connection.
//!
//! It follows docs/PROTOCOL.md step by step and shares no code with `spipe::proto`, which shows no secret.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use aegis::aegis256x4::Aegis256X4;
use aws_lc_rs::aead::{self, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use hkdf::Hkdf;
use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use spipe::proto::cipher::Cipher;
use x25519_dalek::{PublicKey, StaticSecret};

use super::memory::Secrets;
use super::second::hmac_states;

const KEM_KEY: usize = 1184;
const CIPHERTEXT: usize = 1088;
const TAG: usize = 16;

/// Kinds of frames (section 5).
pub(crate) const OPEN: u8 = 1;
pub(crate) const DATA: u8 = 2;
pub(crate) const END: u8 = 3;
pub(crate) const ABORT: u8 = 4;

/// Frames under one secret (T5).
pub(crate) const REKEY_AFTER: usize = 1 << 16;

/// The secrets of a key file: its bytes, if they are not many, and the key that is derived from it.
pub(crate) fn key_secrets(key_file: &[u8]) -> Secrets {
    let mut secrets = Secrets::default();
    secrets.add("key file", key_file);
    let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(b"spipe/1 key file"), key_file);
    secrets.add("key of the key file", &prk);
    add_hmac_states(&mut secrets, "key of the key file", &prk);
    let mut psk = [0; 32];
    hkdf.expand(b"spipe/1 psk", &mut psk).expect("a short output");
    secrets.add("psk", &psk);
    let (_, hkdf) = Hkdf::<Sha256>::extract(Some(&protocol_name()), &psk);
    let mut mixed = [0; 96];
    hkdf.expand(b"", &mut mixed).expect("a short output");
    // What a process keeps of its key.
    secrets.add("mixed psk", &mixed);
    secrets
}

fn protocol_name() -> [u8; 32] {
    Sha256::digest("Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256").into()
}

fn psk(key_file: &[u8]) -> [u8; 32] {
    expand(&Hkdf::new(Some(b"spipe/1 key file"), key_file), b"spipe/1 psk")
}

fn expand(hkdf: &Hkdf<Sha256>, info: &[u8]) -> [u8; 32] {
    let mut output = [0; 32];
    hkdf.expand(info, &mut output).expect("a short output");
    output
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("the system has random bytes");
    bytes
}

/// Whoever has these two states of SHA-256 can compute every HMAC of `key` without the key itself (RFC 2104, section 4).
pub(crate) fn add_hmac_states(secrets: &mut Secrets, name: &str, key: &[u8]) {
    let key = key.try_into().expect("the keys of all HMACs here have 32 bytes");
    for state in hmac_states(key) {
        secrets.add(format!("{name}, as HMAC keeps it"), &state);
    }
}

/// Noise's symmetric state (section 3.1), and all secrets that it has had.
struct Noise {
    chaining_key: [u8; 32],
    hash: [u8; 32],
    cipher_key: [u8; 32],
    nonce: u64,
    secrets: Secrets,
}

impl Noise {
    fn new(key_file: &[u8]) -> Self {
        let name = protocol_name();
        let secrets = Secrets::default();
        let mut noise = Self { chaining_key: name, hash: name, cipher_key: [0; 32], nonce: 0, secrets };
        noise.mix_hash(b"spipe/1\0");
        let [chaining_key, temporary, cipher_key] = noise.derive("psk", &psk(key_file));
        noise.chaining_key = chaining_key;
        noise.mix_hash(&temporary);
        noise.cipher_key = cipher_key;
        noise
    }

    fn derive<const N: usize>(&mut self, token: &str, input: &[u8]) -> [[u8; 32]; N] {
        let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(&self.chaining_key), input);
        let mut output = [[0; 32]; N];
        hkdf.expand(b"", output.as_flattened_mut()).expect("a short output");
        self.secrets.add(format!("extracted, {token}"), &prk);
        add_hmac_states(&mut self.secrets, &format!("extracted, {token}"), &prk);
        output
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = Sha256::new().chain_update(self.hash).chain_update(bytes).finalize().into();
    }

    fn mix_key(&mut self, token: &str, input: &[u8]) {
        [self.chaining_key, self.cipher_key] = self.derive(token, input);
        self.nonce = 0;
        self.secrets.add(format!("chaining key, {token}"), &self.chaining_key);
        add_hmac_states(&mut self.secrets, &format!("chaining key, {token}"), &self.chaining_key);
        self.secrets.add(format!("handshake key, {token}"), &self.cipher_key);
    }

    fn e(&mut self, public: &[u8]) {
        self.mix_hash(public);
        self.mix_key("e", public);
    }

    fn ee(&mut self, secret: &[u8; 32], public: &[u8]) {
        let public: [u8; 32] = public.try_into().expect("a public key");
        let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(public));
        self.secrets.add("shared X25519 secret", shared.as_bytes());
        self.mix_key("ee", shared.as_bytes());
    }

    fn kem(&mut self, shared: &[u8; 32]) {
        self.secrets.add("shared ML-KEM secret", shared);
        self.mix_key("ekem1", shared);
    }

    fn next_nonce(&mut self) -> chacha20poly1305::Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        nonce.into()
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let (mut field, nonce) = (text.to_vec(), self.next_nonce());
        let cipher = ChaCha20Poly1305::new(&self.cipher_key.into());
        let tag =
            cipher.encrypt_inout_detached(&nonce, &self.hash, (&mut *field).into()).expect("a short text");
        field.extend(tag);
        self.mix_hash(&field);
        field
    }

    fn open(&mut self, field: &[u8]) -> Vec<u8> {
        let (text, tag) = field.split_last_chunk::<TAG>().expect("a field has a tag");
        let (mut text, nonce) = (text.to_vec(), self.next_nonce());
        let cipher = ChaCha20Poly1305::new(&self.cipher_key.into());
        cipher
            .decrypt_inout_detached(&nonce, &self.hash, (&mut *text).into(), &Tag::from(*tag))
            .expect("the field is authentic");
        self.mix_hash(field);
        text
    }

    /// The secrets to the responder and to the initiator.
    fn split(&mut self) -> [[u8; 32]; 2] {
        self.derive("split", b"")
    }
}

/// The start of the handshake, as a responder sees it.
pub(crate) struct Begun {
    wire: TcpStream,
    noise: Noise,
    /// The initiator's public keys.
    pub(crate) x25519: [u8; 32],
    pub(crate) kem_key: [u8; KEM_KEY],
    /// The features that the initiator asks for.
    pub(crate) asked: u8,
    /// Those that it gets: none, as from a responder that is older than features.
    granted: u8,
}

impl Begun {
    /// The secrets of the handshake so far.
    pub(crate) fn secrets(&self) -> Secrets {
        self.noise.secrets.clone()
    }

    /// Whether this is the secret of the initiator's X25519 key.
    pub(crate) fn is_x25519_secret(&self, secret: &[u8; 32]) -> bool {
        PublicKey::from(&StaticSecret::from(*secret)).to_bytes() == self.x25519
    }

    /// Whether this is the decapsulation key that belongs to the initiator's encapsulation key.
    pub(crate) fn is_kem_secret(&self, key: &[u8]) -> bool {
        let (ciphertext, shared) = mlkem768::encapsulate(&MlKem768PublicKey::from(self.kem_key), random());
        let key = MlKem768PrivateKey::try_from(key).expect("a decapsulation key has this length");
        mlkem768::decapsulate(&key, &ciphertext) == shared
    }

    /// R1–R2: takes an initiator's message 1.
    pub(crate) fn read(mut wire: TcpStream, key_file: &[u8]) -> Self {
        let mut message = [0; 32 + KEM_KEY + TAG + 16 + TAG];
        wire.read_exact(&mut message).expect("an initiator sends message 1");
        let (e, rest) = message.split_first_chunk::<32>().expect("a public key");
        let (e1, payload) = rest.split_at(KEM_KEY + TAG);
        let mut noise = Noise::new(key_file);
        noise.e(e);
        let kem_key = noise.open(e1).try_into().expect("an encapsulation key");
        let asked = noise.open(payload)[8];
        Self { wire, noise, x25519: *e, kem_key, asked, granted: 0 }
    }

    /// Grants features.
    pub(crate) fn granting(self, granted: u8) -> Self {
        Self { granted, ..self }
    }

    /// R3–R5: answers, and chooses `cipher`.
    pub(crate) fn reply(self, cipher: Cipher) -> Tunnel {
        self.reply_with(|_| (), cipher)
    }

    /// The same with a message 2 that `change` has changed.
    pub(crate) fn reply_with(mut self, change: impl FnOnce(&mut [u8]), cipher: Cipher) -> Tunnel {
        let secret = random();
        let public = PublicKey::from(&StaticSecret::from(secret)).to_bytes();
        let (ciphertext, shared) = mlkem768::encapsulate(&MlKem768PublicKey::from(self.kem_key), random());
        let noise = &mut self.noise;
        noise.e(&public);
        noise.ee(&secret, &self.x25519);
        let ekem1 = noise.seal(ciphertext.as_slice());
        noise.kem(&shared);
        let mut payload = [0; 16];
        payload[..2].copy_from_slice(&[cipher as u8, self.granted]);
        let mut message = [&public[..], &ekem1, &noise.seal(&payload)].concat();
        change(&mut message);
        self.wire.write_all(&message).expect("the initiator reads message 2");
        let [to_responder, to_initiator] = noise.split();
        Tunnel::new(self.wire, cipher, self.noise.secrets, to_initiator, to_responder)
    }
}

/// The initiator's side of the handshake: I1–I5, with an offer of `cipher` only.
pub(crate) fn initiate(mut wire: TcpStream, key_file: &[u8], cipher: Cipher) -> Tunnel {
    let secret = random();
    let public = PublicKey::from(&StaticSecret::from(secret)).to_bytes();
    let pair = mlkem768::generate_key_pair(random());
    let mut noise = Noise::new(key_file);
    noise.e(&public);
    let e1 = noise.seal(pair.public_key().as_slice());
    let mut payload = [0; 16];
    payload[0] = cipher as u8;
    wire.write_all(&[&public[..], &e1, &noise.seal(&payload)].concat())
        .expect("the responder reads message 1");

    let mut message = [0; 32 + CIPHERTEXT + TAG + 16 + TAG];
    wire.read_exact(&mut message).expect("the responder sends message 2");
    let (e, rest) = message.split_first_chunk::<32>().expect("a public key");
    let (ekem1, payload) = rest.split_at(CIPHERTEXT + TAG);
    noise.e(e);
    noise.ee(&secret, e);
    let ciphertext = MlKem768Ciphertext::try_from(&*noise.open(ekem1)).expect("a ciphertext");
    noise.kem(&mlkem768::decapsulate(pair.private_key(), &ciphertext));
    assert_eq!(noise.open(payload)[0], cipher as u8);
    let [to_responder, to_initiator] = noise.split();
    Tunnel::new(wire, cipher, noise.secrets, to_responder, to_initiator)
}

/// A tunnel after the handshake.
pub(crate) struct Tunnel {
    wire: TcpStream,
    sends: Direction,
    receives: Direction,
    secrets: Secrets,
}

impl Tunnel {
    fn new(wire: TcpStream, cipher: Cipher, secrets: Secrets, sends: [u8; 32], receives: [u8; 32]) -> Self {
        Self {
            wire,
            sends: Direction::new(cipher, sends),
            receives: Direction::new(cipher, receives),
            secrets,
        }
    }

    pub(crate) fn send(&mut self, kind: u8, payload: &[u8]) {
        self.try_send(kind, payload).expect("the other end reads");
    }

    /// The same where the other end may have closed the connection.
    pub(crate) fn try_send(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let frame = self.sends.seal(&[payload, &[kind]].concat());
        self.wire.write_all(&frame)
    }

    /// The payload of the next frame, which has this kind.
    #[track_caller]
    pub(crate) fn receive(&mut self, kind: u8) -> Vec<u8> {
        let mut header = [0; 2];
        self.wire.read_exact(&mut header).expect("the other end sends a frame");
        let mut sealed = vec![0; u16::from_be_bytes(header).into()];
        self.wire.read_exact(&mut sealed).expect("the frame is whole");
        let mut text = self.receives.open(header, &sealed);
        assert_eq!(text.pop(), Some(kind), "the kind of the frame");
        text
    }

    /// Goes on to the next connection, now that both directions have ended (T7).
    pub(crate) fn renew(&mut self) {
        self.sends.renew();
        self.receives.renew();
    }

    /// The same for what the other end sends only: what it receives is sealed as before.
    pub(crate) fn renew_received(&mut self) {
        self.receives.renew();
    }

    /// Sends bytes that are no frame.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).expect("the other end reads");
    }

    /// Whether the other end closes the connection, and does not say anything before.
    pub(crate) fn is_at_end(&mut self) -> bool {
        matches!(self.wire.peek(&mut [0]), Ok(0) | Err(_))
    }

    /// Waits until the other end closes the connection. Gives the bytes that came before.
    pub(crate) fn await_close(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _closed_or_reset = self.wire.read_to_end(&mut rest);
        rest
    }

    /// Asserts that the other end closes the connection, without a byte before.
    #[track_caller]
    pub(crate) fn assert_closes(mut self) {
        match self.wire.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0, "the other end says nothing more"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    /// Closes the connection.
    pub(crate) fn vanish(&mut self) {
        self.wire.shutdown(Shutdown::Both).expect("the connection stands");
    }

    /// The secrets of what the other end receives, as they are now.
    pub(crate) fn received_secrets(&self) -> Secrets {
        self.sends.secrets()
    }

    /// All secrets of the connection so far.
    pub(crate) fn secrets(&self) -> Secrets {
        let mut secrets = self.secrets.clone();
        secrets.extend(self.traffic_secrets());
        secrets
    }

    /// Those of them that both ends need until the connection ends.
    pub(crate) fn traffic_secrets(&self) -> Secrets {
        let mut secrets = self.sends.secrets();
        secrets.extend(self.receives.secrets());
        secrets
    }
}

/// The frames of one direction.
struct Direction {
    cipher: Cipher,
    secret: [u8; 32],
    frames: u64,
}

impl Direction {
    fn new(cipher: Cipher, secret: [u8; 32]) -> Self {
        Self { cipher, secret, frames: 0 }
    }

    fn hkdf(&self) -> Hkdf<Sha256> {
        Hkdf::from_prk(&self.secret).expect("a secret has the size of a digest")
    }

    fn renew(&mut self) {
        self.secret = expand(&self.hkdf(), b"spipe/1 next connection");
    }

    fn key(&self) -> [u8; 32] {
        expand(&self.hkdf(), format!("spipe/1 key {}", self.cipher).as_bytes())
    }

    fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add("traffic secret", &self.secret);
        secrets.add("traffic key", &self.key());
        add_hmac_states(&mut secrets, "used traffic secret", &self.secret);
        secrets
    }

    /// The key of the next frame, and its number (T5).
    fn next(&mut self) -> ([u8; 32], u64) {
        if self.frames != 0 && self.frames.is_multiple_of(REKEY_AFTER as u64) {
            self.secret = expand(&self.hkdf(), b"spipe/1 rekey");
        }
        let number = self.frames;
        self.frames += 1;
        (self.key(), number)
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let header = u16::try_from(text.len() + TAG).expect("a short frame").to_be_bytes();
        let (key, number) = self.next();
        let body = match self.cipher {
            Cipher::ChaCha20Poly1305 => aws_lc_seal(&aead::CHACHA20_POLY1305, key, number, header, text),
            Cipher::Aes256Gcm => aws_lc_seal(&aead::AES_256_GCM, key, number, header, text),
            Cipher::Aegis256X4 => {
                let (mut body, tag) = Aegis256X4::<TAG>::new(&key, &nonce(number)).encrypt(text, &header);
                body.extend(tag);
                body
            }
        };
        [&header[..], &body].concat()
    }

    fn open(&mut self, header: [u8; 2], sealed: &[u8]) -> Vec<u8> {
        let (key, number) = self.next();
        let opened = match self.cipher {
            Cipher::ChaCha20Poly1305 => aws_lc_open(&aead::CHACHA20_POLY1305, key, number, header, sealed),
            Cipher::Aes256Gcm => aws_lc_open(&aead::AES_256_GCM, key, number, header, sealed),
            Cipher::Aegis256X4 => {
                let (text, tag) = sealed.split_last_chunk().expect("a frame has a tag");
                Aegis256X4::<TAG>::new(&key, &nonce(number)).decrypt(text, tag, &header).ok()
            }
        };
        opened.expect("the frame is authentic")
    }
}

fn aws_lc_key(algorithm: &'static Algorithm, key: [u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, &key).expect("a key of 32 bytes"))
}

fn aws_lc_seal(
    algorithm: &'static Algorithm,
    key: [u8; 32],
    number: u64,
    header: [u8; 2],
    text: &[u8],
) -> Vec<u8> {
    let (nonce, mut body) = (Nonce::assume_unique_for_key(nonce(number)), text.to_vec());
    let key = aws_lc_key(algorithm, key);
    key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).expect("a short frame");
    body
}

fn aws_lc_open(
    algorithm: &'static Algorithm,
    key: [u8; 32],
    number: u64,
    header: [u8; 2],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let (nonce, mut sealed) = (Nonce::assume_unique_for_key(nonce(number)), sealed.to_vec());
    let text = aws_lc_key(algorithm, key).open_in_place(nonce, Aad::from(header), &mut sealed).ok()?;
    Some(text.to_vec())
}

/// The number of a frame as the nonce of its cipher.
fn nonce<const LENGTH: usize>(number: u64) -> [u8; LENGTH] {
    let mut nonce = [0; LENGTH];
    nonce[LENGTH - 8..].copy_from_slice(&number.to_be_bytes());
    nonce
}
