//! The symmetric state of the Noise framework (Noise revision 34, section 5.2) and the handshake tokens of NNpsk0 with
//! the hybrid-forward-secrecy extension, one method a token.
//!
//! `handshake` puts the tokens in order. They are separate so that the published vectors for plain
//! `Noise_NNpsk0_25519_ChaChaPoly_SHA256`, and the `snow` crate as a peer, exercise this very code without `e1` and `ekem1`.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes that each sealed field grows by (Poly1305's tag).
pub const TAG: usize = 16;

/// A secret of 32 bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// A field of a handshake message did not open.
///
/// One value for every cause: only a key holder may learn which check failed.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the message does not authenticate")]
pub struct Forged;

/// What token `psk` makes of a pre-shared key: `MixKeyAndHash(psk)`, which every pattern here begins with. It depends on nothing
/// else, the prologue included, so it is computed once a key and not once a handshake.
pub struct MixedPsk {
    /// The chaining key, what goes into the hash, and the cipher key.
    output: Zeroizing<[u8; 96]>,
}

impl MixedPsk {
    /// For handshakes of `protocol_name`.
    ///
    /// # Panics
    /// For a `protocol_name` of 32 bytes or fewer, which Noise pads instead of hashing; ours is longer.
    pub fn new(protocol_name: &str, psk: &[u8; 32]) -> Self {
        let mut output = Zeroizing::new([0; 96]);
        hkdf(&hash_name(protocol_name), psk, &mut *output);
        Self { output }
    }

    /// Whether both are of one key, in constant time.
    pub fn is_same(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.output, &*other.output).is_ok()
    }
}

/// The hash that handshakes start with: `InitializeSymmetric(protocol_name)` and `MixHash(prologue)`.
///
/// # Panics
/// As [`MixedPsk::new`].
pub fn initial_hash(protocol_name: &str, prologue: &[&[u8]]) -> [u8; 32] {
    mix_hash(&hash_name(protocol_name), prologue)
}

fn hash_name(protocol_name: &str) -> [u8; 32] {
    assert!(protocol_name.len() > 32, "shorter names are not hashed (Noise, section 5.2)");
    Sha256::digest(protocol_name).into()
}

/// Noise's `SymmetricState` with its `CipherState` inside.
pub struct SymmetricState {
    chaining_key: Secret,
    hash: [u8; 32],
    cipher_key: Secret,
    /// Counts sealed fields under one `cipher_key`. A handshake seals four fields, so it cannot wrap.
    nonce: u64,
}

impl SymmetricState {
    /// The state after [`initial_hash`] and token `psk`. So there is no state without a cipher key.
    pub fn new(initial_hash: &[u8; 32], psk: &MixedPsk) -> Self {
        let (chaining_key, rest) = psk.output.split_at(32);
        let (temporary_hash, cipher_key) = rest.split_at(32);
        let hash = mix_hash(initial_hash, &[temporary_hash]);
        Self { chaining_key: secret(chaining_key), hash, cipher_key: secret(cipher_key), nonce: 0 }
    }

    /// Token `e`, sent or received: in a PSK handshake the public key is mixed into the hash and the key (section 9.2).
    pub fn e(&mut self, public: &[u8; 32]) {
        self.mix_hash(&[public]);
        self.mix_key(public);
    }

    /// Token `ee`: `MixKey` of what X25519 gave for the public keys of both.
    ///
    /// An all-zero result is not refused, as section 12.1 advises: only a holder of the pre-shared key could cause it.
    pub fn ee(&mut self, shared: &[u8; 32]) {
        self.mix_key(shared);
    }

    /// The second half of token `ekem1`: `MixKey` of the secret that the KEM gave. Its first half, the ciphertext, is
    /// sealed or opened like any other field.
    pub fn kem_secret(&mut self, secret: &[u8; 32]) {
        self.mix_key(secret);
    }

    /// `EncryptAndHash`, in place: the last [`TAG`] bytes of `field` are room for the tag.
    ///
    /// # Panics
    /// For a field shorter than [`TAG`].
    pub fn seal(&mut self, field: &mut [u8]) {
        let (text, tag) = field.split_last_chunk_mut::<TAG>().expect("a field has room for its tag");
        let sealed = self
            .cipher()
            .encrypt_inout_detached(&self.next_nonce(), &self.hash, text.into())
            .expect("a handshake field is far below ChaCha20-Poly1305's 256 GiB");
        tag.copy_from_slice(&sealed);
        self.mix_hash(&[field]);
    }

    /// `DecryptAndHash`: gives the plaintext, which is the front of `text` and [`TAG`] bytes shorter than `field`.
    ///
    /// The hash, most of the work for a long field, comes after the check: with a wrong key it is not computed.
    ///
    /// # Errors
    /// [`Forged`] when the field is not what the peer sealed under this state.
    ///
    /// # Panics
    /// For a `text` that is too short.
    pub fn open<'t>(&mut self, field: &[u8], text: &'t mut [u8]) -> Result<&'t [u8], Forged> {
        let (sealed, tag) = field.split_last_chunk::<TAG>().ok_or(Forged)?;
        let text = &mut text[..sealed.len()];
        let buffer = InOutBuf::new(sealed, text).expect("they are of one length");
        self.cipher()
            .decrypt_inout_detached(&self.next_nonce(), &self.hash, buffer, &Tag::from(*tag))
            .map_err(|_| Forged)?;
        self.mix_hash(&[field]);
        Ok(text)
    }

    /// `Split()`: the key of the initiator's direction, then the responder's. It is the last step, and yet takes a reference: a
    /// state that is moved out of its box leaves its bytes there.
    pub fn split(&self) -> (Secret, Secret) {
        let mut output = Zeroizing::new([0; 64]);
        hkdf(&self.chaining_key, &[], &mut *output);
        let (initiator, responder) = output.split_at(32);
        (secret(initiator), secret(responder))
    }

    /// `MixKey(input)`.
    fn mix_key(&mut self, input: &[u8; 32]) {
        let mut output = Zeroizing::new([0; 64]);
        hkdf(&self.chaining_key, input, &mut *output);
        let (chaining_key, cipher_key) = output.split_at(32);
        self.chaining_key.copy_from_slice(chaining_key);
        self.cipher_key.copy_from_slice(cipher_key);
        self.nonce = 0;
    }

    /// `MixHash` of the concatenation of `parts`.
    fn mix_hash(&mut self, parts: &[&[u8]]) {
        self.hash = mix_hash(&self.hash, parts);
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&*self.cipher_key).into())
    }

    /// Four zero bytes, then the counter in little-endian order (section 12.3).
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        nonce.into()
    }
}

fn mix_hash(hash: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(hash);
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Noise's `HKDF` is RFC 5869's with the chaining key as salt and an empty info.
fn hkdf(chaining_key: &[u8; 32], input: &[u8], output: &mut [u8]) {
    Hkdf::<Sha256>::new(Some(chaining_key), input)
        .expand(&[], output)
        .expect("HKDF-SHA256 gives up to 8,160 bytes");
}

/// A part of an output that has 32 bytes.
fn secret(bytes: &[u8]) -> Secret {
    let mut secret = Secret::default();
    secret.copy_from_slice(bytes);
    secret
}
