//! What spiped's protocol derives from a key, by other crates than those that the program uses. `tests/e2e` has it, too.

use hmac::{Hmac, KeyInit, Mac};
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn hmac(key: &[u8], bytes: &[u8]) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(bytes).finalize().into_bytes().into()
}

/// What HMAC keeps of a key instead: the states of SHA-256 behind both padded blocks, in the processor's order.
pub(crate) fn hmac_states(key: &[u8; 32]) -> [[u8; 32]; 2] {
    // FIPS 180-4, section 5.3.3.
    const INITIAL: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    [0x36, 0x5c].map(|pad| {
        let (mut block, mut state) = ([pad; 64], INITIAL);
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        compress256(&mut state, &[block]);
        state.map(u32::to_ne_bytes).as_flattened().try_into().unwrap()
    })
}

/// With one iteration.
pub(crate) fn pbkdf2(key: &[u8], salt: &[u8], length: u32) -> Vec<u8> {
    (1..=length / 32).flat_map(|number| hmac(key, &[salt, &number.to_be_bytes()].concat())).collect()
}
