//! The buffers that frames travel through.
//!
//! A pump borrows one while bytes are in flight and gives it back before it waits for more, so an idle connection owns
//! none. A few are kept a thread, where taking one is no system call and no lock; the others are kept for all threads together, since
//! a task may take a buffer on one thread and drop it on another, and hold one as long as the next hop is slow. Of these, the system
//! gets back those that nobody has needed for a while.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrayvec::ArrayVec;
use memmap2::MmapMut;
use tokio::runtime::Handle;

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
/// Idle buffers kept for all threads for good. More are kept as long as they are needed again and again.
const KEPT_BY_ALL: usize = 4;
/// How long a buffer is to be needed by nobody before it goes back to the system.
const UNNEEDED: Duration = Duration::from_secs(1);

type Idle = Vec<Box<Pooled>>;

thread_local! {
    static IDLE: RefCell<Idle> = const { RefCell::new(Vec::new()) };
}
static IDLE_OF_ALL: Mutex<IdleOfAll> = Mutex::new(IdleOfAll { idle: Vec::new(), fewest: 0, trimmed: false });

struct IdleOfAll {
    /// The one that was used last is taken first.
    idle: Idle,
    /// The least that `idle` has had since it was trimmed: so many were needed by nobody.
    fewest: usize,
    /// Whether a task looks after it.
    trimmed: bool,
}

impl IdleOfAll {
    fn lock() -> MutexGuard<'static, Self> {
        // A panic elsewhere leaves it whole: every change to the list is one call.
        IDLE_OF_ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&mut self) -> Option<Box<Pooled>> {
        let taken = self.idle.pop();
        self.fewest = self.fewest.min(self.idle.len());
        taken
    }

    /// Keeps `pooled`, if there is a runtime that can take it away again.
    fn give_back(pooled: Box<Pooled>) {
        let mut all = Self::lock();
        if all.idle.len() < KEPT_BY_ALL || all.trimmed {
            all.idle.push(pooled);
        } else if let Ok(runtime) = Handle::try_current() {
            all.idle.push(pooled);
            all.trimmed = true;
            // A runtime that is shutting down drops the task at once, and that takes the lock.
            drop(all);
            runtime.spawn(trim(Trimming));
        }
    }

    /// Takes out those that were needed by nobody since the last time.
    fn unneeded(&mut self) -> Idle {
        let unneeded = self.fewest.min(self.idle.len().saturating_sub(KEPT_BY_ALL));
        let cold = self.idle.drain(..unneeded).collect();
        self.fewest = self.idle.len();
        cold
    }
}

/// Lets another task begin when this one ends, also with its runtime.
struct Trimming;

impl Drop for Trimming {
    fn drop(&mut self) {
        IdleOfAll::lock().trimmed = false;
    }
}

/// Gives buffers back to the system until few are left.
async fn trim(_trimming: Trimming) {
    loop {
        tokio::time::sleep(UNNEEDED).await;
        let mut all = IdleOfAll::lock();
        let unneeded = all.unneeded();
        let is_done = all.idle.len() <= KEPT_BY_ALL;
        drop(all);
        // Unmapping takes time, so not under the lock.
        drop(unneeded);
        if is_done {
            return;
        }
    }
}

/// What a pump borrows from the pool.
struct Pooled {
    /// A mapping of its own, which goes back to the system when the buffer goes. The allocator would keep it: after 1,000 connections
    /// that came 256 at a time, each pair of ends took 62 KiB with allocated buffers.
    bytes: MmapMut,
    payloads: Payloads,
}

impl Pooled {
    fn new() -> Box<Self> {
        // As where an allocation fails; but this ends one connection and not the process.
        let bytes = MmapMut::map_anon(BATCH).expect("the system has memory for a buffer");
        Box::new(Self { bytes, payloads: Payloads::new() })
    }
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
        let idle = IDLE.with_borrow_mut(Vec::pop).or_else(|| IdleOfAll::lock().take());
        Self { pooled: Some(idle.unwrap_or_else(Pooled::new)) }
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
        let mut pooled = Some(pooled);
        // At thread exit the thread's own list may be gone already.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < KEPT {
                idle.extend(pooled.take());
            }
        });
        if let Some(pooled) = pooled {
            IdleOfAll::give_back(pooled);
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
    fn without_a_runtime_the_pool_keeps_a_few_only() {
        drop((0..KEPT + KEPT_BY_ALL + 9).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert_eq!(IDLE.with_borrow(Vec::len), KEPT);
    }

    fn pooled(count: usize) -> IdleOfAll {
        let idle: Idle = (0..count).map(|_| Pooled::new()).collect();
        IdleOfAll { fewest: idle.len(), idle, trimmed: true }
    }

    #[test]
    fn buffers_that_nobody_has_needed_go_back_to_the_system() {
        let mut all = pooled(KEPT_BY_ALL + 20);
        // At most 8 at the same time.
        for _ in 0..3 {
            let needed: Vec<_> = (0..8).filter_map(|_| all.take()).collect();
            all.idle.extend(needed);
        }
        assert_eq!(all.unneeded().len(), KEPT_BY_ALL + 12);
        assert_eq!(all.idle.len(), 8);
    }

    #[test]
    fn buffers_that_are_needed_again_and_again_stay() {
        let mut all = pooled(KEPT_BY_ALL + 20);
        let needed: Vec<_> = (0..KEPT_BY_ALL + 20).filter_map(|_| all.take()).collect();
        all.idle.extend(needed);
        assert!(all.unneeded().is_empty());
    }

    #[test]
    fn a_few_stay_for_good() {
        let mut all = pooled(KEPT_BY_ALL + 20);
        drop(all.unneeded());
        assert!(all.unneeded().is_empty());
        assert_eq!(all.idle.len(), KEPT_BY_ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_forgotten() {
        drop((0..KEPT + KEPT_BY_ALL + 50).map(|_| Buffer::take()).collect::<Vec<_>>());
        assert!(IdleOfAll::lock().idle.len() > KEPT_BY_ALL);
        while IdleOfAll::lock().trimmed {
            tokio::time::sleep(UNNEEDED).await;
        }
        assert!(IdleOfAll::lock().idle.len() <= KEPT_BY_ALL);
    }
}
