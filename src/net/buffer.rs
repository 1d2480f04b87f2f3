//! The buffers that frames travel through.
//!
//! A pump borrows one while bytes are in flight and gives it back before it waits for more, so an idle connection owns
//! none. They are kept a few a thread: taking one is no system call and no lock.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::proto::frame::FRAME_MAX;

/// Frames that one system call may carry. Bulk costs 0.92 of the CPU time that it takes with 4, and 16 are no better: a
/// larger write finds the reader asleep less often, and half of what a core's cache holds is enough.
pub const BATCH_FRAMES: usize = 8;
/// Bytes in a buffer: 512 KiB.
pub const BATCH: usize = BATCH_FRAMES * FRAME_MAX;

/// Idle buffers kept a thread: both directions of a connection need one each, and a task holds them across a wait only
/// when its peer is slow.
const KEPT: usize = 4;

thread_local! {
    static IDLE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// [`BATCH`] bytes, with whatever the last user left in them. Returns to the pool when dropped.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// An idle buffer, or a new one. A new one's pages are untouched zeros, so it costs memory only as far as it is used.
    pub fn take() -> Self {
        let idle = IDLE.with_borrow_mut(Vec::pop);
        Self(idle.unwrap_or_else(|| vec![0; BATCH].into_boxed_slice()))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // At thread exit the pool may be gone already; then the buffer is simply freed.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < KEPT {
                idle.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_taken_again() {
        let first = Buffer::take();
        let address = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::take().as_ptr(), address);
    }

    #[test]
    fn the_pool_keeps_a_few_only() {
        drop((0..20).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(IDLE.with_borrow(Vec::len), KEPT);
    }
}
