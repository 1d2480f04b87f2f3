//! The published vectors for AEGIS-256X4, reproduced with the library that seals frames: with the implementation that it has
//! chosen for this processor. `recorded` has whole frames.

use aegis::aegis256x4::{Aegis256X4, Key, Nonce};

use crate::support::parse;

const PUBLISHED: &str = include_str!("vectors/aegis-256x4.txt");

/// A published vector with its tag of `TAG` bytes.
#[derive(Clone)]
struct Vector<const TAG: usize> {
    key: Key,
    nonce: Nonce,
    associated: Vec<u8>,
    text: Vec<u8>,
    sealed: Vec<u8>,
    tag: [u8; TAG],
}

impl<const TAG: usize> Vector<TAG> {
    fn all() -> Vec<Self> {
        let vectors: Vec<_> = parse(PUBLISHED)
            .into_values()
            .map(|fields| Self {
                key: fields["key"][..].try_into().unwrap(),
                nonce: fields["nonce"][..].try_into().unwrap(),
                associated: fields["ad"].clone(),
                text: fields["msg"].clone(),
                sealed: fields["ct"].clone(),
                tag: fields[&format!("tag{}", 8 * TAG)][..].try_into().unwrap(),
            })
            .collect();
        assert_eq!(vectors.len(), 2);
        vectors
    }

    fn cipher(&self) -> Aegis256X4<TAG> {
        Aegis256X4::new(&self.key, &self.nonce)
    }

    /// The text, or that it does not authenticate. Then nothing of it may be left where it was opened.
    fn open(&self) -> Option<Vec<u8>> {
        let mut text = self.sealed.clone();
        let opened = self.cipher().decrypt_in_place(&mut text, &self.tag, &self.associated);
        assert!(opened.is_ok() || text.iter().all(|&byte| byte == 0), "the text is left");
        opened.ok().map(|()| text)
    }
}

fn assert_reproduced<const TAG: usize>() {
    for vector in Vector::<TAG>::all() {
        let mut sealed = vector.text.clone();
        let tag = vector.cipher().encrypt_in_place(&mut sealed, &vector.associated);
        assert_eq!((sealed, tag), (vector.sealed.clone(), vector.tag));
        assert_eq!(vector.open(), Some(vector.text));
    }
}

#[test]
fn the_published_vectors_are_reproduced() {
    assert_reproduced::<16>();
    assert_reproduced::<32>();
}

/// Asserts that the vector does not open with any bit of the bytes flipped that `part` gives.
fn assert_no_bit_can_be_altered(part: impl Fn(&mut Vector<16>) -> &mut [u8]) {
    let mut bits = 0;
    for vector in Vector::<16>::all() {
        for bit in 0..8 * part(&mut vector.clone()).len() {
            let mut altered = vector.clone();
            part(&mut altered)[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(altered.open(), None, "bit {bit}");
            bits += 1;
        }
    }
    assert_ne!(bits, 0);
}

#[test]
fn a_vector_with_an_altered_bit_does_not_open() {
    assert_no_bit_can_be_altered(|vector| &mut vector.sealed);
    assert_no_bit_can_be_altered(|vector| &mut vector.tag);
    assert_no_bit_can_be_altered(|vector| &mut vector.associated);
    assert_no_bit_can_be_altered(|vector| &mut vector.key);
    assert_no_bit_can_be_altered(|vector| &mut vector.nonce);
}

#[test]
fn a_vector_of_another_length_does_not_open() {
    for vector in Vector::<16>::all() {
        for length in (0..=vector.sealed.len() + 64).filter(|&length| length != vector.sealed.len()) {
            let mut altered = vector.clone();
            altered.sealed.resize(length, 0);
            assert_eq!(altered.open(), None, "{length} bytes");
        }
        // Padding with zeros makes blocks of it, so only the lengths in the tag tell these apart.
        for length in (0..=vector.associated.len() + 64).filter(|&length| length != vector.associated.len()) {
            let mut altered = vector.clone();
            altered.associated.resize(length, 0);
            assert_eq!(altered.open(), None, "{length} bytes of associated data");
        }
    }
}
