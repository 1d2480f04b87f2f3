//! The responder's reader of a proof in spiped's protocol, which every stranger on the network reaches.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use spipe::proto::key::Key;
use spipe::proto::spiped::handshake::{PROOF, ProofError};
use spipe_fuzz::spiped::{proof, proof_of, verify};
use spipe_fuzz::{array, damage, key};

static HONEST: LazyLock<(Key, [u8; PROOF])> = LazyLock::new(|| {
    let key = key();
    let proof = proof(&key);
    (key, proof)
});

/// The prime of RFC 3526, group 14, ends in 64 ones and begins with 64 ones: no value with another beginning is above it.
const ONES: [u8; 8] = [0xff; 8];

fuzz_target!(|data: &[u8]| {
    let (key, valid) = &*HONEST;

    // A stranger's bytes, and a key holder's proof, damaged. The honest one adds nothing to forward secrecy, which is required here.
    let mut damaged = *valid;
    damage(&mut damaged, data);
    for proof in [array(data), damaged] {
        let wanted = if proof == *valid { ProofError::NoForwardSecrecy } else { ProofError::Forged };
        assert_eq!(verify(key, &proof).err(), Some(wanted));
    }

    // A key holder's proof of any value.
    let value = array(data);
    match verify(key, &proof_of(&value)) {
        Ok(verified) => assert!(!verified.theirs().is_one()),
        Err(ProofError::NoForwardSecrecy) => assert!(value[255] == 1 && value[..255] == [0; 255]),
        Err(error) => {
            assert_eq!(error, ProofError::NotOfTheGroup);
            assert!(value.starts_with(&ONES));
        }
    }
});
