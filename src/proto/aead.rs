//! The ciphers of frames, which come from two libraries, as one (PROTOCOL.md, sections 4 and 5).

use aegis::aegis256x4::Aegis256X4;
use aws_lc_rs::aead::{self, Aad, Algorithm, LessSafeKey, UnboundKey};

use super::cipher::Cipher;
use super::noise::{Forged, Secret, TAG};
use super::stack::{self, wiped};

/// A cipher and its key, which is wiped when dropped. Sealing and opening leave nothing of it on the stack.
pub(super) enum FrameKey {
    /// The library has the key in memory of its own.
    AwsLc(LessSafeKey),
    /// There is nothing to prepare: each frame starts from the key itself. In a box, since a `FrameKey` moves, and a secret must
    /// not.
    Aegis256X4(Box<Secret>),
}

impl FrameKey {
    pub(super) fn new(cipher: Cipher, key: Secret) -> Self {
        let of_aws_lc = |algorithm: &'static Algorithm| {
            let key = UnboundKey::new(algorithm, &*key).expect("both ciphers take 32 bytes of key");
            Self::AwsLc(LessSafeKey::new(key))
        };
        match cipher {
            Cipher::ChaCha20Poly1305 => of_aws_lc(&aead::CHACHA20_POLY1305),
            Cipher::Aes256Gcm => of_aws_lc(&aead::AES_256_GCM),
            Cipher::Aegis256X4 => Self::Aegis256X4(Box::new(key)),
        }
    }

    /// Seals `text` in place as frame `number`, which must be sealed once only, and gives the tag.
    pub(super) fn seal(&self, number: u64, associated: &[u8], text: &mut [u8]) -> [u8; TAG] {
        match self {
            Self::AwsLc(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce(number));
                let tag = wiped::<{ stack::FRAME }, _>(|| {
                    key.seal_in_place_separate_tag(nonce, Aad::from(associated), text)
                });
                let tag = tag.expect("a frame is far below the cipher's limit");
                tag.as_ref().try_into().expect("the tags of both ciphers have 16 bytes")
            }
            Self::Aegis256X4(key) => {
                wiped::<{ stack::AEGIS }, _>(|| aegis(key, number).encrypt_in_place(text, associated))
            }
        }
    }

    /// Opens frame `number` in place. `sealed` is what [`Self::seal`] has made of the text, and the tag; gives the text, which is
    /// its front.
    ///
    /// # Errors
    /// [`Forged`] for anything else; nothing of the text is in `sealed` then.
    pub(super) fn open<'s>(
        &self,
        number: u64,
        associated: &[u8],
        sealed: &'s mut [u8],
    ) -> Result<&'s mut [u8], Forged> {
        match self {
            Self::AwsLc(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce(number));
                wiped::<{ stack::FRAME }, _>(|| key.open_in_place(nonce, Aad::from(associated), sealed))
                    .map_err(|_| Forged)
            }
            Self::Aegis256X4(key) => {
                let (text, tag) = sealed.split_last_chunk_mut().ok_or(Forged)?;
                wiped::<{ stack::AEGIS }, _>(|| aegis(key, number).decrypt_in_place(text, tag, associated))
                    .map_err(|_| Forged)?;
                Ok(text)
            }
        }
    }
}

fn aegis(key: &Secret, number: u64) -> Aegis256X4<TAG> {
    Aegis256X4::new(key, &nonce(number))
}

/// The number in network order, behind as many zero bytes as the cipher's nonce has room for.
fn nonce<const LENGTH: usize>(number: u64) -> [u8; LENGTH] {
    let mut nonce = [0; LENGTH];
    *nonce.last_chunk_mut().expect("every nonce has room for 8 bytes") = number.to_be_bytes();
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIPHERS: [Cipher; 3] = [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm, Cipher::Aegis256X4];

    fn key(cipher: Cipher, byte: u8) -> FrameKey {
        FrameKey::new(cipher, Secret::new([byte; 32]))
    }

    /// Frame 5 under a key of sevens.
    fn sealed(cipher: Cipher, text: &[u8]) -> Vec<u8> {
        let mut sealed = text.to_vec();
        let tag = key(cipher, 7).seal(5, b"ad", &mut sealed);
        sealed.extend(tag);
        sealed
    }

    #[test]
    fn what_is_sealed_opens() {
        for cipher in CIPHERS {
            for size in [0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1_000] {
                let text: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
                let mut sealed = sealed(cipher, &text);
                assert_eq!(key(cipher, 7).open(5, b"ad", &mut sealed).unwrap(), text, "{cipher}, {size}");
            }
        }
    }

    #[test]
    fn another_number_key_or_length_does_not_open() {
        for cipher in CIPHERS {
            let sealed = sealed(cipher, b"some text");
            for number in [0, 4, 6, 5 << 8, 5 << 56, u64::MAX] {
                assert!(
                    key(cipher, 7).open(number, b"ad", &mut sealed.clone()).is_err(),
                    "{cipher}, {number}"
                );
            }
            for associated in [&b""[..], b"a", b"da", b"ad\0"] {
                let opened = key(cipher, 7).open(5, associated, &mut sealed.clone()).is_err();
                assert!(opened, "{cipher}, {associated:?}");
            }
            assert!(key(cipher, 6).open(5, b"ad", &mut sealed.clone()).is_err(), "{cipher}");
        }
    }

    #[test]
    fn a_frame_of_another_cipher_does_not_open() {
        for ours in CIPHERS {
            for theirs in CIPHERS.into_iter().filter(|&theirs| theirs != ours) {
                assert!(key(ours, 7).open(5, b"ad", &mut sealed(theirs, b"some text")).is_err());
            }
        }
    }

    #[test]
    fn no_bit_and_no_length_can_be_altered() {
        for cipher in CIPHERS {
            let sealed = sealed(cipher, &[9; 130]);
            for bit in 0..8 * sealed.len() {
                let mut altered = sealed.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                assert!(key(cipher, 7).open(5, b"ad", &mut altered).is_err(), "{cipher}, bit {bit}");
            }
            for length in 0..sealed.len() {
                let mut cut = sealed[..length].to_vec();
                assert!(key(cipher, 7).open(5, b"ad", &mut cut).is_err(), "{cipher}, {length} bytes");
            }
            let mut longer = [&sealed[..], &[0]].concat();
            assert!(key(cipher, 7).open(5, b"ad", &mut longer).is_err(), "{cipher}");
        }
    }

    #[test]
    fn nothing_of_the_text_is_left_when_the_tag_is_wrong() {
        for cipher in CIPHERS {
            let mut altered = sealed(cipher, &[9; 130]);
            *altered.last_mut().unwrap() ^= 1;
            assert!(key(cipher, 7).open(5, b"ad", &mut altered).is_err());
            assert!(!altered.windows(4).any(|window| window == [9; 4]), "{cipher}");
        }
    }
}
