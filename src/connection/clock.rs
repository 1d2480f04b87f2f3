//! Timers for connections at work, on a thread of their own.
//!
//! As long as the runtime itself has a timer to wait for, each of its epoll_wait(2) is a timed one, for which the kernel sets up
//! a timer of its own: 6 % of the processor time of a small round trip. This thread waits instead, and wakes up only when
//! a timer has run out.

use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::time::Sleep;

/// The runtime of the thread that waits. None if there can be no such thread.
static CLOCK: LazyLock<Option<Handle>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build().ok()?;
    let handle = runtime.handle().clone();
    let waits = move || runtime.block_on(std::future::pending::<()>());
    thread::Builder::new().name("clock".to_owned()).spawn(waits).ok()?;
    Some(handle)
});

/// As tokio's, and to be awaited anywhere.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    let _within = CLOCK.as_ref().map(Handle::enter);
    tokio::time::sleep(duration)
}
