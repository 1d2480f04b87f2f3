//! The buffers that frames travel through.
//!
//! A pump borrows one while bytes are in flight and gives it back before it waits for more, so an idle connection owns
//! none. A few are kept a thread, where taking one is no system call and no lock; and some for all threads together, since
//! a task may take a buffer on one thread and drop it on another.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;

/// Bytes in a buffer, and the most that one system call carries: eight of spipe's full frames. Bulk costs 0.92 of the CPU time
/// that it takes with four, and 16 are no better: a larger write finds the reader asleep less often, and half of what a
/// core's cache holds is enough.
pub const BATCH: usize = 512 * 1024;

/// Payloads that one writev(2) may carry. Full frames come eight at a time; small ones are gathered up to this many. With 16, packets
/// of spiped's protocol take 1.3 times the CPU time to open.
pub(super) const GATHER: usize = 64;

/// Where payloads lie in a buffer, in the order of the stream.
pub(super) type Payloads = ArrayVec<Range<usize>, GATHER>;

/// Idle buffers kept a thread: one for each direction of the connection that runs there.
const KEPT: usize = 2;
/// Idle buffers kept for all threads, for tasks that hold one across a wait: as long as the next hop is slow, or is being
/// connected to. Without these, buffers pile up where they are dropped, and each connection maps new ones where it starts:
/// five page faults a connection.
const KEPT_BY_ALL: usize = 16;

type Idle = Vec<Box<Pooled>>;

thread_local! {
    static IDLE: RefCell<Idle> = const { RefCell::new(Vec::new()) };
}
static IDLE_OF_ALL: Mutex<Idle> = Mutex::new(Vec::new());

fn idle_of_all() -> MutexGuard<'static, Idle> {
    // A panic elsewhere leaves the list whole: every change to it is one call.
    IDLE_OF_ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a pump borrows from the pool.
struct Pooled {
    bytes: Box<[u8]>,
    payloads: Payloads,
}

/// [`BATCH`] bytes, with whatever the last user left in them, and a list of places in them. Returns to the pool when dropped.
///
/// The list is here and not in the pump, since there are places only while there are bytes: an idle connection keeps neither.
pub struct Buffer {
    /// None only while it is being dropped.
    pooled: Option<Box<Pooled>>,
}

impl Buffer {
    /// An idle buffer, or a new one. A new one's pages are untouched zeros, so it costs memory only as far as it is used.
    pub fn take() -> Self {
        let idle = IDLE.with_borrow_mut(Vec::pop).or_else(|| idle_of_all().pop());
        let new = || Box::new(Pooled { bytes: vec![0; BATCH].into_boxed_slice(), payloads: Payloads::new() });
        Self { pooled: Some(idle.unwrap_or_else(new)) }
    }

    /// Payloads that are opened and not yet written, by where they lie in the buffer.
    pub(super) fn payloads(&self) -> &Payloads {
        &self.pooled().payloads
    }

    /// The same, to be changed.
    pub(super) fn payloads_mut(&mut self) -> &mut Payloads {
        &mut self.pooled_mut().payloads
    }

    fn pooled(&self) -> &Pooled {
        self.pooled.as_ref().expect("it is not being dropped")
    }

    fn pooled_mut(&mut self) -> &mut Pooled {
        self.pooled.as_mut().expect("it is not being dropped")
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pooled().bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pooled_mut().bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mut pooled) = self.pooled.take() else { return };
        pooled.payloads.clear();
        let give_back = |idle: &mut Idle, kept, pooled| {
            if idle.len() < kept {
                idle.push(pooled);
                None
            } else {
                Some(pooled)
            }
        };
        // At thread exit the thread's own list may be gone already; then the buffer is simply freed.
        if let Ok(Some(pooled)) = IDLE.try_with(|idle| give_back(&mut idle.borrow_mut(), KEPT, pooled)) {
            give_back(&mut idle_of_all(), KEPT_BY_ALL, pooled);
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
    fn a_returned_buffer_forgets_its_payloads() {
        let mut first = Buffer::take();
        first.payloads_mut().push(1..2);
        drop(first);
        assert!(Buffer::take().payloads().is_empty());
    }

    #[test]
    fn the_pool_keeps_a_few_only() {
        drop((0..KEPT + KEPT_BY_ALL + 9).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(IDLE.with_borrow(Vec::len), KEPT);
        assert!(idle_of_all().len() <= KEPT_BY_ALL);
    }
}
