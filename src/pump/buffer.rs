//! The buffers that frames travel through.
//!
//! A pump borrows one while bytes are in flight and gives it back before it waits for more, so an idle connection owns
//! none. A few are kept a thread, where taking one is no system call and no lock; and some for all threads together, since
//! a task may take a buffer on one thread and drop it on another.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes in a buffer, and the most that one system call carries: eight of spipe's full frames. Bulk costs 0.92 of the CPU time
/// that it takes with four, and 16 are no better: a larger write finds the reader asleep less often, and half of what a
/// core's cache holds is enough.
pub const BATCH: usize = 512 * 1024;

/// Idle buffers kept a thread: one for each direction of the connection that runs there.
const KEPT: usize = 2;
/// Idle buffers kept for all threads, for tasks that hold one across a wait: as long as the next hop is slow, or is being
/// connected to. Without these, buffers pile up where they are dropped, and each connection maps new ones where it starts:
/// five page faults a connection.
const KEPT_BY_ALL: usize = 16;

thread_local! {
    static IDLE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}
static IDLE_OF_ALL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

fn idle_of_all() -> MutexGuard<'static, Vec<Box<[u8]>>> {
    // A panic elsewhere leaves the list whole: every change to it is one call.
    IDLE_OF_ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`BATCH`] bytes, with whatever the last user left in them. Returns to the pool when dropped.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// An idle buffer, or a new one. A new one's pages are untouched zeros, so it costs memory only as far as it is used.
    pub fn take() -> Self {
        let idle = IDLE.with_borrow_mut(Vec::pop).or_else(|| idle_of_all().pop());
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
        let give_back = |idle: &mut Vec<_>, kept, bytes| {
            if idle.len() < kept {
                idle.push(bytes);
                None
            } else {
                Some(bytes)
            }
        };
        // At thread exit the thread's own list may be gone already; then the buffer is simply freed.
        if let Ok(Some(bytes)) = IDLE.try_with(|idle| give_back(&mut idle.borrow_mut(), KEPT, bytes)) {
            give_back(&mut idle_of_all(), KEPT_BY_ALL, bytes);
        }
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
        drop((0..KEPT + KEPT_BY_ALL + 9).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(IDLE.with_borrow(Vec::len), KEPT);
        assert!(idle_of_all().len() <= KEPT_BY_ALL);
    }
}
