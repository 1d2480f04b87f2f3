//! X25519 as the handshake computes it, beside the published vectors and another library.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use spipe::proto::x25519::KeyPair;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::support::from_hex;

fn bytes(text: &str) -> [u8; 32] {
    from_hex(text).try_into().unwrap()
}

fn agree(secret: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    *KeyPair::new(secret).agree(public)
}

#[test]
fn the_vectors_of_rfc_7748_are_reproduced() {
    // Section 5.2. The last bit of the second point is set, and ignored.
    for (secret, public, agreed) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        assert_eq!(agree(&bytes(secret), &bytes(public)), bytes(agreed));
    }
}

#[test]
fn the_iterated_vector_of_rfc_7748_is_reproduced() {
    let (mut secret, mut public) = ([0; 32], [0; 32]);
    (secret[0], public[0]) = (9, 9);
    for iteration in 1..=1_000 {
        (secret, public) = (agree(&secret, &public), secret);
        if iteration == 1 {
            assert_eq!(secret, bytes("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(secret, bytes("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

#[test]
fn the_key_exchange_of_rfc_7748_is_reproduced() {
    let alice = KeyPair::new(&bytes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
    let bob = KeyPair::new(&bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
    let agreed = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(alice.public(), &bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    assert_eq!(bob.public(), &bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    assert_eq!((*alice.agree(bob.public()), *bob.agree(alice.public())), (agreed, agreed));
}

#[test]
fn another_library_computes_the_same() {
    let mut random = ChaCha8Rng::seed_from_u64(7748);
    for _ in 0..500 {
        // Any 32 bytes: also points that are not on the curve but on its twist, and those with the last bit set.
        let (mut secret, mut public) = ([0; 32], [0; 32]);
        random.fill_bytes(&mut secret);
        random.fill_bytes(&mut public);
        let (ours, theirs) = (KeyPair::new(&secret), StaticSecret::from(secret));
        assert_eq!(ours.public(), PublicKey::from(&theirs).as_bytes());
        assert_eq!(&*ours.agree(&public), theirs.diffie_hellman(&PublicKey::from(public)).as_bytes());
    }
}

#[test]
fn a_point_of_low_order_gives_zeros_as_in_the_other_library() {
    // The points of order 1, 2, 4 and 8 on the curve and its twist, and how else they can be written: plus the prime, and with
    // the last bit set.
    let points = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in points.map(bytes) {
        for last_bit in [0, 0x80] {
            let mut public = point;
            public[31] |= last_bit;
            let theirs = StaticSecret::from([7; 32]).diffie_hellman(&PublicKey::from(public));
            assert_eq!((agree(&[7; 32], &public), *theirs.as_bytes()), ([0; 32], [0; 32]), "{public:02x?}");
        }
    }
}
