//! Computing with secrets so that nothing of them is left on the stack.
//!
//! A value that wipes itself wipes the place where it is dropped. Before that it may have been elsewhere: each move copies it,
//! the compiler saves registers, and functions of libraries keep copies in frames that are never wiped. All of this is on the
//! stack, below the frame of the function that computes, and stays there until something else happens to overwrite it. It even
//! spreads: a value with room that is not used, as enums have it, takes along what the stack held there when it is moved to the
//! heap. So each step that computes with secrets runs in [`wiped`], and leaves its result in boxes: moving a box copies an address
//! only. (A value must not be moved out of its box either, for that leaves its bytes in memory that is then free.)
//!
//! What is in registers when a step ends is overwritten within microseconds, and safe code cannot reach it.

use zeroize::Zeroize;

/// Bytes of stack that sealing or opening a frame with aws-lc-rs takes at most: the assembly code for ChaCha20 saves the key there.
/// Wiping them takes 50 ns.
pub const FRAME: usize = 2 * 1024;

/// The same with AEGIS-256X4: it takes 1.5 KiB with AES instructions, and between 4 and 5 without.
pub const AEGIS: usize = 6 * 1024;

/// The same for a packet of spiped's protocol: HMAC's state, of 0.7 KiB, is copied there several times.
pub const PACKET: usize = 6 * 1024;

/// The same for hashing and ChaCha20-Poly1305 over a message: 11 KiB were measured, and wiping takes 0.4 µs.
pub const SYMMETRIC: usize = 16 * 1024;

/// The same for a step with X25519 and ML-KEM, of which 37 KiB were measured, or with spiped's group: less. Wiping takes 1.8 µs. `tests/protocol/stack.rs` fails
/// when it is not enough.
pub const ASYMMETRIC: usize = 64 * 1024;

/// Does `work`, then wipes the `DEPTH` bytes of stack below, which `work` has used. Its result is to have secrets in boxes only.
pub fn wiped<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let result = call(work);
    wipe::<DEPTH>();
    result
}

/// Has a frame of its own, so that all of `work` is below the frame of [`wiped`], where the frame of [`wipe`] is later.
#[inline(never)]
fn call<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe<const DEPTH: usize>() {
    let mut used = [0_u8; DEPTH];
    used.as_mut_slice().zeroize();
}
