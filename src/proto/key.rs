//! From the bytes of a key file to the pre-shared key of the handshake (PROTOCOL.md, section 2).

use std::fmt;
use std::str::FromStr;

use hkdf::{Hkdf, HkdfExtract};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::handshake::PROTOCOL_NAME;
use super::noise::{MixedPsk, Secret};
use super::stack::{self, wiped};

/// The least number of bytes a key file may hold: 256 bits, so that 32 random bytes are a full-strength key.
pub const KEY_FILE_MIN: usize = 32;

/// HKDF-Extract's salt. It separates our keys from any other use of the same file, spiped's included.
const SALT: &[u8] = b"spipe/1 key file";

/// A key file that is too short to be a key.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a key is at least {KEY_FILE_MIN} bytes, and this one is {0}")]
pub struct KeyTooShort(pub usize);

/// The key that both ends share.
///
/// ```
/// use spipe::proto::key::Key;
///
/// let ours = Key::from_bytes(b"the whole content of a key file, 32 bytes or more")?;
/// let theirs = Key::from_bytes(b"the whole content of a key file, 32 bytes or more")?;
/// // What two administrators compare by telephone.
/// assert_eq!(ours.fingerprint().to_string(), theirs.fingerprint().to_string());
/// assert!(Key::from_bytes(b"too short").is_err());
/// # Ok::<(), spipe::proto::key::KeyTooShort>(())
/// ```
///
/// It is a key of both protocols, so that a pipe can change from spiped's to spipe's.
///
/// Neither `Debug` nor `Clone`: it cannot end in a log, and there is one copy to wipe. That one is in boxes, so that moving the
/// key leaves nothing behind.
pub struct Key {
    psk: Box<MixedPsk>,
    /// What spiped makes of the same file. Nothing of one follows from the other.
    spiped: Box<Secret>,
    fingerprint: Fingerprint,
}

impl Key {
    /// Derives the key from the whole content of a key file.
    ///
    /// # Errors
    /// [`KeyTooShort`] below [`KEY_FILE_MIN`] bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyTooShort> {
        wiped::<{ stack::SYMMETRIC }, _>(|| {
            let mut derivation = KeyDerivation::default();
            derivation.update(bytes);
            derivation.finish()
        })
    }

    /// What the ends compare to see that they hold the same key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether the files of both had the same content. How long it takes does not tell where they differ.
    pub fn is_same(&self, other: &Self) -> bool {
        self.psk.is_same(&other.psk)
    }

    pub(super) fn psk(&self) -> &MixedPsk {
        &self.psk
    }

    pub(super) fn spiped(&self) -> &Secret {
        &self.spiped
    }
}

/// Derives a [`Key`] from a file's bytes piece by piece.
///
/// Streaming, so that a key file of any size costs no memory and its bytes never lie in a buffer that grows (each
/// growth would leave an unwiped copy behind). It holds bytes of the file itself, so it is to live within [`wiped`] only.
pub struct KeyDerivation {
    extract: HkdfExtract<Sha256>,
    digest: Sha256,
    length: usize,
}

impl Default for KeyDerivation {
    fn default() -> Self {
        Self { extract: HkdfExtract::new(Some(SALT)), digest: Sha256::new(), length: 0 }
    }
}

impl KeyDerivation {
    /// Takes in the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.extract.input_ikm(bytes);
        self.digest.update(bytes);
        self.length += bytes.len();
    }

    /// Bytes of the file so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`KeyTooShort`] when fewer than [`KEY_FILE_MIN`] bytes came in.
    pub fn finish(self) -> Result<Key, KeyTooShort> {
        if self.length < KEY_FILE_MIN { Err(KeyTooShort(self.length)) } else { Ok(self.finish_any()) }
    }

    /// Ends a file of any length, as spiped takes it; for spiped's protocol only.
    pub fn finish_any(self) -> Key {
        let (prk, hkdf) = self.extract.finalize();
        let _wiped = Zeroizing::new(<[u8; 32]>::from(prk));
        let mut psk = Secret::default();
        expand(&hkdf, b"spipe/1 psk", &mut *psk);
        let mut fingerprint = [0; 4];
        expand(&hkdf, b"spipe/1 fingerprint", &mut fingerprint);
        let mut spiped = Box::new(Secret::default());
        spiped.copy_from_slice(&self.digest.finalize());
        let psk = Box::new(MixedPsk::new(PROTOCOL_NAME, &psk));
        Key { psk, spiped, fingerprint: Fingerprint(fingerprint) }
    }
}

fn expand(hkdf: &Hkdf<Sha256>, info: &[u8], out: &mut [u8]) {
    hkdf.expand(info, out).expect("HKDF-SHA256 gives up to 8,160 bytes");
}

/// A short name for a key: 32 bits, written as `7f3a-19c2`, to be read out over the telephone.
///
/// An HKDF output of its own label, so it tells nothing about the key beyond a way to recognise a right guess, and
/// 2^256 guesses are out of reach. 32 bits distinguish an administrator's keys; they are no proof against an attacker,
/// and nothing in the protocol relies on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 4]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(formatter, "{a:02x}{b:02x}-{c:02x}{d:02x}")
    }
}

/// A text that is no [`Fingerprint`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a fingerprint is written as 7f3a-19c2")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let (first, second) = text.split_once('-').ok_or(NotAFingerprint)?;
        let half = |text: &str| {
            let is_hexadecimal = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hexadecimal.then(|| u16::from_str_radix(text, 16).ok()).flatten().ok_or(NotAFingerprint)
        };
        let ([a, b], [c, d]) = (half(first)?.to_be_bytes(), half(second)?.to_be_bytes());
        Ok(Self([a, b, c, d]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let fingerprint = Key::from_bytes(&[7; 32]).unwrap().fingerprint();
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        for text in ["", "-", "7f3a19c2", "7f3a-19c", "7f3a-19c2-", "+f3a-19c2", "7f3a-19cz"] {
            assert_eq!(text.parse::<Fingerprint>(), Err(NotAFingerprint), "{text}");
        }
    }

    #[test]
    fn thirty_one_bytes_are_refused() {
        assert_eq!(Key::from_bytes(&[7; 31]).err(), Some(KeyTooShort(31)));
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert_eq!(Key::from_bytes(&[]).err(), Some(KeyTooShort(0)));
    }

    #[test]
    fn every_byte_of_a_long_file_counts() {
        let mut file = vec![1; 10_000];
        let before = Key::from_bytes(&file).unwrap();
        file[9_999] = 2;
        let after = Key::from_bytes(&file).unwrap();
        assert_ne!(before.fingerprint(), after.fingerprint());
    }

    #[test]
    fn pieces_give_the_same_key_as_the_whole() {
        let file: Vec<u8> = (0..=255).collect();
        let mut derivation = KeyDerivation::default();
        file.chunks(7).for_each(|piece| derivation.update(piece));
        let (pieces, whole) = (derivation.finish().unwrap(), Key::from_bytes(&file).unwrap());
        assert_eq!(pieces.fingerprint(), whole.fingerprint());
    }
}
