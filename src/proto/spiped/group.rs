//! The Diffie-Hellman exchange: the 2048-bit MODP group of RFC 3526 ("group 14"), with 2 as its generator.
//!
//! crypto-bigint's exponentiation takes as long for any exponent of one length.

use std::sync::LazyLock;

use crypto_bigint::modular::{ConstMontyForm, ConstMontyParams};
use crypto_bigint::{MultiExponentiateBoundedExp, U64, U320, U2048, const_monty_params};
use zeroize::Zeroizing;

use crate::proto::stack::{self, wiped};

/// Bytes of a value of the group, as it is written: in network order, with leading zeros.
pub const VALUE: usize = 256;

/// Random bytes that an end's secret is made of.
pub const RANDOM: usize = 32;

/// spiped's exponents are 2^258 and 256 random bits. Not the random bits alone: all exponents are to have one length.
const EXPONENT_BITS: u32 = 259;

const_monty_params!(
    Group14,
    U2048,
    "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7edee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3be39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa051015728e5a8aacaa68ffffffffffffffff"
);

type Element = ConstMontyForm<Group14, { Group14::LIMBS }>;

/// 2^(2^n) for n of 0, 64, 128 and 192, and for 258: raised to the four parts of an exponent at once, they take 0.52 of the time
/// that 2 takes raised to all of it.
static POWERS: LazyLock<([Element; 4], Element)> = LazyLock::new(|| {
    let two = Element::new(&U2048::from_u8(2));
    let powers = [0, 64, 128, 192].map(|squarings| two.square_repeat_vartime(squarings));
    (powers, two.square_repeat_vartime(258))
});

/// What a peer has sent, in the range of the group.
#[derive(Clone, Copy)]
pub struct Public(U2048);

impl Public {
    /// As it was sent; none if it is not below the prime. As spiped does, 0, 1 and the prime less 1 are taken: a peer that sends
    /// them holds the key, and gives away nothing but its own secrecy.
    pub fn read(value: &[u8; VALUE]) -> Option<Self> {
        let value = U2048::from_be_slice(value);
        (value < *Group14::PARAMS.modulus().as_ref()).then_some(Self(value))
    }

    /// Whether it is 1, with which there is no forward secrecy.
    pub fn is_one(&self) -> bool {
        self.0 == U2048::ONE
    }
}

/// What both ends know, and nobody else.
pub type Shared = Box<Zeroizing<[u8; VALUE]>>;

/// One end's half of an exchange.
pub struct Half {
    /// None without forward secrecy. In a box, since it moves, and a secret must not.
    exponent: Option<Box<Zeroizing<U320>>>,
    public: Box<[u8; VALUE]>,
}

impl Half {
    /// Of random bytes. It takes some 0.2 ms, more on small processors, so it is not for a thread that others wait for.
    pub fn new(random: &[u8; RANDOM]) -> Self {
        wiped::<{ stack::ASYMMETRIC }, _>(|| {
            let mut exponent = Zeroizing::new([0; 40]);
            exponent[7] = 1 << 2;
            exponent[8..].copy_from_slice(random);
            let exponent = Box::new(Zeroizing::new(U320::from_be_slice(&*exponent)));
            let (powers, highest) = &*POWERS;
            let limbs = exponent.as_limbs();
            let parts = [0, 1, 2, 3].map(|part| (powers[part], U64::new([limbs[part]])));
            let public = Element::multi_exponentiate_bounded_exp(&parts, U64::BITS).mul(highest);
            let mut written = Box::new([0; VALUE]);
            write(&public, &mut written);
            Self { exponent: Some(exponent), public: written }
        })
    }

    /// Of nothing: whoever finds the key later can read what was recorded.
    pub fn none() -> Self {
        let mut public = Box::new([0; VALUE]);
        public[VALUE - 1] = 1;
        Self { exponent: None, public }
    }

    /// Whether it adds nothing.
    pub fn is_none(&self) -> bool {
        self.exponent.is_none()
    }

    /// What the peer is to know of it.
    pub fn public(&self) -> &[u8; VALUE] {
        &self.public
    }

    /// The shared secret of this half and the peer's. It takes twice as long as [`Self::new`].
    pub fn agree(self, theirs: &Public) -> Shared {
        let Some(exponent) = self.exponent.filter(|_| !theirs.is_one()) else {
            return Shared::new(Zeroizing::new(*Self::none().public));
        };
        wiped::<{ stack::ASYMMETRIC }, _>(|| {
            let shared = Element::new(&theirs.0).pow_bounded_exp(&exponent, EXPONENT_BITS);
            let mut written = Shared::new(Zeroizing::new([0; VALUE]));
            write(&shared, &mut written);
            written
        })
    }
}

fn write(element: &Element, written: &mut [u8; VALUE]) {
    written.copy_from_slice(element.retrieve().to_be_bytes().as_ref());
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn public(last: u8) -> Public {
        let mut value = [0; VALUE];
        value[VALUE - 1] = last;
        Public::read(&value).unwrap()
    }

    #[test]
    fn the_prime_is_that_of_rfc_3526() {
        let prime = Group14::PARAMS.modulus().as_ref().to_be_bytes();
        let digest = Sha256::digest(prime.as_ref());
        assert_eq!(digest[..8], [0xd6, 0x64, 0x36, 0xf7, 0x9b, 0xbd, 0x6b, 0x2e]);
    }

    #[test]
    fn both_ends_agree() {
        let (one, other) = (Half::new(&[1; RANDOM]), Half::new(&[255; RANDOM]));
        let (of_one, of_other) = (Public::read(one.public()).unwrap(), Public::read(other.public()).unwrap());
        assert_eq!(**one.agree(&of_other), **other.agree(&of_one));
    }

    #[test]
    fn the_parts_of_an_exponent_give_what_the_whole_gives() {
        for random in [[0; RANDOM], [255; RANDOM], std::array::from_fn(|at| u8::try_from(at * 7).unwrap())] {
            let half = Half::new(&random);
            let exponent = half.exponent.as_ref().unwrap();
            let whole = Element::new(&U2048::from_u8(2)).pow_bounded_exp(exponent, EXPONENT_BITS);
            let mut written = [0; VALUE];
            write(&whole, &mut written);
            assert_eq!(*half.public, written);
        }
    }

    #[test]
    fn without_forward_secrecy_the_secret_is_one_whatever_the_peer_sends() {
        assert_eq!(**Half::none().agree(&public(2)), *Half::none().public);
        assert_eq!(**Half::new(&[1; RANDOM]).agree(&public(1)), *Half::none().public);
    }

    #[test]
    fn values_from_the_prime_on_are_none_of_the_group() {
        let prime: [u8; VALUE] =
            Group14::PARAMS.modulus().as_ref().to_be_bytes().as_ref().try_into().unwrap();
        assert!(Public::read(&prime).is_none());
        assert!(Public::read(&[255; VALUE]).is_none());
        let mut below = prime;
        below[VALUE - 1] -= 1;
        assert!(Public::read(&below).is_some());
        assert!(public(0).0 == U2048::ZERO && public(1).is_one() && !public(2).is_one());
    }
}
