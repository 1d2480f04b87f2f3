//! The protocol of Tarsnap's spiped, so that either end of its pipes can be this program (`docs/SPIPED.md` specifies it).
//!
//! ```text
//!  initiator                                        responder
//!  nonce, 32 bytes              ─────▶
//!                               ◀─────              nonce, 32 bytes
//!  y and its HMAC, 288 bytes    ─────▶
//!                               ◀─────              y and its HMAC, 288 bytes
//!  packets of 1,060 bytes       ◀────▶              packets of 1,060 bytes
//! ```
//!
//! [`group`] has the Diffie-Hellman exchange, [`handshake`] the proof that both ends hold the key, and [`packet`] what follows.

pub mod group;
pub mod handshake;
pub mod packet;

use aws_lc_rs::hmac::{self, HMAC_SHA256};

/// PBKDF2-HMAC-SHA256 (RFC 8018, section 5.2) with one iteration: HMAC of the salt and a counter, as often as `output` is long.
///
/// To be called within [`wiped`](super::stack::wiped): the HMACs lie on the stack.
fn derive(secret: &[u8; 32], salt: &[&[u8]], output: &mut [u8]) {
    let key = hmac::Key::new(HMAC_SHA256, secret);
    for (block, number) in output.chunks_mut(32).zip(1_u32..) {
        let mut context = hmac::Context::with_key(&key);
        for part in salt {
            context.update(part);
        }
        context.update(&number.to_be_bytes());
        block.copy_from_slice(&context.sign().as_ref()[..block.len()]);
    }
}
