//! The transport ciphers and how two ends agree on one (PROTOCOL.md, section 4).

use std::fmt;

/// Places in an offer. More than there are ciphers, so that a later version can name new ones in the same message.
pub const OFFER: usize = 8;

/// A cipher for the transport frames. Its number is its code point on the wire; 0 means "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439): fast and constant-time on every processor.
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM (NIST SP 800-38D): about twice as fast where the processor has AES instructions.
    Aes256Gcm = 2,
    /// AEGIS-256X4 (RFC 10032): again twice as fast as that with AES instructions, and far slower without.
    Aegis256X4 = 3,
}

impl Cipher {
    fn from_code_point(code: u8) -> Option<Self> {
        [Self::ChaCha20Poly1305, Self::Aes256Gcm, Self::Aegis256X4]
            .into_iter()
            .find(|&cipher| cipher as u8 == code)
    }

    /// As options and the log have it, and the derivation of its keys (PROTOCOL.md, section 5).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes256Gcm => "aes256gcm",
            Self::Aegis256X4 => "aegis256x4",
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which ciphers with AES run on a processor's own instructions. Without them, AES-256-GCM is slower than ChaCha20-Poly1305, and
/// AEGIS-256X4 a hundred times slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AesSupport {
    /// Not one.
    None,
    /// AES-256-GCM.
    Gcm,
    /// AES-256-GCM and AEGIS-256X4.
    GcmAndAegis,
}

/// What seals a connection, whatever its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The frames of spipe's own protocol.
    Frames(Cipher),
    /// The packets of spiped's protocol, which has no choice.
    Packets,
}

/// As the log and the metrics have it.
impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(cipher) => cipher.fmt(f),
            Self::Packets => f.write_str("aes256ctr-hmacsha256"),
        }
    }
}

/// The ciphers that one end accepts, the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphers(&'static [Cipher]);

impl Ciphers {
    /// Just one, whatever the processor.
    pub fn only(cipher: Cipher) -> Self {
        Self(match cipher {
            Cipher::ChaCha20Poly1305 => &[Cipher::ChaCha20Poly1305],
            Cipher::Aes256Gcm => &[Cipher::Aes256Gcm],
            Cipher::Aegis256X4 => &[Cipher::Aegis256X4],
        })
    }

    /// Those that are fast here, the fastest one first, and ChaCha20-Poly1305, which every end has.
    pub fn auto(aes: AesSupport) -> Self {
        match aes {
            AesSupport::None => Self::only(Cipher::ChaCha20Poly1305),
            AesSupport::Gcm => Self(&[Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305]),
            AesSupport::GcmAndAegis => {
                Self(&[Cipher::Aegis256X4, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305])
            }
        }
    }

    /// Each of them, the preferred one first.
    pub fn iter(self) -> impl Iterator<Item = Cipher> {
        self.0.iter().copied()
    }

    /// I2: the offer as message 1 carries it, code points in order of preference, the rest 0.
    pub(super) fn offer(self) -> [u8; OFFER] {
        let mut offer = [0; OFFER];
        offer.iter_mut().zip(self.0).for_each(|(place, &cipher)| *place = cipher as u8);
        offer
    }

    /// R3: the first of ours that the initiator offers.
    pub(super) fn choose(self, offer: [u8; OFFER]) -> Option<Cipher> {
        self.0.iter().copied().find(|&cipher| offer.contains(&(cipher as u8)))
    }

    /// I5: the responder's choice, if it is one of ours.
    pub(super) fn accept(self, code: u8) -> Option<Cipher> {
        Cipher::from_code_point(code).filter(|cipher| self.0.contains(cipher))
    }
}

/// For people: `aes256gcm or chacha20poly1305`.
impl fmt::Display for Ciphers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, cipher) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { " or " };
            write!(f, "{separator}{cipher}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_cipher_is_chosen_that_both_ends_have_instructions_for() {
        use AesSupport::{Gcm, GcmAndAegis, None};
        for (ours, theirs, cipher) in [
            (GcmAndAegis, GcmAndAegis, Cipher::Aegis256X4),
            (GcmAndAegis, Gcm, Cipher::Aes256Gcm),
            (GcmAndAegis, None, Cipher::ChaCha20Poly1305),
            (Gcm, Gcm, Cipher::Aes256Gcm),
            (Gcm, None, Cipher::ChaCha20Poly1305),
            (None, None, Cipher::ChaCha20Poly1305),
        ] {
            let (ours, theirs) = (Ciphers::auto(ours), Ciphers::auto(theirs));
            assert_eq!(ours.choose(theirs.offer()), Some(cipher), "{ours}; {theirs}");
            assert_eq!(theirs.choose(ours.offer()), Some(cipher), "{theirs}; {ours}");
        }
    }

    #[test]
    fn ends_that_insist_on_different_ciphers_have_none_in_common() {
        let all = [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm, Cipher::Aegis256X4];
        for (ours, theirs) in all.into_iter().flat_map(|ours| all.map(|theirs| (ours, theirs))) {
            let chosen = Ciphers::only(ours).choose(Ciphers::only(theirs).offer());
            assert_eq!(chosen, (ours == theirs).then_some(ours));
        }
    }

    #[test]
    fn code_points_of_later_versions_are_passed_over() {
        let offer = [200, 201, 2, 0, 0, 0, 0, 255];
        assert_eq!(Ciphers::auto(AesSupport::GcmAndAegis).choose(offer), Some(Cipher::Aes256Gcm));
    }

    #[test]
    fn a_choice_that_was_not_offered_is_refused() {
        let chacha = Ciphers::only(Cipher::ChaCha20Poly1305);
        for code in [0, 2, 3, 99] {
            assert_eq!(chacha.accept(code), None, "{code}");
        }
        assert_eq!(Ciphers::auto(AesSupport::Gcm).accept(3), None);
    }
}
