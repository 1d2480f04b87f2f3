//! The handshake: two nonces cross, and then each end proves with an HMAC that it holds the key.
//!
//! The proof covers both nonces, so it cannot be a recording. An initiator proves itself first. Nothing here is costly: a stranger
//! costs a responder three HMACs.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::derive;
use super::group::{Half, Public, Shared, VALUE};
use super::packet::{Opener, Sealer};
use crate::proto::key::Key;
use crate::proto::stack::{self, wiped};

/// Bytes of a nonce.
pub const NONCE: usize = 32;

/// Bytes of a proof: a value of the group and its HMAC.
pub const PROOF: usize = VALUE + 32;

/// What this end does for forward secrecy. The peer is not told; it may do something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardSecrecy {
    /// Adds its half, and takes it if the peer adds none.
    #[default]
    Offered,
    /// Adds its half, and refuses a peer that adds none (`-g`).
    Required,
    /// Adds none (`-f`): whoever finds the key later can read what was recorded.
    Omitted,
}

/// A proof that was not accepted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProofError {
    /// It is that of another key, or was altered.
    #[error("its proof does not authenticate")]
    Forged,
    /// It is authentic, and has a value that is none of the group.
    #[error("the peer broke the protocol: its value is not below the prime of the group")]
    NotOfTheGroup,
    /// The peer adds nothing to forward secrecy.
    #[error("the other end has forward secrecy turned off (its -f), and here it is required (-g)")]
    NoForwardSecrecy,
}

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It opened the connection.
    Initiator,
    /// It accepted it.
    Responder,
}

impl End {
    /// Of what the initiator has and what the responder has: ours, and the peer's.
    fn own_first<T>(self, initiators: T, responders: T) -> (T, T) {
        match self {
            Self::Initiator => (initiators, responders),
            Self::Responder => (responders, initiators),
        }
    }
}

/// The nonces have crossed.
pub struct Crossed<'k> {
    key: &'k Key,
    end: End,
    /// The initiator's, then the responder's.
    nonces: [[u8; NONCE]; 2],
    /// The keys of both proofs, in the same order. In a box, since this moves, and a secret must not.
    macs: Box<Zeroizing<[u8; 64]>>,
}

impl<'k> Crossed<'k> {
    /// Of `our` nonce and the peer's.
    pub fn new(key: &'k Key, end: End, our: &[u8; NONCE], peers: &[u8; NONCE]) -> Self {
        // The other way round, this is the same swap.
        let (initiators, responders) = end.own_first(our, peers);
        let nonces = [*initiators, *responders];
        let macs = wiped::<{ stack::SYMMETRIC }, _>(|| {
            let mut macs = Box::new(Zeroizing::new([0; 64]));
            derive(key.spiped(), &[nonces.as_flattened()], &mut **macs);
            macs
        });
        Self { key, end, nonces, macs }
    }

    /// The proof that this end holds the key.
    pub fn prove(&self, half: &Half) -> [u8; PROOF] {
        let (our, _) = self.mac_keys();
        let mut proof = [0; PROOF];
        let (value, mac) = proof.split_at_mut(VALUE);
        value.copy_from_slice(half.public());
        wiped::<{ stack::SYMMETRIC }, _>(|| mac.copy_from_slice(sign(our, value).as_ref()));
        proof
    }

    /// Goes on if the peer has proved that it holds the key.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(self, proof: &[u8; PROOF], secrecy: ForwardSecrecy) -> Result<Verified<'k>, ProofError> {
        let (_, peers) = self.mac_keys();
        let (value, mac) = proof.split_first_chunk::<VALUE>().expect("a proof is longer than its value");
        // The tag of a forgery is what an attacker is after, so it is wiped, too.
        let equal = wiped::<{ stack::SYMMETRIC }, _>(|| {
            verify_slices_are_equal(sign(peers, value).as_ref(), mac).is_ok()
        });
        if !equal {
            return Err(ProofError::Forged);
        }
        let theirs = Public::read(value).ok_or(ProofError::NotOfTheGroup)?;
        if secrecy == ForwardSecrecy::Required && theirs.is_one() {
            return Err(ProofError::NoForwardSecrecy);
        }
        Ok(Verified { crossed: self, theirs })
    }

    /// The keys of our proof and of the peer's.
    fn mac_keys(&self) -> (&[u8], &[u8]) {
        let (initiators, responders) = self.macs.split_at(32);
        self.end.own_first(initiators, responders)
    }
}

/// To be called within [`wiped`].
fn sign(key: &[u8], value: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(HMAC_SHA256, key), value)
}

/// The peer holds the key, and is there now.
pub struct Verified<'k> {
    crossed: Crossed<'k>,
    theirs: Public,
}

/// What seals and opens the packets that follow.
pub struct Established {
    /// For those that this end sends.
    pub sealer: Sealer,
    /// For those that it receives.
    pub opener: Opener,
}

impl Verified<'_> {
    /// As [`Crossed::prove`]: a responder proves itself only now.
    pub fn prove(&self, half: &Half) -> [u8; PROOF] {
        self.crossed.prove(half)
    }

    /// The peer's value, for [`Half::agree`].
    pub fn theirs(&self) -> Public {
        self.theirs
    }

    /// The keys of the packets, from the secret that both halves give.
    pub fn finish(self, shared: &Shared) -> Established {
        let Crossed { key, end, nonces, .. } = self.crossed;
        wiped::<{ stack::SYMMETRIC }, _>(|| {
            let mut keys = Box::new(Zeroizing::new([0; 128]));
            derive(key.spiped(), &[nonces.as_flattened(), &***shared], &mut **keys);
            let (initiators, responders) = keys.split_at(64);
            let (our, peers) = end.own_first(initiators, responders);
            Established { sealer: Sealer::new(our), opener: Opener::new(peers) }
        })
    }
}
