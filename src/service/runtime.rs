//! The one place where runtimes are built.

use std::io;
use std::num::NonZero;

use tokio::runtime::{Builder, Runtime};

/// How many threads a runtime has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Only the one that waits for it: for a single connection.
    One,
    /// One for each processor; for each that the system tells, where the number is not known.
    PerProcessor(Option<NonZero<usize>>),
}

/// A runtime with all that a pipe needs.
///
/// # Errors
/// The operating system's.
pub fn build(threads: Threads) -> io::Result<Runtime> {
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::PerProcessor(number) => {
            let mut builder = Builder::new_multi_thread();
            if let Some(number) = number {
                builder.worker_threads(number.get());
            }
            builder
        }
    };
    builder.enable_all().build()
}
